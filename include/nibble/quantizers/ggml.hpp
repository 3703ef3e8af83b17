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
#include "quantizer.hpp"

namespace nibble::inline NIBBLE_ABI {
namespace detail {

inline constexpr std::size_t ggml_max_group = 256;

inline void check_ggml_group(const group_view& g) {
    if (g.x.size() > ggml_max_group)
        fail(errc::unsupported,
             "quantize: the ggml rules take groups of at most 256 weights, not " + std::to_string(g.x.size()));
}

NIBBLE_FP_BEGIN

/// Round half away from zero: C's roundf, without the library call.
[[nodiscard]] inline int round_away(float x) noexcept {
    const int whole = static_cast<int>(x);
    const float rest = x - static_cast<float>(whole);
    return rest >= 0.5f ? whole + 1 : rest <= -0.5f ? whole - 1 : whole;
}

[[nodiscard]] inline int clamp_int(int x, int low, int high) noexcept { return x < low ? low : x > high ? high : x; }

/// ggml's nearest_int: round to nearest even for |x| < 2^22. Beyond that, and for Inf and NaN, it is whatever the bits
/// say, which is what ggml writes for blocks so small that 1 / scale overflows.
[[nodiscard]] inline int nearest_int(float x) noexcept {
    const std::uint32_t u = bits_of(x + 12582912.0f);
    return static_cast<int>(u & 0x007fffffu) - 0x00400000;
}

/// The nearest integer within low .. high (at most 2^22). For the codes of weights that the scale was not chosen from.
[[nodiscard]] inline int nearest_within(float x, int low, int high) noexcept {
    return static_cast<int>(round_even(clamp(x, static_cast<float>(low), static_cast<float>(high))));
}

/// The first value of largest magnitude, with its sign.
[[nodiscard]] inline float signed_absmax(std::span<const float> x) noexcept {
    float amax = 0.0f;
    float value = 0.0f;
    for (const float v : x) {
        if (magnitude(v) > amax) {
            amax = magnitude(v);
            value = v;
        }
    }
    return value;
}

[[nodiscard]] inline float sum_of_squares(std::span<const float> x) noexcept {
    float sum = 0.0f;
    for (const float v : x) sum += v * v;
    return sum;
}

/// sqrt rounded once. The hardware instruction is; a call under -ffast-math need not be, so Newton's correction in
/// double settles it.
[[nodiscard]] inline float sqrt_rounded(float x) noexcept {
    if (!(x > 0.0f)) return 0.0f;
    double r = std::sqrt(static_cast<double>(x));
    r = 0.5 * (r + static_cast<double>(x) / r);
    return static_cast<float>(r);
}

/// The weights of the squared errors: importance * sqrt(sigma2 + x^2), the ggml formula.
inline void importance_weights(const group_view& g, float sigma2, float* w) noexcept {
    for (std::size_t i = 0; i < g.x.size(); ++i) {
        const float square = g.x[i] * g.x[i];
        w[i] = g.importance[i] * sqrt_rounded(sigma2 + square);
    }
}

/// Sum of squares of the super-block of 256 that the group lies in.
[[nodiscard]] inline float super_block_squares(const group_view& g) noexcept {
    if (g.row.empty()) return sum_of_squares(g.x);
    const std::size_t first = static_cast<std::size_t>(g.first) / 256 * 256;
    const std::size_t count = g.row.size() - first < 256 ? g.row.size() - first : 256;
    return sum_of_squares(g.row.subspan(first, count));
}

struct affine_search {
    int nmax;
    float rmin;
    float rdelta;
    int steps;
    bool absolute;  ///< compare absolute instead of squared errors
};

/// make_qkx2_quants / make_qkx3_quants. Returns the scale and -min >= 0; writes the codes.
[[nodiscard]] inline group_scale search_affine(std::span<const float> x, const float* w, const affine_search& p,
                                               std::uint8_t* codes) noexcept {
    const std::size_t n = x.size();
    if (n == 0) return {};
    const float nmax = static_cast<float>(p.nmax);
    float low = x[0];
    float high = x[0];
    float sum_w = w[0];
    float sum_x = sum_w * x[0];
    for (std::size_t i = 1; i < n; ++i) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
        sum_w += w[i];
        sum_x += w[i] * x[i];
    }
    if (low > 0.0f) low = 0.0f;
    if (high <= low) {
        for (std::size_t i = 0; i < n; ++i) codes[i] = 0;
        return {0.0f, -low};
    }
    float inv = nmax / (high - low);
    float scale = 1.0f / inv;
    float best = 0.0f;
    for (std::size_t i = 0; i < n; ++i) {
        const int l = clamp_int(nearest_int(inv * (x[i] - low)), 0, p.nmax);
        codes[i] = static_cast<std::uint8_t>(l);
        float e = scale * static_cast<float>(l) + low - x[i];
        e = p.absolute ? magnitude(e) : e * e;
        best += w[i] * e;
    }
    std::uint8_t trial[ggml_max_group];
    for (int k = 0; k <= p.steps; ++k) {
        inv = (p.rmin + p.rdelta * static_cast<float>(k) + nmax) / (high - low);
        float a = 0.0f;
        float b = 0.0f;
        float c = 0.0f;
        for (std::size_t i = 0; i < n; ++i) {
            const int l = clamp_int(nearest_int(inv * (x[i] - low)), 0, p.nmax);
            trial[i] = static_cast<std::uint8_t>(l);
            const float wl = w[i] * static_cast<float>(l);
            a += wl;
            b += wl * static_cast<float>(l);
            c += wl * x[i];
        }
        const float determinant = sum_w * b - a * a;
        if (!(determinant > 0.0f)) continue;
        float this_scale = (sum_w * c - sum_x * a) / determinant;
        float this_min = (b * sum_x - a * c) / determinant;
        if (this_min > 0.0f) {
            this_min = 0.0f;
            this_scale = c / b;
        }
        float error = 0.0f;
        for (std::size_t i = 0; i < n; ++i) {
            float e = this_scale * static_cast<float>(trial[i]) + this_min - x[i];
            e = p.absolute ? magnitude(e) : e * e;
            error += w[i] * e;
        }
        if (error < best) {
            for (std::size_t i = 0; i < n; ++i) codes[i] = trial[i];
            best = error;
            scale = this_scale;
            low = this_min;  // the next trial divides by high - this minimum, as ggml does
        }
    }
    return {scale, -low};
}

/// make_qx_quants: returns the scale; writes codes 0 .. 2 * nmax - 1.
[[nodiscard]] inline float search_symmetric(std::span<const float> x, const float* w, int nmax,
                                            std::uint8_t* codes) noexcept {
    const std::size_t n = x.size();
    const float largest = signed_absmax(x);
    if (magnitude(largest) < 1e-15f) {
        for (std::size_t i = 0; i < n; ++i) codes[i] = 0;
        return 0.0f;
    }
    const float half = static_cast<float>(nmax);
    float scale = 0.0f;
    float best = 0.0f;
    for (int step = -10; step <= 9; ++step) {  // -10 stands for the first, unshifted trial
        const bool first = step == -10;
        if (step == 0) continue;
        const float inv = first ? -half / largest : -(half + 0.1f * static_cast<float>(step)) / largest;
        float sum_lx = 0.0f;
        float sum_l2 = 0.0f;
        for (std::size_t i = 0; i < n; ++i) {
            const float l = static_cast<float>(clamp_int(nearest_int(inv * x[i]), -nmax, nmax - 1));
            sum_lx += w[i] * x[i] * l;
            sum_l2 += w[i] * l * l;
        }
        if (first) {
            scale = sum_l2 != 0.0f ? sum_lx / sum_l2 : 0.0f;
            best = scale * sum_lx;
        } else {
            if (!(sum_l2 > 0.0f && sum_lx * sum_lx > best * sum_l2)) continue;
            scale = sum_lx / sum_l2;
            best = scale * sum_lx;
        }
        for (std::size_t i = 0; i < n; ++i)
            codes[i] = static_cast<std::uint8_t>(nmax + clamp_int(nearest_int(inv * x[i]), -nmax, nmax - 1));
    }
    return scale;
}

/// make_q3_quants with error weights x^2: coordinate descent, at most five passes.
[[nodiscard]] inline float search_q3(std::span<const float> x, std::uint8_t* codes) noexcept {
    const std::size_t n = x.size();
    constexpr int nmax = 4;
    const float largest = signed_absmax(x);
    if (magnitude(largest) < 1e-15f) {
        for (std::size_t i = 0; i < n; ++i) codes[i] = 0;
        return 0.0f;
    }
    const float inv = -static_cast<float>(nmax) / largest;
    int l[ggml_max_group];
    float sum_lx = 0.0f;
    float sum_l2 = 0.0f;
    for (std::size_t i = 0; i < n; ++i) {
        l[i] = clamp_int(nearest_int(inv * x[i]), -nmax, nmax - 1);
        const float w = x[i] * x[i];
        sum_lx += w * x[i] * static_cast<float>(l[i]);
        sum_l2 += w * static_cast<float>(l[i]) * static_cast<float>(l[i]);
    }
    for (int pass = 0; pass < 5; ++pass) {
        bool changed = false;
        for (std::size_t i = 0; i < n; ++i) {
            const float w = x[i] * x[i];
            float lx = sum_lx - w * x[i] * static_cast<float>(l[i]);
            if (!(lx > 0.0f)) continue;
            float l2 = sum_l2 - w * static_cast<float>(l[i]) * static_cast<float>(l[i]);
            const int next = clamp_int(nearest_int(x[i] * l2 / lx), -nmax, nmax - 1);
            if (next == l[i]) continue;
            lx += w * x[i] * static_cast<float>(next);
            l2 += w * static_cast<float>(next) * static_cast<float>(next);
            if (l2 > 0.0f && lx * lx * sum_l2 > sum_lx * sum_lx * l2) {
                l[i] = next;
                sum_lx = lx;
                sum_l2 = l2;
                changed = true;
            }
        }
        if (!changed) break;
    }
    for (std::size_t i = 0; i < n; ++i) codes[i] = static_cast<std::uint8_t>(l[i] + nmax);
    return sum_l2 > 0.0f ? sum_lx / sum_l2 : 0.0f;
}

/// make_qp_quants: the super-scale of positive scales under weights. Returns d and writes codes 0 .. nmax.
[[nodiscard]] inline float search_positive(const float* x, const float* w, std::size_t n, int nmax,
                                           std::uint8_t* codes) noexcept {
    float largest = 0.0f;
    for (std::size_t i = 0; i < n; ++i) largest = x[i] > largest ? x[i] : largest;
    if (largest < 1e-15f) {
        for (std::size_t i = 0; i < n; ++i) codes[i] = 0;
        return 0.0f;
    }
    const float top = static_cast<float>(nmax);
    float inv = top / largest;
    float scale = 1.0f / inv;
    float best = 0.0f;
    for (std::size_t i = 0; i < n; ++i) {
        const float e = x[i] - scale * static_cast<float>(nearest_int(inv * x[i]));  // no clamp in the first pass
        best += w[i] * e * e;
    }
    for (int k = -4; k <= 4; ++k) {
        if (k == 0) continue;
        const float this_inv = (0.1f * static_cast<float>(k) + top) / largest;
        const float this_scale = 1.0f / this_inv;
        float error = 0.0f;
        for (std::size_t i = 0; i < n; ++i) {
            int l = nearest_int(this_inv * x[i]);
            l = l < nmax ? l : nmax;
            const float e = x[i] - this_scale * static_cast<float>(l);
            error += w[i] * e * e;
        }
        if (error < best) {
            best = error;
            inv = this_inv;
        }
    }
    float sum_lx = 0.0f;
    float sum_l2 = 0.0f;
    for (std::size_t i = 0; i < n; ++i) {
        int l = nearest_int(inv * x[i]);
        l = l < nmax ? l : nmax;
        codes[i] = static_cast<std::uint8_t>(l);
        sum_lx += w[i] * x[i] * static_cast<float>(l);
        sum_l2 += w[i] * static_cast<float>(l) * static_cast<float>(l);
    }
    for (int pass = 0; pass < 5; ++pass) {
        bool changed = false;
        for (std::size_t i = 0; i < n; ++i) {
            const float old = static_cast<float>(codes[i]);
            float lx = sum_lx - w[i] * x[i] * old;
            float l2 = sum_l2 - w[i] * old * old;
            if (!(lx > 0.0f && l2 > 0.0f)) continue;
            int next = nearest_int(x[i] * l2 / lx);
            next = next < nmax ? next : nmax;
            if (next == static_cast<int>(codes[i])) continue;
            lx += w[i] * x[i] * static_cast<float>(next);
            l2 += w[i] * static_cast<float>(next) * static_cast<float>(next);
            if (lx * lx * sum_l2 > sum_lx * sum_lx * l2) {
                codes[i] = static_cast<std::uint8_t>(next);
                sum_lx = lx;
                sum_l2 = l2;
                changed = true;
            }
        }
        if (!changed) break;
    }
    return sum_l2 > 0.0f ? sum_lx / sum_l2 : 0.0f;
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

    [[nodiscard]] group_scale operator()(const group_view& g, std::uint8_t* codes) const {
        const int half = 1 << (g.format.bits - 1);
        if (g.importance.empty()) return {detail::signed_absmax(g.x) / static_cast<float>(-half), 0.0f};
        detail::check_ggml_group(g);
        float w[detail::ggml_max_group];
        detail::importance_weights(g, g.row_sum_squares / static_cast<float>(g.row.size()), w);
        return {detail::search_symmetric(g.x, w, half, codes), 0.0f};
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
};

/// q4_1 and q5_1.
struct ggml_min_max {
    static constexpr const char* name = "ggml_min_max";
    static constexpr offset_kind offset = offset_kind::minimum;
    static constexpr bool searches = true;
    static constexpr bool unrounded_scale = true;

    [[nodiscard]] group_scale operator()(const group_view& g, std::uint8_t* codes) const {
        const int n = static_cast<int>(g.format.code_count()) - 1;
        if (!g.importance.empty()) {
            detail::check_ggml_group(g);
            float w[detail::ggml_max_group];
            detail::importance_weights(g, g.row_sum_squares / static_cast<float>(g.row.size()), w);
            const group_scale s = detail::search_affine(g.x, w, {n, -0.9f, 0.05f, 36, false}, codes);
            return {s.scale, -s.offset};
        }
        float low = g.x[0];
        float high = g.x[0];
        for (const float v : g.x) {
            low = v < low ? v : low;
            high = v > high ? v : high;
        }
        return {(high - low) / static_cast<float>(n), low};
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
};

/// q8_0, the reference's rounding: half away from zero.
struct ggml_absmax {
    static constexpr const char* name = "ggml_absmax";
    static constexpr bool unrounded_scale = true;

    [[nodiscard]] group_scale from_range(float low, float high, const code_format&) const noexcept {
        return {detail::largest_magnitude(low, high) / 127.0f, 0.0f};
    }
    void encode(const group_view& g, group_scale s, std::uint8_t* codes) const noexcept {
        const float inv = detail::inverse(s.scale);
        for (std::size_t i = 0; i < g.x.size(); ++i)
            codes[i] = static_cast<std::uint8_t>(
                detail::clamp_int(detail::round_away(detail::clamp(g.x[i] * inv, -128.0f, 127.0f)), -128, 127) + 128);
    }
};

/// q2_k, q4_k, q5_k.
struct ggml_affine {
    static constexpr const char* name = "ggml_affine";
    static constexpr offset_kind offset = offset_kind::minimum;
    static constexpr bool searches = true;

    [[nodiscard]] group_scale operator()(const group_view& g, std::uint8_t* codes) const {
        detail::check_ggml_group(g);
        const int n = static_cast<int>(g.format.code_count()) - 1;
        float w[detail::ggml_max_group];
        detail::affine_search p{n, -0.9f, 0.05f, 36, false};
        if (!g.importance.empty()) {
            const float squares = detail::super_block_squares(g);
            detail::importance_weights(g, g.format.bits == 2 ? squares / 256.0f : 2.0f * squares / 256.0f, w);
        } else if (g.format.bits == 2) {
            for (std::size_t i = 0; i < g.x.size(); ++i) w[i] = detail::magnitude(g.x[i]);
            p = {n, -0.5f, 0.1f, 15, true};
        } else {
            const float mean = detail::sqrt_rounded(detail::sum_of_squares(g.x) / static_cast<float>(g.x.size()));
            for (std::size_t i = 0; i < g.x.size(); ++i) w[i] = mean + detail::magnitude(g.x[i]);
            p = g.format.bits == 5 ? detail::affine_search{n, -0.5f, 0.1f, 15, false}
                                   : detail::affine_search{n, -1.0f, 0.1f, 20, false};
        }
        const group_scale s = detail::search_affine(g.x, w, p, codes);
        return {s.scale, -s.offset};
    }
    void encode(const group_view& g, group_scale s, std::uint8_t* codes) const noexcept {
        if (s.scale == 0.0f) return;  // ggml keeps the codes of the search
        const int n = static_cast<int>(g.format.code_count()) - 1;
        for (std::size_t i = 0; i < g.x.size(); ++i)
            codes[i] = static_cast<std::uint8_t>(detail::nearest_within((g.x[i] - s.offset) / s.scale, 0, n));
    }
};

/// q3_k and q6_k.
struct ggml_symmetric {
    static constexpr const char* name = "ggml_symmetric";
    static constexpr bool searches = true;

    [[nodiscard]] group_scale operator()(const group_view& g, std::uint8_t* codes) const {
        detail::check_ggml_group(g);
        const int half = 1 << (g.format.bits - 1);
        float w[detail::ggml_max_group];
        if (g.format.bits == 3 && g.importance.empty()) return {detail::search_q3(g.x, codes), 0.0f};
        if (g.importance.empty()) {
            for (std::size_t i = 0; i < g.x.size(); ++i) w[i] = g.x[i] * g.x[i];
        } else if (g.format.bits == 3) {
            detail::importance_weights(g, 2.0f * detail::super_block_squares(g) / 256.0f, w);
        } else {
            for (std::size_t i = 0; i < g.x.size(); ++i) w[i] = g.importance[i];
        }
        return {detail::search_symmetric(g.x, w, half, codes), 0.0f};
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
};

/// iq4_nl and iq4_xs. `tries` is ggml's ntry: -1 for the iq4_nl reference, 7 for iq4_xs and for importance weights.
struct ggml_iq4 {
    static constexpr const char* name = "ggml_iq4";
    static constexpr bool searches = true;
    static constexpr bool unrounded_scale = true;
    int tries = -1;
    bool super_blocks = false;  ///< iq4_xs: sigma2 over 256 weights

    [[nodiscard]] group_scale operator()(const group_view& g, std::uint8_t* codes) const {
        detail::check_ggml_group(g);
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
    void encode(const group_view& g, group_scale s, std::uint8_t* codes) const noexcept {
        const float inv = detail::inverse(s.scale);
        for (std::size_t i = 0; i < g.x.size(); ++i)
            codes[i] = static_cast<std::uint8_t>(detail::encode_iq4_nl(g.format, inv * g.x[i]));
    }

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
    [[nodiscard]] group_scale from_range(float low, float high, const code_format&) const noexcept {
        return {detail::largest_magnitude(low, high), 0.0f};
    }
    void encode(const group_view& g, group_scale s, std::uint8_t* codes) const noexcept {
        const float inv = detail::inverse(s.scale);
        for (std::size_t i = 0; i < g.x.size(); ++i)
            codes[i] = static_cast<std::uint8_t>(
                detail::clamp_int(detail::round_away(detail::clamp(g.x[i] * inv, -1.0f, 1.0f)), -1, 1) + 1);
    }
};

NIBBLE_FP_END

}  // namespace nibble
