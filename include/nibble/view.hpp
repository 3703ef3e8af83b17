// Plain strided views: what is left of a matrix once Eigen is stripped off.
#pragma once

#include <cstring>
#include <string>

#include "error.hpp"

namespace nibble::inline NIBBLE_ABI {

/// The element types that weights and activations may have in memory.
enum class scalar_type : std::uint8_t { f32, f64, f16, bf16 };

[[nodiscard]] constexpr index size_of(scalar_type t) noexcept {
    return t == scalar_type::f64 ? 8 : t == scalar_type::f32 ? 4 : 2;
}

/// rows x cols elements; element (r, c) lies at data + (r * row_stride + c * col_stride) elements. Strides may be
/// negative or zero.
struct const_view {
    const void* data = nullptr;
    scalar_type type = scalar_type::f32;
    index rows = 0;
    index cols = 0;
    index row_stride = 0;
    index col_stride = 0;

    [[nodiscard]] const void* at(index r, index c) const noexcept {
        return static_cast<const unsigned char*>(data) + (r * row_stride + c * col_stride) * size_of(type);
    }
};

/// The same, to be written; always float.
struct float_view {
    float* data = nullptr;
    index rows = 0;
    index cols = 0;
    index row_stride = 0;
    index col_stride = 0;

    [[nodiscard]] float& at(index r, index c) const noexcept { return data[r * row_stride + c * col_stride]; }
    operator const_view() const noexcept {
        return {data, scalar_type::f32, rows, cols, row_stride, col_stride};
    }
};

/// The same for outputs of products: f32, f16 or bf16.
struct output_view {
    void* data = nullptr;
    scalar_type type = scalar_type::f32;
    index rows = 0;
    index cols = 0;
    index row_stride = 0;
    index col_stride = 0;

    output_view() noexcept = default;
    output_view(void* data_, scalar_type type_, index rows_, index cols_, index row_stride_, index col_stride_) noexcept
        : data(data_), type(type_), rows(rows_), cols(cols_), row_stride(row_stride_), col_stride(col_stride_) {}
    output_view(float* data_, index rows_, index cols_, index row_stride_, index col_stride_) noexcept
        : output_view(data_, scalar_type::f32, rows_, cols_, row_stride_, col_stride_) {}
    output_view(const float_view& v) noexcept : output_view(v.data, v.rows, v.cols, v.row_stride, v.col_stride) {}
    [[nodiscard]] void* at(index r, index c) const noexcept {
        return static_cast<unsigned char*>(data) + (r * row_stride + c * col_stride) * size_of(type);
    }
    operator const_view() const noexcept { return {data, type, rows, cols, row_stride, col_stride}; }
};

/// A column-major or row-major matrix of floats as a view.
[[nodiscard]] inline const_view row_major(const float* data, index rows, index cols) noexcept {
    return {data, scalar_type::f32, rows, cols, cols, 1};
}
[[nodiscard]] inline const_view column_major(const float* data, index rows, index cols) noexcept {
    return {data, scalar_type::f32, rows, cols, 1, rows};
}
[[nodiscard]] inline float_view row_major(float* data, index rows, index cols) noexcept {
    return {data, rows, cols, cols, 1};
}
[[nodiscard]] inline float_view column_major(float* data, index rows, index cols) noexcept {
    return {data, rows, cols, 1, rows};
}

namespace detail {

struct byte_range {
    const unsigned char* first = nullptr;
    const unsigned char* last = nullptr;  // one past the end
};

/// The bytes between the first and the last element of a view, for the overlap test.
[[nodiscard]] inline byte_range bytes_of(const const_view& v) noexcept {
    if (v.rows == 0 || v.cols == 0) return {};
    index low = 0;
    index high = 0;
    const index r = (v.rows - 1) * v.row_stride;
    const index c = (v.cols - 1) * v.col_stride;
    (r < 0 ? low : high) += r;
    (c < 0 ? low : high) += c;
    const auto* base = static_cast<const unsigned char*>(v.data);
    return {base + low * size_of(v.type), base + (high + 1) * size_of(v.type)};
}

[[nodiscard]] inline bool overlaps(byte_range a, byte_range b) noexcept {
    return a.first != a.last && b.first != b.last && a.first < b.last && b.first < a.last;
}

[[nodiscard]] inline std::string shape_text(index rows, index cols) {
    return std::to_string(rows) + "x" + std::to_string(cols);
}

}  // namespace detail
}  // namespace nibble
