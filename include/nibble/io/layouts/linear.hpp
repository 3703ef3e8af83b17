// A linear layer of a checkpoint: weights, the order of their columns, a bias.
//
//     Eigen::MatrixXf Y = nibble::io::multiply(layer, X);     // W X + bias
#pragma once

#include <span>
#include <string>
#include <vector>

#include "../../dequantize.hpp"
#include "../../gemm.hpp"
#include "../../qmatrix.hpp"

namespace nibble::inline NIBBLE_ABI::io {

/// y = W x + bias. GPTQ with act-order gives the inputs of a group any place in x; then the columns of `weight` are in
/// the order of the groups, and `permutation` says where each belongs. Products permute x, once, and run at the speed of
/// any other matrix.
struct linear {
    qmatrix weight;                  ///< N x K
    std::vector<index> permutation;  ///< column j of weight multiplies row permutation[j] of x; empty: row j
    std::vector<float> bias;         ///< N values, or none
};

namespace detail {

/// What products need: the numbers of elements, and that no index is out of range. Allocates nothing.
[[nodiscard]] inline status check_sizes(const linear& layer) {
    const index n = layer.weight.rows(), k = layer.weight.cols();
    const std::vector<index>& p = layer.permutation;
    if (!p.empty() && static_cast<index>(p.size()) != k)
        return {errc::shape_mismatch, "linear: a permutation of " + std::to_string(p.size()) + " columns, W is " +
                                          nibble::detail::shape_text(n, k)};
    if (!layer.bias.empty() && static_cast<index>(layer.bias.size()) != n)
        return {errc::shape_mismatch, "linear: a bias of " + std::to_string(layer.bias.size()) + " elements, W is " +
                                          nibble::detail::shape_text(n, k)};
    for (std::size_t j = 0; j < p.size(); ++j)
        if (p[j] < 0 || p[j] >= k)
            return {errc::invalid_argument, "linear: element " + std::to_string(j) + " of the permutation is " +
                                                std::to_string(p[j]) + ", out of range"};
    return {};
}

}  // namespace detail

/// Whether a layer is put together right: the permutation, if there is one, is one of 0 .. K - 1, and the bias has N
/// elements. Layers from files are.
[[nodiscard]] inline status check_linear(const linear& layer) {
    if (status s = detail::check_sizes(layer); !s) return s;
    std::vector<bool> seen(layer.permutation.size());
    for (std::size_t j = 0; j < seen.size(); ++j) {
        const auto k = static_cast<std::size_t>(layer.permutation[j]);
        if (seen[k])
            return {errc::invalid_argument, "linear: element " + std::to_string(j) + " of the permutation is " +
                                                std::to_string(k) + ", which is given twice"};
        seen[k] = true;
    }
    return {};
}

/// y = W x + bias into storage of the caller; x is K x M, y is N x M. The layer's bias is added unless the options bring
/// one. With a workspace that has served before nothing is allocated; so an index that the permutation has twice goes
/// unnoticed here (check_linear). Throws what gemm says, and errc::shape_mismatch and errc::invalid_argument for a bias or
/// a permutation of another size, or with an index out of range.
inline void gemm(const linear& layer, const const_view& x, const output_view& y, gemm_options options = {}) {
    detail::check_sizes(layer).or_throw();
    if (!options.bias.given() && !layer.bias.empty()) options.bias = std::span<const float>(layer.bias);
    nibble::detail::ordered_gemm(layer.weight, x, layer.permutation.empty() ? nullptr : layer.permutation.data(), y, options);
}

/// W X + bias by value.
template <eigen_expression X>
[[nodiscard]] Eigen::Matrix<float, Eigen::Dynamic, X::ColsAtCompileTime> multiply(const linear& layer,
                                                                                  const Eigen::DenseBase<X>& x,
                                                                                  const gemm_options& options = {}) {
    Eigen::Matrix<float, Eigen::Dynamic, X::ColsAtCompileTime> y(layer.weight.rows(), x.cols());
    gemm(layer, eigen_view<X>(x).get(), output_of(y), options);
    return y;
}

/// The decoded weights, N x K, columns in the order of x.
[[nodiscard]] inline Eigen::MatrixXf dequantize(const linear& layer) {
    check_linear(layer).or_throw();
    Eigen::MatrixXf ordered(layer.weight.rows(), layer.weight.cols());
    nibble::dequantize(layer.weight, writable_view(ordered));
    if (layer.permutation.empty()) return ordered;
    Eigen::MatrixXf out(ordered.rows(), ordered.cols());
    for (std::size_t j = 0; j < layer.permutation.size(); ++j)
        out.col(layer.permutation[j]) = ordered.col(static_cast<index>(j));
    return out;
}

}  // namespace nibble::io
