// A linear layer of a checkpoint: weights, the order of their columns, a bias.
//
//     Eigen::MatrixXf Y = nibble::io::multiply(layer, X);     // W X + bias
#pragma once

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

/// The rows of x in the order of the layer's columns: `storage` holds them, column-major.
[[nodiscard]] inline const_view permuted(const linear& layer, const const_view& x,
                                         std::vector<unsigned char>& storage) {
    if (layer.permutation.empty()) return x;
    const auto size = static_cast<std::size_t>(size_of(x.type));
    storage.resize(static_cast<std::size_t>(nibble::detail::checked_product(x.rows, x.cols)) * size);
    unsigned char* to = storage.data();
    for (index m = 0; m < x.cols; ++m)
        for (const index k : layer.permutation) {
            std::memcpy(to, x.at(k, m), size);
            to += size;
        }
    return {storage.data(), x.type, x.rows, x.cols, 1, x.rows};
}

}  // namespace detail

/// Whether a layer is put together right: the permutation, if there is one, is one of 0 .. K - 1, and the bias has N
/// elements. Layers from files are.
[[nodiscard]] inline status check_linear(const linear& layer) {
    const index k = layer.weight.cols();
    const std::vector<index>& p = layer.permutation;
    if (!p.empty()) {
        if (static_cast<index>(p.size()) != k)
            return {errc::shape_mismatch, "linear: a permutation of " + std::to_string(p.size()) + " columns, W is " +
                                              nibble::detail::shape_text(layer.weight.rows(), k)};
        std::vector<bool> seen(p.size());
        for (std::size_t j = 0; j < p.size(); ++j) {
            if (p[j] < 0 || p[j] >= k || seen[static_cast<std::size_t>(p[j])])
                return {errc::invalid_argument, "linear: element " + std::to_string(j) + " of the permutation is " +
                                                    std::to_string(p[j]) + ", out of range or given twice"};
            seen[static_cast<std::size_t>(p[j])] = true;
        }
    }
    if (!layer.bias.empty() && static_cast<index>(layer.bias.size()) != layer.weight.rows())
        return {errc::shape_mismatch, "linear: a bias of " + std::to_string(layer.bias.size()) + " elements, W is " +
                                          nibble::detail::shape_text(layer.weight.rows(), k)};
    return {};
}

/// y = W x + bias into storage of the caller; x is K x M, y is N x M. The layer's bias is added unless the options bring
/// one. Throws what gemm and check_linear say.
inline void gemm(const linear& layer, const const_view& x, const output_view& y, gemm_options options = {}) {
    check_linear(layer).or_throw();
    if (!options.bias.given() && !layer.bias.empty()) options.bias = std::span<const float>(layer.bias);
    check_gemm(layer.weight, x, y, options.bias).or_throw();
    std::vector<unsigned char> storage;
    nibble::gemm(layer.weight, detail::permuted(layer, x, storage), y, options);
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
