// Y = W X with quantized W (N x K), float X (K x M, a column per token), fused: dequantized weights are never written.
//
//     Eigen::MatrixXf Y = Wq * X;                               // by value, compute::f32
//     nibble::gemm(Wq, X, Y, {.compute = nibble::compute::a8}); // into storage of the caller
//     Eigen::MatrixXf Z = T * Wq.transpose();                  // tokens as rows
//
// Column j of the result depends on column j of X alone: the bits are those of Wq * X.col(j), on every instruction set.
#pragma once

#include <span>

#include "detail/run_products.hpp"
#include "detail/transposed_product.hpp"

namespace nibble::inline NIBBLE_ABI {

/// How a product is computed and what is done to it: y = f(w x + bias), or f(w x + bias + y). Each step is rounded to
/// float once, in this order; 16-bit outputs are rounded last.
struct gemm_options {
    nibble::compute compute = nibble::compute::f32;
    /// One float for each of the N rows: an Eigen vector or a span, which must live as long as the call.
    bias_view bias{};
    nibble::activation activation = nibble::activation::none;
    /// Adds what y holds.
    bool accumulate = false;
    /// Scratch memory that is kept from call to call; nothing is allocated once it is large enough. Null: allocated anew.
    nibble::workspace* workspace = nullptr;
    /// Where threads come from. Null: the calling thread alone. Bits do not depend on it.
    nibble::executor* executor = nullptr;
};

/// One product of several in a call: w x + bias to y. Views of the caller's memory.
struct gemm_call {
    qmatrix w;
    const_view x;
    output_view y;
    bias_view bias{};
};

/// A gemm_call of Eigen matrices, maps or blocks with memory of their own.
template <eigen_expression X, class Y>
    requires(detail::has_memory<X> && eigen_expression<std::remove_cvref_t<Y>>)
[[nodiscard]] gemm_call make_call(const qmatrix& w, const Eigen::DenseBase<X>& x, Y&& y, bias_view bias = {}) {
    return {w, eigen_view<X>(x).get(), output_of(y), bias};
}

namespace detail {

// Texts are made when there is something to say: a call that is right allocates nothing.
template <class Shapes>
[[nodiscard]] status check_output(const qmatrix& w, index cols, const output_view& y, const bias_view& bias, const Shapes& shapes) {
    if (y.rows != w.rows() || y.cols != cols)
        return status(errc::shape_mismatch, shapes() + ", so Y must be " + shape_text(w.rows(), cols) + ", but it is " + shape_text(y.rows, y.cols));
    if (y.type == scalar_type::f64)
        return status(errc::unsupported, shapes() + ", and Y is double; products are written as float, fp16 or bf16");
    if (y.data == nullptr && y.rows != 0 && y.cols != 0) return status(errc::invalid_argument, shapes() + ", and Y is a null pointer");
    if (bias.given() && bias.size() != w.rows())
        return status(errc::shape_mismatch, shapes() + ", and the bias has " + std::to_string(bias.size()) + " elements, not " + std::to_string(w.rows()));
    if (overlaps({w.data(), w.data() + w.memory_bytes()}, bytes_of(y))) return status(errc::overlap, shapes() + ", and Y shares memory with W");
    if (bias.given() && overlaps(bytes_of(bias.view()), bytes_of(y))) return status(errc::overlap, shapes() + ", and Y shares memory with the bias");
    return {};
}

}  // namespace detail

/// Whether gemm(w, x, y) is possible; the message says why not, with both shapes.
[[nodiscard]] inline status check_gemm(const qmatrix& w, const const_view& x, const output_view& y, const bias_view& bias = {}) {
    const auto shapes = [&] { return "gemm: W is " + detail::shape_text(w.rows(), w.cols()) + ", X is " + detail::shape_text(x.rows, x.cols); };
    if (x.rows != w.cols()) return status(errc::shape_mismatch, shapes());
    if (status s = detail::check_output(w, x.cols, y, bias, shapes); !s) return s;
    if (x.data == nullptr && x.rows != 0 && x.cols != 0) return status(errc::invalid_argument, shapes() + ", and X is a null pointer");
    if (detail::overlaps(detail::bytes_of(x), detail::bytes_of(y))) return status(errc::overlap, shapes() + ", and Y shares memory with X");
    return {};
}

/// y = w x. x is K x M and y is N x M, in any order and strides; neither is copied as a whole.
/// Throws errc::shape_mismatch with the shapes, errc::overlap if y shares memory with x, w or the bias.
NIBBLE_API void gemm(const qmatrix& w, const const_view& x, const output_view& y, const gemm_options& options = {});

namespace detail {
/// The same with column k of w meeting row order[k] of x: checked by the caller to be a permutation of K elements.
NIBBLE_API void ordered_gemm(const qmatrix& w, const const_view& x, const index* order, const output_view& y, const gemm_options& options);
}  // namespace detail

/// y = w x from prepared activations; the bits are those of gemm(w, x, y) in the class that they were prepared for.
/// Throws errc::invalid_argument when they were prepared for another group size or kind of format, or for another class
/// than the options ask for.
NIBBLE_API void gemm(const qmatrix& w, const prepared_activations& x, const output_view& y, const gemm_options& options);
inline void gemm(const qmatrix& w, const prepared_activations& x, const output_view& y) { gemm(w, x, y, {.compute = x.compute()}); }

/// Several products in one call, each with columns and an output of its own (mixture of experts): threads share all the
/// work, and the bits are those of one gemm for each. Each call's bias counts, not that of the options. Outputs must not
/// share memory; that they do not is the caller's business. Throws what gemm throws, naming the call.
NIBBLE_API void gemm(std::span<const gemm_call> calls, const gemm_options& options = {});

/// z = w^T y, y is N x M and z is K x M: the gradient of a product with respect to its activations. Always fp32 fma on
/// decoded weights, n ascending (class strict_f32, also when the options say f32); a8 and a16 are errc::unsupported. A
/// bias has K elements. Throws errc::shape_mismatch with the shapes, errc::overlap if z shares memory with y or w.
NIBBLE_API void gemm(const transposed_qmatrix& w, const const_view& y, const output_view& z, const gemm_options& options = {});

/// How many columns of X (K x M) a product with w sends to strict_f32 because its class cannot carry them (see
/// activations.hpp).
[[nodiscard]] NIBBLE_API index strict_columns(const qmatrix& w, const const_view& x, const gemm_options& options = {});

#if NIBBLE_DEFINE_API
namespace detail {

inline void run_products(std::span<const product_call> calls, const gemm_options& options) {
    if (calls.empty()) return;
    workspace own;
    product_runner(calls, options.workspace != nullptr ? *options.workspace : own,
                   options.executor != nullptr ? *options.executor : serial())
        .run();
}

[[nodiscard]] inline output make_output(const output_view& y, const bias_view& bias, const gemm_options& options) noexcept {
    return {y, bias.given() ? &bias : nullptr, options.activation, options.accumulate};
}

inline void run_transposed(const qmatrix& w, const const_view& y, const output& to, const gemm_options& options) {
    workspace own;
    workspace& memory = options.workspace != nullptr ? *options.workspace : own;
    executor& threads = options.executor != nullptr ? *options.executor : serial();
    transposed_product p(w, y.cols);
    const index tasks = (std::max)(index{1}, (std::min)(index{threads.concurrency()}, p.slabs()));
    std::span<transposed_product::scratch> scratch;
    lay_out(memory, [&](arena& a) {
        p.lay_out(a);
        scratch = a.take<transposed_product::scratch>(tasks);
        for (index t = 0; t < tasks; ++t) {
            transposed_product::scratch s;
            p.lay_out(a, s);
            if (!scratch.empty()) scratch[static_cast<std::size_t>(t)] = s;
        }
    });
    threads.parallel_for(tasks, [&](index t) {
        const fp_environment environment;
        for (index j = p.columns() * t / tasks; j < p.columns() * (t + 1) / tasks; ++j)
            p.take_column(j, {y.at(0, j), y.type, y.rows, 1, y.row_stride, y.col_stride}, scratch[static_cast<std::size_t>(t)]);
    });
    threads.parallel_for(tasks, [&](index t) {
        const fp_environment environment;
        for (index s = p.slabs() * t / tasks; s < p.slabs() * (t + 1) / tasks; ++s) p.run(s, scratch[static_cast<std::size_t>(t)], to);
    });
}

}  // namespace detail

NIBBLE_API void detail::ordered_gemm(const qmatrix& w, const const_view& x, const index* order, const output_view& y, const gemm_options& options) {
    check_gemm(w, x, y, options.bias).or_throw();
    const product_call call{&w, &x, nullptr, make_output(y, options.bias, options), path_of(w.format(), options.compute), order};
    run_products({&call, 1}, options);
}

NIBBLE_API void gemm(const qmatrix& w, const const_view& x, const output_view& y, const gemm_options& options) {
    detail::ordered_gemm(w, x, nullptr, y, options);
}

NIBBLE_API void gemm(const qmatrix& w, const prepared_activations& x, const output_view& y, const gemm_options& options) {
    x.check(w).or_throw();
    if (options.compute != x.compute())
        detail::fail(errc::invalid_argument, std::string("gemm: the activations were prepared for class ") + name_of(x.compute()) + ", not " + name_of(options.compute));
    const auto shapes = [&] {
        return "gemm: W is " + detail::shape_text(w.rows(), w.cols()) + ", the activations are " + detail::shape_text(x.rows(), x.cols());
    };
    detail::check_output(w, x.cols(), y, options.bias, shapes).or_throw();
    const detail::product_call call{&w, nullptr, &x, detail::make_output(y, options.bias, options), x.path(), nullptr};
    detail::run_products({&call, 1}, options);
}

NIBBLE_API void gemm(std::span<const gemm_call> calls, const gemm_options& options) {
    std::vector<detail::product_call> products;
    products.reserve(calls.size());
    for (std::size_t i = 0; i < calls.size(); ++i) {
        const gemm_call& c = calls[i];
        if (status s = check_gemm(c.w, c.x, c.y, c.bias); !s)
            detail::fail(s.code(), s.message() + " (call " + std::to_string(i) + " of " + std::to_string(calls.size()) + ")");
        products.push_back({&c.w, &c.x, nullptr, detail::make_output(c.y, c.bias, options), detail::path_of(c.w.format(), options.compute), nullptr});
    }
    detail::run_products(products, options);
}

NIBBLE_API void gemm(const transposed_qmatrix& t, const const_view& y, const output_view& z, const gemm_options& options) {
    const qmatrix& w = t.matrix;
    const auto bad = [&](errc code, const std::string& what) {
        detail::fail(code, "gemm: W is " + detail::shape_text(w.rows(), w.cols()) + ", Y is " + detail::shape_text(y.rows, y.cols) + ", " + what);
    };
    if (y.rows != w.rows()) bad(errc::shape_mismatch, "so W^T Y has no meaning");
    if (z.rows != w.cols() || z.cols != y.cols)
        bad(errc::shape_mismatch, "so Z must be " + detail::shape_text(w.cols(), y.cols) + ", but it is " + detail::shape_text(z.rows, z.cols));
    if (options.compute == compute::a8 || options.compute == compute::a16)
        bad(errc::unsupported, std::string("and ") + name_of(options.compute) + " does not exist for W^T Y; use strict_f32");
    if (z.type == scalar_type::f64) bad(errc::unsupported, "and Z is double; products are written as float, fp16 or bf16");
    if (options.bias.given() && options.bias.size() != w.cols())
        bad(errc::shape_mismatch, "and the bias has " + std::to_string(options.bias.size()) + " elements, not " + std::to_string(w.cols()));
    if ((y.data == nullptr && y.rows != 0 && y.cols != 0) || (z.data == nullptr && z.rows != 0 && z.cols != 0))
        bad(errc::invalid_argument, "and a pointer is null");
    if (detail::overlaps(detail::bytes_of(y), detail::bytes_of(z)) || detail::overlaps({w.data(), w.data() + w.memory_bytes()}, detail::bytes_of(z)))
        bad(errc::overlap, "and Z shares memory with W or Y");
    detail::run_transposed(w, y, detail::make_output(z, options.bias, options), options);
}

NIBBLE_API index strict_columns(const qmatrix& w, const const_view& x, const gemm_options& options) {
    if (x.rows != w.cols())
        detail::fail(errc::shape_mismatch, "strict_columns: W is " + detail::shape_text(w.rows(), w.cols()) + ", X is " +
                                               detail::shape_text(x.rows, x.cols));
    return prepare(w, x, options.compute).strict_columns();
}
#endif

/// The same on Eigen expressions. Y is a matrix, map or block of float, half or bfloat16 of the right shape; temporaries like Y.col(3)
/// are welcome. An X without memory of its own (A + B, cast<>) is evaluated once.
template <eigen_expression X, class Y>
    requires eigen_expression<std::remove_cvref_t<Y>>
void gemm(const qmatrix& w, const Eigen::DenseBase<X>& x, Y&& y, const gemm_options& options = {}) {
    gemm(w, eigen_view<X>(x).get(), output_of(y), options);
}

template <class Y>
    requires eigen_expression<std::remove_cvref_t<Y>>
void gemm(const qmatrix& w, const prepared_activations& x, Y&& y, const gemm_options& options) {
    gemm(w, x, output_of(y), options);
}
template <class Y>
    requires eigen_expression<std::remove_cvref_t<Y>>
void gemm(const qmatrix& w, const prepared_activations& x, Y&& y) {
    gemm(w, x, output_of(y));
}

/// W X by value; eager, so `auto y = Wq * x` never dangles.
template <eigen_expression X>
[[nodiscard]] Eigen::Matrix<float, Eigen::Dynamic, X::ColsAtCompileTime> operator*(const qmatrix& w, const Eigen::DenseBase<X>& x) {
    Eigen::Matrix<float, Eigen::Dynamic, X::ColsAtCompileTime> y(w.rows(), x.cols());
    gemm(w, x, y);
    return y;
}

template <eigen_expression X, class Y>
    requires eigen_expression<std::remove_cvref_t<Y>>
void gemm(const transposed_qmatrix& w, const Eigen::DenseBase<X>& x, Y&& y, const gemm_options& options = {}) {
    gemm(w, eigen_view<X>(x).get(), output_of(y), options);
}

/// W^T Y by value.
template <eigen_expression X>
[[nodiscard]] Eigen::Matrix<float, Eigen::Dynamic, X::ColsAtCompileTime> operator*(const transposed_qmatrix& w, const Eigen::DenseBase<X>& y) {
    Eigen::Matrix<float, Eigen::Dynamic, X::ColsAtCompileTime> z(w.matrix.cols(), y.cols());
    gemm(w, y, z);
    return z;
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

/// In words: what a product of w with m columns computes and by which kernels of which level, and why.
[[nodiscard]] NIBBLE_API std::string explain(const qmatrix& w, index m, const gemm_options& options = {});

#if NIBBLE_DEFINE_API
NIBBLE_API std::string explain(const qmatrix& w, index m, const gemm_options& options) {
    const detail::product_path path = detail::path_of(w.format(), options.compute);
    std::string text = w.name() + " " + detail::shape_text(w.rows(), w.cols()) + " x " + std::to_string(m) + " columns, class " +
                       name_of(options.compute) + ": ";
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
    return text + " go to strict_f32. Level " + name_of(active_isa()) + ": " + detail::product(w, m, path).describe();
}
#endif

}  // namespace nibble
