// Y = W X with quantized W (N x K), float X (K x M, a column per token), fused: dequantized weights are never written.
//
//     Eigen::MatrixXf Y = Wq * X;                               // by value, compute::f32
//     nibble::gemm(Wq, X, Y, {.compute = nibble::compute::a8}); // into storage of the caller
//     Eigen::MatrixXf Z = T * Wq.transpose();                  // tokens as rows
//
// Column j of the result depends on column j of X alone: the bits are those of Wq * X.col(j), on every instruction set.
#pragma once

#include "activations.hpp"
#include "detail/dispatch.hpp"
#include "detail/fp_environment.hpp"
#include "eigen.hpp"

namespace nibble::inline NIBBLE_ABI {

struct gemm_options {
    nibble::compute compute = nibble::compute::f32;
};

/// Whether gemm(w, x, y) is possible; the message says why not, with both shapes.
[[nodiscard]] inline status check_gemm(const qmatrix& w, const const_view& x, const const_view& y) {
    const std::string shapes = "gemm: W is " + detail::shape_text(w.rows(), w.cols()) + ", X is " + detail::shape_text(x.rows, x.cols);
    if (x.rows != w.cols()) return status(errc::shape_mismatch, shapes);
    if (y.rows != w.rows() || y.cols != x.cols)
        return status(errc::shape_mismatch, shapes + ", so Y must be " + detail::shape_text(w.rows(), x.cols) + ", but it is " +
                                                detail::shape_text(y.rows, y.cols));
    if ((x.data == nullptr && x.rows != 0 && x.cols != 0) || (y.data == nullptr && y.rows != 0 && y.cols != 0))
        return status(errc::invalid_argument, shapes + ", and a pointer is null");
    if (detail::overlaps(detail::bytes_of(x), detail::bytes_of(y)))
        return status(errc::overlap, shapes + ", and Y shares memory with X");
    if (detail::overlaps({w.data(), w.data() + w.memory_bytes()}, detail::bytes_of(y)))
        return status(errc::overlap, shapes + ", and Y shares memory with W");
    return {};
}

namespace detail {

NIBBLE_FP_BEGIN

[[nodiscard]] inline activations prepare_for(const qmatrix& w, const const_view& x, const gemm_options& options) {
    return prepare(x, w.layout(), path_of(w.format(), options.compute), w.exponent());
}

inline constexpr std::uint32_t canonical_nan = 0x7fc00000u;

/// One panel of W times all prepared columns.
class panel_product {
public:
    panel_product(const qmatrix& w, const activations& x) : w_(w), x_(x), kernels_(active_kernels()) {
        values_.resize(static_cast<std::size_t>(16 * sub_block));
        accumulator_.resize(static_cast<std::size_t>(16 * x.cols));
        strict_.resize(16 * x.strict_columns.size());
        const code_format& f = w.format();
        if (w.offset_type() != offset_kind::none || f.decode == decode_class::wide) return;
        if (f.decode == decode_class::integer && f.values[1] - f.values[0] == 1.0f) {  // u + base: no table needed
            for (float& z : base_) z = -f.values[0];
            return;
        }
        table_.resize(f.code_count() < 16 ? 16 : f.code_count());  // kernels read whole vectors of it
        const float per_unit = x.path.digits > 0 ? 1.0f / f.unit : 1.0f;
        for (unsigned u = 0; u < f.code_count(); ++u) table_[u] = f.values[u] * per_unit;
    }

    NIBBLE_NOINLINE void run(index panel, const float_view& y) {
        const layout& l = w_.layout();
        panel_ = w_.panel(panel);
        std::fill(accumulator_.begin(), accumulator_.end(), 0.0f);
        std::fill(strict_.begin(), strict_.end(), 0.0f);
        index group = -1;
        for (index b = 0; b < x_.blocks(); ++b) {
            const index first = x_.begins[static_cast<std::size_t>(b)];
            if (first / l.group != group) {
                group = first / l.group;
                w_.expand_scales(panel, group, 1, scale_, offset_);
            }
            if (!x_.path.strict) multiply(b, first);
            if (!x_.strict_columns.empty()) multiply_strict(b, first);
        }
        const index live = (std::min)(panel_rows, w_.rows() - panel * panel_rows);
        for (index j = 0; j < x_.cols; ++j)
            if (!x_.path.strict) store(accumulator_.data() + 16 * j, live, panel, j, x_.exponent[static_cast<std::size_t>(j)], y);
        for (std::size_t s = 0; s < x_.strict_columns.size(); ++s)
            store(strict_.data() + 16 * s, live, panel, x_.strict_columns[s], 0, y);
    }

private:
    void multiply(index b, index first) {
        const code_format& f = w_.format();
        const index n = x_.length(b);
        float scale[16];
        float minimum[16];
        block_product p{};
        if (f.decode == decode_class::wide) {
            decode_wide(first, n);
            for (float& s : scale) s = 1.0f;
        } else {
            const bool zero = w_.offset_type() == offset_kind::zero_point;
            const bool raw = w_.offset_type() != offset_kind::none;
            const float* subtracted = zero ? offset_ : !raw && table_.empty() ? base_ : nullptr;
            read(first, n, {raw || table_.empty() ? nullptr : table_.data(), subtracted});
            const float unit = raw || x_.path.digits == 0 ? 1.0f : f.unit;
            for (int r = 0; r < 16; ++r) scale[r] = scale_[r] * unit;
            if (w_.offset_type() == offset_kind::minimum) {
                p.minimum = offset_;
            } else if (w_.offset_type() == offset_kind::float_zero) {
                for (int r = 0; r < 16; ++r) minimum[r] = -(scale_[r] * offset_[r]);
                p.minimum = minimum;
            }
        }
        p.values = values_.data();
        p.length = n;
        p.streams = x_.streams.data() + x_.planes * first * x_.cols;
        p.columns = x_.cols;
        p.scale = scale;
        p.activation_scale = x_.scale.data() + b * x_.cols;
        p.activation_sum = x_.sum.data() + b * x_.cols;
        p.accumulator = accumulator_.data();
        if (x_.path.digits > 0) kernels_.digits[x_.path.digits - 1](p);
        else kernels_.chain(p);
    }

    void multiply_strict(index b, index first) {
        const index n = x_.length(b);
        if (w_.format().decode == decode_class::wide) {
            decode_wide(first, n);
        } else {
            read(first, n, {nullptr, nullptr});
            for (index i = 0; i < n; ++i) {
                for (int r = 0; r < 16; ++r) {
                    float& v = values_[static_cast<std::size_t>(16 * i + r)];
                    v = decode_weight(w_.format(), w_.offset_type(), static_cast<unsigned>(v), scale_[r], offset_[r]);
                }
            }
        }
        block_product p{};
        p.values = values_.data();
        p.length = n;
        p.columns = static_cast<index>(x_.strict_columns.size());
        p.streams = x_.strict_streams.data() + first * p.columns;
        p.accumulator = strict_.data();
        kernels_.strict(p);
    }

    /// Values, or with no table codes as floats, of the columns [first, first + n) of this panel. A sub-block starts at a
    /// k-quad; what its last quad holds beyond n is not used.
    void read(index first, index n, const value_map& map) noexcept {
        const layout& l = w_.layout();
        kernels_.read(panel_, l.bits, l.position(first) / 4, ceil_div(n, 4), map, values_.data());
    }

    void decode_wide(index first, index n) noexcept {
        const index position = w_.layout().position(first);
        for (index i = 0; i < n; ++i)
            for (int r = 0; r < 16; ++r)
                values_[static_cast<std::size_t>(16 * i + r)] = w_.format().decode_wide(get_code(panel_, 16, r, position + i));
    }

    static void store(const float* line, index live, index panel, index j, int exponent, const float_view& y) noexcept {
        for (index r = 0; r < live; ++r) {
            float v = exponent == 0 ? line[r] : scale_by_power(line[r], -exponent);
            if ((bits_of(v) & 0x7fffffffu) > 0x7f800000u) v = float_of(canonical_nan);  // x86 and ARM differ in sign and payload
            y.at(panel * panel_rows + r, j) = v;
        }
    }

    const qmatrix& w_;
    const activations& x_;
    const kernel_table& kernels_;
    const std::uint8_t* panel_ = nullptr;
    std::vector<float> values_, accumulator_, strict_, table_;
    float scale_[16];
    float offset_[16];
    float base_[16];
};

NIBBLE_FP_END

}  // namespace detail

/// y = w x. x is K x M and y is N x M, in any order and strides; neither is copied as a whole.
/// Throws errc::shape_mismatch with the shapes, errc::overlap if y shares memory with x or w.
NIBBLE_API void gemm(const qmatrix& w, const const_view& x, const float_view& y, const gemm_options& options = {});

/// How many columns of X (K x M) a product with w sends to strict_f32 because its class cannot carry them (see
/// activations.hpp).
[[nodiscard]] NIBBLE_API index strict_columns(const qmatrix& w, const const_view& x, const gemm_options& options = {});

#if NIBBLE_DEFINE_API
NIBBLE_API void gemm(const qmatrix& w, const const_view& x, const float_view& y, const gemm_options& options) {
    check_gemm(w, x, y).or_throw();
    const detail::fp_environment environment;
    const detail::activations prepared = detail::prepare_for(w, x, options);
    detail::panel_product product(w, prepared);
    for (index p = 0; p < w.layout().panels; ++p) product.run(p, y);
}

NIBBLE_API index strict_columns(const qmatrix& w, const const_view& x, const gemm_options& options) {
    if (x.rows != w.cols())
        detail::fail(errc::shape_mismatch, "strict_columns: W is " + detail::shape_text(w.rows(), w.cols()) + ", X is " +
                                               detail::shape_text(x.rows, x.cols));
    const detail::fp_environment environment;
    return static_cast<index>(detail::prepare_for(w, x, options).strict_columns.size());
}
#endif

/// The same on Eigen expressions. Y is a matrix, map or block of floats of the right shape; temporaries like Y.col(3)
/// are welcome. An X without memory of its own (A + B, cast<>) is evaluated once.
template <eigen_expression X, class Y>
    requires eigen_expression<std::remove_cvref_t<Y>>
void gemm(const qmatrix& w, const Eigen::DenseBase<X>& x, Y&& y, const gemm_options& options = {}) {
    gemm(w, eigen_view<X>(x).get(), writable_view(y), options);
}

/// W X by value; eager, so `auto y = Wq * x` never dangles.
template <eigen_expression X>
[[nodiscard]] Eigen::Matrix<float, Eigen::Dynamic, X::ColsAtCompileTime> operator*(const qmatrix& w, const Eigen::DenseBase<X>& x) {
    Eigen::Matrix<float, Eigen::Dynamic, X::ColsAtCompileTime> y(w.rows(), x.cols());
    gemm(w, x, y);
    return y;
}

/// X W^T by value: row i of the result is W times row i of X.
template <eigen_expression X>
[[nodiscard]] Eigen::Matrix<float, X::RowsAtCompileTime, Eigen::Dynamic, X::RowsAtCompileTime == 1 ? Eigen::RowMajor : Eigen::ColMajor>
operator*(const Eigen::DenseBase<X>& x, const transposed_qmatrix& w) {
    Eigen::Matrix<float, X::RowsAtCompileTime, Eigen::Dynamic, X::RowsAtCompileTime == 1 ? Eigen::RowMajor : Eigen::ColMajor> y(
        x.rows(), w.matrix.rows());
    if (x.cols() != w.matrix.cols())
        detail::fail(errc::shape_mismatch, "gemm: X is " + detail::shape_text(x.rows(), x.cols()) + ", W is " +
                                               detail::shape_text(w.matrix.rows(), w.matrix.cols()) + ", so X * W.transpose() has no meaning");
    const eigen_view<X> view(x);
    const_view from = view.get();
    std::swap(from.rows, from.cols);
    std::swap(from.row_stride, from.col_stride);
    float_view to = writable_view(y);
    std::swap(to.rows, to.cols);
    std::swap(to.row_stride, to.col_stride);
    gemm(w.matrix, from, to);
    return y;
}

/// The same on an Eigen expression.
template <eigen_expression X>
[[nodiscard]] index strict_columns(const qmatrix& w, const Eigen::DenseBase<X>& x, const gemm_options& options = {}) {
    return strict_columns(w, eigen_view<X>(x).get(), options);
}

/// In words: which kernels a product of w with m columns runs, and why.
[[nodiscard]] inline std::string explain(const qmatrix& w, index m, const gemm_options& options = {}) {
    const detail::product_path path = detail::path_of(w.format(), options.compute);
    std::string text = w.name() + " " + detail::shape_text(w.rows(), w.cols()) + " x " + std::to_string(m) + " columns, " +
                       name_of(options.compute) + " at " + name_of(active_isa()) + ": ";
    const std::string blocks = " over sub-blocks of " + std::to_string((std::min)(w.group_size(), detail::sub_block));
    if (path.strict)
        text += "fp32 fma on decoded weights" + std::string(options.compute == compute::strict_f32 ? "" : " (16-bit weights need no more)");
    else if (path.digits > 0)
        text += "exact integer sums of " + std::to_string(path.digits) + " base-256 digit" + (path.digits > 1 ? "s" : "") + " of the activations" + blocks;
    else if (path.rounded > 0)
        text += "fp32 fma on table values and activations of " + std::to_string(8 * path.rounded) + " bits" + blocks;
    else
        text += "fp32 fma on table values" + blocks;
    text += "; columns with NaN or Inf";
    if (path.digits == 3) text += ", or with an outlier beyond about 2^15 times its neighbours,";
    return text + " go to strict_f32";
}

}  // namespace nibble
