// The arithmetic of the ggml rules (quantizers/ggml.hpp). Every + - * / is one binary32 operation, and sums run left to
// right: that is part of the formats.
#pragma once

#include "../detail/dispatch.hpp"
#include "quantizer.hpp"

namespace nibble::inline NIBBLE_ABI::detail {

inline constexpr std::size_t ggml_max_group = 256;

inline void check_ggml_group(std::size_t weights) {
    if (weights > ggml_max_group)
        fail(errc::unsupported, "quantize: the ggml rules take groups of at most 256 weights, not " + std::to_string(weights));
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

/// Groups of a run, 16 at a time, as the searching kernels take them: a group to a lane.
class group_lanes {
public:
    static constexpr index count = 16;

    /// Groups [first, first + 16) of the run, or those that are left; the other lanes are zero.
    group_lanes(const group_run& run, index first) : run_(run), first_(first), live_(run.groups - first < count ? run.groups - first : count) {
        check_ggml_group(static_cast<std::size_t>(run.size));
        load(run.x, x_);
        if (live_ < count) std::memset(w_, 0, static_cast<std::size_t>(run.size * count) * sizeof(float));
    }
    /// One group of any numbers, with the weights of their errors.
    group_lanes(const group_run& run, const float* w) : group_lanes(run, index{0}) {
        for (index i = 0; i < run.size; ++i) w_[count * i] = w[i];
    }

    /// |x|, for ggml's first pass of 2 bits.
    void weigh_by_magnitude() noexcept {
        for (index i = 0; i < count * run_.size; ++i) w_[i] = magnitude(x_[i]);
    }
    /// sqrt(mean of x^2) + |x|.
    void weigh_above_mean() noexcept {
        float mean[count] = {};
        for (index i = 0; i < run_.size; ++i)
            for (index j = 0; j < count; ++j) mean[j] += x_[count * i + j] * x_[count * i + j];
        for (float& m : mean) m = sqrt_rounded(m / static_cast<float>(run_.size));
        for (index i = 0; i < run_.size; ++i)
            for (index j = 0; j < count; ++j) w_[count * i + j] = mean[j] + magnitude(x_[count * i + j]);
    }
    void weigh_by_square() noexcept {
        for (index i = 0; i < count * run_.size; ++i) w_[i] = x_[i] * x_[i];
    }
    void weigh_by_importance() noexcept { load(run_.importance, w_); }
    /// importance * sqrt(sigma2 + x^2), sigma2 being the same for all groups, or factor / 256 times the sum of squares of
    /// the super-block that a group lies in.
    void weigh_by_importance(float sigma2) {
        for (index j = 0; j < live_; ++j) weigh_lane(j, sigma2);
    }
    void weigh_by_super_block(float factor) {
        index super = -1;
        float squares = 0.0f;
        for (index j = 0; j < live_; ++j) {
            const group_view v = run_.group(first_ + j);
            if (v.row.empty() || v.first / 256 != super) squares = super_block_squares(v);
            super = v.first / 256;
            weigh_lane(j, factor * squares / 256.0f);
        }
    }

    void search_affine(const detail::affine_search& p, float* scale, float* offset, std::uint8_t* codes) noexcept {
        kernels_.search_affine(lines(), p);
        store(scale, offset, codes);
    }
    void search_symmetric(int nmax, float* scale, float* offset, std::uint8_t* codes) noexcept {
        kernels_.search_symmetric(lines(), nmax);
        store(scale, offset, codes);
    }

private:
    [[nodiscard]] search_lines lines() noexcept { return {x_, w_, run_.size, scale_, offset_, codes_}; }

    void load(const float* from, float* to) const noexcept {
        const index size = run_.size;
        from += first_ * size;
        if (live_ == count && size % count == 0) {
            for (index i = 0; i < size; i += count)
                kernels_.transpose(reinterpret_cast<const std::uint8_t*>(from + i), size * 4, reinterpret_cast<std::uint8_t*>(to + count * i), 64);
            return;
        }
        for (index j = 0; j < live_; ++j)
            for (index i = 0; i < size; ++i) to[count * i + j] = from[j * size + i];
        for (index j = live_; j < count; ++j)
            for (index i = 0; i < size; ++i) to[count * i + j] = 0.0f;
    }

    void weigh_lane(index lane, float sigma2) {
        float w[ggml_max_group];
        importance_weights(run_.group(first_ + lane), sigma2, w);
        for (index i = 0; i < run_.size; ++i) w_[count * i + lane] = w[i];
    }

    void store(float* scale, float* offset, std::uint8_t* codes) const noexcept {
        for (index j = 0; j < live_; ++j) {
            scale[first_ + j] = scale_[j];
            offset[first_ + j] = offset_[j];
            std::uint8_t* to = codes + (first_ + j) * run_.code_step;
            for (index i = 0; i < run_.size; i += 4)
                std::memcpy(to + i, codes_ + count / 4 * i + j, static_cast<std::size_t>(run_.size - i < 4 ? run_.size - i : 4));
        }
    }

    group_run run_;  // a value: callers pass temporaries
    index first_, live_;
    const codec_kernels& kernels_ = active_kernels().codec;
    alignas(64) float x_[ggml_max_group * count];
    alignas(64) float w_[ggml_max_group * count];
    alignas(64) std::uint32_t codes_[ggml_max_group / 4 * count];
    float scale_[count], offset_[count];
};

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

NIBBLE_FP_END

}  // namespace nibble::detail
