// Products on integers: quantized W (N x K) times quantized activations A (K x M, see quantized_activations.hpp).
//
//     auto A = nibble::quantize_activations(X, nibble::activation_rule::fixed(s_a, z_a, nibble::activation_type::u8));
//     Eigen::MatrixXi S(N, M);
//     nibble::integer_gemm(Wq, A, S);                                                   // exact int32 sums
//     nibble::integer_gemm(Wq, A, {.scale = s_y, .zero = z_y, .bias = bias}, Y8);       // requantized to int8 or uint8
//     nibble::integer_gemm(Wq, A, Y);                                                   // times the scales, as floats
//
// The sum of row n and column j is  D = sum over k of v(n, k) (a(k, j) - z_a),  v the integer of the code: u - z_w, or
// value / unit for codebooks of integers (unit is 1/2 for fp4_e2m1, 1 for all others). It is exact: a K at which int32 might
// overflow is an error. W has one scale a row or for all (its group is the whole of K); A has one for each column or for all.
//
// Requantization is that of Jacob et al. 2018 (arXiv:1712.05877), section 2.2, with one rounding:
//
//   M = s_w[n] s_a / s_y    in double, the division rounded
//   M ~ M0 2^(e - 31)       M0 an integer of 31 bits: 2^30 <= |M0| < 2^31, nearest, halves away from zero
//   y = clamp(z_y + floor((D + bias) M0 2^(e - 31) + 1/2))      the product in 64 bits, exact
//
// So halves go up, towards +Inf. gemmlowp rounds twice, in its doubling high multiplication and in its shift, halves up
// there and away from zero here, and so is off by one for some sums; TensorFlow Lite built with TFLITE_SINGLE_ROUNDING and
// XNNPACK's "rndnu" do what is done here. Halves up commute with the zero point: y does not depend on whether z_y is added
// before the rounding or after.
#pragma once

#include "detail/integer_products.hpp"
#include "gemm.hpp"

namespace nibble::inline NIBBLE_ABI {

/// mantissa * 2^(exponent - 31), and 2^30 <= |mantissa| < 2^31, or 0.
struct fixed_multiplier {
    std::int32_t mantissa = 0;
    int exponent = 0;
};

/// The nearest multiplier; halves go away from zero. m is finite.
[[nodiscard]] constexpr fixed_multiplier make_multiplier(double m) noexcept {
    const auto u = std::bit_cast<std::uint64_t>(m);
    const int field = static_cast<int>(u >> 52) & 0x7ff;
    if (field == 0) return {};  // below 2^-1022
    std::uint64_t fraction = (u & 0xfffffffffffffull) | 0x10000000000000ull;
    int exponent = field - 1022;
    fraction = (fraction + (std::uint64_t{1} << 21)) >> 22;
    if (fraction == std::uint64_t{1} << 31) {
        fraction >>= 1;
        ++exponent;
    }
    const auto mantissa = static_cast<std::int32_t>(fraction);
    return {(u >> 63) != 0 ? -mantissa : mantissa, exponent};
}

/// floor(x * m + 1/2), exact; at least 2^30 in magnitude where it is larger than that. |x| < 2^31.
[[nodiscard]] constexpr std::int64_t rounded_product(std::int32_t x, fixed_multiplier m) noexcept {
    const std::int64_t exact = static_cast<std::int64_t>(x) * m.mantissa;
    const int shift = 31 - m.exponent;
    if (shift <= 0) return exact;       // 0, or beyond every output
    if (shift >= 63) return 0;          // |exact| < 2^62: less than a half
    return (exact + (std::int64_t{1} << (shift - 1))) >> shift;
}

/// What becomes of the sums in an output of 8 bits.
struct requantization {
    float scale = 1.0f;                       ///< of the output, positive
    int zero = 0;                             ///< of the output, one of its codes
    std::span<const std::int32_t> bias{};     ///< one for each row, in units of s_w s_a; or none
    int lowest = -256;                        ///< clamps, inside the range of the output: a fused relu has lowest = zero
    int highest = 256;
};

struct integer_gemm_options {
    /// Scratch memory that is kept from call to call; nothing is allocated once it is large enough. Null: allocated anew.
    nibble::workspace* workspace = nullptr;
    /// Where threads come from. Null: the calling thread alone.
    nibble::executor* executor = nullptr;
};

namespace detail {

inline constexpr index int32_most = 2147483647;

template <class T>
[[nodiscard]] byte_range bytes_of(const integer_view<T>& v) noexcept {
    constexpr auto size = static_cast<index>(sizeof(T));
    const byte_range r = bytes_of(const_view{v.data, scalar_type::f16, v.rows, v.cols, v.row_stride, v.col_stride});
    if (r.first == r.last) return r;
    const auto* base = reinterpret_cast<const unsigned char*>(v.data);
    return {base + (r.first - base) / 2 * size, base + (r.last - base) / 2 * size};
}

[[nodiscard]] inline std::string integer_shapes(const qmatrix& w, const quantized_activations& a) {
    return "integer_gemm: W is " + shape_text(w.rows(), w.cols()) + " " + w.format().name + ", A is " + shape_text(a.rows(), a.cols());
}

/// What all integer products ask of W, A and the place of Y.
[[nodiscard]] inline status check_integer(const qmatrix& w, const quantized_activations& a, index rows, index cols, bool null, byte_range y) {
    const auto shapes = [&] { return integer_shapes(w, a); };  // text of errors only: a call with a workspace allocates nothing
    if (a.rows() != w.cols()) return status(errc::shape_mismatch, shapes());
    if (rows != w.rows() || cols != a.cols())
        return status(errc::shape_mismatch, shapes() + ", so Y must be " + shape_text(w.rows(), a.cols()) + ", but it is " + shape_text(rows, cols));
    if (null && rows != 0 && cols != 0) return status(errc::invalid_argument, shapes() + ", and Y is a null pointer");
    if (overlaps({w.data(), w.data() + w.memory_bytes()}, y)) return status(errc::overlap, shapes() + ", and Y shares memory with W");
    if (overlaps(a.bytes(), y)) return status(errc::overlap, shapes() + ", and Y shares memory with A");
    if (!w.format().integral()) return status(errc::unsupported, shapes() + ", but the values of " + w.format().name + " are not integers; multiply floats with gemm");
    return {};
}

/// Whether sums over all of K exist, and fit.
[[nodiscard]] inline status check_sums(const qmatrix& w, const quantized_activations& a, index bias) {
    const auto shapes = [&] { return integer_shapes(w, a); };
    if (w.offset_type() == offset_kind::minimum || w.offset_type() == offset_kind::float_zero)
        return status(errc::unsupported, shapes() + ", but W has a " + name_of(w.offset_type()) + ", which is no integer; int32 sums need a zero point or none");
    if (w.groups() > 1 || a.groups() > 1)
        return status(errc::unsupported, shapes() + ", in groups of " + std::to_string(w.group_size()) + " and " + std::to_string(a.group_size()) +
                                             "; int32 sums need one scale along K for both. A float output takes groups");
    const index each = index{largest_weight(w)} * largest_activation(a);
    const index most = (int32_most - bias) / std::max<index>(1, each);
    if (w.cols() > most)
        return status(errc::out_of_range, shapes() + ": int32 holds sums over K = " + std::to_string(most) + " of |u - z| up to " +
                                              std::to_string(largest_weight(w)) + " times |a - z| up to " + std::to_string(largest_activation(a)) +
                                              (bias != 0 ? " and a bias of " + std::to_string(bias) : std::string()));
    return {};
}

[[nodiscard]] inline bool takes_sums(const qmatrix& w, const quantized_activations& a) noexcept {
    return w.groups() <= 1 && a.groups() <= 1 && w.offset_type() != offset_kind::minimum && w.offset_type() != offset_kind::float_zero &&
           w.cols() <= int32_most / std::max<index>(1, index{largest_weight(w)} * largest_activation(a));
}

}  // namespace detail

/// Whether integer_gemm(w, a, y) with int32 sums is possible; the message says why not.
[[nodiscard]] inline status check_integer_gemm(const qmatrix& w, const quantized_activations& a, const integer_view<std::int32_t>& y) {
    if (status s = detail::check_integer(w, a, y.rows, y.cols, y.data == nullptr, detail::bytes_of(y)); !s) return s;
    return detail::check_sums(w, a, 0);
}

/// The same of requantized outputs.
template <class T>
[[nodiscard]] status check_integer_gemm(const qmatrix& w, const quantized_activations& a, const requantization& r, const integer_view<T>& y) {
    static_assert(std::is_same_v<T, std::int8_t> || std::is_same_v<T, std::uint8_t>, "requantized outputs are int8_t or uint8_t");
    if (status s = detail::check_integer(w, a, y.rows, y.cols, y.data == nullptr, detail::bytes_of(y)); !s) return s;
    constexpr activation_type type = std::is_same_v<T, std::int8_t> ? activation_type::i8 : activation_type::u8;
    if (status s = detail::check_grid(r.scale, r.zero, type, "integer_gemm: output"); !s) return s;
    const auto shapes = [&] { return detail::integer_shapes(w, a); };
    if (r.lowest > r.highest || r.lowest > highest_code(type) || r.highest < lowest_code(type))
        return status(errc::invalid_argument, shapes() + ": outputs clamped to " + std::to_string(r.lowest) + " .. " + std::to_string(r.highest));
    if (!a.shared())
        return status(errc::unsupported, shapes() + ", with a scale for each column; requantized outputs need one for all. Take int32 or float outputs, or activations of "
                                                  "a static scale");
    if (!r.bias.empty() && static_cast<index>(r.bias.size()) != w.rows())
        return status(errc::shape_mismatch, shapes() + ", and the bias has " + std::to_string(r.bias.size()) + " elements, not " + std::to_string(w.rows()));
    index bias = 0;
    for (const std::int32_t b : r.bias) bias = (std::max)(bias, b < 0 ? -index{b} : index{b});
    if (status s = detail::check_sums(w, a, (std::min)(bias, detail::int32_most)); !s) return s;
    if (bias > detail::int32_most) return status(errc::out_of_range, shapes() + ", and a bias of -2147483648");
    float scale[16];
    for (index p = 0; p < w.layout().panels; ++p) {
        const detail::fp_environment environment;
        detail::row_scales(w, p, scale);
        for (index i = 0; i < 16; ++i)
            if (!detail::finite_in_memory(scale + i))
                return status(errc::non_finite, shapes() + ", and the scale of row " + std::to_string(16 * p + i) + " is " + detail::non_finite_name(scale + i));
    }
    return {};
}

/// The same of float outputs. Groups are welcome if those of A do not end inside a sub-block of W (its group, cut at 256).
[[nodiscard]] inline status check_integer_gemm(const qmatrix& w, const quantized_activations& a, const output_view& y, const bias_view& bias = {}) {
    if (status s = detail::check_integer(w, a, y.rows, y.cols, y.data == nullptr, detail::bytes_of(y)); !s) return s;
    if (y.type == scalar_type::f64)
        return status(errc::unsupported, detail::integer_shapes(w, a) + ", and Y is double; products are written as float, fp16 or bf16");
    if (bias.given() && bias.size() != w.rows())
        return status(errc::shape_mismatch, detail::integer_shapes(w, a) + ", and the bias has " + std::to_string(bias.size()) + " elements, not " + std::to_string(w.rows()));
    const detail::sub_blocks blocks(w.group_size(), w.cols());
    for (index b = 0; b < blocks.count() && a.groups() > 1; ++b)
        if (blocks.begin(b) / a.group_size() != (blocks.begin(b) + blocks.length(b) - 1) / a.group_size())
            return status(errc::unsupported, detail::integer_shapes(w, a) + ": groups of " + std::to_string(a.group_size()) +
                                                 " activations end inside groups of " + std::to_string(w.group_size()) + " weights, which are cut at " +
                                                 std::to_string(detail::sub_block) + "; take a multiple");
    return {};
}

/// y = the exact sums, N x M. Bits do not depend on anything but w and a.
/// Throws errc::shape_mismatch with the shapes, errc::unsupported for groups, float offsets and formats that are not integers,
/// errc::out_of_range where K is so large that int32 might overflow, errc::overlap if y shares memory with w or a.
NIBBLE_API void integer_gemm(const qmatrix& w, const quantized_activations& a, const integer_view<std::int32_t>& y, const integer_gemm_options& options = {});

/// y = the sums requantized to 8 bits (top of this file). a has one scale for all columns.
/// Throws what the other throws, and errc::invalid_argument for an output scale, zero point or clamp that cannot be.
NIBBLE_API void integer_gemm(const qmatrix& w, const quantized_activations& a, const requantization& r, const integer_view<std::int8_t>& y,
                             const integer_gemm_options& options = {});
NIBBLE_API void integer_gemm(const qmatrix& w, const quantized_activations& a, const requantization& r, const integer_view<std::uint8_t>& y,
                             const integer_gemm_options& options = {});

/// y = the product as floats, then bias, accumulate and activation of the options as in gemm (their class plays no part).
/// With one scale along K for w and a, y = RN(RN(D) * RN(s_w s_a)). With groups, or a float offset of w, or a K too large for
/// int32, it is the formula of gemm's class a8 (docs/numerics.md, section 2) with the q and s_a of a:
/// acc = fma(RN(D), RN(s_w s_a), acc) for each sub-block. So quantize_activations by per_group of w's sub-block gives the bits of
/// gemm in a8, for columns that gemm neither scales nor sends to strict_f32.
NIBBLE_API void integer_gemm(const qmatrix& w, const quantized_activations& a, const output_view& y, const gemm_options& options = {});

#if NIBBLE_DEFINE_API
namespace detail {

/// Rows [16 panel, 16 panel + live) of column j of y.
template <class T>
NIBBLE_INLINE void put_line(const T* line, index panel, index live, index j, const integer_view<T>& y) noexcept {
    if (y.row_stride == 1) {
        std::memcpy(y.at(panel_rows * panel, j), line, static_cast<std::size_t>(live) * sizeof(T));
        return;
    }
    for (index r = 0; r < live; ++r) *y.at(panel_rows * panel + r, j) = line[r];
}

NIBBLE_FP_BEGIN

/// s_w s_a / s_y: the product of two floats is exact in double.
[[nodiscard]] NIBBLE_NOINLINE inline double real_multiplier(float w, float a, float y) noexcept {
    return static_cast<double>(w) * static_cast<double>(a) / static_cast<double>(y);
}

NIBBLE_FP_END

template <class T>
void requantized_gemm(const qmatrix& w, const quantized_activations& a, const requantization& r, const integer_view<T>& y, const integer_gemm_options& options) {
    check_integer_gemm(w, a, r, y).or_throw();
    if (w.rows() == 0 || a.cols() == 0) return;
    constexpr activation_type type = std::is_same_v<T, std::int8_t> ? activation_type::i8 : activation_type::u8;
    const std::int64_t low = (std::max)(r.lowest, lowest_code(type));
    const std::int64_t high = (std::min)(r.highest, highest_code(type));
    workspace own;
    integer_runner runner(w, a, options.workspace != nullptr ? *options.workspace : own, options.executor != nullptr ? *options.executor : serial());
    runner.sums([&](index panel, index columns, const std::int32_t* lines) {
        const index live = live_rows(w, panel);
        float scale[16];
        fixed_multiplier m[16];
        row_scales(w, panel, scale);
        for (index i = 0; i < live; ++i) m[i] = make_multiplier(real_multiplier(scale[i], a.scale(0, 0), r.scale));
        T line[16];
        for (index j = 0; j < columns; ++j) {
            for (index i = 0; i < live; ++i) {
                const std::int32_t bias = r.bias.empty() ? 0 : r.bias[static_cast<std::size_t>(panel_rows * panel + i)];
                const std::int64_t v = r.zero + rounded_product(lines[16 * j + i] + bias, m[i]);
                line[i] = static_cast<T>(v < low ? low : v > high ? high : v);
            }
            put_line(line, panel, live, j, y);
        }
    });
}

}  // namespace detail

NIBBLE_API void integer_gemm(const qmatrix& w, const quantized_activations& a, const integer_view<std::int32_t>& y, const integer_gemm_options& options) {
    check_integer_gemm(w, a, y).or_throw();
    workspace own;
    detail::integer_runner runner(w, a, options.workspace != nullptr ? *options.workspace : own, options.executor != nullptr ? *options.executor : serial());
    runner.sums([&](index panel, index columns, const std::int32_t* lines) {
        for (index j = 0; j < columns; ++j) detail::put_line(lines + 16 * j, panel, detail::live_rows(w, panel), j, y);
    });
}

NIBBLE_API void integer_gemm(const qmatrix& w, const quantized_activations& a, const requantization& r, const integer_view<std::int8_t>& y, const integer_gemm_options& options) {
    detail::requantized_gemm(w, a, r, y, options);
}
NIBBLE_API void integer_gemm(const qmatrix& w, const quantized_activations& a, const requantization& r, const integer_view<std::uint8_t>& y, const integer_gemm_options& options) {
    detail::requantized_gemm(w, a, r, y, options);
}

NIBBLE_API void integer_gemm(const qmatrix& w, const quantized_activations& a, const output_view& y, const gemm_options& options) {
    check_integer_gemm(w, a, y, options.bias).or_throw();
    workspace own;
    detail::integer_runner runner(w, a, options.workspace != nullptr ? *options.workspace : own, options.executor != nullptr ? *options.executor : serial());
    const detail::output to = detail::make_output(y, options.bias, options);
    if (!detail::takes_sums(w, a)) return runner.floats(to);
    runner.sums([&](index panel, index columns, const std::int32_t* lines) { detail::store_scaled(w, a, panel, columns, lines, to); });
}
#endif

/// The same into Eigen matrices, maps or blocks with memory of their own: int32, or float, half and bfloat16.
template <class Y>
    requires(eigen_expression<std::remove_cvref_t<Y>> && std::is_integral_v<typename std::remove_cvref_t<Y>::Scalar>)
void integer_gemm(const qmatrix& w, const quantized_activations& a, Y&& y, const integer_gemm_options& options = {}) {
    integer_gemm(w, a, writable_integers(y), options);
}
template <class Y>
    requires(eigen_expression<std::remove_cvref_t<Y>> && !std::is_integral_v<typename std::remove_cvref_t<Y>::Scalar>)
void integer_gemm(const qmatrix& w, const quantized_activations& a, Y&& y, const gemm_options& options = {}) {
    integer_gemm(w, a, output_of(y), options);
}
/// int8 or uint8.
template <class Y>
    requires eigen_expression<std::remove_cvref_t<Y>>
void integer_gemm(const qmatrix& w, const quantized_activations& a, const requantization& r, Y&& y, const integer_gemm_options& options = {}) {
    integer_gemm(w, a, r, writable_integers(y), options);
}

}  // namespace nibble
