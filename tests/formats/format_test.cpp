// The arithmetic that every format stands on (nibble/format.hpp): exponents, powers of two, rounding, clamping.
#include <nibble/format.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/reference_formats.hpp"

using reference::float_from_bits;
using reference::tally;

TEST_CASE("power_of_two is exact from the smallest subnormal to the largest power", "[format]") {
    tally t;
    for (int e = -149; e <= 127; ++e)
        t.check(static_cast<double>(nibble::detail::power_of_two(e)) == std::ldexp(1.0, e),
                [&] { return "2^" + std::to_string(e); });
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 277);
}

TEST_CASE("exponent_of is floor(log2) for every binade, also one ulp below a power of two", "[format]") {
    tally t;
    for (int e = -126; e <= 127; ++e) {
        const float x = std::ldexp(1.0f, e);
        const std::uint32_t u = reference::bits_from_float(x);
        for (const float v : {x, -x, float_from_bits(u + 1), float_from_bits(u | 0x7fffffu)})
            t.check(nibble::detail::exponent_of(v) == e, [&] { return "at 2^" + std::to_string(e); });
        if (e > -126)
            t.check(nibble::detail::exponent_of(float_from_bits(u - 1)) == e - 1,
                    [&] { return "below 2^" + std::to_string(e); });
    }
    for (const std::uint32_t u : {0u, 0x80000000u, 1u, 0x007fffffu, 0x807fffffu})
        t.check(nibble::detail::exponent_of(float_from_bits(u)) == -127, [&] { return reference::hex(u); });
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 254 * 4 + 253 + 5);
}

TEST_CASE("round_even rounds to nearest, ties to even, up to 2^22", "[format]") {
    // The oracle works on integers: twice the value, and four times, are exact.
    const auto expected = [](double x) {
        const double below = std::floor(x);
        const double rest = x - below;
        if (rest != 0.5) return rest < 0.5 ? below : below + 1.0;
        return std::fmod(below, 2.0) == 0.0 ? below : below + 1.0;
    };
    tally t;
    const auto check = [&](float x) {
        t.check(static_cast<double>(nibble::detail::round_even(x)) == expected(static_cast<double>(x)),
                [&] { return "at bits " + reference::hex(reference::bits_from_float(x)); });
    };
    for (int i = -2000; i <= 2000; ++i) {
        const std::uint32_t half = reference::key_from_bits(reference::bits_from_float(static_cast<float>(i) + 0.5f));
        for (std::uint32_t k = half - 1; k <= half + 1; ++k) check(reference::float_from_key(k));
        check(static_cast<float>(i));
    }
    for (const float x : {4194303.5f, 4194302.5f, 4194304.0f, -4194303.5f, -4194302.5f, -4194304.0f, 1e-45f, -1e-45f})
        check(x);
    reference::random_bits random(1);
    for (int i = 0; i < 100000; ++i) {
        const int exponent = static_cast<int>(random() % 40) - 18;  // up to 2^22
        const float mantissa = static_cast<float>(static_cast<std::int32_t>(random())) / 2147483648.0f;
        check(std::ldexp(mantissa, exponent));
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 4001 * 4 + 8 + 100000);
    static_assert(nibble::detail::round_even(2.5f) == 2.0f, "usable in constant expressions");
    static_assert(nibble::detail::round_even(-3.5f) == -4.0f);
}

TEST_CASE("clamp and magnitude", "[format]") {
    using nibble::detail::clamp;
    using nibble::detail::magnitude;
    const float inf = std::numeric_limits<float>::infinity();
    CHECK(clamp(3.0f, -1.0f, 2.0f) == 2.0f);
    CHECK(clamp(-3.0f, -1.0f, 2.0f) == -1.0f);
    CHECK(clamp(0.5f, -1.0f, 2.0f) == 0.5f);
    CHECK(clamp(inf, -1.0f, 2.0f) == 2.0f);
    CHECK(clamp(-inf, -1.0f, 2.0f) == -1.0f);
    CHECK(reference::bits_from_float(magnitude(-0.0f)) == 0u);
    CHECK(magnitude(-1.5f) == 1.5f);
    CHECK(magnitude(-inf) == inf);
    CHECK(reference::bits_from_float(magnitude(float_from_bits(0x80000001u))) == 1u);
}

TEST_CASE("finiteness is read from bits", "[format]") {
    tally t;
    for (const std::uint32_t sign : {0u, 0x80000000u}) {
        for (const std::uint32_t u : {0u, 1u, 0x007fffffu, 0x00800000u, 0x3f800000u, 0x7f7fffffu}) {
            const float x = float_from_bits(u | sign);
            t.check(nibble::detail::finite_in_memory(&x), [&] { return reference::hex(u | sign) + " is finite"; });
        }
        for (const std::uint32_t u : {0x7f800000u, 0x7f800001u, 0x7fbfffffu, 0x7fc00000u, 0x7fffffffu}) {
            const float x = float_from_bits(u | sign);
            t.check(!nibble::detail::finite_in_memory(&x), [&] { return reference::hex(u | sign) + " is not"; });
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 22);
}
