// Uniform integers: int8 int6 int5 int4 int3 int2, binary and ternary.
//
//   format    codes u      value           absmax uses
//   intB      0 .. 2^B-1   u - 2^(B-1)     [-(2^(B-1)-1), 2^(B-1)-1]: the restricted range, so that -x gets code -q
//                                          (code 0 decodes, but only full-range rules and files produce it)
//   binary    0, 1         2u - 1          -1, +1; zero is +1 (XNOR-Net, Rastegari et al. 2016)
//   ternary   0, 1, 2      u - 1           -1, 0, +1; code 3 decodes to 2 and is never produced (as ggml TQ2_0)
//
// With an integer zero point z, a minimum or a float zero the same codes mean s * (u - z), s * u + m, s * (u - z):
// then all 2^B codes are used and `value` plays no part.
#pragma once

#include "../format.hpp"

namespace nibble::inline NIBBLE_ABI {
namespace detail {

template <int Bits, int Step, int Base>
struct integer_table {
    static constexpr std::array<float, (1u << Bits)> values = [] {
        std::array<float, (1u << Bits)> v{};
        for (unsigned u = 0; u < v.size(); ++u) v[u] = static_cast<float>(Step * static_cast<int>(u) + Base);
        return v;
    }();
};

NIBBLE_FP_BEGIN

[[nodiscard]] inline unsigned encode_integer(const code_format& f, float t) noexcept {
    return static_cast<unsigned>(static_cast<int>(round_even(clamp(t, f.min_value, f.max_value)))) + f.zero_code;
}

[[nodiscard]] inline unsigned encode_binary(const code_format&, float t) noexcept { return t >= 0.0f ? 1u : 0u; }

/// Nearest integer code around a zero point: clamp(RNE(t) + zero, 0, last).
[[nodiscard]] inline unsigned encode_affine(float t, int zero, int last) noexcept {
    const int q = static_cast<int>(round_even(clamp(t, -65536.0f, 65536.0f))) + zero;
    return static_cast<unsigned>(q < 0 ? 0 : q > last ? last : q);
}

NIBBLE_FP_END

template <int Bits>
inline constexpr code_format integer_descriptor(const char* name, const char* use_when) noexcept {
    constexpr int half = 1 << (Bits - 1);
    code_format f;
    f.name = name;
    f.use_when = use_when;
    f.bits = Bits;
    f.decode = decode_class::integer;
    f.unit = 1.0f;
    f.values = integer_table<Bits, 1, -half>::values.data();
    f.max_value = static_cast<float>(half - 1);
    f.min_value = static_cast<float>(1 - half);
    f.zero_code = half;
    f.encode = &encode_integer;
    return f;
}

}  // namespace detail

/// Signed 8-bit integers.
struct int8 {
    static constexpr code_format format =
        detail::integer_descriptor<8>("int8", "the safe choice: half the size of fp16, no visible loss");
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
};
/// Signed 6-bit integers.
struct int6 {
    static constexpr code_format format =
        detail::integer_descriptor<6>("int6", "nearly int8 quality at three quarters of its size");
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
};
/// Signed 5-bit integers.
struct int5 {
    static constexpr code_format format =
        detail::integer_descriptor<5>("int5", "when 4 bits lose too much and 8 are too large");
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
};
/// Signed 4-bit integers.
struct int4 {
    static constexpr code_format format =
        detail::integer_descriptor<4>("int4", "the usual choice for large models; small groups, calibrate if you can");
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
};
/// Signed 3-bit integers.
struct int3 {
    static constexpr code_format format =
        detail::integer_descriptor<3>("int3", "when 4 bits do not fit; needs calibration or a search");
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
};
/// Signed 2-bit integers: -1, 0, 1 by absmax; all four codes with a zero point or a minimum.
struct int2 {
    static constexpr code_format format =
        detail::integer_descriptor<2>("int2", "the last resort; only with a minimum or zero point and a search");
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
};
/// Signs: -1 and +1.
struct binary {
    static constexpr code_format format = [] {
        code_format f = detail::integer_descriptor<1>("binary", "networks trained with binary weights; retrieval sketches");
        f.values = detail::integer_table<1, 2, -1>::values.data();
        f.max_value = 1.0f;
        f.min_value = -1.0f;
        f.zero_code = 1;  // XNOR-Net: sign(0) = +1
        f.encode = &detail::encode_binary;
        return f;
    }();
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
};
/// -1, 0 and +1 in two bits.
struct ternary {
    static constexpr code_format format = [] {
        code_format f = detail::integer_descriptor<2>("ternary", "networks trained with ternary weights (BitNet b1.58)");
        f.values = detail::integer_table<2, 1, -1>::values.data();
        f.zero_code = 1;
        return f;
    }();
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
};

}  // namespace nibble
