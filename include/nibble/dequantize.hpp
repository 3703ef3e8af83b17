// A qmatrix back to floats: exactly the values that its format defines.
#pragma once

#include "detail/dispatch.hpp"
#include "detail/fp_environment.hpp"
#include "eigen.hpp"
#include "qmatrix.hpp"

namespace nibble::inline NIBBLE_ABI {
namespace detail {

NIBBLE_FP_BEGIN

NIBBLE_NOINLINE inline void dequantize_panel(const qmatrix& w, index panel, const float_view& out) {
    constexpr index chunk = 64;  // columns at a time, a whole number of k-quads
    const layout& l = w.layout();
    const code_format& f = w.format();
    const bool wide = f.decode == decode_class::wide;
    const index live = (std::min)(panel_rows, l.rows - panel * panel_rows);
    float codes[16 * chunk];
    float scale[16];
    float offset[16];
    for (index g = 0; g < l.groups; ++g) {
        w.expand_scales(panel, g, 1, scale, offset);
        for (index first = l.group_begin(g); first < l.group_end(g); first += chunk) {
            const index n = (std::min)(chunk, l.group_end(g) - first);
            const index position = l.position(first);
            if (!wide) active_kernels().read(w.panel(panel), l.bits, position / 4, ceil_div(n, 4), nullptr, codes);
            for (index i = 0; i < n; ++i) {
                for (int r = 0; r < live; ++r) {
                    const unsigned code = wide ? get_code(w.panel(panel), 16, r, position + i) : static_cast<unsigned>(codes[16 * i + r]);
                    out.at(panel * panel_rows + r, first + i) = decode_weight(f, w.offset_type(), code, scale[r], offset[r]);
                }
            }
        }
    }
}

NIBBLE_FP_END

}  // namespace detail

/// Writes the decoded weights (N x K) to storage of the caller. Throws errc::shape_mismatch with both shapes.
NIBBLE_API void dequantize(const qmatrix& w, const float_view& out);

#if NIBBLE_DEFINE_API
NIBBLE_API void dequantize(const qmatrix& w, const float_view& out) {
    if (out.rows != w.rows() || out.cols != w.cols())
        detail::fail(errc::shape_mismatch, "dequantize: W is " + detail::shape_text(w.rows(), w.cols()) + ", the output is " +
                                               detail::shape_text(out.rows, out.cols));
    if (out.data == nullptr && out.rows != 0 && out.cols != 0)
        detail::fail(errc::invalid_argument, "dequantize: the output is a null pointer");
    const detail::fp_environment environment;
    for (index p = 0; p < w.layout().panels; ++p) detail::dequantize_panel(w, p, out);
}
#endif

/// dequantize(Wq, W): into a matrix, map or block of floats.
template <class Out>
    requires eigen_expression<std::remove_cvref_t<Out>>
void dequantize(const qmatrix& w, Out&& out) {
    dequantize(w, writable_view(out));
}

/// The decoded weights as a matrix.
[[nodiscard]] inline Eigen::MatrixXf dequantize(const qmatrix& w) {
    Eigen::MatrixXf out(w.rows(), w.cols());
    dequantize(w, writable_view(out));
    return out;
}

/// Row n of the decoded weights: K floats. Throws errc::out_of_range.
inline void dequantize_row(const qmatrix& w, index n, float* out) {
    if (n < 0 || n >= w.rows())
        detail::fail(errc::out_of_range, "dequantize_row: row " + std::to_string(n) + " of a " + detail::shape_text(w.rows(), w.cols()) + " matrix");
    const detail::fp_environment environment;
    for (index g = 0; g < w.groups(); ++g) {
        const float scale = w.scale(n, g);
        const float offset = w.offset(n, g);
        for (index k = w.layout().group_begin(g); k < w.layout().group_end(g); ++k)
            out[k] = detail::decode_weight(w.format(), w.offset_type(), w.code(n, k), scale, offset);
    }
}

}  // namespace nibble
