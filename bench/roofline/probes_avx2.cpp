#include "probes.hpp"

#if BENCH_PROBES_X86
#include <immintrin.h>

#define BENCH_LEVEL __attribute__((target("avx2,fma"), noinline))

namespace bench {
namespace {

BENCH_LEVEL std::uint64_t read(const unsigned char* p, std::size_t bytes, std::size_t ahead) {
#define BENCH_BEGIN(j) __m256i a##j = _mm256_setzero_si256();
#define BENCH_STEP(j)        \
    a##j = _mm256_xor_si256( \
        a##j, _mm256_loadu_si256(static_cast<const __m256i*>(static_cast<const void*>(p + i + 32 * j))));
#define BENCH_PREFETCH(j) _mm_prefetch(reinterpret_cast<const char*>(p) + i + ahead + 32 * j, _MM_HINT_T0);
#define BENCH_END(j) all = _mm256_xor_si256(all, a##j);
    BENCH_EACH_8(BENCH_BEGIN)
    if (ahead == 0) {
        for (std::size_t i = 0; i < bytes; i += 256) {
            BENCH_EACH_8(BENCH_STEP)
        }
    } else {
        for (std::size_t i = 0; i < bytes; i += 256) {
            BENCH_EACH_8(BENCH_PREFETCH)
            BENCH_EACH_8(BENCH_STEP)
        }
    }
    __m256i all = _mm256_setzero_si256();
    BENCH_EACH_8(BENCH_END)
#undef BENCH_BEGIN
#undef BENCH_STEP
#undef BENCH_PREFETCH
#undef BENCH_END
    std::uint64_t word[4];
    _mm256_storeu_si256(static_cast<__m256i*>(static_cast<void*>(word)), all);
    std::uint64_t sum = 0;
    for (const std::uint64_t x : word) sum ^= x;
    return sum;
}

BENCH_LEVEL float f32(std::int64_t rounds) {
    const __m256 m = _mm256_set1_ps(0.999f);
    const __m256 s = _mm256_set1_ps(0.001f);
// Opaque: the compiler would see that all sums are the same.
#define BENCH_BEGIN(j)                  \
    __m256 a##j = _mm256_set1_ps(1.0f); \
    BENCH_OPAQUE(a##j);
#define BENCH_STEP(j) a##j = _mm256_fmadd_ps(a##j, m, s);
#define BENCH_END(j) all = _mm256_add_ps(all, a##j);
    BENCH_EACH_10(BENCH_BEGIN)
    for (std::int64_t i = 0; i < rounds; ++i) {
        BENCH_EACH_10(BENCH_STEP)
    }
    __m256 all = _mm256_setzero_ps();
    BENCH_EACH_10(BENCH_END)
#undef BENCH_BEGIN
#undef BENCH_STEP
#undef BENCH_END
    float word[8];
    _mm256_storeu_ps(word, all);
    return word[0];
}

BENCH_LEVEL std::int32_t int8(std::int64_t rounds) {
    const __m256i u = _mm256_set1_epi8(3);
    const __m256i v = _mm256_set1_epi8(2);
    __m256i product;
// Written out: the compiler would multiply once for all sums.
#define BENCH_BEGIN(j) __m256i a##j = _mm256_setzero_si256();
#define BENCH_STEP(j)                                                           \
    __asm__ volatile("vpmaddubsw %2, %1, %0" : "=x"(product) : "x"(u), "x"(v)); \
    a##j = _mm256_add_epi16(a##j, product);
#define BENCH_END(j) all = _mm256_xor_si256(all, a##j);
    BENCH_EACH_8(BENCH_BEGIN)
    for (std::int64_t i = 0; i < rounds; ++i) {
        BENCH_EACH_8(BENCH_STEP)
    }
    __m256i all = _mm256_setzero_si256();
    BENCH_EACH_8(BENCH_END)
#undef BENCH_BEGIN
#undef BENCH_STEP
#undef BENCH_END
    std::int32_t word[8];
    _mm256_storeu_si256(static_cast<__m256i*>(static_cast<void*>(word)), all);
    return word[0];
}

constexpr probe_set probes{&read, &f32, &int8, BENCH_FMA_SUMS * 8 * 2.0, BENCH_ADD_SUMS * 32 * 2.0};

}  // namespace

const probe_set* avx2_probes() noexcept { return &probes; }

}  // namespace bench
#else
namespace bench {
const probe_set* avx2_probes() noexcept { return nullptr; }
}  // namespace bench
#endif
