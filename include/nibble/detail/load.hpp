// Rows of a strided view as contiguous floats, and the search for NaN and Inf.
#pragma once

#include "../formats/half.hpp"
#include "../view.hpp"

namespace nibble::inline NIBBLE_ABI::detail {

NIBBLE_FP_BEGIN

[[nodiscard]] inline float load_scalar(const void* at, scalar_type type) noexcept {
    switch (type) {
        case scalar_type::f32: {
            float x;
            std::memcpy(&x, at, 4);
            return x;
        }
        case scalar_type::f64: {
            double x;
            std::memcpy(&x, at, 8);
            return static_cast<float>(x);  // rounded once; beyond FLT_MAX it is Inf, which the scan reports
        }
        case scalar_type::f16: {
            std::uint16_t x;
            std::memcpy(&x, at, 2);
            return fp16_to_float(x);
        }
        case scalar_type::bf16: {
            std::uint16_t x;
            std::memcpy(&x, at, 2);
            return bf16_to_float(x);
        }
    }
    return 0.0f;
}

/// out[r * out_stride + c] = element (first_row + r, first_col + c). Walks memory along the view's shorter stride.
NIBBLE_NOINLINE inline void load_block(const const_view& v, index first_row, index rows, index first_col, index cols,
                                       float* out, index out_stride) noexcept {
    if (rows == 0 || cols == 0) return;  // memcpy may not be given a null pointer, not even for 0 bytes
    if (v.type == scalar_type::f32 && v.col_stride == 1) {
        for (index r = 0; r < rows; ++r)
            std::memcpy(out + r * out_stride, v.at(first_row + r, first_col), static_cast<std::size_t>(cols) * 4);
        return;
    }
    const bool by_column = v.row_stride == 1;
    const index outer = by_column ? cols : rows;
    const index inner = by_column ? rows : cols;
    const index step = (by_column ? v.row_stride : v.col_stride) * size_of(v.type);
    const index out_step = by_column ? out_stride : 1;
    for (index i = 0; i < outer; ++i) {
        const auto* at = static_cast<const unsigned char*>(by_column ? v.at(first_row, first_col + i) : v.at(first_row + i, first_col));
        float* to = by_column ? out + i : out + i * out_stride;
        for (index j = 0; j < inner; ++j, at += step, to += out_step) *to = load_scalar(at, v.type);
    }
}

/// Index of the first NaN or Inf, or -1. Works on integer bits.
[[nodiscard]] NIBBLE_NOINLINE inline index find_non_finite(const float* x, index n) noexcept {
    std::uint32_t largest = 0;
    for (index i = 0; i < n; ++i) {
        std::uint32_t u;
        std::memcpy(&u, x + i, 4);
        u &= 0x7fffffffu;
        largest = u > largest ? u : largest;
    }
    if (largest < 0x7f800000u) return -1;
    for (index i = 0; i < n; ++i)
        if (!finite_in_memory(x + i)) return i;
    return -1;
}

/// "nan", "inf" or "-inf" of a value in memory.
[[nodiscard]] inline const char* non_finite_name(const float* x) noexcept {
    std::uint32_t u;
    std::memcpy(&u, x, 4);
    return (u & 0x7fffffffu) > 0x7f800000u ? "nan" : (u >> 31) != 0 ? "-inf" : "inf";
}

NIBBLE_FP_END

}  // namespace nibble::detail
