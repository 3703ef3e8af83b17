#include "probes.hpp"

#if BENCH_PROBES_X86
#include <immintrin.h>

#define BENCH_LEVEL __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"), noinline))

namespace bench {
namespace {

BENCH_LEVEL std::int32_t int8(std::int64_t rounds) {
    const __m512i u = _mm512_set1_epi8(3);
    const __m512i v = _mm512_set1_epi8(2);
#define BENCH_BEGIN(j) __m512i a##j = _mm512_setzero_si512();
#define BENCH_STEP(j)                       \
    a##j = _mm512_dpbusd_epi32(a##j, u, v); \
    BENCH_OPAQUE(a##j);
#define BENCH_END(j) all = _mm512_xor_si512(all, a##j);
    BENCH_EACH_10(BENCH_BEGIN)
    for (std::int64_t i = 0; i < rounds; ++i) {
        BENCH_EACH_10(BENCH_STEP)
    }
    __m512i all = _mm512_setzero_si512();
    BENCH_EACH_10(BENCH_END)
#undef BENCH_BEGIN
#undef BENCH_STEP
#undef BENCH_END
    std::int32_t word[16];
    _mm512_storeu_si512(word, all);
    return word[0];
}

}  // namespace

// Reading and fp32 are those of avx512.
const probe_set* avx512vnni_probes() noexcept {
    static const probe_set probes{avx512_probes()->read, avx512_probes()->f32, &int8, avx512_probes()->f32_ops,
                                  BENCH_FMA_SUMS * 64 * 2.0};
    return &probes;
}

}  // namespace bench
#else
namespace bench {
const probe_set* avx512vnni_probes() noexcept { return nullptr; }
}  // namespace bench
#endif
