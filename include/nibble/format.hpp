// What a code means. A code format maps the codes 0 .. 2^bits - 1 to values at scale 1; it says nothing of scales,
// offsets or groups (see recipe.hpp for whole formats such as q4_k).
//
//   decode class   value of code u               kernels read it as
//   integer        step * u + base               an exact small integer
//   table          values[u]                     a lookup; with `unit`, values[u] / unit is an exact small integer too
//   wide           16-bit floating point         bits
//
// Codes are stored unsigned: a symmetric int4 code is q + 8. A format is a type with a static `descriptor()`; the
// run-time side of the library only ever sees the descriptor, so a matrix read from a file and one quantized here have
// the same type. formats/list.hpp registers them all.
#pragma once

#include <array>
#include <bit>
#include <concepts>
#include <cstring>
#include <memory>

#include "error.hpp"

namespace nibble::inline NIBBLE_ABI {

/// How codes become values; the only property of a format that changes a kernel's instructions.
enum class decode_class : std::uint8_t { integer, table, wide };

/// A code format at run time.
struct code_format {
    const char* name = "";
    const char* use_when = "";     ///< one line for people who choose
    int bits = 0;                  ///< 1 to 8, or 16
    decode_class decode = decode_class::integer;
    float unit = 0.0f;             ///< > 0: every value is unit times an integer of at most 8 bits; 0: products use the values as floats
    const float* values = nullptr; ///< value of every code [2^bits]; null for 16-bit formats
    float max_value = 0.0f;        ///< the value that an absmax quantizer gives to the largest weight
    float min_value = 0.0f;        ///< the smallest value that encode() returns the code of
    unsigned zero_code = 0;        ///< the code of a zero weight
    int mantissa_bits = 0;         ///< small floating point: stored bits of the mantissa
    unsigned (*encode)(const code_format&, float) = nullptr; ///< nearest code of a finite value; saturates
    float (*decode_wide)(unsigned) = nullptr;                ///< 16-bit formats only
    const float* thresholds = nullptr;      ///< codebooks: the midpoints between neighbours, ascending [entries - 1]
    const std::uint8_t* order = nullptr;    ///< codebooks: the codes in ascending order of value [entries]

    /// Whether products can run on exact integers.
    [[nodiscard]] constexpr bool integral() const noexcept { return unit > 0.0f; }
    /// Number of codes.
    [[nodiscard]] constexpr std::uint32_t code_count() const noexcept { return std::uint32_t{1} << bits; }
    /// The exact value of a code at scale 1. NaN where the format says so.
    [[nodiscard]] float value(unsigned code) const noexcept {
        return decode == decode_class::wide ? decode_wide(code) : values[code];
    }
};

/// A code format and, for one made at run time, what keeps its table alive.
class format_handle {
public:
    format_handle() noexcept = default;
    format_handle(const code_format& builtin) noexcept : format_(&builtin) {}
    explicit format_handle(std::shared_ptr<const code_format> owned) noexcept
        : owner_(std::move(owned)), format_(owner_.get()) {}

    [[nodiscard]] const code_format& operator*() const noexcept { return *format_; }
    [[nodiscard]] const code_format* operator->() const noexcept { return format_; }

private:
    std::shared_ptr<const code_format> owner_;
    const code_format* format_ = nullptr;
};

/// A type that names a code format: nibble::int4, nibble::nf4, or a user's own codebook.
template <class F>
concept code_format_type = requires {
    { F::descriptor() } noexcept -> std::same_as<const code_format&>;
};

namespace detail {

[[nodiscard]] constexpr std::uint32_t bits_of(float x) noexcept { return std::bit_cast<std::uint32_t>(x); }
[[nodiscard]] constexpr float float_of(std::uint32_t u) noexcept { return std::bit_cast<float>(u); }
[[nodiscard]] constexpr bool is_finite_bits(std::uint32_t u) noexcept { return (u & 0x7fffffffu) < 0x7f800000u; }

/// x in memory is NaN or Inf. Reads integer bits: -ffinite-math-only deletes every other test.
[[nodiscard]] inline bool finite_in_memory(const float* x) noexcept {
    std::uint32_t u;
    std::memcpy(&u, x, sizeof u);
    return is_finite_bits(u);
}

/// 2^exponent for -149 <= exponent <= 127, exactly.
[[nodiscard]] constexpr float power_of_two(int exponent) noexcept {
    return exponent >= -126 ? float_of(static_cast<std::uint32_t>(exponent + 127) << 23)
                            : float_of(std::uint32_t{1} << (exponent + 149));
}

/// The exponent field of x without its bias: floor(log2|x|) for normal x, -127 for zero and subnormal x. From the bits,
/// never from log2f, which is off by one just below powers of two in common math libraries.
[[nodiscard]] constexpr int exponent_of(float x) noexcept {
    return static_cast<int>((bits_of(x) >> 23) & 0xff) - 127;
}

NIBBLE_FP_BEGIN

/// Round to nearest, ties to even, for |x| <= 2^22: the float adder does it. Not nearbyint: that is a call on plain
/// x86-64 and reads the rounding mode that the host program left.
[[nodiscard]] constexpr float round_even(float x) noexcept {
    constexpr float magic = 12582912.0f;  // 1.5 * 2^23
    const float shifted = x + magic;
    return shifted - magic;
}

[[nodiscard]] constexpr float clamp(float x, float low, float high) noexcept {
    return x < low ? low : x > high ? high : x;
}

/// RN(product + c), rounded once to float: a correctly rounded fma for CPUs without one. `product` is a float times a
/// float, which is exact in double. The double sum can be inexact and then land on a float midpoint (or, for results
/// near the subnormal range, on a coarser one); rounding it to odd first makes the second rounding right
/// (Boldo and Melquiond 2008).
[[nodiscard]] inline float fma_rounded(double product, float c) noexcept {
    const double addend = static_cast<double>(c);
    double sum = product + addend;
    auto u = std::bit_cast<std::uint64_t>(sum);
    const bool midpoint = (u & 0x1fffffffu) == 0x10000000u;
    const std::uint64_t magnitude = u & 0x7fffffffffffffffull;
    const bool tiny = magnitude < 0x3820000000000000ull && magnitude != 0;  // below 2^-125
    if (midpoint || tiny) [[unlikely]] {
        const double part = sum - product;
        const double lost = (product - (sum - part)) + (addend - part);
        if (lost != 0.0 && (u & 1) == 0) {
            u = (lost > 0.0) == (sum > 0.0) ? u + 1 : u - 1;
            sum = std::bit_cast<double>(u);
        }
    }
    return static_cast<float>(sum);
}

/// |x| by its sign bit.
[[nodiscard]] constexpr float magnitude(float x) noexcept { return float_of(bits_of(x) & 0x7fffffffu); }

NIBBLE_FP_END

}  // namespace detail
}  // namespace nibble
