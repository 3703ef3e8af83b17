#include <cstring>

#include "probes.hpp"

// Keeps a value from the optimizer, which would turn the loops into vectors or into one multiplication.
#if defined(__GNUC__) && defined(__x86_64__)
#define BENCH_OPAQUE_FLOAT(x) __asm__ volatile("" : "+x"(x))
#define BENCH_OPAQUE_INT(x) __asm__ volatile("" : "+r"(x))
#elif defined(__GNUC__) && defined(__aarch64__)
#define BENCH_OPAQUE_FLOAT(x) __asm__ volatile("" : "+w"(x))
#define BENCH_OPAQUE_INT(x) __asm__ volatile("" : "+r"(x))
#else
#define BENCH_OPAQUE_FLOAT(x) static_cast<void>(*static_cast<volatile float*>(&(x)))
#define BENCH_OPAQUE_INT(x) static_cast<void>(*static_cast<volatile std::int32_t*>(&(x)))
#endif

namespace bench {
namespace {

std::uint64_t read(const unsigned char* p, std::size_t bytes, std::size_t) {
    std::uint64_t sum[8] = {};
    for (std::size_t i = 0; i < bytes; i += 64) {
        std::uint64_t line[8];
        std::memcpy(line, p + i, sizeof line);
        for (int j = 0; j < 8; ++j) sum[j] ^= line[j];
    }
    std::uint64_t all = 0;
    for (const std::uint64_t s : sum) all ^= s;
    return all;
}

float f32(std::int64_t rounds) {
    float a = 1.0f, b = 1.0f, c = 1.0f, d = 1.0f, e = 1.0f, f = 1.0f, g = 1.0f, h = 1.0f;
    const float m = 0.999f;
    const float s = 0.001f;
    for (std::int64_t i = 0; i < rounds; ++i) {
        a = a * m + s;
        b = b * m + s;
        c = c * m + s;
        d = d * m + s;
        e = e * m + s;
        f = f * m + s;
        g = g * m + s;
        h = h * m + s;
        BENCH_OPAQUE_FLOAT(a);
        BENCH_OPAQUE_FLOAT(b);
        BENCH_OPAQUE_FLOAT(c);
        BENCH_OPAQUE_FLOAT(d);
        BENCH_OPAQUE_FLOAT(e);
        BENCH_OPAQUE_FLOAT(f);
        BENCH_OPAQUE_FLOAT(g);
        BENCH_OPAQUE_FLOAT(h);
    }
    return a + b + c + d + e + f + g + h;
}

std::int32_t int8(std::int64_t rounds) {
    std::int32_t a = 0, b = 0, c = 0, d = 0;
    std::int32_t u = 3;
    std::int32_t v = 2;
    for (std::int64_t i = 0; i < rounds; ++i) {
        BENCH_OPAQUE_INT(u);
        a += u * v;
        BENCH_OPAQUE_INT(a);
        BENCH_OPAQUE_INT(u);
        b += u * v;
        BENCH_OPAQUE_INT(b);
        BENCH_OPAQUE_INT(u);
        c += u * v;
        BENCH_OPAQUE_INT(c);
        BENCH_OPAQUE_INT(u);
        d += u * v;
        BENCH_OPAQUE_INT(d);
    }
    return (a ^ b) ^ (c ^ d);
}

constexpr probe_set probes{&read, &f32, &int8, 16.0, 8.0};

}  // namespace

const probe_set* scalar_probes() noexcept { return &probes; }

}  // namespace bench
