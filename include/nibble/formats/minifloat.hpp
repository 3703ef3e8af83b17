// Small floating-point numbers of E exponent and M mantissa bits (OCP OFP8 and MX v1.0).
//
//   format           bits  s E M  bias  largest  special codes
//   fp8_e4m3          8    1 4 3    7      448   7F, FF are NaN; no Inf (OFP8 E4M3, "E4M3FN")
//   fp8_e5m2          8    1 5 2   15    57344   7C, FC Inf; 7D-7F, FD-FF NaN
//   fp8_e4m3fnuz      8    1 4 3    8      240   80 is NaN; no Inf, no -0
//   fp8_e5m2fnuz      8    1 5 2   16    57344   80 is NaN; no Inf, no -0
//   fp6_e2m3          6    1 2 3    1      7.5   none
//   fp6_e3m2          6    1 3 2    3       28   none
//   fp4_e2m1          4    1 2 1    1        6   none; values times two are integers
//   e8m0              8    0 8 0  127    2^127   FF is NaN; no sign, no zero: a scale, not a code format
//
// Encoding rounds to nearest even on integers alone. encode() saturates (OFP8 SAT, ONNX saturate=1); encode_ieee()
// lets overflow become Inf or NaN as ml_dtypes does.
#pragma once

#include "../format.hpp"

namespace nibble::inline NIBBLE_ABI {
namespace detail {

enum class special_codes : std::uint8_t {
    none,    // every code is a finite number
    fn,      // all ones is NaN
    ieee,    // exponent all ones is Inf or NaN
    fnuz,    // minus zero is the one NaN
};

template <int E, int M, int Bias, special_codes Special>
struct minifloat {
    static constexpr int bits = 1 + E + M;
    static constexpr int mantissa_width = M;
    static constexpr int bias = Bias;
    static constexpr special_codes special = Special;
    static constexpr unsigned sign_bit = 1u << (E + M);
    static constexpr unsigned last = sign_bit - 1;
    static constexpr unsigned max_code = Special == special_codes::ieee ? last - (1u << M)
                                         : Special == special_codes::fn ? last - 1
                                                                        : last;
    static constexpr unsigned nan_code = Special == special_codes::fnuz   ? sign_bit
                                         : Special == special_codes::ieee ? last - (1u << M) + 1 + (1u << (M - 1))
                                                                          : last;

    [[nodiscard]] static constexpr float decode(unsigned code) noexcept {
        const bool negative = (code & sign_bit) != 0;
        const unsigned magnitude = code & last;
        if constexpr (Special == special_codes::fnuz)
            if (code == sign_bit) return float_of(0x7fc00000u);
        if (Special == special_codes::fn && magnitude == last) return float_of(negative ? 0xffc00000u : 0x7fc00000u);
        const std::uint32_t sign = negative ? 0x80000000u : 0u;
        if (Special == special_codes::ieee && magnitude > max_code)
            return float_of(sign | (magnitude == max_code + 1 ? 0x7f800000u : 0x7fc00000u));
        const unsigned exponent = magnitude >> M;
        const unsigned mantissa = magnitude & ((1u << M) - 1);
        float value = exponent == 0
                          ? static_cast<float>(mantissa) * power_of_two(1 - Bias - M)
                          : static_cast<float>((1u << M) + mantissa) * power_of_two(static_cast<int>(exponent) - Bias - M);
        return float_of(bits_of(value) | sign);
    }

    template <bool Saturate>
    [[nodiscard]] static constexpr unsigned round(float x) noexcept {
        const std::uint32_t u = bits_of(x);
        const std::uint32_t a = u & 0x7fffffffu;
        const unsigned sign = (u >> 31) != 0 ? sign_bit : 0u;
        if (a > 0x7f800000u) {
            if constexpr (Special == special_codes::none) return sign ^ sign_bit;  // as ml_dtypes: zero, sign inverted
            return Special == special_codes::fnuz ? nan_code : nan_code | sign;
        }
        const int e = static_cast<int>(a >> 23) - 127;
        unsigned code = 0;
        if (a == 0x7f800000u) {
            code = max_code + 1;
        } else if (e >= 1 - Bias - M - 1) {
            const std::uint32_t m = (a & 0x7fffffu) | 0x800000u;
            const int below = e < 1 - Bias ? 1 - Bias - e : 0;
            const int shift = 23 - M + below;
            const std::uint32_t r = (m + (std::uint32_t{1} << (shift - 1)) - 1 + ((m >> shift) & 1u)) >> shift;
            code = below != 0 ? r : (static_cast<unsigned>(e + Bias - 1) << M) + r;
        }
        if (code > max_code) {
            if constexpr (Saturate || Special == special_codes::none) code = max_code;
            else if constexpr (Special == special_codes::fnuz) return nan_code;
            else code = max_code + 1;  // fn: NaN; ieee: Inf
        }
        if (Special == special_codes::fnuz && code == 0) return 0;
        return code | sign;
    }

    static constexpr std::array<float, (1u << bits)> values = [] {
        std::array<float, (1u << bits)> v{};
        for (unsigned u = 0; u < v.size(); ++u) v[u] = decode(u);
        return v;
    }();

    [[nodiscard]] static unsigned encode_saturating(const code_format&, float x) noexcept { return round<true>(x); }

    [[nodiscard]] static constexpr code_format describe(const char* name, const char* use_when) noexcept {
        code_format f;
        f.name = name;
        f.use_when = use_when;
        f.bits = bits;
        f.mantissa_bits = M;
        f.decode = decode_class::table;
        f.values = values.data();
        f.max_value = decode(max_code);
        f.min_value = decode(max_code | sign_bit);
        f.encode = &encode_saturating;
        return f;
    }
};

}  // namespace detail

/// OFP8 E4M3: the FP8 for weights.
struct fp8_e4m3 : detail::minifloat<4, 3, 7, detail::special_codes::fn> {
    static constexpr code_format format = describe("fp8_e4m3", "hardware FP8 checkpoints; outliers that int8 would clip");
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
    /// Nearest code; overflow and Inf become +-448.
    [[nodiscard]] static constexpr unsigned encode(float x) noexcept { return round<true>(x); }
    /// Nearest code; overflow and Inf become NaN (ml_dtypes float8_e4m3fn).
    [[nodiscard]] static constexpr unsigned encode_ieee(float x) noexcept { return round<false>(x); }
};
/// OFP8 E5M2: fp16 cut to its high byte.
struct fp8_e5m2 : detail::minifloat<5, 2, 15, detail::special_codes::ieee> {
    static constexpr code_format format = describe("fp8_e5m2", "gradients and values of very wide range; E4M3 is better for weights");
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
    /// Nearest code; overflow and Inf become +-57344.
    [[nodiscard]] static constexpr unsigned encode(float x) noexcept { return round<true>(x); }
    /// Nearest code; overflow becomes Inf.
    [[nodiscard]] static constexpr unsigned encode_ieee(float x) noexcept { return round<false>(x); }
};
/// E4M3FNUZ (AMD CDNA3, Graphcore).
struct fp8_e4m3fnuz : detail::minifloat<4, 3, 8, detail::special_codes::fnuz> {
    static constexpr code_format format = describe("fp8_e4m3fnuz", "FP8 checkpoints made for CDNA3 accelerators");
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
    /// Nearest code; overflow and Inf become +-240.
    [[nodiscard]] static constexpr unsigned encode(float x) noexcept { return round<true>(x); }
    /// Nearest code; overflow and Inf become NaN.
    [[nodiscard]] static constexpr unsigned encode_ieee(float x) noexcept { return round<false>(x); }
};
/// E5M2FNUZ (AMD CDNA3, Graphcore).
struct fp8_e5m2fnuz : detail::minifloat<5, 2, 16, detail::special_codes::fnuz> {
    static constexpr code_format format = describe("fp8_e5m2fnuz", "wide-range FP8 checkpoints made for CDNA3 accelerators");
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
    /// Nearest code; overflow and Inf become +-57344.
    [[nodiscard]] static constexpr unsigned encode(float x) noexcept { return round<true>(x); }
    /// Nearest code; overflow and Inf become NaN.
    [[nodiscard]] static constexpr unsigned encode_ieee(float x) noexcept { return round<false>(x); }
};
/// OCP FP6 E2M3. No Inf or NaN: NaN encodes to zero of the opposite sign, as ml_dtypes does.
struct fp6_e2m3 : detail::minifloat<2, 3, 1, detail::special_codes::none> {
    static constexpr code_format format = describe("fp6_e2m3", "MX checkpoints of 6 bits; better than e3m2 for weights");
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
    /// Nearest code; everything above the last midpoint becomes +-7.5.
    [[nodiscard]] static constexpr unsigned encode(float x) noexcept { return round<true>(x); }
};
/// OCP FP6 E3M2.
struct fp6_e3m2 : detail::minifloat<3, 2, 3, detail::special_codes::none> {
    static constexpr code_format format = describe("fp6_e3m2", "MX checkpoints of 6 bits with a wider range inside a group");
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
    /// Nearest code; everything above the last midpoint becomes +-28.
    [[nodiscard]] static constexpr unsigned encode(float x) noexcept { return round<true>(x); }
};
/// OCP FP4 E2M1: 0 .5 1 1.5 2 3 4 6 and their negatives.
struct fp4_e2m1 : detail::minifloat<2, 1, 1, detail::special_codes::none> {
    static constexpr code_format format = [] {
        code_format f = describe("fp4_e2m1", "MXFP4 and NVFP4 checkpoints; small groups are a must");
        f.unit = 0.5f;
        return f;
    }();
    [[nodiscard]] static constexpr const code_format& descriptor() noexcept { return format; }
    /// Nearest code; everything above 5 becomes +-6.
    [[nodiscard]] static constexpr unsigned encode(float x) noexcept { return round<true>(x); }
};

/// The power-of-two scale of OCP MX: value 2^(code - 127), code FF is NaN.
struct e8m0 {
    [[nodiscard]] static constexpr float decode(unsigned code) noexcept {
        if (code == 255) return detail::float_of(0x7fc00000u);
        return detail::power_of_two(static_cast<int>(code) - 127);
    }
    /// Nearest power of two in the linear sense, ties (1.5 * 2^k) up. Zero and everything at most 2^-127 become 00, all
    /// larger subnormal numbers 01; negative numbers, NaN, Inf and overflow become FF.
    [[nodiscard]] static constexpr unsigned encode(float x) noexcept {
        const std::uint32_t u = detail::bits_of(x);
        if (u > 0x7f800000u || u == 0x7f800000u) return u == 0x80000000u ? 0u : 255u;
        if (u < 0x00800000u) return u <= 0x00400000u ? 0u : 1u;
        return (u + 0x00400000u) >> 23;
    }
};

}  // namespace nibble
