// 16-bit floating point: fp16 (IEEE 754 binary16) and bf16 (bfloat16). As code formats they carry no scale.
//
//   fp16   s eeeee mmmmmmmmmm   bias 15, largest 65504, smallest 2^-24
//   bf16   s eeeeeeee mmmmmmm   the high half of a float
//
// Encoding rounds to nearest even, on integers alone: no rounding mode, FTZ or fast-math flag of
// the host program changes a bit. bf16 NaN keeps its high payload bits and becomes quiet; fp16 NaN likewise.
#pragma once

#include "../format.hpp"

namespace nibble::inline NIBBLE_ABI {

/// The float with the bits of an IEEE binary16 number; exact.
[[nodiscard]] constexpr float fp16_to_float(std::uint16_t h) noexcept {
    const std::uint32_t sign = (h & 0x8000u) << 16;
    const std::uint32_t exponent = (h >> 10) & 31u;
    std::uint32_t mantissa = h & 0x3ffu;
    if (exponent == 31) return detail::float_of(sign | 0x7f800000u | mantissa << 13);
    if (exponent != 0) return detail::float_of(sign | (exponent + 112) << 23 | mantissa << 13);
    if (mantissa == 0) return detail::float_of(sign);
    const int shift = std::countl_zero(mantissa) - 21;  // bring the leading one to bit 10
    mantissa = (mantissa << shift) & 0x3ffu;
    return detail::float_of(sign | static_cast<std::uint32_t>(113 - shift) << 23 | mantissa << 13);
}

/// A float rounded to nearest-even binary16. 65520 and above become Inf.
[[nodiscard]] constexpr std::uint16_t float_to_fp16(float x) noexcept {
    const std::uint32_t u = detail::bits_of(x);
    const std::uint32_t sign = (u >> 16) & 0x8000u;
    const std::uint32_t a = u & 0x7fffffffu;
    if (a > 0x7f800000u) return static_cast<std::uint16_t>(sign | 0x7e00u | ((a >> 13) & 0x3ffu));
    if (a >= 0x477ff000u) return static_cast<std::uint16_t>(sign | 0x7c00u);  // 65520: the tie goes to Inf
    if (a >= 0x38800000u)  // 2^-14: normal
        return static_cast<std::uint16_t>(sign | ((a - 0x38000000u + 0xfffu + ((a >> 13) & 1u)) >> 13));
    if (a < 0x33000000u) return static_cast<std::uint16_t>(sign);  // below 2^-25
    const int shift = 126 - static_cast<int>(a >> 23);             // 14 .. 24
    const std::uint32_t m = (a & 0x7fffffu) | 0x800000u;
    return static_cast<std::uint16_t>(
        sign | ((m + (std::uint32_t{1} << (shift - 1)) - 1 + ((m >> shift) & 1u)) >> shift));
}

/// The float whose high half is h.
[[nodiscard]] constexpr float bf16_to_float(std::uint16_t h) noexcept {
    return detail::float_of(std::uint32_t{h} << 16);
}

/// A float rounded to nearest-even bfloat16.
[[nodiscard]] constexpr std::uint16_t float_to_bf16(float x) noexcept {
    const std::uint32_t u = detail::bits_of(x);
    if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<std::uint16_t>((u >> 16) | 0x40u);
    return static_cast<std::uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

namespace detail {

// Saturating: a finite weight never becomes Inf.
[[nodiscard]] inline unsigned encode_fp16(const code_format&, float x) noexcept {
    const std::uint16_t h = float_to_fp16(x);
    return (h & 0x7fffu) == 0x7c00u ? static_cast<unsigned>(h - 1) : h;
}
[[nodiscard]] inline unsigned encode_bf16(const code_format&, float x) noexcept {
    const std::uint16_t h = float_to_bf16(x);
    return (h & 0x7fffu) == 0x7f80u ? static_cast<unsigned>(h - 1) : h;
}
[[nodiscard]] inline float decode_fp16(unsigned h) noexcept { return fp16_to_float(static_cast<std::uint16_t>(h)); }
[[nodiscard]] inline float decode_bf16(unsigned h) noexcept { return bf16_to_float(static_cast<std::uint16_t>(h)); }

}  // namespace detail

/// IEEE half precision.
struct fp16 {
    static constexpr code_format format = [] {
        code_format f;
        f.name = "fp16";
        f.use_when = "a reference that fits in half the memory; weights within 65504";
        f.bits = 16;
        f.decode = decode_class::wide;
        f.max_value = 65504.0f;
        f.min_value = -65504.0f;
        f.encode = &detail::encode_fp16;
        f.decode_wide = &detail::decode_fp16;
        return f;
    }();
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
};

/// bfloat16.
struct bf16 {
    static constexpr code_format format = [] {
        code_format f;
        f.name = "bf16";
        f.use_when = "weights that were trained in bfloat16, kept as they are";
        f.bits = 16;
        f.decode = decode_class::wide;
        f.max_value = bf16_to_float(0x7f7f);
        f.min_value = bf16_to_float(0xff7f);
        f.encode = &detail::encode_bf16;
        f.decode_wide = &detail::decode_bf16;
        return f;
    }();
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
};

}  // namespace nibble
