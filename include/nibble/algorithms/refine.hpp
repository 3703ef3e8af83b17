// Refinement of a quantized matrix: codes are chosen again, one column at a time, against what all other columns lose now
// (coordinate descent on the squared error of the outputs), then scales by least squares, in turns. It continues from
// wherever the matrix came from, keeps its format, and never loses more than before.
//
//     auto better = nibble::refine(W, Wq, h);          // h: a hessian of the activations
//     better.weights
//
// With d = w - q of a row and e = d H: column k is moved to the code nearest to q_k + e_k / H_kk, and the scale s of a group g
// with q = s v by (e_g . v_g) / (v_g H_gg v_g^T), rounded as the matrix stores it. Both lower d H d^T, or are not done.
// H is damped: with few tokens its small directions are noise, and less damping fits that noise.
#pragma once

#include <algorithm>
#include <cmath>
#include <optional>

#include "output_loss.hpp"

namespace nibble::inline NIBBLE_ABI {

/// What is added to the diagonal of a Hessian of T tokens and K channels, as a part of its mean, unless told otherwise:
/// 0.01 + 0.4 K / T, at most 1. The noise of second moments grows as K / T; 0.4 is about what losses least on calibration tokens
/// held back from it (bench/data, four-fold: 0.4 to 1.6 for K / T = 2 and 8).
[[nodiscard]] inline double automatic_damping(index channels, index tokens) noexcept {
    if (tokens <= 0) return 1.0;
    return (std::min)(1.0, 0.01 + 0.4 * static_cast<double>(channels) / static_cast<double>(tokens));
}

struct refine_options {
    /// Rounds of codes, with scales between them.
    int rounds = 2;
    /// Passes over all columns in each round, at most.
    int sweeps = 2;
    /// Whether scales are fitted again: f32, f16 and bf16 scales of groups of one row.
    bool scales = true;
    /// Added to the diagonal of H, as a part of its mean; empty: automatic_damping.
    std::optional<double> damping{};
    /// Column j of the matrix is column order[j] of W, as gptq returns it; empty: the same.
    std::vector<index> order{};
    nibble::executor* executor = nullptr;
    /// Called with rows done and all rows; returning false stops with errc::cancelled.
    std::function<bool(index done, index total)> progress{};
};

/// Losses are means over the calibration tokens of |(W - Q) x|^2; damped ones have the damping in H, and only those never grow.
struct refine_report {
    double loss_before = 0.0, loss_after = 0.0;
    double damped_before = 0.0, damped_after = 0.0;
    double damping = 0.0;
    index codes_changed = 0;   ///< moves, not codes that differ in the end
    index scales_changed = 0;
};

struct refine_result {
    qmatrix weights;
    refine_report report;
};

namespace detail {

/// The matrix with other codes (N x K) and, where `scale` has them, other stored scales (N x groups).
[[nodiscard]] inline qmatrix with_codes(const qmatrix& q, const std::uint8_t* codes, const std::vector<std::uint32_t>& scale) {
    qmatrix_builder to(q.rows(), q.cols(), q.handle(), q.scheme(), q.offset_type(), q.grouping(), q.name());
    to.set_tensor_scale(q.tensor_scale());
    const layout& l = q.layout();
    for (index n = 0; n < l.rows; ++n) {
        for (index g = 0; g < l.groups; ++g) {
            to.set_scale(n, g, scale.empty() ? q.stored_scale(n, g) : scale[static_cast<std::size_t>(n * l.groups + g)]);
            if (q.offset_type() != offset_kind::none) to.set_offset(n, g, q.stored_offset(n, g));
        }
        for (index k = 0; k < l.cols; ++k) to.set_code(n, k, codes[n * l.cols + k]);
        for (index s = 0; s < l.supers && q.scheme().storage == scale_storage::two_level; ++s) {
            to.set_super(n, s, q.stored_super(n, s));
            if (q.offset_type() == offset_kind::minimum) to.set_super(n, s, q.stored_super(n, s, true), true);
        }
    }
    for (index s = 0; s < l.supers && q.scheme().storage == scale_storage::double_quantized; ++s) to.set_nested_absmax(s, q.nested_absmax(s));
    return std::move(to).finish();
}

template <class Scalar>
class refine_run {
    using matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;
    using tile_matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

public:
    /// added: on the diagonal of the mean of x x^T.
    refine_run(const const_view& w, const qmatrix& q, const basic_hessian<Scalar>& h, double added, const refine_options& options)
        : w_(w), q_(q), h_(h), added_(added), options_(options), groups_(q.groups()), size_(q.group_size()) {}

    [[nodiscard]] refine_result run();

private:
    static constexpr index tile_rows = 32;

    struct tile {
        index first, rows;
        tile_matrix lost, e;       // w - q, and that times H
        float* scale;              // [row][group]
        const float* offset;
        std::uint8_t* codes;
        index moves = 0, fits = 0;
    };

    [[nodiscard]] index source(index j) const noexcept { return options_.order.empty() ? j : options_.order[static_cast<std::size_t>(j)]; }
    [[nodiscard]] float decode(unsigned code, float scale, float offset) const noexcept { return decode_weight(q_.format(), q_.offset_type(), code, scale, offset); }

    void gather() {
        const index k = w_.cols;
        moments_.resize(k, k);
        const Scalar per_token = Scalar(1) / static_cast<Scalar>(h_.tokens());
        visit_.clear();
        for (index j = 0; j < k; ++j) {
            const index b = source(j);
            for (index i = 0; i < k; ++i) moments_(i, j) = h_.sum((std::max)(source(i), b), (std::min)(source(i), b)) * per_token;
            if (moments_(j, j) != Scalar(0)) visit_.push_back(j);
            moments_(j, j) += static_cast<Scalar>(added_);
        }
        std::stable_sort(visit_.begin(), visit_.end(), [&](index a, index b) { return moments_(a, a) > moments_(b, b); });
        fits_ = options_.scales && q_.layout().block_rows == 1 && q_.scheme().span <= 1 &&
                (q_.scheme().storage == scale_storage::f32 || q_.scheme().storage == scale_storage::f16 || q_.scheme().storage == scale_storage::bf16);
        // The least distance of two values: a code that is wanted less than half of it away stays.
        std::vector<double> values;
        for (unsigned c = 0; c < q_.format().code_count(); ++c)
            if (const float v = q_.format().value(c); finite_in_memory(&v)) values.push_back(static_cast<double>(v));
        std::sort(values.begin(), values.end());
        double gap = HUGE_VAL;
        for (std::size_t i = 1; i < values.size(); ++i)
            if (values[i] > values[i - 1]) gap = (std::min)(gap, values[i] - values[i - 1]);
        stays_ = static_cast<Scalar>(0.499 * (std::min)(gap, 1.0));  // codes with offsets are 1 apart
        const auto count = static_cast<std::size_t>(w_.rows * groups_);
        codes_.resize(static_cast<std::size_t>(checked_product(w_.rows, k)));
        scale_.resize(count);
        offset_.resize(count);
        for (index n = 0; n < w_.rows; ++n) {
            for (index g = 0; g < groups_; ++g) {
                scale_[static_cast<std::size_t>(n * groups_ + g)] = q_.scale(n, g);
                offset_[static_cast<std::size_t>(n * groups_ + g)] = q_.offset(n, g);
            }
            for (index j = 0; j < k; ++j) codes_[static_cast<std::size_t>(n * k + j)] = static_cast<std::uint8_t>(q_.code(n, j));
        }
    }

    [[nodiscard]] tile load(index first, index rows) {
        const index k = w_.cols;
        tile t{first, rows, tile_matrix::Zero(rows, k), {}, scale_.data() + first * groups_, offset_.data() + first * groups_, codes_.data() + first * k};
        Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> w(rows, k);
        load_block(w_, first, rows, 0, k, w.data(), k);
        const index bad = find_non_finite(w.data(), w.size());
        if (bad >= 0)
            fail(errc::non_finite, "refine: W(" + std::to_string(first + bad / k) + ", " + std::to_string(bad % k) + ") is " + non_finite_name(w.data() + bad));
        for (index r = 0; r < rows; ++r)
            for (const index j : visit_) {  // dead channels lose nothing
                const index g = r * groups_ + j / size_;
                t.lost(r, j) = static_cast<Scalar>(w(r, source(j))) - static_cast<Scalar>(decode(t.codes[r * k + j], t.scale[g], t.offset[g]));
            }
        t.e = t.lost * moments_;
        return t;
    }
    [[nodiscard]] static double damped(const tile& t) { return t.lost.cwiseProduct(t.e).template cast<double>().sum(); }
    [[nodiscard]] double plain(const tile& t) const { return (std::max)(0.0, damped(t) - added_ * t.lost.template cast<double>().squaredNorm()); }

    /// One pass over the columns; returns how many codes moved.
    index sweep(tile& t) const {
        const index k = w_.cols;
        index moved = 0;
        for (const index j : visit_) {
            const Scalar h = moments_(j, j);
            const index group = j / size_;
            for (index r = 0; r < t.rows; ++r) {
                const index g = r * groups_ + group;
                if (std::abs(t.e(r, j)) < stays_ * h * std::abs(static_cast<Scalar>(t.scale[g]))) continue;
                std::uint8_t& code = t.codes[r * k + j];
                const float now = decode(code, t.scale[g], t.offset[g]);
                const auto target = static_cast<float>(static_cast<Scalar>(now) + t.e(r, j) / h);
                if (!finite_in_memory(&target)) continue;
                const unsigned next = encode_weight(q_.format(), q_.offset_type(), target, inverse(t.scale[g]), t.offset[g]);
                if (next == code) continue;
                const auto step = static_cast<Scalar>(decode(next, t.scale[g], t.offset[g])) - static_cast<Scalar>(now);
                if (!(step * (step * h - Scalar(2) * t.e(r, j)) < Scalar(0))) continue;
                code = static_cast<std::uint8_t>(next);
                t.lost(r, j) -= step;
                t.e.row(r) -= step * moments_.col(j).transpose();
                ++moved;
            }
        }
        return moved;
    }

    /// Scales of every group, one after the other.
    void fit(tile& t) const {
        const index k = w_.cols;
        for (index g = 0; g < groups_; ++g) {
            const index first = g * size_, count = (std::min)(size_, k - first);
            matrix unit(t.rows, count), change = matrix::Zero(t.rows, count);
            for (index r = 0; r < t.rows; ++r)
                for (index i = 0; i < count; ++i) {
                    const float offset = q_.offset_type() == offset_kind::minimum ? 0.0f : t.offset[r * groups_ + g];
                    const bool live = moments_(first + i, first + i) != static_cast<Scalar>(added_);
                    unit(r, i) = live ? static_cast<Scalar>(decode(t.codes[r * k + first + i], 1.0f, offset)) : Scalar(0);
                }
            const matrix uh = unit * moments_.block(first, first, count, count);
            bool any = false;
            for (index r = 0; r < t.rows; ++r) {
                float& scale = t.scale[r * groups_ + g];
                const auto need = static_cast<double>(t.e.row(r).segment(first, count).dot(unit.row(r)));
                const auto size = static_cast<double>(uh.row(r).dot(unit.row(r)));
                if (!(size > 0.0)) continue;
                const auto wanted = static_cast<float>(static_cast<double>(scale) + need / size);
                if (!finite_in_memory(&wanted)) continue;
                const float next = decode_stored(q_.scheme().storage, encode_stored(q_.scheme().storage, wanted));
                const double step = static_cast<double>(next) - static_cast<double>(scale);
                const bool near_by = scale > 0.0f ? next > 0.5f * scale && next < 2.0f * scale : next < 0.5f * scale && next > 2.0f * scale;
                if (!near_by || !(step * (step * size - 2.0 * need) < 0.0)) continue;
                for (index i = 0; i < count; ++i) {
                    if (unit(r, i) == Scalar(0)) continue;
                    const unsigned code = t.codes[r * k + first + i];
                    const float offset = t.offset[r * groups_ + g];
                    change(r, i) = static_cast<Scalar>(decode(code, next, offset)) - static_cast<Scalar>(decode(code, scale, offset));
                }
                scale = next;
                any = true;
                ++t.fits;
            }
            if (!any) continue;
            t.lost.middleCols(first, count) -= change;
            t.e.noalias() -= change * moments_.middleRows(first, count);
        }
    }

    const const_view& w_;
    const qmatrix& q_;
    const basic_hessian<Scalar>& h_;
    double added_;
    const refine_options& options_;
    index groups_, size_;
    matrix moments_;             // of x x^T, damped, in the order of q
    std::vector<index> visit_;   // columns that are not dead, the largest activations first
    bool fits_ = false;
    Scalar stays_ = Scalar(0);   // of a scale
    std::vector<std::uint8_t> codes_;
    std::vector<float> scale_, offset_;
};

template <class Scalar>
refine_result refine_run<Scalar>::run() {
    const fp_environment environment;
    refine_result r;
    gather();
    std::vector<refine_report> reports(static_cast<std::size_t>(ceil_div(w_.rows, tile_rows)));
    for_row_tiles(w_.rows, tile_rows, options_.executor, options_.progress, "refine", [&](index i, index first, index rows) {
        refine_report& report = reports[static_cast<std::size_t>(i)];
        tile t = load(first, rows);
        report.damped_before = damped(t);
        report.loss_before = plain(t);
        for (int round = 0; round < options_.rounds; ++round) {
            if (round > 0 && fits_) fit(t);
            for (int s = 0; s < options_.sweeps; ++s) {
                const index moved = sweep(t);
                t.moves += moved;
                if (moved == 0) break;
            }
        }
        report.damped_after = damped(t);
        report.loss_after = plain(t);
        report.codes_changed = t.moves;
        report.scales_changed = t.fits;
    });
    for (const refine_report& part : reports) {
        r.report.damped_before += part.damped_before;
        r.report.damped_after += part.damped_after;
        r.report.loss_before += part.loss_before;
        r.report.loss_after += part.loss_after;
        r.report.codes_changed += part.codes_changed;
        r.report.scales_changed += part.scales_changed;
    }
    std::vector<std::uint32_t> stored;
    if (r.report.scales_changed > 0)
        for (const float s : scale_) stored.push_back(encode_stored(q_.scheme().storage, s));
    r.weights = with_codes(q_, codes_.data(), stored);
    return r;
}

#if defined(NIBBLE_COMPILED)
#if NIBBLE_DEFINE_ALGORITHMS
template class refine_run<float>;
template class refine_run<double>;
#else
extern template class refine_run<float>;
extern template class refine_run<double>;
#endif
#endif

}  // namespace detail

/// Refines Q, which stands for W (N x K), against the activations that `h` has seen.
/// Throws errc::shape_mismatch, errc::invalid_argument (no tokens, options that cannot be), errc::unsupported for 16-bit formats,
/// errc::out_of_range (squares overflowed), errc::non_finite for weights, errc::cancelled.
template <class Scalar>
[[nodiscard]] refine_result refine(const const_view& w, const qmatrix& q, const basic_hessian<Scalar>& h, const refine_options& options = {}) {
    detail::check_calibration("refine", w, h);
    if (q.rows() != w.rows || q.cols() != w.cols)
        detail::fail(errc::shape_mismatch, "refine: W is " + detail::shape_text(w.rows, w.cols) + ", Q is " + detail::shape_text(q.rows(), q.cols()));
    if (q.format().decode == decode_class::wide || q.layout().first_row != 0)
        detail::fail(errc::unsupported, "refine: " + q.name() + (q.layout().first_row != 0 ? " is a block of rows of another matrix" : " has codes of 16 bits"));
    const double damping = options.damping.value_or(automatic_damping(w.cols, h.tokens()));
    if (options.rounds < 0 || options.sweeps < 1 || !(damping >= 0.0 && damping <= 1e6) ||
        (!options.order.empty() && static_cast<index>(options.order.size()) != w.cols))
        detail::fail(errc::invalid_argument, "refine: " + std::to_string(options.rounds) + " rounds of " + std::to_string(options.sweeps) + " sweeps, a damping of " +
                                                 std::to_string(damping) + ", an order of " + std::to_string(options.order.size()) + " columns");
    std::vector<bool> seen(options.order.size());
    for (const index k : options.order) {
        if (k < 0 || k >= w.cols || seen[static_cast<std::size_t>(k)])
            detail::fail(errc::invalid_argument, "refine: the order names column " + std::to_string(k) + " twice, or it does not exist");
        seen[static_cast<std::size_t>(k)] = true;
    }
    const detail::fp_environment environment;
    double mean = 0.0;
    index live = 0;
    for (index k = 0; k < w.cols; ++k) {
        const auto d = static_cast<double>(h.sum(k, k));
        mean += d;
        live += d != 0.0;
    }
    const double added = live == 0 ? 0.0 : damping * mean / static_cast<double>(live) / static_cast<double>(h.tokens());
    refine_result r = detail::refine_run<Scalar>(w, q, h, added, options).run();
    r.report.damping = damping;
    return r;
}
template <eigen_expression W, class Scalar>
[[nodiscard]] refine_result refine(const Eigen::DenseBase<W>& w, const qmatrix& q, const basic_hessian<Scalar>& h, const refine_options& options = {}) {
    return refine(eigen_view<W>(w).get(), q, h, options);
}

}  // namespace nibble
