// The tensor types of ggml: numbers, names, sizes, and where the numbers of a block lie (spec of each: docs/formats.md).
#pragma once

#include "../formats/list.hpp"
#include "../scale.hpp"

#include "../detail/kernels/codec_types.hpp"  // kernel headers include no header of nibble's: the namespace's name comes from those above

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

/// Every bit field of ggml but two has this form.
using plane = nibble::detail::bit_plane;

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

}  // namespace nibble::io::ggml
