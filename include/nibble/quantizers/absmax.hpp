// Symmetric scales: absmax for every format, absmean and TWN for binary and ternary, MX shared exponents.
#pragma once

#include "quantizer.hpp"

namespace nibble::inline NIBBLE_ABI {

NIBBLE_FP_BEGIN

/// scale = max|w| / largest value of the format (127 for int8, 7 for int4, 1 for nf4, 448 for fp8_e4m3): the restricted
/// range, in which -w gets the opposite code of w.
struct absmax {
    static constexpr const char* name = "absmax";
    static constexpr bool symmetric = true;
    [[nodiscard]] group_scale from_range(float low, float high, const code_format& f) const noexcept {
        return {detail::largest_magnitude(low, high) / f.max_value, 0.0f};
    }
};

/// scale = mean|w|. With binary codes it is XNOR-Net (Rastegari et al. 2016), the least-squares scale of sign(w); with
/// ternary codes BitNet b1.58 (Ma et al. 2024): code = clamp(RNE(w / (scale + 1e-5)), -1, 1), scale over the tensor.
struct absmean {
    static constexpr const char* name = "absmean";
    [[nodiscard]] group_scale operator()(const group_view& g) const noexcept {
        double sum = 0.0;
        for (const float x : g.x) sum += static_cast<double>(detail::magnitude(x));
        return {g.x.empty() ? 0.0f : static_cast<float>(sum / static_cast<double>(g.x.size())), 0.0f};
    }
    void encode(const group_view& g, group_scale s, std::uint8_t* codes) const noexcept {
        const float guarded = g.format.bits == 1 ? 1.0f : s.scale + 1e-5f;  // a sign is a sign at any scale
        for (std::size_t i = 0; i < g.x.size(); ++i)
            codes[i] = static_cast<std::uint8_t>(g.format.encode(g.format, g.x[i] / guarded));
    }
};

/// Ternary Weight Networks (Li and Liu 2016): codes are 0 for |w| <= 0.7 mean|w|, and the scale is the mean magnitude
/// of the others, which is the least-squares scale for those codes. For ternary codes. The threshold goes to encode()
/// as the offset, which formats without an offset do not store: the group may be larger than what encode() sees.
struct twn {
    static constexpr const char* name = "twn";
    [[nodiscard]] group_scale operator()(const group_view& g) const noexcept {
        double sum = 0.0;
        for (const float x : g.x) sum += static_cast<double>(detail::magnitude(x));
        const float delta = g.x.empty() ? 0.0f : static_cast<float>(0.7 * sum / static_cast<double>(g.x.size()));
        sum = 0.0;
        std::size_t count = 0;
        for (const float x : g.x) {
            if (detail::magnitude(x) <= delta) continue;
            sum += static_cast<double>(detail::magnitude(x));
            ++count;
        }
        return {count == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(count)), delta};
    }
    void encode(const group_view& g, group_scale s, std::uint8_t* codes) const noexcept {
        const float delta = s.offset;
        for (std::size_t i = 0; i < g.x.size(); ++i)
            codes[i] = static_cast<std::uint8_t>(g.x[i] > delta ? 2 : g.x[i] < -delta ? 0 : 1);
    }
};

/// How a shared MX exponent is chosen (OCP MX v1.0 6.3, torchao ScaleCalculationMode).
enum class mx_rounding : std::uint8_t {
    floor,  ///< OCP MX v1.0 6.3: floor(log2 max|w|) - emax; the largest weight may be clamped
    even,   ///< max|w| is first rounded to the element's precision
    ceil,   ///< ceil(log2 max|w|) - emax; never clamps
    rceil,  ///< ceil(log2(max|w| / largest value)): the smallest exponent that never clamps
};

/// OCP Microscaling: scale = 2^shared exponent, elements rounded to nearest even and saturated. A zero group gets
/// exponent -127 and zero codes, as OCP says.
struct mx {
    static constexpr const char* name = "mx";
    static constexpr bool symmetric = true;
    mx_rounding rounding = mx_rounding::floor;

    [[nodiscard]] group_scale from_range(float low, float high, const code_format& f) const noexcept {
        const float amax = detail::largest_magnitude(low, high);
        const int emax = detail::exponent_of(f.max_value);
        std::uint32_t u = detail::bits_of(amax);
        int e = 0;
        switch (rounding) {
            case mx_rounding::floor: e = detail::exponent_of(amax) - emax; break;
            case mx_rounding::even:
                u += std::uint32_t{1} << (23 - f.mantissa_bits - 1);
                e = detail::exponent_of(detail::float_of(u)) - emax;
                break;
            case mx_rounding::ceil: e = ceil_log2(amax) - emax; break;
            case mx_rounding::rceil: e = ceil_log2(amax / f.max_value); break;
        }
        return {detail::power_of_two(e < -127 ? -127 : e > 127 ? 127 : e), 0.0f};
    }

private:
    /// Not below -127, which is where E8M0 ends.
    [[nodiscard]] static constexpr int ceil_log2(float x) noexcept {
        if (detail::bits_of(x) <= 0x00400000u) return -127;
        return detail::exponent_of(x) + ((detail::bits_of(x) & 0x7fffffu) != 0 ? 1 : 0);
    }
};

NIBBLE_FP_END

}  // namespace nibble
