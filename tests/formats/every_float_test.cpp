// Every float into every encoder: all 2^32 when NIBBLE_TEST_FULL=1, else every 65,537th and all edges.
//
// The floats are walked in order. Between two edges of the reference the code must not change, so that the walk costs
// what the encoder costs.
#include <nibble/formats/list.hpp>

#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "support/catch.hpp"
#include "support/reference_formats.hpp"

using reference::bits_from_key;
using reference::float_from_bits;
using reference::float_from_key;
using reference::hex;
using reference::staircase;
using reference::tally;

namespace {

bool full() {
    const char* wanted = std::getenv("NIBBLE_TEST_FULL");
    return wanted != nullptr && std::string_view(wanted) == "1";
}

constexpr std::uint64_t all_floats = std::uint64_t{1} << 32;
constexpr std::uint64_t all_nans = 2 * ((std::uint64_t{1} << 23) - 1);

std::string mismatch(std::uint32_t bits, unsigned code, unsigned expected) {
    return "bits " + hex(bits) + " give code " + hex(code) + ", expected " + hex(expected);
}

// Keys first .. last must all have the same code. The loop counts only: it runs at the encoder's speed.
template <class Encode>
void check_run(tally& t, std::uint32_t first, std::uint32_t last, unsigned code, Encode encode) {
    std::uint32_t wrong = 0;
    for (std::uint64_t k = first; k <= last; ++k)
        wrong += encode(float_from_key(static_cast<std::uint32_t>(k))) != code ? 1u : 0u;
    if (wrong == 0) return t.add_cases(std::uint64_t{last} - first + 1);
    for (std::uint64_t k = first; k <= last; ++k) {
        const auto key = static_cast<std::uint32_t>(k);
        const unsigned given = encode(float_from_key(key));
        t.check(given == code, [&] { return mismatch(bits_from_key(key), given, code); });
    }
}

// Floats that are NaN have the code code_of_nan(bits).
template <class Encode, class CodeOfNan>
void check_nans(tally& t, std::uint32_t step, Encode encode, CodeOfNan code_of_nan) {
    for (const std::uint32_t sign : {0u, 0x80000000u})
        for (std::uint32_t u = 0x7f800001u; u < 0x80000000u; u += step) {
            const unsigned given = encode(float_from_bits(u | sign));
            const unsigned expected = code_of_nan(u | sign);
            t.check(given == expected, [&] { return mismatch(u | sign, given, expected); });
        }
}

template <class Encode>
void check_numbers(tally& t, const staircase& expected, Encode encode) {
    if (full()) {
        for (std::size_t i = 0; i < expected.steps().size(); ++i)
            check_run(t, expected.steps()[i].first, expected.last_of(i), expected.steps()[i].code, encode);
        return;
    }
    const auto check = [&](float x) {
        const unsigned given = encode(x);
        t.check(given == expected(x), [&] { return mismatch(reference::bits_from_float(x), given, expected(x)); });
    };
    for (std::uint64_t u = 0; u < all_floats; u += 65537) {
        const auto bits = static_cast<std::uint32_t>(u);
        if (!reference::is_nan_bits(bits)) check(float_from_bits(bits));
    }
    for (const float x : expected.edges()) check(x);
}

// What a sweep has to have looked at.
std::uint64_t numbers_to_check(const staircase& expected) {
    if (full()) return all_floats - all_nans;
    std::uint64_t sampled = 0;
    for (std::uint64_t u = 0; u < all_floats; u += 65537)
        sampled += reference::is_nan_bits(static_cast<std::uint32_t>(u)) ? 0u : 1u;
    return sampled + expected.edges().size();
}
std::uint64_t nans_to_check() { return full() ? all_nans : 2 * 128; }
std::uint32_t nan_step() { return full() ? 1u : 65537u; }

template <class Encode, class CodeOfNan>
void sweep(const char* name, const staircase& expected, Encode encode, CodeOfNan code_of_nan) {
    tally t;
    check_numbers(t, expected, encode);
    check_nans(t, nan_step(), encode, code_of_nan);
    INFO(name << ": " << t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == numbers_to_check(expected) + nans_to_check());
}

// FP8: the saturating and the IEEE encoder.
template <class Format>
void sweep_fp8(const char* name) {
    const reference::small_float& f = *reference::find_small_float(name);
    const auto code_of_nan = [&f](std::uint32_t u) { return f.code_of_nan((u >> 31) != 0); };
    sweep(name, f.encoder(true), [](float x) { return Format::encode(x); }, code_of_nan);
    sweep(name, f.encoder(false), [](float x) { return Format::encode_ieee(x); }, code_of_nan);
}

template <class Format>
void sweep_fp6_fp4(const char* name) {
    const reference::small_float& f = *reference::find_small_float(name);
    sweep(name, f.encoder(true), [](float x) { return Format::encode(x); },
          [&f](std::uint32_t u) { return f.code_of_nan((u >> 31) != 0); });
}

// Integers and codebooks are for finite values and say nothing of NaN.
template <class Format>
void sweep_numbers(const char* name) {
    const staircase expected = reference::encoder_of(name);
    tally t;
    check_numbers(t, expected, [](float x) {
        constexpr const nibble::code_format& f = Format::format;
        return f.encode(f, x);
    });
    INFO(name << ": " << t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == numbers_to_check(expected));
}

}  // namespace

TEST_CASE("every float to fp8_e4m3", "[formats][every_float]") { sweep_fp8<nibble::fp8_e4m3>("fp8_e4m3"); }
TEST_CASE("every float to fp8_e5m2", "[formats][every_float]") { sweep_fp8<nibble::fp8_e5m2>("fp8_e5m2"); }
TEST_CASE("every float to fp8_e4m3fnuz", "[formats][every_float]") { sweep_fp8<nibble::fp8_e4m3fnuz>("fp8_e4m3fnuz"); }
TEST_CASE("every float to fp8_e5m2fnuz", "[formats][every_float]") { sweep_fp8<nibble::fp8_e5m2fnuz>("fp8_e5m2fnuz"); }
TEST_CASE("every float to fp6_e2m3", "[formats][every_float]") { sweep_fp6_fp4<nibble::fp6_e2m3>("fp6_e2m3"); }
TEST_CASE("every float to fp6_e3m2", "[formats][every_float]") { sweep_fp6_fp4<nibble::fp6_e3m2>("fp6_e3m2"); }
TEST_CASE("every float to fp4_e2m1", "[formats][every_float]") { sweep_fp6_fp4<nibble::fp4_e2m1>("fp4_e2m1"); }

TEST_CASE("every float to fp16", "[formats][every_float]") {
    const reference::small_float& f = *reference::find_small_float("fp16");
    const auto code_of_nan = [](std::uint32_t u) { return ((u >> 16) & 0x8000u) | 0x7e00u | ((u >> 13) & 0x3ffu); };
    sweep("fp16", f.encoder(false), [](float x) { return unsigned{nibble::float_to_fp16(x)}; }, code_of_nan);
    sweep("fp16, saturating", f.encoder(true),
          [](float x) { return nibble::fp16::format.encode(nibble::fp16::format, x); }, code_of_nan);
}

TEST_CASE("every float to bf16", "[formats][every_float]") {
    const reference::small_float& f = *reference::find_small_float("bf16");
    const auto code_of_nan = [](std::uint32_t u) { return (u >> 16) | 0x40u; };
    sweep("bf16", f.encoder(false), [](float x) { return unsigned{nibble::float_to_bf16(x)}; }, code_of_nan);
    sweep("bf16, saturating", f.encoder(true),
          [](float x) { return nibble::bf16::format.encode(nibble::bf16::format, x); }, code_of_nan);
}

TEST_CASE("every float to e8m0", "[formats][every_float]") {
    sweep("e8m0", reference::e8m0_encoder(), [](float x) { return nibble::e8m0::encode(x); },
          [](std::uint32_t) { return 255u; });
}

TEST_CASE("every number to a codebook", "[formats][every_float]") {
    sweep_numbers<nibble::nf4>("nf4");
    sweep_numbers<nibble::fp4>("fp4");
    sweep_numbers<nibble::af4>("af4");
    sweep_numbers<nibble::iq4_nl>("iq4_nl");
}

TEST_CASE("every number to an integer", "[formats][every_float]") {
    sweep_numbers<nibble::int8>("int8");
    sweep_numbers<nibble::int6>("int6");
    sweep_numbers<nibble::int5>("int5");
    sweep_numbers<nibble::int4>("int4");
    sweep_numbers<nibble::int3>("int3");
    sweep_numbers<nibble::int2>("int2");
    sweep_numbers<nibble::binary>("binary");
    sweep_numbers<nibble::ternary>("ternary");
}
