// Scale schemes: how the scale of a group (and its offset) is stored. The second of the three things that make a format.
//
//   scheme             stored per group           and above it                     decoded scale
//   none               nothing                                                     1
//   f32 f16 bf16       the scale                                                   itself, exact
//   e8m0               a power of two                                              2^(code - 127)
//   e4m3               FP8 E4M3, positive                                          e4m3
//   e4m3_f32           FP8 E4M3, positive         one float for the tensor         f32(e4m3 * tensor)
//   two_level          b-bit integer              fp16 d per `span` groups         d * code, exact
//   double_quantized   8-bit dynamic-map code     float per `span` groups and      f32(f32(map[code] * absmax) + mean)
//                                                 one mean for the tensor
//
// Offsets (what zero means) follow the scheme:
//   none        w = s * value(u)
//   zero_point  w = s * (u - z)          z: integer of the code's width
//   float_zero  w = s * f32(u - z)       z: float stored like the scale (HQQ)
//   minimum     w = f32(s * u) + m       m: stored like the scale; two_level: m = -f32(dmin * code)
//
// Scales are kept in lines of 16, one lane a row of a panel. A line of b-bit integers is stored in planes of 8, 4, 2
// and 1 bits (6 = 4 + 2): lane r of a p-bit plane is bits p*(r / L) .. of byte r % L, where L = 2p bytes is the plane.
#pragma once

#include "formats/half.hpp"
#include "formats/minifloat.hpp"

namespace nibble::inline NIBBLE_ABI {

/// How scales are stored.
enum class scale_storage : std::uint8_t { none, f32, f16, bf16, e8m0, e4m3, e4m3_f32, two_level, double_quantized };

/// What a code is measured from.
enum class offset_kind : std::uint8_t { none, zero_point, float_zero, minimum };

/// A scale scheme: storage and, for the schemes with a second level, its numbers.
struct scale_scheme {
    scale_storage storage = scale_storage::f32;
    int bits = 32;               ///< of one group's stored scale
    bool is_signed = false;      ///< two_level: codes are -2^(bits-1) .. 2^(bits-1) - 1
    index span = 0;              ///< groups that share one second-level scale

    friend constexpr bool operator==(const scale_scheme&, const scale_scheme&) noexcept = default;
};

namespace scales {
inline constexpr scale_scheme none{scale_storage::none, 0};
inline constexpr scale_scheme f32{scale_storage::f32, 32};
inline constexpr scale_scheme f16{scale_storage::f16, 16};
inline constexpr scale_scheme bf16{scale_storage::bf16, 16};
inline constexpr scale_scheme e8m0{scale_storage::e8m0, 8};
inline constexpr scale_scheme e4m3{scale_storage::e4m3, 8};
inline constexpr scale_scheme e4m3_f32{scale_storage::e4m3_f32, 8};
/// QLoRA double quantization: 8-bit codes of the bitsandbytes dynamic map, 256 groups to a second-level absmax.
inline constexpr scale_scheme double_quantized{scale_storage::double_quantized, 8, true, 256};
/// The K-quants: `bits`-bit scales, `groups` of them to one fp16 super-scale.
[[nodiscard]] constexpr scale_scheme two_level(int bits, bool is_signed, index groups) noexcept {
    return {scale_storage::two_level, bits, is_signed, groups};
}
}  // namespace scales

[[nodiscard]] constexpr const char* name_of(scale_storage s) noexcept {
    switch (s) {
        case scale_storage::none: return "none";
        case scale_storage::f32: return "f32";
        case scale_storage::f16: return "f16";
        case scale_storage::bf16: return "bf16";
        case scale_storage::e8m0: return "e8m0";
        case scale_storage::e4m3: return "e4m3";
        case scale_storage::e4m3_f32: return "e4m3_f32";
        case scale_storage::two_level: return "two_level";
        case scale_storage::double_quantized: return "double_quantized";
    }
    return "?";
}

[[nodiscard]] constexpr const char* name_of(offset_kind k) noexcept {
    switch (k) {
        case offset_kind::none: return "none";
        case offset_kind::zero_point: return "zero_point";
        case offset_kind::float_zero: return "float_zero";
        case offset_kind::minimum: return "minimum";
    }
    return "?";
}

namespace detail {

// Lines of 16 unsigned b-bit integers (b = 1 .. 8): 2b bytes.

[[nodiscard]] constexpr unsigned get_lane(const std::uint8_t* line, int bits, int lane) noexcept {
    unsigned value = 0;
    int done = 0;
    for (int plane = 8; plane != 0; plane >>= 1) {
        if ((bits & plane) == 0) continue;
        const int length = 2 * plane;
        value |= ((static_cast<unsigned>(line[lane % length]) >> (plane * (lane / length))) & ((1u << plane) - 1)) << done;
        line += length;
        done += plane;
    }
    return value;
}

constexpr void set_lane(std::uint8_t* line, int bits, int lane, unsigned value) noexcept {
    for (int plane = 8; plane != 0; plane >>= 1) {
        if ((bits & plane) == 0) continue;
        const int length = 2 * plane;
        const int shift = plane * (lane / length);
        const unsigned mask = ((1u << plane) - 1) << shift;
        std::uint8_t& byte = line[lane % length];
        byte = static_cast<std::uint8_t>((byte & ~mask) | ((value << shift) & mask));
        value >>= plane;
        line += length;
    }
}

// All 16 lanes at once, one value a byte: a plane of P bits takes the lanes 2P at a time, as one word of 2P bytes.

template <class Word>
inline const std::uint8_t* get_plane(const std::uint8_t* line, int done, std::uint8_t* values) noexcept {
    constexpr int plane = sizeof(Word) / 2;
    constexpr auto mask = static_cast<Word>(0x0101010101010101u * ((1u << plane) - 1));
    Word stored;
    std::memcpy(&stored, line, sizeof stored);
    for (int i = 0; i < 8 / plane; ++i) {
        Word word;
        std::memcpy(&word, values + i * static_cast<int>(sizeof word), sizeof word);
        word = static_cast<Word>(word | static_cast<Word>((stored >> (plane * i)) & mask) << done);
        std::memcpy(values + i * static_cast<int>(sizeof word), &word, sizeof word);
    }
    return line + sizeof stored;
}
inline void get_line(const std::uint8_t* line, int bits, std::uint8_t* values) noexcept {
    if (bits == 8) {
        std::memcpy(values, line, 16);
        return;
    }
    std::memset(values, 0, 16);
    if ((bits & 4) != 0) line = get_plane<std::uint64_t>(line, 0, values);
    if ((bits & 2) != 0) line = get_plane<std::uint32_t>(line, bits & 4, values);
    if ((bits & 1) != 0) get_plane<std::uint16_t>(line, bits & 6, values);
}

template <class Word>
inline std::uint8_t* set_plane(std::uint8_t* line, int done, const std::uint8_t* values) noexcept {
    constexpr int plane = sizeof(Word) / 2;
    constexpr auto mask = static_cast<Word>(0x0101010101010101u * ((1u << plane) - 1));
    Word stored = 0;
    for (int i = 0; i < 8 / plane; ++i) {
        Word word;
        std::memcpy(&word, values + i * static_cast<int>(sizeof word), sizeof word);
        stored = static_cast<Word>(stored | static_cast<Word>((word >> done) & mask) << (plane * i));
    }
    std::memcpy(line, &stored, sizeof stored);
    return line + sizeof stored;
}
inline void set_line(std::uint8_t* line, int bits, const std::uint8_t* values) noexcept {
    if (bits == 8) {
        std::memcpy(line, values, 16);
        return;
    }
    if ((bits & 4) != 0) line = set_plane<std::uint64_t>(line, 0, values);
    if ((bits & 2) != 0) line = set_plane<std::uint32_t>(line, bits & 4, values);
    if ((bits & 1) != 0) set_plane<std::uint16_t>(line, bits & 6, values);
}

/// The signed dynamic map of bitsandbytes, 7 exponent levels, ascending. torch.linspace computes
/// fma(step, i, start) in the first half and fma(-step, n - 1 - i, end) in the second; this does so in double, rounded
/// once, which is what an fma is.
struct dynamic_map {
    std::array<float, 256> values{};
    std::array<float, 255> thresholds{};
};

NIBBLE_FP_BEGIN

[[nodiscard]] constexpr dynamic_map make_dynamic_map() noexcept {
    dynamic_map m;
    std::size_t at = 0;
    constexpr float decade[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
    m.values[at++] = 0.0f;
    for (int i = 0; i < 7; ++i) {
        const int n = (1 << i) + 1;
        const float start = 0.1f;
        const float end = 1.0f;
        const float step = (end - start) / static_cast<float>(n - 1);
        float previous = 0.0f;
        for (int k = 0; k < n; ++k) {
            const double from = k < n / 2 ? static_cast<double>(start) : static_cast<double>(end);
            const double steps = k < n / 2 ? static_cast<double>(k) : -static_cast<double>(n - 1 - k);
            const float edge = static_cast<float>(static_cast<double>(step) * steps + from);
            if (k > 0) {
                const float middle = (previous + edge) / 2.0f;
                const float value = decade[i] * middle;
                m.values[at++] = value;
                m.values[at++] = -value;
            }
            previous = edge;
        }
    }
    m.values[at++] = 1.0f;
    for (std::size_t i = 1; i < 256; ++i) {  // insertion sort: constexpr, 256 entries
        const float v = m.values[i];
        std::size_t j = i;
        while (j > 0 && m.values[j - 1] > v) {
            m.values[j] = m.values[j - 1];
            --j;
        }
        m.values[j] = v;
    }
    for (std::size_t i = 0; i < 255; ++i)
        m.thresholds[i] =
            static_cast<float>((static_cast<double>(m.values[i]) + static_cast<double>(m.values[i + 1])) * 0.5);
    return m;
}

inline constexpr dynamic_map signed_dynamic_map = make_dynamic_map();

/// Nearest entry of the dynamic map, ties to the lower one.
[[nodiscard]] inline unsigned encode_dynamic(float t) noexcept {
    unsigned low = 0;
    unsigned high = 255;
    while (low < high) {
        const unsigned middle = (low + high) / 2;
        if (t > signed_dynamic_map.thresholds[middle]) low = middle + 1;
        else high = middle;
    }
    return low;
}

NIBBLE_FP_END

// One stored scale or float offset of the direct schemes: bits to float and back.

[[nodiscard]] constexpr int stored_bytes(scale_storage s) noexcept {
    switch (s) {
        case scale_storage::f32: return 4;
        case scale_storage::f16:
        case scale_storage::bf16: return 2;
        case scale_storage::none: return 0;
        default: return 1;
    }
}

[[nodiscard]] inline std::uint32_t load_bits(const std::uint8_t* at, int bytes) noexcept {
    std::uint32_t u = 0;
    std::memcpy(&u, at, static_cast<std::size_t>(bytes));
    return u;
}
inline void store_bits(std::uint8_t* at, int bytes, std::uint32_t u) noexcept {
    if (bytes == 2) std::memcpy(at, &u, 2);  // the usual ones, without a call
    else if (bytes == 1) std::memcpy(at, &u, 1);
    else std::memcpy(at, &u, static_cast<std::size_t>(bytes));
}

[[nodiscard]] constexpr float decode_stored(scale_storage s, std::uint32_t u) noexcept {
    switch (s) {
        case scale_storage::f32: return float_of(u);
        case scale_storage::f16: return fp16_to_float(static_cast<std::uint16_t>(u));
        case scale_storage::bf16: return bf16_to_float(static_cast<std::uint16_t>(u));
        case scale_storage::e8m0: return e8m0::decode(u);
        case scale_storage::e4m3:
        case scale_storage::e4m3_f32: return fp8_e4m3::decode(u);
        default: return 1.0f;
    }
}

[[nodiscard]] constexpr std::uint32_t encode_stored(scale_storage s, float x) noexcept {
    switch (s) {
        case scale_storage::f32: return bits_of(x);
        case scale_storage::f16: return float_to_fp16(x);
        case scale_storage::bf16: return float_to_bf16(x);
        case scale_storage::e8m0: return e8m0::encode(x);
        case scale_storage::e4m3:
        case scale_storage::e4m3_f32: return fp8_e4m3::encode_ieee(x);
        default: return 0;
    }
}

}  // namespace detail
}  // namespace nibble
