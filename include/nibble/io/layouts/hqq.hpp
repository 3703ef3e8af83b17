// HQQ: the weights of a layer, flattened row by row, are an R x C matrix of groups, and its rows are packed.
//
//   axis 1   R = N K / g, C = g: a group is a row, g weights that follow each other
//   axis 0   R = g, C = N K / g: a group is a column
//   W_q      U8 or I32 [P, C]    8 bits: P = R. 4, 2, 1 bits: R is cut into 2, 4, 8 parts of P rows; the first is in the
//                                high bits. 3 bits: I32, 10 parts of P = ceil(R / 10) rows, the first at bit 27
//   scale    F32, F16, BF16 [R, 1] or [1, C];  zero the same
//   shape    I64 [2], or the caller's word: N, K
//   bias     [N], may be missing
//
//   w = f32(q - zero) * scale      in float; HQQ itself computes in the type of the scale
//
// All exact. Groups that cross rows are cut at the common divisor of g and K, each piece with the scale of its group. A
// group of axis 0 is a set of weights far apart, so there every weight gets its own scale and zero: a matrix of 30 to 80
// bits a weight, for conversion, not for speed.
//
// Source: hqq 0.2.8, core/quantize.py and core/bitpack.py.
#pragma once

#include "codes.hpp"
#include "linear.hpp"

namespace nibble::inline NIBBLE_ABI::io::layouts::hqq {

struct config {
    int bits = 4;           ///< 1, 2, 3, 4 or 8
    index group_size = 64;  ///< 0: all of a row (axis 1) or of a column (axis 0)
    int axis = 1;
    index rows = 0, cols = 0;
};

/// The layer in these tensors, exactly. bias may be null.
[[nodiscard]] NIBBLE_IO_API result<linear> unpack(const tensor& w_q, const tensor& scale, const tensor& zero,
                                                  const tensor* bias, const config& c, executor* threads = nullptr);

#if NIBBLE_DEFINE_IO

namespace detail {

using namespace layouts::detail;

/// Rows of the packed tensor, and where the bits of row r lie in it.
struct packing {
    index packed = 0;
    int bits = 0;

    [[nodiscard]] static packing of(int bits, index rows) noexcept {
        const index parts = bits == 3 ? 10 : 8 / bits;
        return {ceil_div(rows, parts), bits};
    }
    [[nodiscard]] int shift(index r) const noexcept {
        const int part = static_cast<int>(r / packed);
        return bits == 3 ? 27 - 3 * part : 8 - bits * (part + 1);
    }
};

}  // namespace detail

NIBBLE_IO_API result<linear> unpack(const tensor& w_q, const tensor& scale, const tensor& zero,
                                    const tensor* bias, const config& c, executor* threads) {
    detail::checks check("hqq");
    constexpr index most = 0x7fffffff;
    check.matrix(c.rows, c.cols);
    if (c.bits != 1 && c.bits != 2 && c.bits != 3 && c.bits != 4 && c.bits != 8)
        check.fail(errc::unsupported, "codes of " + std::to_string(c.bits) + " bits; there are 1, 2, 3, 4 and 8");
    if (c.group_size < 0 || c.group_size > most || (c.axis != 0 && c.axis != 1))
        check.fail(errc::malformed, "groups of " + std::to_string(c.group_size) + ", axis " + std::to_string(c.axis));
    if (!check) return std::move(check).failure();
    const index count = c.rows * c.cols;
    const index size = (std::max)(index{1}, c.group_size != 0 ? c.group_size : c.axis == 1 ? c.cols : c.rows);
    if (count % size != 0)
        check.fail(errc::malformed,
                   "groups of " + std::to_string(size) + " do not divide the " + std::to_string(count) + " weights");
    const index height = c.axis == 1 ? count / size : size;  // R
    const index width = c.axis == 1 ? size : count / size;   // C
    const detail::packing packing = detail::packing::of(c.bits, height);
    if (c.bits != 3 && c.bits != 8 && height % (8 / c.bits) != 0)
        check.fail(errc::malformed, std::to_string(height) + " rows of groups cannot be packed " +
                                        std::to_string(8 / c.bits) + " to a byte");
    check.type(w_q, {c.bits == 3 ? dtype::i32 : dtype::u8});
    check.shape(w_q, {packing.packed, width});
    for (const tensor* t : {&scale, &zero}) {
        check.type(*t, detail::float_types);
        check.shape(*t, {c.axis == 1 ? height : 1, c.axis == 1 ? 1 : width});
        check.finite(*t);
    }
    detail::check_bias(check, bias, c.rows);
    if (!check) return std::move(check).failure();

    const bool crossing = c.axis == 1 && c.cols % size != 0 && c.rows > 1;
    const index piece = c.axis == 0 ? (width == 1 ? (std::max)(index{1}, c.cols) : 1)
                        : crossing  ? std::gcd(c.cols, size)
                                    : size;
    const bool same_type = scale.type == zero.type;
    qmatrix_builder out(c.rows, c.cols, c.bits == 1 ? int2::format : *detail::codes_of(c.bits).format,
                        same_type ? detail::scheme_of(scale.type) : scales::f32, offset_kind::float_zero,
                        per_group{piece});
    const auto stored = [&](const tensor& t, index i) {
        return same_type ? detail::bits_at(t, i) : nibble::detail::bits_of(detail::float_at(t, i));
    };
    const auto group = [&](index n, index g) {
        const index first = n * c.cols + g * piece;
        return c.axis == 1 ? first / size : first % width;
    };
    detail::set_groups(
        out, threads, [&](index n, index g) { return stored(scale, group(n, g)); },
        [&](index n, index g) { return stored(zero, group(n, g)); });
    const unsigned mask = (1u << c.bits) - 1;
    detail::set_rows(out, threads, {}, [&](index first, index rows, std::uint8_t* codes) {
        for (index i = 0; i < rows * c.cols; ++i) {
            const index r = (first * c.cols + i) / width, column = (first * c.cols + i) % width;
            const index at = r % packing.packed * width + column;
            const std::uint32_t word =
                c.bits == 3 ? detail::at<std::uint32_t>(w_q, at) : detail::at<std::uint8_t>(w_q, at);
            codes[i] = static_cast<std::uint8_t>((word >> packing.shift(r)) & mask);
        }
    });
    linear layer;
    layer.weight = std::move(out).finish();
    detail::read_bias(bias, 0, c.rows, layer.bias);
    return layer;
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io::layouts::hqq
