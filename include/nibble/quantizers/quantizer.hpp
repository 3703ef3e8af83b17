// What a quantizer is: a small value object that proposes the scale and the offset of one group of weights.
//
//   from_range   sees the smallest and the largest weight of a group      absmax, zero_point, min_offset
//   operator()   sees every weight of the group and its importance        mse, percentile, yours
//   propose      does so for many groups at a time                        the ggml searches
//
//     struct mine {
//         static constexpr nibble::offset_kind offset = nibble::offset_kind::none;   // the default; may be left out
//         nibble::group_scale operator()(const nibble::group_view& g) const { return {my_scale(g.x), 0.0f}; }
//     };
//     auto Wq = nibble::quantize<nibble::int4>(W, mine{}, nibble::per_group{32});
//
// The scale scheme then stores what was proposed, and codes are chosen against what was stored:
//     code = clamp(RNE(f32(w * inv)) + zero), inv = f32(1 / scale), or the format's nearest value of f32(w * inv).
// Rules that another library defines bring their own `encode` (quantizers/ggml.hpp).
#pragma once

#include <cmath>
#include <span>

#include "../formats/integer.hpp"
#include "../scale.hpp"
#include "../detail/kernels/codec_types.hpp"  // after headers that name the namespace

namespace nibble::inline NIBBLE_ABI {

/// A proposal: w = scale * value(code), measured from `offset` as the offset kind says.
struct group_scale {
    float scale = 0.0f;
    float offset = 0.0f;
};

/// One group of finite weights, as a quantizer sees it.
struct group_view {
    std::span<const float> x;           ///< the weights; a 2-D block in row-major order
    std::span<const float> importance;  ///< one weight >= 0 for each x, or empty
    const code_format& format;
    std::span<const float> row;    ///< the whole row that x is part of; empty for groups that span rows
    index first = 0;               ///< x[0] is row[first]
    float row_sum_squares = 0.0f;  ///< sum of squares of the row; only with importance
};

/// Consecutive groups of one row, all of the same size.
struct group_run {
    const float* x;           ///< group j is x[j * size] .. x[(j + 1) * size - 1]
    index groups;
    index size;
    const float* importance;  ///< one weight >= 0 for each x, or null
    const float* low;         ///< the smallest weight of each group
    const float* high;        ///< the largest
    const code_format& format;
    std::span<const float> row;
    index first;              ///< x[0] is row[first]
    float row_sum_squares;
    index code_step;          ///< codes of group j start at j * code_step

    [[nodiscard]] group_view group(index j) const noexcept {
        const auto n = static_cast<std::size_t>(size);
        return {{x + j * size, n}, importance == nullptr ? std::span<const float>() : std::span<const float>(importance + j * size, n), format, row,
                first + j * size, row_sum_squares};
    }
};

/// A quantizer that only needs the range.
template <class Q>
concept range_quantizer = requires(const Q& q, float x, const code_format& f) {
    { q.from_range(x, x, f) } -> std::same_as<group_scale>;
};

/// A quantizer that needs the values; with a second argument it also writes the codes that it found (ggml).
template <class Q>
concept value_quantizer = requires(const Q& q, const group_view& g) {
    { q(g) } -> std::same_as<group_scale>;
}
|| requires(const Q& q, const group_view& g, std::uint8_t* codes) {
    { q(g, codes) } -> std::same_as<group_scale>;
};

/// A quantizer that is faster with many groups at a time; writes the codes that it found (ggml).
template <class Q>
concept run_quantizer = requires(const Q& q, const group_run& run, float* out, std::uint8_t* codes) { q.propose(run, out, out, codes); };

/// Anything that quantize() accepts as a quantizer.
template <class Q>
concept quantizer = range_quantizer<Q> || value_quantizer<Q> || run_quantizer<Q>;

/// A quantizer without its type. It refers to the object it was made from.
struct quantizer_ref {
    const void* self = nullptr;
    const char* name = "custom";
    offset_kind offset = offset_kind::none;
    bool searches = false;         ///< uses importance weights
    bool unrounded_scale = false;  ///< chooses codes with the proposed, not the stored, scale
    bool symmetric = false;        ///< from_range looks at the largest magnitude alone
    bool whole_group = false;      ///< `encode` must see a whole group, so weights cannot come column by column
    /// Of many groups at once: their smallest and largest weights, and where scales and offsets go.
    void (*from_range)(const void*, const float*, const float*, std::size_t, const code_format&, float*, float*) = nullptr;
    group_scale (*from_values)(const void*, const group_view&, std::uint8_t*) = nullptr;
    /// The same for a run of groups: scales, offsets, codes. May be null; then there is from_values.
    void (*from_run)(const void*, const group_run&, float*, float*, std::uint8_t*) = nullptr;
    void (*encode)(const void*, const group_view&, group_scale, std::uint8_t*) = nullptr;  ///< null: encode_weight of each
    void (*describe)(const code_format&, detail::encoder&) = nullptr;  ///< `encode` in the terms of the kernels, or null
    bool (*keeps_codes)(const void*, const group_view&) = nullptr;  ///< whether the codes of from_values are final
};

namespace detail {

template <class Q>
void call_from_range(const void* self, const float* low, const float* high, std::size_t groups, const code_format& f,
                     float* scale, float* offset) {
    const Q& q = *static_cast<const Q*>(self);
    for (std::size_t g = 0; g < groups; ++g) {
        const group_scale s = q.from_range(low[g], high[g], f);
        scale[g] = s.scale;
        offset[g] = s.offset;
    }
}

template <class Q>
group_scale call_from_values(const void* self, const group_view& g, [[maybe_unused]] std::uint8_t* codes) {
    const Q& q = *static_cast<const Q*>(self);
    if constexpr (requires { q(g, codes); })
        return q(g, codes);
    else
        return q(g);
}

template <class Q>
void call_from_run(const void* self, const group_run& run, float* scale, float* offset, std::uint8_t* codes) {
    static_cast<const Q*>(self)->propose(run, scale, offset, codes);
}

template <class Q>
void call_encode(const void* self, const group_view& g, group_scale s, std::uint8_t* codes) {
    static_cast<const Q*>(self)->encode(g, s, codes);
}

template <class Q>
bool call_keeps_codes(const void* self, const group_view& g) {
    return static_cast<const Q*>(self)->keeps_codes(g);
}

NIBBLE_FP_BEGIN

struct range {
    float low = 0.0f;
    float high = 0.0f;
};

/// Of equal zeros the first.
[[nodiscard]] inline range range_of(std::span<const float> x) noexcept {
    if (x.empty()) return {};
    float low = x[0];
    float high = x[0];
    for (const float v : x) {
        low = v < low ? v : low;
        high = v > high ? v : high;
    }
    return {low, high};
}

/// A run of one group.
template <class Q>
group_scale call_run_of_one(const void* self, const group_view& g, std::uint8_t* codes) {
    const range r = range_of(g.x);
    const auto size = static_cast<index>(g.x.size());
    group_scale s;
    call_from_run<Q>(self, {g.x.data(), 1, size, g.importance.empty() ? nullptr : g.importance.data(), &r.low, &r.high, g.format, g.row, g.first, g.row_sum_squares, size},
                     &s.scale, &s.offset, codes);
    return s;
}

/// max|x| of numbers between low and high, never -0: a scale of -0 would be a code of its own in E4M3.
[[nodiscard]] constexpr float largest_magnitude(float low, float high) noexcept {
    return magnitude(-low > high ? low : high);
}

/// 1 / scale, and 0 where that is not a finite number: a group so small that its scale is zero or deep in the
/// subnormal range decodes to zeros, not to Inf * 0.
[[nodiscard]] inline float inverse(float scale) noexcept {
    const float inv = 1.0f / scale;
    return is_finite_bits(bits_of(inv)) ? inv : 0.0f;
}

/// high - low over n steps, without overflow at the ends of the float range.
[[nodiscard]] inline float step_of(float low, float high, int steps) noexcept {
    const float width = high - low;
    if (is_finite_bits(bits_of(width))) return width / static_cast<float>(steps);
    return static_cast<float>((static_cast<double>(high) - static_cast<double>(low)) / steps);
}

/// The code of one weight under the numerics contract (docs/design.md).
[[nodiscard]] inline unsigned encode_weight(const code_format& f, offset_kind kind, float x, float inv,
                                            float offset) noexcept {
    const int last = static_cast<int>(f.code_count()) - 1;
    switch (kind) {
        case offset_kind::none: return f.encode(f, x * inv);
        case offset_kind::zero_point: return encode_affine(x * inv, static_cast<int>(offset), last);
        case offset_kind::float_zero: return encode_affine(x * inv + offset, 0, last);
        case offset_kind::minimum: {
            const float above = x - offset;
            return encode_affine(above * inv, 0, last);
        }
    }
    return 0;
}

/// The value of one code: the formula that its offset kind defines, each step rounded once.
[[nodiscard]] inline float decode_weight(const code_format& f, offset_kind kind, unsigned code, float scale,
                                         float offset) noexcept {
    switch (kind) {
        case offset_kind::none: return scale * f.value(code);
        case offset_kind::zero_point:
        case offset_kind::float_zero: {
            const float above = static_cast<float>(code) - offset;
            return scale * above;
        }
        case offset_kind::minimum: {
            const float product = scale * static_cast<float>(code);
            return product + offset;
        }
    }
    return 0.0f;
}

NIBBLE_FP_END

}  // namespace detail

/// Strips the type off a quantizer.
template <quantizer Q>
[[nodiscard]] constexpr quantizer_ref erase(const Q& q) noexcept {
    quantizer_ref r;
    r.self = &q;
    if constexpr (requires { Q::name; }) r.name = Q::name;
    if constexpr (requires { q.offset; }) r.offset = q.offset;
    if constexpr (requires { Q::searches; }) r.searches = Q::searches;
    if constexpr (requires { Q::unrounded_scale; }) r.unrounded_scale = Q::unrounded_scale;
    if constexpr (requires { Q::symmetric; }) r.symmetric = Q::symmetric;
    if constexpr (requires { Q::whole_group; }) r.whole_group = Q::whole_group;
    if constexpr (range_quantizer<Q>) r.from_range = &detail::call_from_range<Q>;
    if constexpr (value_quantizer<Q>) r.from_values = &detail::call_from_values<Q>;
    if constexpr (run_quantizer<Q>) {
        r.from_run = &detail::call_from_run<Q>;
        r.from_values = &detail::call_run_of_one<Q>;
    }
    if constexpr (requires(const code_format& f, detail::encoder& e) { Q::describe(f, e); }) r.describe = &Q::describe;
    if constexpr (requires(const group_view& g, group_scale s, std::uint8_t* c) { q.encode(g, s, c); })
        r.encode = &detail::call_encode<Q>;
    if constexpr (requires { q.keeps_contract(); })
        if (q.keeps_contract()) r.encode = nullptr;
    if constexpr (requires(const group_view& g) { q.keeps_codes(g); }) r.keeps_codes = &detail::call_keeps_codes<Q>;
    return r;
}

}  // namespace nibble
