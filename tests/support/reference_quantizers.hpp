// Quantizers restated from the definitions of their formats, without a line of the library: what tests compare with.
//
// Single-precision steps are written as double arithmetic rounded once: for one + - * / of floats that is the correctly
// rounded result, and no compiler flag (-ffast-math, fused multiply-add) changes it.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "reference_formats.hpp"

namespace reference {

// --- arithmetic ---------------------------------------------------------------------------------------------------

[[nodiscard]] inline float times(float a, float b) {
    return static_cast<float>(static_cast<double>(a) * static_cast<double>(b));
}
[[nodiscard]] inline float over(float a, float b) {
    return static_cast<float>(static_cast<double>(a) / static_cast<double>(b));
}
[[nodiscard]] inline float plus(float a, float b) {
    return static_cast<float>(static_cast<double>(a) + static_cast<double>(b));
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
