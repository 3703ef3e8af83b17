// Requantized outputs against exact rational arithmetic: the multiplier, the one rounding, saturation, zero points, bias.
#include <nibble/nibble.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/for_each_isa.hpp"
#include "support/integer_reference.hpp"
#include "support/reference_formats.hpp"

namespace ref = integer_reference;
using Index = nibble::index;
using nibble::fixed_multiplier;
using nibble::offset_kind;
using nibble::qmatrix;
using reference::tally;

namespace {

__extension__ typedef __int128 wide;

/// floor(x * mantissa * 2^(exponent - 31) + 1/2) by division with remainder, saturated to +-2^40.
std::int64_t rounded(std::int64_t x, std::int64_t mantissa, int exponent) {
    const wide product = static_cast<wide>(x) * mantissa;
    const wide limit = static_cast<wide>(1) << 40;
    const int down = 31 - exponent;
    if (down > 100) return 0;
    if (down <= 0) {
        if (product == 0) return 0;
        return static_cast<std::int64_t>(product > 0 ? limit : -limit);  // at least 2^30
    }
    const wide unit = static_cast<wide>(1) << down;
    const wide twice = 2 * product + unit;  // floor(twice / (2 unit))
    wide q = twice / (2 * unit);
    if (twice % (2 * unit) < 0) q -= 1;
    return static_cast<std::int64_t>(q > limit ? limit : q < -limit ? -limit : q);
}

/// The multiplier as TensorFlow Lite's QuantizeMultiplier computes it.
fixed_multiplier quantized_multiplier(double m) {
    if (m == 0.0) return {};
    int exponent = 0;
    auto q = static_cast<std::int64_t>(std::round(std::frexp(m, &exponent) * 2147483648.0));
    if (q == 2147483648 || q == -2147483648) {
        q /= 2;
        ++exponent;
    }
    return {static_cast<std::int32_t>(q), exponent};
}

std::int64_t clamped(std::int64_t x, std::int64_t low, std::int64_t high) { return x < low ? low : x > high ? high : x; }

}  // namespace

TEST_CASE("multipliers are the nearest of 31 bits", "[integer_gemm][requantize]") {
    tally t;
    data::random r(1);
    const auto check = [&](double m) {
        const fixed_multiplier a = nibble::make_multiplier(m);
        const fixed_multiplier b = quantized_multiplier(m);
        t.check(a.mantissa == b.mantissa && a.exponent == b.exponent,
                [&] { return std::to_string(m) + " is " + std::to_string(a.mantissa) + " " + std::to_string(a.exponent); });
    };
    for (int i = 0; i < 20000; ++i) check(std::ldexp(r.unit() - 0.5, static_cast<int>(r.below(300)) - 150));
    for (int e = -140; e < 140; ++e)
        for (const double f : {0.5, 0.5 + 0x1p-32, 0.5 + 0x1p-31, 0.5 + 0x1p-32 - 0x1p-53, 1.0 - 0x1p-32, 1.0 - 0x1p-32 - 0x1p-53, 1.0 - 0x1p-53, 0.75})
            for (const int sign : {1, -1}) check(sign * std::ldexp(f, e));
    check(0.0);
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(nibble::make_multiplier(0.5).mantissa == 1 << 30);
    CHECK(nibble::make_multiplier(0.5).exponent == 0);
    CHECK(nibble::make_multiplier(3.0).mantissa == 3 << 29);
    CHECK(nibble::make_multiplier(3.0).exponent == 2);
}

TEST_CASE("a sum is rounded once, halves up", "[integer_gemm][requantize]") {
    using nibble::make_multiplier;
    using nibble::rounded_product;
    CHECK(rounded_product(1, make_multiplier(0.5)) == 1);
    CHECK(rounded_product(-1, make_multiplier(0.5)) == 0);
    CHECK(rounded_product(3, make_multiplier(0.5)) == 2);
    CHECK(rounded_product(-3, make_multiplier(0.5)) == -1);
    CHECK(rounded_product(3, make_multiplier(-0.5)) == -1);
    CHECK(rounded_product(5, make_multiplier(0.25)) == 1);
    CHECK(rounded_product(6, make_multiplier(0.25)) == 2);
    // Two roundings, as in gemmlowp, make 1 of this: 0.4999999998 to 0.5 (31 bits), then up.
    CHECK(rounded_product(1, {(1 << 30) - 1 + (1 << 30), -1}) == 0);
    CHECK(rounded_product(2147483647, {2147483647, 30}) > 1 << 30);
    CHECK(rounded_product(0, {2147483647, 100}) == 0);
    tally t;
    data::random r(2);
    for (int i = 0; i < 200000; ++i) {
        auto x = static_cast<std::int32_t>(static_cast<std::uint32_t>(r())) >> r.below(31);
        if (x == std::numeric_limits<std::int32_t>::min()) ++x;
        auto mantissa = static_cast<std::int32_t>((std::uint32_t{1} << 30) | (r() & 0x3fffffff));
        if (r.below(4) == 0) mantissa = 1 << 30;  // many ties
        if (r.below(4) == 0) mantissa = -mantissa;
        const int exponent = static_cast<int>(r.below(72)) - 36;
        const std::int64_t wanted = rounded(x, mantissa, exponent);
        const std::int64_t got = rounded_product(x, {mantissa, exponent});
        const std::int64_t most = exponent >= 31 ? 500 : std::int64_t{1} << 40;  // beyond that both only saturate
        t.check(clamped(got, -most, most) == clamped(wanted, -most, most), [&] {
            return std::to_string(x) + " * " + std::to_string(mantissa) + " * 2^(" + std::to_string(exponent) + " - 31) = " + std::to_string(wanted) + ", not " +
                   std::to_string(got);
        });
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
}

namespace {

template <class T>
void compare(const std::string& what, const qmatrix& w, const nibble::quantized_activations& a, const nibble::requantization& r, tally& t, int& saturated) {
    const ref::int64_matrix sums = ref::sums(w, a);
    Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic> wanted(w.rows(), a.cols());
    const std::int64_t low = std::max<std::int64_t>(r.lowest, std::numeric_limits<T>::min());
    const std::int64_t high = std::min<std::int64_t>(r.highest, std::numeric_limits<T>::max());
    for (Index n = 0; n < w.rows(); ++n) {
        const double unit = w.offset_type() == offset_kind::none ? static_cast<double>(w.format().unit) : 1.0;
        const double real = static_cast<double>(w.scale(n, 0)) * unit * static_cast<double>(a.scale(0, 0)) / static_cast<double>(r.scale);
        const fixed_multiplier m = quantized_multiplier(real);
        for (Index j = 0; j < a.cols(); ++j) {
            const std::int64_t y = r.zero + rounded(sums(n, j) + (r.bias.empty() ? 0 : r.bias[static_cast<std::size_t>(n)]), m.mantissa, m.exponent);
            wanted(n, j) = static_cast<T>(clamped(y, low, high));
            saturated += y < low || y > high ? 1 : 0;
        }
    }
    ref::backwards threads;
    for_each_isa([&](nibble::isa level) {
        Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic> y(w.rows(), a.cols());
        nibble::integer_gemm(w, a, r, y);
        t.check(y == wanted, [&] { return what + " at " + nibble::name_of(level); });
        Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> z(w.rows(), a.cols());
        nibble::integer_gemm(w, a, r, z, {.executor = &threads});
        t.check(z == wanted, [&] { return what + " in tasks at " + nibble::name_of(level); });
    });
}

}  // namespace

TEST_CASE("requantized products are exact rational arithmetic", "[integer_gemm][requantize]") {
    tally t;
    int saturated = 0;
    std::uint64_t stream = 50;
    for (const nibble::code_format* f : {&nibble::int8::format, &nibble::int4::format, &nibble::int3::format, &nibble::ternary::format, &nibble::fp4_e2m1::format,
                                         &nibble::iq4_nl::format})
        for (const offset_kind offset : {offset_kind::none, offset_kind::zero_point}) {
            if (offset != offset_kind::none && (f->decode != nibble::decode_class::integer || f == &nibble::ternary::format)) continue;
            // Scales of data::random_codes have either sign, and some are zero.
            const qmatrix w = data::random_codes(37, 130, *f, nibble::scales::f32, offset, {1, 0}, ++stream);
            data::random r(++stream);
            std::vector<std::int32_t> bias(37);
            for (std::int32_t& b : bias) b = static_cast<std::int32_t>(r.below(20001)) - 10000;
            const ref::uint8_matrix u = ref::codes<std::uint8_t>(130, 6, ++stream);
            const ref::int8_matrix i = ref::codes<std::int8_t>(130, 6, ++stream);
            for (const float scale : {0.5f, 37.0f, 1000.0f, 1e-6f, 1e12f})
                for (const int zero : {0, 3, 127}) {
                    const std::string name = std::string(f->name) + " " + nibble::name_of(offset) + " / " + std::to_string(scale) + " + " + std::to_string(zero);
                    compare<std::int8_t>(name, w, nibble::wrap_activations(i, 0.37f, zero), {.scale = scale, .zero = zero - 128}, t, saturated);
                    compare<std::uint8_t>(name + " u8", w, nibble::wrap_activations(u, 0.37f, 2 * zero), {.scale = scale, .zero = 2 * zero, .bias = bias}, t, saturated);
                    compare<std::uint8_t>(name + " relu", w, nibble::wrap_activations(i, 1.0f, -zero), {.scale = scale, .zero = zero, .bias = bias, .lowest = zero, .highest = 200}, t, saturated);
                }
        }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(saturated > 1000);
}

TEST_CASE("large sums at the edge of two outputs", "[integer_gemm][requantize]") {
    // Weights are zero, so the sum is the bias; it sits within one of (t + 1/2) / M, where the last bits of M decide.
    tally t;
    int saturated = 0;
    data::random r(9);
    for (int round = 0; round < 20; ++round) {
        nibble::qmatrix_builder b(48, 1, nibble::int8::format, nibble::scales::f32, offset_kind::none, {1, 0});
        const auto activation_scale = static_cast<float>(1.0 + r.unit());
        const auto output_scale = static_cast<float>(std::ldexp(1.0 + r.unit(), 24));
        std::vector<std::int32_t> bias(48);
        for (Index n = 0; n < 48; ++n) {
            const auto scale = static_cast<float>(1.0 + r.unit());
            b.set_scale(n, 0, nibble::detail::bits_of(scale));
            b.set_code(n, 0, 128);
            const double m = static_cast<double>(scale) * static_cast<double>(activation_scale) / static_cast<double>(output_scale);
            const double edge = (static_cast<double>(r.below(60)) - 30.5) / m;
            bias[static_cast<std::size_t>(n)] = static_cast<std::int32_t>(std::llround(edge)) + static_cast<std::int32_t>(n % 3) - 1;
        }
        const qmatrix w = std::move(b).finish();
        const ref::int8_matrix a = ref::int8_matrix::Constant(1, 1, 1);
        compare<std::int8_t>("edges", w, nibble::wrap_activations(a, activation_scale), {.scale = output_scale, .zero = 0, .bias = bias}, t, saturated);
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(saturated == 0);
}

TEST_CASE("ties of whole products go up", "[integer_gemm][requantize]") {
    // Scales are powers of two, so every odd sum over 2 is a tie.
    nibble::qmatrix_builder b(2, 1, nibble::int8::format, nibble::scales::f32, offset_kind::none, {1, 0});
    for (Index n = 0; n < 2; ++n) {
        b.set_scale(n, 0, nibble::detail::bits_of(1.0f));
        b.set_code(n, 0, n == 0 ? 129 : 127);  // 1, -1
    }
    const qmatrix w = std::move(b).finish();
    ref::int8_matrix a(1, 6);
    a << 1, 2, 3, 5, 127, -128;
    ref::int8_matrix y(2, 6), wanted(2, 6);
    nibble::integer_gemm(w, nibble::wrap_activations(a, 1.0f), {.scale = 2.0f, .zero = 10}, y);
    wanted << 11, 11, 12, 13, 74, -54, 10, 9, 9, 8, -53, 74;
    CHECK(y == wanted);
}
