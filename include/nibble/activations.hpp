// Activations made ready for a product: split into sub-blocks and, for the integer classes, into integers.
//
// A sub-block is a group of the weights, cut at 256 columns where the group is longer; it depends on the group and K
// alone. In each sub-block of each column
//
//   s_a = amax / L,  q = clamp(RNE(x * f32(1 / s_a)), -L, L),  L = 127, 32639, 8355711 for 1, 2, 3 digits,
//
// so x = s_a * q to half a step. A column (or matrix) of extreme magnitude is first scaled by a power of two, which is
// undone at the output. Columns that a class cannot carry go to strict_f32:
//   any class        NaN or Inf; a sub-block whose s_a is below 2^-110 and not zero (it would lose its low digits)
//   f32 (3 digits)   a sub-block whose largest |q| stands above rests with mean |q| below 256, that is an outlier more
//                    than about 2^15 times the mean of its 255 neighbours, which would lose their low bits to it
// The test looks at the data alone, never at the CPU or the number of columns.
#pragma once

#include <vector>

#include "detail/dispatch.hpp"
#include "detail/fp_environment.hpp"
#include "detail/load.hpp"
#include "eigen.hpp"
#include "executor.hpp"
#include "qmatrix.hpp"

namespace nibble::inline NIBBLE_ABI {

/// The arithmetic of a product, named by the activations: what decides its error, on every CPU alike.
enum class compute : std::uint8_t {
    strict_f32,  ///< fp32 fma on exactly dequantized weights, one chain along k
    f32,         ///< fp32-class (the default): exact integer sums of 3 digits, or fp32 fma for non-integer tables
    a16,         ///< activations in 16 bits per group: 2 digits, error about 2e-5
    a8,          ///< activations in 8 bits per group: 1 digit, what ggml and XNNPACK do
};

[[nodiscard]] constexpr const char* name_of(compute c) noexcept {
    switch (c) {
        case compute::strict_f32: return "strict_f32";
        case compute::f32: return "f32";
        case compute::a16: return "a16";
        case compute::a8: return "a8";
    }
    return "?";
}

namespace detail {

inline constexpr index sub_block = 256;

/// The largest integer that `digits` balanced base-256 digits hold.
[[nodiscard]] constexpr float digit_limit(int digits) noexcept {
    return digits == 1 ? 127.0f : digits == 2 ? 32639.0f : 8355711.0f;
}

/// How a class treats a code format.
struct product_path {
    int digits = 0;        // > 0: integer kernels with so many digits
    int rounded = 0;       // > 0: the float chain on activations rounded to so many digits
    bool strict = false;   // every column by strict_f32

    [[nodiscard]] constexpr int planes() const noexcept { return digits > 0 ? digits : rounded; }
    friend constexpr bool operator==(const product_path&, const product_path&) noexcept = default;
};

[[nodiscard]] inline product_path path_of(const code_format& f, compute c) noexcept {
    if (c == compute::strict_f32) return {0, 0, true};
    const int digits = c == compute::a8 ? 1 : c == compute::a16 ? 2 : 3;
    if (f.integral()) return {digits, 0, false};
    if (c != compute::f32) return {0, digits, false};
    return {0, 0, f.decode == decode_class::wide};
}

/// The sub-blocks of a row: where they begin in W and in its padded positions.
class sub_blocks {
public:
    sub_blocks() noexcept = default;
    sub_blocks(index group, index cols) noexcept
        : group_(group), cols_(cols), padded_(ceil_div(group, 4) * 4), per_group_(ceil_div(group, sub_block)) {
        const index groups = ceil_div(cols, group);
        if (groups == 0) return;
        const index last = cols - (groups - 1) * group;
        count_ = (groups - 1) * per_group_ + ceil_div(last, sub_block);
        positions_ = (groups - 1) * padded_ + ceil_div(last, 4) * 4;
    }
    [[nodiscard]] index count() const noexcept { return count_; }
    /// Positions of a row: columns, with every group padded to a k-quad.
    [[nodiscard]] index positions() const noexcept { return positions_; }
    [[nodiscard]] index group_of(index b) const noexcept { return b / per_group_; }
    [[nodiscard]] index per_group() const noexcept { return per_group_; }
    [[nodiscard]] index begin(index b) const noexcept { return b / per_group_ * group_ + b % per_group_ * sub_block; }
    [[nodiscard]] index position(index b) const noexcept { return b / per_group_ * padded_ + b % per_group_ * sub_block; }
    [[nodiscard]] index length(index b) const noexcept {
        const index end = (std::min)(cols_, (b / per_group_ + 1) * group_);
        return (std::min)(sub_block, end - begin(b));
    }

private:
    index group_ = 1, cols_ = 0, padded_ = 4, per_group_ = 1, count_ = 0, positions_ = 0;
};

/// Beyond these magnitudes columns are scaled, so that no product of scales leaves the normal numbers.
[[nodiscard]] constexpr bool is_extreme(int exponent) noexcept { return exponent < -40 || exponent > 40; }

/// One column made ready: where prepare_column puts it.
struct prepared_column {
    std::int32_t* q = nullptr;      // [positions]: digits > 0
    float* x = nullptr;             // [positions]: the float chain
    float* scale = nullptr;         // [sub-block]
    float* sum = nullptr;           // [sub-block]: RN(sum of q * scale)
    std::int32_t* total = nullptr;  // [sub-block]: sum of q
    int* exponent = nullptr;        // x was multiplied by 2^exponent
};

NIBBLE_FP_BEGIN

/// x * 2^e rounded once, for exponents that a float cannot hold.
[[nodiscard]] inline float scale_by_power(float x, int e) noexcept {
    const double power = std::bit_cast<double>(static_cast<std::uint64_t>(1023 + e) << 52);
    return static_cast<float>(static_cast<double>(x) * power);
}

/// Rounds one sub-block to integers. Returns false when the column must go to strict_f32.
[[nodiscard]] inline bool round_block(const kernel_table& kernels, const float* x, index n, int digits, std::int32_t* q, float& scale,
                                      float& sum, std::int32_t& total) noexcept {
    const float limit = digit_limit(digits);
    const float amax = float_of(kernels.largest_bits(x, n));
    constexpr float smallest = 7.7037197775489434e-34f;  // 2^-110
    scale = amax / limit;
    if (scale < smallest) {
        std::memset(q, 0, static_cast<std::size_t>(n) * 4);
        scale = 0.0f;
        sum = 0.0f;
        total = 0;
        return amax == 0.0f;
    }
    const float inv = 1.0f / scale;
    const rounded_stats s = kernels.round(x, n, inv, limit, q);
    total = s.total;
    sum = static_cast<float>(s.total) * scale;
    if (digits < 3) return true;
    const std::int64_t rest = static_cast<std::int64_t>(s.absolute) - s.largest;
    return s.nonzero <= 1 || rest >= 256 * (static_cast<std::int64_t>(s.nonzero) - 1);
}

/// Prepares one column of K floats, which may be changed (scaled by a power of two). Returns false when it must go to
/// strict_f32; what was prepared of it is then zero.
[[nodiscard]] NIBBLE_NOINLINE inline bool prepare_column(const kernel_table& kernels, float* column, const sub_blocks& blocks, index rows,
                                                         product_path path, int weight_exponent, const prepared_column& to) noexcept {
    *to.exponent = 0;
    const std::uint32_t largest = kernels.largest_bits(column, rows);
    bool carried = largest < 0x7f800000u;
    if (carried && largest != 0) {
        const float amax = float_of(largest);
        int width = exponent_of(amax);
        if (width == -127) width = -118 - std::countl_zero(largest);  // subnormal
        if (is_extreme(width) || is_extreme(weight_exponent)) {
            *to.exponent = static_cast<int>(clamp(static_cast<float>(-weight_exponent), -40.0f, 40.0f)) - width;
            for (index k = 0; k < rows; ++k) column[k] = scale_by_power(column[k], *to.exponent);
        }
    }
    std::int32_t block[sub_block];
    for (index b = 0; b < blocks.count() && carried; ++b) {
        const index n = blocks.length(b);
        const index padded = ceil_div(n, 4) * 4;
        const float* from = column + blocks.begin(b);
        if (path.digits > 0) {
            std::int32_t* q = to.q + blocks.position(b);
            carried = round_block(kernels, from, n, path.digits, q, to.scale[b], to.sum[b], to.total[b]);
            for (index i = n; i < padded; ++i) q[i] = 0;
            continue;
        }
        float* x = to.x + blocks.position(b);
        if (path.rounded > 0) {
            carried = round_block(kernels, from, n, path.rounded, block, to.scale[b], to.sum[b], to.total[b]);
            for (index i = 0; i < n; ++i) x[i] = static_cast<float>(block[i]);
        } else {
            std::memcpy(x, from, static_cast<std::size_t>(n) * 4);
            to.scale[b] = 1.0f;
            to.sum[b] = 0.0f;
            to.total[b] = 0;
        }
        for (index i = n; i < padded; ++i) x[i] = 0.0f;
    }
    if (carried) return true;
    *to.exponent = 0;
    const auto count = static_cast<std::size_t>(blocks.count());
    const auto positions = static_cast<std::size_t>(blocks.positions());
    if (to.q != nullptr) std::memset(to.q, 0, positions * 4);
    if (to.x != nullptr) std::memset(to.x, 0, positions * 4);
    std::memset(to.scale, 0, count * 4);
    std::memset(to.sum, 0, count * 4);
    std::memset(to.total, 0, count * 4);
    return false;
}

NIBBLE_FP_END

}  // namespace detail

/// Activations made ready once, for products with several matrices that share K, the group size and the way their format
/// is multiplied (integers or floats). Made by prepare(); it holds copies, so X may go.
class prepared_activations {
public:
    [[nodiscard]] index rows() const noexcept { return rows_; }
    [[nodiscard]] index cols() const noexcept { return static_cast<index>(carried_.size()); }
    [[nodiscard]] nibble::compute compute() const noexcept { return compute_; }
    /// Group size of the weights that they are for.
    [[nodiscard]] index group_size() const noexcept { return group_; }
    /// Columns that go to strict_f32.
    [[nodiscard]] index strict_columns() const noexcept { return strict_; }
    /// Whether they are for products with w; the message says what is different.
    [[nodiscard]] status check(const qmatrix& w) const {
        const auto start = [] { return std::string("gemm: the activations were prepared for "); };  // text only for errors
        if (rows_ != w.cols())
            return status(errc::shape_mismatch, start() + "K = " + std::to_string(rows_) + ", W is " + detail::shape_text(w.rows(), w.cols()));
        if (!(path_ == detail::path_of(w.format(), compute_)))
            return status(errc::invalid_argument, start() + "another kind of code format than " + w.format().name + " in class " + name_of(compute_));
        if (path_.strict) return {};
        if (group_ != w.group_size())
            return status(errc::invalid_argument, start() + "groups of " + std::to_string(group_) + ", W has groups of " + std::to_string(w.group_size()));
        if (detail::is_extreme(w.exponent()) && weight_exponent_ != w.exponent())
            return status(errc::invalid_argument, start() + "weights of magnitude 2^" + std::to_string(weight_exponent_) +
                                                      ", those of W are of 2^" + std::to_string(w.exponent()) + "; prepare them for W");
        return {};
    }

    // What a product reads.

    [[nodiscard]] detail::product_path path() const noexcept { return path_; }
    [[nodiscard]] bool carried(index j) const noexcept { return carried_[static_cast<std::size_t>(j)] != 0; }
    [[nodiscard]] int exponent(index j) const noexcept { return exponent_[static_cast<std::size_t>(j)]; }
    [[nodiscard]] int weight_exponent() const noexcept { return weight_exponent_; }
    /// Column j as it came: of strict columns, and of those of extreme magnitude, whose scaling depends on the weights too.
    [[nodiscard]] const_view raw(index j) const noexcept {
        return {raw_.data() + raw_at_[static_cast<std::size_t>(j)], scalar_type::f32, rows_, 1, 1, rows_};
    }
    [[nodiscard]] detail::prepared_column column(index j, const detail::sub_blocks& blocks) noexcept {
        detail::prepared_column c;
        if (path_.digits > 0) c.q = q_.data() + j * blocks.positions();
        else if (!path_.strict) c.x = x_.data() + j * blocks.positions();
        c.scale = scale_.data() + j * blocks.count();
        c.sum = sum_.data() + j * blocks.count();
        c.total = total_.data() + j * blocks.count();
        c.exponent = exponent_.data() + j;
        return c;
    }

private:
    friend prepared_activations prepare(const qmatrix& w, const const_view& x, nibble::compute c, executor* threads);

    void fill(const qmatrix& w, const const_view& x, nibble::compute c, executor& threads);

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
    std::vector<float> raw_;
    index strict_ = 0;
};

/// Prepares the columns of x (K x M) for products with w and with matrices like it (see prepared_activations).
/// threads: or none but the caller's. Throws errc::shape_mismatch with both shapes.
[[nodiscard]] NIBBLE_API prepared_activations prepare(const qmatrix& w, const const_view& x, nibble::compute c = nibble::compute::f32, executor* threads = nullptr);

/// The same of an Eigen expression.
template <eigen_expression X>
[[nodiscard]] prepared_activations prepare(const qmatrix& w, const Eigen::DenseBase<X>& x, nibble::compute c = nibble::compute::f32, executor* threads = nullptr) {
    return prepare(w, eigen_view<X>(x).get(), c, threads);
}

#if NIBBLE_DEFINE_API
NIBBLE_API prepared_activations prepare(const qmatrix& w, const const_view& x, nibble::compute c, executor* threads) {
    if (x.rows != w.cols())
        detail::fail(errc::shape_mismatch, "prepare: W is " + detail::shape_text(w.rows(), w.cols()) + ", X is " + detail::shape_text(x.rows, x.cols));
    if (x.data == nullptr && x.rows != 0 && x.cols != 0) detail::fail(errc::invalid_argument, "prepare: X is a null pointer");
    prepared_activations a;
    a.fill(w, x, c, threads != nullptr ? *threads : serial());
    return a;
}

NIBBLE_API void prepared_activations::fill(const qmatrix& w, const const_view& x, nibble::compute c, executor& threads) {
    compute_ = c;
    path_ = detail::path_of(w.format(), c);
    rows_ = x.rows;
    group_ = w.group_size();
    weight_exponent_ = w.exponent();
    const detail::sub_blocks blocks(group_, x.rows);
    const auto columns = static_cast<std::size_t>(x.cols);
    const auto positions = static_cast<std::size_t>(blocks.positions());
    const auto count = static_cast<std::size_t>(blocks.count());
    if (path_.digits > 0) q_.resize(positions * columns);
    else if (!path_.strict) x_.resize(positions * columns);
    scale_.resize(count * columns);
    sum_.resize(count * columns);
    total_.resize(count * columns);
    exponent_.resize(columns);
    carried_.resize(columns);
    raw_at_.assign(columns, -1);
    const auto load = [&](index j, std::vector<float>& values) {
        const const_view from{x.at(0, j), x.type, x.rows, 1, x.row_stride, x.col_stride};
        detail::load_block(from, 0, x.rows, 0, 1, values.data(), 1);
    };
    const index tasks = threads.concurrency() <= 1 ? (std::min)(x.cols, index{1}) : (std::min)(x.cols, index{threads.concurrency()} * 4);
    threads.parallel_for(tasks, [&](index task) {
        const detail::fp_environment environment;
        std::vector<float> values(static_cast<std::size_t>(x.rows));
        for (index j = x.cols * task / tasks; j < x.cols * (task + 1) / tasks && !path_.strict; ++j) {
            load(j, values);
            const bool done = detail::prepare_column(detail::active_kernels(), values.data(), blocks, rows_, path_, weight_exponent_, column(j, blocks));
            carried_[static_cast<std::size_t>(j)] = done ? 1 : 0;
        }
    });
    const detail::fp_environment environment;
    std::vector<float> values(static_cast<std::size_t>(x.rows));
    for (index j = 0; j < x.cols; ++j) {
        const auto at = static_cast<std::size_t>(j);
        strict_ += carried_[at] != 0 ? 0 : 1;
        if (carried_[at] != 0 && exponent_[at] == 0) continue;
        raw_at_[at] = static_cast<index>(raw_.size());
        load(j, values);
        raw_.insert(raw_.end(), values.begin(), values.end());
    }
}
#endif

}  // namespace nibble
