#include "probes.hpp"

#if BENCH_PROBES_X86
#include <immintrin.h>

#define BENCH_LEVEL __attribute__((target("avx2,fma,avxvnni"), noinline))

namespace bench {
namespace {

BENCH_LEVEL std::int32_t int8(std::int64_t rounds) {
    const __m256i u = _mm256_set1_epi8(3);
    const __m256i v = _mm256_set1_epi8(2);
#define BENCH_BEGIN(j) __m256i a##j = _mm256_setzero_si256();
#define BENCH_STEP(j)                           \
    a##j = _mm256_dpbusd_avx_epi32(a##j, u, v); \
    BENCH_OPAQUE(a##j);
#define BENCH_END(j) all = _mm256_xor_si256(all, a##j);
    BENCH_EACH_10(BENCH_BEGIN)
    for (std::int64_t i = 0; i < rounds; ++i) {
        BENCH_EACH_10(BENCH_STEP)
    }
    __m256i all = _mm256_setzero_si256();
    BENCH_EACH_10(BENCH_END)
#undef BENCH_BEGIN
#undef BENCH_STEP
#undef BENCH_END
    std::int32_t word[8];
    _mm256_storeu_si256(static_cast<__m256i*>(static_cast<void*>(word)), all);
    return word[0];
}

}  // namespace

// Reading and fp32 are those of avx2.
const probe_set* avxvnni_probes() noexcept {
    static const probe_set probes{avx2_probes()->read, avx2_probes()->f32, &int8, avx2_probes()->f32_ops,
                                  BENCH_FMA_SUMS * 32 * 2.0};
    return &probes;
}

}  // namespace bench
#else
namespace bench {
const probe_set* avxvnni_probes() noexcept { return nullptr; }
}  // namespace bench
#endif
