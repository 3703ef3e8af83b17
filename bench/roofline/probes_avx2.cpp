#include "probes.hpp"

#if BENCH_PROBES_X86
#include <immintrin.h>

#define BENCH_LEVEL __attribute__((target("avx2,fma"), noinline))

namespace bench {
namespace {

BENCH_LEVEL std::uint64_t read(const unsigned char* p, std::size_t bytes, std::size_t ahead) {
    __m256i sum[4];
    for (__m256i& s : sum) s = _mm256_setzero_si256();
    for (std::size_t i = 0; i < bytes; i += 128) {
        if (ahead != 0) {
            _mm_prefetch(reinterpret_cast<const char*>(p) + i + ahead, _MM_HINT_T0);
            _mm_prefetch(reinterpret_cast<const char*>(p) + i + ahead + 64, _MM_HINT_T0);
        }
        BENCH_UNROLL
        for (std::size_t j = 0; j < 4; ++j)
            sum[j] = _mm256_xor_si256(
                sum[j], _mm256_loadu_si256(static_cast<const __m256i*>(static_cast<const void*>(p + i + 32 * j))));
    }
    const __m256i all = _mm256_xor_si256(_mm256_xor_si256(sum[0], sum[1]), _mm256_xor_si256(sum[2], sum[3]));
    std::uint64_t word[4];
    _mm256_storeu_si256(static_cast<__m256i*>(static_cast<void*>(word)), all);
    return word[0] ^ word[1] ^ word[2] ^ word[3];
}

BENCH_LEVEL float f32(std::int64_t rounds) {
    __m256 a[BENCH_PROBE_REGISTERS];
    for (__m256& x : a) x = _mm256_set1_ps(1.0f);
    const __m256 m = _mm256_set1_ps(0.999f);
    const __m256 s = _mm256_set1_ps(0.001f);
    for (std::int64_t i = 0; i < rounds; ++i) {
        BENCH_UNROLL
        for (int j = 0; j < BENCH_PROBE_REGISTERS; ++j) a[j] = _mm256_fmadd_ps(a[j], m, s);
    }
    for (int j = 1; j < BENCH_PROBE_REGISTERS; ++j) a[0] = _mm256_add_ps(a[0], a[j]);
    return _mm256_cvtss_f32(a[0]);
}

BENCH_LEVEL std::int32_t int8(std::int64_t rounds) {
    __m256i a[BENCH_PROBE_REGISTERS];
    for (__m256i& x : a) x = _mm256_setzero_si256();
    __m256i u = _mm256_set1_epi8(3);
    const __m256i v = _mm256_set1_epi8(2);
    for (std::int64_t i = 0; i < rounds; ++i) {
        BENCH_UNROLL
        for (int j = 0; j < BENCH_PROBE_REGISTERS; ++j) {
            BENCH_OPAQUE(u);  // else one product would serve all sums
            a[j] = _mm256_add_epi16(a[j], _mm256_maddubs_epi16(u, v));
        }
    }
    for (int j = 1; j < BENCH_PROBE_REGISTERS; ++j) a[0] = _mm256_xor_si256(a[0], a[j]);
    return _mm256_extract_epi32(a[0], 0);
}

constexpr probe_set probes{&read, &f32, &int8, BENCH_PROBE_REGISTERS * 8 * 2.0, BENCH_PROBE_REGISTERS * 32 * 2.0};

}  // namespace

const probe_set* avx2_probes() noexcept { return &probes; }

}  // namespace bench
#else
namespace bench {
const probe_set* avx2_probes() noexcept { return nullptr; }
}  // namespace bench
#endif
