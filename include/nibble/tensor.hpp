// Eigen::Tensor and Eigen::TensorMap of any rank, through a channel axis. (Eigen calls the module unsupported: its API
// may move. Include this header only where tensors are used.)
//
//     Eigen::Tensor<float, 4> conv(out, in, h, w);
//     nibble::qtensor q = nibble::quantize<nibble::int8>(conv, 0);      // axis 0: one row of the matrix per output
//     auto back = nibble::dequantize<Eigen::Tensor<float, 4>>(q);
//
//     Eigen::Tensor<float, 3> x(features, tokens, batch);
//     Eigen::Tensor<float, 3> y = nibble::multiply(Wq, x, 0);           // (N, tokens, batch)
//
// As a matrix, a tensor has one row per index of the channel axis; the columns run through the other axes in the order
// in which they lie in memory (the first fastest in ColMajor, the last fastest in RowMajor). So groups along K are runs
// of neighbours, and a RowMajor [out, in, h, w] has the columns that other libraries call flatten(1).
#pragma once

#if __has_include(<unsupported/Eigen/CXX11/Tensor>)
#include <unsupported/Eigen/CXX11/Tensor>
#else
#include <unsupported/Eigen/Tensor>
#endif

#include <vector>

#include "dequantize.hpp"
#include "gemm.hpp"
#include "quantize.hpp"

namespace nibble::inline NIBBLE_ABI {

/// A tensor with memory of its own: Tensor, TensorFixedSize or TensorMap of float, double, half or bfloat16.
template <class T>
concept tensor_type = requires(const T& t) {
    t.data();
    t.dimension(0);
    { T::NumDimensions + 0 } -> std::convertible_to<int>;
    static_cast<int>(T::Layout);
} && detail::weight_scalar<typename T::Scalar> && !eigen_expression<T>;

/// A quantized tensor: its matrix, and how that folds back.
struct qtensor {
    qmatrix matrix;                 ///< dimension(axis) rows; the other axes are the columns
    std::vector<index> dimensions;  ///< of the tensor
    index axis = 0;                 ///< the channel axis
    bool row_major = false;         ///< the order of the columns
};

namespace detail {

/// A tensor seen along one axis: slow x length x fast elements in memory order.
struct axis_view {
    index slow = 1;
    index length = 0;
    index fast = 1;
};

template <tensor_type T>
[[nodiscard]] std::vector<index> dimensions_of(const T& t) {
    std::vector<index> d;
    for (int i = 0; i < T::NumDimensions; ++i) d.push_back(static_cast<index>(t.dimension(static_cast<std::size_t>(i))));
    return d;
}

[[nodiscard]] inline std::string dimensions_text(const std::vector<index>& d) {
    std::string text;
    for (const index n : d) text.append(text.empty() ? "" : "x").append(std::to_string(n));
    return text;
}

[[nodiscard]] inline axis_view along(const char* verb, const std::vector<index>& d, index axis, bool row_major) {
    const auto rank = static_cast<index>(d.size());
    if (axis < 0 || axis >= rank)
        fail(errc::out_of_range, std::string(verb) + ": axis " + std::to_string(axis) + " of a tensor of " + dimensions_text(d));
    axis_view v;
    v.length = d[static_cast<std::size_t>(axis)];
    for (index i = 0; i < rank; ++i) {
        if (i == axis) continue;
        ((i < axis) == row_major ? v.slow : v.fast) *= d[static_cast<std::size_t>(i)];
    }
    return v;
}

}  // namespace detail

/// Quantizes a tensor along its channel axis by a plan (make_plan). Throws what quantize() throws, and
/// errc::out_of_range for an axis that does not exist.
template <tensor_type T>
[[nodiscard]] qtensor quantize(const T& tensor, index axis, const quantize_plan& plan, const quantize_options& options = {}) {
    constexpr bool row_major = static_cast<int>(T::Layout) == static_cast<int>(Eigen::RowMajor);
    qtensor q{{}, detail::dimensions_of(tensor), axis, row_major};
    const detail::axis_view v = detail::along("quantize", q.dimensions, axis, row_major);
    constexpr scalar_type type = detail::scalar_of<std::remove_cv_t<typename T::Scalar>>::value;
    const index cols = v.slow * v.fast;
    if (v.slow == 1 || v.fast == 1) {
        const index row_stride = v.fast == 1 ? 1 : v.fast;
        const index col_stride = v.fast == 1 ? v.length : 1;
        q.matrix = quantize(const_view{tensor.data(), type, v.length, cols, row_stride, col_stride}, plan, options);
        return q;
    }
    // The axis lies between others: no pair of strides reaches every element, so the rows are gathered.
    std::vector<float> rows(static_cast<std::size_t>(v.length * cols));
    for (index s = 0; s < v.slow; ++s) {
        const const_view slice{tensor.data() + s * v.length * v.fast, type, v.length, v.fast, v.fast, 1};
        detail::load_block(slice, 0, v.length, 0, v.fast, rows.data() + s * v.fast, cols);
    }
    q.matrix = quantize(nibble::row_major(rows.data(), v.length, cols), plan, options);
    return q;
}

/// quantize<int8>(tensor, 0), quantize<q4_k>(tensor, 0, options).
template <class F, tensor_type T>
[[nodiscard]] qtensor quantize(const T& tensor, index axis, const quantize_options& options = {}) {
    return quantize(tensor, axis, detail::default_plan<F>(), options);
}

/// quantize<int4>(tensor, 0, absmax{}, per_group{64}).
template <class F, tensor_type T, quantizer Q>
[[nodiscard]] qtensor quantize(const T& tensor, index axis, const Q& rule, granularity group, const quantize_options& options = {}) {
    return quantize(tensor, axis, detail::plan_with<F>(erase(rule), group), options);
}

/// quantize(tensor, 0, "q8_0").
template <tensor_type T>
[[nodiscard]] qtensor quantize(const T& tensor, index axis, std::string_view name, const quantize_options& options = {}) {
    return quantize(tensor, axis, detail::plan_of_name(name), options);
}

/// The decoded tensor: dequantize<Eigen::Tensor<float, 4>>(q), in either order. Throws errc::shape_mismatch for another rank.
template <tensor_type T>
    requires std::is_same_v<typename T::Scalar, float>
[[nodiscard]] T dequantize(const qtensor& q) {
    if (static_cast<std::size_t>(T::NumDimensions) != q.dimensions.size())
        detail::fail(errc::shape_mismatch, "dequantize: a tensor of " + detail::dimensions_text(q.dimensions) + " into one of rank " +
                                               std::to_string(static_cast<int>(T::NumDimensions)));
    Eigen::array<Eigen::Index, static_cast<std::size_t>(T::NumDimensions)> d{};
    for (std::size_t i = 0; i < d.size(); ++i) d[i] = q.dimensions[i];
    T out(d);
    constexpr bool row_major = static_cast<int>(T::Layout) == static_cast<int>(Eigen::RowMajor);
    const detail::axis_view v = detail::along("dequantize", q.dimensions, q.axis, q.row_major);
    std::vector<float> rows(static_cast<std::size_t>(v.length * v.slow * v.fast));
    dequantize(q.matrix, nibble::row_major(rows.data(), v.length, v.slow * v.fast));
    // Where each axis of the result strides in memory, to be walked in the memory order of the original.
    std::vector<index> stride(d.size(), 1);
    for (std::size_t i = 1; i < d.size(); ++i) {
        if (row_major) stride[d.size() - 1 - i] = stride[d.size() - i] * q.dimensions[d.size() - i];
        else stride[i] = stride[i - 1] * q.dimensions[i - 1];
    }
    for (index s = 0; s < v.slow; ++s) {
        for (index n = 0; n < v.length; ++n) {
            for (index f = 0; f < v.fast; ++f) {
                index linear = (s * v.length + n) * v.fast + f;
                index at = 0;
                for (std::size_t i = 0; i < d.size(); ++i) {
                    const std::size_t a = q.row_major ? d.size() - 1 - i : i;
                    at += linear % q.dimensions[a] * stride[a];
                    linear /= q.dimensions[a];
                }
                out.data()[at] = rows[static_cast<std::size_t>(n * v.slow * v.fast + s * v.fast + f)];
            }
        }
    }
    return out;
}

/// Multiplies along one axis of x, in place and without a copy: dimension(axis) must be K, and is N in the result.
template <tensor_type T>
[[nodiscard]] Eigen::Tensor<float, static_cast<int>(T::NumDimensions), static_cast<int>(T::Layout)> multiply(
    const qmatrix& w, const T& x, index axis, const gemm_options& options = {}) {
    constexpr bool row_major = static_cast<int>(T::Layout) == static_cast<int>(Eigen::RowMajor);
    const std::vector<index> dimensions = detail::dimensions_of(x);
    const detail::axis_view v = detail::along("multiply", dimensions, axis, row_major);
    if (v.length != w.cols())
        detail::fail(errc::shape_mismatch, "multiply: W is " + detail::shape_text(w.rows(), w.cols()) + ", axis " + std::to_string(axis) +
                                               " of x (" + detail::dimensions_text(dimensions) + ") is " + std::to_string(v.length));
    Eigen::array<Eigen::Index, static_cast<std::size_t>(T::NumDimensions)> d{};
    for (std::size_t i = 0; i < d.size(); ++i) d[i] = static_cast<index>(i) == axis ? w.rows() : dimensions[i];
    Eigen::Tensor<float, static_cast<int>(T::NumDimensions), static_cast<int>(T::Layout)> y(d);
    constexpr scalar_type type = detail::scalar_of<std::remove_cv_t<typename T::Scalar>>::value;
    if (v.fast == 1) {  // features are contiguous: one product
        gemm(w, const_view{x.data(), type, v.length, v.slow, 1, v.length}, float_view{y.data(), w.rows(), v.slow, 1, w.rows()}, options);
        return y;
    }
    for (index s = 0; s < v.slow; ++s)
        gemm(w, const_view{x.data() + s * v.length * v.fast, type, v.length, v.fast, v.fast, 1},
             float_view{y.data() + s * w.rows() * v.fast, w.rows(), v.fast, v.fast, 1}, options);
    return y;
}

/// W times every vector along the axis that is contiguous in memory: the first of a ColMajor tensor (features, tokens,
/// batch), the last of a RowMajor one (batch, tokens, features).
template <tensor_type T>
[[nodiscard]] auto operator*(const qmatrix& w, const T& x) {
    constexpr bool row_major = static_cast<int>(T::Layout) == static_cast<int>(Eigen::RowMajor);
    return multiply(w, x, row_major ? static_cast<index>(T::NumDimensions) - 1 : 0);
}

}  // namespace nibble
