// A qmatrix back to floats: exactly the values that its format defines.
#pragma once

#include "detail/codec.hpp"
#include "detail/fp_environment.hpp"
#include "eigen.hpp"
#include "executor.hpp"
#include "qmatrix.hpp"

namespace nibble::inline NIBBLE_ABI {
namespace detail {

NIBBLE_FP_BEGIN

/// Decodes panels of one matrix. Lines of 16 rows go straight to a column-major output, and through the transpose to
/// every other one.
class panel_decoder {
public:
    panel_decoder(const qmatrix& w, const float_view& out) : w_(w), out_(out) {}

    /// Panels [first_panel, last_panel).
    NIBBLE_NOINLINE void run(index first_panel, index last_panel) {
        const layout& l = w_.layout();
        if (!make_decoder(w_.format(), w_.offset_type(), decoder_, padded_)) return run_unknown(first_panel * panel_rows, (std::min)(last_panel * panel_rows, l.rows));
        // Column-major outputs in blocks of columns, down all panels: a line of 16 rows is one cache line of a column, and
        // the next panel writes the one after it. (Blocks must start at a k-quad.)
        const index step = out_.row_stride == 1 && l.group % 4 == 0 ? block_columns : (std::max)(l.cols, index{1});
        for (index first = 0; first < l.cols; first += step)
            for (index p = first_panel; p < last_panel; ++p) decode_panel(p, first, (std::min)(first + step, l.cols));
    }

private:
    /// Columns [first, last) of panel p; `first` is at a k-quad.
    void decode_panel(index p, index first, index last) noexcept {
        const layout& l = w_.layout();
        row_ = p * panel_rows;
        live_ = (std::min)(panel_rows, l.rows - row_);
        const bool direct = out_.row_stride == 1 && live_ == panel_rows;
        index expanded = 0;
        index in_scratch = 0;
        for (index k = first; k < last;) {
            const index g = k / l.group;
            if (k == first || g == expanded + at_once) {
                w_.expand_scales(p, g, (std::min)(at_once, (last - 1) / l.group + 1 - g), scale_, offset_);
                expanded = g;
            }
            const index line = (g - expanded) * 16;
            const index left = (std::min)(last, l.group_end(g)) - k;
            if (direct && left >= 4) {
                decode(k, left / 4, line, &out_.at(row_, k), out_.col_stride);
                k += left / 4 * 4;
                continue;
            }
            // A piece starts at a k-quad and ends at one, or where its group does.
            const index n = (std::min)(left, (chunk - in_scratch) / 4 * 4);
            decode(k, ceil_div(n, 4), line, scratch_ + 16 * in_scratch, 16);
            k += n;
            in_scratch += n;
            if (chunk - in_scratch < 4 || direct || k == last) in_scratch = write(k - in_scratch, in_scratch, direct || k == last);
        }
    }

    static constexpr index block_columns = 256;
    static constexpr index chunk = 64;    // columns of scratch
    static constexpr index at_once = 16;  // groups whose scales are expanded together

    void decode(index k, index quads, index line, float* out, index stride) const noexcept {
        kernels_.decode(decoder_, w_.panel(row_ / panel_rows), w_.layout().position(k) / 4, quads, scale_ + line, offset_ + line, out, stride);
    }

    /// Lines of columns [first, first + count) from scratch to the output. Returns how many are left for the next time.
    index write(index first, index count, bool all) noexcept {
        index k = 0;
        if (out_.col_stride == 1 && live_ == panel_rows) {
            for (; k + 16 <= count; k += 16)
                kernels_.transpose(reinterpret_cast<const std::uint8_t*>(scratch_ + 16 * k), 64,
                                   reinterpret_cast<std::uint8_t*>(&out_.at(row_, first + k)), out_.row_stride * 4);
            if (!all) {
                std::memmove(scratch_, scratch_ + 16 * k, static_cast<std::size_t>(count - k) * 64);
                return count - k;
            }
        }
        for (; k < count; ++k)
            for (index r = 0; r < live_; ++r) out_.at(row_ + r, first + k) = scratch_[16 * k + r];
        return 0;
    }

    /// 16-bit formats of a program's own.
    void run_unknown(index first_row, index last_row) const {
        const layout& l = w_.layout();
        float scale[16], offset[16];
        for (index n = first_row; n < last_row; ++n)
            for (index g = 0; g < l.groups; ++g) {
                w_.expand_scales(n / panel_rows, g, 1, scale, offset);
                for (index k = l.group_begin(g); k < l.group_end(g); ++k) {
                    const unsigned code = get_code(w_.panel(n / panel_rows), l.bits, static_cast<int>(n % panel_rows), l.position(k));
                    out_.at(n, k) = decode_weight(w_.format(), w_.offset_type(), code, scale[n % panel_rows], offset[n % panel_rows]);
                }
            }
    }

    const qmatrix& w_;
    const float_view& out_;
    const codec_kernels& kernels_ = active_kernels().codec;
    decoder decoder_{};
    float padded_[16];
    index row_ = 0;    // first of the panel
    index live_ = 0;   // rows of the panel
    float scale_[16 * at_once], offset_[16 * at_once];
    alignas(64) float scratch_[16 * (chunk + 4)];
};

NIBBLE_FP_END

}  // namespace detail

/// What may be said besides the output.
struct dequantize_options {
    nibble::executor* executor = nullptr;  // threads, or none but the caller's
};

/// Writes the decoded weights (N x K) to storage of the caller. Throws errc::shape_mismatch with both shapes.
NIBBLE_API void dequantize(const qmatrix& w, const float_view& out, const dequantize_options& options = {});

#if NIBBLE_DEFINE_API
NIBBLE_API void dequantize(const qmatrix& w, const float_view& out, const dequantize_options& options) {
    if (out.rows != w.rows() || out.cols != w.cols())
        detail::fail(errc::shape_mismatch, "dequantize: W is " + detail::shape_text(w.rows(), w.cols()) + ", the output is " +
                                               detail::shape_text(out.rows, out.cols));
    if (out.data == nullptr && out.rows != 0 && out.cols != 0)
        detail::fail(errc::invalid_argument, "dequantize: the output is a null pointer");
    const index panels = w.layout().panels;
    const int threads = options.executor != nullptr ? options.executor->concurrency() : 1;
    const index tasks = threads <= 1 ? 1 : (std::min)(panels, index{threads} * 4);
    const auto task = [&](index i) {
        const detail::fp_environment environment;
        detail::panel_decoder(w, out).run(panels * i / tasks, panels * (i + 1) / tasks);
    };
    if (tasks <= 1) task(0);
    else options.executor->parallel_for(tasks, task);
}
#endif

/// dequantize(Wq, W): into a matrix, map or block of floats.
template <class Out>
    requires eigen_expression<std::remove_cvref_t<Out>>
void dequantize(const qmatrix& w, Out&& out, const dequantize_options& options = {}) {
    dequantize(w, writable_view(out), options);
}

/// The decoded weights as a matrix.
[[nodiscard]] inline Eigen::MatrixXf dequantize(const qmatrix& w, const dequantize_options& options = {}) {
    Eigen::MatrixXf out(w.rows(), w.cols());
    dequantize(w, writable_view(out), options);
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
