// The list of code formats: names, look-up, what every descriptor promises, and the value of every code.
#include <nibble/formats/list.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "support/catch.hpp"
#include "support/reference_formats.hpp"

using nibble::code_format;
using reference::tally;

// Every registered type names a format, and its descriptor is a constant expression.
#define NIBBLE_CHECK(name)                                 \
    static_assert(nibble::code_format_type<nibble::name>); \
    static_assert(nibble::name::descriptor().bits >= 1);
NIBBLE_FORMATS(NIBBLE_CHECK)
#undef NIBBLE_CHECK
static_assert(!nibble::code_format_type<nibble::e8m0>, "a scale, not a code format");
static_assert(!nibble::code_format_type<float>);

namespace {

// The facts of each format as its definition gives them.
struct facts {
    std::string_view name;
    int bits;
    nibble::decode_class decode;
    float unit;
    float max_value;
    float min_value;
    unsigned zero_code;
};

constexpr auto integer = nibble::decode_class::integer;
constexpr auto table = nibble::decode_class::table;
constexpr auto wide = nibble::decode_class::wide;

const std::vector<facts> known = {
    {"int8", 8, integer, 1.0f, 127.0f, -127.0f, 128},
    {"int6", 6, integer, 1.0f, 31.0f, -31.0f, 32},
    {"int5", 5, integer, 1.0f, 15.0f, -15.0f, 16},
    {"int4", 4, integer, 1.0f, 7.0f, -7.0f, 8},
    {"int3", 3, integer, 1.0f, 3.0f, -3.0f, 4},
    {"int2", 2, integer, 1.0f, 1.0f, -1.0f, 2},
    {"binary", 1, integer, 1.0f, 1.0f, -1.0f, 1},
    {"ternary", 2, integer, 1.0f, 1.0f, -1.0f, 1},
    {"nf4", 4, table, 0.0f, 1.0f, -1.0f, 7},
    {"fp4", 4, table, 0.0f, 1.0f, -1.0f, 0},
    {"af4", 4, table, 0.0f, 1.0f, -1.0f, 8},
    {"iq4_nl", 4, table, 1.0f, 127.0f, -127.0f, 8},  // no zero in the table: 1 is nearest
    {"fp4_e2m1", 4, table, 0.5f, 6.0f, -6.0f, 0},
    {"fp6_e2m3", 6, table, 0.0f, 7.5f, -7.5f, 0},
    {"fp6_e3m2", 6, table, 0.0f, 28.0f, -28.0f, 0},
    {"fp8_e4m3", 8, table, 0.0f, 448.0f, -448.0f, 0},
    {"fp8_e5m2", 8, table, 0.0f, 57344.0f, -57344.0f, 0},
    {"fp8_e4m3fnuz", 8, table, 0.0f, 240.0f, -240.0f, 0},
    {"fp8_e5m2fnuz", 8, table, 0.0f, 57344.0f, -57344.0f, 0},
    {"bf16", 16, wide, 0.0f, 3.3895313892515355e38f, -3.3895313892515355e38f, 0},
    {"fp16", 16, wide, 0.0f, 65504.0f, -65504.0f, 0},
};

}  // namespace

TEST_CASE("the list holds every format once, under the name of its type", "[formats][list]") {
    std::vector<std::string> names;
#define NIBBLE_NAME(name) names.emplace_back(#name);
    NIBBLE_FORMATS(NIBBLE_NAME)
#undef NIBBLE_NAME
    REQUIRE(names.size() == 21);
    REQUIRE(nibble::formats().size() == names.size());
    REQUIRE(known.size() == names.size());

    tally t;
    std::set<std::string_view> distinct;
    std::set<std::string_view> advice;
    for (std::size_t i = 0; i < names.size(); ++i) {
        const code_format& f = *nibble::formats()[i];
        t.check(f.name == names[i], [&] { return names[i] + " is called " + f.name; });
        t.check(known[i].name == names[i], [&] { return names[i] + " is unknown to this test"; });
        t.check(nibble::find_format(names[i]) == &f, [&] { return names[i] + " is not found"; });
        const std::string_view use_when = f.use_when;
        t.check(use_when.size() >= 10 && use_when.size() <= 100 && use_when.find('\n') == std::string_view::npos,
                [&] { return names[i] + ": use_when is not one line: '" + f.use_when + "'"; });
        distinct.insert(f.name);
        advice.insert(use_when);
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 84);
    CHECK(distinct.size() == 21);
    CHECK(advice.size() == 21);

#define NIBBLE_SAME(name) CHECK(nibble::find_format(#name) == &nibble::name::descriptor());
    NIBBLE_FORMATS(NIBBLE_SAME)
#undef NIBBLE_SAME
}

TEST_CASE("a name that is not on the list is not found", "[formats][list]") {
    for (const char* name :
         {"", "int", "int4 ", " int4", "INT4", "int44", "fp8", "fp8_e4m3fn", "fp8_e4m3fnu", "e8m0", "q4_0"}) {
        CAPTURE(name);
        CHECK(nibble::find_format(name) == nullptr);
    }
    // A name is compared whole, also where it is a part of a longer text.
    const std::string_view text = "fp8_e4m3fnuz";
    REQUIRE(nibble::find_format(text.substr(0, 8)) != nullptr);
    CHECK(nibble::find_format(text.substr(0, 8)) == &nibble::fp8_e4m3::format);
    CHECK(nibble::find_format(text) == &nibble::fp8_e4m3fnuz::format);
}

TEST_CASE("descriptors state the facts of their formats", "[formats][list]") {
    REQUIRE(nibble::formats().size() == known.size());
    for (std::size_t i = 0; i < known.size(); ++i) {
        const code_format& f = *nibble::formats()[i];
        const facts& k = known[i];
        CAPTURE(k.name);
        REQUIRE(f.encode != nullptr);
        CHECK(f.bits == k.bits);
        CHECK(f.code_count() == (1u << k.bits));
        CHECK(f.decode == k.decode);
        CHECK(f.unit == k.unit);
        CHECK(f.integral() == (k.unit > 0.0f));
        CHECK(f.max_value == k.max_value);
        CHECK(f.min_value == k.min_value);
        CHECK(f.zero_code == k.zero_code);
        const auto* small = reference::find_small_float(k.name);
        CHECK(f.mantissa_bits == (small != nullptr && k.decode == table ? static_cast<int>(small->mantissa_bits) : 0));
        CHECK((f.values == nullptr) == (k.decode == wide));
        CHECK((f.decode_wide != nullptr) == (k.decode == wide));
        const bool is_codebook = k.decode == table && small == nullptr;
        CHECK((f.thresholds != nullptr) == is_codebook);
        CHECK((f.order != nullptr) == is_codebook);
    }
}

TEST_CASE("every code decodes to the value of its definition", "[formats][list]") {
    std::uint64_t codes = 0;
    for (const code_format* f : nibble::formats()) {
        const std::vector<double> expected = reference::values_of(f->name);
        REQUIRE(expected.size() == f->code_count());
        tally t;
        for (unsigned c = 0; c < f->code_count(); ++c) {
            const float v = f->value(c);
            const std::uint32_t u = reference::bits_from_float(v);
            const bool same = static_cast<double>(v) == expected[c] && (u >> 31 != 0) == std::signbit(expected[c]);
            const bool good = std::isnan(expected[c]) ? reference::is_nan_bits(u) : same;
            t.check(good, [&] { return "code " + std::to_string(c) + " decodes to bits " + reference::hex(u); });
        }
        INFO(f->name << ": " << t.report());
        CHECK(t.failures() == 0);
        codes += t.cases();
    }
    CHECK(codes == 256 + 64 + 32 + 16 + 8 + 4 + 2 + 4 + 4 * 16 + 16 + 64 + 64 + 4 * 256 + 2 * 65536);
}

TEST_CASE("min_value and max_value bound what encode returns", "[formats][list]") {
    for (const code_format* f : nibble::formats()) {
        CAPTURE(f->name);
        const float largest = 3.4028234663852886e38f;
        const float top = f->value(f->encode(*f, largest));
        const float bottom = f->value(f->encode(*f, -largest));
        CHECK(bottom == f->min_value);
        // A codebook that reaches farther below zero than above is scaled by its lower end.
        CHECK((std::max)(top, -bottom) == f->max_value);
        CHECK(f->encode(*f, 0.0f) == f->zero_code);
        CHECK(f->encode(*f, -0.0f) <= f->code_count() - 1);
    }
}

TEST_CASE("a format with a unit has small integers for values", "[formats][list]") {
    tally t;
    for (const code_format* f : nibble::formats()) {
        if (!f->integral()) continue;
        for (unsigned c = 0; c < f->code_count(); ++c) {
            const double q = static_cast<double>(f->value(c)) / static_cast<double>(f->unit);
            t.check(q == std::floor(q) && std::abs(q) <= 255.0,
                    [&] { return std::string(f->name) + " code " + std::to_string(c); });
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 256 + 64 + 32 + 16 + 8 + 4 + 2 + 4 + 16 + 16);
}

TEST_CASE("integer formats are affine in the code, and ordered codebooks are in order", "[formats][list]") {
    tally t;
    for (const code_format* f : nibble::formats()) {
        if (f->decode == integer) {
            const float step = f->value(1) - f->value(0);
            for (unsigned c = 0; c < f->code_count(); ++c)
                t.check(f->value(c) == step * static_cast<float>(c) + f->value(0),
                        [&] { return std::string(f->name) + " code " + std::to_string(c); });
        }
        if (f->order == nullptr) continue;
        std::set<unsigned> codes(f->order, f->order + 16);
        t.check(codes.size() == 16 && *codes.rbegin() == 15,
                [&] { return std::string(f->name) + ": order is no permutation"; });
        for (int i = 0; i < 15; ++i) {
            const float low = f->values[f->order[i]];
            const float high = f->values[f->order[i + 1]];
            t.check(low < high || (low == high && f->order[i] < f->order[i + 1]),
                    [&] { return std::string(f->name) + ": order is wrong at " + std::to_string(i); });
            t.check(low <= f->thresholds[i] && f->thresholds[i] <= high,
                    [&] { return std::string(f->name) + ": threshold " + std::to_string(i) + " is outside"; });
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 256 + 64 + 32 + 16 + 8 + 4 + 2 + 4 + 4 * 31);
}

TEST_CASE("a handle refers to a built-in format without owning it", "[formats][list]") {
    const nibble::format_handle handle = nibble::int4::descriptor();
    CHECK(&*handle == &nibble::int4::descriptor());
    CHECK(std::string(handle->name) == "int4");
    const nibble::format_handle copy = handle;
    CHECK(&*copy == &*handle);
}
