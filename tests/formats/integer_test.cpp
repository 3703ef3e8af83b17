// int8 to int2, binary and ternary: rounding, clamping and the vectors of the format study 1 and 2.
#include <nibble/formats/integer.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/reference_formats.hpp"

using nibble::code_format;
using nibble::detail::encode_affine;
using reference::bits_from_float;
using reference::float_from_bits;
using reference::hex;
using reference::tally;

namespace {

const float inf = std::numeric_limits<float>::infinity();
const std::array<const code_format*, 6> integers = {&nibble::int8::format, &nibble::int6::format,
                                                    &nibble::int5::format, &nibble::int4::format,
                                                    &nibble::int3::format, &nibble::int2::format};

int signed_code(const code_format& f, float t) {
    return static_cast<int>(f.encode(f, t)) - static_cast<int>(f.zero_code);
}

// X of the vectors S1, A2 and M1.
const std::array<float, 5> x_vector = {0.3f, -0.5f, 0.1f, 0.8f, -0.2f};

}  // namespace

TEST_CASE("integers round to nearest, ties to even, and clamp to the restricted range", "[formats][integer]") {
    std::uint64_t cases = 0;
    for (const code_format* f : integers) {
        const int q = (1 << (f->bits - 1)) - 1;
        tally t;
        const auto check = [&](float x, int expected) {
            t.check(signed_code(*f, x) == expected, [&] {
                return "bits " + hex(bits_from_float(x)) + ": " + std::to_string(signed_code(*f, x)) + ", expected " +
                       std::to_string(expected);
            });
        };
        for (int v = -q - 2; v <= q + 2; ++v) {
            const int clamped = v < -q ? -q : v > q ? q : v;
            check(static_cast<float>(v), clamped);
            // The tie above v goes to whichever of v and v + 1 is even.
            const float tie = static_cast<float>(v) + 0.5f;
            const int even = v % 2 == 0 ? v : v + 1;
            check(tie, even < -q ? -q : even > q ? q : even);
            check(std::nextafter(tie, -1e9f), clamped);
            check(std::nextafter(tie, 1e9f), v + 1 < -q ? -q : v + 1 > q ? q : v + 1);
        }
        for (const float huge : {1e6f, 4194304.0f, 3e9f, 1e30f, 3.4028234663852886e38f, inf}) {
            check(huge, q);
            check(-huge, -q);
        }
        for (const float tiny : {0.0f, -0.0f, 1e-45f, -1e-45f, 1e-38f, -1e-38f}) check(tiny, 0);
        INFO(f->name << ": " << t.report());
        CHECK(t.failures() == 0);
        CHECK(t.cases() == static_cast<std::uint64_t>(4 * (2 * q + 5) + 18));
        cases += t.cases();
    }
    CHECK(cases == 4 * (259 + 67 + 35 + 19 + 11 + 7) + 6 * 18);
}

TEST_CASE("the lowest code decodes but is never produced", "[formats][integer]") {
    for (const code_format* f : integers) {
        CAPTURE(f->name);
        CHECK(f->value(0) == f->min_value - 1.0f);
        CHECK(f->encode(*f, f->value(0)) == 1);
        CHECK(f->value(f->code_count() - 1) == f->max_value);
    }
}

TEST_CASE("minus zero has the code of zero", "[formats][integer]") {
    for (const code_format* f : integers) {
        CAPTURE(f->name);
        CHECK(f->encode(*f, -0.0f) == f->zero_code);
        CHECK(bits_from_float(f->value(f->zero_code)) == 0u);
    }
    CHECK(nibble::ternary::format.encode(nibble::ternary::format, -0.0f) == 1);
    CHECK(bits_from_float(nibble::ternary::format.value(1)) == 0u);
}

TEST_CASE("vector S1: absmax in six widths", "[formats][integer]") {
    struct row {
        const code_format* format;
        std::uint32_t scale;
        std::array<int, 5> codes;
        std::array<float, 5> values;
    };
    const std::vector<row> rows = {
        {&nibble::int8::format, 0x3bce69a0u, {48, -79, 16, 127, -32},
         {.302362204f, -.497637808f, .100787401f, .800000012f, -.201574802f}},
        {&nibble::int6::format, 0x3cd3680du, {12, -19, 4, 31, -8},
         {.309677422f, -.49032256f, .103225805f, .800000012f, -.20645161f}},
        {&nibble::int5::format, 0x3d5a740eu, {6, -9, 2, 15, -4},
         {.319999993f, -.480000019f, .106666669f, .800000012f, -.213333338f}},
        {&nibble::int4::format, 0x3dea0ea1u, {3, -4, 1, 7, -2},
         {.342857152f, -.45714286f, .114285715f, .800000012f, -.22857143f}},
        {&nibble::int3::format, 0x3e888889u, {1, -2, 0, 3, -1},
         {.266666681f, -.533333361f, 0.0f, .800000072f, -.266666681f}},
        {&nibble::int2::format, 0x3f4ccccdu, {0, -1, 0, 1, 0}, {0.0f, -.800000012f, 0.0f, .800000012f, 0.0f}},
    };
    for (const row& r : rows) {
        const code_format& f = *r.format;
        CAPTURE(f.name);
        const float scale = 0.8f / f.max_value;
        CHECK(bits_from_float(scale) == r.scale);
        for (std::size_t i = 0; i < 5; ++i) {
            CAPTURE(i);
            CHECK(signed_code(f, x_vector[i] / scale) == r.codes[i]);
            CHECK(signed_code(f, x_vector[i] * (1.0f / scale)) == r.codes[i]);  // the reciprocal gives the same
            CHECK(f.value(f.encode(f, x_vector[i] / scale)) * scale == r.values[i]);
        }
    }
    CHECK(rows.size() == 6);
}

TEST_CASE("vector S0: the last bit of a quotient decides a code", "[formats][integer]") {
    const float scale = 0.00214854861f;
    const float x = 0.273939937f;
    const float divided = x / scale;
    const float multiplied = x * (1.0f / scale);
    CHECK(multiplied == 127.5f);
    CHECK(divided < 127.5f);
    CHECK(encode_affine(multiplied, 0, 255) == 128);
    CHECK(encode_affine(divided, 0, 255) == 127);
    CHECK(signed_code(nibble::int8::format, multiplied) == 127);  // clamped
}

TEST_CASE("vectors A1, A2, A3: an integer zero point", "[formats][integer]") {
    const std::array<float, 10> a1 = {-1.5f, -1.0f, -0.5f, 0.0f, 0.3f, 1.0f, 2.0f, 2.5f, 3.0f, -2.0f};
    struct row {
        std::vector<float> x;
        std::uint32_t scale_bits;
        int zero, last;
        std::vector<unsigned> codes;
    };
    const std::vector<float> a1_x(a1.begin(), a1.end());
    const std::vector<float> a2_x(x_vector.begin(), x_vector.end());
    const std::vector<row> rows = {
        {a1_x, 0x3c808081u, 96, 255, {0, 32, 64, 96, 115, 160, 223, 255, 255, 0}},
        {a1_x, 0x3e888889u, 6, 15, {0, 2, 4, 6, 7, 10, 13, 15, 15, 0}},
        {a1_x, 0x3faaaaabu, 1, 3, {0, 0, 1, 1, 1, 2, 3, 3, 3, 0}},
        {a2_x, 0x3ba70d74u, 98, 255, {157, 0, 118, 255, 59}},
        {a2_x, 0x3db17e4bu, 6, 15, {9, 0, 7, 15, 4}},
        {{1.0f, 2.0f, 3.0f}, 0x3c40c0c1u, 0, 255, {85, 170, 255}},
        {{-3.0f, -2.0f, -1.0f}, 0x3c40c0c1u, 255, 255, {0, 85, 170}},
    };
    for (const row& r : rows) {
        CAPTURE(r.zero, r.last);
        const float scale = float_from_bits(r.scale_bits);
        REQUIRE(r.x.size() == r.codes.size());
        for (std::size_t i = 0; i < r.x.size(); ++i) {
            CAPTURE(i);
            CHECK(encode_affine(r.x[i] / scale, r.zero, r.last) == r.codes[i]);
        }
    }
    CHECK(rows.size() == 7);

    // int8 codes are stored unsigned: [-128, 127] with zero -32 is [0, 255] with zero 96. The decoded values:
    const std::array<float, 10> decoded = {-1.5058825f, -1.00392163f, -.501960814f, 0.0f, .298039228f, 1.00392163f,
                                           1.99215698f, 2.49411774f, 2.49411774f, -1.5058825f};
    const float scale = 4.0f / 255.0f;
    for (std::size_t i = 0; i < a1.size(); ++i) {
        const int u = static_cast<int>(encode_affine(a1[i] / scale, 96, 255));
        CHECK(static_cast<float>(u - 96) * scale == decoded[i]);
    }
}

TEST_CASE("vectors M1, M2: a float minimum", "[formats][integer]") {
    struct row {
        std::vector<float> x;
        float minimum, scale;
        int last;
        std::vector<unsigned> codes;
    };
    const std::vector<float> m1(x_vector.begin(), x_vector.end());
    const std::vector<float> m2 = {-1.0f, -0.25f, 0.5f, 2.0f};
    const float range = 0.8f - -0.5f;
    const std::vector<row> rows = {
        {m1, -0.5f, range / 15.0f, 15, {9, 0, 7, 15, 3}},
        {m1, -0.5f, range / 3.0f, 3, {2, 0, 1, 3, 1}},
        {m1, -0.5f, range / 255.0f, 255, {157, 0, 118, 255, 59}},
        {m2, -1.0f, 3.0f / 15.0f, 15, {0, 4, 8, 15}},
        {m2, -1.0f, 3.0f / 3.0f, 3, {0, 1, 2, 3}},
    };
    for (const row& r : rows) {
        CAPTURE(r.last, r.minimum);
        REQUIRE(r.x.size() == r.codes.size());
        for (std::size_t i = 0; i < r.x.size(); ++i) {
            CAPTURE(i);
            CHECK(encode_affine((r.x[i] - r.minimum) / r.scale, 0, r.last) == r.codes[i]);
        }
    }
}

TEST_CASE("the zero point is added after rounding", "[formats][integer]") {
    // RNE(t) + z, not RNE(t + z): they differ at ties when z is odd.
    CHECK(encode_affine(0.5f, 1, 15) == 1);
    CHECK(encode_affine(1.5f, 1, 15) == 3);
    CHECK(encode_affine(-0.5f, 1, 15) == 1);
    CHECK(encode_affine(2.5f, 0, 15) == 2);

    tally t;
    for (const int last : {1, 3, 7, 15, 31, 63, 255})
        for (int zero = -last; zero <= 2 * last; ++zero)
            for (int twice = -2 * last - 6; twice <= 2 * last + 6; ++twice)
                for (const int nudge : {-1, 0, 1}) {
                    const float exact = static_cast<float>(twice) / 2.0f;
                    const float x = nudge == 0 ? exact : std::nextafter(exact, nudge < 0 ? -1e9f : 1e9f);
                    int rounded = static_cast<int>(std::floor(exact));
                    if (twice % 2 != 0 && (nudge > 0 || (nudge == 0 && rounded % 2 != 0))) ++rounded;
                    const int q = rounded + zero;
                    const auto expected = static_cast<unsigned>(q < 0 ? 0 : q > last ? last : q);
                    t.check(encode_affine(x, zero, last) == expected, [&] {
                        return "t bits " + hex(bits_from_float(x)) + ", zero " + std::to_string(zero) + ", last " +
                               std::to_string(last);
                    });
                }
    std::uint64_t expected_cases = 0;
    for (const std::uint64_t last : {1u, 3u, 7u, 15u, 31u, 63u, 255u})
        expected_cases += (3 * last + 1) * (4 * last + 13) * 3;
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == expected_cases);
    for (const float huge : {1e6f, 1e30f, inf}) {
        CHECK(encode_affine(huge, 8, 15) == 15);
        CHECK(encode_affine(-huge, 8, 15) == 0);
        CHECK(encode_affine(huge, -100, 255) == 255);
        CHECK(encode_affine(-huge, 355, 255) == 0);
    }
}

TEST_CASE("binary is the sign, and zero is +1", "[formats][integer]") {
    const code_format& f = nibble::binary::format;
    for (const float x : {0.0f, -0.0f, 1e-45f, 0.5f, 1.0f, 1e30f, inf}) CHECK(f.encode(f, x) == 1);
    for (const float x : {-1e-45f, -1e-38f, -0.5f, -1.0f, -1e30f, -inf}) CHECK(f.encode(f, x) == 0);
    CHECK(f.value(0) == -1.0f);
    CHECK(f.value(1) == 1.0f);

    // XNOR-Net: W ~ alpha B with alpha = mean|W|, and ||W - alpha B||^2 = ||W||^2 - n alpha^2.
    const std::array<float, 4> w = {.5f, -1.5f, .25f, -.75f};
    const std::array<unsigned, 4> bits = {1, 0, 1, 0};
    const double alpha = 0.75;
    double residual = 0.0;
    double norm = 0.0;
    for (std::size_t i = 0; i < 4; ++i) {
        CHECK(f.encode(f, w[i]) == bits[i]);
        const double x = static_cast<double>(w[i]);
        residual += std::pow(x - alpha * static_cast<double>(f.value(f.encode(f, w[i]))), 2);
        norm += x * x;
    }
    CHECK(residual / 4.0 == .21875);
    CHECK(residual == norm - 4.0 * alpha * alpha);
}

TEST_CASE("ternary rounds to -1, 0, +1 and never produces code 3", "[formats][integer]") {
    const code_format& f = nibble::ternary::format;
    struct row {
        float x;
        unsigned code;
    };
    for (const row& r : {row{0.5f, 1}, row{-0.5f, 1}, row{std::nextafter(0.5f, 1.0f), 2},
                         row{std::nextafter(-0.5f, -1.0f), 0}, row{1.0f, 2}, row{-1.0f, 0}, row{1.5f, 2}, row{2.0f, 2},
                         row{-2.0f, 0}, row{1e30f, 2}, row{-1e30f, 0}, row{inf, 2}, row{-inf, 0}}) {
        CAPTURE(r.x);
        CHECK(f.encode(f, r.x) == r.code);
    }
    CHECK(f.value(3) == 2.0f);  // as ggml reads it
    CHECK(f.encode(f, f.value(3)) == 2);

    // BitNet b1.58: T = clamp(RNE(W / (mean|W| + 1e-5)), -1, 1).
    const std::array<float, 8> w = {.9f, -.05f, .4f, -1.2f, .02f, .6f, -.3f, .31f};
    const std::array<int, 8> expected = {1, 0, 1, -1, 0, 1, -1, 1};
    float gamma = 0.0f;
    for (const float v : w) gamma += std::abs(v) / 8.0f;
    CHECK(std::abs(gamma - .4725f) < 1e-6f);
    for (std::size_t i = 0; i < 8; ++i) CHECK(signed_code(f, w[i] / (gamma + 1e-5f)) == expected[i]);
}
