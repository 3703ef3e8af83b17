// What people call a format: code x scale scheme x offset x grouping x quantizer rule, with a name.
//
//     auto a = nibble::quantize<nibble::q4_k>(W);     // by type
//     auto b = nibble::quantize(W, "q4_k");           // by name, the same bytes
//     for (const nibble::recipe& r : nibble::recipes()) ...
//
// The list below is the only place where a recipe is written down.
#pragma once

#include <cstdio>
#include <string_view>

#include "formats/list.hpp"
#include "granularity.hpp"
#include "quantizers/absmax.hpp"
#include "quantizers/affine.hpp"
#include "quantizers/ggml.hpp"
#include "quantizers/search.hpp"

namespace nibble::inline NIBBLE_ABI {

/// A named combination.
struct recipe {
    const char* name = "";
    const code_format* format = nullptr;
    scale_scheme scale = scales::f32;
    granularity group = per_channel{};
    quantizer_ref rule;
    const char* use_when = "";

    /// What a code is measured from; the rule decides it.
    [[nodiscard]] constexpr offset_kind offset() const noexcept { return rule.offset; }
};

namespace detail::rules {
inline constexpr nibble::absmax absmax{};
inline constexpr nibble::absmean absmean{};
inline constexpr nibble::twn twn{};
inline constexpr nibble::mx mx{};
inline constexpr nibble::zero_point zero_point{};
inline constexpr nibble::min_offset min_offset{};
inline constexpr nibble::float_zero float_zero{};
inline constexpr nibble::ggml_signed_max signed_max{};
inline constexpr nibble::ggml_min_max min_max{};
inline constexpr nibble::ggml_absmax q8{};
inline constexpr nibble::ggml_affine affine{};
inline constexpr nibble::ggml_symmetric symmetric{};
inline constexpr nibble::ggml_iq4 iq4_nl{-1, false};
inline constexpr nibble::ggml_iq4 iq4_xs{7, true};
inline constexpr nibble::ggml_fp4 mxfp4{false};
inline constexpr nibble::ggml_fp4 nvfp4{true};
inline constexpr nibble::ggml_ternary ternary{};
}  // namespace detail::rules

// clang-format off
// name, code format, scale scheme, grouping, rule, use when
#define NIBBLE_RECIPES(X) \
    X(int8_per_channel,   int8,      scales::f32,  (granularity{1, 0}),     absmax,     "int8 for everything; the scale costs nothing") \
    X(int8_per_tensor,    int8,      scales::f32,  (granularity{0, 0}),     absmax,     "a device or file that allows one scale only") \
    X(int8_zero_point,    int8,      scales::f32,  (granularity{1, 0}),     zero_point, "PyTorch affine qint8, one-sided weights") \
    X(int8_g32,           int8,      scales::f16,  (granularity{1, 32}),    absmax,     "int8 with outliers inside rows") \
    X(int6_g64,           int6,      scales::f16,  (granularity{1, 64}),    absmax,     "6 bits without a search") \
    X(int5_g64,           int5,      scales::f16,  (granularity{1, 64}),    absmax,     "5 bits without a search") \
    X(int4_g32,           int4,      scales::f16,  (granularity{1, 32}),    absmax,     "4 bits, symmetric, fast") \
    X(int4_g64,           int4,      scales::f16,  (granularity{1, 64}),    absmax,     "4 bits, symmetric, smaller scales") \
    X(int4_g128,          int4,      scales::f16,  (granularity{1, 128}),   absmax,     "GPTQ and compressed-tensors symmetric") \
    X(int4_zero_g128,     int4,      scales::f16,  (granularity{1, 128}),   zero_point, "GPTQ and AWQ asymmetric") \
    X(int4_min_g64,       int4,      scales::f16,  (granularity{1, 64}),    min_offset, "4 bits with a float minimum") \
    X(int4_hqq_g64,       int4,      scales::f16,  (granularity{1, 64}),    float_zero, "HQQ's storage, before its optimization") \
    X(int3_zero_g64,      int3,      scales::f16,  (granularity{1, 64}),    zero_point, "3 bits, asymmetric; calibrate") \
    X(int2_zero_g32,      int2,      scales::f16,  (granularity{1, 32}),    zero_point, "2 bits, asymmetric; calibrate") \
    X(int2_min_g32,       int2,      scales::f16,  (granularity{1, 32}),    min_offset, "2 bits with a float minimum (KIVI)") \
    X(q8_0,               int8,      scales::f16,  (granularity{1, 32}),    q8,         "GGUF, nearly lossless") \
    X(q5_0,               int5,      scales::f16,  (granularity{1, 32}),    signed_max, "GGUF 5 bits; q5_k is better") \
    X(q5_1,               int5,      scales::f16,  (granularity{1, 32}),    min_max,    "GGUF 5 bits with a minimum; q5_k is better") \
    X(q4_0,               int4,      scales::f16,  (granularity{1, 32}),    signed_max, "GGUF 4 bits, the simplest; q4_k is better") \
    X(q4_1,               int4,      scales::f16,  (granularity{1, 32}),    min_max,    "GGUF 4 bits with a minimum; q4_k is better") \
    X(q6_k,               int6,      (scales::two_level(8, true, 16)),  (granularity{1, 16}), symmetric, "GGUF, indistinguishable from fp16 for most models") \
    X(q5_k,               int5,      (scales::two_level(6, false, 8)),  (granularity{1, 32}), affine,    "GGUF, between q4_k and q6_k") \
    X(q4_k,               int4,      (scales::two_level(6, false, 8)),  (granularity{1, 32}), affine,    "GGUF, the usual 4-bit choice") \
    X(q3_k,               int3,      (scales::two_level(6, true, 16)),  (granularity{1, 16}), symmetric, "GGUF, when q4_k does not fit") \
    X(q2_k,               int2,      (scales::two_level(4, false, 16)), (granularity{1, 16}), affine,    "GGUF, the last resort") \
    X(iq4_xs,             iq4_nl,    (scales::two_level(6, true, 8)),   (granularity{1, 32}), iq4_xs,    "GGUF, the best near 4.25 bits") \
    X(ternary_twn,        ternary,   scales::f32,  (granularity{1, 0}),     twn,        "ternary without training, least squares") \
    X(tq2_0,              ternary,   scales::f16,  (granularity{1, 256}),   ternary,    "GGUF, weights that are ternary already") \
    X(nf4_double,         nf4,       scales::double_quantized, (granularity{1, 64}), absmax, "QLoRA: NF4 with quantized scales") \
    X(fp4_double,         fp4,       scales::double_quantized, (granularity{1, 64}), absmax, "bitsandbytes FP4 with quantized scales") \
    X(fp8_per_channel,    fp8_e4m3,  scales::f32,  (granularity{1, 0}),     absmax,     "FP8 checkpoints; outliers that int8 would clip") \
    X(fp8_per_tensor,     fp8_e4m3,  scales::f32,  (granularity{0, 0}),     absmax,     "FP8 checkpoints with one scale") \
    X(fp8_block128,       fp8_e4m3,  scales::f32,  (granularity{128, 128}), absmax,     "DeepSeek FP8 checkpoints") \
    X(mxfp4,              fp4_e2m1,  scales::e8m0, (granularity{1, 32}),    mx,         "OCP MX, gpt-oss and accelerators") \
    X(mxfp4_ggml,         fp4_e2m1,  scales::e8m0, (granularity{1, 32}),    mxfp4,      "MXFP4 with ggml's rounding") \
    X(mxfp6,              fp6_e2m3,  scales::e8m0, (granularity{1, 32}),    mx,         "OCP MX, 6 bits") \
    X(mxfp6_e3m2,         fp6_e3m2,  scales::e8m0, (granularity{1, 32}),    mx,         "OCP MX, 6 bits, wider range") \
    X(mxfp8,              fp8_e4m3,  scales::e8m0, (granularity{1, 32}),    mx,         "OCP MX, 8 bits") \
    X(mxfp8_e5m2,         fp8_e5m2,  scales::e8m0, (granularity{1, 32}),    mx,         "OCP MX, 8 bits, wider range") \
    X(nvfp4,              fp4_e2m1,  scales::e4m3_f32, (granularity{1, 16}), absmax,    "NVFP4 as torchao writes it") \
    X(nvfp4_ggml,         fp4_e2m1,  scales::e4m3, (granularity{1, 16}),    nvfp4,      "NVFP4 with ggml's rounding, no tensor scale") \
    X(fp8_e5m2_per_channel,     fp8_e5m2,     scales::f32, (granularity{1, 0}), absmax, "wide-range FP8") \
    X(fp8_e4m3fnuz_per_channel, fp8_e4m3fnuz, scales::f32, (granularity{1, 0}), absmax, "FP8 for CDNA3 accelerators") \
    X(fp8_e5m2fnuz_per_channel, fp8_e5m2fnuz, scales::f32, (granularity{1, 0}), absmax, "wide-range FP8 for CDNA3 accelerators") \
    X(bitnet_b158,        ternary,   scales::f32,  (granularity{0, 0}),     absmean,    "BitNet b1.58 checkpoints") \
    X(binary_g128,        binary,    scales::f16,  (granularity{1, 128}),   absmean,    "signs: retrieval, binary networks")

// Recipes that share their name and type with a code format.
#define NIBBLE_FORMAT_RECIPES(X) \
    X(iq4_nl,             iq4_nl,    scales::f16,  (granularity{1, 32}),    iq4_nl,     "GGUF, a non-linear q4_0") \
    X(nf4,                nf4,       scales::f32,  (granularity{1, 64}),    absmax,     "bitsandbytes NF4") \
    X(fp4,                fp4,       scales::f32,  (granularity{1, 64}),    absmax,     "bitsandbytes FP4") \
    X(af4,                af4,       scales::f32,  (granularity{1, 64}),    absmax,     "bitsandbytes AF4") \
    X(bf16,               bf16,      scales::none, (granularity{1, 0}),     absmax,     "weights that were trained in bfloat16") \
    X(fp16,               fp16,      scales::none, (granularity{1, 0}),     absmax,     "a reference at half the size")
// clang-format on

/// Every recipe of the two lists.
[[nodiscard]] NIBBLE_API std::span<const recipe> recipes() noexcept;

#if NIBBLE_DEFINE_API
NIBBLE_API std::span<const recipe> recipes() noexcept {
    namespace rules = detail::rules;
#define NIBBLE_ENTRY(label, code, scheme, grouping, rule, when) \
    recipe{#label, &nibble::code::format, scheme, grouping, erase(rules::rule), when},
    static constexpr recipe list[] = {NIBBLE_RECIPES(NIBBLE_ENTRY) NIBBLE_FORMAT_RECIPES(NIBBLE_ENTRY)};
#undef NIBBLE_ENTRY
    return list;
}
#endif

/// The recipe of that name, or null.
[[nodiscard]] inline const recipe* find_recipe(std::string_view name) noexcept {
    for (const recipe& r : recipes())
        if (name == r.name) return &r;
    return nullptr;
}

/// The recipe that quantize<F>(W) uses for a code format: the one of the same name, else the first one listed with it.
/// Null for user codebooks.
[[nodiscard]] inline const recipe* default_recipe(const code_format& f) noexcept {
    if (const recipe* same = find_recipe(f.name); same != nullptr && same->format == &f) return same;
    for (const recipe& r : recipes())
        if (r.format == &f) return &r;
    return nullptr;
}

/// A type that names a recipe: nibble::q4_k, nibble::mxfp4, ...
template <class R>
concept recipe_type = requires {
    { R::get() } -> std::same_as<const recipe&>;
};

#define NIBBLE_ENTRY(label, code, scheme, grouping, rule, when)                            \
    struct label {                                                                          \
        [[nodiscard]] static const recipe& get() noexcept { return *find_recipe(#label); } \
    };
NIBBLE_RECIPES(NIBBLE_ENTRY)
#undef NIBBLE_ENTRY

}  // namespace nibble
