// Asymmetric quantizers: an integer zero point, a float minimum, a float zero.
#pragma once

#include "quantizer.hpp"

namespace nibble::inline NIBBLE_ABI {

NIBBLE_FP_BEGIN

/// Integer zero point with PyTorch's formula (torch.ao MinMaxObserver, fake_quantize): the range is widened to include
/// zero, which is then represented exactly. n = 2^bits - 1:
///     scale = max(f32((max - min) / n), eps),  zero = clamp(-RNE(f32(min / scale)), 0, n),
///     code  = clamp(RNE(f32(w * inv)) + zero, 0, n).
/// Codes are unsigned: PyTorch's qint8 code and zero point are 128 less.
struct zero_point {
    static constexpr const char* name = "zero_point";
    static constexpr offset_kind offset = offset_kind::zero_point;
    /// The smallest scale. PyTorch's observers use 2^-23.
    float eps = 1.1920928955078125e-7f;
    /// clamp(RNE(fma(w, inv, zero))), as eager torch.quantize_per_tensor computes it; differs at ties and by one
    /// rounding of the product from fake_quantize and exported graphs, which are the default.
    bool eager = false;
    /// eager, as for qint8: the sum is rounded to a float around PyTorch's zero point, which is 2^(bits - 1) less.
    /// Differs from quint8 for products within one rounding of a tie.
    bool is_signed = false;

    [[nodiscard]] group_scale from_range(float low, float high, const code_format& f) const noexcept {
        const int n = static_cast<int>(f.code_count()) - 1;
        const float lo = low < 0.0f ? low : 0.0f;
        const float hi = high > 0.0f ? high : 0.0f;
        float scale = detail::step_of(lo, hi, n);
        if (scale < eps) scale = eps;
        const float zero = -detail::round_even(detail::clamp(lo / scale, -1048576.0f, 0.0f));
        return {scale, detail::clamp(zero, 0.0f, static_cast<float>(n))};
    }
    /// Whether `encode` is encode_weight of each weight.
    [[nodiscard]] constexpr bool keeps_contract() const noexcept { return !eager; }
    void encode(const group_view& g, group_scale s, std::uint8_t* codes) const noexcept {
        const float inv = detail::inverse(s.scale);
        const int last = static_cast<int>(g.format.code_count()) - 1;
        const int below = is_signed ? (last + 1) / 2 : 0;
        for (std::size_t i = 0; i < g.x.size(); ++i) {
            unsigned code;
            if (eager) {
                const double exact = static_cast<double>(g.x[i]) * static_cast<double>(inv);
                const double bounded = exact < -1048576.0 ? -1048576.0 : exact > 1048576.0 ? 1048576.0 : exact;
                const float sum = detail::fma_rounded(bounded, s.offset - static_cast<float>(below));
                code = detail::encode_affine(sum, below, last);
            } else {
                code = detail::encode_weight(g.format, offset, g.x[i], inv, s.offset);
            }
            codes[i] = static_cast<std::uint8_t>(code);
        }
    }
};

/// Float minimum (GGUF Q4_1, KIVI): scale = f32((max - min) / n), w = f32(scale * code) + min. A constant group is
/// exact if the scheme holds its value; zero is not.
struct min_offset {
    static constexpr const char* name = "min_offset";
    static constexpr offset_kind offset = offset_kind::minimum;
    [[nodiscard]] group_scale from_range(float low, float high, const code_format& f) const noexcept {
        return {detail::step_of(low, high, static_cast<int>(f.code_count()) - 1), low};
    }
};

/// Float zero, HQQ's convention before its optimization (Badri and Shaji 2023): w = (code - zero) * scale with
/// scale = (max - min) / n and zero = -min * n / (max - min), not rounded.
struct float_zero {
    static constexpr const char* name = "float_zero";
    static constexpr offset_kind offset = offset_kind::float_zero;
    [[nodiscard]] group_scale from_range(float low, float high, const code_format& f) const noexcept {
        const int n = static_cast<int>(f.code_count()) - 1;
        const float scale = detail::step_of(low, high, n);
        if (!(scale > 0.0f)) {  // a constant group: code 0 everywhere, zero -1, so that w = scale
            return {low, low == 0.0f ? 0.0f : -1.0f};
        }
        const float zero = -low * detail::inverse(scale);
        return {scale, zero};
    }
};

NIBBLE_FP_END

}  // namespace nibble
