// FP8, FP6, FP4 and E8M0: against ml_dtypes, PyTorch, and the vectors of the format study 4 and 5.
#include <nibble/formats/half.hpp>
#include <nibble/formats/minifloat.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <vector>

#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/reference_formats.hpp"

using nibble::e8m0;
using nibble::fp4_e2m1;
using nibble::fp6_e2m3;
using nibble::fp6_e3m2;
using nibble::fp8_e4m3;
using nibble::fp8_e4m3fnuz;
using nibble::fp8_e5m2;
using nibble::fp8_e5m2fnuz;
using reference::bits_from_float;
using reference::float_from_bits;
using reference::hex;
using reference::tally;

// Encoding is a constant expression.
static_assert(fp8_e4m3::encode(1.0f) == 0x38 && fp8_e4m3::encode_ieee(1e9f) == 0x7f);
static_assert(fp4_e2m1::encode(-2.5f) == 0xc && e8m0::encode(1.0f) == 127 && e8m0::decode(127) == 1.0f);

namespace {

const float inf = std::numeric_limits<float>::infinity();

bool same_float(float a, std::uint32_t b) {
    return reference::is_nan_bits(b) ? reference::is_nan_bits(bits_from_float(a)) : bits_from_float(a) == b;
}

// One format and the two ways to encode it. FP6 and FP4 have one way: nothing overflows.
struct subject {
    const char* name;
    const char* file;
    unsigned (*saturating)(float);
    unsigned (*ieee)(float);
    std::size_t cases;
};

const std::vector<subject> subjects = {
    {"fp8_e4m3", "float8_e4m3fn", &fp8_e4m3::encode, &fp8_e4m3::encode_ieee, 22100},
    {"fp8_e5m2", "float8_e5m2", &fp8_e5m2::encode, &fp8_e5m2::encode_ieee, 22036},
    {"fp8_e4m3fnuz", "float8_e4m3fnuz", &fp8_e4m3fnuz::encode, &fp8_e4m3fnuz::encode_ieee, 22112},
    {"fp8_e5m2fnuz", "float8_e5m2fnuz", &fp8_e5m2fnuz::encode, &fp8_e5m2fnuz::encode_ieee, 22082},
    {"fp6_e2m3", "float6_e2m3fn", &fp6_e2m3::encode, &fp6_e2m3::encode, 20984},
    {"fp6_e3m2", "float6_e3m2fn", &fp6_e3m2::encode, &fp6_e3m2::encode, 20978},
    {"fp4_e2m1", "float4_e2m1fn", &fp4_e2m1::encode, &fp4_e2m1::encode, 20700},
};

const nibble::code_format& format_of(const subject& s) {
    const std::string_view name = s.name;
    if (name == "fp8_e4m3") return fp8_e4m3::format;
    if (name == "fp8_e5m2") return fp8_e5m2::format;
    if (name == "fp8_e4m3fnuz") return fp8_e4m3fnuz::format;
    if (name == "fp8_e5m2fnuz") return fp8_e5m2fnuz::format;
    if (name == "fp6_e2m3") return fp6_e2m3::format;
    if (name == "fp6_e3m2") return fp6_e3m2::format;
    return fp4_e2m1::format;
}

}  // namespace

TEST_CASE("small floats decode as ml_dtypes does", "[formats][minifloat][golden]") {
    std::uint64_t codes = 0;
    for (const subject& s : subjects) {
        const auto expected = golden::file("minifloat/" + std::string(s.file)).read<std::uint32_t>("decode_f32_bits");
        const nibble::code_format& f = format_of(s);
        REQUIRE(expected.size() == f.code_count());
        tally t;
        for (unsigned c = 0; c < f.code_count(); ++c)
            t.check(same_float(f.value(c), expected[c]), [&] { return "code " + std::to_string(c); });
        INFO(s.name << ": " << t.report());
        CHECK(t.failures() == 0);
        codes += t.cases();
    }
    CHECK(codes == 4 * 256 + 2 * 64 + 16);
}

TEST_CASE("small floats encode as ml_dtypes does", "[formats][minifloat][golden]") {
    std::uint64_t cases = 0;
    for (const subject& s : subjects) {
        const golden::file file("minifloat/" + std::string(s.file));
        const auto inputs = file.read<std::uint32_t>("encode_input_f32_bits");
        const auto plain = file.read<std::uint8_t>("encode_code");
        const auto saturating = file.read<std::uint8_t>("encode_code_saturating");
        REQUIRE(inputs.size() == s.cases);
        REQUIRE(plain.size() == s.cases);
        REQUIRE(saturating.size() == s.cases);
        const nibble::code_format& f = format_of(s);
        tally t;
        for (std::size_t i = 0; i < inputs.size(); ++i) {
            const float x = float_from_bits(inputs[i]);
            const auto describe = [&] { return "at bits " + hex(inputs[i]); };
            t.check(s.ieee(x) == plain[i], describe);
            t.check(s.saturating(x) == saturating[i], describe);
            t.check(f.encode(f, x) == saturating[i], describe);
        }
        INFO(s.name << ": " << t.report());
        CHECK(t.failures() == 0);
        CHECK(t.cases() == 3 * s.cases);
        cases += s.cases;
    }
    CHECK(cases == 150992);
}

TEST_CASE("FP8 casts agree with PyTorch", "[formats][minifloat][golden]") {
    // PyTorch saturates E4M3FN and no other format; which NaN code E5M2 gets is its own choice.
    struct cast {
        const char* name;
        const nibble::code_format* format;
        unsigned (*encode)(float);
    };
    const std::vector<cast> casts = {
        {"float8_e4m3fn", &fp8_e4m3::format, &fp8_e4m3::encode},
        {"float8_e5m2", &fp8_e5m2::format, &fp8_e5m2::encode_ieee},
        {"float8_e4m3fnuz", &fp8_e4m3fnuz::format, &fp8_e4m3fnuz::encode_ieee},
        {"float8_e5m2fnuz", &fp8_e5m2fnuz::format, &fp8_e5m2fnuz::encode_ieee},
    };
    const golden::file file("pytorch/float8_casts");
    std::vector<float> from_f32;
    std::vector<float> from_bf16;
    std::vector<float> from_f16;
    for (const std::uint32_t u : file.read<std::uint32_t>("input_f32_bits")) from_f32.push_back(float_from_bits(u));
    for (const std::uint16_t h : file.read<std::uint16_t>("input_bf16_bits"))
        from_bf16.push_back(nibble::bf16_to_float(h));
    for (const std::uint16_t h : file.read<std::uint16_t>("input_f16_bits"))
        from_f16.push_back(nibble::fp16_to_float(h));

    std::uint64_t cases = 0;
    for (const cast& c : casts) {
        const std::string name = c.name;
        const auto decoded = file.read<std::uint32_t>(name + ".decode_f32_bits");
        REQUIRE(decoded.size() == 256);
        tally t;
        for (unsigned code = 0; code < 256; ++code)
            t.check(same_float(c.format->value(code), decoded[code]), [&] { return "code " + std::to_string(code); });
        const auto check = [&](const std::vector<float>& inputs, const char* tensor) {
            const auto expected = file.read<std::uint8_t>(name + tensor);
            REQUIRE(inputs.size() == 8027);
            REQUIRE(expected.size() == inputs.size());
            for (std::size_t i = 0; i < inputs.size(); ++i) {
                const std::uint32_t u = bits_from_float(inputs[i]);
                const unsigned code = c.encode(inputs[i]);
                const bool good = reference::is_nan_bits(u) ? same_float(c.format->value(code), decoded[expected[i]])
                                                            : code == expected[i];
                t.check(good, [&] { return std::string(tensor) + " at bits " + hex(u); });
            }
        };
        check(from_f32, ".from_f32");
        check(from_bf16, ".from_bf16");
        check(from_f16, ".from_f16");
        INFO(name << ": " << t.report());
        CHECK(t.failures() == 0);
        cases += t.cases();
    }
    CHECK(cases == 4 * (256 + 3 * 8027));
}

TEST_CASE("FP8 vectors", "[formats][minifloat]") {
    // Each pair: not saturating, saturating (the format study 4.2).
    using pair = std::array<unsigned, 2>;
    struct row {
        float x;
        pair e4m3, e5m2, e4m3fnuz, e5m2fnuz;
    };
    const float tie = 0x1p-10f;
    const auto one = [](unsigned code) { return pair{code, code}; };
    const std::vector<row> rows = {
        {0.0f, one(0x00), one(0x00), one(0x00), one(0x00)},
        {-0.0f, one(0x80), one(0x80), one(0x00), one(0x00)},
        {1.0f, one(0x38), one(0x3c), one(0x40), one(0x40)},
        {-1.0f, one(0xb8), one(0xbc), one(0xc0), one(0xc0)},
        {0.1f, one(0x1d), one(0x2e), one(0x25), one(0x32)},
        {0.3f, one(0x2a), one(0x35), one(0x32), one(0x39)},
        {-0.5f, one(0xb0), one(0xb8), one(0xb8), one(0xbc)},
        {0.8f, one(0x35), one(0x3a), one(0x3d), one(0x3e)},
        {1.0625f, one(0x38), one(0x3c), one(0x40), one(0x40)},
        {1.1875f, one(0x3a), one(0x3d), one(0x42), one(0x41)},
        {3.14159274f, one(0x45), one(0x42), one(0x4d), one(0x46)},
        {17.0f, one(0x58), one(0x4c), one(0x60), one(0x50)},
        {19.0f, one(0x5a), one(0x4d), one(0x62), one(0x51)},
        {0x1p-6f, one(0x08), one(0x24), one(0x10), one(0x28)},
        {0.01f, one(0x05), one(0x21), one(0x0a), one(0x25)},
        {tie, one(0x00), one(0x14), one(0x01), one(0x18)},
        {float_from_bits(bits_from_float(tie) + 1), one(0x01), one(0x14), one(0x01), one(0x18)},
        {3.0f * tie, one(0x02), one(0x1a), one(0x03), one(0x1e)},
        {240.0f, one(0x77), one(0x5c), one(0x7f), one(0x60)},
        {247.9f, one(0x77), one(0x5c), one(0x7f), one(0x60)},
        {248.0f, one(0x78), one(0x5c), {0x80, 0x7f}, one(0x60)},
        {448.0f, one(0x7e), one(0x5f), {0x80, 0x7f}, one(0x63)},
        {464.0f, one(0x7e), one(0x5f), {0x80, 0x7f}, one(0x63)},
        {464.00003f, {0x7f, 0x7e}, one(0x5f), {0x80, 0x7f}, one(0x63)},
        {480.0f, {0x7f, 0x7e}, one(0x60), {0x80, 0x7f}, one(0x64)},
        {500.0f, {0x7f, 0x7e}, one(0x60), {0x80, 0x7f}, one(0x64)},
        {57344.0f, {0x7f, 0x7e}, one(0x7b), {0x80, 0x7f}, one(0x7f)},
        {61439.996f, {0x7f, 0x7e}, one(0x7b), {0x80, 0x7f}, one(0x7f)},
        {61440.0f, {0x7f, 0x7e}, {0x7c, 0x7b}, {0x80, 0x7f}, {0x80, 0x7f}},
        {65536.0f, {0x7f, 0x7e}, {0x7c, 0x7b}, {0x80, 0x7f}, {0x80, 0x7f}},
        {inf, {0x7f, 0x7e}, {0x7c, 0x7b}, {0x80, 0x7f}, {0x80, 0x7f}},
        {-inf, {0xff, 0xfe}, {0xfc, 0xfb}, {0x80, 0xff}, {0x80, 0xff}},
    };
    for (const row& r : rows) {
        CAPTURE(r.x);
        CHECK(pair{fp8_e4m3::encode_ieee(r.x), fp8_e4m3::encode(r.x)} == r.e4m3);
        CHECK(pair{fp8_e5m2::encode_ieee(r.x), fp8_e5m2::encode(r.x)} == r.e5m2);
        CHECK(pair{fp8_e4m3fnuz::encode_ieee(r.x), fp8_e4m3fnuz::encode(r.x)} == r.e4m3fnuz);
        CHECK(pair{fp8_e5m2fnuz::encode_ieee(r.x), fp8_e5m2fnuz::encode(r.x)} == r.e5m2fnuz);
    }
    CHECK(rows.size() == 32);
}

TEST_CASE("FP8 decode vectors", "[formats][minifloat]") {
    struct row {
        unsigned code;
        float value;
    };
    const std::vector<row> e4m3 = {{0x01, 0.001953125f}, {0x07, 0.013671875f}, {0x08, 0.015625f}, {0x0f, 0.029296875f},
                                   {0x38, 1.0f},         {0x3f, 1.875f},       {0x40, 2.0f},      {0x70, 128.0f},
                                   {0x77, 240.0f},       {0x78, 256.0f},       {0x7e, 448.0f}};
    const std::vector<row> e5m2 = {{0x01, 1.52587890625e-5f}, {0x03, 4.57763671875e-5f}, {0x04, 6.103515625e-5f},
                                   {0x07, 1.068115234375e-4f}, {0x3c, 1.0f},             {0x3f, 1.75f},
                                   {0x78, 32768.0f},          {0x7b, 57344.0f},          {0x7c, inf}};
    for (const row& r : e4m3) {
        CAPTURE(r.code);
        CHECK(fp8_e4m3::decode(r.code) == r.value);
        CHECK(fp8_e4m3::decode(r.code | 0x80) == -r.value);
    }
    for (const row& r : e5m2) {
        CAPTURE(r.code);
        CHECK(fp8_e5m2::decode(r.code) == r.value);
        CHECK(fp8_e5m2::decode(r.code | 0x80) == -r.value);
    }
    CHECK(fp8_e4m3fnuz::decode(0x7f) == 240.0f);
    CHECK(fp8_e4m3fnuz::decode(0x01) == 0x1p-10f);
    CHECK(fp8_e5m2fnuz::decode(0x7f) == 57344.0f);
    CHECK(fp8_e5m2fnuz::decode(0x01) == 0x1p-17f);
}

TEST_CASE("FP6 and FP4 vectors", "[formats][minifloat]") {
    struct row {
        float x;
        unsigned e2m1, e2m3, e3m2;
    };
    const std::vector<row> rows = {
        {0.0f, 0x0, 0x00, 0x00},      {-0.0f, 0x8, 0x20, 0x20},    {0.25f, 0x0, 0x02, 0x04},
        {0.250001f, 0x1, 0x02, 0x04}, {0.75f, 0x2, 0x06, 0x0a},    {1.25f, 0x2, 0x0a, 0x0d},
        {1.75f, 0x4, 0x0e, 0x0f},     {2.5f, 0x4, 0x12, 0x11},     {3.5f, 0x6, 0x16, 0x13},
        {5.0f, 0x6, 0x1a, 0x15},      {5.01f, 0x7, 0x1a, 0x15},    {6.0f, 0x7, 0x1c, 0x16},
        {7.0f, 0x7, 0x1e, 0x17},      {-2.5f, 0xc, 0x32, 0x31},    {7.25f, 0x7, 0x1e, 0x17},
        {7.75f, 0x7, 0x1f, 0x18},     {26.0f, 0x7, 0x1f, 0x1e},    {30.0f, 0x7, 0x1f, 0x1f},
        {0.0625f, 0x0, 0x00, 0x01},   {0.1875f, 0x0, 0x02, 0x03},  {0.03125f, 0x0, 0x00, 0x00},
        {0.09375f, 0x0, 0x01, 0x02},  {inf, 0x7, 0x1f, 0x1f},      {-inf, 0xf, 0x3f, 0x3f},
        {3e38f, 0x7, 0x1f, 0x1f},
    };
    for (const row& r : rows) {
        CAPTURE(r.x);
        CHECK(fp4_e2m1::encode(r.x) == r.e2m1);
        CHECK(fp6_e2m3::encode(r.x) == r.e2m3);
        CHECK(fp6_e3m2::encode(r.x) == r.e3m2);
    }
    CHECK(rows.size() == 25);
}

TEST_CASE("FP4 and FP6 values by code", "[formats][minifloat]") {
    const std::vector<float> e2m1 = {0, .5f, 1, 1.5f, 2, 3, 4, 6};
    const std::vector<float> e2m3 = {0,     .125f,  .25f,  .375f,  .5f,   .625f,  .75f,  .875f,  1, 1.125f, 1.25f,
                                     1.375f, 1.5f,  1.625f, 1.75f, 1.875f, 2,     2.25f, 2.5f,   2.75f, 3,  3.25f,
                                     3.5f,  3.75f,  4,     4.5f,   5,     5.5f,   6,     6.5f,   7, 7.5f};
    const std::vector<float> e3m2 = {0, .0625f, .125f, .1875f, .25f, .3125f, .375f, .4375f, .5f, .625f, .75f,
                                     .875f, 1, 1.25f, 1.5f, 1.75f, 2, 2.5f, 3, 3.5f, 4, 5,
                                     6, 7, 8, 10, 12, 14, 16, 20, 24, 28};
    const auto check = [](const nibble::code_format& f, const std::vector<float>& half) {
        REQUIRE(2 * half.size() == f.code_count());
        for (unsigned c = 0; c < half.size(); ++c) {
            const unsigned negative = c + static_cast<unsigned>(half.size());
            CHECK(f.value(c) == half[c]);
            CHECK(bits_from_float(f.value(negative)) == bits_from_float(-half[c]));
        }
    };
    check(fp4_e2m1::format, e2m1);
    check(fp6_e2m3::format, e2m3);
    check(fp6_e3m2::format, e3m2);
}

TEST_CASE("decision intervals of E2M1", "[formats][minifloat]") {
    // |x|: up to .25 gives 0, below .75 gives .5, up to 1.25 gives 1, ... (a tie goes to the even code)
    struct edge {
        float at;
        bool closed;
        float below, above;
    };
    const std::array<edge, 7> edges = {{{.25f, true, 0.f, .5f},
                                        {.75f, false, .5f, 1.f},
                                        {1.25f, true, 1.f, 1.5f},
                                        {1.75f, false, 1.5f, 2.f},
                                        {2.5f, true, 2.f, 3.f},
                                        {3.5f, false, 3.f, 4.f},
                                        {5.f, true, 4.f, 6.f}}};
    for (const edge& e : edges) {
        CAPTURE(e.at);
        for (const float sign : {1.0f, -1.0f}) {
            const auto decoded = [&](float x) { return fp4_e2m1::decode(fp4_e2m1::encode(sign * x)); };
            CHECK(decoded(std::nextafter(e.at, 0.0f)) == sign * e.below);
            CHECK(decoded(e.at) == sign * (e.closed ? e.below : e.above));
            CHECK(decoded(std::nextafter(e.at, 9.0f)) == sign * e.above);
        }
    }
}

TEST_CASE("the ends of the FP8 ranges", "[formats][minifloat]") {
    // The largest magnitude that does not overflow, and the first that does.
    struct end {
        unsigned (*ieee)(float);
        unsigned (*saturating)(float);
        float last_good;
        unsigned largest, overflow, negative_overflow;
    };
    const std::array<end, 4> ends = {{
        {&fp8_e4m3::encode_ieee, &fp8_e4m3::encode, 464.0f, 0x7e, 0x7f, 0xff},
        {&fp8_e5m2::encode_ieee, &fp8_e5m2::encode, std::nextafter(61440.0f, 0.0f), 0x7b, 0x7c, 0xfc},
        {&fp8_e4m3fnuz::encode_ieee, &fp8_e4m3fnuz::encode, std::nextafter(248.0f, 0.0f), 0x7f, 0x80, 0x80},
        {&fp8_e5m2fnuz::encode_ieee, &fp8_e5m2fnuz::encode, std::nextafter(61440.0f, 0.0f), 0x7f, 0x80, 0x80},
    }};
    for (const end& e : ends) {
        const float first_bad = std::nextafter(e.last_good, inf);
        CAPTURE(e.last_good);
        CHECK(e.ieee(e.last_good) == e.largest);
        CHECK(e.ieee(-e.last_good) == (e.largest | 0x80u));
        CHECK(e.ieee(first_bad) == e.overflow);
        CHECK(e.ieee(-first_bad) == e.negative_overflow);
        CHECK(e.saturating(first_bad) == e.largest);
        CHECK(e.saturating(-first_bad) == (e.largest | 0x80u));
    }
}

TEST_CASE("NaN stays NaN where the format has one, and is zero where not", "[formats][minifloat]") {
    tally t;
    for (const subject& s : subjects) {
        const reference::small_float& f = *reference::find_small_float(s.name);
        for (const std::uint32_t payload : {1u, 0x200000u, 0x3fffffu, 0x400000u, 0x400001u, 0x7fffffu})
            for (const bool negative : {false, true}) {
                const float x = float_from_bits((negative ? 0xff800000u : 0x7f800000u) | payload);
                const unsigned expected = f.code_of_nan(negative);
                for (const unsigned code : {s.ieee(x), s.saturating(x), format_of(s).encode(format_of(s), x)})
                    t.check(code == expected, [&] { return std::string(s.name) + " of " + hex(bits_from_float(x)); });
                if (f.special != reference::specials::none)
                    t.check(std::isnan(format_of(s).value(expected)), [&] { return std::string(s.name) + " decodes"; });
            }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 7 * 12 * 3 + 4 * 12);
}

TEST_CASE("all fp16 and bf16 values convert to FP8 as their floats do", "[formats][minifloat]") {
    std::uint64_t cases = 0;
    for (const subject& s : subjects) {
        const reference::small_float& f = *reference::find_small_float(s.name);
        const reference::staircase saturating = f.encoder(true);
        const reference::staircase ieee = f.encoder(f.special == reference::specials::none);
        tally t;
        for (unsigned h = 0; h < 65536; ++h)
            for (const float x : {nibble::fp16_to_float(static_cast<std::uint16_t>(h)),
                                  nibble::bf16_to_float(static_cast<std::uint16_t>(h))}) {
                if (std::isnan(x)) continue;
                t.check(s.saturating(x) == saturating(x) && s.ieee(x) == ieee(x),
                        [&] { return "at bits " + hex(bits_from_float(x)); });
            }
        INFO(s.name << ": " << t.report());
        CHECK(t.failures() == 0);
        cases += t.cases();
    }
    CHECK(cases == 7 * (65536 - 2 * 1023 + 65536 - 2 * 127));
}

// --- E8M0 ---------------------------------------------------------------------------------------------------------

TEST_CASE("E8M0 decodes every code", "[formats][e8m0][golden]") {
    const auto ml_dtypes = golden::file("minifloat/float8_e8m0fnu").read<std::uint32_t>("decode_f32_bits");
    const auto torch = golden::file("pytorch/float8_casts").read<std::uint32_t>("float8_e8m0fnu.decode_f32_bits");
    REQUIRE(ml_dtypes.size() == 256);
    REQUIRE(torch.size() == 256);
    tally t;
    for (unsigned c = 0; c < 256; ++c) {
        const float v = e8m0::decode(c);
        const auto describe = [&] { return "code " + std::to_string(c); };
        t.check(same_float(v, ml_dtypes[c]), describe);
        t.check(same_float(v, torch[c]), describe);
        const double expected = reference::e8m0_value(c);
        t.check(c == 255 ? std::isnan(v) : static_cast<double>(v) == expected, describe);
        t.check(c == 255 || e8m0::encode(v) == c, describe);
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 1024);
    CHECK(bits_from_float(e8m0::decode(0)) == 0x00400000u);  // 2^-127, a subnormal float
    CHECK(e8m0::decode(254) == 0x1p127f);
    CHECK(e8m0::decode(254) * e8m0::decode(0) == 1.0f);  // 2^(127 - e) is the reciprocal, at the end too
}

TEST_CASE("E8M0 encodes as ml_dtypes does, except zeros", "[formats][e8m0][golden]") {
    const golden::file file("minifloat/float8_e8m0fnu");
    const auto inputs = file.read<std::uint32_t>("encode_input_f32_bits");
    const auto codes = file.read<std::uint8_t>("encode_code");
    REQUIRE(inputs.size() == 21892);
    REQUIRE(codes.size() == inputs.size());
    tally t;
    std::uint64_t zeros = 0;
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        const bool zero = (inputs[i] & 0x7fffffffu) == 0;
        zeros += zero ? 1u : 0u;
        if (zero) t.check(codes[i] == 255, [] { return std::string("ml_dtypes sends zeros to NaN"); });
        t.check(e8m0::encode(float_from_bits(inputs[i])) == (zero ? 0u : codes[i]),
                [&] { return "at bits " + hex(inputs[i]); });
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(zeros >= 2);
    CHECK(t.cases() == 21892 + zeros);
}

TEST_CASE("E8M0 encodes as PyTorch does, except negative numbers", "[formats][e8m0][golden]") {
    const golden::file file("pytorch/float8_casts");
    tally t;
    std::uint64_t negative = 0;
    const auto check = [&](float x, unsigned torch) {
        const std::uint32_t u = bits_from_float(x);
        const auto describe = [&] { return "at bits " + hex(u); };
        if (u > 0x80000000u && u <= 0xff800000u) {  // PyTorch drops the sign, nibble answers NaN
            ++negative;
            t.check(e8m0::encode(x) == 255, describe);
            t.check(e8m0::encode(-x) == torch, describe);
        } else {
            t.check(e8m0::encode(x) == torch, describe);
        }
    };
    const auto inputs = file.read<std::uint32_t>("input_f32_bits");
    const auto codes = file.read<std::uint8_t>("float8_e8m0fnu.from_f32");
    const auto bf16 = file.read<std::uint16_t>("input_bf16_bits");
    const auto bf16_codes = file.read<std::uint8_t>("float8_e8m0fnu.from_bf16");
    const auto f16 = file.read<std::uint16_t>("input_f16_bits");
    const auto f16_codes = file.read<std::uint8_t>("float8_e8m0fnu.from_f16");
    REQUIRE(inputs.size() == 8027);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
        check(float_from_bits(inputs[i]), codes[i]);
        check(nibble::bf16_to_float(bf16[i]), bf16_codes[i]);
        check(nibble::fp16_to_float(f16[i]), f16_codes[i]);
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(negative > 3000);
    CHECK(t.cases() == 3 * 8027 + negative);
}

TEST_CASE("E8M0 encodes every edge", "[formats][e8m0]") {
    const reference::staircase expected = reference::e8m0_encoder();
    tally t;
    for (const float x : expected.edges())
        t.check(e8m0::encode(x) == expected(x), [&] {
            return "at bits " + hex(bits_from_float(x)) + ": " + std::to_string(e8m0::encode(x)) + ", expected " +
                   std::to_string(expected(x));
        });
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 4 * 256);

    CHECK(e8m0::encode(0.0f) == 0);
    CHECK(e8m0::encode(-0.0f) == 0);
    CHECK(e8m0::encode(0x1p-149f) == 0);
    CHECK(e8m0::encode(-0x1p-149f) == 255);
    CHECK(e8m0::encode(0x1p-127f) == 0);
    CHECK(e8m0::encode(float_from_bits(0x00400001u)) == 1);
    CHECK(e8m0::encode(1.4999999f) == 127);
    CHECK(e8m0::encode(1.5f) == 128);
    CHECK(e8m0::encode(3.0f) == 129);
    CHECK(e8m0::encode(-1.0f) == 255);
    CHECK(e8m0::encode(0x1p127f) == 254);
    CHECK(e8m0::encode(std::nextafter(0x1.8p127f, 0.0f)) == 254);
    CHECK(e8m0::encode(0x1.8p127f) == 255);
    CHECK(e8m0::encode(3.4028234663852886e38f) == 255);
    CHECK(e8m0::encode(inf) == 255);
    CHECK(e8m0::encode(-inf) == 255);
    CHECK(e8m0::encode(std::numeric_limits<float>::quiet_NaN()) == 255);
    CHECK(e8m0::encode(-std::numeric_limits<float>::quiet_NaN()) == 255);
}

// --- blocks of the format study 5, at a given scale ------------------------------------------------------------------

TEST_CASE("elements of an MX block", "[formats][minifloat][mx]") {
    const std::array<float, 12> block = {.3f, -.5f, .1f, .8f, -.2f, 7.0f, -3.3f, 0.0f, 1.25f, -.04f, 5.9f, -6.5f};
    struct row {
        const char* name;
        unsigned (*encode)(float);
        const nibble::code_format* format;
        unsigned scale;
        std::array<unsigned, 12> codes;
        std::array<float, 12> values;
    };
    const std::array<row, 5> rows = {{
        {"e2m1", &fp4_e2m1::encode, &fp4_e2m1::format, 0x7f,
         {0x1, 0x9, 0x0, 0x2, 0x8, 0x7, 0xd, 0x0, 0x2, 0x8, 0x7, 0xf},
         {.5f, -.5f, 0, 1, -0.0f, 6, -3, 0, 1, -0.0f, 6, -6}},
        {"e2m3", &fp6_e2m3::encode, &fp6_e2m3::format, 0x7f,
         {0x02, 0x24, 0x01, 0x06, 0x22, 0x1e, 0x35, 0x00, 0x0a, 0x20, 0x1c, 0x3d},
         {.25f, -.5f, .125f, .75f, -.25f, 7, -3.25f, 0, 1.25f, -0.0f, 6, -6.5f}},
        {"e3m2", &fp6_e3m2::encode, &fp6_e3m2::format, 0x7d,
         {0x0d, 0x30, 0x06, 0x12, 0x2a, 0x1f, 0x3b, 0x00, 0x15, 0x23, 0x1e, 0x3e},
         {.3125f, -.5f, .09375f, .75f, -.1875f, 7, -3.5f, 0, 1.25f, -.046875f, 6, -6}},
        {"e4m3", &fp8_e4m3::encode, &fp8_e4m3::format, 0x79,
         {0x5a, 0xe0, 0x4d, 0x65, 0xd5, 0x7e, 0xf5, 0x00, 0x6a, 0xc2, 0x7c, 0xfd},
         {.3125f, -.5f, .1015625f, .8125f, -.203125f, 7, -3.25f, 0, 1.25f, -.0390625f, 6, -6.5f}},
        {"e5m2", &fp8_e5m2::encode, &fp8_e5m2::format, 0x72,
         {0x69, 0xec, 0x62, 0x6e, 0xe6, 0x7b, 0xf7, 0x00, 0x71, 0xdd, 0x7a, 0xfa},
         {.3125f, -.5f, .09375f, .75f, -.1875f, 7, -3.5f, 0, 1.25f, -.0390625f, 6, -6}},
    }};
    for (const row& r : rows)
        for (std::size_t i = 0; i < block.size(); ++i) {
            CAPTURE(r.name, i);
            const float scale = e8m0::decode(r.scale);
            CHECK(r.encode(block[i] / scale) == r.codes[i]);
            CHECK(bits_from_float(r.format->value(r.codes[i]) * scale) == bits_from_float(r.values[i]));
        }
}

TEST_CASE("elements and block scale of NVFP4", "[formats][minifloat][mx]") {
    const std::array<float, 16> block = {.3f,   -.5f,  .1f,  .8f,   -.2f, 7.0f,  -3.3f, 0.0f,
                                         1.25f, -.04f, 5.9f, -6.5f, .6f,  -1.1f, 2.2f,  .05f};
    const std::array<unsigned, 16> codes = {0x1, 0x9, 0x0, 0x1, 0x8, 0x7, 0xd, 0x0,
                                            0x2, 0x8, 0x7, 0xf, 0x1, 0xa, 0x4, 0x0};
    struct row {
        float amax_tensor;
        std::uint32_t tensor_scale;
        unsigned block_scale;
        float total;
    };
    for (const row& r : {row{7.0f, 0x3b2aaaabu, 0x7e, 1.16666675f}, row{12.0f, 0x3b924925u, 0x78, 1.14285719f}}) {
        CAPTURE(r.amax_tensor);
        const float tensor_scale = r.amax_tensor / (6.0f * 448.0f);
        CHECK(bits_from_float(tensor_scale) == r.tensor_scale);
        const float raw = 7.0f / 6.0f / tensor_scale;
        CHECK(fp8_e4m3::encode(raw) == r.block_scale);
        const float total = fp8_e4m3::decode(r.block_scale) * tensor_scale;
        CHECK(total == r.total);
        const float inverse = 1.0f / total;
        for (std::size_t i = 0; i < block.size(); ++i) {
            CAPTURE(i);
            CHECK(fp4_e2m1::encode(block[i] * inverse) == codes[i]);
        }
    }
}
