// Encoders in a hostile floating-point environment: subnormals flushed to zero, and other rounding modes.
//
// Small floats, halves and E8M0 are encoded on integers: nothing that a host program sets can change a code. Codebooks
// compare floats and integers round with the float adder, so subnormal inputs (both) and rounding modes (integers) are
// the business of the functions that call them, which pin the environment; here they get the inputs they must survive.
#include <nibble/formats/list.hpp>

#include <cfenv>
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include "support/catch.hpp"
#include "support/reference_formats.hpp"

using nibble::code_format;
using reference::bits_from_float;
using reference::float_from_bits;
using reference::hex;
using reference::tally;

namespace {

#if defined(__SSE__)
constexpr bool can_flush = true;
unsigned control_register() { return _mm_getcsr(); }
void set_control_register(unsigned value) { _mm_setcsr(value); }
constexpr unsigned flush_bits = 0x8040u;  // FTZ and DAZ
#elif defined(__aarch64__)
constexpr bool can_flush = true;
std::uint64_t control_register() {
    std::uint64_t value;
    __asm__ volatile("mrs %0, fpcr" : "=r"(value));
    return value;
}
void set_control_register(std::uint64_t value) { __asm__ volatile("msr fpcr, %0" : : "r"(value)); }
constexpr std::uint64_t flush_bits = std::uint64_t{1} << 24;  // FZ: inputs and results
#else
constexpr bool can_flush = false;
unsigned control_register() { return 0; }
void set_control_register(unsigned) {}
constexpr unsigned flush_bits = 0;
#endif

struct hostile {
    const char* name;
    int rounding;
    bool flush;
};

const std::vector<hostile> environments = {
    {"flush", FE_TONEAREST, true},          {"up", FE_UPWARD, false},          {"down", FE_DOWNWARD, false},
    {"toward zero", FE_TOWARDZERO, false},  {"flush and up", FE_UPWARD, true}, {"flush and down", FE_DOWNWARD, true},
};

// Sets an environment, restores what was there. No assertion of the test framework runs inside.
class in_environment {
public:
    explicit in_environment(const hostile& h) {
        std::fegetenv(&before_);
        std::fesetround(h.rounding);
        if (h.flush) set_control_register(control_register() | flush_bits);
    }
    ~in_environment() { std::fesetenv(&before_); }
    in_environment(const in_environment&) = delete;
    in_environment& operator=(const in_environment&) = delete;

private:
    std::fenv_t before_;
};

bool is_subnormal(float x) {
    const std::uint32_t magnitude = bits_from_float(x) & 0x7fffffffu;
    return magnitude != 0 && magnitude < 0x00800000u;
}

// All edges of a format, every 2^19th bit pattern, and subnormals.
std::vector<float> inputs_for(const reference::staircase& expected) {
    std::vector<float> x = expected.edges();
    for (std::uint64_t u = 0; u < (std::uint64_t{1} << 32); u += 524287)
        if (!reference::is_nan_bits(static_cast<std::uint32_t>(u)))
            x.push_back(float_from_bits(static_cast<std::uint32_t>(u)));
    for (std::uint32_t u = 1; u < 0x00800000u; u = u * 3 + 1)
        for (const std::uint32_t sign : {0u, 0x80000000u}) x.push_back(float_from_bits(u | sign));
    return x;
}

// Encodes everything inside the environment; compares outside.
template <class Encode>
void check(tally& t, const hostile& h, const char* name, const std::vector<float>& inputs,
           const reference::staircase& expected, Encode encode) {
    std::vector<unsigned> codes(inputs.size());
    {
        const in_environment here(h);
        for (std::size_t i = 0; i < inputs.size(); ++i) codes[i] = encode(inputs[i]);
    }
    for (std::size_t i = 0; i < inputs.size(); ++i)
        t.check(codes[i] == expected(inputs[i]), [&] {
            return std::string(name) + ", " + h.name + ", bits " + hex(bits_from_float(inputs[i])) + ": code " +
                   std::to_string(codes[i]) + ", expected " + std::to_string(expected(inputs[i]));
        });
}

}  // namespace

TEST_CASE("the hostile environments are real", "[formats][environment]") {
    for (const hostile& h : environments) {
        CAPTURE(h.name);
        volatile float one = 1.0f;
        volatile float tiny = 0x1p-30f;
        volatile float minus_one = -1.0f;
        volatile float subnormal = 0x1p-130f;
        volatile float up = 0.0f;
        volatile float toward_zero = 0.0f;
        volatile float kept = 0.0f;
        {
            const in_environment here(h);
            up = one + tiny;
            toward_zero = minus_one + tiny;
            kept = subnormal * one;
        }
        CHECK((up > 1.0f) == (h.rounding == FE_UPWARD));
        CHECK((toward_zero > -1.0f) == (h.rounding == FE_UPWARD || h.rounding == FE_TOWARDZERO));
        CHECK((kept == 0.0f) == (h.flush && can_flush));
        CHECK(std::fegetround() == FE_TONEAREST);
        volatile float after = subnormal * one;
        CHECK(after == subnormal);
    }
    CHECK(environments.size() == 6);
}

TEST_CASE("small floats, halves and E8M0 encode alike in every environment", "[formats][environment]") {
    tally t;
    std::uint64_t expected_cases = 0;
    for (const hostile& h : environments) {
        for (const reference::small_float& definition : reference::small_floats) {
            const code_format& f = *nibble::find_format(definition.name);
            const reference::staircase expected = definition.encoder(true);
            const std::vector<float> inputs = inputs_for(expected);
            check(t, h, f.name, inputs, expected, [&f](float x) { return f.encode(f, x); });
            expected_cases += inputs.size();
        }
        const auto ieee = [&](const char* name, auto encode) {
            const reference::staircase expected = reference::find_small_float(name)->encoder(false);
            const std::vector<float> inputs = inputs_for(expected);
            check(t, h, name, inputs, expected, encode);
            expected_cases += inputs.size();
        };
        ieee("fp8_e4m3", [](float x) { return nibble::fp8_e4m3::encode_ieee(x); });
        ieee("fp8_e5m2", [](float x) { return nibble::fp8_e5m2::encode_ieee(x); });
        ieee("fp8_e4m3fnuz", [](float x) { return nibble::fp8_e4m3fnuz::encode_ieee(x); });
        ieee("fp8_e5m2fnuz", [](float x) { return nibble::fp8_e5m2fnuz::encode_ieee(x); });
        ieee("fp16", [](float x) { return unsigned{nibble::float_to_fp16(x)}; });
        ieee("bf16", [](float x) { return unsigned{nibble::float_to_bf16(x)}; });

        const reference::staircase scale = reference::e8m0_encoder();
        const std::vector<float> inputs = inputs_for(scale);
        check(t, h, "e8m0", inputs, scale, [](float x) { return nibble::e8m0::encode(x); });
        expected_cases += inputs.size();
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == expected_cases);
    CHECK(t.cases() > 6 * 16 * 8000);
}

TEST_CASE("every format decodes alike in every environment", "[formats][environment]") {
    tally t;
    for (const hostile& h : environments) {
        for (const code_format* f : nibble::formats()) {
            std::vector<std::uint32_t> bits(f->code_count());
            {
                const in_environment here(h);
                for (unsigned c = 0; c < f->code_count(); ++c) bits[c] = bits_from_float(f->value(c));
            }
            for (unsigned c = 0; c < f->code_count(); ++c)
                t.check(bits[c] == bits_from_float(f->value(c)),
                        [&] { return std::string(f->name) + ", " + h.name + ", code " + std::to_string(c); });
        }
        // The functions too, which compute where the descriptors look up.
        std::vector<std::uint32_t> scales(256);
        std::vector<std::uint32_t> e5m2(256);
        {
            const in_environment here(h);
            for (unsigned c = 0; c < 256; ++c) {
                scales[c] = bits_from_float(nibble::e8m0::decode(c));
                e5m2[c] = bits_from_float(nibble::fp8_e5m2fnuz::decode(c));
            }
        }
        for (unsigned c = 0; c < 256; ++c) {
            t.check(scales[c] == bits_from_float(nibble::e8m0::decode(c)), [&] { return "e8m0 " + std::to_string(c); });
            t.check(e5m2[c] == bits_from_float(nibble::fp8_e5m2fnuz::format.value(c)),
                    [&] { return "fp8_e5m2fnuz " + std::to_string(c); });
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    std::uint64_t codes = 2 * 256;
    for (const code_format* f : nibble::formats()) codes += f->code_count();
    CHECK(t.cases() == 6 * codes);
}

TEST_CASE("codebooks encode alike in every environment, subnormal inputs apart", "[formats][environment]") {
    tally t;
    for (const hostile& h : environments)
        for (const char* name : {"nf4", "fp4", "af4", "iq4_nl"}) {
            const code_format& f = *nibble::find_format(name);
            const reference::staircase expected = reference::encoder_of(name);
            std::vector<float> inputs = inputs_for(expected);
            std::vector<float> subnormal;
            for (const float x : inputs)
                if (is_subnormal(x)) subnormal.push_back(x);
            if (h.flush) std::erase_if(inputs, is_subnormal);
            check(t, h, name, inputs, expected, [&f](float x) { return f.encode(f, x); });

            // A flushed input is a zero to FP4, which has two codes for it: the value does not change.
            std::vector<unsigned> codes;
            {
                const in_environment here(h);
                for (const float x : subnormal) codes.push_back(f.encode(f, x));
            }
            for (std::size_t i = 0; i < subnormal.size(); ++i)
                t.check(f.value(codes[i]) == f.value(expected(subnormal[i])), [&] {
                    return std::string(name) + ", " + h.name + ", bits " + hex(bits_from_float(subnormal[i]));
                });
        }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() > 6 * 4 * 8000);
}

TEST_CASE("integers encode alike when subnormals are flushed", "[formats][environment]") {
    tally t;
    for (const hostile& h : environments) {
        if (h.rounding != FE_TONEAREST) continue;
        for (const reference::integer_format& definition : reference::integer_formats) {
            const code_format& f = *nibble::find_format(definition.name);
            const reference::staircase expected = reference::encoder_of(f.name);
            std::vector<float> inputs = inputs_for(expected);
            // binary alone asks a subnormal for its sign.
            if (definition.name == "binary") std::erase_if(inputs, is_subnormal);
            check(t, h, f.name, inputs, expected, [&f](float x) { return f.encode(f, x); });
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() > 8 * 8000);
}

TEST_CASE("a codebook made in a hostile environment is the same codebook", "[formats][environment]") {
    tally t;
    for (const hostile& h : environments) {
        nibble::format_handle made;
        {
            const in_environment here(h);
            made = nibble::make_codebook("nf4", reference::nf4_table());
        }
        for (unsigned i = 0; i < 15; ++i)
            t.check(made->thresholds[i] == nibble::nf4::format.thresholds[i],
                    [&] { return std::string(h.name) + ": threshold " + std::to_string(i); });
        for (unsigned i = 0; i < 16; ++i)
            t.check(made->order[i] == nibble::nf4::format.order[i],
                    [&] { return std::string(h.name) + ": order " + std::to_string(i); });
        t.check(made->zero_code == 7, [&] { return std::string(h.name) + ": zero"; });
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 6 * 32);

    // Entries that a flushing host takes for zeros: -16, 15, -14, 13, ... times 2^-149.
    reference::table16 subnormal{};
    for (unsigned i = 0; i < 16; ++i) subnormal[i] = float_from_bits((16 - i) | (i % 2 == 0 ? 0x80000000u : 0u));
    const nibble::format_handle expected = nibble::make_codebook("subnormal", subnormal);
    tally kept;
    for (const hostile& h : environments) {
        nibble::format_handle made;
        {
            const in_environment here(h);
            made = nibble::make_codebook("subnormal", subnormal);
        }
        for (unsigned i = 0; i < 15; ++i)
            kept.check(bits_from_float(made->thresholds[i]) == bits_from_float(expected->thresholds[i]),
                       [&] { return std::string(h.name) + ": threshold " + std::to_string(i); });
        for (unsigned i = 0; i < 16; ++i)
            kept.check(made->order[i] == expected->order[i],
                       [&] { return std::string(h.name) + ": order " + std::to_string(i); });
        kept.check(made->zero_code == expected->zero_code && made->max_value == expected->max_value &&
                       made->min_value == expected->min_value,
                   [&] { return std::string(h.name) + ": zero or range"; });
    }
    INFO(kept.report());
    CHECK(kept.failures() == 0);
    CHECK(kept.cases() == 6 * 32);
}
