// How far an approximation is from the truth. All sums run in double.
#pragma once

#include <cmath>
#include <limits>

#include "detail/fp_environment.hpp"
#include "detail/load.hpp"
#include "eigen.hpp"

namespace nibble::inline NIBBLE_ABI {

/// The distance of `got` from `wanted`.
struct error_metrics {
    double sqnr_db = 0.0;         ///< 10 log10(sum wanted^2 / sum error^2); +Inf when equal
    double relative_error = 0.0;  ///< Frobenius norm of the error over that of `wanted`; 0 when equal
    double max_error = 0.0;       ///< largest |error|
    double mean_error = 0.0;      ///< mean |error|
    double rmse = 0.0;            ///< root of the mean squared error
    double cosine = 1.0;          ///< cosine of the angle between the two as vectors; 1 when both are zero
};

namespace detail {

NIBBLE_FP_BEGIN

[[nodiscard]] inline double load_double(const void* at, scalar_type type) noexcept {
    if (type != scalar_type::f64) return static_cast<double>(load_scalar(at, type));
    double x;
    std::memcpy(&x, at, 8);
    return x;
}

[[nodiscard]] NIBBLE_NOINLINE inline error_metrics compare_views(const const_view& wanted, const const_view& got) noexcept {
    double signal = 0.0, noise = 0.0, dot = 0.0, other = 0.0, absolute = 0.0;
    error_metrics m;
    for (index c = 0; c < wanted.cols; ++c) {
        for (index r = 0; r < wanted.rows; ++r) {
            const double a = load_double(wanted.at(r, c), wanted.type);
            const double b = load_double(got.at(r, c), got.type);
            const double e = b > a ? b - a : a - b;
            signal += a * a;
            other += b * b;
            dot += a * b;
            noise += e * e;
            absolute += e;
            if (e > m.max_error) m.max_error = e;
        }
    }
    constexpr double infinity = std::numeric_limits<double>::infinity();
    constexpr double nan = std::numeric_limits<double>::quiet_NaN();
    if (!(absolute >= 0.0)) return {nan, nan, nan, nan, nan, nan};  // nothing below may hide a NaN
    const double count = static_cast<double>(wanted.rows) * static_cast<double>(wanted.cols);
    m.sqnr_db = noise == 0.0 ? infinity : 10.0 * std::log10(signal / noise);
    if (count == 0.0) return m;
    m.relative_error = noise == 0.0 ? 0.0 : std::sqrt(noise / signal);
    m.mean_error = absolute / count;
    m.rmse = std::sqrt(noise / count);
    if (signal != 0.0 || other != 0.0) m.cosine = signal == 0.0 || other == 0.0 ? 0.0 : dot / (std::sqrt(signal) * std::sqrt(other));
    return m;
}

NIBBLE_FP_END

}  // namespace detail

/// Compares two views of equal shape; all NaN when an element of either is NaN. Throws errc::shape_mismatch with both
/// shapes.
[[nodiscard]] inline error_metrics compare(const const_view& wanted, const const_view& got) {
    if (wanted.rows != got.rows || wanted.cols != got.cols)
        detail::fail(errc::shape_mismatch, "compare: " + detail::shape_text(wanted.rows, wanted.cols) + " with " +
                                               detail::shape_text(got.rows, got.cols));
    const detail::fp_environment environment;
    return detail::compare_views(wanted, got);
}

/// Compares two Eigen expressions of equal shape.
template <eigen_expression A, eigen_expression B>
[[nodiscard]] error_metrics compare(const Eigen::DenseBase<A>& wanted, const Eigen::DenseBase<B>& got) {
    return compare(eigen_view<A>(wanted).get(), eigen_view<B>(got).get());
}

/// Signal to quantization noise in decibels: 6 dB is one bit.
template <eigen_expression A, eigen_expression B>
[[nodiscard]] double sqnr_db(const Eigen::DenseBase<A>& wanted, const Eigen::DenseBase<B>& got) {
    return compare(wanted, got).sqnr_db;
}

/// |got - wanted| / |wanted|, Frobenius norms. On outputs W X it is the error that users feel.
template <eigen_expression A, eigen_expression B>
[[nodiscard]] double relative_error(const Eigen::DenseBase<A>& wanted, const Eigen::DenseBase<B>& got) {
    return compare(wanted, got).relative_error;
}

}  // namespace nibble
