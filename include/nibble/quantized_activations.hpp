// Activations in 8 bits: K x M codes with their scales and zero points, for products on integers (integer_gemm.hpp).
//
//     auto a = nibble::quantize_activations(X, nibble::activation_rule::per_token());        // int8, a scale for each column
//     auto b = nibble::quantize_activations(X, nibble::activation_rule::fixed(0.02f, 131, nibble::activation_type::u8));
//     auto c = nibble::wrap_activations(codes, 0.02f, 131);                                  // codes of the caller
//
// x = scale * (a - zero). The rule is that of weights, the same bits on every instruction set:
//
//   dynamic i8   scale = RN(amax / 127), zero = 0; so a is in [-127, 127]
//   dynamic u8   of the range with zero in it: scale = RN((max - min) / 255), zero = clamp(-RNE(RN(min / scale)), 0, 255)
//   (per_tensor: the same of all columns together)
//   both         scale is at least 2^-126, so that its inverse is finite; a column of zeros has codes equal to its zero point
//   static       scale and zero of the caller
//   codes        a = clamp(RNE(RN(x * RN(1 / scale))) + zero)
//
// That is torch.ao's MinMaxObserver but for its eps of 2^-23, and its decomposed quantize_per_tensor.
#pragma once

#include <span>
#include <vector>

#include "detail/dispatch.hpp"
#include "detail/fp_environment.hpp"
#include "detail/load.hpp"
#include "eigen.hpp"
#include "qmatrix.hpp"
#include "quantizers/affine.hpp"

namespace nibble::inline NIBBLE_ABI {

/// The element types of activation codes.
enum class activation_type : std::uint8_t { i8, u8 };

[[nodiscard]] constexpr int lowest_code(activation_type t) noexcept { return t == activation_type::i8 ? -128 : 0; }
[[nodiscard]] constexpr int highest_code(activation_type t) noexcept { return t == activation_type::i8 ? 127 : 255; }

/// rows x cols integers; element (r, c) lies at data + r * row_stride + c * col_stride.
template <class T>
struct integer_view {
    T* data = nullptr;
    index rows = 0;
    index cols = 0;
    index row_stride = 0;
    index col_stride = 0;

    [[nodiscard]] T* at(index r, index c) const noexcept { return data + (r * row_stride + c * col_stride); }
};

/// How activations are quantized. Made by its four functions.
struct activation_rule {
    activation_type type = activation_type::i8;
    bool dynamic = true;   ///< scales from the data
    index group = 0;       ///< dynamic: elements along K that share a scale; 0: all of a column
    float scale = 1.0f;    ///< static
    int zero = 0;          ///< static
    bool shared = false;   ///< dynamic: one scale for all columns

    /// A scale for each column, from its own values. i8 is symmetric, u8 has a zero point.
    [[nodiscard]] static constexpr activation_rule per_token(activation_type t = activation_type::i8) noexcept { return {t, true, 0, 1.0f, 0}; }
    /// A scale for each `size` elements of each column; the last group may be shorter.
    [[nodiscard]] static constexpr activation_rule per_group(index size, activation_type t = activation_type::i8) noexcept {
        return {t, true, size, 1.0f, 0};
    }
    /// One scale for all columns, from all values: reads them twice. Products can be requantized, as with fixed().
    [[nodiscard]] static constexpr activation_rule per_tensor(activation_type t = activation_type::i8) noexcept { return {t, true, 0, 1.0f, 0, true}; }
    /// One scale and zero point for all, known before (calibrated).
    [[nodiscard]] static constexpr activation_rule fixed(float scale, int zero, activation_type t) noexcept { return {t, false, 0, scale, zero}; }
};

class quantized_activations;

/// Codes of the caller, int8_t or uint8_t, which must stay as long as they are used. scales: one for all columns; or for each
/// column those of its groups of `group` elements (0: one group), column by column. zeros: likewise, or none: all 0.
/// Throws errc::shape_mismatch for other counts, errc::invalid_argument for a scale or zero point that cannot be.
template <class T>
[[nodiscard]] quantized_activations wrap_activations(const integer_view<T>& codes, std::span<const float> scales, std::span<const int> zeros = {},
                                                     index group = 0);

/// Codes of K x M activations, a column per token, and what they mean. Made by quantize_activations(), which copies, or by
/// wrap_activations(), which refers to the codes of the caller.
class quantized_activations {
public:
    [[nodiscard]] index rows() const noexcept { return rows_; }
    [[nodiscard]] index cols() const noexcept { return cols_; }
    [[nodiscard]] activation_type type() const noexcept { return type_; }
    /// Elements along K that share a scale.
    [[nodiscard]] index group_size() const noexcept { return group_; }
    /// Scales along one column; 1 unless they are per group.
    [[nodiscard]] index groups() const noexcept { return groups_; }
    /// Whether all columns share one scale and zero point.
    [[nodiscard]] bool shared() const noexcept { return shared_; }

    // Indices are the caller's business, as in a plain array.

    [[nodiscard]] int code(index k, index j) const noexcept {
        const std::uint8_t u = data()[k * row_stride_ + j * col_stride_];
        return type_ == activation_type::i8 ? static_cast<std::int8_t>(u) : u;
    }
    [[nodiscard]] float scale(index g, index j) const noexcept { return scales_[static_cast<std::size_t>(shared_ ? 0 : j * groups_ + g)]; }
    [[nodiscard]] int zero(index g, index j) const noexcept { return zeros_[static_cast<std::size_t>(shared_ ? 0 : j * groups_ + g)]; }
    /// All zero points, of shared codes or [column][group].
    [[nodiscard]] std::span<const int> zeros() const noexcept { return zeros_; }
    /// Codes less `zero` of n elements of column j from k on; returns their sum.
    std::int32_t read(index k, index n, index j, int zero, std::int32_t* out) const noexcept {
        const std::uint8_t* from = data() + k * row_stride_ + j * col_stride_;
        return type_ == activation_type::i8 ? copy<std::int8_t>(from, n, zero, out) : copy<std::uint8_t>(from, n, zero, out);
    }
    /// The bytes of the codes.
    [[nodiscard]] detail::byte_range bytes() const noexcept {
        if (rows_ == 0 || cols_ == 0) return {};
        index low = 0, high = 0;
        const index r = (rows_ - 1) * row_stride_, c = (cols_ - 1) * col_stride_;
        (r < 0 ? low : high) += r;
        (c < 0 ? low : high) += c;
        return {data() + low, data() + high + 1};
    }

private:
    friend quantized_activations quantize_activations(const const_view& x, const activation_rule& rule);
    template <class T>
    friend quantized_activations wrap_activations(const integer_view<T>& codes, std::span<const float> scales, std::span<const int> zeros, index group);

    template <class T>
    std::int32_t copy(const std::uint8_t* from, index n, int zero, std::int32_t* out) const noexcept {
        std::int32_t sum = 0;
        if (row_stride_ == 1)  // apart, so that compilers vectorize it
            for (index i = 0; i < n; ++i) sum += out[i] = static_cast<T>(from[i]) - zero;
        else
            for (index i = 0; i < n; ++i) sum += out[i] = static_cast<T>(from[i * row_stride_]) - zero;
        return sum;
    }
    [[nodiscard]] const std::uint8_t* data() const noexcept { return wrapped_ != nullptr ? wrapped_ : own_.data(); }

    activation_type type_ = activation_type::i8;
    bool shared_ = true;
    index rows_ = 0, cols_ = 0, group_ = 1, groups_ = 1;
    index row_stride_ = 1, col_stride_ = 0;
    std::vector<float> scales_;
    std::vector<int> zeros_;
    std::vector<std::uint8_t> own_;
    const std::uint8_t* wrapped_ = nullptr;
};

namespace detail {

[[nodiscard]] inline status check_grid(float scale, int zero, activation_type t, const char* who) {
    if (!is_finite_bits(bits_of(scale)) || !(scale > 0.0f))
        return status(errc::invalid_argument, std::string(who) + ": a scale of " + std::to_string(scale) + " (it must be finite and positive)");
    if (zero < lowest_code(t) || zero > highest_code(t))
        return status(errc::invalid_argument, std::string(who) + ": a zero point of " + std::to_string(zero) + ", codes are " +
                                                  std::to_string(lowest_code(t)) + " to " + std::to_string(highest_code(t)));
    return {};
}

NIBBLE_FP_BEGIN

/// a = clamp(RNE(RN(x * inv)) + zero, low, high).
NIBBLE_NOINLINE inline void encode_activations(const kernel_table& kernels, const float* x, index n, float inv, int zero, int low, int high,
                                               std::uint8_t* out) noexcept {
    constexpr index chunk = 256;
    constexpr float beyond = 1024.0f;  // of any code less any zero point
    std::int32_t q[chunk];
    for (index done = 0; done < n; done += chunk) {
        const index count = (std::min)(chunk, n - done);
        kernels.round(x + done, count, inv, beyond, q);
        for (index i = 0; i < count; ++i) {
            const int a = q[i] + zero;
            out[done + i] = static_cast<std::uint8_t>(a < low ? low : a > high ? high : a);
        }
    }
}

/// Scale and zero point of finite numbers, amax the largest magnitude.
[[nodiscard]] NIBBLE_NOINLINE inline group_scale activation_grid(const float* x, index n, float amax, activation_type type) noexcept {
    constexpr float smallest = 1.1754943508222875e-38f;  // 2^-126
    if (type == activation_type::i8) {
        const float scale = amax / 127.0f;
        return {scale < smallest ? smallest : scale, 0.0f};
    }
    float low[8] = {}, high[8] = {};
    for (index i = 0; i < n; ++i) {
        float& l = low[i % 8];
        float& h = high[i % 8];
        l = x[i] < l ? x[i] : l;
        h = x[i] > h ? x[i] : h;
    }
    for (int i = 1; i < 8; ++i) {
        low[0] = low[i] < low[0] ? low[i] : low[0];
        high[0] = high[i] > high[0] ? high[i] : high[0];
    }
    return zero_point{.eps = smallest}.from_range(low[0], high[0], int8::format);
}

NIBBLE_FP_END

}  // namespace detail

/// Quantizes x (K x M, any layout).
/// Throws errc::non_finite with the index of a NaN or Inf, errc::invalid_argument for a group, scale or zero point that
/// cannot be.
[[nodiscard]] NIBBLE_API quantized_activations quantize_activations(const const_view& x, const activation_rule& rule);

/// The same of an Eigen expression.
template <eigen_expression X>
[[nodiscard]] quantized_activations quantize_activations(const Eigen::DenseBase<X>& x, const activation_rule& rule) {
    return quantize_activations(eigen_view<X>(x).get(), rule);
}

template <class T>
[[nodiscard]] quantized_activations wrap_activations(const integer_view<T>& codes, std::span<const float> scales, std::span<const int> zeros, index group) {
    using element = std::remove_const_t<T>;
    static_assert(std::is_same_v<element, std::int8_t> || std::is_same_v<element, std::uint8_t>, "activation codes are int8_t or uint8_t");
    quantized_activations a;
    a.type_ = std::is_same_v<element, std::int8_t> ? activation_type::i8 : activation_type::u8;
    if (codes.rows < 0 || codes.cols < 0 || group < 0)
        detail::fail(errc::invalid_argument, "wrap_activations: " + detail::shape_text(codes.rows, codes.cols) + " codes in groups of " + std::to_string(group));
    if (codes.data == nullptr && codes.rows != 0 && codes.cols != 0) detail::fail(errc::invalid_argument, "wrap_activations: the codes are a null pointer");
    a.rows_ = codes.rows;
    a.cols_ = codes.cols;
    a.group_ = group == 0 ? std::max<index>(1, codes.rows) : group;
    a.groups_ = std::max<index>(1, detail::ceil_div(codes.rows, a.group_));
    a.shared_ = scales.size() == 1 && a.groups_ == 1;
    const auto count = static_cast<std::size_t>(a.shared_ ? 1 : a.groups_ * codes.cols);
    if (scales.size() != count || (!zeros.empty() && zeros.size() != count))
        detail::fail(errc::shape_mismatch, "wrap_activations: " + std::to_string(scales.size()) + " scales and " + std::to_string(zeros.size()) +
                                               " zero points for " + std::to_string(codes.cols) + " columns of " + std::to_string(a.groups_) + " groups");
    a.scales_.assign(scales.begin(), scales.end());
    a.zeros_.assign(zeros.begin(), zeros.end());
    a.zeros_.resize(count, 0);
    for (std::size_t i = 0; i < count; ++i) detail::check_grid(a.scales_[i], a.zeros_[i], a.type_, "wrap_activations").or_throw();
    a.row_stride_ = codes.row_stride;
    a.col_stride_ = codes.col_stride;
    a.wrapped_ = reinterpret_cast<const std::uint8_t*>(codes.data);
    return a;
}

template <class T>
[[nodiscard]] quantized_activations wrap_activations(const integer_view<T>& codes, float scale, int zero = 0) {
    return wrap_activations(codes, std::span<const float>(&scale, 1), std::span<const int>(&zero, 1));
}

/// The integers of an Eigen matrix, map or block with memory of its own.
template <class Derived>
    requires(detail::has_memory<Derived> && std::is_integral_v<typename Derived::Scalar>)
[[nodiscard]] integer_view<const typename Derived::Scalar> codes_of(const Eigen::DenseBase<Derived>& m) noexcept {
    const Derived& d = m.derived();
    return {d.data(), d.rows(), d.cols(), d.rowStride(), d.colStride()};
}

/// The same, to be written.
template <class Derived>
    requires std::is_integral_v<typename Derived::Scalar>
[[nodiscard]] integer_view<typename Derived::Scalar> writable_integers(const Eigen::DenseBase<Derived>& target) noexcept {
    static_assert(detail::has_memory<Derived>, "the output must be a matrix, a map or a block with memory of its own");
    static_assert(detail::writable<Derived>, "the output is read-only");
    const Derived& d = target.derived();
    return {const_cast<typename Derived::Scalar*>(d.data()), d.rows(), d.cols(), d.rowStride(), d.colStride()};
}

/// Codes of an Eigen matrix, map or block of int8_t or uint8_t.
template <class Derived>
    requires(detail::has_memory<Derived> && std::is_integral_v<typename Derived::Scalar>)
[[nodiscard]] quantized_activations wrap_activations(const Eigen::DenseBase<Derived>& codes, float scale, int zero = 0) {
    return wrap_activations(codes_of(codes), scale, zero);
}
template <class Derived>
    requires(detail::has_memory<Derived> && std::is_integral_v<typename Derived::Scalar>)
[[nodiscard]] quantized_activations wrap_activations(const Eigen::DenseBase<Derived>& codes, std::span<const float> scales,
                                                     std::span<const int> zeros = {}, index group = 0) {
    return wrap_activations(codes_of(codes), scales, zeros, group);
}

#if NIBBLE_DEFINE_API
NIBBLE_FP_BEGIN
namespace detail {

[[nodiscard]] NIBBLE_NOINLINE inline float inverse_of(float scale) noexcept { return 1.0f / scale; }

}  // namespace detail
NIBBLE_FP_END

NIBBLE_API quantized_activations quantize_activations(const const_view& x, const activation_rule& rule) {
    const std::string who = "quantize_activations";
    if (x.rows < 0 || x.cols < 0 || rule.group < 0)
        detail::fail(errc::invalid_argument, who + ": X is " + detail::shape_text(x.rows, x.cols) + ", in groups of " + std::to_string(rule.group));
    if (x.data == nullptr && x.rows != 0 && x.cols != 0) detail::fail(errc::invalid_argument, who + ": X is a null pointer");
    const detail::fp_environment environment;
    if (!rule.dynamic) {
        detail::check_grid(rule.scale, rule.zero, rule.type, who.c_str()).or_throw();
        if (!detail::is_finite_bits(detail::bits_of(detail::inverse_of(rule.scale))))
            detail::fail(errc::invalid_argument, who + ": the inverse of the scale, " + std::to_string(rule.scale) + ", is not finite");
    }
    quantized_activations a;
    a.type_ = rule.type;
    a.shared_ = !rule.dynamic || rule.shared;
    a.rows_ = x.rows;
    a.cols_ = x.cols;
    a.group_ = a.shared_ || rule.group == 0 ? std::max<index>(1, x.rows) : rule.group;
    a.groups_ = std::max<index>(1, detail::ceil_div(x.rows, a.group_));
    a.col_stride_ = x.rows;
    const auto count = static_cast<std::size_t>(a.shared_ ? 1 : detail::checked_product(a.groups_, x.cols));
    a.scales_.assign(count, rule.scale);
    a.zeros_.assign(count, rule.zero);
    a.own_.resize(static_cast<std::size_t>(detail::checked_product(x.rows, x.cols)));
    const detail::kernel_table& kernels = detail::active_kernels();
    std::vector<float> column(static_cast<std::size_t>(x.rows));
    const auto load = [&](index j) {
        detail::load_block({x.at(0, j), x.type, x.rows, 1, x.row_stride, x.col_stride}, 0, x.rows, 0, 1, column.data(), 1);
    };
    const auto largest_of = [&](index first, index n, index j) {
        const float* from = column.data() + first;
        const std::uint32_t largest = kernels.largest_bits(from, n);
        if (largest >= 0x7f800000u) {
            const index k = detail::find_non_finite(from, n);
            detail::fail(errc::non_finite, who + ": X(" + std::to_string(first + k) + ", " + std::to_string(j) + ") is " + detail::non_finite_name(from + k));
        }
        return detail::float_of(largest);
    };
    if (rule.dynamic && rule.shared) {
        float ends[2] = {0.0f, 0.0f}, largest = 0.0f;  // the ends of the range say as much as all of it
        for (index j = 0; j < x.cols; ++j) {
            load(j);
            largest = (std::max)(largest, largest_of(0, x.rows, j));
            for (const float v : column) {
                ends[0] = v < ends[0] ? v : ends[0];
                ends[1] = v > ends[1] ? v : ends[1];
            }
        }
        const group_scale grid = detail::activation_grid(ends, 2, largest, rule.type);
        a.scales_[0] = grid.scale;
        a.zeros_[0] = static_cast<int>(grid.offset);
    }
    for (index j = 0; j < x.cols; ++j) {
        load(j);
        for (index g = 0; g < a.groups_; ++g) {
            const index first = g * a.group_;
            const index n = (std::min)(a.group_, x.rows - first);
            const float* from = column.data() + first;
            const float largest = largest_of(first, n, j);
            const auto at = static_cast<std::size_t>(a.shared_ ? 0 : j * a.groups_ + g);
            if (!a.shared_) {
                const group_scale grid = detail::activation_grid(from, n, largest, rule.type);
                a.scales_[at] = grid.scale;
                a.zeros_[at] = static_cast<int>(grid.offset);
            }
            detail::encode_activations(kernels, from, n, detail::inverse_of(a.scales_[at]), a.zeros_[at], lowest_code(rule.type), highest_code(rule.type),
                                       a.own_.data() + j * x.rows + first);
        }
    }
    return a;
}
#endif

}  // namespace nibble
