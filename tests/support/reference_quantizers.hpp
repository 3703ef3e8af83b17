// Quantizers restated from the definitions of their formats, without a line of the library: what tests compare with.
//
// Single-precision steps are written as double arithmetic rounded once: for one + - * / of floats that is the correctly
// rounded result. The volatile variables keep compilers from making floats of it again, which they then would contract
// (-march=native) or reassociate (-ffast-math). What touches subnormal numbers also needs a default_environment.
#pragma once

#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "reference_formats.hpp"

namespace reference {

// --- arithmetic ---------------------------------------------------------------------------------------------------

/// Rounding to nearest with subnormal numbers, for as long as it lives. Programs built with -ffast-math flush them.
class default_environment {
public:
    default_environment() {
        std::fegetenv(&saved_);
        std::fesetenv(FE_DFL_ENV);
    }
    default_environment(const default_environment&) = delete;
    default_environment& operator=(const default_environment&) = delete;
    ~default_environment() { std::fesetenv(&saved_); }

private:
    std::fenv_t saved_{};
};

[[nodiscard]] inline float rounded(double x) {
    const volatile float r = static_cast<float>(x);
    return r;
}
[[nodiscard]] inline float times(float a, float b) {
    const volatile double x = static_cast<double>(a);
    const volatile double product = x * static_cast<double>(b);
    return rounded(product);
}
[[nodiscard]] inline float over(float a, float b) {
    const volatile double x = static_cast<double>(a);
    const volatile double y = static_cast<double>(b);
    const volatile double quotient = x / y;
    return rounded(quotient);
}
[[nodiscard]] inline float plus(float a, float b) {
    const volatile double x = static_cast<double>(a);
    const volatile double sum = x + static_cast<double>(b);
    return rounded(sum);
}
[[nodiscard]] inline float minus(float a, float b) { return plus(a, -b); }

[[nodiscard]] inline double nearest_even(double x) {
    const double below = std::floor(x);
    const double rest = x - below;
    if (rest != 0.5) return rest < 0.5 ? below : below + 1.0;
    return std::fmod(below, 2.0) == 0.0 ? below : below + 1.0;
}
[[nodiscard]] inline int clamped(double x, int low, int high) {
    return x < low ? low : x > high ? high : static_cast<int>(x);
}
/// 1 / scale, 0 where that overflows.
[[nodiscard]] inline float reciprocal(float scale) {
    if (std::fabs(static_cast<double>(scale)) < std::ldexp(1.0, -128) * (1.0 + std::ldexp(1.0, -23))) return 0.0f;
    return over(1.0f, scale);
}

struct extremes {
    float low, high;
    [[nodiscard]] float magnitude() const { return std::max(-low, high); }
};
[[nodiscard]] inline extremes extremes_of(const std::vector<float>& x) {
    const auto [low, high] = std::minmax_element(x.begin(), x.end());
    return {*low, *high};
}

// --- data ---------------------------------------------------------------------------------------------------------

/// G2: approximately Gaussian, exact in a float.
[[nodiscard]] inline std::vector<float> generator_g2(std::size_t count) {
    std::vector<float> x;
    std::uint32_t s = 1;
    for (std::size_t i = 0; i < count; ++i) {
        int sum = 0;
        for (int k = 0; k < 4; ++k) {
            s = s * 1664525u + 1013904223u;
            sum += static_cast<int>(s >> 12) - 524288;
        }
        x.push_back(static_cast<float>(sum) / 524288.0f);
    }
    return x;
}

/// Samples of N(0, 1), the same on every machine up to the last bit of log, sin and cos.
[[nodiscard]] inline std::vector<float> normal_samples(std::size_t count, std::uint64_t seed) {
    std::mt19937_64 bits(seed);
    const double two_pi = 6.283185307179586;
    std::vector<float> x;
    while (x.size() < count) {
        const double u = (static_cast<double>(bits() >> 11) + 0.5) * std::ldexp(1.0, -53);
        const double v = static_cast<double>(bits() >> 11) * std::ldexp(1.0, -53);
        const double r = std::sqrt(-2.0 * std::log(u));
        x.push_back(static_cast<float>(r * std::cos(two_pi * v)));
        x.push_back(static_cast<float>(r * std::sin(two_pi * v)));
    }
    x.resize(count);
    return x;
}

/// FNV-1a, 64 bits.
[[nodiscard]] inline std::uint64_t fnv1a64(const std::vector<std::uint8_t>& bytes) {
    std::uint64_t h = 0xcbf29ce484222325ull;
    for (const std::uint8_t b : bytes) h = (h ^ b) * 0x100000001b3ull;
    return h;
}

/// Bytes of a string of hexadecimal digits; blanks are skipped.
[[nodiscard]] inline std::vector<std::uint8_t> from_hex(std::string_view text) {
    std::vector<std::uint8_t> bytes;
    unsigned value = 0;
    bool half = false;
    for (const char c : text) {
        const auto digit = std::string_view("0123456789abcdef").find(c);
        if (digit == std::string_view::npos) continue;
        value = value * 16 + static_cast<unsigned>(digit);
        if (half) bytes.push_back(static_cast<std::uint8_t>(value & 0xff));
        half = !half;
    }
    return bytes;
}
[[nodiscard]] inline std::string to_hex(const std::vector<std::uint8_t>& bytes) {
    std::string s;
    for (const std::uint8_t b : bytes) {
        s += "0123456789abcdef"[b >> 4];
        s += "0123456789abcdef"[b & 15];
    }
    return s;
}

// --- how a scale is stored ----------------------------------------------------------------------------------------

enum class storage { f32, f16, bf16 };

[[nodiscard]] inline float stored(storage s, float x) {
    if (s == storage::f32) return x;
    static const staircase fp16 = find_small_float("fp16")->encoder(false);
    static const staircase bf16 = find_small_float("bf16")->encoder(false);
    const bool half = s == storage::f16;
    return static_cast<float>(find_small_float(half ? "fp16" : "bf16")->value((half ? fp16 : bf16)(x)));
}

// --- one group ----------------------------------------------------------------------------------------------------

/// What a group becomes: stored scale and offset, codes.
struct group {
    float scale = 0.0f;
    float offset = 0.0f;
    std::vector<unsigned> codes;
};

/// The value that absmax maps to: the largest magnitude an encoder of the format reaches.
[[nodiscard]] inline float absmax_target(std::string_view format) {
    if (const integer_format* i = find_integer(format)) return static_cast<float>(i->largest);
    if (const small_float* f = find_small_float(format)) return static_cast<float>(f->plain_value(f->largest_finite()));
    float largest = 0.0f;
    for (const float v : codebook_table(format)) largest = std::max(largest, std::fabs(v));
    return largest;
}

[[nodiscard]] inline std::vector<unsigned> encoded(const std::vector<float>& x, float inv, const staircase& encoder) {
    std::vector<unsigned> codes;
    for (const float v : x) codes.push_back(encoder(times(v, inv)));
    return codes;
}

[[nodiscard]] inline group absmax_group(const std::vector<float>& x, std::string_view format, storage s) {
    const float scale = stored(s, over(extremes_of(x).magnitude(), absmax_target(format)));
    return {scale, 0.0f, encoded(x, reciprocal(scale), encoder_of(format))};
}

/// PyTorch's affine rule with unsigned codes 0 .. 2^bits - 1.
[[nodiscard]] inline group zero_point_group(const std::vector<float>& x, int bits, storage s) {
    const int last = (1 << bits) - 1;
    const float low = std::min(0.0f, extremes_of(x).low);
    const float high = std::max(0.0f, extremes_of(x).high);
    const float scale = std::max(over(minus(high, low), static_cast<float>(last)), std::ldexp(1.0f, -23));
    const int zero = clamped(-nearest_even(static_cast<double>(over(low, scale))), 0, last);
    group g{stored(s, scale), static_cast<float>(zero), {}};
    const float inv = reciprocal(g.scale);
    for (const float v : x)
        g.codes.push_back(
            static_cast<unsigned>(clamped(nearest_even(static_cast<double>(times(v, inv))) + zero, 0, last)));
    return g;
}

/// scale * code + minimum.
[[nodiscard]] inline group minimum_group(const std::vector<float>& x, int bits, storage s) {
    const int last = (1 << bits) - 1;
    const extremes e = extremes_of(x);
    group g{stored(s, over(minus(e.high, e.low), static_cast<float>(last))), stored(s, e.low), {}};
    const float inv = reciprocal(g.scale);
    for (const float v : x)
        g.codes.push_back(
            static_cast<unsigned>(clamped(nearest_even(static_cast<double>(times(minus(v, g.offset), inv))), 0, last)));
    return g;
}

/// scale * (code - zero), zero not rounded.
[[nodiscard]] inline group float_zero_group(const std::vector<float>& x, int bits, storage s) {
    const int last = (1 << bits) - 1;
    const extremes e = extremes_of(x);
    const float scale = over(minus(e.high, e.low), static_cast<float>(last));
    group g{stored(s, scale), stored(s, -times(e.low, reciprocal(scale))), {}};
    const float inv = reciprocal(g.scale);
    for (const float v : x)
        g.codes.push_back(
            static_cast<unsigned>(clamped(nearest_even(static_cast<double>(plus(times(v, inv), g.offset))), 0, last)));
    return g;
}

// --- microscaling -------------------------------------------------------------------------------------------------

enum class shared_exponent { floor, even, ceil, rceil };

/// The exponent of the scale of a block, from the exact binary exponent of its largest magnitude.
[[nodiscard]] inline int mx_exponent(float amax, std::string_view format, shared_exponent mode) {
    const small_float& f = *find_small_float(format);
    const double largest = f.plain_value(f.largest_finite());
    const double a = mode == shared_exponent::rceil ? static_cast<double>(over(amax, static_cast<float>(largest)))
                                                    : static_cast<double>(amax);
    int emax = 0;
    static_cast<void>(std::frexp(largest, &emax));
    if (mode == shared_exponent::rceil) emax = 1;  // the division has taken it out
    if (a == 0.0) return -127;
    int e = 0;
    const double fraction = 2.0 * std::frexp(a, &e);  // 1 <= fraction < 2
    if (mode == shared_exponent::even && fraction + std::ldexp(0.5, -static_cast<int>(f.mantissa_bits)) >= 2.0) ++e;
    if ((mode == shared_exponent::ceil || mode == shared_exponent::rceil) && fraction > 1.0) ++e;
    return std::clamp(e - emax, -127, 127);
}

[[nodiscard]] inline group mx_group(const std::vector<float>& x, std::string_view format, shared_exponent mode) {
    const int e = mx_exponent(extremes_of(x).magnitude(), format, mode);
    group g{static_cast<float>(std::ldexp(1.0, e)), 0.0f, {}};
    const staircase encoder = encoder_of(format);
    for (const float v : x) g.codes.push_back(encoder(static_cast<float>(std::ldexp(static_cast<double>(v), -e))));
    return g;
}

/// NVFP4 with a scale for the tensor (torchao). `scale` is f32(e4m3 * tensor).
[[nodiscard]] inline group nvfp4_group(const std::vector<float>& x, float tensor_scale) {
    const small_float& e4m3 = *find_small_float("fp8_e4m3");
    const float raw = over(over(extremes_of(x).magnitude(), 6.0f), tensor_scale);
    const unsigned code = e4m3.encoder(true)(std::clamp(raw, 0.015625f, 448.0f));
    group g{times(static_cast<float>(e4m3.value(code)), tensor_scale), static_cast<float>(code), {}};
    g.codes = encoded(x, reciprocal(g.scale), encoder_of("fp4_e2m1"));
    return g;
}

// --- the searches of ggml -----------------------------------------------------------------------------------------

/// Signed scales (make_qx_quants with weights): 19 trials around -half / (value of largest magnitude).
[[nodiscard]] inline float search_scale(const std::vector<float>& x, const std::vector<float>& w, int half) {
    float largest = 0.0f;
    for (const float v : x)
        if (std::fabs(v) > std::fabs(largest)) largest = v;
    if (std::fabs(largest) < 1e-15f) return 0.0f;
    float scale = 0.0f;
    float best = 0.0f;
    bool first = true;
    const auto attempt = [&](float numerator) {
        const float inv = over(-numerator, largest);
        float lx = 0.0f;
        float l2 = 0.0f;
        for (std::size_t i = 0; i < x.size(); ++i) {
            const int q = clamped(nearest_even(static_cast<double>(times(inv, x[i]))), -half, half - 1);
            const float l = static_cast<float>(q);
            lx = plus(lx, times(times(w[i], x[i]), l));
            l2 = plus(l2, times(times(w[i], l), l));
        }
        if (first) {
            scale = l2 != 0.0f ? over(lx, l2) : 0.0f;
            best = times(scale, lx);
        } else if (l2 > 0.0f && times(lx, lx) > times(best, l2)) {
            scale = over(lx, l2);
            best = times(scale, lx);
        }
        first = false;
    };
    attempt(static_cast<float>(half));
    for (int k = -9; k <= 9; ++k)
        if (k != 0) attempt(plus(static_cast<float>(half), times(0.1f, static_cast<float>(k))));
    return scale;
}

/// Scales and minima (make_qkx2_quants): a trial for each of `steps` + 1 ranges, refitted by weighted least squares.
[[nodiscard]] inline group search_minimum(const std::vector<float>& x, const std::vector<float>& w, int last,
                                          float rmin, float rdelta, int steps, bool absolute) {
    const extremes e = extremes_of(x);
    const float high = e.high;
    float low = std::min(0.0f, e.low);
    float sum_w = 0.0f;
    float sum_x = 0.0f;
    for (std::size_t i = 0; i < x.size(); ++i) {
        sum_w = i == 0 ? w[0] : plus(sum_w, w[i]);
        sum_x = i == 0 ? times(w[0], x[0]) : plus(sum_x, times(w[i], x[i]));
    }
    if (high <= low) return {0.0f, low, {}};
    const auto codes_for = [&](float inv) {
        std::vector<float> l;
        for (const float v : x)
            l.push_back(
                static_cast<float>(clamped(nearest_even(static_cast<double>(times(inv, minus(v, low)))), 0, last)));
        return l;
    };
    const auto error_of = [&](float scale, float minimum, const std::vector<float>& l) {
        float sum = 0.0f;
        for (std::size_t i = 0; i < x.size(); ++i) {
            const float d = minus(plus(times(scale, l[i]), minimum), x[i]);
            sum = plus(sum, times(w[i], absolute ? std::fabs(d) : times(d, d)));
        }
        return sum;
    };
    const float top = static_cast<float>(last);
    const float first = over(top, minus(high, low));
    float scale = over(1.0f, first);
    float best = error_of(scale, low, codes_for(first));
    for (int k = 0; k <= steps; ++k) {
        const float numerator = plus(plus(rmin, times(rdelta, static_cast<float>(k))), top);
        const std::vector<float> l = codes_for(over(numerator, minus(high, low)));
        float a = 0.0f;
        float b = 0.0f;
        float c = 0.0f;
        for (std::size_t i = 0; i < x.size(); ++i) {
            a = plus(a, times(w[i], l[i]));
            b = plus(b, times(times(w[i], l[i]), l[i]));
            c = plus(c, times(times(w[i], l[i]), x[i]));
        }
        const float determinant = minus(times(sum_w, b), times(a, a));
        if (!(determinant > 0.0f)) continue;
        float this_scale = over(minus(times(sum_w, c), times(sum_x, a)), determinant);
        float this_low = over(minus(times(b, sum_x), times(a, c)), determinant);
        if (this_low > 0.0f) {
            this_low = 0.0f;
            this_scale = over(c, b);
        }
        const float error = error_of(this_scale, this_low, l);
        if (error < best) {
            best = error;
            scale = this_scale;
            low = this_low;
        }
    }
    return {scale, low, {}};
}

// --- double quantization ------------------------------------------------------------------------------------------

struct nested_scales {
    float mean = 0.0f;
    std::vector<float> absmax;    // one of 256 scales
    std::vector<unsigned> codes;  // of each scale
    std::vector<float> restored;
};

[[nodiscard]] inline nested_scales nest(const std::vector<float>& scale) {
    nested_scales n;
    double sum = 0.0;
    for (const float s : scale) sum += static_cast<double>(s);
    n.mean = static_cast<float>(sum / static_cast<double>(scale.size()));
    const std::vector<float> map = dynamic_map();
    for (std::size_t first = 0; first < scale.size(); first += 256) {
        const std::size_t last = std::min(scale.size(), first + 256);
        float absmax = 0.0f;
        for (std::size_t i = first; i < last; ++i) absmax = std::max(absmax, std::fabs(minus(scale[i], n.mean)));
        n.absmax.push_back(absmax);
        for (std::size_t i = first; i < last; ++i) {
            const float t = absmax > 0.0f ? over(minus(scale[i], n.mean), absmax) : 0.0f;
            std::size_t best = 0;  // nearest entry in double, ties to the lower one
            for (std::size_t k = 1; k < map.size(); ++k) {
                const double d = std::fabs(static_cast<double>(map[k]) - static_cast<double>(t));
                if (d < std::fabs(static_cast<double>(map[best]) - static_cast<double>(t))) best = k;
            }
            n.codes.push_back(static_cast<unsigned>(best));
            n.restored.push_back(plus(times(map[best], absmax), n.mean));
        }
    }
    return n;
}

}  // namespace reference
