// fp16 and bf16: all 65,536 values both ways, numpy and ml_dtypes, and the vectors of the format study 4.3.
#include <nibble/formats/half.hpp>

#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/reference_formats.hpp"

using nibble::bf16_to_float;
using nibble::float_to_bf16;
using nibble::float_to_fp16;
using nibble::fp16_to_float;
using reference::bits_from_float;
using reference::float_from_bits;
using reference::hex;
using reference::is_nan_bits;
using reference::tally;

static_assert(float_to_fp16(1.0f) == 0x3c00 && fp16_to_float(0x7bff) == 65504.0f);
static_assert(float_to_bf16(1.0f) == 0x3f80 && bf16_to_float(0x4049) == 3.140625f);

namespace {

struct half_format {
    const char* name;
    const char* file;
    std::size_t cases;
    std::uint16_t (*encode)(float);
    float (*decode)(std::uint16_t);
    const nibble::code_format* format;
    unsigned infinity;
    unsigned quiet;  // the bit that makes a NaN quiet
};

const half_format halves[] = {
    {"fp16", "minifloat/float16", 100216, &float_to_fp16, &fp16_to_float, &nibble::fp16::format, 0x7c00, 0x200},
    {"bf16", "minifloat/bfloat16", 101992, &float_to_bf16, &bf16_to_float, &nibble::bf16::format, 0x7f80, 0x40},
};

}  // namespace

TEST_CASE("16-bit floats decode as numpy and ml_dtypes do", "[formats][half][golden]") {
    for (const half_format& h : halves) {
        const auto expected = golden::file(h.file).read<std::uint32_t>("decode_f32_bits");
        const reference::small_float& definition = *reference::find_small_float(h.name);
        REQUIRE(expected.size() == 65536);
        tally t;
        for (unsigned c = 0; c < 65536; ++c) {
            const float v = h.decode(static_cast<std::uint16_t>(c));
            const std::uint32_t u = bits_from_float(v);
            const auto describe = [&] { return "code " + hex(c); };
            t.check(is_nan_bits(expected[c]) ? is_nan_bits(u) : u == expected[c], describe);
            const double exact = definition.value(c);
            t.check(std::isnan(exact) ? is_nan_bits(u) : static_cast<double>(v) == exact, describe);
            const std::uint32_t through = bits_from_float(h.format->value(c));
            t.check(through == u || is_nan_bits(u), describe);
        }
        INFO(h.name << ": " << t.report());
        CHECK(t.failures() == 0);
        CHECK(t.cases() == 3 * 65536);
    }
}

TEST_CASE("16-bit floats encode as numpy and ml_dtypes do", "[formats][half][golden]") {
    for (const half_format& h : halves) {
        const golden::file file(h.file);
        const auto inputs = file.read<std::uint32_t>("encode_input_f32_bits");
        const auto codes = file.read<std::uint16_t>("encode_code");
        REQUIRE(inputs.size() == h.cases);
        REQUIRE(codes.size() == h.cases);
        tally t;
        for (std::size_t i = 0; i < inputs.size(); ++i) {
            const unsigned code = h.encode(float_from_bits(inputs[i]));
            // A NaN stays one and keeps its sign; its payload is each library's own choice.
            const bool good = is_nan_bits(inputs[i])
                                  ? (code & 0x7fffu) > h.infinity && (code >> 15) == (codes[i] >> 15)
                                  : code == codes[i];
            t.check(good, [&] { return "at bits " + hex(inputs[i]) + ": " + hex(code); });
        }
        INFO(h.name << ": " << t.report());
        CHECK(t.failures() == 0);
        CHECK(t.cases() == h.cases);
    }
}

TEST_CASE("all 65,536 16-bit floats survive the way to float and back", "[formats][half]") {
    for (const half_format& h : halves) {
        tally t;
        std::uint64_t nans = 0;
        for (unsigned c = 0; c < 65536; ++c) {
            const unsigned back = h.encode(h.decode(static_cast<std::uint16_t>(c)));
            const bool nan = (c & 0x7fffu) > h.infinity;
            nans += nan ? 1u : 0u;
            t.check(back == (nan ? c | h.quiet : c), [&] { return hex(c) + " comes back as " + hex(back); });
        }
        INFO(h.name << ": " << t.report());
        CHECK(t.failures() == 0);
        CHECK(t.cases() == 65536);
        CHECK(nans == 2 * (0x7fffu - h.infinity));
    }
}

TEST_CASE("16-bit floats are right at every midpoint", "[formats][half]") {
    for (const half_format& h : halves) {
        const reference::staircase expected = reference::find_small_float(h.name)->encoder(false);
        tally t;
        for (const float x : expected.edges())
            t.check(h.encode(x) == expected(x), [&] { return "at bits " + hex(bits_from_float(x)); });
        INFO(h.name << ": " << t.report());
        CHECK(t.failures() == 0);
        CHECK(t.cases() == 4 * (2ull * h.infinity + 1));
    }
}

TEST_CASE("as code formats they saturate: a finite weight never becomes Inf", "[formats][half]") {
    const float inf = std::numeric_limits<float>::infinity();
    const float largest = 3.4028234663852886e38f;
    for (const half_format& h : halves) {
        CAPTURE(h.name);
        const nibble::code_format& f = *h.format;
        CHECK(f.encode(f, f.max_value) == h.infinity - 1);
        CHECK(f.encode(f, largest) == h.infinity - 1);
        CHECK(f.encode(f, inf) == h.infinity - 1);
        CHECK(f.encode(f, -largest) == ((h.infinity - 1) | 0x8000u));
        CHECK(f.encode(f, -inf) == ((h.infinity - 1) | 0x8000u));
        CHECK(f.encode(f, -0.0f) == 0x8000u);
        CHECK(h.encode(inf) == h.infinity);
        CHECK(h.encode(-inf) == (h.infinity | 0x8000u));
        CHECK(is_nan_bits(bits_from_float(f.value(f.encode(f, std::numeric_limits<float>::quiet_NaN())))));
    }
}

TEST_CASE("bf16 vectors", "[formats][half]") {
    struct row {
        std::uint32_t bits;
        unsigned code;
    };
    const std::vector<row> rows = {
        {0x3f808000u, 0x3f80}, {0x3f818000u, 0x3f82}, {0x3f808001u, 0x3f81}, {0x3f807fffu, 0x3f80},
        {0x7f7fffffu, 0x7f80}, {0x7f7f7fffu, 0x7f7f}, {0x7f7f8000u, 0x7f80}, {0x7f800000u, 0x7f80},
        {0x7f800001u, 0x7fc0}, {0xff800001u, 0xffc0}, {0x80000000u, 0x8000}, {0x00008000u, 0x0000},
        {0x00018000u, 0x0002}, {bits_from_float(0.1f), 0x3dcd}, {bits_from_float(1.0f / 3.0f), 0x3eab},
        {bits_from_float(3.14159274f), 0x4049}, {bits_from_float(65504.0f), 0x4780}, {bits_from_float(1e-40f), 0x0001},
    };
    for (const row& r : rows) {
        CAPTURE(r.bits);
        CHECK(float_to_bf16(float_from_bits(r.bits)) == r.code);
    }
    CHECK(rows.size() == 18);
    CHECK(bf16_to_float(0x4780) == 65536.0f);
    CHECK(bf16_to_float(0x3dcd) == 0.10009765625f);
}

TEST_CASE("fp16 vectors", "[formats][half]") {
    struct row {
        float x;
        unsigned code;
    };
    const float half_of_smallest = 0x1p-25f;
    const std::vector<row> rows = {
        {0.1f, 0x2e66},          {1.0f / 3.0f, 0x3555},   {1.00048828125f, 0x3c00}, {1.0014648438f, 0x3c02},
        {2049.0f, 0x6800},       {2051.0f, 0x6802},       {65504.0f, 0x7bff},       {65519.996f, 0x7bff},
        {65520.0f, 0x7c00},      {-65520.0f, 0xfc00},     {0x1p-14f, 0x0400},       {0x1p-24f, 0x0001},
        {half_of_smallest, 0x0000}, {-half_of_smallest, 0x8000},
        {float_from_bits(bits_from_float(half_of_smallest) + 1), 0x0001}, {1.5f * 0x1p-24f, 0x0002},
        {6.097555e-5f, 0x03ff},  {0.0f, 0x0000},          {-0.0f, 0x8000},          {1e-45f, 0x0000},
    };
    for (const row& r : rows) {
        CAPTURE(r.x);
        CHECK(float_to_fp16(r.x) == r.code);
    }
    CHECK(rows.size() == 20);
}

TEST_CASE("a NaN becomes quiet and keeps its sign and its upper bits", "[formats][half]") {
    struct row {
        std::uint32_t bits;
        unsigned fp16, bf16;
    };
    for (const row& r : {row{0x7fc00000u, 0x7e00, 0x7fc0}, row{0xffc00000u, 0xfe00, 0xffc0},
                         row{0x7f800001u, 0x7e00, 0x7fc0}, row{0x7fffffffu, 0x7fff, 0x7fff},
                         row{0xffa00000u, 0xff00, 0xffe0}}) {
        CAPTURE(r.bits);
        CHECK(float_to_fp16(float_from_bits(r.bits)) == r.fp16);
        CHECK(float_to_bf16(float_from_bits(r.bits)) == r.bf16);
    }
}
