#include "probes.hpp"

#if BENCH_PROBES_X86
#include <immintrin.h>

#define BENCH_LEVEL __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni"), noinline))

namespace bench {
namespace {

BENCH_LEVEL std::int32_t int8(std::int64_t rounds) {
    __m512i a[BENCH_PROBE_REGISTERS];
    for (__m512i& x : a) x = _mm512_setzero_si512();
    const __m512i u = _mm512_set1_epi8(3);
    const __m512i v = _mm512_set1_epi8(2);
    for (std::int64_t i = 0; i < rounds; ++i) {
        BENCH_UNROLL
        for (int j = 0; j < BENCH_PROBE_REGISTERS; ++j) {
            a[j] = _mm512_dpbusd_epi32(a[j], u, v);
            BENCH_OPAQUE(a[j]);
        }
    }
    for (int j = 1; j < BENCH_PROBE_REGISTERS; ++j) a[0] = _mm512_xor_si512(a[0], a[j]);
    std::int32_t word[16];
    _mm512_storeu_si512(word, a[0]);
    return word[0];
}

}  // namespace

// Reading and fp32 are those of avx512.
const probe_set* avx512vnni_probes() noexcept {
    static const probe_set probes{avx512_probes()->read, avx512_probes()->f32, &int8, avx512_probes()->f32_ops,
                                  BENCH_PROBE_REGISTERS * 64 * 2.0};
    return &probes;
}

}  // namespace bench
#else
namespace bench {
const probe_set* avx512vnni_probes() noexcept { return nullptr; }
}  // namespace bench
#endif
