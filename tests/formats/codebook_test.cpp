// NF4, FP4 and AF4 (bitsandbytes), IQ4_NL (ggml) and codebooks of a program's own.
#include <nibble/formats/codebook.hpp>

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

using nibble::code_format;
using reference::bits_from_float;
using reference::float_from_bits;
using reference::hex;
using reference::table16;
using reference::tally;

namespace {

unsigned encode(const code_format& f, float t) { return f.encode(f, t); }

// Two codes a byte, the first in the high half.
std::vector<unsigned> unpack(const std::vector<std::uint8_t>& bytes) {
    std::vector<unsigned> codes;
    for (const unsigned b : bytes) {
        codes.push_back(b >> 4);
        codes.push_back(b & 15u);
    }
    return codes;
}

std::string to_hex(const std::vector<unsigned>& codes) {
    std::string s;
    for (const unsigned c : codes) s += "0123456789abcdef"[c];
    return s;
}

// A codebook of this program: unsorted, with a value that stands twice.
struct shuffled : nibble::codebook<shuffled> {
    static constexpr const char* name = "shuffled";
    static constexpr std::array<float, 16> table = {0.5f, -2.0f, 3.0f, 0.25f, 0.0f,  -0.5f, 1.0f, 0.5f,
                                                    8.0f, -1.0f, 2.0f, -4.0f, -3.0f, 5.0f,  6.0f, 7.0f};
};
static_assert(nibble::code_format_type<shuffled>);

// Reaches farther below zero than above.
struct lopsided : nibble::codebook<lopsided> {
    static constexpr const char* name = "lopsided";
    static constexpr std::array<float, 16> table = {-10, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6};
};

// What make_codebook throws, or errc::ok.
struct refusal {
    nibble::errc code = nibble::errc::ok;
    std::string message;
};
refusal refused(const std::string& name, const table16& values) {
    try {
        static_cast<void>(nibble::make_codebook(name, values));
    } catch (const nibble::error& e) {
        return {e.code(), e.what()};
    }
    return {};
}

void check_against_reference(const code_format& f, const table16& table) {
    const reference::staircase expected = reference::codebook_encoder(table);
    tally t;
    for (const float x : expected.edges())
        t.check(encode(f, x) == expected(x), [&] {
            return "at bits " + hex(bits_from_float(x)) + ": " + std::to_string(encode(f, x)) + ", expected " +
                   std::to_string(expected(x));
        });
    for (unsigned c = 0; c < 16; ++c) {
        t.check(bits_from_float(f.value(c)) == bits_from_float(table[c]), [&] { return "value " + std::to_string(c); });
        t.check(f.value(encode(f, table[c])) == table[c], [&] { return "round trip of " + std::to_string(c); });
    }
    INFO(f.name << ": " << t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 4 * (expected.steps().size() - 1) + 32);
    CHECK(f.value(f.zero_code) == f.value(encode(f, 0.0f)));
}

}  // namespace

TEST_CASE("the tables are those of bitsandbytes, bit for bit", "[formats][codebook][golden]") {
    const golden::file file("bitsandbytes/codebooks");
    const auto nf4 = file.read<float>("nf4_table");
    const auto fp4 = file.read<float>("fp4_table");
    REQUIRE(nf4.size() == 16);
    REQUIRE(fp4.size() == 16);
    for (unsigned c = 0; c < 16; ++c) {
        CAPTURE(c);
        CHECK(bits_from_float(nibble::nf4::format.value(c)) == bits_from_float(nf4[c]));
        CHECK(bits_from_float(nibble::nf4::format.value(c)) == reference::nf4_bits[c]);
        CHECK(bits_from_float(nibble::fp4::format.value(c)) == bits_from_float(fp4[c]));
        CHECK(bits_from_float(nibble::af4::format.value(c)) == bits_from_float(reference::af4_table()[c]));
    }
    // Entry 8 of FP4 is +0, the halves are otherwise mirrored.
    CHECK(bits_from_float(nibble::fp4::format.value(8)) == 0u);
    for (unsigned c = 1; c < 8; ++c) CHECK(nibble::fp4::format.value(c + 8) == -nibble::fp4::format.value(c));
    CHECK(bits_from_float(nibble::fp4::format.value(1)) == 0x3baaaaabu);
    CHECK(bits_from_float(nibble::fp4::format.value(2)) == 0x3f2aaaabu);
    CHECK(bits_from_float(nibble::fp4::format.value(4)) == 0x3eaaaaabu);
    CHECK(bits_from_float(nibble::fp4::format.value(6)) == 0x3e2aaaabu);
    // AF4 is stored from the top down.
    CHECK(nibble::af4::format.value(0) == 1.0f);
    CHECK(nibble::af4::format.value(15) == -1.0f);
}

TEST_CASE("NF4 to four decimals is the table of the paper", "[formats][codebook]") {
    const std::array<float, 16> rounded = {-1.0f, -.6962f, -.5251f, -.3949f, -.2844f, -.1848f, -.0911f, 0.0f,
                                           .0796f, .1609f, .2461f, .3379f, .4407f, .5626f, .7230f, 1.0f};
    for (unsigned c = 0; c < 16; ++c) {
        CAPTURE(c);
        CHECK(std::abs(nibble::nf4::format.value(c) - rounded[c]) <= 5.01e-5f);
    }
}

TEST_CASE("thresholds of NF4 and FP4", "[formats][codebook]") {
    for (unsigned i = 0; i < 15; ++i) {
        CAPTURE(i);
        const float expected = static_cast<float>(reference::nf4_thresholds[i]);
        CHECK(nibble::nf4::format.thresholds[i] == expected);
        CHECK(encode(nibble::nf4::format, expected) == i);
        CHECK(encode(nibble::nf4::format, std::nextafter(expected, -2.0f)) == i);
        CHECK(encode(nibble::nf4::format, std::nextafter(expected, 2.0f)) == i + 1);
    }
    // FP4: between the codes 0|1|6|7|4|5|2|3.
    const std::array<float, 7> pivots = {.00260417f, .0859375f, .20833333f, .29166667f, .4166667f, .583333f, .8333333f};
    const std::array<unsigned, 8> codes = {8, 1, 6, 7, 4, 5, 2, 3};  // of tiny positive values: 8, the second zero
    for (unsigned i = 0; i < 7; ++i) {
        CAPTURE(i);
        CHECK(std::abs(nibble::fp4::format.thresholds[8 + i] - pivots[i]) < 1e-6f);
        CHECK(nibble::fp4::format.thresholds[6 - i] == -nibble::fp4::format.thresholds[8 + i]);
        CHECK(encode(nibble::fp4::format, pivots[i] - 1e-6f) == codes[i]);
        CHECK(encode(nibble::fp4::format, pivots[i] + 1e-6f) == codes[i + 1]);
        CHECK(encode(nibble::fp4::format, 1e-6f - pivots[i]) == (i == 0 ? 0u : codes[i] | 8u));
        CHECK(encode(nibble::fp4::format, -1e-6f - pivots[i]) == (codes[i + 1] | 8u));
    }
    CHECK(nibble::fp4::format.thresholds[7] == 0.0f);
}

TEST_CASE("FP4 has two zeros", "[formats][codebook]") {
    const code_format& f = nibble::fp4::format;
    CHECK(encode(f, 0.0f) == 0);
    CHECK(encode(f, -0.0f) == 0);
    CHECK(encode(f, 1e-6f) == 8);
    CHECK(encode(f, -1e-6f) == 0);
    CHECK(encode(f, float_from_bits(1)) == 8);
    CHECK(encode(f, float_from_bits(0x80000001u)) == 0);
}

TEST_CASE("codes are those of bitsandbytes at every threshold", "[formats][codebook][golden]") {
    const golden::file file("bitsandbytes/codebooks");
    std::uint64_t cases = 0;
    for (const code_format* f : {&nibble::nf4::format, &nibble::fp4::format}) {
        const std::string name = f->name;
        const auto ties = file.read<float>("ties." + name + ".x");
        const auto codes = unpack(file.read<std::uint8_t>("ties." + name + ".bs64.packed"));
        REQUIRE(file.read<float>("ties." + name + ".bs64.absmax") == std::vector<float>{1.0f});
        REQUIRE(ties.size() == 64);
        REQUIRE(codes.size() == 64);
        tally t;
        for (std::size_t i = 0; i < ties.size(); ++i)
            t.check(encode(*f, ties[i]) == codes[i], [&] {
                return "at bits " + hex(bits_from_float(ties[i])) + ": " + std::to_string(encode(*f, ties[i])) +
                       ", bitsandbytes " + std::to_string(codes[i]);
            });

        const auto x = file.read<float>("g1.x");
        const auto absmax = file.read<float>("g1." + name + ".bs64.absmax");
        const auto packed = unpack(file.read<std::uint8_t>("g1." + name + ".bs64.packed"));
        const auto dequantized = file.read<float>("g1." + name + ".bs64.dequant");
        REQUIRE(x == reference::generator_g1(256));
        REQUIRE(absmax.size() == 4);
        REQUIRE(packed.size() == 256);
        for (std::size_t i = 0; i < x.size(); ++i) {
            const float scale = absmax[i / 64];
            const auto describe = [&] { return "g1 at " + std::to_string(i); };
            t.check(encode(*f, x[i] * (1.0f / scale)) == packed[i], describe);
            t.check(f->value(packed[i]) * scale == dequantized[i], describe);
        }
        INFO(name << ": " << t.report());
        CHECK(t.failures() == 0);
        cases += t.cases();
    }
    CHECK(cases == 2 * (64 + 2 * 256));
}

TEST_CASE("vectors NF4-1, FP4-1, NF4-2, FP4-2", "[formats][codebook]") {
    struct row {
        const code_format* format;
        std::array<unsigned, 5> codes;
        std::array<float, 5> values;
        const char* g1;
        double rmse;
    };
    const std::array<float, 5> x = {0.3f, -0.5f, 0.1f, 0.8f, -0.2f};
    const std::vector<row> rows = {
        {&nibble::nf4::format, {11, 1, 9, 15, 4}, {.270332187f, -.556954265f, .12874417f, .800000012f, -.227553114f},
         "17e29f3b05d17e2af4c06d18e2a04c16e29f3b05d17e29f3c05d18e2af4c16e1", .0829774},
        {&nibble::fp4::format, {4, 10, 6, 3, 15}, {.266666681f, -.533333361f, .13333334f, .800000012f, -.200000003f},
         "a92d63c4be5a12d73c5be2a12d7bf5a92a63c4be5a02d63c4be2a12d73f5a92a", .1014391},
    };
    for (const row& r : rows) {
        const code_format& f = *r.format;
        CAPTURE(f.name);
        for (std::size_t i = 0; i < 5; ++i) {
            CAPTURE(i);
            // Both ways to normalise agree here: a short block divides, a full one multiplies.
            CHECK(encode(f, x[i] / 0.8f) == r.codes[i]);
            CHECK(encode(f, x[i] * (1.0f / 0.8f)) == r.codes[i]);
            CHECK(f.value(r.codes[i]) * 0.8f == r.values[i]);
        }
        std::vector<unsigned> codes;
        double squares = 0.0;
        for (const float v : reference::generator_g1(64)) {
            codes.push_back(encode(f, v * (1.0f / 1.5625f)));
            const double difference = static_cast<double>(v) - static_cast<double>(f.value(codes.back()) * 1.5625f);
            squares += difference * difference;
        }
        CHECK(to_hex(codes) == r.g1);
        CHECK(std::abs(std::sqrt(squares / 64.0) - r.rmse) < 1e-7);
    }
    CHECK(rows.size() == 2);
}

TEST_CASE("IQ4_NL takes ggml's nearest entry, ties up", "[formats][codebook]") {
    const code_format& f = nibble::iq4_nl::format;
    const table16 table = reference::iq4_nl_table();
    // The rule as ggml writes it, in float.
    const auto ggml = [&](float x) {
        if (x <= table[0]) return 0u;
        if (x >= table[15]) return 15u;
        unsigned a = 0;
        while (!(x < table[a + 1])) ++a;
        return x - table[a] < table[a + 1] - x ? a : a + 1;
    };
    tally t;
    const auto check = [&](float x) {
        t.check(encode(f, x) == ggml(x), [&] { return "at bits " + hex(bits_from_float(x)); });
    };
    for (unsigned i = 0; i + 1 < 16; ++i) {
        const float middle = (table[i] + table[i + 1]) / 2.0f;
        CHECK(encode(f, middle) == i + 1);
        CHECK(encode(f, std::nextafter(middle, -200.0f)) == i);
        CHECK(f.thresholds[i] == middle);
        const std::uint32_t k = reference::key_from_bits(bits_from_float(middle));
        for (std::uint32_t near = k - 64; near <= k + 64; ++near) check(reference::float_from_key(near));
    }
    for (int i = -2600; i <= 2600; ++i) check(static_cast<float>(i) / 20.0f);
    for (const float x : {1e-45f, -1e-45f, 1e30f, -1e30f, 0.0f, -0.0f}) check(x);
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 15 * 129 + 5201 + 6);
    for (unsigned c = 0; c < 16; ++c) {
        CHECK(f.value(c) == table[c]);
        CHECK(encode(f, table[c]) == c);
        CHECK(encode(f, table[c] / 64.0f * 64.0f) == c);  // the vector of the format study 7.10, scale 2^-6
    }
}

TEST_CASE("the dynamic map of double quantization", "[formats][codebook][golden]") {
    // Not a code format, but its reference serves the tests of double quantization: it must be bitsandbytes' own.
    const std::vector<float> map = reference::dynamic_map();
    const auto expected = golden::file("bitsandbytes/codebooks").read<float>("nested_quant_map");
    REQUIRE(map.size() == 256);
    REQUIRE(expected.size() == 256);
    tally t;
    double sum = 0.0;
    double squares = 0.0;
    for (std::size_t i = 0; i < 256; ++i) {
        t.check(bits_from_float(map[i]) == bits_from_float(expected[i]), [&] {
            return std::to_string(i) + ": " + hex(bits_from_float(map[i])) + ", expected " +
                   hex(bits_from_float(expected[i]));
        });
        sum += static_cast<double>(map[i]);
        squares += static_cast<double>(map[i]) * static_cast<double>(map[i]);
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 256);
    CHECK(sum == 1.0);
    CHECK(std::abs(squares - 48.59583766729017) < 1e-12);
    CHECK(bits_from_float(map[0]) == 0xbf7e3333u);
    CHECK(map[127] == 0.0f);
    CHECK(bits_from_float(map[128]) == 0x3513a3b7u);
    CHECK(map[192] == .12109375f);
    CHECK(bits_from_float(map[254]) == 0x3f7e3333u);
    CHECK(map[255] == 1.0f);
}

// --- codebooks of a program's own ---------------------------------------------------------------------------------

TEST_CASE("a codebook at compile time may be unsorted and hold a value twice", "[formats][codebook]") {
    const code_format& f = shuffled::descriptor();
    CHECK(std::string_view(f.name) == "shuffled");
    CHECK(std::string_view(f.use_when) != "");
    CHECK(f.bits == 4);
    CHECK(f.decode == nibble::decode_class::table);
    CHECK(f.unit == 0.0f);
    CHECK(f.min_value == -4.0f);
    CHECK(f.max_value == 8.0f);
    CHECK(f.zero_code == 4);
    CHECK(&shuffled::descriptor() == &f);
    check_against_reference(f, shuffled::table);
    CHECK(encode(f, 2.6f) == 2);
    CHECK(encode(f, 0.5f) == 0);  // of two equal entries the lower code, at the value itself
    CHECK(encode(f, -1e30f) == 11);
    CHECK(encode(f, 1e30f) == 8);
}

TEST_CASE("an absmax quantizer scales to the farther end of a codebook", "[formats][codebook]") {
    const code_format& f = lopsided::descriptor();
    CHECK(f.min_value == -10.0f);
    CHECK(f.max_value == 10.0f);
    CHECK(f.zero_code == 9);  // no zero: -1 and 1 are as near, a tie goes down
    check_against_reference(f, lopsided::table);
}

TEST_CASE("a codebook at run time equals the same one at compile time", "[formats][codebook]") {
    const code_format& fixed = shuffled::descriptor();
    const nibble::format_handle handle = nibble::make_codebook("learned", shuffled::table);
    const code_format& f = *handle;
    CHECK(std::string_view(f.name) == "learned");
    CHECK(f.bits == fixed.bits);
    CHECK(f.decode == fixed.decode);
    CHECK(f.min_value == fixed.min_value);
    CHECK(f.max_value == fixed.max_value);
    CHECK(f.zero_code == fixed.zero_code);
    CHECK(f.encode == fixed.encode);
    for (unsigned i = 0; i < 15; ++i) CHECK(f.thresholds[i] == fixed.thresholds[i]);
    for (unsigned i = 0; i < 16; ++i) CHECK(f.order[i] == fixed.order[i]);
    check_against_reference(f, shuffled::table);

    // The table of a built-in format, in any order, decides alike.
    const nibble::format_handle nf4 = nibble::make_codebook("nf4 again", reference::nf4_table());
    for (const float x : reference::encoder_of("nf4").edges()) CHECK(encode(*nf4, x) == encode(nibble::nf4::format, x));
}

TEST_CASE("a run-time codebook lives as long as any handle", "[formats][codebook]") {
    nibble::format_handle kept;
    {
        std::string name = "a name that is too long for a small string";
        table16 values = shuffled::table;
        const nibble::format_handle first = nibble::make_codebook(name, values);
        kept = first;
        values.fill(0.0f);
        name.assign(name.size(), 'x');
    }
    CHECK(std::string_view(kept->name) == "a name that is too long for a small string");
    check_against_reference(*kept, shuffled::table);
    const nibble::format_handle other = nibble::make_codebook("other", lopsided::table);
    CHECK(&*other != &*kept);
}

TEST_CASE("run-time codebooks of random values", "[formats][codebook]") {
    reference::random_bits random(7);
    for (int round = 0; round < 200; ++round) {
        table16 values{};
        for (float& v : values) {
            const std::uint32_t u = random();
            // Now a wide range, now a narrow one with repeated values.
            if (round % 2 == 0) v = float_from_bits((u & 0x80ffffffu) | ((0x30u + (random() & 31u)) << 24));
            else v = static_cast<float>(static_cast<int>(u % 9) - 4) * 0.25f;
        }
        values[round % 16 == 0 ? 3 : 5] = 1.0f;
        check_against_reference(*nibble::make_codebook("random", values), values);
    }
}

TEST_CASE("codebooks at the ends of the float range", "[formats][codebook]") {
    const float largest = 3.4028234663852886e38f;
    table16 values{};
    for (unsigned i = 0; i < 16; ++i) values[i] = largest * (static_cast<float>(static_cast<int>(i) - 8) / 8.0f);
    check_against_reference(*nibble::make_codebook("huge", values), values);  // no midpoint overflows
    for (unsigned i = 0; i < 16; ++i) values[i] = float_from_bits(4 * i);
    check_against_reference(*nibble::make_codebook("subnormal", values), values);
}

TEST_CASE("entries that are neighbouring floats keep codes of their own", "[formats][codebook]") {
    // Their midpoint is no float: rounded to even it can land on the upper entry, which must still encode to itself.
    for (const std::uint32_t first : {0x3f000001u, 0x3f000000u, 1u, 2u, 0x00800001u}) {
        table16 values{};
        for (unsigned i = 0; i < 16; ++i) values[i] = float_from_bits(first + i);
        CAPTURE(first);
        check_against_reference(*nibble::make_codebook("neighbours", values), values);
        for (float& v : values) v = -v;
        check_against_reference(*nibble::make_codebook("neighbours", values), values);
    }
    table16 values = shuffled::table;
    values[3] = float_from_bits(0x80000001u);
    check_against_reference(*nibble::make_codebook("around zero", values), values);
    CHECK(nibble::make_codebook("around zero", values)->zero_code == 4);
}

TEST_CASE("a codebook with an entry that is not finite is refused by its index", "[formats][codebook]") {
    const float inf = std::numeric_limits<float>::infinity();
    tally t;
    for (unsigned i = 0; i < 16; ++i)
        for (const float bad : {inf, -inf, std::numeric_limits<float>::quiet_NaN(), float_from_bits(0x7f800001u)}) {
            table16 values = shuffled::table;
            values[i] = bad;
            const refusal r = refused("mine", values);
            t.check(r.code == nibble::errc::non_finite, [&] { return "code of entry " + std::to_string(i); });
            t.check(r.message.find("entry " + std::to_string(i) + " ") != std::string::npos &&
                        r.message.find("make_codebook") != std::string::npos &&
                        r.message.find("mine") != std::string::npos,
                    [&] { return "message: " + r.message; });
        }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 128);
    // Of several the first.
    table16 values = shuffled::table;
    values[12] = inf;
    values[5] = inf;
    CHECK(refused("mine", values).message.find("entry 5 ") != std::string::npos);
}

TEST_CASE("a codebook without a value but zero is refused", "[formats][codebook]") {
    table16 values{};
    refusal r = refused("nothing", values);
    CHECK(r.code == nibble::errc::invalid_argument);
    CHECK(r.message.find("nothing") != std::string::npos);
    CHECK(r.message.find("zero") != std::string::npos);
    values[3] = -0.0f;
    r = refused("nothing", values);
    CHECK(r.code == nibble::errc::invalid_argument);
    values[3] = float_from_bits(1);  // a subnormal value is enough
    r = refused("nearly nothing", values);
    CHECK(r.code == nibble::errc::ok);
    CHECK(refused("fine", shuffled::table).code == nibble::errc::ok);
}
