// Whether a product is right. The reference is a plain loop in double over decoded weights; it shares nothing with the
// kernels. The tolerance is what the product's compute class allows, in the L2 norm over all outputs checked:
//
//   tolerance^2 = (4 u sqrt(K) |Y|)^2 + (4 noise)^2,   u = 2^-24
//   noise^2     = sum over columns and sub-blocks of s^2 / 12 * sum of w^2,   s = max|x| of the sub-block / L
//
// The first term: a chain of K fp32 additions errs by about 0.4 u sqrt(sum of squared partial sums), and partial sums
// are of the size of the result: 10 times what is expected. The second: activations rounded to steps s carry
// independent errors of variance s^2 / 12: 4 times what is expected (the errors of a column are shared by all rows, so
// one column alone scatters more than many). L = 127, 32639, 8355711 for a8, a16 and f32; strict_f32 rounds none.
// For f32 at K = 4096 the two make 1.5e-5 of |Y|: one wrong output in 4096 x 128 is 1.4e-3.
#pragma once

#include <vector>

#include <nibble/gemm.hpp>

#include "types.hpp"

namespace bench {

struct verdict {
    double error = 0.0;                                                       ///< |Y - reference| / |reference|
    double tolerance = 0.0;                                                   ///< what it may be
    [[nodiscard]] bool right() const noexcept { return error <= tolerance; }  // NaN is not
};

/// W X in double, element by element.
[[nodiscard]] Eigen::MatrixXd reference_product(const row_matrix& w, const Eigen::MatrixXf& x);

/// Rows of w decoded one code at a time, without the kernels that products use.
[[nodiscard]] row_matrix decode_rows(const nibble::qmatrix& w, const std::vector<Eigen::Index>& rows);

/// `count` rows spread over all of 0 .. total - 1, first and last included; all of them when there are fewer.
[[nodiscard]] std::vector<Eigen::Index> spread_rows(Eigen::Index total, Eigen::Index count);

/// Compares y = w x (the rows that `decoded` holds) with the reference.
[[nodiscard]] verdict check_product(const row_matrix& decoded, Eigen::Index group_size, const Eigen::MatrixXf& x,
                                    const Eigen::MatrixXf& y, nibble::compute c);
/// The same with a reference that is at hand: reference_product(decoded, x).
[[nodiscard]] verdict check_product(const row_matrix& decoded, Eigen::Index group_size, const Eigen::MatrixXf& x,
                                    const Eigen::MatrixXf& y, nibble::compute c, const Eigen::MatrixXd& reference);

}  // namespace bench
