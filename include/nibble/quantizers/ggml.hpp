// The rules of ggml's reference quantizers, bit for bit (ggml-quants.c): what GGUF files hold.
//
//   rule              codes, group   proposes                                      formats
//   ggml_signed_max   int4, int5 32  d = (value of largest magnitude) / -2^(b-1)   q4_0 q5_0
//   ggml_min_max      int4, int5 32  d = (max - min) / n, minimum                  q4_1 q5_1
//   ggml_absmax       int8       32  d = max|w| / 127, rounds half away from zero  q8_0
//   ggml_affine       2, 4, 5  16/32 a search over scales and minima ("qkx2")      q2_k q4_k q5_k
//   ggml_symmetric    3, 6 bits  16  a search over scales ("q3", "qx")             q3_k q6_k
//   ggml_iq4          iq4_nl     32  a search over scales through the table        iq4_nl iq4_xs
//   ggml_fp4          fp4_e2m1 32/16 shared exponent, or E4M3 rounded half up      mxfp4_ggml nvfp4_ggml
//   ggml_ternary      ternary   256  d = max|w|                                    tq1_0 tq2_0
//
// With importance weights each rule does what ggml's quantize_* functions do with an importance matrix (7.18). Every
// + - * / below is one binary32 operation, and sums run left to right: that is part of the format.
// Groups hold at most 256 weights.
#pragma once

#include "../formats/codebook.hpp"
#include "ggml_search.hpp"

namespace nibble::inline NIBBLE_ABI {
namespace detail {

NIBBLE_FP_BEGIN

/// Integers low .. high, stored as code - zero.
struct integer_range {
    int low, high, zero;
};
/// Codes of x / scale, halves away from zero.
inline void encode_away(std::span<const float> x, float scale, const integer_range& r, std::uint8_t* codes) noexcept {
    const float inv = inverse(scale);
    for (std::size_t i = 0; i < x.size(); ++i)
        codes[i] = static_cast<std::uint8_t>(round_away(clamp(x[i] * inv, static_cast<float>(r.low), static_cast<float>(r.high))) + r.zero);
}
inline void describe_away(const integer_range& r, encoder& e) noexcept {
    e.rule = rounding_rule::away;
    e.zero = r.zero;
    e.lowest = r.low + r.zero;
    e.highest = r.high + r.zero;
}

/// The E2M1 code nearest to x / d by comparing |2 * value * d/2 - x|; the first of equal distances wins, so ties go to
/// the smaller magnitude and code 8 (-0) never appears.
[[nodiscard]] inline unsigned nearest_e2m1(const code_format& f, float half_scale, float x) noexcept {
    unsigned best = 0;
    float least = magnitude(0.0f - x);
    for (unsigned k = 1; k < 16; ++k) {
        const float e = magnitude(f.values[k] * 2.0f * half_scale - x);
        if (e < least) {
            least = e;
            best = k;
        }
    }
    return best;
}

NIBBLE_FP_END

}  // namespace detail

NIBBLE_FP_BEGIN

/// q4_0 and q5_0: the value of largest magnitude maps to code 0 exactly.
struct ggml_signed_max {
    static constexpr const char* name = "ggml_signed_max";
    static constexpr bool searches = true;
    static constexpr bool unrounded_scale = true;

    void propose(const group_run& run, float* scale, float* offset, std::uint8_t* codes) const {
        const int half = 1 << (run.format.bits - 1);
        if (run.importance != nullptr) {
            for (index j = 0; j < run.groups; j += detail::group_lanes::count) {
                detail::group_lanes some(run, j);
                some.weigh_by_importance(run.row_sum_squares / static_cast<float>(run.row.size()));
                some.search_symmetric(half, scale, offset, codes);
            }
            return;
        }
        for (index j = 0; j < run.groups; ++j) {
            const float low = run.low[j];
            const float high = run.high[j];
            const float most = -low == high ? detail::signed_absmax(run.group(j).x) : -low > high ? low : high;
            scale[j] = most / static_cast<float>(-half);
            offset[j] = 0.0f;
        }
    }
    [[nodiscard]] static bool keeps_codes(const group_view& g) noexcept { return !g.importance.empty(); }
    void encode(const group_view& g, group_scale s, std::uint8_t* codes) const noexcept {
        const int half = 1 << (g.format.bits - 1);
        const float inv = detail::inverse(s.scale);
        for (std::size_t i = 0; i < g.x.size(); ++i) {
            const float t = g.x[i] * inv + (static_cast<float>(half) + 0.5f);
            codes[i] = static_cast<std::uint8_t>(detail::clamp(t, 0.0f, static_cast<float>(2 * half - 1)));
        }
    }
    static void describe(const code_format& f, detail::encoder& e) noexcept {
        e.rule = detail::rounding_rule::truncated;
        e.bias = static_cast<float>(1 << (f.bits - 1)) + 0.5f;
        e.highest = (1 << f.bits) - 1;
    }
};

/// q4_1 and q5_1.
struct ggml_min_max {
    static constexpr const char* name = "ggml_min_max";
    static constexpr offset_kind offset = offset_kind::minimum;
    static constexpr bool searches = true;
    static constexpr bool unrounded_scale = true;

    void propose(const group_run& run, float* scale, float* minimum, std::uint8_t* codes) const {
        const int n = static_cast<int>(run.format.code_count()) - 1;
        if (run.importance != nullptr) {
            for (index j = 0; j < run.groups; j += detail::group_lanes::count) {
                detail::group_lanes some(run, j);
                some.weigh_by_importance(run.row_sum_squares / static_cast<float>(run.row.size()));
                some.search_affine({n, -0.9f, 0.05f, 36, false}, scale, minimum, codes);
            }
            return;
        }
        for (index j = 0; j < run.groups; ++j) {
            scale[j] = (run.high[j] - run.low[j]) / static_cast<float>(n);
            minimum[j] = run.low[j];
        }
    }
    [[nodiscard]] static bool keeps_codes(const group_view& g) noexcept { return !g.importance.empty(); }
    void encode(const group_view& g, group_scale s, std::uint8_t* codes) const noexcept {
        const int n = static_cast<int>(g.format.code_count()) - 1;
        const float inv = detail::inverse(s.scale);
        for (std::size_t i = 0; i < g.x.size(); ++i) {
            const float t = (g.x[i] - s.offset) * inv + 0.5f;
            codes[i] = static_cast<std::uint8_t>(detail::clamp(t, 0.0f, static_cast<float>(n)));
        }
    }
    static void describe(const code_format& f, detail::encoder& e) noexcept {
        e.rule = detail::rounding_rule::truncated;
        e.weight = detail::scaled_weight::difference;
        e.bias = 0.5f;
        e.highest = static_cast<int>(f.code_count()) - 1;
    }
};

/// q8_0, the reference's rounding: half away from zero.
struct ggml_absmax {
    static constexpr const char* name = "ggml_absmax";
    static constexpr bool unrounded_scale = true;
    static constexpr bool symmetric = true;

    [[nodiscard]] group_scale from_range(float low, float high, const code_format&) const noexcept {
        return {detail::largest_magnitude(low, high) / 127.0f, 0.0f};
    }
    void encode(const group_view& g, group_scale s, std::uint8_t* codes) const noexcept { detail::encode_away(g.x, s.scale, {-128, 127, 128}, codes); }
    static void describe(const code_format&, detail::encoder& e) noexcept { detail::describe_away({-128, 127, 128}, e); }
};

/// q2_k, q4_k, q5_k.
struct ggml_affine {
    static constexpr const char* name = "ggml_affine";
    static constexpr offset_kind offset = offset_kind::minimum;
    static constexpr bool searches = true;

    void propose(const group_run& run, float* scale, float* minimum, std::uint8_t* codes) const {
        const int n = static_cast<int>(run.format.code_count()) - 1;
        const int bits = run.format.bits;
        for (index j = 0; j < run.groups; j += detail::group_lanes::count) {
            detail::group_lanes some(run, j);
            detail::affine_search p{n, -1.0f, 0.1f, 20, false};
            if (run.importance != nullptr) {
                p = {n, -0.9f, 0.05f, 36, false};
                some.weigh_by_super_block(bits == 2 ? 1.0f : 2.0f);
            } else if (bits == 2) {
                p = {n, -0.5f, 0.1f, 15, true};
                some.weigh_by_magnitude();
            } else {
                if (bits == 5) p = {n, -0.5f, 0.1f, 15, false};
                some.weigh_above_mean();
            }
            some.search_affine(p, scale, minimum, codes);
        }
    }
    /// ggml keeps the codes of the search where the scale is zero.
    void encode(const group_view& g, group_scale s, std::uint8_t* codes) const noexcept {
        if (s.scale == 0.0f) return;
        const int n = static_cast<int>(g.format.code_count()) - 1;
        for (std::size_t i = 0; i < g.x.size(); ++i)
            codes[i] = static_cast<std::uint8_t>(detail::nearest_within((g.x[i] - s.offset) / s.scale, 0, n));
    }
    static void describe(const code_format& f, detail::encoder& e) noexcept {
        e.weight = detail::scaled_weight::quotient;
        e.highest = static_cast<int>(f.code_count()) - 1;
    }
};

/// q3_k and q6_k.
struct ggml_symmetric {
    static constexpr const char* name = "ggml_symmetric";
    static constexpr bool searches = true;

    void propose(const group_run& run, float* scale, float* offset, std::uint8_t* codes) const {
        if (run.format.bits == 3 && run.importance == nullptr) {
            detail::check_ggml_group(static_cast<std::size_t>(run.size));
            for (index j = 0; j < run.groups; ++j) {
                scale[j] = detail::search_q3(run.group(j).x, codes + j * run.code_step);
                offset[j] = 0.0f;
            }
            return;
        }
        for (index j = 0; j < run.groups; j += detail::group_lanes::count) {
            detail::group_lanes some(run, j);
            if (run.importance == nullptr) some.weigh_by_square();
            else if (run.format.bits == 3) some.weigh_by_super_block(2.0f);
            else some.weigh_by_importance();
            some.search_symmetric(1 << (run.format.bits - 1), scale, offset, codes);
        }
    }
    void encode(const group_view& g, group_scale s, std::uint8_t* codes) const noexcept {
        if (s.scale == 0.0f) {
            // -0 is how the two-level scheme says that the whole super-block is zero (q6_k: all bytes zero then)
            if ((detail::bits_of(s.scale) >> 31) != 0)
                for (std::size_t i = 0; i < g.x.size(); ++i) codes[i] = 0;
            return;
        }
        const int half = 1 << (g.format.bits - 1);
        for (std::size_t i = 0; i < g.x.size(); ++i)
            codes[i] = static_cast<std::uint8_t>(detail::nearest_within(g.x[i] / s.scale, -half, half - 1) + half);
    }
    static void describe(const code_format& f, detail::encoder& e) noexcept {
        e.weight = detail::scaled_weight::quotient;
        e.zero = 1 << (f.bits - 1);
        e.highest = 2 * e.zero - 1;
    }
};

/// iq4_nl and iq4_xs. `tries` is ggml's ntry: -1 for the iq4_nl reference, 7 for iq4_xs and for importance weights.
struct ggml_iq4 {
    static constexpr const char* name = "ggml_iq4";
    static constexpr bool searches = true;
    static constexpr bool unrounded_scale = true;
    int tries = -1;
    bool super_blocks = false;  ///< iq4_xs: sigma2 over 256 weights

    [[nodiscard]] group_scale operator()(const group_view& g, std::uint8_t* codes) const {
        detail::check_ggml_group(g.x.size());
        float w[detail::ggml_max_group];
        if (g.importance.empty()) {
            for (std::size_t i = 0; i < g.x.size(); ++i) w[i] = g.x[i] * g.x[i];
        } else {
            const float squares = super_blocks ? detail::super_block_squares(g) : detail::sum_of_squares(g.x);
            const float size = super_blocks ? 256.0f : static_cast<float>(g.x.size());
            detail::importance_weights(g, 2.0f * squares / size, w);
        }
        const int ntry = g.importance.empty() ? tries : 7;
        const float largest = detail::signed_absmax(g.x);
        if (detail::magnitude(largest) < 1e-15f) {
            for (std::size_t i = 0; i < g.x.size(); ++i) codes[i] = 8;
            return {};
        }
        const float first = g.format.values[0];
        const float d0 = (ntry > 0 ? -largest : largest) / first;
        trial t = run(g, w, 1.0f / d0, codes);
        float d = t.l2 > 0.0f ? t.lx / t.l2 : 0.0f;
        float best = d * t.lx;
        for (int k = -ntry; k <= ntry; ++k) {
            t = run(g, w, (static_cast<float>(k) + first) / largest, nullptr);
            if (t.l2 > 0.0f && t.lx * t.lx > best * t.l2) {
                d = t.lx / t.l2;
                best = d * t.lx;
            }
        }
        return {d, 0.0f};
    }
    /// The iq4_nl reference keeps the codes of its first pass, though the scale is refitted after it.
    [[nodiscard]] bool keeps_codes(const group_view& g) const noexcept { return tries < 0 && g.importance.empty(); }

private:
    struct trial {
        float lx;
        float l2;
    };
    [[nodiscard]] static trial run(const group_view& g, const float* w, float inv, std::uint8_t* codes) noexcept {
        trial t{0.0f, 0.0f};
        for (std::size_t i = 0; i < g.x.size(); ++i) {
            const unsigned code = detail::encode_iq4_nl(g.format, inv * g.x[i]);
            const float q = g.format.values[code];
            t.lx += w[i] * q * g.x[i];
            t.l2 += w[i] * q * q;
            if (codes != nullptr) codes[i] = static_cast<std::uint8_t>(code);
        }
        return t;
    }
};

/// mxfp4 and nvfp4 as ggml writes them. mxfp4: exponent floor(log2 max|w|) - 2, from the bits (ggml's log2f is one too
/// high just below some powers of two, and its exponent wraps for blocks below 2^-125; those two are not copied).
/// nvfp4: E4M3 of max|w| / 6 rounded half up, no factor for the tensor.
struct ggml_fp4 {
    static constexpr const char* name = "ggml_fp4";
    bool nvfp4 = false;

    [[nodiscard]] group_scale from_range(float low, float high, const code_format&) const noexcept {
        const float amax = detail::largest_magnitude(low, high);
        if (nvfp4) return {fp8_e4m3::decode(round_half_up(amax / 6.0f)), 0.0f};
        if (!(amax > 0.0f)) return {detail::power_of_two(-127), 0.0f};
        const int e = detail::exponent_of(amax) - 2;
        return {detail::power_of_two(e < -127 ? -127 : e), 0.0f};
    }
    void encode(const group_view& g, group_scale s, std::uint8_t* codes) const noexcept {
        const float half = s.scale * 0.5f;
        for (std::size_t i = 0; i < g.x.size(); ++i)
            codes[i] = static_cast<std::uint8_t>(detail::nearest_e2m1(g.format, half, g.x[i]));
    }

private:
    [[nodiscard]] static unsigned round_half_up(float x) noexcept {
        if (!(x > 0.0f)) return 0;
        int e = detail::exponent_of(x) + 7;
        if (e <= 0) {
            const int v = static_cast<int>(x * 512.0f + 0.5f);
            return v > 7 ? 7u : v < 1 ? 0u : static_cast<unsigned>(v);
        }
        const std::uint32_t bits = detail::bits_of(x);
        std::uint32_t m = ((bits >> 20) & 7u) + ((bits >> 19) & 1u);
        if (m > 7) {
            m = 0;
            ++e;
        }
        return e >= 15 ? 0x7eu : static_cast<unsigned>(e) << 3 | m;  // everything from 256 up becomes 448, as in ggml
    }
};

/// tq1_0 and tq2_0: for weights that are ternary already.
struct ggml_ternary {
    static constexpr const char* name = "ggml_ternary";
    static constexpr bool unrounded_scale = true;
    static constexpr bool symmetric = true;

    [[nodiscard]] group_scale from_range(float low, float high, const code_format&) const noexcept {
        return {detail::largest_magnitude(low, high), 0.0f};
    }
    void encode(const group_view& g, group_scale s, std::uint8_t* codes) const noexcept { detail::encode_away(g.x, s.scale, {-1, 1, 1}, codes); }
    static void describe(const code_format&, detail::encoder& e) noexcept { detail::describe_away({-1, 1, 1}, e); }
};

NIBBLE_FP_END

}  // namespace nibble
