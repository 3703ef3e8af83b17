// quantize(): floats to a qmatrix.
//
// Two stages, because many formats look beyond one group. A quantizer proposes scale and offset for every group of a
// block of rows; the scale scheme stores them, which may quantize them again (K-quants, double quantization, NVFP4);
// then codes are chosen against what was stored. A block is one panel of 16 rows, unless a 2-D group or a scheme that
// looks at the whole tensor needs more; then the weights are read twice.
//
// GPTQ and its kin choose codes column by column against scales that stand already: column_quantizer runs the same
// three steps one at a time.
#pragma once

#include <cstdio>
#include <numeric>
#include <optional>
#include <vector>

#include "detail/fp_environment.hpp"
#include "detail/load.hpp"
#include "eigen.hpp"
#include "qmatrix.hpp"
#include "recipe.hpp"

namespace nibble::inline NIBBLE_ABI {

/// Everything that decides the bytes of a quantized matrix.
struct quantize_plan {
    format_handle format{int8::format};
    scale_scheme scale = scales::f32;
    granularity group = per_channel{};
    quantizer_ref rule;
    std::string name;
};

/// What may be said besides the format.
struct quantize_options {
    /// Another scale scheme than the format's own.
    std::optional<scale_scheme> scale{};
    /// NaN and Inf in the weights.
    nibble::non_finite non_finite = nibble::non_finite::error;
    /// One weight >= 0 per column of W (an importance matrix): searching quantizers minimize importance * error^2.
    std::span<const float> importance{};
};

/// The plan of a recipe.
[[nodiscard]] inline quantize_plan make_plan(const recipe& r) {
    return {format_handle(*r.format), r.scale, r.group, r.rule, r.name};
}

/// A plan of your own: any code format (also one of make_codebook), any quantizer. `rule` must outlive the plan.
template <quantizer Q>
[[nodiscard]] quantize_plan make_plan(format_handle format, const Q& rule, granularity group,
                                      std::optional<scale_scheme> scale = std::nullopt) {
    const scale_scheme fallback = format->decode == decode_class::wide ? scales::none
                                  : group.rows == 1 && group.cols != 0 ? scales::f16
                                                                       : scales::f32;
    std::string name = format->name;
    return {std::move(format), scale.value_or(fallback), group, erase(rule), std::move(name)};
}

/// Whether `w` can be quantized so; the message says why not.
[[nodiscard]] inline status check_quantize(const const_view& w, const quantize_plan& plan, const quantize_options& options = {}) {
    const scale_scheme scheme = options.scale.value_or(plan.scale);
    if (status s = qmatrix_builder::check_combination(w.rows, w.cols, *plan.format, scheme, plan.rule.offset, plan.group); !s)
        return status(s.code(), "quantize: " + s.message().substr(s.message().find(' ') + 1));
    if (w.data == nullptr && w.rows != 0 && w.cols != 0)
        return status(errc::invalid_argument, "quantize: W is " + detail::shape_text(w.rows, w.cols) + " at a null pointer");
    if (plan.rule.from_range == nullptr && plan.rule.from_values == nullptr)
        return status(errc::invalid_argument, "quantize: the plan for " + plan.name + " has no quantizer");
    if (!options.importance.empty()) {
        if (!plan.rule.searches)
            return status(errc::unsupported, std::string("quantize: ") + plan.rule.name +
                                                 " does not search, so importance weights would be ignored; use mse or a ggml search");
        if (static_cast<index>(options.importance.size()) != w.cols)
            return status(errc::shape_mismatch, "quantize: " + std::to_string(options.importance.size()) +
                                                    " importance weights for W of " + detail::shape_text(w.rows, w.cols));
        for (std::size_t k = 0; k < options.importance.size(); ++k)
            if (!detail::finite_in_memory(&options.importance[k]) || detail::bits_of(options.importance[k]) > 0x80000000u)
                return status(errc::invalid_argument, "quantize: importance weight " + std::to_string(k) + " is " +
                                                          std::to_string(options.importance[k]) + "; it must be finite and >= 0");
    }
    return {};
}

namespace detail {

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
    void check(index n, index g, float scale, float offset) const {
        const int last = static_cast<int>(plan_.format->code_count()) - 1;
        const bool zero_ok = plan_.rule.offset != offset_kind::zero_point ||
                             (offset >= 0.0f && offset <= static_cast<float>(last) && offset == round_even(offset));
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
            const float d = search_symmetric({scale, static_cast<std::size_t>(count)}, weight, half, codes);
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
};

/// The codes of one group: the rule's own, or the contract's.
inline void encode_group(const quantize_plan& plan, const group_view& g, group_scale s, std::uint8_t* codes) {
    if (plan.rule.encode != nullptr) {
        plan.rule.encode(plan.rule.self, g, s, codes);
        return;
    }
    const float inv = inverse(s.scale);
    for (std::size_t i = 0; i < g.x.size(); ++i)
        codes[i] = static_cast<std::uint8_t>(encode_weight(g.format, plan.rule.offset, g.x[i], inv, s.offset));
}

struct range {
    float low = 0.0f;
    float high = 0.0f;
};

[[nodiscard]] inline range range_of(std::span<const float> x) noexcept {
    if (x.empty()) return {};
    float low = x[0];
    float high = x[0];
    for (const float v : x) {
        low = v < low ? v : low;
        high = v > high ? v : high;
    }
    return {low, high};
}

/// Group g of a whole row.
[[nodiscard]] inline group_view group_of_row(const layout& l, index g, std::span<const float> row,
                                             std::span<const float> importance, float row_squares, const code_format& f) noexcept {
    const auto first = static_cast<std::size_t>(l.group_begin(g));
    const auto count = static_cast<std::size_t>(l.group_end(g)) - first;
    group_view v{row.subspan(first, count), {}, f, row, l.group_begin(g), 0.0f};
    if (!importance.empty()) {
        v.importance = importance.subspan(first, count);
        v.row_sum_squares = row_squares;
    }
    return v;
}

/// What the rule proposes for a group; a searching rule also writes the codes that it found.
inline group_scale choose_group(const quantize_plan& plan, const group_view& v, std::uint8_t* codes) {
    if (plan.rule.from_range != nullptr) {
        const range r = range_of(v.x);
        return plan.rule.from_range(plan.rule.self, r.low, r.high, *plan.format);
    }
    return plan.rule.from_values(plan.rule.self, v, codes);
}

/// The weight of a group's scale in the search for its super-scale: the sum of the weights of its elements, as the ggml
/// rules have them.
[[nodiscard]] inline float importance_sum(const group_view& v) {
    if (v.x.size() > ggml_max_group) return 0.0f;
    float w[ggml_max_group];
    if (v.format.bits == 6) {
        for (std::size_t i = 0; i < v.x.size(); ++i) w[i] = v.importance[i];
    } else {
        const float squares = super_block_squares(v);
        importance_weights(v, v.format.bits == 2 ? squares / 256.0f : 2.0f * squares / 256.0f, w);
    }
    float sum = 0.0f;
    for (std::size_t i = 0; i < v.x.size(); ++i) sum += w[i];
    return sum;
}

/// One run of quantize().
class quantization {
public:
    quantization(const const_view& w, const quantize_plan& plan, const quantize_options& options)
        : w_(w), plan_(plan), options_(options), scheme_(options.scale.value_or(plan.scale)),
          builder_(w.rows, w.cols, plan.format, scheme_, plan.rule.offset, plan.group, plan.name),
          writer_(builder_, plan, scheme_), cols_(static_cast<std::size_t>(w.cols)),
          tile_(static_cast<std::size_t>(panel_rows) * cols_), codes_(tile_.size()) {}

    [[nodiscard]] NIBBLE_NOINLINE qmatrix run() && {
        const layout& l = builder_.layout();
        if (options_.non_finite == non_finite::saturate) largest_ = largest_finite();
        if (plan_.format->decode == decode_class::wide) {
            for (index p = 0; p < l.panels; ++p) encode_wide(p);
            return std::move(builder_).finish();
        }
        const bool whole_tensor =
            scheme_.storage == scale_storage::e4m3_f32 || scheme_.storage == scale_storage::double_quantized;
        const index block = whole_tensor ? std::max<index>(panel_rows, l.panels * panel_rows)
                                         : ceil_div(std::lcm(l.block_rows, panel_rows), panel_rows) * panel_rows;
        const std::size_t most = static_cast<std::size_t>((std::min)(block, l.rows)) * static_cast<std::size_t>(l.groups);
        scale_.resize(most);
        offset_.resize(most);
        if (!options_.importance.empty() && scheme_.storage == scale_storage::two_level) weight_.resize(most);
        for (index first = 0; first < l.rows; first += block) {
            const index rows = (std::min)(block, l.rows - first);
            if (l.block_rows == 1) choose_rows(first, rows);
            else choose_blocks(first, rows);
            writer_.store(first, rows, scale_.data(), offset_.data(), weight_.empty() ? nullptr : weight_.data(), amax_);
            for (index p = first; p < first + rows; p += panel_rows) encode_panel(first, p, rows > panel_rows);
        }
        return std::move(builder_).finish();
    }

private:
    [[nodiscard]] std::span<const float> tile_row(index r) const noexcept {
        return {tile_.data() + static_cast<std::size_t>(r) * cols_, cols_};
    }

    void load(index first) {
        const index rows = (std::min)(panel_rows, w_.rows - first);
        load_block(w_, first, rows, 0, w_.cols, tile_.data(), w_.cols);
        clean(tile_.data(), first, rows);
    }

    void clean(float* x, index first_row, index rows) const {
        const index bad = find_non_finite(x, rows * w_.cols);
        if (bad < 0) return;
        if (options_.non_finite == non_finite::error) {
            const index n = first_row + bad / w_.cols;
            const index k = bad % w_.cols;
            fail(errc::non_finite, "quantize: W(" + std::to_string(n) + ", " + std::to_string(k) + ") is " +
                                       non_finite_name(x + bad) + " (W is " + shape_text(w_.rows, w_.cols) +
                                       "; non_finite::saturate would accept it)");
        }
        for (index i = bad; i < rows * w_.cols; ++i) {
            if (finite_in_memory(x + i)) continue;
            const std::uint32_t u = bits_of(x[i]);
            x[i] = (u & 0x7fffffffu) > 0x7f800000u ? 0.0f : (u >> 31) != 0 ? -largest_ : largest_;
        }
    }

    [[nodiscard]] float largest_finite() {
        float largest = 0.0f;
        std::vector<float> row(cols_);
        for (index n = 0; n < w_.rows; ++n) {
            load_block(w_, n, 1, 0, w_.cols, row.data(), w_.cols);
            for (const float& x : row)
                if (finite_in_memory(&x) && magnitude(x) > largest) largest = magnitude(x);
        }
        return largest;
    }

    [[nodiscard]] group_view view_of(index r, index g) const noexcept {
        return group_of_row(builder_.layout(), g, tile_row(r), options_.importance, row_squares_, *plan_.format);
    }
    group_scale choose(const group_view& v, std::uint8_t* codes) const { return choose_group(plan_, v, codes); }

    void choose_rows(index first, index rows) {
        const layout& l = builder_.layout();
        for (index p = first; p < first + rows; p += panel_rows) {
            load(p);
            for (index r = 0; r < (std::min)(panel_rows, first + rows - p); ++r) {
                if (scheme_.storage == scale_storage::e4m3_f32) {
                    const range all = range_of(tile_row(r));
                    amax_ = (std::max)(amax_, largest_magnitude(all.low, all.high));
                }
                if (!options_.importance.empty()) row_squares_ = sum_of_squares(tile_row(r));
                for (index g = 0; g < l.groups; ++g) {
                    const auto at = static_cast<std::size_t>((p - first + r) * l.groups + g);
                    const group_view v = view_of(r, g);
                    const group_scale s = choose(v, codes_.data() + static_cast<std::size_t>(r) * cols_ + l.group_begin(g));
                    scale_[at] = s.scale;
                    offset_[at] = s.offset;
                    if (!weight_.empty()) weight_[at] = importance_sum(v);
                }
            }
        }
    }

    /// Groups that span rows: one proposal for each tile of block_rows x group.
    void choose_blocks(index first, index rows) {
        const layout& l = builder_.layout();
        for (index top = first; top < first + rows; top += l.block_rows) {
            const index bottom = (std::min)(top + l.block_rows, first + rows);
            std::vector<group_scale> chosen(static_cast<std::size_t>(l.groups));
            if (plan_.rule.from_range != nullptr) {
                std::vector<range> ranges(chosen.size());
                std::vector<float> row(cols_);
                for (index n = top; n < bottom; ++n) {
                    load_block(w_, n, 1, 0, w_.cols, row.data(), w_.cols);
                    clean(row.data(), n, 1);
                    for (index g = 0; g < l.groups; ++g) {
                        const auto begin = static_cast<std::size_t>(l.group_begin(g));
                        const range r = range_of({row.data() + begin, static_cast<std::size_t>(l.group_end(g)) - begin});
                        range& all = ranges[static_cast<std::size_t>(g)];
                        all = n == top ? r : range{(std::min)(all.low, r.low), (std::max)(all.high, r.high)};
                    }
                }
                for (std::size_t g = 0; g < chosen.size(); ++g)
                    chosen[g] = plan_.rule.from_range(plan_.rule.self, ranges[g].low, ranges[g].high, *plan_.format);
            } else {
                for (index g = 0; g < l.groups; ++g) chosen[static_cast<std::size_t>(g)] = choose_block(top, bottom, g);
            }
            for (index n = top; n < bottom; ++n) {
                for (index g = 0; g < l.groups; ++g) {
                    const auto at = static_cast<std::size_t>((n - first) * l.groups + g);
                    scale_[at] = chosen[static_cast<std::size_t>(g)].scale;
                    offset_[at] = chosen[static_cast<std::size_t>(g)].offset;
                }
            }
        }
        if (scheme_.storage == scale_storage::e4m3_f32) {
            std::vector<float> row(cols_);
            for (index n = first; n < first + rows; ++n) {
                load_block(w_, n, 1, 0, w_.cols, row.data(), w_.cols);
                clean(row.data(), n, 1);
                const range all = range_of(row);
                amax_ = (std::max)(amax_, largest_magnitude(all.low, all.high));
            }
        }
    }

    group_scale choose_block(index top, index bottom, index g) {
        const layout& l = builder_.layout();
        const index width = l.group_end(g) - l.group_begin(g);
        block_.resize(static_cast<std::size_t>(checked_product(bottom - top, width)));
        load_block(w_, top, bottom - top, l.group_begin(g), width, block_.data(), width);
        for (std::size_t i = 0; i < block_.size(); ++i) {  // few enough: the scan by row names the right element
            if (finite_in_memory(&block_[i])) continue;
            std::vector<float> row(cols_);
            const index n = top + static_cast<index>(i) / width;
            load_block(w_, n, 1, 0, w_.cols, row.data(), w_.cols);
            clean(row.data(), n, 1);
            block_[i] = row[static_cast<std::size_t>(l.group_begin(g) + static_cast<index>(i) % width)];
        }
        block_importance_.clear();
        if (!options_.importance.empty())
            for (index n = top; n < bottom; ++n)
                block_importance_.insert(block_importance_.end(), options_.importance.begin() + l.group_begin(g),
                                         options_.importance.begin() + l.group_end(g));
        std::vector<std::uint8_t> codes(block_.size());
        const group_view v{block_, block_importance_, *plan_.format, {}, l.group_begin(g), 0.0f};
        return plan_.rule.from_values(plan_.rule.self, v, codes.data());
    }

    void encode_panel(index first, index p, bool reload) {
        const layout& l = builder_.layout();
        if (reload || l.block_rows != 1) load(p);
        for (index r = 0; r < (std::min)(panel_rows, l.rows - p); ++r) {
            if (!options_.importance.empty()) row_squares_ = sum_of_squares(tile_row(r));
            std::uint8_t* codes = codes_.data() + static_cast<std::size_t>(r) * cols_;
            for (index g = 0; g < l.groups; ++g) {
                const auto at = static_cast<std::size_t>((p - first + r) * l.groups + g);
                const group_view v = view_of(r, g);
                std::uint8_t* to = codes + l.group_begin(g);
                const bool found_before = plan_.rule.from_values != nullptr && plan_.rule.encode != nullptr;
                if (reload && found_before && l.block_rows == 1) choose(v, to);  // the search's codes were not kept
                if (l.block_rows != 1) std::fill_n(to, v.x.size(), std::uint8_t{0});  // a search has left none here
                else if (plan_.rule.keeps_codes != nullptr && plan_.rule.keeps_codes(plan_.rule.self, v)) continue;
                encode_group(plan_, v, {scale_[at], offset_[at]}, to);
            }
            builder_.set_row(p + r, codes);
        }
    }

    void encode_wide(index p) {
        const layout& l = builder_.layout();
        load(p * panel_rows);
        for (index r = 0; r < (std::min)(panel_rows, l.rows - p * panel_rows); ++r)
            for (index k = 0; k < l.cols; ++k)
                builder_.set_code(p * panel_rows + r, k,
                                  plan_.format->encode(*plan_.format, tile_[static_cast<std::size_t>(r) * cols_ + static_cast<std::size_t>(k)]));
    }

    const_view w_;
    const quantize_plan& plan_;
    const quantize_options& options_;
    scale_scheme scheme_;
    qmatrix_builder builder_;
    scale_writer writer_;
    std::size_t cols_;
    std::vector<float> tile_;           // 16 rows of W
    std::vector<std::uint8_t> codes_;   // theirs
    std::vector<float> scale_, offset_, weight_;
    std::vector<float> block_, block_importance_;
    float amax_ = 0.0f;
    float largest_ = 0.0f;
    float row_squares_ = 0.0f;
};

NIBBLE_FP_END

}  // namespace detail

/// Quantizes a view of floats, doubles, halves or bfloat16 (doubles are rounded to float first).
/// Throws nibble::error: errc::non_finite naming the element, errc::unsupported for a combination that does not exist,
/// errc::out_of_range for a scale that its scheme cannot hold.
[[nodiscard]] NIBBLE_API qmatrix quantize(const const_view& w, const quantize_plan& plan, const quantize_options& options = {});

#if NIBBLE_DEFINE_API
NIBBLE_API qmatrix quantize(const const_view& w, const quantize_plan& plan, const quantize_options& options) {
    check_quantize(w, plan, options).or_throw();
    const detail::fp_environment environment;
    return detail::quantization(w, plan, options).run();
}
#endif

namespace detail {

/// The plan of quantize<F>(...).
template <class F>
[[nodiscard]] quantize_plan default_plan() {
    if constexpr (recipe_type<F>) {
        return make_plan(F::get());
    } else {
        static_assert(code_format_type<F>, "quantize<F>: F must be a code format (nibble::int4) or a recipe (nibble::q4_k)");
        if (const recipe* r = default_recipe(F::descriptor())) return make_plan(*r);
        return make_plan(format_handle(F::descriptor()), rules::absmax, per_group{64}, scales::f32);
    }
}

template <class F>
[[nodiscard]] quantize_plan plan_with(const quantizer_ref& rule, granularity group) {
    static_assert(code_format_type<F>, "quantize<F>(W, quantizer, ...): F must be a code format; a recipe has its own rule");
    quantize_plan plan = make_plan(format_handle(F::descriptor()), rules::absmax, group);
    plan.rule = rule;
    return plan;
}

[[nodiscard]] inline quantize_plan plan_of_name(std::string_view name) {
    if (const recipe* r = find_recipe(name)) return make_plan(*r);
    if (const code_format* f = find_format(name)) return make_plan(*default_recipe(*f));
    std::string known;
    for (const recipe& r : recipes()) known.append(known.empty() ? "" : " ").append(r.name);
    fail(errc::not_found, "quantize: there is no format '" + std::string(name) + "'; there are " + known);
}

}  // namespace detail

/// quantize<nf4>(W), quantize<q4_k>(W, {.importance = h}): by the format's or the recipe's own rule. W is N x K.
template <class F, class Derived>
[[nodiscard]] qmatrix quantize(const Eigen::DenseBase<Derived>& w, const quantize_options& options = {}) {
    return quantize(eigen_view<Derived>(w).get(), detail::default_plan<F>(), options);
}

/// quantize<int4>(W, absmax{}, per_group{64}): any code format with any quantizer. Scales are f16 for groups of one
/// row and f32 for whole rows, tiles and tensors, unless the options say otherwise.
template <class F, class Derived, quantizer Q>
[[nodiscard]] qmatrix quantize(const Eigen::DenseBase<Derived>& w, const Q& rule, granularity group,
                               const quantize_options& options = {}) {
    return quantize(eigen_view<Derived>(w).get(), detail::plan_with<F>(erase(rule), group), options);
}

/// quantize<int4>(W, mse{}): with the grouping of the format's own recipe.
template <class F, class Derived, quantizer Q>
[[nodiscard]] qmatrix quantize(const Eigen::DenseBase<Derived>& w, const Q& rule, const quantize_options& options = {}) {
    return quantize(eigen_view<Derived>(w).get(), detail::plan_with<F>(erase(rule), detail::default_plan<F>().group), options);
}

/// quantize<int8>(W, per_group{128}): absmax with another grouping.
template <class F, class Derived>
[[nodiscard]] qmatrix quantize(const Eigen::DenseBase<Derived>& w, granularity group, const quantize_options& options = {}) {
    return quantize(eigen_view<Derived>(w).get(), detail::plan_with<F>(erase(detail::rules::absmax), group), options);
}

// The unused parameter keeps quantize<int4>(W, ...) away: clang 14 would look for a conversion of W to DenseBase<int4>.

/// quantize(W, "q4_k"): by name. Throws errc::not_found listing the names.
template <int = 0, eigen_expression Derived>
[[nodiscard]] qmatrix quantize(const Eigen::DenseBase<Derived>& w, std::string_view name, const quantize_options& options = {}) {
    return quantize(eigen_view<Derived>(w).get(), detail::plan_of_name(name), options);
}

/// quantize(W, plan): any plan of make_plan, for formats and codebooks that are known at run time only.
template <int = 0, eigen_expression Derived>
[[nodiscard]] qmatrix quantize(const Eigen::DenseBase<Derived>& w, const quantize_plan& plan, const quantize_options& options = {}) {
    return quantize(eigen_view<Derived>(w).get(), plan, options);
}

/// Quantizes column by column against scales that are chosen before: the inner step of GPTQ and of every method that
/// corrects the columns still to come.
///
///     column_quantizer q(N, K, plan);
///     q.choose_scales(W);                                  // all groups at once, any scheme
///     for k: if (k % group == 0) q.choose_scales(g, ...);  // or group by group, from the weights as they are now
///            q.quantize(k, column, decoded, codes);        // all rows at one k
///     qmatrix Q = std::move(q).finish();
class column_quantizer {
public:
    column_quantizer(index rows, index cols, quantize_plan plan, const quantize_options& options = {})
        : plan_(std::move(plan)), scheme_(options.scale.value_or(plan_.scale)),
          builder_(rows, cols, plan_.format, scheme_, plan_.rule.offset, plan_.group, plan_.name),
          importance_(options.importance.begin(), options.importance.end()) {
        check_quantize({nullptr, scalar_type::f32, 0, cols, cols, 1}, plan_, options).or_throw();
        if (plan_.rule.whole_group)
            detail::fail(errc::unsupported, std::string("column_quantizer: ") + plan_.rule.name +
                                                " chooses the codes of a group together; use a rule that looks at one weight at a time");
        if (plan_.format->decode == decode_class::wide || builder_.layout().block_rows != 1)
            detail::fail(errc::unsupported, "column_quantizer: " + plan_.name + " has no scales of its own for each row; use groups of one row");
        const auto count = static_cast<std::size_t>(detail::checked_product(rows, builder_.layout().groups));
        scale_.assign(count, 0.0f);
        offset_.assign(count, 0.0f);
        chosen_.assign(static_cast<std::size_t>(builder_.layout().groups), false);
        done_.assign(static_cast<std::size_t>(cols), false);
    }

    [[nodiscard]] index groups() const noexcept { return builder_.layout().groups; }
    [[nodiscard]] index group_size() const noexcept { return builder_.layout().group; }

    /// Chooses and stores the scales of every group from W (N x K).
    template <class Derived>
    void choose_scales(const Eigen::DenseBase<Derived>& w) {
        choose_all(eigen_view<Derived>(w).get());
    }
    /// Chooses and stores the scales of group g from the N x (columns of the group) weights. Schemes that look beyond
    /// one group (two_level, double_quantized, e4m3_f32) need all groups at once: errc::unsupported.
    template <class Derived>
    void choose_scales(index g, const Eigen::DenseBase<Derived>& w) {
        choose_group(g, eigen_view<Derived>(w).get());
    }

    void choose_all(const const_view& w) {
        expect_shape(w, builder_.layout().cols);
        const detail::fp_environment environment;
        choose(w, 0, groups());
    }
    void choose_group(index g, const const_view& w) {
        const detail::layout& l = builder_.layout();
        if (g < 0 || g >= groups())
            detail::fail(errc::out_of_range, "column_quantizer: group " + std::to_string(g) + " of " + std::to_string(groups()));
        if (scheme_.storage == scale_storage::two_level || scheme_.storage == scale_storage::double_quantized ||
            scheme_.storage == scale_storage::e4m3_f32)
            detail::fail(errc::unsupported, std::string("column_quantizer: ") + name_of(scheme_.storage) +
                                                " scales are chosen for all groups at once; call choose_scales(W)");
        expect_shape(w, l.group_end(g) - l.group_begin(g));
        const detail::fp_environment environment;
        choose(w, g, g + 1);
    }

    /// The codes of column k: w[n * stride] of every row n against the stored scales. decoded (N floats) and codes
    /// (N bytes) may each be null. A column is quantized once; throws errc::invalid_argument before its scales are chosen.
    void quantize(index k, const float* w, index stride, float* decoded, std::uint8_t* codes) {
        const detail::layout& l = builder_.layout();
        if (k < 0 || k >= l.cols)
            detail::fail(errc::out_of_range, "column_quantizer: column " + std::to_string(k) + " of " + std::to_string(l.cols));
        if (!chosen_[static_cast<std::size_t>(k / l.group)])
            detail::fail(errc::invalid_argument, "column_quantizer: the scales of group " + std::to_string(k / l.group) +
                                                     " are not chosen yet, column " + std::to_string(k) + " needs them");
        if (done_[static_cast<std::size_t>(k)])
            detail::fail(errc::invalid_argument, "column_quantizer: column " + std::to_string(k) + " is quantized already");
        for (index n = 0; n < l.rows; ++n)
            if (!detail::finite_in_memory(w + n * stride))
                detail::fail(errc::non_finite, "column_quantizer: W(" + std::to_string(n) + ", " + std::to_string(k) + ") is " +
                                                   detail::non_finite_name(w + n * stride));
        const detail::fp_environment environment;
        encode_column(k, w, stride, decoded, codes);
        done_[static_cast<std::size_t>(k)] = true;
    }

    /// The matrix. Throws errc::invalid_argument naming a column that was never quantized.
    [[nodiscard]] qmatrix finish() && {
        for (std::size_t k = 0; k < done_.size(); ++k)
            if (!done_[k] && builder_.layout().rows != 0)
                detail::fail(errc::invalid_argument, "column_quantizer: column " + std::to_string(k) + " of " +
                                                         std::to_string(done_.size()) + " was never quantized");
        const detail::fp_environment environment;
        return std::move(builder_).finish();
    }

private:
    void expect_shape(const const_view& w, index cols) const {
        if (w.rows != builder_.layout().rows || w.cols != cols)
            detail::fail(errc::shape_mismatch, "column_quantizer: W is " + detail::shape_text(w.rows, w.cols) + ", expected " +
                                                   detail::shape_text(builder_.layout().rows, cols));
    }

    void choose(const const_view& w, index first, index last);
    void encode_column(index k, const float* w, index stride, float* decoded, std::uint8_t* codes);

    quantize_plan plan_;
    scale_scheme scheme_;
    qmatrix_builder builder_;
    std::vector<float> importance_;
    std::vector<float> scale_, offset_;  // [row][group]: what codes are chosen against
    std::vector<bool> chosen_, done_;
};

#if NIBBLE_DEFINE_API
NIBBLE_FP_BEGIN

NIBBLE_NOINLINE NIBBLE_API void column_quantizer::choose(const const_view& w, index first, index last) {
    const detail::layout& l = builder_.layout();
    detail::scale_writer writer(builder_, plan_, scheme_);
    std::vector<float> row(static_cast<std::size_t>(w.cols));
    std::vector<std::uint8_t> codes(row.size());
    std::vector<float> weight;
    const bool whole = last - first == l.groups;
    if (whole && !importance_.empty() && scheme_.storage == scale_storage::two_level) weight.resize(scale_.size());
    float amax = 0.0f;
    for (index n = 0; n < l.rows; ++n) {
        detail::load_block(w, n, 1, 0, w.cols, row.data(), w.cols);
        const index bad = detail::find_non_finite(row.data(), w.cols);
        if (bad >= 0)
            detail::fail(errc::non_finite, "column_quantizer: W(" + std::to_string(n) + ", " + std::to_string(bad) + ") is " +
                                               detail::non_finite_name(row.data() + bad));
        const detail::range all = detail::range_of(row);
        amax = (std::max)(amax, detail::largest_magnitude(all.low, all.high));
        const float squares = detail::sum_of_squares(row);
        for (index g = first; g < last; ++g) {
            const auto at = static_cast<std::size_t>(n * l.groups + g);
            std::span<const float> importance = importance_;
            if (!whole && !importance.empty()) importance = importance.subspan(static_cast<std::size_t>(l.group_begin(g)), row.size());
            const group_view v = whole ? detail::group_of_row(l, g, row, importance, squares, *plan_.format)
                                       : group_view{row, importance, *plan_.format, row, 0, squares};
            const group_scale s = detail::choose_group(plan_, v, codes.data());
            scale_[at] = s.scale;
            offset_[at] = s.offset;
            if (!weight.empty()) weight[at] = detail::importance_sum(v);
            if (!whole) writer.store_group(n, g, scale_[at], offset_[at]);
        }
    }
    if (whole) writer.store(0, l.rows, scale_.data(), offset_.data(), weight.empty() ? nullptr : weight.data(), amax);
    for (index g = first; g < last; ++g) chosen_[static_cast<std::size_t>(g)] = true;
}

NIBBLE_NOINLINE NIBBLE_API void column_quantizer::encode_column(index k, const float* w, index stride, float* decoded, std::uint8_t* codes) {
    const detail::layout& l = builder_.layout();
    const index g = k / l.group;
    float scale[16], offset[16];
    for (index n = 0; n < l.rows; ++n) {
        if (n % panel_rows == 0) builder_.peek().expand_scales(n / panel_rows, g, 1, scale, offset);
        const auto at = static_cast<std::size_t>(n * l.groups + g);
        const float x = w[n * stride];
        std::uint8_t code = 0;
        // Without importance: then no rule waits for codes of a search.
        const group_view v{{&x, 1}, {}, *plan_.format, {}, k, 0.0f};
        detail::encode_group(plan_, v, {scale_[at], offset_[at]}, &code);
        builder_.set_code(n, k, code);
        if (codes != nullptr) codes[n] = code;
        if (decoded != nullptr)
            decoded[n] = detail::decode_weight(*plan_.format, plan_.rule.offset, code, scale[n % panel_rows], offset[n % panel_rows]);
    }
}

NIBBLE_FP_END
#endif

}  // namespace nibble
