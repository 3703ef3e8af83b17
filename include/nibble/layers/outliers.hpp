// Dense and sparse: a quantized matrix for most weights, and the few that would cost it most as they are (SpQR: Dettmers et al. 2023,
// arXiv:2306.03078; the choice by size is SqueezeLLM's, Kim et al. 2023, arXiv:2306.07629).
//
//     nibble::outlier_matrix W2 = nibble::split_outliers(W, nibble::make_plan(nibble::int3_zero_g64::get()), {.fraction = 0.005});
//     Eigen::MatrixXf Y = W2 * X;                                   // both at once
//
//     auto split = nibble::find_outliers(W, plan, {.fraction = 0.005, .importance = h.weights()});      // SpQR: GPTQ for the rest
//     nibble::outlier_matrix W3 = nibble::join_outliers(nibble::gptq(split.rest, hessian, plan).weights, W, split.rest, split);
//
// An outlier is a column and an fp16. The dense matrix is quantized with 0 in its place (the mean of the rest of its group where the
// format has a minimum or a float zero), so no scale need reach it, and the sparse part holds fp16(w - q): the weight itself where
// the dense one decodes to 0. Weights in fp16 are then exact, others off by an fp16 rounding.
//
// y = dense x (gemm), then the outliers of each row in the order of columns, one fma in float each: bits do not depend on machine,
// threads or batch size.
#pragma once

#include "../dequantize.hpp"
#include "../gemm.hpp"
#include "../quantize.hpp"

namespace nibble::inline NIBBLE_ABI {

struct outlier_options {
    /// The part of all weights to keep, the costliest first; 1 keeps all.
    double fraction = 0.005;
    /// One weight >= 0 per column: the cost of a weight is importance * w^2. Empty: all ones.
    std::span<const float> importance{};
    nibble::executor* executor = nullptr;
};

/// Sums of a quantized matrix and a sparse one, N x K, in rows: columns ascend in each.
class outlier_matrix {
public:
    /// Row n has the elements row_begin[n] .. row_begin[n + 1] - 1. Throws errc::shape_mismatch or errc::invalid_argument for
    /// arrays that are no such matrix, errc::non_finite for a value.
    outlier_matrix(qmatrix dense, std::vector<index> row_begin, std::vector<std::int32_t> columns, std::vector<std::uint16_t> values)
        : dense_(std::move(dense)), row_begin_(std::move(row_begin)), columns_(std::move(columns)), values_(std::move(values)) {
        const auto count = static_cast<index>(columns_.size());
        if (static_cast<index>(row_begin_.size()) != dense_.rows() + 1 || columns_.size() != values_.size() || row_begin_.front() != 0 || row_begin_.back() != count)
            detail::fail(errc::shape_mismatch, "outlier_matrix: W is " + detail::shape_text(dense_.rows(), dense_.cols()) + ", with " +
                                                   std::to_string(row_begin_.size()) + " row beginnings, " + std::to_string(count) + " columns and " +
                                                   std::to_string(values_.size()) + " values");
        for (index n = 0; n < dense_.rows(); ++n) {
            const index first = row_begin_[at(n)], last = row_begin_[at(n + 1)];
            bool good = first <= last && last <= count;
            for (index i = first; good && i < last; ++i)
                good = columns_[at(i)] >= 0 && columns_[at(i)] < dense_.cols() && (i == first || columns_[at(i)] > columns_[at(i - 1)]);
            if (!good) detail::fail(errc::invalid_argument, "outlier_matrix: the columns of row " + std::to_string(n) + " do not ascend within " + std::to_string(dense_.cols()));
        }
        for (std::size_t i = 0; i < values_.size(); ++i)
            if ((values_[i] & 0x7c00u) == 0x7c00u) detail::fail(errc::non_finite, "outlier_matrix: value " + std::to_string(i) + " is NaN or Inf");
    }

    [[nodiscard]] index rows() const noexcept { return dense_.rows(); }
    [[nodiscard]] index cols() const noexcept { return dense_.cols(); }
    [[nodiscard]] const qmatrix& dense() const noexcept { return dense_; }
    [[nodiscard]] std::span<const index> row_begin() const noexcept { return row_begin_; }
    [[nodiscard]] std::span<const std::int32_t> columns() const noexcept { return columns_; }
    /// fp16
    [[nodiscard]] std::span<const std::uint16_t> values() const noexcept { return values_; }
    [[nodiscard]] index outliers() const noexcept { return static_cast<index>(columns_.size()); }
    /// With 32 bits for each outlier (a column and a value of 16 bits) and for each row, as SpQR counts.
    [[nodiscard]] double bits_per_weight() const noexcept {
        const double weights = static_cast<double>(rows()) * static_cast<double>(cols());
        return weights == 0.0 ? 0.0 : dense_.bits_per_weight() + 32.0 * static_cast<double>(outliers() + rows()) / weights;
    }

private:
    [[nodiscard]] static std::size_t at(index i) noexcept { return static_cast<std::size_t>(i); }

    qmatrix dense_;
    std::vector<index> row_begin_;
    std::vector<std::int32_t> columns_;
    std::vector<std::uint16_t> values_;
};

namespace detail {

NIBBLE_FP_BEGIN

/// y += the outliers of one row times x. Each product of a float and an fp16 is exact in double, so each step is one fma.
[[nodiscard]] NIBBLE_NOINLINE inline float add_outliers(float y, const std::int32_t* columns, const std::uint16_t* values, index count, const const_view& x,
                                                        index j) noexcept {
    for (index i = 0; i < count; ++i)
        y = fma_rounded(static_cast<double>(fp16_to_float(values[i])) * static_cast<double>(load_scalar(x.at(columns[i], j), x.type)), y);
    return y;
}

/// fp16(w - q), and false where that is beyond fp16.
[[nodiscard]] NIBBLE_NOINLINE inline bool store_difference(float w, float q, std::uint16_t& out) noexcept {
    out = float_to_fp16(w - q);
    return (out & 0x7c00u) != 0x7c00u;
}

[[nodiscard]] NIBBLE_NOINLINE inline double outlier_cost(float w, float importance) noexcept {
    return static_cast<double>(importance) * static_cast<double>(w) * static_cast<double>(w);
}

/// w + d of a sparse element.
[[nodiscard]] NIBBLE_NOINLINE inline float with_outlier(float q, std::uint16_t d) noexcept { return q + fp16_to_float(d); }

/// The mean of the n numbers that are not marked; 0 if all are.
[[nodiscard]] NIBBLE_NOINLINE inline float mean_of_rest(const float* x, const std::uint8_t* marked, index n) noexcept {
    double sum = 0.0;
    index count = 0;
    for (index i = 0; i < n; ++i) {
        if (marked[i] != 0) continue;
        sum += static_cast<double>(x[i]);
        ++count;
    }
    return count == 0 ? 0.0f : static_cast<float>(sum / static_cast<double>(count));
}

NIBBLE_FP_END

}  // namespace detail

/// y = w x + bias (+ y), the dense part in the class of the options, the outliers last. Throws what gemm throws, and
/// errc::unsupported for an activation.
inline void gemm(const outlier_matrix& w, const const_view& x, const float_view& y, const gemm_options& options = {}) {
    if (options.activation != activation::none)
        detail::fail(errc::unsupported, "gemm: a product with outliers has no fused activation; use apply afterwards");
    gemm(w.dense(), x, output_view(y), options);
    executor& threads = options.executor != nullptr ? *options.executor : serial();
    const index tasks = threads.concurrency() <= 1 ? 1 : (std::min)(w.rows(), index{threads.concurrency()} * 4);
    threads.parallel_for(tasks, [&](index t) {
        const detail::fp_environment environment;
        for (index n = w.rows() * t / tasks; n < w.rows() * (t + 1) / tasks; ++n) {
            const index first = w.row_begin()[static_cast<std::size_t>(n)], count = w.row_begin()[static_cast<std::size_t>(n + 1)] - first;
            for (index j = 0; count > 0 && j < x.cols; ++j)
                y.at(n, j) = detail::add_outliers(y.at(n, j), w.columns().data() + first, w.values().data() + first, count, x, j);
        }
    });
}
template <eigen_expression X, class Y>
    requires eigen_expression<std::remove_cvref_t<Y>>
void gemm(const outlier_matrix& w, const Eigen::DenseBase<X>& x, Y&& y, const gemm_options& options = {}) {
    gemm(w, eigen_view<X>(x).get(), writable_view(y), options);
}

/// W X by value.
template <eigen_expression X>
[[nodiscard]] Eigen::Matrix<float, Eigen::Dynamic, X::ColsAtCompileTime> operator*(const outlier_matrix& w, const Eigen::DenseBase<X>& x) {
    Eigen::Matrix<float, Eigen::Dynamic, X::ColsAtCompileTime> y(w.rows(), x.cols());
    gemm(w, x, y);
    return y;
}

/// The weights that it stands for.
[[nodiscard]] inline Eigen::MatrixXf dequantize(const outlier_matrix& w, const dequantize_options& options = {}) {
    Eigen::MatrixXf out = dequantize(w.dense(), options);
    const detail::fp_environment environment;
    for (index n = 0; n < w.rows(); ++n)
        for (index i = w.row_begin()[static_cast<std::size_t>(n)]; i < w.row_begin()[static_cast<std::size_t>(n + 1)]; ++i) {
            float& q = out(n, w.columns()[static_cast<std::size_t>(i)]);
            q = detail::with_outlier(q, w.values()[static_cast<std::size_t>(i)]);
        }
    return out;
}

/// W without its outliers, and where they are.
struct outlier_split {
    Eigen::MatrixXf rest;  ///< 0 in their places, or the mean of the rest of the group where the format has a minimum or a float zero
    std::vector<index> row_begin;
    std::vector<std::int32_t> columns;
};

/// Finds the costliest weights of W (N x K). Costs that are equal go by row, then column. Throws errc::invalid_argument for a
/// fraction outside 0 .. 1, errc::shape_mismatch, errc::non_finite.
[[nodiscard]] inline outlier_split find_outliers(const Eigen::Ref<const Eigen::MatrixXf>& w, const quantize_plan& plan, const outlier_options& options = {}) {
    if (!(options.fraction >= 0.0 && options.fraction <= 1.0))
        detail::fail(errc::invalid_argument, "find_outliers: a fraction of " + std::to_string(options.fraction));
    if (!options.importance.empty() && static_cast<index>(options.importance.size()) != w.cols())
        detail::fail(errc::shape_mismatch, "find_outliers: " + std::to_string(options.importance.size()) + " importance weights for W of " + detail::shape_text(w.rows(), w.cols()));
    const index n = w.rows(), k = w.cols();
    Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rest = w;
    const index bad = detail::find_non_finite(rest.data(), rest.size());
    if (bad >= 0)
        detail::fail(errc::non_finite, "find_outliers: W(" + std::to_string(bad / k) + ", " + std::to_string(bad % k) + ") is " + detail::non_finite_name(rest.data() + bad));

    const detail::fp_environment environment;
    std::vector<double> cost(static_cast<std::size_t>(n * k));
    std::vector<index> order(cost.size());
    for (index i = 0; i < n * k; ++i) {
        const float h = options.importance.empty() ? 1.0f : options.importance[static_cast<std::size_t>(i % k)];
        cost[static_cast<std::size_t>(i)] = detail::outlier_cost(rest.data()[i], h);
        order[static_cast<std::size_t>(i)] = i;
    }
    const auto kept = static_cast<std::ptrdiff_t>(options.fraction * static_cast<double>(n * k) + 0.5);
    std::nth_element(order.begin(), order.begin() + kept, order.end(), [&](index a, index b) {
        const double x = cost[static_cast<std::size_t>(a)], y = cost[static_cast<std::size_t>(b)];
        return x != y ? x > y : a < b;
    });
    std::sort(order.begin(), order.begin() + kept);
    std::vector<std::uint8_t> marked(cost.size(), 0);
    outlier_split s;
    s.row_begin.assign(static_cast<std::size_t>(n + 1), 0);
    for (auto i = order.begin(); i != order.begin() + kept; ++i) {
        marked[static_cast<std::size_t>(*i)] = 1;
        s.columns.push_back(static_cast<std::int32_t>(*i % k));
        ++s.row_begin[static_cast<std::size_t>(*i / k + 1)];
    }
    for (std::size_t row = 0; row < static_cast<std::size_t>(n); ++row) s.row_begin[row + 1] += s.row_begin[row];

    const bool has_zero = plan.rule.offset == offset_kind::none || plan.rule.offset == offset_kind::zero_point;
    const index group = plan.group.cols == 0 ? std::max<index>(1, k) : plan.group.cols;
    for (index row = 0; row < n; ++row)
        for (index g = 0; g < k; g += group) {
            float* x = rest.data() + row * k + g;
            const std::uint8_t* m = marked.data() + row * k + g;
            const index count = (std::min)(group, k - g);
            const float fill = has_zero ? 0.0f : detail::mean_of_rest(x, m, count);
            for (index i = 0; i < count; ++i)
                if (m[i] != 0) x[i] = fill;
        }
    s.rest = rest;
    return s;
}

/// The outliers of W beside a dense matrix that was made of `split.rest`: fp16(w - base). The base is dequantize(dense), and outliers
/// become what they were; or split.rest for a method that makes up for its errors elsewhere and counts on them (GPTQ). Throws
/// errc::shape_mismatch, errc::out_of_range for an outlier beyond fp16.
[[nodiscard]] inline outlier_matrix join_outliers(qmatrix dense, const Eigen::Ref<const Eigen::MatrixXf>& w, const Eigen::Ref<const Eigen::MatrixXf>& base,
                                                  outlier_split split) {
    if (w.rows() != dense.rows() || w.cols() != dense.cols() || base.rows() != w.rows() || base.cols() != w.cols() ||
        static_cast<index>(split.row_begin.size()) != w.rows() + 1)
        detail::fail(errc::shape_mismatch, "join_outliers: the dense matrix is " + detail::shape_text(dense.rows(), dense.cols()) + ", W is " +
                                               detail::shape_text(w.rows(), w.cols()) + ", the base is " + detail::shape_text(base.rows(), base.cols()) + ", outliers are of " +
                                               std::to_string(split.row_begin.size()) + " - 1 rows");
    const detail::fp_environment environment;
    std::vector<std::uint16_t> values(split.columns.size());
    for (index row = 0; row < w.rows(); ++row)
        for (auto i = static_cast<std::size_t>(split.row_begin[static_cast<std::size_t>(row)]); i < static_cast<std::size_t>(split.row_begin[static_cast<std::size_t>(row + 1)]); ++i) {
            const index c = split.columns[i];
            if (!detail::store_difference(w(row, c), base(row, c), values[i]))
                detail::fail(errc::out_of_range, "join_outliers: W(" + std::to_string(row) + ", " + std::to_string(c) + ") is " + std::to_string(w(row, c)) + ", beyond fp16");
        }
    return {std::move(dense), std::move(split.row_begin), std::move(split.columns), std::move(values)};
}

/// Quantizes W (N x K) without its costliest weights, and keeps those. Throws what quantize, find_outliers and join_outliers throw.
[[nodiscard]] inline outlier_matrix split_outliers(const Eigen::Ref<const Eigen::MatrixXf>& w, const quantize_plan& plan, const outlier_options& options = {}) {
    outlier_split split = find_outliers(w, plan, options);
    quantize_options dense_options;
    dense_options.executor = options.executor;
    if (plan.rule.searches) dense_options.importance = options.importance;
    qmatrix dense = quantize(split.rest, plan, dense_options);
    const Eigen::MatrixXf decoded = dequantize(dense, {options.executor});
    return join_outliers(std::move(dense), w, decoded, std::move(split));
}

}  // namespace nibble
