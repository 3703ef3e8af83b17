// The tensor types of ggml, which GGUF files hold: blocks of bytes to a qmatrix and back, nothing rounded either way.
//
//     auto m = nibble::io::ggml::unpack(nibble::io::ggml::type::q4_k, bytes, rows, cols);   // result<qmatrix>
//     auto b = nibble::io::ggml::pack(m.value());                                           // result<vector<uint8_t>>
//
// A row is a run of whole blocks, ceil(cols / block_elements) of them; rows follow each other. ggml itself refuses rows
// that end inside a block. Here the last block of a row may be partial: unpack ignores what lies beyond the last
// column, and pack fills it with scales of zero and the code of zero (code 0 where there is a minimum).
//
// What is kept and what is not, so that pack(unpack(bytes)) == bytes:
//   all types   every bit, as long as rows end with their blocks; but
//   NVFP4       a scale byte of 7F means 0 in ggml, and NaN in E4M3: it is read as 0 and written as 0
//   TQ1_0       a byte of five trits that no quantizer writes has a canonical twin, which is what pack writes
//   Q8_1, Q8_K  ggml's activations: unpack reads them without their sums, and pack does not write them
// Refused: scales, minima and weights that are Inf or NaN (so does ggml's validate_row_data), MXFP4 exponent FF,
// NVFP4 scale bytes with a sign bit.
#pragma once

#include <atomic>
#include <optional>
#include <span>
#include <vector>

#include "../executor.hpp"
#include "../formats/list.hpp"
#include "../qmatrix.hpp"

namespace nibble::inline NIBBLE_ABI::io::ggml {

// clang-format off
/// Every tensor type of ggml with its number in GGUF files. Numbers that are missing belong to types ggml has removed.
enum class type : std::uint32_t {
    f32 = 0, f16 = 1, q4_0 = 2, q4_1 = 3, q5_0 = 6, q5_1 = 7, q8_0 = 8, q8_1 = 9,
    q2_k = 10, q3_k = 11, q4_k = 12, q5_k = 13, q6_k = 14, q8_k = 15,
    iq2_xxs = 16, iq2_xs = 17, iq3_xxs = 18, iq1_s = 19, iq4_nl = 20, iq3_s = 21, iq2_s = 22, iq4_xs = 23,
    i8 = 24, i16 = 25, i32 = 26, i64 = 27, f64 = 28, iq1_m = 29, bf16 = 30, tq1_0 = 34, tq2_0 = 35,
    mxfp4 = 39, nvfp4 = 40, q1_0 = 41, q2_0 = 42,
};
// clang-format on

namespace detail {

/// Where unsigned numbers of `bits` bits lie: 8 / bits of them share a byte, `width` bytes make a run. Number i of a
/// run is in byte i % width, i / width places from the low end. Every bit field of ggml but two has this form.
struct plane {
    int at = 0;    // first byte
    int bits = 0;  // 0: there is no such plane
    int width = 1;
};

/// One tensor type.
struct block_type {
    type id;
    const char* name;  // as ggml spells it
    int elements;      // of a block
    int bytes;
    const code_format* format = nullptr;  // null: sizes are all that is known of it
    scale_scheme scheme = scales::f16;
    offset_kind offset = offset_kind::none;
    int group = 0;                          // elements that share a scale
    plane low = {}, high = {};              // codes: low | high << low.bits
    plane scale_low = {}, scale_high = {};  // stored scales of the groups (then the minima, Q2_K)
    int d_at = -1;                          // fp16 (Q8_K: fp32): the scale, or the super-scale
    int m_at = -1;                          // fp16: the minimum, or the super-minimum
    const char* matrix_name = "";           // of the qmatrix: the recipe with these bytes
    unsigned flip = 0;                      // code = byte ^ flip: 80 makes a signed byte unsigned
    unsigned scale_flip = 0;
};

/// The table below in short words.
namespace table {
inline constexpr scale_scheme none = scales::none, half = scales::f16, single = scales::f32, e8m0 = scales::e8m0, e4m3 = scales::e4m3;
[[nodiscard]] constexpr scale_scheme with_sign(int bits, index span) noexcept {
    return scales::two_level(bits, true, span);
}
[[nodiscard]] constexpr scale_scheme no_sign(int bits, index span) noexcept {
    return scales::two_level(bits, false, span);
}
inline constexpr offset_kind plain = offset_kind::none, least = offset_kind::minimum;
template <class F>
inline constexpr const code_format* codes = &F::format;

// clang-format off
inline constexpr block_type types[] = {
    // number, name, elements and bytes of a block, code format, scale scheme, offset, group,
    //     planes of the codes (low, high) and of the stored scales (low, high), d, m, name of the matrix, flips
    {type::f16,   "F16",      1,   2, codes<fp16>,           none,           plain,   1,
     {},          {},           {},           {},           -1, -1, "fp16"},
    {type::bf16,  "BF16",     1,   2, codes<nibble::bf16>,   none,           plain,   1,
     {},          {},           {},           {},           -1, -1, "bf16"},
    {type::q4_0,  "Q4_0",    32,  18, codes<int4>,           half,           plain,  32,
     {2, 4, 16},  {},           {},           {},            0, -1, "q4_0"},
    {type::q4_1,  "Q4_1",    32,  20, codes<int4>,           half,           least,  32,
     {4, 4, 16},  {},           {},           {},            0,  2, "q4_1"},
    {type::q5_0,  "Q5_0",    32,  22, codes<int5>,           half,           plain,  32,
     {6, 4, 16},  {2, 1, 1},    {},           {},            0, -1, "q5_0"},
    {type::q5_1,  "Q5_1",    32,  24, codes<int5>,           half,           least,  32,
     {8, 4, 16},  {4, 1, 1},    {},           {},            0,  2, "q5_1"},
    {type::q8_0,  "Q8_0",    32,  34, codes<int8>,           half,           plain,  32,
     {2, 8, 32},  {},           {},           {},            0, -1, "q8_0", 0x80},
    {type::q2_k,  "Q2_K",   256,  84, codes<int2>,           no_sign(4, 16), least,  16,
     {16, 2, 32}, {},           {0, 4, 16},   {},           80, 82, "q2_k"},
    {type::q3_k,  "Q3_K",   256, 110, codes<int3>,           with_sign(6, 16), plain,  16,
     {32, 2, 32}, {0, 1, 32},   {96, 4, 8},   {104, 2, 4}, 108, -1, "q3_k"},
    {type::q4_k,  "Q4_K",   256, 144, codes<int4>,           no_sign(6, 8),  least,  32,
     {16, 4, 32}, {},           {},           {},            0,  2, "q4_k"},
    {type::q5_k,  "Q5_K",   256, 176, codes<int5>,           no_sign(6, 8),  least,  32,
     {48, 4, 32}, {16, 1, 32},  {},           {},            0,  2, "q5_k"},
    {type::q6_k,  "Q6_K",   256, 210, codes<int6>,           with_sign(8, 16), plain,  16,
     {0, 4, 64},  {128, 2, 32}, {192, 8, 16}, {},          208, -1, "q6_k", 0, 0x80},
    {type::iq4_nl,"IQ4_NL",  32,  18, codes<nibble::iq4_nl>, half,           plain,  32,
     {2, 4, 16},  {},           {},           {},            0, -1, "iq4_nl"},
    {type::iq4_xs,"IQ4_XS", 256, 136, codes<nibble::iq4_nl>, with_sign(6, 8), plain,  32,
     {8, 4, 16},  {},           {4, 4, 1},    {2, 2, 1},     0, -1, "iq4_xs"},
    {type::tq1_0, "TQ1_0",  256,  54, codes<ternary>,        half,           plain, 256,
     {},          {},           {},           {},           52, -1, "tq1_0"},
    {type::tq2_0, "TQ2_0",  256,  66, codes<ternary>,        half,           plain, 256,
     {0, 2, 32},  {},           {},           {},           64, -1, "tq2_0"},
    {type::mxfp4, "MXFP4",   32,  17, codes<fp4_e2m1>,       e8m0,           plain,  32,
     {1, 4, 16},  {},           {0, 8, 1},    {},           -1, -1, "mxfp4_ggml"},
    {type::nvfp4, "NVFP4",   64,  36, codes<fp4_e2m1>,       e4m3,           plain,  16,
     {4, 4, 8},   {},           {0, 8, 4},    {},           -1, -1, "nvfp4_ggml"},
    {type::q1_0,  "Q1_0",   128,  18, codes<binary>,         half,           plain, 128,
     {2, 1, 1},   {},           {},           {},            0, -1, "q1_0"},
    {type::q2_0,  "Q2_0",    64,  18, codes<ternary>,        half,           plain,  64,
     {2, 2, 1},   {},           {},           {},            0, -1, "q2_0"},
    // Activations, read but not written: Q8_1 has the sum of its codes times the scale in the bytes left out, Q8_K the
    // sums of 16 codes.
    {type::q8_1,  "Q8_1",    32,  36, codes<int8>,           half,           plain,  32,
     {4, 8, 32},  {},           {},           {},            0, -1, "q8_0", 0x80},
    {type::q8_k,  "Q8_K",   256, 292, codes<int8>,           single,         plain, 256,
     {4, 8, 256}, {},           {},           {},            0, -1, "q8_k", 0x80},
    // Read by nobody here: numbers that are no weights, and codebooks of vectors.
    {type::f32, "F32", 1, 4}, {type::f64, "F64", 1, 8}, {type::i8, "I8", 1, 1},
    {type::i16, "I16", 1, 2}, {type::i32, "I32", 1, 4}, {type::i64, "I64", 1, 8},
    {type::iq2_xxs, "IQ2_XXS", 256, 66}, {type::iq2_xs, "IQ2_XS", 256, 74}, {type::iq3_xxs, "IQ3_XXS", 256, 98},
    {type::iq1_s, "IQ1_S", 256, 50},
    {type::iq3_s, "IQ3_S", 256, 110}, {type::iq2_s, "IQ2_S", 256, 82}, {type::iq1_m, "IQ1_M", 256, 56},
};
// clang-format on
}  // namespace table

[[nodiscard]] constexpr const block_type* find(type t) noexcept {
    for (const block_type& b : table::types)
        if (b.id == t) return &b;
    return nullptr;
}

}  // namespace detail

/// Elements of a block, 0 for a number that is no type of ggml's.
[[nodiscard]] constexpr index block_elements(type t) noexcept {
    const detail::block_type* b = detail::find(t);
    return b != nullptr ? b->elements : 0;
}
/// Bytes of a block, 0 for a number that is no type of ggml's.
[[nodiscard]] constexpr index block_bytes(type t) noexcept {
    const detail::block_type* b = detail::find(t);
    return b != nullptr ? b->bytes : 0;
}
/// "Q4_K"; "?" for a number that is no type of ggml's.
[[nodiscard]] constexpr const char* name(type t) noexcept {
    const detail::block_type* b = detail::find(t);
    return b != nullptr ? b->name : "?";
}
/// Whether unpack() knows the type. pack() knows the same but Q8_1 and Q8_K.
[[nodiscard]] constexpr bool is_supported(type t) noexcept {
    const detail::block_type* b = detail::find(t);
    return b != nullptr && b->format != nullptr;
}

namespace detail {

/// A block taken apart: 256 codes and 16 groups at most.
struct block {
    std::uint8_t code[256];
    std::uint8_t scale[32];  // stored scales of the groups, then the minima
    std::uint32_t d = 0;     // or, of a direct scheme, the scale
    std::uint16_t m = 0;     // or the minimum
};

[[nodiscard]] inline std::uint16_t load_u16(const std::uint8_t* at) noexcept {
    return static_cast<std::uint16_t>(at[0] | at[1] << 8);
}
inline void store_u16(std::uint8_t* at, std::uint16_t u) noexcept {
    at[0] = static_cast<std::uint8_t>(u & 0xff);
    at[1] = static_cast<std::uint8_t>(u >> 8);
}
[[nodiscard]] inline std::uint64_t load_u64(const std::uint8_t* at) noexcept {
    std::uint64_t u;
    std::memcpy(&u, at, 8);
    return u;
}
inline void store_u64(std::uint8_t* at, std::uint64_t u) noexcept { std::memcpy(at, &u, 8); }
[[nodiscard]] constexpr bool is_finite_fp16(std::uint16_t h) noexcept { return (h & 0x7c00u) != 0x7c00u; }
[[nodiscard]] constexpr bool is_finite_fp32(std::uint32_t u) noexcept { return (u & 0x7f800000u) != 0x7f800000u; }
[[nodiscard]] constexpr bool is_finite_bf16(std::uint16_t h) noexcept { return (h & 0x7f80u) != 0x7f80u; }

/// out[i] |= number i << done.
inline void read_plane(const std::uint8_t* bytes, const plane& p, int count, int done, std::uint8_t* out) noexcept {
    if (p.bits == 0) return;
    const unsigned mask = (1u << p.bits) - 1;
    const std::uint8_t* run = bytes + p.at;
    if (p.width % 8 == 0 && count % p.width == 0) {  // eight bytes at a time
        const std::uint64_t masks = mask * 0x0101010101010101u;
        for (int i = 0; i < count; run += p.width)
            for (int shift = 0; shift < 8 && i < count; shift += p.bits)
                for (int w = 0; w < p.width; w += 8, i += 8) store_u64(out + i, load_u64(out + i) | (load_u64(run + w) >> shift & masks) << done);
        return;
    }
    if (p.width == 1 && p.bits == 1 && count % 8 == 0) {  // a byte of eight bits at a time
        for (int i = 0; i < count; i += 8, ++run) {
            const std::uint64_t bit = *run * 0x0101010101010101u & 0x8040201008040201u;
            store_u64(out + i, load_u64(out + i) | ((bit + 0x7f7f7f7f7f7f7f7fu) >> 7 & 0x0101010101010101u) << done);
        }
        return;
    }
    for (int i = 0; i < count; run += p.width)
        for (int shift = 0; shift < 8; shift += p.bits)
            for (int w = 0; w < p.width; ++w, ++i)
                out[i] = static_cast<std::uint8_t>(out[i] | ((static_cast<unsigned>(run[w]) >> shift) & mask) << done);
}
/// The reverse; the bytes must be zero before.
inline void write_plane(std::uint8_t* bytes, const plane& p, int count, int done, const std::uint8_t* in) noexcept {
    if (p.bits == 0) return;
    const unsigned mask = (1u << p.bits) - 1;
    std::uint8_t* run = bytes + p.at;
    for (int i = 0; i < count; run += p.width)
        for (int shift = 0; shift < 8; shift += p.bits)
            for (int w = 0; w < p.width; ++w, ++i)
                run[w] = static_cast<std::uint8_t>(run[w] | ((static_cast<unsigned>(in[i]) >> done) & mask) << shift);
}

// The first exception: 8 scales and 8 minima of 6 bits in the 12 bytes of Q4_K and Q5_K. Groups 4 to 7 have their two
// high bits in the bytes of groups 0 to 3.
inline void read_k4_scales(const std::uint8_t* s, std::uint8_t* scale, std::uint8_t* least) noexcept {
    for (int j = 0; j < 4; ++j) {
        scale[j] = s[j] & 63;
        least[j] = s[j + 4] & 63;
        scale[j + 4] = static_cast<std::uint8_t>((s[j + 8] & 15) | (s[j] >> 6) << 4);
        least[j + 4] = static_cast<std::uint8_t>(s[j + 8] >> 4 | (s[j + 4] >> 6) << 4);
    }
}
inline void write_k4_scales(std::uint8_t* s, const std::uint8_t* scale, const std::uint8_t* least) noexcept {
    for (int j = 0; j < 4; ++j) {
        s[j] = static_cast<std::uint8_t>(scale[j] | (scale[j + 4] >> 4) << 6);
        s[j + 4] = static_cast<std::uint8_t>(least[j] | (least[j + 4] >> 4) << 6);
        s[j + 8] = static_cast<std::uint8_t>((scale[j + 4] & 15) | (least[j + 4] & 15) << 4);
    }
}

// The second: the base-3 digits of TQ1_0. A byte is ceil(digits * 256 / 243), so that multiplying by 3 and looking at
// the carry yields one digit after the other, the first the most significant. Digit n of the bytes of a run is
// element n * width + byte of it.
struct trit_run {
    int at, width, digits, first;  // first byte, bytes, digits in use, first element
};
inline constexpr trit_run trit_runs[3] = {{0, 32, 5, 0}, {32, 16, 5, 160}, {48, 4, 4, 240}};

inline void read_trits(const std::uint8_t* bytes, std::uint8_t* code) noexcept {
    for (const trit_run& run : trit_runs) {
        for (int w = 0; w < run.width; ++w) {
            unsigned b = bytes[run.at + w];
            for (int n = 0; n < run.digits; ++n) {
                code[run.first + n * run.width + w] = static_cast<std::uint8_t>(b * 3 >> 8);
                b = b * 3 & 255u;
            }
        }
    }
}
inline void write_trits(std::uint8_t* bytes, const std::uint8_t* code) noexcept {
    for (const trit_run& run : trit_runs) {
        for (int w = 0; w < run.width; ++w) {
            unsigned q = 0;
            for (int n = 0; n < 5; ++n) q = q * 3 + (n < run.digits ? code[run.first + n * run.width + w] : 0u);
            bytes[run.at + w] = static_cast<std::uint8_t>((q * 256 + 242) / 243);
        }
    }
}

/// Types of activations, which are read only.
[[nodiscard]] constexpr bool is_activation(type t) noexcept { return t == type::q8_1 || t == type::q8_k; }

/// 12 bytes of scales: after d and dmin.
[[nodiscard]] constexpr bool has_k4_scales(type t) noexcept { return t == type::q4_k || t == type::q5_k; }

[[nodiscard]] constexpr int groups_of(const block_type& t) noexcept { return t.elements / t.group; }
/// Numbers in the planes of stored scales.
[[nodiscard]] constexpr int stored_scales(const block_type& t) noexcept {
    return t.scale_low.bits == 0 ? 0 : groups_of(t) * (t.offset == offset_kind::minimum ? 2 : 1);
}

inline void read_codes(const block_type& t, const std::uint8_t* bytes, block& b) noexcept {
    std::memset(b.code, 0, static_cast<std::size_t>(t.elements));
    if (t.id == type::tq1_0) read_trits(bytes, b.code);
    read_plane(bytes, t.low, t.elements, 0, b.code);
    read_plane(bytes, t.high, t.elements, t.low.bits, b.code);
    if (t.flip != 0)
        for (int i = 0; i < t.elements; ++i) b.code[i] = static_cast<std::uint8_t>(b.code[i] ^ t.flip);
}
inline void read_scales(const block_type& t, const std::uint8_t* bytes, block& b) noexcept {
    std::memset(b.scale, 0, sizeof b.scale);
    if (has_k4_scales(t.id)) read_k4_scales(bytes + 4, b.scale, b.scale + 8);
    read_plane(bytes, t.scale_low, stored_scales(t), 0, b.scale);
    read_plane(bytes, t.scale_high, stored_scales(t), t.scale_low.bits, b.scale);
    for (int i = 0; i < stored_scales(t); ++i) b.scale[i] = static_cast<std::uint8_t>(b.scale[i] ^ t.scale_flip);
    if (t.d_at >= 0) b.d = load_u16(bytes + t.d_at);
    if (t.id == type::q8_k) b.d |= static_cast<std::uint32_t>(load_u16(bytes + 2)) << 16;
    if (t.m_at >= 0) b.m = load_u16(bytes + t.m_at);
}
inline void read_block(const block_type& t, const std::uint8_t* bytes, block& b) noexcept {
    read_codes(t, bytes, b);
    read_scales(t, bytes, b);
}

inline void write_block(const block_type& t, const block& b, std::uint8_t* bytes) noexcept {
    std::uint8_t code[256];
    std::uint8_t scale[32];
    for (int i = 0; i < t.elements; ++i) code[i] = static_cast<std::uint8_t>(b.code[i] ^ t.flip);
    for (int i = 0; i < 32; ++i) scale[i] = static_cast<std::uint8_t>(b.scale[i] ^ t.scale_flip);
    if (t.id == type::tq1_0) write_trits(bytes, code);
    write_plane(bytes, t.low, t.elements, 0, code);
    write_plane(bytes, t.high, t.elements, t.low.bits, code);
    if (has_k4_scales(t.id)) write_k4_scales(bytes + 4, scale, scale + 8);
    write_plane(bytes, t.scale_low, stored_scales(t), 0, scale);
    write_plane(bytes, t.scale_high, stored_scales(t), t.scale_low.bits, scale);
    if (t.d_at >= 0) store_u16(bytes + t.d_at, static_cast<std::uint16_t>(b.d));
    if (t.m_at >= 0) store_u16(bytes + t.m_at, b.m);
}

[[nodiscard]] inline nibble::failure bad(errc code, std::string text, std::uint64_t at = 0) {
    return {code, "ggml: " + std::move(text), at};
}
[[nodiscard]] inline std::string shape(index rows, index cols) { return nibble::detail::shape_text(rows, cols); }

[[nodiscard]] inline std::string place(const block_type& t, index n, index b) {
    return std::string(t.name) + " block " + std::to_string(b) + " of row " + std::to_string(n);
}

/// What makes a block unreadable, and at which byte of it.
struct defect {
    const char* text = nullptr;
    int at = 0;
};
[[nodiscard]] inline defect find_defect(const block_type& t, const block& b) noexcept {
    if (t.id == type::q8_k) return is_finite_fp32(b.d) ? defect{} : defect{"the fp32 scale is Inf or NaN", t.d_at};
    if (t.d_at >= 0 && !is_finite_fp16(static_cast<std::uint16_t>(b.d))) return {"the fp16 scale is Inf or NaN", t.d_at};
    if (t.m_at >= 0 && !is_finite_fp16(b.m)) return {"the fp16 minimum is Inf or NaN", t.m_at};
    if (t.id == type::mxfp4 && b.scale[0] == 0xff) return {"the exponent is FF, which is NaN", 0};
    if (t.id == type::nvfp4)
        for (int g = 0; g < 4; ++g)
            if (b.scale[g] >= 0x80) return {"a scale has its sign bit set", g};
    return {};
}

/// Stores the scales of a block in row n, from column `first` on.
inline void fill_scales(const block_type& t, const block& b, qmatrix_builder& out, index n, index first) noexcept {
    const index count = std::min<index>(t.elements, out.layout().cols - first);
    const bool two_level = t.scheme.storage == scale_storage::two_level;
    if (two_level) {
        out.set_super(n, first / t.elements, static_cast<std::uint16_t>(b.d));
        if (t.m_at >= 0) out.set_super(n, first / t.elements, b.m, true);
    }
    for (index g = 0; g * t.group < count; ++g) {
        const index at = first / t.group + g;
        if (t.d_at >= 0 && !two_level) {
            out.set_scale(n, at, b.d);
            out.set_offset(n, at, b.m);
        } else {
            const bool zero = t.id == type::nvfp4 && b.scale[g] == 0x7f;
            out.set_scale(n, at, zero ? 0u : b.scale[g]);
            if (two_level) out.set_offset(n, at, b.scale[groups_of(t) + g]);
        }
    }
}

/// 32 codes of one row, a byte each, to the cells of one row: what put_quad does, a plane of bits at a time.
template <int Bits>
inline void put_run(const std::uint8_t* code, std::uint8_t* to) noexcept {
    std::uint32_t quad[8];
    std::memcpy(quad, code, 32);
    int done = 0;  // bits of the codes
    for (int plane = 8; plane != 0; plane >>= 1) {
        if ((Bits & plane) == 0) continue;
        const std::uint32_t mask = 0x01010101u * ((1u << plane) - 1);
        const int per_word = 8 / plane;  // quads
        for (int q = 0; q < 8; q += per_word, to += cell_bytes) {
            std::uint32_t word = 0;
            for (int i = 0; i < per_word; ++i) word |= (quad[q + i] >> done & mask) << (plane * i);
            std::memcpy(to, &word, 4);
        }
        done += plane;
    }
}
template <int Bits>
inline void put_codes(const block_type& t, const std::uint8_t* bytes, block& b, std::uint8_t* to) noexcept {
    if (Bits == 4 && t.high.bits == 0 && t.low.width % 8 == 0) {  // nibbles, which need not become bytes
        constexpr std::uint64_t nibbles = 0x0f0f0f0f0f0f0f0fu;
        const std::uint8_t* run = bytes + t.low.at;
        const int width = t.low.width;
        for (int first = 0; first < t.elements; first += 2 * width, run += width)
            for (int w = 0; w < width; w += 8) {
                const std::uint64_t u = load_u64(run + w), low = u & nibbles, high = u >> 4 & nibbles;
                const auto a = static_cast<std::uint32_t>(low | low >> 28), c = static_cast<std::uint32_t>(high | high >> 28);
                std::memcpy(to + (first + w) / 8 * cell_bytes, &a, 4);
                std::memcpy(to + (first + width + w) / 8 * cell_bytes, &c, 4);
            }
        return;
    }
    if (Bits == 8) {
        for (int i = 0; i < t.elements; i += 4, to += cell_bytes) {
            std::uint32_t word;
            std::memcpy(&word, bytes + t.low.at + i, 4);
            word ^= t.flip * 0x01010101u;
            std::memcpy(to, &word, 4);
        }
        return;
    }
    read_codes(t, bytes, b);
    for (int i = 0; i < t.elements; i += 32, to += Bits * cell_bytes) put_run<Bits>(b.code + i, to);
}

/// The rows of panel p, block column by block column: 16 rows fill a cell while it is in the cache. False if a block has
/// a defect.
template <int Bits>
[[nodiscard]] NIBBLE_NOINLINE bool unpack_panel(const block_type& t, const std::uint8_t* bytes, qmatrix_builder& out, index p) {
    const nibble::detail::layout& l = out.layout();
    const index first = p * panel_rows, live = (std::min)(panel_rows, l.rows - first), blocks = l.cols / t.elements;
    if (live < panel_rows) std::memset(out.panel(p), 0, static_cast<std::size_t>(l.panel_bytes));
    const std::uint8_t* const from = bytes + first * blocks * t.bytes;
    block b;
    if (t.scheme.storage == scale_storage::f16 && t.group == t.elements) {  // a scale a block, as it stands in the file
        for (index i = 0; i < blocks; ++i) {
            std::uint8_t* const to = out.panel(p) + i * (t.elements / 32) * Bits * cell_bytes;
            std::uint8_t* const scale = out.data() + l.scales_at + (p * l.groups + i) * l.scale_line;
            std::uint8_t* const least = out.data() + l.offsets_at + (p * l.groups + i) * l.offset_line;
            for (index r = 0; r < live; ++r) {
                const std::uint8_t* const at = from + (r * blocks + i) * t.bytes;
                const std::uint16_t d = load_u16(at + t.d_at), m = t.m_at >= 0 ? load_u16(at + t.m_at) : std::uint16_t{0};
                if (!is_finite_fp16(d) || !is_finite_fp16(m)) return false;
                put_codes<Bits>(t, at, b, to + 4 * r);
                store_u16(scale + 2 * r, d);
                if (t.m_at >= 0) store_u16(least + 2 * r, m);
            }
        }
        return true;
    }
    for (index i = 0; i < blocks; ++i) {
        std::uint8_t* const to = out.panel(p) + i * (t.elements / 32) * Bits * cell_bytes;
        for (index r = 0; r < live; ++r) {
            const std::uint8_t* const at = from + (r * blocks + i) * t.bytes;
            read_scales(t, at, b);
            if (find_defect(t, b).text != nullptr) return false;
            put_codes<Bits>(t, at, b, to + 4 * r);
            fill_scales(t, b, out, first + r, i * t.elements);
        }
    }
    return true;
}

/// The first defect of row `first` or one behind it.
[[nodiscard]] inline nibble::failure first_defect(const block_type& t, std::span<const std::uint8_t> bytes, index rows, index cols, index first) {
    const index blocks = nibble::detail::ceil_div(cols, t.elements);
    block b;
    for (index n = first; n < rows; ++n)
        for (index i = 0; i < blocks; ++i) {
            const index at = (n * blocks + i) * t.bytes;
            read_block(t, bytes.data() + at, b);
            if (const defect d = find_defect(t, b); d.text != nullptr)
                return bad(errc::malformed, place(t, n, i) + ": " + d.text, static_cast<std::uint64_t>(at + d.at));
        }
    return bad(errc::malformed, "no defect");  // nobody asks without one
}

[[nodiscard]] inline result<qmatrix> unpack_blocks(const block_type& t, std::span<const std::uint8_t> bytes, index rows, index cols,
                                                   executor* threads) {
    using nibble::detail::initial_codes;
    using panel_function = bool (*)(const block_type&, const std::uint8_t*, qmatrix_builder&, index);
    constexpr panel_function by_bits[] = {nullptr, unpack_panel<1>, unpack_panel<2>, unpack_panel<3>, unpack_panel<4>,
                                          unpack_panel<5>, unpack_panel<6>, nullptr, unpack_panel<8>};
    const bool whole = cols % t.elements == 0;  // then groups, multiples of 4, follow each other in the cells without padding
    qmatrix_builder out(rows, cols, format_handle(*t.format), t.scheme, t.offset, per_group{t.group}, t.matrix_name,
                        whole ? initial_codes::unset : initial_codes::zero);
    if (whole) {
        const panel_function panel = by_bits[t.format->bits];
        const index panels = out.layout().panels;
        std::atomic<index> wrong{panels};  // the first panel with a defect
        const auto one = [&](index p) {
            if (panel(t, bytes.data(), out, p)) return;
            index before = wrong.load();
            while (p < before && !wrong.compare_exchange_weak(before, p)) {
            }
        };
        if (threads != nullptr) threads->parallel_for(panels, one);
        else
            for (index p = 0; p < panels && wrong.load(std::memory_order_relaxed) == panels; ++p) one(p);
        if (wrong.load() != panels) return first_defect(t, bytes, rows, cols, wrong.load() * panel_rows);
        return std::move(out).finish();
    }
    // Rows that end inside a block, through a row of codes.
    const index blocks = nibble::detail::ceil_div(cols, t.elements);
    std::vector<std::uint8_t> codes(rows == 0 ? 0 : static_cast<std::size_t>(blocks * t.elements));
    block b;
    const std::uint8_t* at = bytes.data();
    for (index n = 0; n < rows; ++n) {
        for (index first = 0; first < cols; first += t.elements, at += t.bytes) {
            read_block(t, at, b);
            if (find_defect(t, b).text != nullptr) return first_defect(t, bytes, rows, cols, n);
            std::memcpy(codes.data() + first, b.code, static_cast<std::size_t>(t.elements));
            fill_scales(t, b, out, n, first);
        }
        out.set_row(n, codes.data());
    }
    return std::move(out).finish();
}

[[nodiscard]] inline result<qmatrix> unpack_wide(const block_type& t, std::span<const std::uint8_t> bytes, index rows,
                                                 index cols) {
    qmatrix_builder out(rows, cols, format_handle(*t.format), t.scheme, t.offset, per_channel{}, t.matrix_name);
    const std::uint8_t* at = bytes.data();
    for (index n = 0; n < rows; ++n) {
        for (index k = 0; k < cols; ++k, at += 2) {
            const std::uint16_t u = load_u16(at);
            if (!(t.id == type::f16 ? is_finite_fp16(u) : is_finite_bf16(u)))
                return bad(errc::malformed,
                           std::string(t.name) + " weight (" + std::to_string(n) + ", " + std::to_string(k) +
                               ") is Inf or NaN",
                           static_cast<std::uint64_t>(at - bytes.data()));
            out.set_code(n, k, u);
        }
    }
    return std::move(out).finish();
}

/// A group or super-group of `size` columns: can all of a block part of `unit` columns have the same one?
[[nodiscard]] constexpr bool aligned(index size, index unit, index count) noexcept {
    return count <= 1 || size % unit == 0;
}

[[nodiscard]] inline bool holds(const block_type& t, const qmatrix& m) noexcept {
    if (t.format == nullptr || is_activation(t.id) || t.format != &m.format() || t.offset != m.offset_type()) return false;
    const scale_scheme& s = m.scheme();
    if (s.storage != t.scheme.storage || s.bits != t.scheme.bits) return false;
    if (t.format->decode == decode_class::wide) return true;
    if (s.storage == scale_storage::two_level) {
        if (s.is_signed != t.scheme.is_signed) return false;
        if (!aligned(s.span * m.group_size(), t.elements, m.layout().supers)) return false;
    }
    return aligned(m.group_size(), t.group, m.groups());
}

inline void take_block(const block_type& t, const qmatrix& m, index n, index first, block& b) {
    const nibble::detail::layout& l = m.layout();
    const bool two_level = t.scheme.storage == scale_storage::two_level;
    const bool least = t.offset == offset_kind::minimum;
    const index count = std::min<index>(t.elements, m.cols() - first);
    std::memset(b.code, least ? 0 : static_cast<int>(t.format->zero_code), sizeof b.code);
    std::memset(b.scale, t.scheme.is_signed ? 1 << (t.scheme.bits - 1) : 0, sizeof b.scale);
    for (index i = 0; i < count; ++i)
        b.code[i] = static_cast<std::uint8_t>(nibble::detail::get_code(
            m.panel(n / panel_rows), l.bits, static_cast<int>(n % panel_rows), l.position(first + i)));
    for (index g = 0; g * t.group < count; ++g) {
        const index at = (first + g * t.group) / l.group;
        if (t.scheme.storage == scale_storage::f16) {
            b.d = m.stored_scale(n, at);
            b.m = static_cast<std::uint16_t>(m.stored_offset(n, at));
        } else {
            b.scale[g] = static_cast<std::uint8_t>(m.stored_scale(n, at));
            if (least) b.scale[groups_of(t) + g] = static_cast<std::uint8_t>(m.stored_offset(n, at));
        }
    }
    if (two_level) {
        const index super = first / l.group / m.scheme().span;
        b.d = m.stored_super(n, super);
        b.m = least ? m.stored_super(n, super, true) : std::uint16_t{0};
    }
}

}  // namespace detail

/// Bytes of one row of `cols` weights: whole blocks. -1 for a number that is no type of ggml's or a row too long.
[[nodiscard]] constexpr index row_bytes(type t, index cols) noexcept {
    const detail::block_type* b = detail::find(t);
    if (b == nullptr || cols < 0 || cols > PTRDIFF_MAX / 1024) return -1;
    return (cols + b->elements - 1) / b->elements * b->bytes;
}

/// The matrix in `bytes`, rows x cols (ne[1] x ne[0] of GGUF), exactly. A failure names what was expected and the byte
/// of `bytes` at which it went wrong. Panels of 16 rows go to `threads`, if given; the result does not depend on them.
[[nodiscard]] inline result<qmatrix> unpack(type t, std::span<const std::uint8_t> bytes, index rows, index cols, executor* threads = nullptr) {
    const detail::block_type* b = detail::find(t);
    if (b == nullptr)
        return detail::bad(errc::unsupported,
                           "there is no tensor type " + std::to_string(static_cast<std::uint32_t>(t)));
    if (b->format == nullptr)
        return detail::bad(errc::unsupported,
                           std::string("a tensor of type ") + b->name + " cannot be a quantized matrix");
    const index row = row_bytes(t, cols);
    if (rows < 0 || row < 0) return detail::bad(errc::malformed, "a shape of " + detail::shape(rows, cols));
    const std::size_t size = bytes.size();
    const bool fits = row == 0 ? size == 0
                               : size % static_cast<std::size_t>(row) == 0 &&
                                     size / static_cast<std::size_t>(row) == static_cast<std::size_t>(rows);
    if (!fits)
        return detail::bad(errc::malformed,
                           "a " + detail::shape(rows, cols) + " matrix of type " + b->name + " takes " +
                               std::to_string(rows) + " rows of " + std::to_string(row) + " bytes, there are " +
                               std::to_string(size) + " bytes",
                           size);
    if (b->format->decode == decode_class::wide) return detail::unpack_wide(*b, bytes, rows, cols);
    return detail::unpack_blocks(*b, bytes, rows, cols, threads);
}

/// The type whose blocks can hold the matrix exactly, by its code format, scale scheme, offset and groups. A scale that
/// serves several blocks is repeated, so int4 with fp16 scales in groups of 128 is Q4_0, too. Of ternary types the one
/// that takes fewer bytes: TQ2_0, but Q2_0 for groups of 64 and for rows of at most 192; TQ1_0 only when asked for.
[[nodiscard]] inline std::optional<type> type_of(const qmatrix& m) noexcept {
    const detail::block_type* best = nullptr;
    for (const detail::block_type& t : detail::table::types) {
        if (t.id == type::tq1_0 || !detail::holds(t, m)) continue;
        if (best == nullptr || row_bytes(t.id, m.cols()) < row_bytes(best->id, m.cols())) best = &t;
    }
    return best != nullptr ? std::optional<type>(best->id) : std::nullopt;
}

/// The bytes of the matrix as tensor type t. Fails if that type cannot hold it exactly.
[[nodiscard]] inline result<std::vector<std::uint8_t>> pack(const qmatrix& m, type t) {
    const detail::block_type* b = detail::find(t);
    if (b == nullptr || !detail::holds(*b, m))
        return detail::bad(errc::unsupported, std::string("type ") + name(t) + " does not hold " + m.name() + ": " +
                                                  m.format().name + " codes, " + name_of(m.scheme().storage) +
                                                  " scales, offset " + name_of(m.offset_type()) + ", groups of " +
                                                  std::to_string(m.group_size()));
    const index row = row_bytes(t, m.cols());
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(nibble::detail::checked_product(m.rows(), row)));
    std::uint8_t* at = bytes.data();
    detail::block block;
    for (index n = 0; n < m.rows(); ++n) {
        for (index first = 0; first < m.cols(); first += b->elements, at += b->bytes) {
            if (b->format->decode == decode_class::wide) {
                detail::store_u16(at, static_cast<std::uint16_t>(m.code(n, first)));
                continue;
            }
            detail::take_block(*b, m, n, first, block);
            if (t == type::tq1_0)
                for (const std::uint8_t code : block.code)
                    if (code > 2)
                        return detail::bad(errc::unsupported,
                                           "TQ1_0 has no code 3, row " + std::to_string(n) + " has; use TQ2_0",
                                           static_cast<std::uint64_t>(at - bytes.data()));
            detail::write_block(*b, block, at);
        }
    }
    return bytes;
}

/// The bytes of the matrix as the tensor type of type_of().
[[nodiscard]] inline result<std::vector<std::uint8_t>> pack(const qmatrix& m) {
    if (const std::optional<type> t = type_of(m)) return pack(m, *t);
    return detail::bad(errc::unsupported, "no tensor type holds " + m.name() + ": " + m.format().name + " codes, " +
                                              name_of(m.scheme().storage) + " scales, offset " +
                                              name_of(m.offset_type()) + ", groups of " +
                                              std::to_string(m.group_size()));
}

}  // namespace nibble::io::ggml
