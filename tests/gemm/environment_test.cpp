// What a host program does to the floating-point environment changes no bit of a product and is left as it was, on the
// calling thread and on those of an executor; nor does where X and Y lie in memory.
#include <nibble/nibble.hpp>

#include <array>
#include <atomic>
#include <cfenv>
#include <cstring>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/reference.hpp"
#include "support/spawning.hpp"

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

using Eigen::MatrixXf;
using nibble::compute;
using nibble::qmatrix;
using nibble::scalar_type;
using reference::tally;
using Index = nibble::index;

namespace {

constexpr std::array<compute, 4> classes = {compute::strict_f32, compute::f32, compute::a16, compute::a8};

/// The control register of a thread: rounding, and flushing of subnormals where there is such a thing.
struct host_environment {
    const char* name;
    int rounding;
    bool flushing;

    void enter() const {
        std::fesetround(rounding);
#if defined(__SSE2__)
        _mm_setcsr((_mm_getcsr() & ~0x8040u) | (flushing ? 0x8040u : 0u));
#elif defined(__aarch64__)
        std::uint64_t r;
        __asm__ volatile("mrs %0, fpcr" : "=r"(r));
        r = (r & ~(std::uint64_t{1} << 24)) | (std::uint64_t{flushing} << 24);
        __asm__ volatile("msr fpcr, %0" : : "r"(r));
#endif
    }
    [[nodiscard]] bool holds() const {
        bool same = std::fegetround() == rounding;
#if defined(__SSE2__)
        same = same && (_mm_getcsr() & 0x8040u) == (flushing ? 0x8040u : 0u);
#elif defined(__aarch64__)
        std::uint64_t r;
        __asm__ volatile("mrs %0, fpcr" : "=r"(r));
        same = same && ((r >> 24 & 1) != 0) == flushing;
#endif
        return same;
    }
};

constexpr std::array<host_environment, 6> environments = {{{"nearest", FE_TONEAREST, false},
                                                            {"flushing", FE_TONEAREST, true},
                                                            {"upward", FE_UPWARD, false},
                                                            {"downward", FE_DOWNWARD, false},
                                                            {"toward zero", FE_TOWARDZERO, false},
                                                            {"upward and flushing", FE_UPWARD, true}}};

/// Puts back what the test found.
class environment_guard {
public:
    environment_guard() { std::fegetenv(&before_); }
    ~environment_guard() { std::fesetenv(&before_); }
    environment_guard(const environment_guard&) = delete;
    environment_guard& operator=(const environment_guard&) = delete;

private:
    std::fenv_t before_;
};

/// Numbers at which rounding and flushing show: ordinary, subnormal, zero, with outliers, and of both extremes.
MatrixXf activations(Index k) {
    const reference::default_environment environment;  // a host with -ffast-math flushes
    MatrixXf x = data::matrix(k, 9, 1);
    x.col(1) *= 0x1p-130f;
    x.col(2) *= 0x1p-126f;
    x.col(3) *= 0x1p-149f;
    x(k / 2, 4) = 0x1p26f;
    x.col(5).topRows(k / 2) *= 0x1p-128f;
    x.col(6) *= 0x1p120f;
    x(1, 7) = reference::float_from_bits(0x7f800000u);
    x.col(8) *= 0x1p-60f;
    return x;
}

/// Subnormal, tiny and ordinary weights: codes of 16 bits, and scales of float.
std::vector<qmatrix> matrices(Index n, Index k) {
    std::vector<qmatrix> all;
    const MatrixXf dense = data::matrix(n, k, 2);
    for (const char* name : {"int4_g32", "q4_k", "int4_zero_g128", "int4_hqq_g64", "nf4", "mxfp8", "nvfp4", "fp16"})
        all.push_back(nibble::quantize(dense, name));
    const reference::default_environment environment;
    const MatrixXf tiny = 0x1p-127f * dense;
    all.push_back(nibble::quantize<nibble::int8>(tiny, nibble::absmax{}, nibble::per_group{32}, {.scale = nibble::scales::f32}));
    all.push_back(nibble::quantize(tiny, "bf16"));
    all.push_back(nibble::quantize(MatrixXf(0x1p-17f * dense), "fp16"));
    all.push_back(nibble::quantize<nibble::int8>(MatrixXf(0x1p100f * dense), nibble::min_offset{}, nibble::per_group{32}, {.scale = nibble::scales::f32}));
    return all;
}

}  // namespace

TEST_CASE("the environment of the host changes no bit and is left as it was", "[gemm][environment]") {
    const environment_guard restore;
    const Index n = 19, k = 256;
    const MatrixXf x = activations(k);
    const Eigen::VectorXf bias = [&] {
        const reference::default_environment environment;
        return Eigen::VectorXf(0x1p-128f * data::matrix(n, 1, 3));
    }();
    const MatrixXf before = [&] {
        const reference::default_environment environment;
        return MatrixXf(0x1p-127f * data::matrix(n, 9, 4));
    }();
    tally t;
    const std::vector<qmatrix> all = matrices(n, k);
    std::size_t subnormal = 0;
    for (const qmatrix& w : all) {
        for (const compute c : classes) {
            for (const bool options : {false, true}) {
                nibble::gemm_options o{.compute = c};
                if (options) {
                    o.bias = bias;
                    o.accumulate = true;
                    o.activation = nibble::activation::silu;
                }
                std::vector<std::uint32_t> wanted;
                {
                    const reference::default_environment environment;
                    MatrixXf y = before;
                    nibble::gemm(w, x, y, o);
                    wanted = data::bits(y);
                }
                for (const std::uint32_t u : wanted) subnormal += (u & 0x7fffffffu) - 1 < 0x007fffffu ? 1 : 0;
                for_each_isa([&](nibble::isa level) {
                    for (const host_environment& host : environments) {
                        for (const int threads : {1, 3}) {
                            std::atomic<int> changed{0};
                            spawning pool{threads, [&host] { host.enter(); },
                                          [&host, &changed] { changed += host.holds() ? 0 : 1; }};
                            auto executor = nibble::make_executor(threads, pool);
                            o.executor = &executor;
                            MatrixXf y = before;
                            MatrixXf z = before;
                            host.enter();
                            nibble::gemm(w, x, y, o);
                            const bool kept = host.holds();
                            const nibble::prepared_activations a = nibble::prepare(w, x, c);
                            const bool kept_by_prepare = host.holds();
                            nibble::gemm(w, a, z, o);
                            const bool kept_again = host.holds();
                            std::fesetenv(FE_DFL_ENV);
                            const auto name = [&] {
                                return w.name() + " " + nibble::name_of(c) + " at " + nibble::name_of(level) + ", " + host.name + ", " +
                                       std::to_string(threads) + " threads" + (options ? ", options" : "");
                            };
                            t.check(data::bits(y) == wanted, name);
                            t.check(data::bits(z) == wanted, [&] { return name() + ", prepared"; });
                            t.check(kept && kept_by_prepare && kept_again && changed == 0, [&] { return name() + ": not left as it was"; });
                        }
                    }
                });
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == all.size() * 4 * 2 * 6 * 2 * 3 * supported_isas().size());
    CHECK(subnormal > 500);  // of them there is something to flush
}

TEST_CASE("the environment is that of the host when a call throws", "[gemm][environment]") {
    const environment_guard restore;
    const qmatrix w = nibble::quantize(data::matrix(19, 64, 1), "int4_g32");
    const MatrixXf x = data::matrix(63, 3, 2);
    for (const host_environment& host : environments) {
        MatrixXf y(19, 3);
        bool thrown = false;
        host.enter();
        try {
            nibble::gemm(w, x, y);
        } catch (const nibble::error&) {
            thrown = true;
        }
        bool prepare_threw = false;
        try {
            static_cast<void>(nibble::prepare(w, x));
        } catch (const nibble::error&) {
            prepare_threw = true;
        }
        const bool kept = host.holds();
        std::fesetenv(FE_DFL_ENV);
        CHECK((thrown && prepare_threw && kept));
    }
}

TEST_CASE("X, Y and bias at every byte of a cache line", "[gemm][environment][alignment]") {
    // X and Y at any byte (views are read and written with memcpy); a bias at any float.
    const Index n = 35, k = 96, m = 5;
    const qmatrix w = nibble::quantize(data::matrix(n, k, 5), "int4_g32");
    MatrixXf x = data::matrix(k, m, 6);
    x(40, 2) = 0x1p26f;
    const Eigen::VectorXf bias = data::matrix(n, 1, 7);
    std::vector<unsigned char> from(static_cast<std::size_t>(k * m * 4) + 64), to(static_cast<std::size_t>(n * m * 4) + 128);
    std::vector<float> biases(static_cast<std::size_t>(n) + 16);
    tally t;
    for (const scalar_type type : {scalar_type::f32, scalar_type::f16, scalar_type::bf16}) {
        const auto bytes = static_cast<std::size_t>(n * m * nibble::size_of(type));
        for (const bool transposed : {false, true}) {
            const auto view = [&](unsigned char* at) {
                return nibble::output_view{at, type, n, m, transposed ? m : 1, transposed ? 1 : n};
            };
            std::vector<unsigned char> wanted(bytes);
            nibble::gemm(w, nibble::column_major(x.data(), k, m), view(wanted.data()), {.bias = bias, .activation = nibble::activation::relu});
            for_each_isa([&](nibble::isa level) {
                for (std::size_t offset = 0; offset < 64; ++offset) {
                    std::memcpy(from.data() + offset, x.data(), static_cast<std::size_t>(k * m) * 4);
                    std::memcpy(biases.data() + offset % 16, bias.data(), static_cast<std::size_t>(n) * 4);
                    std::fill(to.begin(), to.end(), static_cast<unsigned char>(0xa5));
                    const std::size_t at = (offset * 37 + 11) % 64;  // every one, and none the offset of X
                    nibble::gemm(w, nibble::const_view{from.data() + offset, scalar_type::f32, k, m, 1, k}, view(to.data() + at),
                                 {.bias = std::span<const float>(biases.data() + offset % 16, static_cast<std::size_t>(n)),
                                  .activation = nibble::activation::relu});
                    bool beside = true;
                    for (std::size_t i = 0; i < to.size(); ++i)
                        if (i < at || i >= at + bytes) beside = beside && to[i] == 0xa5;
                    t.check(std::memcmp(to.data() + at, wanted.data(), bytes) == 0 && beside, [&] {
                        return std::string("at ") + nibble::name_of(level) + ", type " + std::to_string(static_cast<int>(type)) + ": X at byte " +
                               std::to_string(offset) + ", Y at " + std::to_string(at);
                    });
                }
            });
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 3 * 2 * 64 * supported_isas().size());
}
