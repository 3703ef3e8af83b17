#include "probes.hpp"

#if BENCH_PROBES_X86
#include <immintrin.h>

#define BENCH_LEVEL __attribute__((target("avx2,fma,avxvnni"), noinline))

namespace bench {
namespace {

BENCH_LEVEL std::int32_t int8(std::int64_t rounds) {
    __m256i a[BENCH_PROBE_REGISTERS];
    for (__m256i& x : a) x = _mm256_setzero_si256();
    const __m256i u = _mm256_set1_epi8(3);
    const __m256i v = _mm256_set1_epi8(2);
    for (std::int64_t i = 0; i < rounds; ++i) {
        BENCH_UNROLL
        for (int j = 0; j < BENCH_PROBE_REGISTERS; ++j) {
            a[j] = _mm256_dpbusd_avx_epi32(a[j], u, v);
            BENCH_OPAQUE(a[j]);
        }
    }
    for (int j = 1; j < BENCH_PROBE_REGISTERS; ++j) a[0] = _mm256_xor_si256(a[0], a[j]);
    return _mm256_extract_epi32(a[0], 0);
}

}  // namespace

// Reading and fp32 are those of avx2.
const probe_set* avxvnni_probes() noexcept {
    static const probe_set probes{avx2_probes()->read, avx2_probes()->f32, &int8, avx2_probes()->f32_ops,
                                  BENCH_PROBE_REGISTERS * 32 * 2.0};
    return &probes;
}

}  // namespace bench
#else
namespace bench {
const probe_set* avxvnni_probes() noexcept { return nullptr; }
}  // namespace bench
#endif
