// Code formats as the kernels of quantize() and dequantize() see them.
#pragma once

#include "../formats/list.hpp"
#include "../quantizers/quantizer.hpp"
#include "dispatch.hpp"

namespace nibble::inline NIBBLE_ABI::detail {

/// The neighbour of x towards -Inf; x is finite and not zero.
[[nodiscard]] constexpr float next_below(float x) noexcept {
    return float_of((bits_of(x) >> 31) != 0 ? bits_of(x) + 1 : bits_of(x) - 1);
}

template <class F>
[[nodiscard]] bool describe_minifloat(const code_format& f, encoder& e) noexcept {
    if (f.encode != &F::encode_saturating) return false;
    e.rule = rounding_rule::minifloat;
    e.bits = F::bits;
    e.mantissa_bits = F::mantissa_width;
    e.least_exponent = 128 - F::bias;
    e.minus_zero = F::special != special_codes::fnuz;
    e.max_value = F::decode(F::max_code);
    return true;
}

template <class F>
[[nodiscard]] bool describe_minifloat(const code_format& f, decoder& d) noexcept {
    if (f.values != F::values.data()) return false;
    constexpr int shift = 7 - F::mantissa_width;
    constexpr unsigned one = static_cast<unsigned>(127 - F::bias) << 7;
    // The bias must not carry from the low byte into the high one; of ours, e5m2fnuz does that.
    constexpr bool separable = F::mantissa_width == 3 || one % 256 == 0;
    if (!separable) return true;
    d.is_minifloat = true;
    d.high_mask = ((1 << (F::bits - 1)) - 1) >> 3;
    for (unsigned i = 0; i < 16; ++i) {
        d.low[i] = static_cast<std::uint8_t>((i << shift) + one);
        d.high[i] = static_cast<std::uint8_t>(((i << 3 << shift) + one) >> 8);
        const unsigned start = bits_of(F::decode(i % 8)) >> 16;
        d.low_start[i] = static_cast<std::uint8_t>(start);
        d.high_start[i] = static_cast<std::uint8_t>(start >> 8);
    }
    constexpr bool fnuz = F::special == special_codes::fnuz;
    d.special_add = fnuz ? static_cast<int>(F::last) : 0;
    d.special_mask = fnuz ? static_cast<int>(F::sign_bit | F::last) : static_cast<int>(F::last);
    d.special_above = fnuz ? d.special_mask - 1 : static_cast<int>(F::max_code);
    return true;
}

template <class Codec>
[[nodiscard]] bool describe_minifloat(const code_format& f, Codec& c) noexcept {
    return describe_minifloat<fp8_e4m3>(f, c) || describe_minifloat<fp8_e5m2>(f, c) || describe_minifloat<fp8_e4m3fnuz>(f, c) ||
           describe_minifloat<fp8_e5m2fnuz>(f, c) || describe_minifloat<fp6_e2m3>(f, c) || describe_minifloat<fp6_e3m2>(f, c) ||
           describe_minifloat<fp4_e2m1>(f, c);
}

NIBBLE_FP_BEGIN

/// How the kernels do what encode_weight does for a format of at most 8 bits; false if they cannot.
[[nodiscard]] inline bool make_encoder(const code_format& f, offset_kind kind, encoder& e) noexcept {
    e = {};
    e.highest = static_cast<int>(f.code_count()) - 1;
    if (kind != offset_kind::none) {
        e.zero_is_offset = kind == offset_kind::zero_point;
        if (kind == offset_kind::float_zero) e.weight = scaled_weight::shifted;
        if (kind == offset_kind::minimum) e.weight = scaled_weight::difference;
        return true;
    }
    if (f.encode == &encode_integer) {
        e.zero = static_cast<int>(f.zero_code);
        e.lowest = e.zero + static_cast<int>(f.min_value);
        e.highest = e.zero + static_cast<int>(f.max_value);
        return static_cast<float>(e.lowest - e.zero) == f.min_value && static_cast<float>(e.highest - e.zero) == f.max_value &&
               e.zero <= 255 && e.lowest >= 0 && e.lowest <= e.highest && e.highest <= 255;
    }
    const bool upper = f.encode == &encode_iq4_nl && f.values == iq4_nl::format.values;  // a tie goes to the upper entry
    if (f.encode == &encode_codebook || upper) {
        e.rule = rounding_rule::threshold;
        e.ordered = true;
        for (int i = 0; i < 15; ++i) e.thresholds[i] = upper ? next_below(f.thresholds[i]) : f.thresholds[i];
        for (int i = 0; i < 16; ++i) {
            e.order[i] = f.order[i];
            e.ordered = e.ordered && f.order[i] == i;
        }
        return true;
    }
    if (f.encode == &encode_binary) {  // t >= 0 is t > -2^-149
        e.rule = rounding_rule::threshold;
        e.ordered = true;
        e.thresholds[0] = float_of(0x80000001u);
        for (int i = 1; i < 15; ++i) e.thresholds[i] = float_of(0x7f800000u);
        return true;
    }
    return describe_minifloat(f, e);
}

/// How the kernels do what decode_weight does. `padded` holds tables of fewer than 16 entries.
/// False for 16-bit formats that the kernels do not know.
[[nodiscard]] inline bool make_decoder(const code_format& f, offset_kind kind, decoder& d, float (&padded)[16]) noexcept {
    d = {};
    d.bits = f.bits;
    if (f.decode == decode_class::wide) {
        d.is_fp16 = f.decode_wide == &decode_fp16;
        return d.is_fp16 || f.decode_wide == &decode_bf16;
    }
    d.adds = kind == offset_kind::minimum;
    d.subtracts = kind == offset_kind::zero_point || kind == offset_kind::float_zero;
    if (kind != offset_kind::none) return true;
    const auto count = static_cast<int>(f.code_count());
    if (f.decode == decode_class::integer) {
        d.base = f.values[0];
        d.step = f.values[1] - f.values[0];
        bool line = true;
        for (int u = 0; u < count; ++u) line = line && f.values[u] == d.base + d.step * static_cast<float>(u);
        if (line && d.base == round_even(d.base) && d.step == round_even(d.step)) return true;
    }
    d.table = f.values;
    if (count < 16) {
        for (int u = 0; u < 16; ++u) padded[u] = f.values[u < count ? u : 0];
        d.table = padded;
    }
    static_cast<void>(describe_minifloat(f, d));
    return true;
}

NIBBLE_FP_END

}  // namespace nibble::detail
