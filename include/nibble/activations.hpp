// Activations made ready for a product: split into sub-blocks and, for the integer classes, into digits.
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

#include "detail/load.hpp"
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
};

[[nodiscard]] inline product_path path_of(const code_format& f, compute c) noexcept {
    if (c == compute::strict_f32) return {0, 0, true};
    const int digits = c == compute::a8 ? 1 : c == compute::a16 ? 2 : 3;
    if (f.integral()) return {digits, 0, false};
    if (c != compute::f32) return {0, digits, false};
    return {0, 0, f.decode == decode_class::wide};
}

struct activations {
    product_path path;
    index rows = 0;       // K
    index cols = 0;       // M
    int planes = 1;
    std::vector<index> begins;          // first column of W of each sub-block, and K at the end
    std::vector<float> streams;         // [sub-block][column][plane][length]
    std::vector<float> scale, sum;      // [sub-block][column]
    std::vector<int> exponent;          // [column]: x was multiplied by 2^exponent
    std::vector<index> strict_columns;  // columns that go to strict_f32 instead
    std::vector<float> strict_streams;  // [sub-block][strict column][length]: x as it is

    [[nodiscard]] index blocks() const noexcept { return static_cast<index>(begins.size()) - 1; }
    [[nodiscard]] index length(index b) const noexcept { return begins[static_cast<std::size_t>(b) + 1] - begins[static_cast<std::size_t>(b)]; }
};

NIBBLE_FP_BEGIN

/// x * 2^e rounded once, for exponents that a float cannot hold.
[[nodiscard]] inline float scale_by_power(float x, int e) noexcept {
    const double power = std::bit_cast<double>(static_cast<std::uint64_t>(1023 + e) << 52);
    return static_cast<float>(static_cast<double>(x) * power);
}

[[nodiscard]] inline double round_even_wide(double x) noexcept {
    constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
    const double shifted = x + magic;
    return shifted - magic;
}

/// Splits one sub-block of one column into digits. Returns false when the column must go to strict_f32.
[[nodiscard]] inline bool split_digits(const float* x, index n, int digits, bool as_planes, float* streams, float& scale, float& sum) noexcept {
    const float limit = digit_limit(digits);
    float amax = 0.0f;
    for (index i = 0; i < n; ++i) amax = magnitude(x[i]) > amax ? magnitude(x[i]) : amax;
    constexpr float smallest = 7.7037197775489434e-34f;  // 2^-110
    scale = amax / limit;
    if (scale < smallest) {  // the streams stay zero
        const bool zero = amax == 0.0f;
        scale = 0.0f;
        sum = 0.0f;
        return zero;
    }
    const float inv = 1.0f / scale;
    std::int64_t total = 0;
    std::int64_t absolute = 0;
    std::int64_t largest = 0;
    index rest = 0;
    for (index i = 0; i < n; ++i) {
        const double bounded = static_cast<double>(clamp(x[i] * inv, -limit, limit));
        const auto q = static_cast<std::int32_t>(round_even_wide(bounded));
        total += q;
        const std::int64_t a = q < 0 ? -std::int64_t{q} : q;
        absolute += a;
        largest = a > largest ? a : largest;
        rest += x[i] != 0.0f ? 1 : 0;
        if (!as_planes) {
            streams[i] = static_cast<float>(q);
            continue;
        }
        std::int32_t left = q;
        for (int p = 0; p < digits; ++p) {
            const std::int32_t digit = p + 1 == digits ? left : ((left + 128) & 255) - 128;
            streams[p * n + i] = static_cast<float>(digit);
            left = (left - digit) / 256;
        }
    }
    sum = static_cast<float>(total) * scale;
    if (digits < 3 || !as_planes) return true;
    return rest <= 1 || absolute - largest >= 256 * (rest - 1);
}

/// Prepares the columns of X (K x M) for products with matrices grouped as `l` says.
[[nodiscard]] NIBBLE_NOINLINE inline activations prepare(const const_view& x, const layout& l, product_path path,
                                                         int weight_exponent) {
    activations a;
    a.path = path;
    a.rows = x.rows;
    a.cols = x.cols;
    a.planes = path.digits > 0 ? path.digits : 1;
    for (index g = 0; g < l.groups; ++g)
        for (index k = l.group_begin(g); k < l.group_end(g); k += sub_block) a.begins.push_back(k);
    a.begins.push_back(x.rows);
    const auto cols = static_cast<std::size_t>(x.cols);
    const auto rows = static_cast<std::size_t>(x.rows);
    const auto blocks = static_cast<std::size_t>(a.blocks());
    a.exponent.assign(cols, 0);
    if (!path.strict) {
        a.streams.resize(rows * cols * static_cast<std::size_t>(a.planes));
        a.scale.resize(blocks * cols);
        a.sum.resize(blocks * cols);
    }
    std::vector<float> column(rows);
    std::vector<float> scaled(rows);
    std::vector<float> strict;
    for (index j = 0; j < x.cols; ++j) {
        load_block({x.at(0, j), x.type, x.rows, 1, x.row_stride, x.col_stride}, 0, x.rows, 0, 1, column.data(), 1);
        bool carried = !path.strict;
        float amax = 0.0f;
        if (carried && find_non_finite(column.data(), x.rows) >= 0) carried = false;
        if (carried) {
            for (const float v : column) amax = magnitude(v) > amax ? magnitude(v) : amax;
            int& e = a.exponent[static_cast<std::size_t>(j)];
            int width = exponent_of(amax);
            if (width == -127 && amax > 0.0f) width = -118 - std::countl_zero(bits_of(amax));  // subnormal
            const bool extreme = width < -40 || width > 40 || weight_exponent < -40 || weight_exponent > 40;
            if (extreme && amax > 0.0f) e = static_cast<int>(clamp(static_cast<float>(-weight_exponent), -40.0f, 40.0f)) - width;
            if (e == 0) std::copy(column.begin(), column.end(), scaled.begin());
            else for (std::size_t k = 0; k < rows; ++k) scaled[k] = scale_by_power(column[k], e);
        }
        for (index b = 0; b < a.blocks() && !path.strict; ++b) {
            const index first = a.begins[static_cast<std::size_t>(b)];
            const index n = a.length(b);
            float* streams = a.streams.data() + a.planes * (first * x.cols + j * n);
            const auto at = static_cast<std::size_t>(b * x.cols + j);
            const float* from = scaled.data() + first;
            if (!carried) {
                std::fill(streams, streams + a.planes * n, 0.0f);
                continue;
            }
            if (path.digits > 0) {
                carried = split_digits(from, n, path.digits, true, streams, a.scale[at], a.sum[at]);
            } else if (path.rounded > 0) {
                carried = split_digits(from, n, path.rounded, false, streams, a.scale[at], a.sum[at]);
            } else {
                std::copy(from, from + n, streams);
                a.scale[at] = 1.0f;
            }
        }
        if (!carried) {
            a.strict_columns.push_back(j);
            a.exponent[static_cast<std::size_t>(j)] = 0;
            strict.insert(strict.end(), column.begin(), column.end());
        }
    }
    const auto count = static_cast<index>(a.strict_columns.size());
    a.strict_streams.resize(strict.size());
    for (index b = 0; b < a.blocks(); ++b) {
        const index first = a.begins[static_cast<std::size_t>(b)];
        const index n = a.length(b);
        for (index s = 0; s < count; ++s)
            std::copy_n(strict.data() + s * x.rows + first, n, a.strict_streams.data() + first * count + s * n);
    }
    return a;
}

NIBBLE_FP_END

}  // namespace detail
}  // namespace nibble
