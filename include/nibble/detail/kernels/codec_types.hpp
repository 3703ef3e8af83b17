// What crosses the border between quantize(), dequantize() and their kernels: raw pointers and sizes. Lines are 16 floats.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble::inline NIBBLE_ABI::detail {

/// What is rounded to a code.
enum class scaled_weight : std::uint8_t {
    product,     // x * inverse
    shifted,     // x * inverse + offset
    difference,  // (x - offset) * inverse
    quotient,    // (x - offset) / scale
};

/// How it is rounded.
enum class rounding_rule : std::uint8_t {
    integer,    // clamp(RNE(t) + zero, lowest, highest); zero is the offset of the group if zero_is_offset
    threshold,  // order[number of thresholds below t]
    minifloat,  // RNE to mantissa_bits, saturated at max_value
    truncated,  // the integer part of clamp(t + bias, 0, highest)
    away,       // clamp(t, lowest - zero, highest - zero), halves away from zero, + zero
};

/// The code of a weight at scale 1 / inverse, in at most 8 bits.
struct encoder {
    rounding_rule rule;
    scaled_weight weight;
    bool zero_is_offset;
    int zero, lowest, highest;
    float thresholds[15];             // ascending
    bool ordered;                     // order is 0, 1, 2, ...
    std::uint8_t order[16];
    int bits, mantissa_bits;
    int least_exponent;               // of a normal number, as float has it: 1 .. 254
    bool minus_zero;                  // there is a code for it
    float max_value;
    float bias;
};

/// One row of weights and the codes it becomes, one byte each.
struct row_encoding {
    const float* x;
    std::ptrdiff_t cols;
    std::ptrdiff_t group, padded_group;  // columns; codes of group g start at g * padded_group
    const float* inverse;                // [groups]; of a quotient the scales: at 0 the codes stay, at -0 they become 0
    const float* offset;                 // [groups]
    std::uint8_t* codes;
    const float* next;                   // as for scan
};

/// Where unsigned numbers of `bits` bits lie: 8 / bits of them share a byte, `width` bytes make a run. Number i of a
/// run is in byte i % width, i / width places from the low end. Widths are 1 or multiples of 4.
struct bit_plane {
    int at = 0;    // first byte
    int bits = 0;  // 0: there is no such plane
    int width = 1;
};

/// The numbers of a block, of at most 8 bits each: (low | high << low.bits) ^ flip.
struct block_numbers {
    int count;         // a multiple of 4
    bit_plane low, high;
    unsigned flip;
    bool is_k4;        // not in planes: the 8 scales and 8 minima of 6 bits of Q4_K and Q5_K, from byte 4 on
};

/// Blocks of 16 rows.
struct block_rows {
    const std::uint8_t* from;    // the first block of the first row
    std::ptrdiff_t row_step;     // bytes
    std::ptrdiff_t block_bytes;
    std::ptrdiff_t cols;
    int live;                    // rows that count: codes of the others, and those past the last column, become 0
    const std::uint8_t* next;    // as many bytes that will be read soon, row after row: they are fetched meanwhile
};

/// 16 groups of n weights that are searched together, a group to a lane: line i holds weight i of each.
struct search_lines {
    const float* x;
    const float* w;        // weights of the squared errors
    std::ptrdiff_t n;      // at most 256
    float* scale;          // a line
    float* offset;         // a line
    std::uint32_t* codes;  // a line of words for every four weights, the first in the low byte
};

/// What is tried for weights in 0 .. nmax: inverses of the step, (rmin + rdelta k + nmax) / range, 0 <= k <= steps.
struct affine_search {
    int nmax;
    float rmin;
    float rdelta;
    int steps;
    bool absolute;  // compares absolute instead of squared errors
};

/// The storage of scales that are floats.
enum class stored_float : std::uint8_t { f32, f16, bf16 };

/// Rounds scales (and float offsets) to their stored type.
struct scale_rounding {
    stored_float storage;
    bool rounds_offset;        // the offset is stored like the scale
    float low, high;           // the extreme values of a code at scale 1, offset 0
    bool subtracts, adds;      // weight = scale * (value - offset), scale * value + offset
};

/// What a decoder does with a code u: value(u), then scale and offset.
struct decoder {
    int bits;                 // 1 .. 8, or 16
    const float* table;       // value of every code, or null: step * u + base
    float step, base;
    bool subtracts, adds;     // scale * (u - offset), scale * u + offset
    bool is_minifloat;        // small floating point with a table for the special codes: ((u + add) & mask) > above
    int special_add, special_mask, special_above;
    // The bytes of its values as bf16, without sign. upper = magnitude >> 3 & high_mask, and the low four bits of the
    // magnitude find them: in the second pair of tables where upper is 0, since there are the subnormal numbers.
    int high_mask;
    std::uint8_t low[16], high[16], low_start[16], high_start[16];
    bool is_fp16;             // of 16 bits: fp16, else bf16
};

/// The kernels of quantize() and dequantize() at one instruction-set level.
struct codec_kernels {
    /// low, high: [groups], the range of each group as comparing in ascending order finds it, so of equal zeros the first.
    /// Returns the bits of the largest magnitude; NaN and Inf are above every number, and then the ranges mean nothing.
    /// next: cols weights that will be scanned soon; half of them are fetched meanwhile, and half by encode. Or x itself.
    std::uint32_t (*scan)(const float* x, std::ptrdiff_t cols, std::ptrdiff_t group, float* low, float* high, const float* next) noexcept;
    /// The same, but high is the largest magnitude and low its opposite.
    std::uint32_t (*scan_magnitudes)(const float* x, std::ptrdiff_t cols, std::ptrdiff_t group, float* low, float* high, const float* next) noexcept;
    /// 1 / scale, and 0 where that is not finite.
    void (*invert)(const float* scale, std::ptrdiff_t count, float* inverse) noexcept;
    /// stored: bits; scale and offset become what is stored. False, and anything written, when a number is not finite,
    /// before or after, or a code would decode to one that is not.
    bool (*round_scales)(const scale_rounding& r, std::ptrdiff_t count, float* scale, float* offset,
                         std::uint32_t* stored_scale, std::uint32_t* stored_offset) noexcept;
    void (*encode)(const encoder& e, const row_encoding& row) noexcept;
    void (*encode_fp16)(const float* x, std::ptrdiff_t count, std::uint16_t* codes) noexcept;  // saturating
    void (*encode_bf16)(const float* x, std::ptrdiff_t count, std::uint16_t* codes) noexcept;
    /// Cells of 16 rows of codes: `stride` bytes apart, one byte a code (two for 16 bits), zero up to a multiple of 64.
    /// `stream`: past the caches, for 64-byte aligned cells that will not be read soon.
    void (*pack)(const std::uint8_t* codes, std::ptrdiff_t stride, int bits, std::uint8_t* cells, std::ptrdiff_t bytes, bool stream) noexcept;
    /// Weights of positions 4 * first .. 4 * (first + quads) - 1 of a panel, one line each, `stride` floats apart.
    void (*decode)(const decoder& d, const std::uint8_t* panel, std::ptrdiff_t first, std::ptrdiff_t quads,
                   const float* scale, const float* offset, float* out, std::ptrdiff_t stride) noexcept;
    /// Whether there are special codes in so many lines of 64 bytes.
    bool (*has_special)(const decoder& d, const std::uint8_t* bytes, std::ptrdiff_t lines) noexcept;
    /// Rows of 16 words of 32 bits to columns; strides in bytes.
    void (*transpose)(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to, std::ptrdiff_t to_stride) noexcept;
    void (*load_fp16)(const std::uint16_t* from, std::ptrdiff_t count, float* to) noexcept;
    void (*load_bf16)(const std::uint16_t* from, std::ptrdiff_t count, float* to) noexcept;
    void (*load_f64)(const double* from, std::ptrdiff_t count, float* to) noexcept;
    /// Cells of the codes of blocks, of so many bits; `bytes` and `stream` as for pack.
    void (*unpack_blocks)(const block_rows& rows, const block_numbers& codes, int bits, std::uint8_t* cells, std::ptrdiff_t bytes, bool stream) noexcept;
    /// The numbers of one block of each row: bytes, 16 to a line.
    void (*unpack_numbers)(const block_rows& rows, const block_numbers& numbers, std::uint8_t* lines) noexcept;
    /// ggml's make_qkx2_quants and make_qkx3_quants: scale, minimum <= 0, codes.
    void (*search_affine)(const search_lines&, const affine_search&) noexcept;
    /// ggml's make_qx_quants: scale and codes 0 .. 2 * nmax - 1; no offset.
    void (*search_symmetric)(const search_lines&, int nmax) noexcept;
};

}  // namespace nibble::detail
