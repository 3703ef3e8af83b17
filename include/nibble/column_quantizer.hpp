// column_quantizer: quantize() in three steps, one at a time. GPTQ and its kin choose codes column by column against
// scales that stand already.
#pragma once

#include "detail/quantization.hpp"
#include "eigen.hpp"

namespace nibble::inline NIBBLE_ABI {

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
        if (options.non_finite == non_finite::saturate)
            detail::fail(errc::unsupported, "column_quantizer: non_finite::saturate needs the largest magnitude of the whole tensor, and columns come one "
                                            "at a time; replace NaN and Inf before");
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

    /// Stores scales and offsets that were found elsewhere: N x groups() each, row by row. They are rounded as the scheme
    /// stores them, and codes are chosen against that. Throws errc::shape_mismatch, errc::out_of_range for a number that the
    /// scheme cannot hold, errc::unsupported for schemes that weigh groups against each other (two_level, e4m3_f32).
    void set_scales(std::span<const float> scale, std::span<const float> offset) {
        if (scale.size() != scale_.size() || offset.size() != offset_.size())
            detail::fail(errc::shape_mismatch, "column_quantizer: " + std::to_string(scale.size()) + " scales and " + std::to_string(offset.size()) +
                                                   " offsets for " + std::to_string(scale_.size()) + " groups");
        if (scheme_.storage == scale_storage::two_level || scheme_.storage == scale_storage::e4m3_f32)
            detail::fail(errc::unsupported, std::string("column_quantizer: ") + name_of(scheme_.storage) + " scales are chosen from weights; call choose_scales(W)");
        std::copy(scale.begin(), scale.end(), scale_.begin());
        std::copy(offset.begin(), offset.end(), offset_.begin());
        const detail::fp_environment environment;
        detail::scale_writer(builder_, plan_, scheme_).store(0, builder_.layout().rows, scale_.data(), offset_.data(), nullptr, 0.0f);
        chosen_.assign(chosen_.size(), true);
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
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(l.groups * l.padded_group));
    std::vector<float> low(static_cast<std::size_t>(l.groups)), high(low.size());
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
        const auto at = static_cast<std::size_t>(n * l.groups + first);
        if (!whole) {
            std::span<const float> importance = importance_;
            if (!importance.empty()) importance = importance.subspan(static_cast<std::size_t>(l.group_begin(first)), row.size());
            const group_scale s = detail::choose_group(plan_, {row, importance, *plan_.format, row, 0, squares}, codes.data());
            scale_[at] = s.scale;
            offset_[at] = s.offset;
            writer.store_group(n, first, scale_[at], offset_[at]);
            continue;
        }
        for (index g = 0; g < l.groups; ++g) {
            const auto i = static_cast<std::size_t>(g);
            const group_view v = detail::group_of_row(l, g, row, importance_, squares, *plan_.format);
            const detail::range r = detail::range_of(v.x);
            low[i] = r.low;
            high[i] = r.high;
            if (!weight.empty()) weight[at + i] = detail::importance_sum(v);
        }
        detail::propose_groups(plan_, l, {row, importance_, squares, low.data(), high.data()}, scale_.data() + at, offset_.data() + at, codes.data());
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
