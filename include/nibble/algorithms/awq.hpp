// AWQ (Lin et al. 2023, arXiv:2306.00978): channels that carry large activations get finer steps. Their weights are multiplied
// by s_k before rounding and their activations divided by it; s_k is a power of the mean |x_k|, and the power is searched.
// Then ranges are clipped where that loses less.
//
//     nibble::hessian h(K);  nibble::channel_magnitudes seen(K);
//     for each batch: h.add(X), seen.add(X);
//     auto [Wq, scales, report] = nibble::awq(W, h, seen, nibble::int4_zero_g128::get());
//     nibble::divide_rows(X, scales);   Wq * X;                       // or fold them: channel_scales.hpp
//
// The errors that candidates are compared by are those of all outputs over all calibration tokens, from the second moments:
// |(W - Q) X|^2 is the sum of d (X X^T) d^T. So no token is kept, none is left out, and a candidate is a tile of 64 rows.
#pragma once

#include <cmath>

#include "../calibration/magnitudes.hpp"
#include "channel_scales.hpp"
#include "output_loss.hpp"

namespace nibble::inline NIBBLE_ABI {

struct awq_options {
    /// Powers tried: i / steps for i = 0 .. steps - 1.
    int steps = 20;
    /// Ranges tried for each group: 1 - i / clip_steps of its largest magnitude, i = 0 .. clip_steps * most_clipped - 1.
    int clip_steps = 20;
    /// 0: ranges are not clipped. (The authors do not clip query and key projections.)
    double most_clipped = 0.5;
    nibble::executor* executor = nullptr;
    /// Called with rows done and all rows, for each search from 0 on; returning false stops with errc::cancelled.
    std::function<bool(index done, index total)> progress{};
};

/// Losses are means over the calibration tokens of the squared error of all outputs, |(W - Q) x|^2.
struct awq_report {
    double power = 0.0;               ///< chosen: s_k is about (mean |x_k|)^power
    std::vector<double> losses{};     ///< of each power that was tried; the first is rounding to nearest
    double loss_before = 0.0;         ///< rounding to nearest
    double loss_after = 0.0;
    index clipped = 0;                ///< groups whose range was clipped; 0 also where clipping as a whole lost more
    index tokens = 0;
};

struct awq_result {
    qmatrix weights;                ///< of W diag(scales)
    std::vector<float> scales;      ///< weights * (X with row k divided by scales[k]) is about W X
    awq_report report;
};

/// The channel scales, and what each power loses.
struct awq_scales {
    std::vector<float> scales;
    double power = 0.0;
    std::vector<double> losses;
};

namespace detail {

/// max(mean^power, 1e-4), times what makes the product of the largest and the smallest 1.
[[nodiscard]] inline std::vector<float> awq_candidate(std::span<const float> mean, double power) {
    std::vector<double> s(mean.size());
    double low = HUGE_VAL, high = 0.0;
    for (std::size_t k = 0; k < s.size(); ++k) {
        s[k] = (std::max)(std::pow(static_cast<double>(mean[k]), power), 1e-4);
        low = (std::min)(low, s[k]);
        high = (std::max)(high, s[k]);
    }
    std::vector<float> out(s.size());
    const double middle = std::sqrt(low * high);
    for (std::size_t k = 0; k < s.size(); ++k) out[k] = static_cast<float>(s[k] / middle);
    return out;
}

inline void check_awq(const awq_options& o) {
    if (o.steps < 1 || o.clip_steps < 1) fail(errc::invalid_argument, "awq: searches of " + std::to_string(o.steps) + " powers and " + std::to_string(o.clip_steps) + " ranges");
    if (!(o.most_clipped >= 0.0 && o.most_clipped < 1.0)) fail(errc::invalid_argument, "awq: ranges clipped by up to " + std::to_string(o.most_clipped) + ", not in [0, 1)");
}

/// Candidates of one matrix, tile by tile.
template <class Scalar>
class awq_search {
    using matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;
    using tile_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

public:
    awq_search(const const_view& w, const basic_hessian<Scalar>& h, const quantize_plan& plan, const awq_options& options)
        : w_(w), h_(h), plan_(plan), options_(options) {
        check_calibration("awq", w, h);
        check_awq(options);
        check_quantize(w, plan).or_throw();
    }

    /// Losses of the candidates, [candidate]: the mean over the tokens of |(W - Q / s) x|^2, Q of W diag(s).
    [[nodiscard]] std::vector<double> losses(std::span<const std::vector<float>> candidates) const;
    /// The largest magnitude to keep, N x groups, for W diag(s) and X / s.
    [[nodiscard]] Eigen::MatrixXf limits(std::span<const float> s) const;

private:
    [[nodiscard]] tile_matrix load(index first, index rows, std::span<const float> s) const {
        tile_matrix tile(rows, w_.cols);
        load_block(w_, first, rows, 0, w_.cols, tile.data(), w_.cols);
        const index bad = find_non_finite(tile.data(), tile.size());
        if (bad >= 0)
            fail(errc::non_finite, "awq: W(" + std::to_string(first + bad / w_.cols) + ", " + std::to_string(bad % w_.cols) + ") is " +
                                       non_finite_name(tile.data() + bad));
        if (!s.empty()) multiply_columns_of(writable_view(tile), s.data());
        return tile;
    }
    /// What rounding adds to the tile.
    [[nodiscard]] matrix error_of(const tile_matrix& tile, const tile_matrix& of) const {
        tile_matrix rounded(tile.rows(), tile.cols());
        dequantize(quantize(tile, plan_), rounded);
        return rounded.template cast<Scalar>() - of.template cast<Scalar>();
    }

    const const_view& w_;
    const basic_hessian<Scalar>& h_;
    const quantize_plan& plan_;
    const awq_options& options_;
};

template <class Scalar>
std::vector<double> awq_search<Scalar>::losses(std::span<const std::vector<float>> candidates) const {
    const fp_environment environment;
    const matrix moments = h_.matrix();
    const index tile = tile_of(plan_, w_.rows), tiles = ceil_div(w_.rows, tile);
    Eigen::MatrixXd loss = Eigen::MatrixXd::Zero(static_cast<index>(candidates.size()), tiles);
    for_row_tiles(w_.rows, tile, options_.executor, options_.progress, "awq", [&](index t, index first, index rows) {
        for (std::size_t i = 0; i < candidates.size(); ++i) {
            const tile_matrix scaled = load(first, rows, candidates[i]);
            matrix d = error_of(scaled, scaled);
            for (index k = 0; k < d.cols(); ++k) d.col(k) /= static_cast<Scalar>(candidates[i][static_cast<std::size_t>(k)]);
            const matrix dh = d * moments;
            loss(static_cast<index>(i), t) = 0.5 * dh.cwiseProduct(d).template cast<double>().sum();
        }
    });
    std::vector<double> out(candidates.size(), 0.0);
    for (std::size_t i = 0; i < out.size(); ++i)
        for (index t = 0; t < tiles; ++t) out[i] += loss(static_cast<index>(i), t);
    return out;
}

template <class Scalar>
Eigen::MatrixXf awq_search<Scalar>::limits(std::span<const float> s) const {
    const fp_environment environment;
    const layout l = make_layout(w_.rows, w_.cols, plan_.format->bits, plan_.scale, plan_.rule.offset, plan_.group);
    // The blocks of X X^T on the diagonal, of X divided by s.
    std::vector<matrix> blocks;
    for (index g = 0; g < l.groups; ++g) {
        const index begin = l.group_begin(g), count = l.group_end(g) - begin;
        matrix b(count, count);
        for (index j = 0; j < count; ++j)
            for (index i = 0; i < count; ++i) {
                const double factor = s.empty() ? 1.0 : static_cast<double>(s[static_cast<std::size_t>(begin + i)]) * static_cast<double>(s[static_cast<std::size_t>(begin + j)]);
                b(i, j) = static_cast<Scalar>(static_cast<double>(h_.sum(begin + (std::max)(i, j), begin + (std::min)(i, j))) / factor);
            }
        blocks.push_back(std::move(b));
    }
    const int candidates = (std::max)(1, static_cast<int>(options_.most_clipped * options_.clip_steps));
    Eigen::MatrixXf best(w_.rows, l.groups);
    for_row_tiles(w_.rows, tile_of(plan_, w_.rows), options_.executor, options_.progress, "awq", [&](index, index first, index rows) {
        const tile_matrix tile = load(first, rows, s);
        tile_matrix clipped = tile;
        Eigen::MatrixXd least = Eigen::MatrixXd::Constant(rows, l.groups, HUGE_VAL);
        for (int i = 0; i < candidates; ++i) {
            const float keep = static_cast<float>(1.0 - static_cast<double>(i) / options_.clip_steps);
            const auto limit = [&](index g) {
                return (tile.middleCols(l.group_begin(g), l.group_end(g) - l.group_begin(g)).cwiseAbs().rowwise().maxCoeff() * keep).eval();
            };
            for (index g = 0; g < l.groups; ++g) {
                const index begin = l.group_begin(g), count = l.group_end(g) - begin;
                const Eigen::VectorXf most = limit(g);
                for (index k = begin; k < begin + count; ++k) clipped.col(k) = tile.col(k).cwiseMin(most).cwiseMax(-most);
            }
            const matrix d = error_of(clipped, tile);
            for (index g = 0; g < l.groups; ++g) {
                const auto part = d.middleCols(l.group_begin(g), l.group_end(g) - l.group_begin(g));
                const matrix dh = part * blocks[static_cast<std::size_t>(g)];
                const Eigen::VectorXd loss = dh.cwiseProduct(part).template cast<double>().rowwise().sum();
                const Eigen::VectorXf most = limit(g);
                for (index r = 0; r < rows; ++r)
                    if (loss[r] < least(r, g)) {
                        least(r, g) = loss[r];
                        best(first + r, g) = most[r];
                    }
            }
        }
    });
    return best;
}

/// w(n, k) is kept within the limits of its group.
inline void clamp_groups(Eigen::Ref<Eigen::MatrixXf> w, const Eigen::MatrixXf& limits, index group) {
    for (index k = 0; k < w.cols(); ++k) w.col(k) = w.col(k).cwiseMin(limits.col(k / group)).cwiseMax(-limits.col(k / group));
}

#if defined(NIBBLE_COMPILED)
#if NIBBLE_DEFINE_ALGORITHMS
template class awq_search<float>;
template class awq_search<double>;
#else
extern template class awq_search<float>;
extern template class awq_search<double>;
#endif
#endif

}  // namespace detail

/// The search of channel scales alone, s_k = max((mean |x_k|)^power, 1e-4) over the root of the largest times the smallest.
/// Throws what awq throws.
template <class Scalar>
[[nodiscard]] awq_scales awq_search_scales(const const_view& w, const basic_hessian<Scalar>& h, const channel_magnitudes& seen, const quantize_plan& plan,
                                           const awq_options& options = {}) {
    if (seen.channels() != w.cols)
        detail::fail(errc::shape_mismatch, "awq: W is " + detail::shape_text(w.rows, w.cols) + ", magnitudes are of " + std::to_string(seen.channels()) + " channels");
    const detail::fp_environment environment;
    const detail::awq_search<Scalar> search(w, h, plan, options);
    const std::vector<float> mean = seen.mean();
    std::vector<std::vector<float>> candidates;
    for (int i = 0; i < options.steps; ++i) candidates.push_back(detail::awq_candidate(mean, static_cast<double>(i) / options.steps));
    awq_scales out;
    out.losses = search.losses(candidates);
    const auto best = std::min_element(out.losses.begin(), out.losses.end()) - out.losses.begin();
    out.power = static_cast<double>(best) / options.steps;
    out.scales = candidates[static_cast<std::size_t>(best)];
    return out;
}

/// The search of ranges alone: for each row and group (N x groups) the largest magnitude to keep, the one that loses least of
/// the outputs that the group contributes. Clamp W to it before quantizing. Throws what awq throws.
template <class Scalar>
[[nodiscard]] Eigen::MatrixXf awq_search_clip(const const_view& w, const basic_hessian<Scalar>& h, const quantize_plan& plan, const awq_options& options = {}) {
    return detail::awq_search<Scalar>(w, h, plan, options).limits({});
}

/// Both, and the matrix. W is N x K. Clipping is kept if the loss of the whole falls.
/// Throws errc::shape_mismatch, errc::invalid_argument (no tokens, options that cannot be), errc::non_finite for weights,
/// errc::out_of_range (squares of activations overflowed), errc::cancelled.
template <class Scalar>
[[nodiscard]] awq_result awq(const const_view& w, const basic_hessian<Scalar>& h, const channel_magnitudes& seen, const quantize_plan& plan,
                             const awq_options& options = {}) {
    const detail::fp_environment environment;
    awq_scales found = awq_search_scales(w, h, seen, plan, options);
    awq_result r;
    r.report.power = found.power;
    r.report.loss_before = found.losses.front();
    r.report.loss_after = *std::min_element(found.losses.begin(), found.losses.end());
    r.report.losses = std::move(found.losses);
    r.report.tokens = h.tokens();
    r.scales = std::move(found.scales);
    Eigen::MatrixXf scaled(w.rows, w.cols);
    detail::load_block({w.data, w.type, w.cols, w.rows, w.col_stride, w.row_stride}, 0, w.cols, 0, w.rows, scaled.data(), w.rows);
    multiply_columns(scaled, r.scales);
    quantize_options rounding;
    rounding.executor = options.executor;
    r.weights = quantize(scaled, plan, rounding);
    if (options.most_clipped == 0.0 || scaled.size() == 0) return r;
    const Eigen::MatrixXf limits = detail::awq_search<Scalar>(w, h, plan, options).limits(r.scales);
    const Eigen::MatrixXf before = scaled;
    detail::clamp_groups(scaled, limits, r.weights.group_size());
    const qmatrix clipped = quantize(scaled, plan, rounding);
    Eigen::MatrixXf decoded = dequantize(clipped, {.executor = options.executor});
    for (index k = 0; k < decoded.cols(); ++k) decoded.col(k) /= r.scales[static_cast<std::size_t>(k)];
    const double loss = output_loss(w, column_major(static_cast<const float*>(decoded.data()), w.rows, w.cols), h, options.executor);
    if (!(loss < r.report.loss_after)) return r;
    r.report.loss_after = loss;
    r.weights = clipped;
    for (index g = 0; g < limits.cols(); ++g) {
        const index first = g * clipped.group_size(), count = (std::min)(clipped.group_size(), w.cols - first);
        r.report.clipped += (before.middleCols(first, count).cwiseAbs().rowwise().maxCoeff().array() > limits.col(g).array()).count();
    }
    return r;
}

/// The same of Eigen expressions, with a recipe or a plan.
template <eigen_expression W, class Scalar>
[[nodiscard]] awq_result awq(const Eigen::DenseBase<W>& w, const basic_hessian<Scalar>& h, const channel_magnitudes& seen, const quantize_plan& plan,
                             const awq_options& options = {}) {
    return awq(eigen_view<W>(w).get(), h, seen, plan, options);
}
template <eigen_expression W, class Scalar>
[[nodiscard]] awq_result awq(const Eigen::DenseBase<W>& w, const basic_hessian<Scalar>& h, const channel_magnitudes& seen, const recipe& r,
                             const awq_options& options = {}) {
    return awq(eigen_view<W>(w).get(), h, seen, make_plan(r), options);
}

}  // namespace nibble
