// Y = W X with quantized W (N x K), float X (K x M, a column per token), fused: dequantized weights are never written.
//
//     Eigen::MatrixXf Y = Wq * X;                               // by value, compute::f32
//     nibble::gemm(Wq, X, Y, {.compute = nibble::compute::a8}); // into storage of the caller
//     Eigen::MatrixXf Z = T * Wq.transpose();                  // tokens as rows
//
// Column j of the result depends on column j of X alone: the bits are those of Wq * X.col(j), on every instruction set.
#pragma once

#include "detail/product.hpp"
#include "eigen.hpp"

namespace nibble::inline NIBBLE_ABI {

struct gemm_options {
    nibble::compute compute = nibble::compute::f32;
    /// Scratch memory that is kept from call to call; nothing is allocated once it is large enough. Null: allocated anew.
    nibble::workspace* workspace = nullptr;
    /// Where threads come from. Null: the calling thread alone. Bits do not depend on it.
    nibble::executor* executor = nullptr;
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

/// Activations made ready once, for products with several matrices that share K, the group size and the way their format
/// is multiplied (integers or floats). Made by prepare().
class prepared_activations {
public:
    [[nodiscard]] index rows() const noexcept { return rows_; }
    [[nodiscard]] index cols() const noexcept { return static_cast<index>(carried_.size()); }
    [[nodiscard]] nibble::compute compute() const noexcept { return compute_; }
    /// Group size of the weights that they are for.
    [[nodiscard]] index group_size() const noexcept { return group_; }
    /// Columns that go to strict_f32.
    [[nodiscard]] index strict_columns() const noexcept { return strict_; }

private:
    friend class detail_gemm;
    nibble::compute compute_ = nibble::compute::f32;
    detail::product_path path_;
    index rows_ = 0;
    index group_ = 1;
    int weight_exponent_ = 0;
    std::vector<std::int32_t> q_, total_;      // [column][position], [column][sub-block]
    std::vector<float> x_, scale_, sum_;
    std::vector<int> exponent_;                // [column]
    std::vector<std::uint8_t> carried_;        // [column]
    std::vector<index> raw_at_;                // [column]: of its floats in raw_, or -1
    std::vector<float> raw_;                   // columns as they came: strict ones, and those of extreme magnitude, whose
                                               // scaling depends on the weights too
    index strict_ = 0;                         // columns that are not carried
};

/// The machinery behind gemm() and prepare().
class detail_gemm {
public:
    /// y = w x by the columns of x that `chosen` lists, or by all. Either x or ready is given.
    struct task {
        const qmatrix& w;
        const const_view* x;
        const prepared_activations* ready;
        const detail::output& y;
        detail::product_path path;
        nibble::executor& threads;
    };

    static void multiply(const task& t, index m, workspace& scratch) {
        const int concurrency = (std::max)(1, t.threads.concurrency());
        detail::product p(t.w, m, t.path);
        const int tasks = static_cast<int>((std::min)(p.panel_tasks(), index{concurrency} * (concurrency > 1 && m >= 16 ? 4 : 1)));
        if (tasks == 0) return;
        const index tile = detail::active_kernels().value_columns;
        detail::arena count;
        detail::product(t.w, tile, strict_path).lay_out(count, tasks);
        std::span<std::byte> rest;
        std::span<index> hostile;
        detail::lay_out(scratch, [&](detail::arena& memory) {
            p.lay_out(memory, tasks);
            hostile = memory.take<index>(m);
            rest = memory.take<std::byte>(t.path.strict ? 0 : static_cast<index>(count.bytes()));
        });
        run(t, p, m, tasks, nullptr);
        index left = 0;
        for (index j = 0; j < m; ++j)
            if (!p.carried(j)) hostile[static_cast<std::size_t>(left++)] = j;
        task strict = t;
        strict.path = strict_path;
        for (index first = 0; first < left; first += tile) {
            const index n = (std::min)(tile, left - first);
            detail::product s(t.w, n, strict_path);
            detail::arena memory(rest);
            s.lay_out(memory, tasks);
            run(strict, s, n, tasks, hostile.data() + first);
        }
    }

    static prepared_activations prepare(const qmatrix& w, const const_view& x, nibble::compute c) {
        prepared_activations a;
        a.compute_ = c;
        a.path_ = detail::path_of(w.format(), c);
        a.rows_ = x.rows;
        a.group_ = w.group_size();
        a.weight_exponent_ = w.exponent();
        const detail::sub_blocks blocks(a.group_, x.rows);
        const auto columns = static_cast<std::size_t>(x.cols);
        const auto positions = static_cast<std::size_t>(blocks.positions());
        const auto count = static_cast<std::size_t>(blocks.count());
        if (a.path_.digits > 0) a.q_.resize(positions * columns);
        else if (!a.path_.strict) a.x_.resize(positions * columns);
        a.scale_.resize(count * columns);
        a.sum_.resize(count * columns);
        a.total_.resize(count * columns);
        a.exponent_.resize(columns);
        a.carried_.resize(columns);
        a.raw_at_.assign(columns, -1);
        std::vector<float> column(static_cast<std::size_t>(x.rows));
        for (index j = 0; j < x.cols; ++j) {
            const auto at = static_cast<std::size_t>(j);
            load_column(x, j, column.data());
            a.carried_[at] = !a.path_.strict && prepare_column(a, j, blocks, column.data()) ? 1 : 0;
            a.strict_ += a.carried_[at] != 0 ? 0 : 1;
            if (a.carried_[at] != 0 && a.exponent_[at] == 0) continue;
            a.raw_at_[at] = static_cast<index>(a.raw_.size());
            load_column(x, j, column.data());
            a.raw_.insert(a.raw_.end(), column.begin(), column.end());
        }
        return a;
    }

    /// Whether activations were prepared for such a matrix.
    static status check_prepared(const qmatrix& w, const prepared_activations& a) {
        const std::string start = "gemm: the activations were prepared for ";
        if (a.rows_ != w.cols()) return status(errc::shape_mismatch, start + "K = " + std::to_string(a.rows_) + ", W is " + detail::shape_text(w.rows(), w.cols()));
        if (!(a.path_ == detail::path_of(w.format(), a.compute_)))
            return status(errc::invalid_argument, start + "another kind of code format than " + w.format().name + " (" + name_of(a.compute_) + ")");
        if (!a.path_.strict && a.group_ != w.group_size())
            return status(errc::invalid_argument, start + "groups of " + std::to_string(a.group_) + ", W has groups of " + std::to_string(w.group_size()));
        if (!a.path_.strict && detail::is_extreme(w.exponent()) && a.weight_exponent_ != w.exponent())
            return status(errc::invalid_argument, start + "weights of magnitude 2^" + std::to_string(a.weight_exponent_) +
                                                      ", those of W are of 2^" + std::to_string(w.exponent()) + "; prepare them for W");
        return {};
    }

private:
    static constexpr detail::product_path strict_path{0, 0, true};

    static void load_column(const const_view& x, index j, float* out) noexcept {
        detail::load_block({x.at(0, j), x.type, x.rows, 1, x.row_stride, x.col_stride}, 0, x.rows, 0, 1, out, 1);
    }

    static detail::prepared_column column_of(prepared_activations& a, index j, const detail::sub_blocks& blocks) noexcept {
        detail::prepared_column c;
        if (a.path_.digits > 0) c.q = a.q_.data() + j * blocks.positions();
        else if (!a.path_.strict) c.x = a.x_.data() + j * blocks.positions();
        c.scale = a.scale_.data() + j * blocks.count();
        c.sum = a.sum_.data() + j * blocks.count();
        c.total = a.total_.data() + j * blocks.count();
        c.exponent = a.exponent_.data() + j;
        return c;
    }
    static bool prepare_column(prepared_activations& a, index j, const detail::sub_blocks& blocks, float* column) noexcept {
        return detail::prepare_column(detail::active_kernels(), column, blocks, a.rows_, a.path_, a.weight_exponent_, column_of(a, j, blocks));
    }

    /// Columns, then panels, in tasks. chosen: the columns of X and Y, or all.
    static void run(const task& t, detail::product& p, index m, int tasks, const index* chosen) {
        const auto columns = [&](index task) {
            const detail::fp_environment environment;
            for (index j = m * task / tasks; j < m * (task + 1) / tasks; ++j)
                take(t, p, j, chosen != nullptr ? chosen[j] : j, static_cast<int>(task));
        };
        const auto panels = [&](index task) {
            const detail::fp_environment environment;
            p.run(p.panel_tasks() * task / tasks, p.panel_tasks() * (task + 1) / tasks, static_cast<int>(task), t.y, chosen);
        };
        t.threads.parallel_for(tasks, columns);
        t.threads.parallel_for(tasks, panels);
    }

    static void take(const task& t, detail::product& p, index j, index column, int task) noexcept {
        if (t.ready == nullptr) {
            const const_view& x = *t.x;
            p.take_column(j, {x.at(0, column), x.type, x.rows, 1, x.row_stride, x.col_stride}, task);
            return;
        }
        const prepared_activations& a = *t.ready;
        const auto at = static_cast<std::size_t>(column);
        const bool scaled_otherwise = a.exponent_[at] != 0 && a.weight_exponent_ != t.w.exponent();
        if (t.path.strict || scaled_otherwise) {
            p.take_column(j, {a.raw_.data() + a.raw_at_[at], scalar_type::f32, a.rows_, 1, 1, a.rows_}, task);
        } else {
            // The arrays of a prepared column are only read.
            p.pack(j, column_of(const_cast<prepared_activations&>(a), column, p.blocks()));
            p.set_carried(j, a.carried_[at] != 0);
        }
    }
};

/// y = w x. x is K x M and y is N x M, in any order and strides; neither is copied as a whole.
/// Throws errc::shape_mismatch with the shapes, errc::overlap if y shares memory with x or w.
NIBBLE_API void gemm(const qmatrix& w, const const_view& x, const float_view& y, const gemm_options& options = {});

/// How many columns of X (K x M) a product with w sends to strict_f32 because its class cannot carry them (see
/// activations.hpp).
[[nodiscard]] NIBBLE_API index strict_columns(const qmatrix& w, const const_view& x, const gemm_options& options = {});

/// Prepares the columns of x (K x M) for products with w and with matrices like it (see prepared_activations).
/// Throws errc::shape_mismatch with both shapes.
[[nodiscard]] NIBBLE_API prepared_activations prepare(const qmatrix& w, const const_view& x, const gemm_options& options = {});

/// y = w x from prepared activations; the bits are those of gemm(w, x, y). Throws errc::invalid_argument when they were
/// prepared for another group size or kind of format.
NIBBLE_API void gemm(const qmatrix& w, const prepared_activations& x, const float_view& y, const gemm_options& options = {});

#if NIBBLE_DEFINE_API
namespace detail {

inline void multiply(const qmatrix& w, const const_view* x, const prepared_activations* ready, index m, const float_view& y,
                     const gemm_options& options) {
    workspace own;
    const output to(y);
    const product_path path = path_of(w.format(), ready != nullptr ? ready->compute() : options.compute);
    detail_gemm::multiply({w, x, ready, to, path, options.executor != nullptr ? *options.executor : serial()}, m,
                          options.workspace != nullptr ? *options.workspace : own);
}

}  // namespace detail

NIBBLE_API void gemm(const qmatrix& w, const const_view& x, const float_view& y, const gemm_options& options) {
    check_gemm(w, x, y).or_throw();
    detail::multiply(w, &x, nullptr, x.cols, y, options);
}

NIBBLE_API void gemm(const qmatrix& w, const prepared_activations& x, const float_view& y, const gemm_options& options) {
    detail_gemm::check_prepared(w, x).or_throw();
    if (y.rows != w.rows() || y.cols != x.cols())
        detail::fail(errc::shape_mismatch, "gemm: Y must be " + detail::shape_text(w.rows(), x.cols()) + ", but it is " +
                                               detail::shape_text(y.rows, y.cols));
    if ((y.data == nullptr && y.rows != 0 && y.cols != 0)) detail::fail(errc::invalid_argument, "gemm: Y is a null pointer");
    if (detail::overlaps({w.data(), w.data() + w.memory_bytes()}, detail::bytes_of(y)))
        detail::fail(errc::overlap, "gemm: Y shares memory with W");
    detail::multiply(w, nullptr, &x, x.cols(), y, options);
}

NIBBLE_API prepared_activations prepare(const qmatrix& w, const const_view& x, const gemm_options& options) {
    if (x.rows != w.cols())
        detail::fail(errc::shape_mismatch, "prepare: W is " + detail::shape_text(w.rows(), w.cols()) + ", X is " +
                                               detail::shape_text(x.rows, x.cols));
    const detail::fp_environment environment;
    return detail_gemm::prepare(w, x, options.compute);
}

NIBBLE_API index strict_columns(const qmatrix& w, const const_view& x, const gemm_options& options) {
    if (x.rows != w.cols())
        detail::fail(errc::shape_mismatch, "strict_columns: W is " + detail::shape_text(w.rows(), w.cols()) + ", X is " +
                                               detail::shape_text(x.rows, x.cols));
    return prepare(w, x, options).strict_columns();
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
