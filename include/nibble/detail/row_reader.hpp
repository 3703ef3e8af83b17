// Rows of weights as contiguous finite floats, with the range of every group.
#pragma once

#include <vector>

#include "../quantize_plan.hpp"
#include "dispatch.hpp"
#include "load.hpp"

namespace nibble::inline NIBBLE_ABI::detail {

NIBBLE_FP_BEGIN

/// Reads the rows of a view. Rows of contiguous floats are read where they are; others are converted some at a time.
class row_reader {
public:
    row_reader(const const_view& w, non_finite policy, index group, bool magnitudes)
        : w_(w), policy_(policy), group_(group), scan_(magnitudes ? kernels_.scan_magnitudes : kernels_.scan), in_place_(w.type == scalar_type::f32 && w.col_stride == 1),
          at_once_(w.row_stride == 1 ? 4 * panel_rows : panel_rows), stride_(ceil_div(w.cols, 16) * 16 + 16), low_(static_cast<std::size_t>(ceil_div(w.cols, group))), high_(low_.size()) {
        if (!in_place_) tile_.resize(static_cast<std::size_t>((std::min)(at_once_, ceil_div(w.rows, panel_rows) * panel_rows) * stride_));
    }

    /// Row n; finds its ranges. Throws errc::non_finite naming the element, unless such weights are to be saturated.
    std::span<const float> scan(index n) {
        row_ = load(n);
        most_ = scan_(row_, w_.cols, group_, low_.data(), high_.data(), ahead(n + 1));
        if (most_ >= 0x7f800000u) {
            clean(n);
            most_ = scan_(row_, w_.cols, group_, low_.data(), high_.data(), ahead(n + 1));
        }
        return current();
    }
    /// Row n, which was scanned before.
    std::span<const float> get(index n) {
        if (policy_ == non_finite::saturate) return scan(n);
        row_ = load(n);
        return current();
    }
    [[nodiscard]] std::span<const float> current() const noexcept { return {row_, static_cast<std::size_t>(w_.cols)}; }
    /// What the kernels fetch while they work on the current row: row n if there is a way.
    [[nodiscard]] const float* ahead(index n) const noexcept {
        return in_place_ && n < w_.rows ? static_cast<const float*>(w_.at(n, 0)) : row_;
    }
    /// [groups], of the row last scanned.
    [[nodiscard]] const float* low() const noexcept { return low_.data(); }
    [[nodiscard]] const float* high() const noexcept { return high_.data(); }
    /// The largest magnitude of the row last scanned.
    [[nodiscard]] float amax() const noexcept { return float_of(most_); }

private:
    [[nodiscard]] const float* load(index n) {
        if (in_place_) return static_cast<const float*>(w_.at(n, 0));
        if (n / at_once_ != block_) {
            block_ = n / at_once_;
            load_block_of_rows(block_ * at_once_, (std::min)(at_once_, w_.rows - block_ * at_once_));
        }
        return tile_.data() + n % at_once_ * stride_;
    }

    void load_block_of_rows(index first, index rows) {
        if (w_.col_stride == 1) {
            for (index r = 0; r < rows; ++r) convert(w_.at(first + r, 0), w_.cols, tile_.data() + r * stride_);
            return;
        }
        // Column-major: 16 x 16 at a time, and the pieces of a column that lie together in memory together.
        const index whole_rows = w_.row_stride == 1 ? rows / 16 * 16 : 0;
        const index whole_cols = w_.cols / 16 * 16;
        float lines[16 * 16];
        for (index k = 0; k < whole_cols; k += 16)
            for (index r = 0; r < whole_rows; r += 16) {
                auto* to = reinterpret_cast<std::uint8_t*>(tile_.data() + r * stride_ + k);
                if (w_.type == scalar_type::f32) {
                    kernels_.transpose(static_cast<const std::uint8_t*>(w_.at(first + r, k)), w_.col_stride * 4, to, stride_ * 4);
                    continue;
                }
                for (index j = 0; j < 16; ++j) convert(w_.at(first + r, k + j), 16, lines + 16 * j);
                kernels_.transpose(reinterpret_cast<const std::uint8_t*>(lines), 64, to, stride_ * 4);
            }
        load_block(w_, first, whole_rows, whole_cols, w_.cols - whole_cols, tile_.data() + whole_cols, stride_);
        load_block(w_, first + whole_rows, rows - whole_rows, 0, w_.cols, tile_.data() + whole_rows * stride_, stride_);
    }

    /// Contiguous elements to floats.
    void convert(const void* from, index count, float* to) const noexcept {
        switch (w_.type) {
            case scalar_type::f32: std::memcpy(to, from, static_cast<std::size_t>(count) * 4); break;
            case scalar_type::f64: kernels_.load_f64(static_cast<const double*>(from), count, to); break;
            case scalar_type::f16: kernels_.load_fp16(static_cast<const std::uint16_t*>(from), count, to); break;
            case scalar_type::bf16: kernels_.load_bf16(static_cast<const std::uint16_t*>(from), count, to); break;
        }
    }

    /// The current row, number n, without NaN and Inf.
    void clean(index n) {
        const index bad = find_non_finite(row_, w_.cols);
        if (policy_ == non_finite::error)
            fail(errc::non_finite, "quantize: W(" + std::to_string(n) + ", " + std::to_string(bad) + ") is " +
                                       non_finite_name(row_ + bad) + " (W is " + shape_text(w_.rows, w_.cols) +
                                       "; non_finite::saturate would accept it)");
        if (largest_ < 0.0f) {
            largest_ = largest_finite();
            row_ = load(n);
        }
        clean_.assign(row_, row_ + w_.cols);
        for (std::size_t i = static_cast<std::size_t>(bad); i < clean_.size(); ++i) {
            if (finite_in_memory(&clean_[i])) continue;
            const std::uint32_t u = bits_of(clean_[i]);
            clean_[i] = (u & 0x7fffffffu) > 0x7f800000u ? 0.0f : (u >> 31) != 0 ? -largest_ : largest_;
        }
        row_ = clean_.data();
    }

    [[nodiscard]] float largest_finite() {
        float largest = 0.0f;
        for (index n = 0; n < w_.rows; ++n) {
            const float* row = load(n);
            for (index k = 0; k < w_.cols; ++k)
                if (finite_in_memory(row + k) && magnitude(row[k]) > largest) largest = magnitude(row[k]);
        }
        return largest;
    }

    const codec_kernels& kernels_ = active_kernels().codec;
    const_view w_;
    non_finite policy_;
    index group_;
    decltype(codec_kernels::scan) scan_;
    bool in_place_;
    index at_once_;             // rows in the tile
    index stride_;              // of the tile; not a power of two, which would share cache sets
    std::vector<float> tile_;   // rows that are not contiguous floats in memory
    index block_ = -1;          // which
    std::vector<float> clean_;
    std::vector<float> low_, high_;
    const float* row_ = nullptr;
    std::uint32_t most_ = 0;
    float largest_ = -1.0f;     // of the finite weights, once it is needed
};

NIBBLE_FP_END

}  // namespace nibble::detail
