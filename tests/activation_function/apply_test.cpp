// Activation functions against the C library in long double, over all exponents, at every level: the error that
// docs/numerics.md states, the same bits, the special values, and the edges of the arrays. And 16-bit outputs against
// formats/half.hpp, for all 2^32 floats when NIBBLE_TEST_FULL=1.
#include <nibble/activation_function.hpp>
#include <nibble/formats/half.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <sstream>
#include <string>
#include <string_view>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/guarded_buffer.hpp"
#include "support/mistake.hpp"
#include "support/reference_formats.hpp"

using nibble::activation;
using nibble::errc;
using reference::hex;
using reference::tally;
using Index = nibble::index;

namespace {

constexpr activation functions[] = {activation::none, activation::relu, activation::gelu_erf, activation::gelu_tanh, activation::silu};
constexpr activation rounded[] = {activation::gelu_erf, activation::gelu_tanh, activation::silu};

bool full() {
    const char* wanted = std::getenv("NIBBLE_TEST_FULL");
    return wanted != nullptr && std::string_view(wanted) == "1";
}

float of_bits(std::uint32_t u) { return std::bit_cast<float>(u); }
std::uint32_t bits_of(float x) { return std::bit_cast<std::uint32_t>(x); }
bool is_nan(std::uint32_t u) { return (u & 0x7fffffffu) > 0x7f800000u; }

/// The exact function, to about 60 bits; written in other forms than the kernels. For finite x.
long double exact(activation f, float of) {
    const auto x = static_cast<long double>(of);
    switch (f) {
        case activation::relu: return x > 0 ? x : 0;
        case activation::gelu_erf: return x * 0.5L * std::erfc(-x / std::sqrt(2.0L));
        case activation::gelu_tanh: {
            const long double u = std::sqrt(2.0L / std::acos(-1.0L)) * (x + 0.044715L * x * x * x);
            if (u > 5000) return x;
            if (u < -5000) return -0.0L;
            return 0.5L * x * std::exp(u) / std::cosh(u);  // 1 + tanh, without its cancellation
        }
        case activation::silu: {
            if (x > 5000) return x;
            if (x < -5000) return -0.0L;
            return 0.5L * x * std::exp(x / 2) / std::cosh(x / 2);
        }
        default: return x;
    }
}

/// |y - exact| in units of the last place of a float as large as the exact number; subnormal floats are 2^-149 apart.
double error_in_ulps(float y, long double exact_value) {
    const int e = exact_value == 0 ? -126 : std::max(-126, std::ilogb(exact_value));
    return static_cast<double>(std::fabs(static_cast<long double>(y) - exact_value) * std::ldexp(1.0L, 23 - e));
}

/// Floats of every exponent and sign, no NaN.
std::vector<float> sweep() {
    std::vector<float> all;
    const std::uint64_t step = full() ? 127 : 4093;  // odd: the last bits vary, too
    for (std::uint64_t u = 0; u < std::uint64_t{1} << 32; u += step)
        if (!is_nan(static_cast<std::uint32_t>(u))) all.push_back(of_bits(static_cast<std::uint32_t>(u)));
    // Where the functions bend, and where their results become subnormal and vanish.
    data::random r(1);
    const int count = full() ? 1 << 22 : 1 << 17;
    for (int i = 0; i < count; ++i) all.push_back(static_cast<float>(6.0 * r.unit() * (i % 2 == 0 ? -1.0 : 1.0)));
    for (int i = 0; i < count; ++i) all.push_back(static_cast<float>(-16.0 * r.unit()));
    for (int i = 0; i < count / 2; ++i) all.push_back(static_cast<float>(-80.0 - 30.0 * r.unit()));
    for (const double edge : {-14.2, -13.2, -10.6, -10.1, -87.5, -103.3, -104.0, -15.0, -200.0, 0.0, 5.5, 15.0, 17.3, 200.0}) {
        const auto x = static_cast<float>(edge);
        for (std::int32_t i = -300; i <= 300; ++i)
            if (edge != 0.0) all.push_back(of_bits(static_cast<std::uint32_t>(static_cast<std::int32_t>(bits_of(x)) + i)));
            else all.push_back(of_bits(static_cast<std::uint32_t>(std::abs(i)) | (i < 0 ? 0x80000000u : 0u)));
    }
    return all;
}

std::vector<float> applied(activation f, const std::vector<float>& x) {
    std::vector<float> y(x.size(), -7.0f);
    nibble::apply(f, x.data(), y.data(), static_cast<Index>(x.size()));
    return y;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// The bound that docs/numerics.md states for a function, in ulp: the last cell of its row.
double stated_bound(activation f) {
    std::ifstream file(NIBBLE_SOURCE_DIR "/docs/numerics.md");
    std::string start = "| `";
    start += nibble::name_of(f);
    start += "` | ";
    for (std::string line; std::getline(file, line);) {
        if (line.compare(0, start.size(), start) != 0) continue;
        const std::size_t last = line.rfind('|');
        return std::stod(line.substr(line.rfind('|', last - 1) + 1));
    }
    return -1.0;
}

}  // namespace

TEST_CASE("activation functions are within the stated error of the exact ones", "[activation]") {
    const std::vector<float> x = sweep();
    REQUIRE(x.size() > 1000000);
    for (const activation f : rounded) {
        const double bound = stated_bound(f);
        REQUIRE(bound > 0.0);
        std::vector<float> first;
        const std::size_t levels = for_each_isa([&](nibble::isa) {
            const std::vector<float> y = applied(f, x);
            if (!first.empty()) {
                CHECK(same_bits(y, first));
                return;
            }
            first = y;
            double largest = 0.0;
            float at = 0.0f;
            for (std::size_t i = 0; i < x.size(); ++i) {
                if ((bits_of(x[i]) & 0x7fffffffu) == 0x7f800000u) continue;
                const double e = error_in_ulps(y[i], exact(f, x[i]));
                if (!(e <= largest)) {
                    largest = e;
                    at = x[i];
                }
            }
            INFO(nibble::name_of(f) << " at " << at << " (" << hex(bits_of(at)) << "): " << largest << " ulp, stated " << bound);
            CHECK(largest <= bound);
            CHECK(largest >= 0.5);  // the bound says something: rounding alone is half a unit
            CHECK(bound <= 0.51);
        });
        CHECK(levels >= 1);
    }
}

TEST_CASE("special values of activation functions", "[activation]") {
    constexpr float inf = std::numeric_limits<float>::infinity();
    const float minus_zero = of_bits(0x80000000u);
    struct special {
        std::uint32_t x;
        std::uint32_t relu, gelu, silu;
    };
    constexpr std::uint32_t nan = 0x7fc00000u;
    const std::vector<special> table = {
        {0x00000000u, 0, 0, 0},
        {bits_of(minus_zero), 0, 0x80000000u, 0x80000000u},
        {bits_of(inf), 0x7f800000u, 0x7f800000u, 0x7f800000u},
        {bits_of(-inf), 0, 0x80000000u, 0x80000000u},
        {0x7fc00000u, nan, nan, nan},
        {0xffc00000u, nan, nan, nan},
        {0x7f800001u, nan, nan, nan},  // signalling
        {0xff812345u, nan, nan, nan},
        {0x7fffffffu, nan, nan, nan},
        {0xffffffffu, nan, nan, nan},
        {0x7f7fffffu, 0x7f7fffffu, 0x7f7fffffu, 0x7f7fffffu},  // the largest float
        {0xff7fffffu, 0, 0x80000000u, 0x80000000u},
        {bits_of(1e30f), bits_of(1e30f), bits_of(1e30f), bits_of(1e30f)},
        {bits_of(-1e30f), 0, 0x80000000u, 0x80000000u},
        {bits_of(-250.0f), 0, 0x80000000u, 0x80000000u},
        {0x00000002u, 2, 1, 1},  // subnormal: half of it
        {0x80000002u, 0, 0x80000001u, 0x80000001u},
        {0x0d000000u, 0x0d000000u, 0x0c800000u, 0x0c800000u},
        {bits_of(30.0f), bits_of(30.0f), bits_of(30.0f), bits_of(30.0f)},
    };
    std::vector<float> x;
    for (const special& s : table) x.push_back(of_bits(s.x));
    tally t;
    for_each_isa([&](nibble::isa) {
        for (const activation f : functions) {
            const std::vector<float> y = applied(f, x);
            for (std::size_t i = 0; i < table.size(); ++i) {
                const std::uint32_t wanted = f == activation::none   ? table[i].x
                                             : f == activation::relu ? table[i].relu
                                             : f == activation::silu ? table[i].silu
                                                                     : table[i].gelu;
                t.check(bits_of(y[i]) == wanted, [&] {
                    return std::string(nibble::name_of(f)).append(" of ") + hex(table[i].x) + " is " + hex(bits_of(y[i])) + ", not " + hex(wanted);
                });
            }
        }
    });
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == supported_isas().size() * 5 * table.size());
}

TEST_CASE("relu and none are exact", "[activation]") {
    const std::vector<float> x = sweep();
    for_each_isa([&](nibble::isa) {
        const std::vector<float> y = applied(activation::relu, x);
        std::size_t wrong = 0;
        for (std::size_t i = 0; i < x.size(); ++i) wrong += bits_of(y[i]) != bits_of(x[i] > 0.0f ? x[i] : 0.0f) ? 1u : 0u;
        CHECK(wrong == 0);
        CHECK(same_bits(applied(activation::none, x), x));
    });
}

TEST_CASE("activations of any count, at any address, in place", "[activation]") {
    const Eigen::MatrixXf numbers = data::matrix(80, 1, 5) * 3.0f;
    tally t;
    for_each_isa([&](nibble::isa) {
        for (const activation f : functions) {
            const std::vector<float> wanted = applied(f, std::vector<float>(numbers.data(), numbers.data() + 80));
            for (Index n = 0; n <= 67; ++n) {
                const auto size = static_cast<std::size_t>(n);
                for (const side where : {side::left, side::right}) {
                    guarded_buffer<float> in(size, where), out(size, where);
                    std::copy_n(numbers.data(), n, in.data());
                    nibble::apply(f, in.data(), out.data(), n);
                    nibble::apply(f, in.data(), in.data(), n);
                    t.check(n == 0 || (std::memcmp(out.data(), wanted.data(), size * 4) == 0 && std::memcmp(in.data(), wanted.data(), size * 4) == 0),
                            [&] { return std::string(nibble::name_of(f)) + " of " + std::to_string(n); });
                }
            }
        }
    });
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == supported_isas().size() * 5 * 68 * 2);
}

TEST_CASE("the host's floating-point environment changes no activation", "[activation]") {
    std::vector<float> x = sweep();
    x.resize(200000);
    for (std::int32_t i = 0; i < 2000; ++i) x.push_back(-100.0f - static_cast<float>(i) / 400.0f);  // subnormal results
    for_each_isa([&](nibble::isa) {
        for (const activation f : rounded) {
            const std::vector<float> wanted = applied(f, x);
            for (const int mode : {FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO}) {
                std::fesetround(mode);
                const std::vector<float> y = applied(f, x);
                const bool kept = std::fegetround() == mode;
                std::fesetround(FE_TONEAREST);
                CHECK(kept);
                CHECK(same_bits(y, wanted));
            }
#if defined(__SSE2__)
            const unsigned control = _mm_getcsr();
            _mm_setcsr(control | 0x8040u);  // FTZ and DAZ
            const std::vector<float> y = applied(f, x);
            _mm_setcsr(control);
            CHECK(same_bits(y, wanted));
#endif
        }
    });
}

TEST_CASE("mistakes in activations", "[activation]") {
    std::vector<float> x(40, 1.0f);
    CHECK(of([&] { nibble::apply(activation::silu, x.data(), x.data(), -1); }).code == errc::invalid_argument);
    CHECK(of([&] { nibble::apply(activation::silu, nullptr, x.data(), 1); }).code == errc::invalid_argument);
    CHECK(of([&] { nibble::apply(activation::silu, x.data(), nullptr, 1); }).code == errc::invalid_argument);
    CHECK(of([&] { nibble::apply(activation::silu, nullptr, nullptr, 0); }).code == errc::ok);
    const mistake m = of([&] { nibble::apply(static_cast<activation>(9), x.data(), x.data(), 4); });
    CHECK(m.code == errc::invalid_argument);
    CHECK(contains(m.message, "no activation 9"));
    CHECK(of([&] { nibble::apply(activation::silu, x.data(), x.data() + 16, 17); }).code == errc::overlap);
    CHECK(of([&] { nibble::apply(activation::silu, x.data(), x.data() + 16, 16); }).code == errc::ok);
    for (const activation f : functions) CHECK(std::string(nibble::name_of(f)) != "?");
}

TEST_CASE("16-bit outputs have the bits of formats/half.hpp", "[activation]") {
    const std::uint64_t step = full() ? 1 : 251;
    constexpr std::size_t chunk = 4096;
    std::vector<float> x(chunk);
    std::vector<std::uint16_t> b(chunk), h(chunk);
    std::uint64_t compared = 0;
    std::uint64_t wrong = 0;
    const nibble::detail::fp_environment environment;
    for_each_isa([&](nibble::isa level) {
        const nibble::detail::epilogue_table& t = nibble::detail::epilogues_of(level);
        const auto flush = [&] {
            t.to_bf16(x.data(), b.data(), chunk / 16);
            t.to_fp16(x.data(), h.data(), chunk / 16);
            for (std::size_t i = 0; i < chunk; ++i) wrong += b[i] != nibble::float_to_bf16(x[i]) || h[i] != nibble::float_to_fp16(x[i]) ? 1u : 0u;
            compared += chunk;
        };
        std::size_t n = 0;
        const auto add = [&](std::uint32_t u) {
            std::memcpy(&x[n], &u, sizeof u);
            if (++n != chunk) return;
            n = 0;
            flush();
        };
        for (std::uint64_t u = 0; u < std::uint64_t{1} << 32; u += step) add(static_cast<std::uint32_t>(u));
        // Every 16-bit number, the midpoint above it, and the neighbours of both.
        for (std::uint32_t v = 0; v < 65536; ++v) {
            const std::uint32_t fp = bits_of(nibble::fp16_to_float(static_cast<std::uint16_t>(v)));
            for (const std::uint32_t base : {v << 16, v << 16 | 0x8000u, fp, fp + 0x1000u})
                for (const std::uint32_t d : {0xffffffffu, 0u, 1u}) add(base + d);
        }
        while (n != 0) add(0x7fc00000u);
    });
    CHECK(wrong == 0);
    CHECK(compared >= supported_isas().size() * ((std::uint64_t{1} << 32) / step));
}
