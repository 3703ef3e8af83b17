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
};

/// How it is rounded.
enum class rounding_rule : std::uint8_t {
    integer,    // clamp(RNE(t) + zero, lowest, highest); zero is the offset of the group if zero_is_offset
    threshold,  // order[number of thresholds below t]
    minifloat,  // RNE to mantissa_bits, saturated at max_value
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
};

/// One row of weights and the codes it becomes, one byte each.
struct row_encoding {
    const float* x;
    std::ptrdiff_t cols;
    std::ptrdiff_t group, padded_group;  // columns; codes of group g start at g * padded_group
    const float* inverse;                // [groups]
    const float* offset;                 // [groups]
    std::uint8_t* codes;
    const float* next;                   // as for scan
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
};

}  // namespace nibble::detail
