// What crosses the border between a verb and its kernels: raw pointers and sizes.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec_types.hpp"

namespace nibble::detail {

/// One sub-block of one panel times a set of columns. Lines are 16 floats, one lane a row.
struct block_product {
    const float* values;            // [length] lines: integers (digits), values at scale 1 (chain), weights (strict)
    std::ptrdiff_t length;          // at most 256
    const float* streams;           // [columns][planes][length]: digits of the activations, or the activations
    std::ptrdiff_t columns;
    const float* scale;             // one line: of the weights
    const float* minimum;           // one line, or null
    const float* activation_scale;  // [columns]
    const float* activation_sum;    // [columns], read when minimum is given: the sum of the activations
    float* accumulator;             // [columns] lines
};

/// How codes become the values of a block_product.
struct value_map {
    const float* table;  // value of every code, padded to at least 16 entries; null: the code itself, as a float
    const float* zero;   // one line subtracted from it, or null
};

/// The kernels of one instruction-set level.
struct kernel_table {
    void (*digits[3])(const block_product&) noexcept;  // 1, 2 and 3 base-256 digits
    void (*chain)(const block_product&) noexcept;
    void (*strict)(const block_product&) noexcept;
    /// Lines of values of the positions 4 * first .. 4 * (first + quads) - 1 of a panel; codes of at most 8 bits.
    void (*read)(const std::uint8_t* panel, int bits, std::ptrdiff_t first, std::ptrdiff_t quads, const value_map& map,
                 float* values) noexcept;
    codec_kernels codec;
};

}  // namespace nibble::detail
