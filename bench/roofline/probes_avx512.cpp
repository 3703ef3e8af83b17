#include "probes.hpp"

#if BENCH_PROBES_X86
#include <immintrin.h>

#define BENCH_LEVEL __attribute__((target("avx2,fma,avx512f,avx512bw,avx512dq,avx512vl"), noinline))

namespace bench {
namespace {

BENCH_LEVEL std::uint64_t read(const unsigned char* p, std::size_t bytes, std::size_t ahead) {
    __m512i sum[4];
    for (__m512i& s : sum) s = _mm512_setzero_si512();
    for (std::size_t i = 0; i < bytes; i += 256) {
        if (ahead != 0) {
            BENCH_UNROLL
            for (std::size_t j = 0; j < 4; ++j)
                _mm_prefetch(reinterpret_cast<const char*>(p) + i + ahead + 64 * j, _MM_HINT_T0);
        }
        BENCH_UNROLL
        for (std::size_t j = 0; j < 4; ++j) sum[j] = _mm512_xor_si512(sum[j], _mm512_loadu_si512(p + i + 64 * j));
    }
    const __m512i all = _mm512_xor_si512(_mm512_xor_si512(sum[0], sum[1]), _mm512_xor_si512(sum[2], sum[3]));
    std::uint64_t word[8];
    _mm512_storeu_si512(word, all);
    return word[0] ^ word[1] ^ word[2] ^ word[3] ^ word[4] ^ word[5] ^ word[6] ^ word[7];
}

BENCH_LEVEL float f32(std::int64_t rounds) {
    __m512 a[BENCH_PROBE_REGISTERS];
    for (__m512& x : a) x = _mm512_set1_ps(1.0f);
    const __m512 m = _mm512_set1_ps(0.999f);
    const __m512 s = _mm512_set1_ps(0.001f);
    for (std::int64_t i = 0; i < rounds; ++i) {
        BENCH_UNROLL
        for (int j = 0; j < BENCH_PROBE_REGISTERS; ++j) a[j] = _mm512_fmadd_ps(a[j], m, s);
    }
    for (int j = 1; j < BENCH_PROBE_REGISTERS; ++j) a[0] = _mm512_add_ps(a[0], a[j]);
    return _mm512_cvtss_f32(a[0]);
}

BENCH_LEVEL std::int32_t int8(std::int64_t rounds) {
    __m512i a[BENCH_PROBE_REGISTERS];
    for (__m512i& x : a) x = _mm512_setzero_si512();
    __m512i u = _mm512_set1_epi8(3);
    const __m512i v = _mm512_set1_epi8(2);
    for (std::int64_t i = 0; i < rounds; ++i) {
        BENCH_UNROLL
        for (int j = 0; j < BENCH_PROBE_REGISTERS; ++j) {
            BENCH_OPAQUE(u);  // else one product would serve all sums
            a[j] = _mm512_add_epi16(a[j], _mm512_maddubs_epi16(u, v));
        }
    }
    for (int j = 1; j < BENCH_PROBE_REGISTERS; ++j) a[0] = _mm512_xor_si512(a[0], a[j]);
    std::int32_t word[16];
    _mm512_storeu_si512(word, a[0]);
    return word[0];
}

constexpr probe_set probes{&read, &f32, &int8, BENCH_PROBE_REGISTERS * 16 * 2.0, BENCH_PROBE_REGISTERS * 64 * 2.0};

}  // namespace

const probe_set* avx512_probes() noexcept { return &probes; }

}  // namespace bench
#else
namespace bench {
const probe_set* avx512_probes() noexcept { return nullptr; }
}  // namespace bench
#endif
