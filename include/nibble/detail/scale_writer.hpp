// From proposed scales to stored ones: the second stage of quantizing.
#pragma once

#include <cstdio>
#include <vector>

#include "../quantize_plan.hpp"
#include "dispatch.hpp"

namespace nibble::inline NIBBLE_ABI::detail {

[[nodiscard]] inline std::string value_text(float x) {
    char text[40];
    std::snprintf(text, sizeof text, "%.9g", static_cast<double>(x));
    return text;
}

NIBBLE_FP_BEGIN

/// Stores proposed scales in a builder, and says with which numbers codes are to be chosen.
class scale_writer {
public:
    scale_writer(qmatrix_builder& builder, const quantize_plan& plan, const scale_scheme& scheme) noexcept
        : builder_(builder), plan_(plan), scheme_(scheme) {}

    /// scale and offset: [rows][groups], row `first_row` on. In: proposals. Out: what codes are chosen against.
    /// weight: the sum of importance of each group, or null. tensor_amax: max|w| of the tensor (e4m3_f32 only).
    void store(index first_row, index rows, float* scale, float* offset, const float* weight, float tensor_amax) {
        if (store_floats(first_row, rows, scale, offset)) return;
        const layout& l = builder_.layout();
        for (index r = 0; r < rows; ++r)
            for (index g = 0; g < l.groups; ++g) check(first_row + r, g, scale[r * l.groups + g], offset[r * l.groups + g]);
        switch (scheme_.storage) {
            case scale_storage::none: break;
            case scale_storage::two_level:
                for (index r = 0; r < rows; ++r)
                    for (index s = 0; s < l.supers; ++s)
                        store_super(first_row + r, s, scale + r * l.groups, offset + r * l.groups,
                                    weight != nullptr ? weight + r * l.groups : nullptr);
                break;
            case scale_storage::double_quantized: store_double(first_row, rows * l.groups, scale); break;
            default: {
                float factor = 1.0f;
                if (scheme_.storage == scale_storage::e4m3_f32) {
                    factor = tensor_amax / (plan_.format->max_value * fp8_e4m3::format.max_value);
                    if (!(factor > 0.0f)) factor = 1.0f;  // all weights are zero, or so small that they become zero
                    builder_.set_tensor_scale(factor);
                }
                for (index r = 0; r < rows; ++r)
                    for (index g = 0; g < l.groups; ++g)
                        store_direct(first_row + r, g, factor, scale[r * l.groups + g], offset[r * l.groups + g]);
            }
        }
        if (plan_.rule.offset != offset_kind::zero_point) return;
        for (index r = 0; r < rows; ++r)
            for (index g = 0; g < l.groups; ++g)
                builder_.set_offset(first_row + r, g, static_cast<std::uint32_t>(offset[r * l.groups + g]));
    }

    /// One group of a direct scheme.
    void store_group(index n, index g, float& scale, float& offset) {
        check(n, g, scale, offset);
        store_direct(n, g, 1.0f, scale, offset);
        if (plan_.rule.offset == offset_kind::zero_point) builder_.set_offset(n, g, static_cast<std::uint32_t>(offset));
    }

private:
    /// Scales that are stored as floats, row by row. False if it is another scheme, or one of the numbers is not to be
    /// stored: then nothing has changed but what was stored, and the caller, who looks at them one by one, says which.
    bool store_floats(index first_row, index rows, float* scale, float* offset) {
        scale_rounding r{};
        switch (scheme_.storage) {
            case scale_storage::f32: r.storage = stored_float::f32; break;
            case scale_storage::f16: r.storage = stored_float::f16; break;
            case scale_storage::bf16: r.storage = stored_float::bf16; break;
            default: return false;
        }
        const offset_kind kind = plan_.rule.offset;
        const float last = static_cast<float>(plan_.format->code_count() - 1);
        r.high = kind == offset_kind::none ? plan_.format->max_value : last;
        r.adds = kind == offset_kind::minimum;
        r.subtracts = kind == offset_kind::zero_point || kind == offset_kind::float_zero;
        r.rounds_offset = kind == offset_kind::minimum || kind == offset_kind::float_zero;
        const index groups = builder_.layout().groups;
        rounded_.resize(static_cast<std::size_t>(2 * groups));
        stored_.resize(static_cast<std::size_t>(2 * groups));
        for (index i = 0; i < rows; ++i, scale += groups, offset += groups) {
            float* new_scale = rounded_.data();
            float* new_offset = new_scale + groups;
            std::uint32_t* bits = stored_.data();
            std::copy_n(scale, groups, new_scale);
            std::copy_n(offset, groups, new_offset);
            bool fits = kernels_.round_scales(r, groups, new_scale, new_offset, bits, bits + groups);
            if (kind == offset_kind::zero_point)
                for (index g = 0; g < groups && fits; ++g) {
                    fits = is_zero_point(offset[g]);
                    if (fits) bits[groups + g] = static_cast<std::uint32_t>(offset[g]);
                }
            if (!fits) return false;
            builder_.set_scales(first_row + i, bits);
            if (kind != offset_kind::none) builder_.set_offsets(first_row + i, bits + groups);
            if (plan_.rule.unrounded_scale) continue;
            std::copy_n(new_scale, groups, scale);
            std::copy_n(new_offset, groups, offset);
        }
        return true;
    }

    [[nodiscard]] bool is_zero_point(float offset) const noexcept {
        return offset >= 0.0f && offset <= static_cast<float>(plan_.format->code_count() - 1) && offset == round_even(offset);
    }

    void check(index n, index g, float scale, float offset) const {
        const bool zero_ok = plan_.rule.offset != offset_kind::zero_point || is_zero_point(offset);
        if (is_finite_bits(bits_of(scale)) && is_finite_bits(bits_of(offset)) && zero_ok) return;
        fail(errc::out_of_range, std::string("quantize: ") + plan_.rule.name + " proposed scale " + value_text(scale) +
                                     " and " + name_of(plan_.rule.offset) + " " + value_text(offset) + " for row " +
                                     std::to_string(n) + ", group " + std::to_string(g) + " of " + plan_.name);
    }

    [[noreturn]] void does_not_fit(index n, index g, const char* what, float value) const {
        fail(errc::out_of_range, std::string("quantize: the ") + what + " " + value_text(value) + " of row " +
                                     std::to_string(n) + ", group " + std::to_string(g) + " does not fit scheme " +
                                     name_of(scheme_.storage) + "; use f32 or bf16 scales");
    }

    /// The largest weights that the stored numbers can mean must be floats: near FLT_MAX, 127 * f32(amax / 127) is not.
    void check_values(index n, index g, float scale, float offset) const {
        const code_format& f = *plan_.format;
        const float last = static_cast<float>(f.code_count() - 1);
        float low = -scale * f.max_value;
        float high = scale * f.max_value;
        if (plan_.rule.offset != offset_kind::none) {
            low = decode_weight(f, plan_.rule.offset, 0, scale, offset);
            high = plan_.rule.offset == offset_kind::minimum ? scale * last : scale * (last - offset);
        }
        if (is_finite_bits(bits_of(low)) && is_finite_bits(bits_of(high))) return;
        fail(errc::out_of_range, "quantize: row " + std::to_string(n) + ", group " + std::to_string(g) + " of " + plan_.name +
                                     " holds weights too close to the largest float: at scale " + value_text(scale) +
                                     " some would decode to inf");
    }

    void store_direct(index n, index g, float factor, float& scale, float& offset) {
        float wanted = scale;
        if (scheme_.storage == scale_storage::e4m3_f32)  // torchao: not below the smallest normal number of E4M3
            wanted = clamp(scale / factor, 0.015625f, 448.0f);
        const std::uint32_t stored = encode_stored(scheme_.storage, wanted);
        const float decoded = decode_stored(scheme_.storage, stored);
        if (!is_finite_bits(bits_of(decoded))) does_not_fit(n, g, "scale", scale);
        builder_.set_scale(n, g, stored);
        float decoded_offset = offset;
        if (plan_.rule.offset == offset_kind::minimum || plan_.rule.offset == offset_kind::float_zero) {
            const std::uint32_t bits = encode_stored(scheme_.storage, offset);
            decoded_offset = decode_stored(scheme_.storage, bits);
            if (!is_finite_bits(bits_of(decoded_offset))) does_not_fit(n, g, name_of(plan_.rule.offset), offset);
            builder_.set_offset(n, g, bits);
        }
        check_values(n, g, decoded * factor, decoded_offset);
        if (plan_.rule.unrounded_scale) return;
        scale = decoded * factor;
        offset = decoded_offset;
    }

    /// One super-group of a K-quant row, as quantize_row_q*_K of ggml stores it.
    void store_super(index n, index s, float* scale, float* offset, const float* weight) {
        const layout& l = builder_.layout();
        const index first = s * scheme_.span;
        const index count = (std::min)(scheme_.span, l.groups - first);
        scale += first;
        offset += first;
        std::uint8_t codes[256];
        if (count > 256) fail(errc::unsupported, "quantize: at most 256 groups to one super-scale, not " + std::to_string(count));
        if (plan_.rule.offset == offset_kind::minimum) {  // -dmin * code is never positive: such a group starts at zero
            const float last = static_cast<float>(plan_.format->code_count() - 1);
            for (index g = 0; g < count; ++g) {
                if (!(offset[g] > 0.0f)) continue;
                scale[g] += offset[g] / last;
                offset[g] = 0.0f;
            }
        }
        if (scheme_.is_signed) {
            if (plan_.rule.offset == offset_kind::minimum)
                fail(errc::unsupported, "quantize: two_level scales with a minimum are unsigned; use two_level(bits, false, groups)");
            store_super_signed(n, s, first, count, scale, weight != nullptr ? weight + first : nullptr);
            return;
        }
        const int top = (1 << scheme_.bits) - 1;
        const float d = unsigned_codes(scale, weight != nullptr ? weight + first : nullptr, count, top, codes);
        const float decoded = set_super(n, s, d, false);
        for (index g = 0; g < count; ++g) {
            builder_.set_scale(n, first + g, codes[g]);
            scale[g] = decoded * static_cast<float>(codes[g]);
        }
        if (plan_.rule.offset != offset_kind::minimum) return;
        float magnitudes[256];
        for (index g = 0; g < count; ++g) magnitudes[g] = -offset[g];
        const float dmin = unsigned_codes(magnitudes, weight != nullptr ? weight + first : nullptr, count, top, codes);
        const float decoded_min = set_super(n, s, dmin, true);
        for (index g = 0; g < count; ++g) {
            builder_.set_offset(n, first + g, codes[g]);
            offset[g] = -(decoded_min * static_cast<float>(codes[g]));
        }
    }

    static float unsigned_codes(const float* x, const float* weight, index count, int top, std::uint8_t* codes) {
        if (weight != nullptr) return search_positive(x, weight, static_cast<std::size_t>(count), top, codes);
        float largest = 0.0f;
        for (index g = 0; g < count; ++g) largest = x[g] > largest ? x[g] : largest;
        const float inv = largest > 0.0f ? static_cast<float>(top) / largest : 0.0f;
        for (index g = 0; g < count; ++g) {
            const auto u = static_cast<std::uint8_t>(nearest_int(inv * x[g]));  // a negative one wraps, as in ggml
            codes[g] = static_cast<std::uint8_t>(u < top ? u : top);
        }
        return largest > 0.0f ? largest / static_cast<float>(top) : 0.0f;
    }

    /// -0 is kept for super-blocks that are zero as a whole (see ggml_symmetric::encode).
    [[nodiscard]] static float not_minus_zero(float x) noexcept {
        return (bits_of(x) << 1) == 0 ? 0.0f : x;  // on bits: without signed zeros a compiler folds the comparison away
    }

    void store_super_signed(index n, index s, index first, index count, float* scale, const float* weight) {
        const int half = 1 << (scheme_.bits - 1);
        std::uint8_t codes[256];
        if (weight != nullptr && scheme_.bits == 6 && !plan_.rule.unrounded_scale) {  // q3_k with importance
            float d = 0.0f, none = 0.0f;
            group_lanes one({scale, 1, count, nullptr, nullptr, nullptr, *plan_.format, {}, 0, 0.0f, count}, weight);
            one.search_symmetric(half, &d, &none, codes);
            const float decoded = set_super(n, s, d, false);
            for (index g = 0; g < count; ++g) {
                builder_.set_scale(n, first + g, codes[g]);
                scale[g] = not_minus_zero(decoded * static_cast<float>(static_cast<int>(codes[g]) - half));
            }
            return;
        }
        const float largest = signed_absmax({scale, static_cast<std::size_t>(count)});
        const bool keeps = plan_.rule.unrounded_scale;  // iq4_xs: d = -largest / 32, codes against the unrounded d
        const bool zero = keeps ? false : scheme_.bits == 8 ? magnitude(largest) < 1e-15f : largest == 0.0f;
        if (zero) {
            // ggml writes a block of zero bytes: q3_k's stored scale 0 means -32, q6_k's means 0. A scale of -0 tells
            // the q6_k rule to write zero codes, too.
            set_super(n, s, 0.0f, false);
            for (index g = 0; g < count; ++g) {
                builder_.set_scale(n, first + g, scheme_.bits == 8 ? 128u : 0u);
                scale[g] = scheme_.bits == 8 ? -0.0f : 0.0f;
            }
            return;
        }
        const float inv = keeps ? 0.0f : -static_cast<float>(half) / largest;
        const float d = keeps ? -largest / static_cast<float>(half) : 1.0f / inv;
        const float id = keeps ? (d != 0.0f ? 1.0f / d : 0.0f) : inv;
        const float decoded = set_super(n, s, d, false);
        for (index g = 0; g < count; ++g) {
            const int q = clamp_int(nearest_int(id * scale[g]), -half, half - 1);
            builder_.set_scale(n, first + g, static_cast<std::uint32_t>(q + half));
            scale[g] = not_minus_zero((keeps ? d : decoded) * static_cast<float>(q));
        }
    }

    float set_super(index n, index s, float d, bool minimum) {
        const std::uint16_t h = float_to_fp16(d);
        if ((h & 0x7c00u) == 0x7c00u) does_not_fit(n, s * scheme_.span, "super-scale", d);
        builder_.set_super(n, s, h, minimum);
        return fp16_to_float(h);
    }

    /// QLoRA double quantization of all scales of the tensor (Dettmers et al. 2023). As in bitsandbytes, codes are chosen
    /// with the scales as they were before.
    void store_double(index first_row, index count, float* scale) {
        double sum = 0.0;
        for (index i = 0; i < count; ++i) sum += static_cast<double>(scale[i]);
        const float mean = count == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(count));
        builder_.set_tensor_scale(mean);
        const index groups = builder_.layout().groups;
        for (index s = 0; s * scheme_.span < count; ++s) {
            const index first = s * scheme_.span;
            const index last = (std::min)(count, first + scheme_.span);
            float absmax = 0.0f;
            for (index i = first; i < last; ++i) {
                const float a = magnitude(scale[i] - mean);
                absmax = a > absmax ? a : absmax;
            }
            builder_.set_nested_absmax(s, absmax);
            for (index i = first; i < last; ++i) {
                const float t = absmax > 0.0f ? (scale[i] - mean) / absmax : 0.0f;
                const unsigned code = encode_dynamic(t);
                builder_.set_scale(first_row + i / groups, i % groups, code);
                const float product = signed_dynamic_map.values[code] * absmax;
                check_values(first_row + i / groups, i % groups, product + mean, 0.0f);
            }
        }
    }

    qmatrix_builder& builder_;
    const quantize_plan& plan_;
    scale_scheme scheme_;
    const codec_kernels& kernels_ = active_kernels().codec;
    std::vector<float> rounded_;         // scales and offsets of a row
    std::vector<std::uint32_t> stored_;  // their bits
};

NIBBLE_FP_END

}  // namespace nibble::detail
