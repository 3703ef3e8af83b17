// Matrices put together and taken apart by rows.
//
//     auto qkv = nibble::concatenate({Q, K, V});                     // one product for three: fused projections
//     nibble::qmatrix head = qkv.row_block(64 * h, 64);              // shares memory, costs nothing
//     Eigen::MatrixXf X = nibble::gather_rows(embedding, tokens);    // K x count, ready for a product
#pragma once

#include <cstdio>
#include <initializer_list>
#include <iterator>
#include <numeric>
#include <span>
#include <vector>

#include "detail/fp_environment.hpp"
#include "eigen.hpp"
#include "qmatrix.hpp"

namespace nibble::inline NIBBLE_ABI {

/// Whether concatenate(parts) is possible; the message names the two matrices and what differs.
[[nodiscard]] NIBBLE_API status check_concatenate(std::span<const qmatrix> parts);

/// The rows of all matrices, one below the other, as a new matrix: no number changes, so products and decoded weights are
/// those of the parts. They must agree in code format, scale scheme, offset, group size and K; schemes with a scale of
/// the whole tensor must agree in that, too. Whole panels are copied as long as the parts before are multiples of 16
/// rows; the rest is repacked, row by row. Parts that each have one scale for all rows, or for tiles of rows, get tiles
/// as tall as fit. Throws errc::unsupported for parts that differ, errc::invalid_argument for none at all.
[[nodiscard]] NIBBLE_API qmatrix concatenate(std::span<const qmatrix> parts);

/// The same, of a list in braces: copies of a qmatrix share its weights and cost nothing.
[[nodiscard]] inline qmatrix concatenate(std::initializer_list<qmatrix> parts) {
    return concatenate(std::span<const qmatrix>(parts.begin(), parts.size()));
}

namespace detail {

/// A tile of scales must not cross from one part to the next, nor a tile of a part: the tallest tile that fits.
[[nodiscard]] inline index common_tile(std::span<const qmatrix> parts) noexcept {
    index tile = 0;
    index row = 0;
    for (const qmatrix& m : parts) {
        const layout& l = m.layout();
        if (l.rows == 0) continue;
        tile = std::gcd(tile, row);
        const index first = l.block_rows - l.tile_row();  // rows of its first tile
        if (first < l.rows) tile = std::gcd(tile, row + first);
        if (first + l.block_rows < l.rows) tile = std::gcd(tile, l.block_rows);
        row += l.rows;
    }
    return tile == 0 ? std::max<index>(1, row) : tile;
}

/// The second-level scales of double-quantized parts. Groups of two parts may fall under one of them: then both must
/// have the same.
[[nodiscard]] inline status join_nested(std::span<const qmatrix> parts, std::vector<std::uint32_t>& joined) {
    const index span = parts[0].scheme().span;
    const index groups = parts[0].groups();
    std::vector<std::size_t> owner;
    index row = 0;
    for (std::size_t i = 0; i < parts.size(); row += parts[i].rows(), ++i) {
        const index before = parts[i].layout().first_row * groups % span;  // groups of rows above, under the first absmax
        for (index j = 0; j < parts[i].rows() * groups; ++j) {
            const auto s = static_cast<std::size_t>((row * groups + j) / span);
            const std::uint32_t absmax = bits_of(parts[i].nested_absmax((before + j) / span));
            if (s == joined.size()) {
                joined.push_back(absmax);
                owner.push_back(i);
            } else if (joined[s] != absmax) {
                return status(errc::unsupported, "concatenate: a second-level scale would serve groups of matrices " +
                                                     std::to_string(owner[s]) + " and " + std::to_string(i) +
                                                     ", which have different ones; there is one for " + std::to_string(span) +
                                                     " groups, counted from the first row");
            }
        }
    }
    return {};
}

inline void copy_panels(const qmatrix& from, index panels, qmatrix_builder& to, index panel) noexcept {
    const layout& a = from.layout();
    const layout& b = to.layout();
    const auto copy = [&](index source, index target, index bytes) {
        if (panels * bytes > 0)
            std::memcpy(to.data() + target + panel * bytes, from.data() + source, static_cast<std::size_t>(panels * bytes));
    };
    copy(a.codes_at, b.codes_at, a.panel_bytes);
    copy(a.scales_at, b.scales_at, a.groups * a.scale_line);
    copy(a.offsets_at, b.offsets_at, a.groups * a.offset_line);
    copy(a.supers_at, b.supers_at, a.supers * a.super_line);  // two_level; else super_line is 0
}

inline void copy_row(const qmatrix& from, index n, qmatrix_builder& to, index row, std::uint8_t* codes) {
    const layout& l = from.layout();
    if (l.bits == 16) {
        for (index k = 0; k < l.cols; ++k) to.set_code(row, k, from.code(n, k));
        return;  // no scales
    }
    for (index g = 0; g < l.groups; ++g) {
        for (index k = l.group_begin(g); k < l.group_end(g); k += 4) {
            const std::uint32_t quad =
                get_quad(from.panel(n / panel_rows), l.bits, static_cast<int>(n % panel_rows), l.position(k));
            std::memcpy(codes + k, &quad, static_cast<std::size_t>(std::min<index>(4, l.group_end(g) - k)));
        }
        to.set_scale(row, g, from.stored_scale(n, g));
        to.set_offset(row, g, from.stored_offset(n, g));
    }
    to.set_row(row, codes);
    if (from.scheme().storage != scale_storage::two_level) return;
    for (index s = 0; s < l.supers; ++s) {
        to.set_super(row, s, from.stored_super(n, s));
        if (from.offset_type() == offset_kind::minimum) to.set_super(row, s, from.stored_super(n, s, true), true);
    }
}

NIBBLE_FP_BEGIN

/// Row n of the decoded weights, `stride` floats apart.
NIBBLE_NOINLINE inline void decode_row(const qmatrix& w, index n, float* out, index stride) noexcept {
    const layout& l = w.layout();
    const code_format& f = w.format();
    const int row = static_cast<int>(n % panel_rows);
    const std::uint8_t* panel = w.panel(n / panel_rows);
    float scale[16];
    float offset[16];
    for (index g = 0; g < l.groups; ++g) {
        w.expand_scales(n / panel_rows, g, 1, scale, offset);
        const index end = l.group_end(g);
        for (index k = l.group_begin(g); k < end;) {
            const index position = l.position(k);
            if (l.bits == 16) {
                out[k++ * stride] = decode_weight(f, w.offset_type(), get_code(panel, 16, row, position), scale[row], offset[row]);
                continue;
            }
            std::uint32_t quad = get_quad(panel, l.bits, row, position);
            for (const index last = (std::min)(end, k + 4); k < last; ++k, quad >>= 8)
                out[k * stride] = decode_weight(f, w.offset_type(), quad & 255u, scale[row], offset[row]);
        }
    }
}

NIBBLE_FP_END

}  // namespace detail

#if NIBBLE_DEFINE_API
NIBBLE_API status check_concatenate(std::span<const qmatrix> parts) {
    if (parts.empty()) return status(errc::invalid_argument, "concatenate: there are no matrices");
    const qmatrix& a = parts[0];
    const bool tensor_scales =
        a.scheme().storage == scale_storage::e4m3_f32 || a.scheme().storage == scale_storage::double_quantized;
    for (std::size_t i = 1; i < parts.size(); ++i) {
        const qmatrix& b = parts[i];
        const auto differ = [&](errc code, const std::string& what, const std::string& left, const std::string& right) {
            return status(code, "concatenate: matrices 0 and " + std::to_string(i) + " differ in " + what + ": " + left +
                                    " and " + right);
        };
        if (a.cols() != b.cols())
            return differ(errc::shape_mismatch, "K", detail::shape_text(a.rows(), a.cols()), detail::shape_text(b.rows(), b.cols()));
        if (&a.format() != &b.format()) return differ(errc::unsupported, "code format", a.format().name, b.format().name);
        if (!(a.scheme() == b.scheme())) {
            const auto text = [](const scale_scheme& s) {
                std::string t = name_of(s.storage);
                if (s.storage == scale_storage::two_level)
                    t += " of " + std::to_string(s.bits) + (s.is_signed ? " signed bits" : " bits");
                if (s.span > 1) t += ", " + std::to_string(s.span) + " groups to a super-scale";
                return t;
            };
            return differ(errc::unsupported, "scale scheme", text(a.scheme()), text(b.scheme()));
        }
        if (a.offset_type() != b.offset_type())
            return differ(errc::unsupported, "offset", name_of(a.offset_type()), name_of(b.offset_type()));
        if (a.group_size() != b.group_size())
            return differ(errc::unsupported, "group size", std::to_string(a.group_size()), std::to_string(b.group_size()));
        if (tensor_scales && detail::bits_of(a.tensor_scale()) != detail::bits_of(b.tensor_scale())) {
            char both[80];
            std::snprintf(both, sizeof both, "%.9g and %.9g", static_cast<double>(a.tensor_scale()), static_cast<double>(b.tensor_scale()));
            return status(errc::unsupported, "concatenate: matrices 0 and " + std::to_string(i) + " have " + both +
                                                 " as the one number of the tensor that scheme " + name_of(a.scheme().storage) +
                                                 " has; quantize the stacked weights instead");
        }
    }
    if (a.scheme().storage != scale_storage::double_quantized) return {};
    std::vector<std::uint32_t> joined;
    return detail::join_nested(parts, joined);
}

NIBBLE_API qmatrix concatenate(std::span<const qmatrix> parts) {
    check_concatenate(parts).or_throw();
    const qmatrix& a = parts[0];
    index rows = 0;
    bool same_name = true;
    for (const qmatrix& m : parts) {
        if (m.rows() > PTRDIFF_MAX - rows) detail::fail(errc::out_of_range, "concatenate: too many rows for memory");
        rows += m.rows();
        same_name = same_name && m.name() == a.name();
    }
    qmatrix_builder out(rows, a.cols(), a.handle(), a.scheme(), a.offset_type(), {detail::common_tile(parts), a.group_size()},
                        same_name ? a.name() : std::string());
    out.set_tensor_scale(a.tensor_scale());
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(a.cols()));
    index row = 0;
    for (const qmatrix& m : parts) {
        const bool same_lines = m.layout().scale_line == out.layout().scale_line && m.layout().offset_line == out.layout().offset_line;
        const index panels = row % panel_rows == 0 && same_lines ? m.rows() / panel_rows : 0;
        detail::copy_panels(m, panels, out, row / panel_rows);
        for (index n = panels * panel_rows; n < m.rows(); ++n) detail::copy_row(m, n, out, row + n, codes.data());
        row += m.rows();
    }
    if (a.scheme().storage == scale_storage::double_quantized) {
        std::vector<std::uint32_t> joined;
        static_cast<void>(detail::join_nested(parts, joined));
        for (std::size_t s = 0; s < joined.size(); ++s)
            out.set_nested_absmax(static_cast<index>(s), detail::float_of(joined[s]));
    }
    return std::move(out).finish();
}
#endif

/// The decoded rows w[indices[j], :] as the columns of `out`, K x count: an embedding table's rows as activations, one
/// column per token. Any strides: for one row per token give the transposed view {data, K, count, 1, K}. Indices may
/// repeat. Throws errc::shape_mismatch with both shapes, and errc::out_of_range with the position and the index before
/// anything is written.
template <std::integral Token>
void gather_rows(const qmatrix& w, std::span<const Token> indices, const float_view& out) {
    const auto count = static_cast<index>(indices.size());
    if (out.rows != w.cols() || out.cols != count)
        detail::fail(errc::shape_mismatch, "gather_rows: " + std::to_string(count) + " rows of a " +
                                               detail::shape_text(w.rows(), w.cols()) + " matrix make " +
                                               detail::shape_text(w.cols(), count) + ", the output is " +
                                               detail::shape_text(out.rows, out.cols));
    if (out.data == nullptr && out.rows != 0 && out.cols != 0)
        detail::fail(errc::invalid_argument, "gather_rows: the output is a null pointer");
    for (std::size_t j = 0; j < indices.size(); ++j)
        if (std::cmp_less(indices[j], 0) || std::cmp_greater_equal(indices[j], w.rows()))
            detail::fail(errc::out_of_range, "gather_rows: index " + std::to_string(indices[j]) + " at position " +
                                                 std::to_string(j) + ", of a matrix of " + std::to_string(w.rows()) + " rows");
    const detail::fp_environment environment;
    for (index j = 0; j < count; ++j)
        detail::decode_row(w, static_cast<index>(indices[static_cast<std::size_t>(j)]), out.data + j * out.col_stride, out.row_stride);
}

/// gather_rows(w, tokens, X): any contiguous range of integers (vector, array, span), into a matrix, map or block of
/// floats, K x count. For one row per token give X.transpose().
template <class Indices, class Out>
    requires eigen_expression<std::remove_cvref_t<Out>> && requires(const Indices& i) { std::span(i); }
void gather_rows(const qmatrix& w, const Indices& indices, Out&& out) {
    const std::span all(indices);
    using integer = typename decltype(all)::element_type;
    gather_rows(w, std::span<const std::remove_cv_t<integer>>(all), writable_view(out));
}

/// The same by value.
template <class Indices>
    requires requires(const Indices& i) { std::span(i); }
[[nodiscard]] Eigen::MatrixXf gather_rows(const qmatrix& w, const Indices& indices) {
    Eigen::MatrixXf out(w.cols(), static_cast<index>(std::size(indices)));
    gather_rows(w, indices, out);
    return out;
}

}  // namespace nibble
