// A qmatrix back to floats: exactly the values that its format defines.
#pragma once

#include <vector>

#include "detail/dispatch.hpp"
#include "detail/fp_environment.hpp"
#include "eigen.hpp"
#include "qmatrix.hpp"

namespace nibble {
namespace detail {

NIBBLE_FP_BEGIN

NIBBLE_NOINLINE inline void dequantize_panel(const qmatrix& w, index panel, std::vector<std::uint8_t>& codes, const float_view& out) {
    const layout& l = w.layout();
    const code_format& f = w.format();
    const bool wide = f.decode == decode_class::wide;
    const index positions = l.cols == 0 ? 0 : l.position(l.cols - 1) / 4 * 4 + 4;
    codes.resize(static_cast<std::size_t>(positions * 16 * (wide ? 2 : 1)));
    active_kernels().unpack(w.panel(panel), l.bits, positions, codes.data());
    const index live = (std::min)(panel_rows, l.rows - panel * panel_rows);
    float scale[16];
    float offset[16];
    for (index g = 0; g < l.groups; ++g) {
        w.expand_scales(panel, g, 1, scale, offset);
        for (index k = l.group_begin(g); k < l.group_end(g); ++k) {
            const std::uint8_t* line = codes.data() + 16 * l.position(k) * (wide ? 2 : 1);
            for (index r = 0; r < live; ++r) {
                unsigned code = line[r];
                if (wide) {
                    std::uint16_t u;
                    std::memcpy(&u, line + 2 * r, 2);
                    code = u;
                }
                out.at(panel * panel_rows + r, k) = decode_weight(f, w.offset_type(), code, scale[r], offset[r]);
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
    std::vector<std::uint8_t> codes;
    for (index p = 0; p < w.layout().panels; ++p) detail::dequantize_panel(w, p, codes, out);
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
