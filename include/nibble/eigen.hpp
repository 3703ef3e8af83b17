// Eigen expressions to plain views: the one door between Eigen and the rest of the library.
//
// A matrix, map, block, row, transpose or Ref with memory of its own is read in place, whatever its strides and order.
// Other expressions (A + B, A.cast<float>(), A * B) are evaluated once into a temporary.
#pragma once

#include <span>
#include <type_traits>

#include <Eigen/Core>

#include "view.hpp"

namespace nibble::inline NIBBLE_ABI {
namespace detail {

template <class Scalar>
struct scalar_of;
template <>
struct scalar_of<float> {
    static constexpr scalar_type value = scalar_type::f32;
};
template <>
struct scalar_of<double> {
    static constexpr scalar_type value = scalar_type::f64;
};
template <>
struct scalar_of<Eigen::half> {
    static constexpr scalar_type value = scalar_type::f16;
};
template <>
struct scalar_of<Eigen::bfloat16> {
    static constexpr scalar_type value = scalar_type::bf16;
};

template <class Scalar>
concept weight_scalar = requires { scalar_of<std::remove_cv_t<Scalar>>::value; };

// Eigen 3.4 flags a(all, seq(0, 4, 2)) so, too, but gives it no data().
template <class Derived>
inline constexpr bool has_memory = (static_cast<int>(Eigen::internal::traits<Derived>::Flags) & Eigen::DirectAccessBit) != 0 &&
                                   requires(const Derived& d) { d.data(); };

}  // namespace detail

namespace detail {
template <class Derived>
void take_expression(const Eigen::DenseBase<Derived>&) noexcept;
}  // namespace detail

/// An Eigen matrix, array or expression of them. (Part of a column, Y.col(0).head(n), is the DenseBase of another class.)
template <class T>
concept eigen_expression = requires(const T& x) { detail::take_expression(x); };

/// Holds a view of an Eigen expression for as long as the expression lives; evaluates it first if it has no memory.
template <class Derived>
class eigen_view {
    static_assert(detail::weight_scalar<typename Derived::Scalar>,
                  "nibble reads float, double, Eigen::half and Eigen::bfloat16; convert other scalars with .cast<float>()");
    static constexpr bool in_place = detail::has_memory<Derived>;
    struct nothing {
        explicit nothing(const Derived&) {}
    };
    using plain = Eigen::Array<typename Derived::Scalar, Eigen::Dynamic, Eigen::Dynamic>;
    struct evaluated {
        plain values;
        explicit evaluated(const Derived& e) {
            if constexpr (std::is_base_of_v<Eigen::MatrixBase<Derived>, Derived>) values = e.array();
            else values = e;
        }
    };

public:
    explicit eigen_view(const Eigen::DenseBase<Derived>& expression) : storage_(expression.derived()) {
        if constexpr (in_place) fill(expression.derived());
        else fill(storage_.values);
    }
    eigen_view(const eigen_view&) = delete;
    eigen_view& operator=(const eigen_view&) = delete;

    [[nodiscard]] const const_view& get() const noexcept { return view_; }

private:
    template <class E>
    void fill(const E& e) noexcept {
        view_.data = e.data();
        view_.type = detail::scalar_of<typename E::Scalar>::value;
        view_.rows = e.rows();
        view_.cols = e.cols();
        view_.row_stride = e.rowStride();
        view_.col_stride = e.colStride();
    }

    std::conditional_t<in_place, nothing, evaluated> storage_;
    const_view view_;
};

namespace detail {

template <class Derived>
inline constexpr bool writable = has_memory<Derived> && (static_cast<int>(Eigen::internal::traits<Derived>::Flags) & Eigen::LvalueBit) != 0;

}  // namespace detail

/// An Eigen matrix, map or block of floats to write to. Temporaries such as Y.col(3) or Y.leftCols(2) are welcome.
template <class Derived>
[[nodiscard]] float_view writable_view(const Eigen::DenseBase<Derived>& target) noexcept {
    static_assert(std::is_same_v<typename Derived::Scalar, float>, "nibble writes float matrices");
    static_assert(detail::has_memory<Derived>, "the output must be a matrix, a map or a block with memory of its own");
    static_assert(detail::writable<Derived>, "the output is read-only");
    const Derived& d = target.derived();
    return {const_cast<float*>(d.data()), d.rows(), d.cols(), d.rowStride(), d.colStride()};
}

/// The same of float, Eigen::half or Eigen::bfloat16, for outputs of products.
template <class Derived>
[[nodiscard]] output_view output_of(const Eigen::DenseBase<Derived>& target) noexcept {
    using scalar = typename Derived::Scalar;
    static_assert(detail::weight_scalar<scalar> && !std::is_same_v<scalar, double>, "products are written as float, Eigen::half or Eigen::bfloat16");
    static_assert(detail::has_memory<Derived>, "the output must be a matrix, a map or a block with memory of its own");
    static_assert(detail::writable<Derived>, "the output is read-only");
    const Derived& d = target.derived();
    return {const_cast<scalar*>(d.data()), detail::scalar_of<scalar>::value, d.rows(), d.cols(), d.rowStride(), d.colStride()};
}

/// One float for every row of an output: an Eigen vector, a span, or nothing. It refers to the caller's memory.
class bias_view {
public:
    bias_view() noexcept = default;
    bias_view(std::span<const float> values) noexcept : data_(values.data()), size_(static_cast<index>(values.size())) {}
    template <class Derived>
        requires(static_cast<bool>(Derived::IsVectorAtCompileTime) && detail::has_memory<Derived> && std::is_same_v<typename Derived::Scalar, float>)
    bias_view(const Eigen::DenseBase<Derived>& v) noexcept
        : data_(v.derived().data()), size_(v.size()), stride_(v.derived().innerStride()) {}

    [[nodiscard]] bool given() const noexcept { return size_ >= 0; }
    [[nodiscard]] index size() const noexcept { return size_; }
    [[nodiscard]] const float* at(index i) const noexcept { return data_ + i * stride_; }
    [[nodiscard]] const_view view() const noexcept { return {data_, scalar_type::f32, size_, 1, stride_, 0}; }

private:
    const float* data_ = nullptr;
    index size_ = -1;
    index stride_ = 1;
};

}  // namespace nibble
