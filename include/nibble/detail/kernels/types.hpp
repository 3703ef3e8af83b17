// What crosses the border between a verb and its kernels: raw pointers and sizes. A line is 16 lanes, one a row of a panel.
#pragma once

#include <cstddef>
#include <cstdint>

#include "codec_types.hpp"

namespace nibble::inline NIBBLE_ABI::detail {

/// Where the scales and offsets of one panel lie and what they mean (scale.hpp). Made by qmatrix::scales_of.
struct scale_source {
    const std::uint8_t* scales;    // the first line of the panel
    const std::uint8_t* offsets;
    const std::uint8_t* supers;    // two_level: of the panel; double_quantized: of the matrix
    std::ptrdiff_t scale_line;     // bytes
    std::ptrdiff_t offset_line;
    std::ptrdiff_t super_line;
    std::ptrdiff_t span;           // groups to one second-level scale
    std::ptrdiff_t groups;         // along a row
    std::ptrdiff_t first_row;      // of the panel
    int live;                      // rows that exist; the others get scale 0 and offset 0
    std::uint8_t storage;          // enum scale_storage
    std::uint8_t offset;           // enum offset_kind
    bool is_signed;
    bool shared;                   // one stored lane stands for all 16
    int scale_bits;
    int offset_bits;
    float tensor_scale;
};

/// Bytes of cells to prefetch ahead where they come from memory: hardware prefetchers stop at pages, and waiting for
/// them empties the window of a core that also computes.
inline constexpr std::ptrdiff_t cells_ahead = 4096;

/// Codes of a run of sub-blocks, all of the same length, of one panel (or two: levels whose tiles hold two panels).
struct weight_run {
    const std::uint8_t* cells;     // of the first sub-block
    std::ptrdiff_t panel_step;     // bytes from one panel to the next
    int bits;                      // 8: a line of 16 x 4 codes a quad; 4 and less: cells of the matrix as they are
    std::ptrdiff_t blocks;
    std::ptrdiff_t quads;          // k-quads of a sub-block
    std::ptrdiff_t flush;          // quads that 16-bit sums hold (kernels that have them)
    const float* scale;            // lines
    const float* minimum;          // lines, or null
    const float* zero;             // lines, or null: then the bias holds the zero point already
    std::ptrdiff_t scale_step;     // floats from one sub-block to the next: 16, or 0 within a group
    std::ptrdiff_t scale_panel;    // floats from one panel to the next
    std::ptrdiff_t ahead;          // bytes of cells to prefetch ahead: cells_ahead, or 0 where they are in L1
};

/// A tile of prepared columns. Everything is packed tile by tile: [tile][k-quad or sub-block][column].
struct column_tile {
    const std::uint8_t* streams;   // of the first sub-block of the run
    const float* scale;            // [sub-block][column] of the activations
    const float* sum;              // [sub-block][column], read with a minimum
    const std::int32_t* bias;      // [sub-block][column][1, or 2 with three digits]: (zero point x) sum of digits
    float* accumulator;            // [column] lines
    std::ptrdiff_t accumulator_panel;  // numbers from one panel to the next
    int columns;
    std::int32_t* sums = nullptr;  // [column] lines, in place of the accumulator: integer sums
};

/// Exact integer products of one way to hold digits.
struct digit_kernels {
    const char* name;              // of the instruction that multiplies
    int stream_bytes[3];           // of one column and k-quad, for 1, 2, 3 digits
    int columns[3];                // of a full tile
    bool reads_nibbles;            // weight_run::bits may be 4; else it is 8
    bool flushes;                  // sums of 16 bits
    int code_offset;               // already subtracted from codes: so it is from the zero point in a bias
    /// Splits q of `quads` k-quads into digits; writes every k-quad `step` bytes after the last. Returns the sum of the
    /// highest digit when there are three.
    std::int32_t (*pack)(const std::int32_t* q, std::ptrdiff_t quads, int digits, std::uint8_t* streams, std::ptrdiff_t step) noexcept;
    /// To the accumulators; or, of one digit, the sums of (u - z) q to column_tile::sums where that is given.
    void (*multiply)(const weight_run&, const column_tile&, int digits) noexcept;
};

/// Tiles narrow from the full one: 8, 4, 2, 1 or 6, 3, 2, 1 columns.
[[nodiscard]] constexpr int next_tile(int columns) noexcept { return columns == 3 ? 2 : columns / 2; }

/// The widest tile for what is left.
[[nodiscard]] constexpr int tile_columns(int full, std::ptrdiff_t left) noexcept {
    while (full > left) full = next_tile(full);
    return full;
}

/// Products of floats: one fma for every value.
struct value_run {
    const float* values;           // lines, one a k
    std::ptrdiff_t blocks;
    std::ptrdiff_t length;         // k of a sub-block
    std::ptrdiff_t block_step;     // lines from one sub-block to the next
    const float* scale;            // lines; null: values are weights, and one chain runs through all sub-blocks
    std::ptrdiff_t scale_step;
};

/// The tile that column j of `columns` belongs to: full ones, then ever narrower ones.
struct tile_place {
    std::ptrdiff_t first;
    int columns;
};
[[nodiscard]] constexpr tile_place tile_of(int full, std::ptrdiff_t columns, std::ptrdiff_t j) noexcept {
    tile_place t{j / full * full, 0};
    t.columns = tile_columns(full, columns - t.first);
    while (j >= t.first + t.columns) {
        t.first += t.columns;
        t.columns = tile_columns(full, columns - t.first);
    }
    return t;
}

/// Products of floats whose codes are decoded in registers, for few columns: two panels at once.
struct coded_run {
    const decoder* rule;
    const std::uint8_t* cells;     // of the first sub-block
    std::ptrdiff_t panel_step;     // bytes
    std::ptrdiff_t blocks;
    std::ptrdiff_t length;         // k of a sub-block, a multiple of coded_step()
    const float* scale;            // lines
    std::ptrdiff_t scale_step;
    std::ptrdiff_t scale_panel;
    std::ptrdiff_t ahead;          // as in weight_run
};

/// What is known of one sub-block of one column after rounding it to integers.
struct rounded_stats {
    std::int32_t total;            // sum of q
    std::int32_t absolute;         // sum of |q|
    std::int32_t largest;          // |q|
    std::int32_t nonzero;          // of x
};

/// Columns and panels of a full tile of `coded`.
inline constexpr int coded_columns = 2;
inline constexpr int coded_panels = 2;

/// k that codes of so many bits are decoded by, in registers; 0 where they are not.
[[nodiscard]] constexpr int coded_step(int bits) noexcept { return bits == 4 ? 8 : bits == 6 ? 32 : bits == 8 || bits == 16 ? 4 : 0; }

/// The kernels of one instruction-set level.
struct kernel_table {
    int panels;                    // of a digit tile
    const digit_kernels* narrow;   // for codes of at most 127, flushed as weight_run::flush says
    const digit_kernels* wide;     // for all codes
    /// Codes of the k-quads [first, first + quads) of a panel as bytes, a line of 16 x 4 a quad, through a table of 16
    /// bytes where one is given.
    void (*unpack)(const std::uint8_t* panel, int bits, std::ptrdiff_t first, std::ptrdiff_t quads, const std::uint8_t* table,
                   std::uint8_t* out) noexcept;
    /// Groups [first, first + count) of a panel as lines: scale * unit; the offset, or with `fold` -(scale * offset).
    void (*expand)(const scale_source&, std::ptrdiff_t first, std::ptrdiff_t count, float unit, bool fold, float* scale, float* offset) noexcept;
    /// Largest |x| as integer bits: at least 0x7f800000 if there is a NaN or Inf.
    std::uint32_t (*largest_bits)(const float* x, std::ptrdiff_t n) noexcept;
    /// q = RNE(clamp(x * inv, -limit, limit)).
    rounded_stats (*round)(const float* x, std::ptrdiff_t n, float inv, float limit, std::int32_t* q) noexcept;
    int value_columns;             // of a full tile of `chain`
    void (*chain)(const value_run&, const column_tile&) noexcept;
    /// For rules with 4 bits and a table, small floating point, or 16 bits; tiles of at most coded_columns.
    void (*coded)(const coded_run&, const column_tile&) noexcept;
    codec_kernels codec;
};

/// The kernels of a level that shares all but its integer dots with another.
[[nodiscard]] constexpr kernel_table with_digits(kernel_table t, const digit_kernels& narrow, const digit_kernels& wide) noexcept {
    t.narrow = &narrow;
    t.wide = &wide;
    return t;
}

}  // namespace nibble::detail
