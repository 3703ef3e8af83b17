// The oracle of products and dequantization: plain loops over codes and scales, which it reads through the public
// accessors of qmatrix. Nothing else of the library runs here.
//
//   exact        sum of w x in double, w the decoded weight, and the sum of |terms|
//   error_bound  what |product - exact| of a compute class may be, derived below
//   formula      the product bit for bit: the formulas at the top of detail/kernels/product.inl.hpp and activations.hpp
//                computed another way, with int64 sums, std::fma, and no digits
//
// The arithmetic runs in an environment of its own (round to nearest, no flushing) and between NIBBLE_FP_BEGIN and
// NIBBLE_FP_END, so that it stays the oracle when the tests are compiled with -ffast-math.
//
// The bound. u = 2^-24, gamma(n) = n u / (1 - n u).
//   activations   q = clamp(RNE(RN(x * inv))), inv = RN(1 / s_a), s_a = RN(amax / L): |x - s_a q| <= s_a (1/2 + 2 u L),
//                 which is 1.5 s_a for three digits (L = 2^23) and 0.5 s_a for one and two
//   weights       what the formula multiplies differs from the decoded weight by at most 3 u (|s u| + |offset part|)
//   sums          one rounding of D, one of s_w * s_a, one fma per sub-block (two with a minimum), or one fma per k
#pragma once

#include <nibble/activations.hpp>
#include <nibble/qmatrix.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "support/reference_formats.hpp"

namespace reference {

using nibble::index;

/// The default floating-point environment for as long as it lives.
class default_environment {
public:
    default_environment() {
        std::fegetenv(&before_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~default_environment() { std::fesetenv(&before_); }
    default_environment(const default_environment&) = delete;
    default_environment& operator=(const default_environment&) = delete;

private:
    std::fenv_t before_;
};

/// Everything that a quantized matrix says through its accessors.
struct weights {
    index n = 0, k = 0, group = 1, groups = 0;
    bool wide = false;
    float unit = 0.0f;
    nibble::offset_kind offset_kind = nibble::offset_kind::none;
    int exponent = 0;
    std::vector<unsigned> code;        // [n][k]
    std::vector<float> value;          // [n][k]: of the code at scale 1
    std::vector<float> scale, offset;  // [n][group]

    [[nodiscard]] std::size_t at(index row, index col) const { return static_cast<std::size_t>(row * k + col); }
    [[nodiscard]] std::size_t group_at(index row, index col) const {
        return static_cast<std::size_t>(row * groups + col / group);
    }
};

[[nodiscard]] inline weights read(const nibble::qmatrix& w) {
    const default_environment environment;
    weights r;
    r.n = w.rows();
    r.k = w.cols();
    r.group = w.group_size();
    r.groups = w.groups();
    r.wide = w.format().bits == 16;
    r.unit = w.format().unit;
    r.offset_kind = w.offset_type();
    r.exponent = w.exponent();
    for (index n = 0; n < r.n; ++n) {
        for (index g = 0; g < r.groups; ++g) {
            r.scale.push_back(w.scale(n, g));
            r.offset.push_back(w.offset(n, g));
        }
        for (index k = 0; k < r.k; ++k) {
            r.code.push_back(w.code(n, k));
            r.value.push_back(w.format().value(r.code.back()));
        }
    }
    return r;
}

NIBBLE_FP_BEGIN

/// A product and a sum that are rounded one after the other, whatever the compiler would like to contract.
[[nodiscard]] inline float rounded_product(float a, float b) {
    volatile float p = a * b;
    return p;
}
[[nodiscard]] inline float rounded_sum(float a, float b) {
    volatile float s = a + b;
    return s;
}

/// The decoded weight by the definition of its offset kind (scale.hpp).
[[nodiscard]] inline float decode(const weights& w, index n, index k) {
    const std::size_t i = w.at(n, k);
    const std::size_t g = w.group_at(n, k);
    const float u = static_cast<float>(w.code[i]);
    switch (w.offset_kind) {
        case nibble::offset_kind::none: return w.wide ? w.value[i] : rounded_product(w.scale[g], w.value[i]);
        case nibble::offset_kind::zero_point:
        case nibble::offset_kind::float_zero: return rounded_product(w.scale[g], rounded_sum(u, -w.offset[g]));
        case nibble::offset_kind::minimum: return rounded_sum(rounded_product(w.scale[g], u), w.offset[g]);
    }
    return 0.0f;
}

// --- one column, exactly -------------------------------------------------------------------------------------------

struct exact_result {
    std::vector<double> y;          // [n]: sum of w x
    std::vector<double> magnitude;  // [n]: sum of (|s u| + |offset part|) |x|, which is |w| |x| without offsets
};

/// |s u| + |offset part| of a weight: what its formula adds up.
[[nodiscard]] inline double weight_terms(const weights& w, index n, index k) {
    const std::size_t i = w.at(n, k);
    const std::size_t g = w.group_at(n, k);
    const double s = std::fabs(static_cast<double>(w.scale[g]));
    const double o = std::fabs(static_cast<double>(w.offset[g]));
    const double u = static_cast<double>(w.code[i]);
    switch (w.offset_kind) {
        case nibble::offset_kind::none: return s * std::fabs(static_cast<double>(w.value[i]));
        case nibble::offset_kind::zero_point: return s * std::fabs(u - static_cast<double>(w.offset[g]));
        case nibble::offset_kind::float_zero: return s * u + s * o;
        case nibble::offset_kind::minimum: return s * u + o;
    }
    return 0.0;
}

[[nodiscard]] inline exact_result exact(const weights& w, const std::vector<float>& x) {
    const default_environment environment;
    exact_result r;
    for (index n = 0; n < w.n; ++n) {
        double sum = 0.0;
        double magnitude = 0.0;
        for (index k = 0; k < w.k; ++k) {
            const double v = static_cast<double>(x[static_cast<std::size_t>(k)]);
            sum += static_cast<double>(decode(w, n, k)) * v;
            magnitude += weight_terms(w, n, k) * std::fabs(v);
        }
        r.y.push_back(sum);
        r.magnitude.push_back(magnitude);
    }
    return r;
}

// --- the formula ---------------------------------------------------------------------------------------------------

/// How a class treats a format: the table at the top of detail/kernels/product.inl.hpp.
struct path {
    int bits = 0;           // of the activations: 8, 16 or 24; 0: they stay floats
    bool integers = false;  // sums of integers; else a chain of fma on the values of the codes
    bool strict = false;    // a chain of fma on decoded weights
};

[[nodiscard]] inline path path_of(const weights& w, nibble::compute c) {
    if (c == nibble::compute::strict_f32) return {0, false, true};
    const int bits = c == nibble::compute::a8 ? 8 : c == nibble::compute::a16 ? 16 : 24;
    if (w.unit > 0.0f) return {bits, true, false};  // integers, and tables of multiples of a unit
    if (c != nibble::compute::f32) return {bits, false, false};
    return {0, false, w.wide};
}

/// The largest integer of balanced base-256 digits: 127 (1 + 256 + 65536).
[[nodiscard]] inline std::int64_t largest_activation(int bits) {
    return bits == 8 ? 127 : bits == 16 ? 32639 : 8355711;
}

/// Columns of W at which sub-blocks begin, and K: groups, cut at 256.
[[nodiscard]] inline std::vector<index> sub_blocks(const weights& w) {
    std::vector<index> begins;
    for (index g = 0; g < w.groups; ++g)
        for (index k = g * w.group; k < std::min(w.k, (g + 1) * w.group); k += 256) begins.push_back(k);
    begins.push_back(w.k);
    return begins;
}

struct rounded_block {
    float step = 0.0f;  // s_a
    std::vector<std::int64_t> q;
    bool hostile = false;  // the column cannot be carried: one activation hides the rest, or all are too small
};

[[nodiscard]] inline rounded_block round_activations(const float* x, index n, int bits, bool integers) {
    rounded_block r;
    const float limit = static_cast<float>(largest_activation(bits));
    float amax = 0.0f;
    for (index i = 0; i < n; ++i) amax = std::fabs(x[i]) > amax ? std::fabs(x[i]) : amax;
    r.step = amax / limit;
    if (r.step < 0x1p-110f) {  // no float of that size would hold the digits
        r.hostile = amax != 0.0f;
        r.step = 0.0f;
        r.q.assign(static_cast<std::size_t>(n), 0);
        return r;
    }
    const float inverse = 1.0f / r.step;
    std::int64_t sum = 0;
    std::int64_t largest = 0;
    index others = -1;
    for (index i = 0; i < n; ++i) {
        const double t = static_cast<double>(rounded_product(x[i], inverse));
        const double whole =
            std::nearbyint(std::min(std::max(t, -static_cast<double>(limit)), static_cast<double>(limit)));
        r.q.push_back(static_cast<std::int64_t>(whole));
        const std::int64_t a = r.q.back() < 0 ? -r.q.back() : r.q.back();
        sum += a;
        largest = std::max(largest, a);
        if (x[i] != 0.0f) ++others;
    }
    r.hostile = bits == 24 && integers && others > 0 && sum - largest < 256 * others;
    return r;
}

struct formula_result {
    std::vector<float> y;  // [n]
    bool strict = false;   // the column went to strict_f32
};

/// x * 2^e, rounded once.
[[nodiscard]] inline float times_power(float x, int e) {
    return static_cast<float>(std::ldexp(static_cast<double>(x), e));
}

[[nodiscard]] inline float canonical(float x) {
    const std::uint32_t u = std::bit_cast<std::uint32_t>(x);
    return (u & 0x7fffffffu) > 0x7f800000u ? std::bit_cast<float>(0x7fc00000u) : x;
}

[[nodiscard]] inline std::vector<float> strict_column(const weights& w, const std::vector<float>& x) {
    std::vector<float> y;
    for (index n = 0; n < w.n; ++n) {
        float acc = 0.0f;
        for (index k = 0; k < w.k; ++k) acc = std::fma(decode(w, n, k), x[static_cast<std::size_t>(k)], acc);
        y.push_back(canonical(acc));
    }
    return y;
}

/// floor(log2 |x|) of the bits, also for subnormals.
[[nodiscard]] inline int binary_exponent(float x) { return x == 0.0f ? -127 : std::ilogb(x); }

/// The power of two by which a column is scaled before it is rounded: 0 unless it or the weights are extreme.
[[nodiscard]] inline int column_exponent(const weights& w, const std::vector<float>& x) {
    float amax = 0.0f;
    for (const float v : x) amax = std::fabs(v) > amax ? std::fabs(v) : amax;
    if (amax == 0.0f) return 0;
    const int e = binary_exponent(amax);
    const bool extreme = e < -40 || e > 40 || w.exponent < -40 || w.exponent > 40;
    return extreme ? std::min(std::max(-w.exponent, -40), 40) - e : 0;
}

[[nodiscard]] inline bool all_finite(const std::vector<float>& x) {
    std::uint32_t largest = 0;
    for (std::size_t i = 0; i < x.size(); ++i)
        largest = std::max(largest, std::bit_cast<std::uint32_t>(x[i]) & 0x7fffffffu);
    return largest < 0x7f800000u;
}

[[nodiscard]] inline formula_result formula(const weights& w, const std::vector<float>& x, nibble::compute c) {
    const default_environment environment;
    const path p = path_of(w, c);
    if (p.strict || !all_finite(x)) return {strict_column(w, x), true};
    const std::vector<index> begins = sub_blocks(w);
    const int e = column_exponent(w, x);
    std::vector<float> scaled = x;
    if (e != 0)
        for (std::size_t k = 0; k < x.size(); ++k) scaled[k] = times_power(x[k], e);
    std::vector<rounded_block> blocks;
    for (std::size_t b = 0; b + 1 < begins.size() && p.bits != 0; ++b) {
        blocks.push_back(round_activations(scaled.data() + begins[b], begins[b + 1] - begins[b], p.bits, p.integers));
        if (blocks.back().hostile) return {strict_column(w, x), true};
    }
    formula_result r;
    for (index n = 0; n < w.n; ++n) {
        float acc = 0.0f;
        for (std::size_t b = 0; b + 1 < begins.size(); ++b) {
            const index first = begins[b];
            const index last = begins[b + 1];
            const std::size_t g = w.group_at(n, first);
            const float step = p.bits != 0 ? blocks[b].step : 1.0f;
            if (!p.integers) {
                float t = 0.0f;
                for (index k = first; k < last; ++k) {
                    const float v = p.bits != 0 ? static_cast<float>(blocks[b].q[static_cast<std::size_t>(k - first)])
                                                : scaled[static_cast<std::size_t>(k)];
                    t = std::fma(w.value[w.at(n, k)], v, t);
                }
                acc = std::fma(t, rounded_product(w.wide ? 1.0f : w.scale[g], step), acc);
                continue;
            }
            std::int64_t sum = 0;
            std::int64_t dot = 0;
            for (index k = first; k < last; ++k) {
                const std::int64_t q = blocks[b].q[static_cast<std::size_t>(k - first)];
                std::int64_t v = static_cast<std::int64_t>(w.code[w.at(n, k)]);
                if (w.offset_kind == nibble::offset_kind::zero_point) v -= static_cast<std::int64_t>(w.offset[g]);
                if (w.offset_kind == nibble::offset_kind::none)
                    v = static_cast<std::int64_t>(static_cast<double>(w.value[w.at(n, k)]) /
                                                  static_cast<double>(w.unit));
                sum += q;
                dot += v * q;
            }
            float scale = w.scale[g];
            if (w.offset_kind == nibble::offset_kind::none) scale = rounded_product(scale, w.unit);
            const float total = rounded_product(static_cast<float>(sum), step);
            if (w.offset_kind == nibble::offset_kind::minimum) acc = std::fma(w.offset[g], total, acc);
            if (w.offset_kind == nibble::offset_kind::float_zero)
                acc = std::fma(-rounded_product(w.scale[g], w.offset[g]), total, acc);
            acc = std::fma(static_cast<float>(dot), rounded_product(scale, step), acc);
        }
        r.y.push_back(canonical(e == 0 ? acc : times_power(acc, -e)));
    }
    return r;
}

// --- the bound -----------------------------------------------------------------------------------------------------

/// |product - exact| for each row, for a column that `strict` says went to strict_f32 or not.
[[nodiscard]] inline std::vector<double> error_bound(const weights& w, const std::vector<float>& x, nibble::compute c,
                                                     bool strict) {
    const default_environment environment;
    constexpr double u = 0x1p-24;
    const path p = path_of(w, c);
    const std::vector<index> begins = sub_blocks(w);
    std::vector<double> bound;
    for (index n = 0; n < w.n; ++n) {
        double of_activations = 0.0;
        double magnitude = 0.0;
        double roundings = static_cast<double>(w.k) + 3.0;
        if (!strict && !p.strict) {
            const bool twice =
                w.offset_kind == nibble::offset_kind::minimum || w.offset_kind == nibble::offset_kind::float_zero;
            roundings = static_cast<double>(begins.size()) * (twice ? 2.0 : 1.0) + 6.0;
            if (!p.integers) roundings += static_cast<double>(std::min<index>(256, std::min(w.group, w.k)));
        }
        for (std::size_t b = 0; b + 1 < begins.size(); ++b) {
            double amax = 0.0;
            for (index k = begins[b]; k < begins[b + 1]; ++k)
                amax = std::max(amax, std::fabs(static_cast<double>(x[static_cast<std::size_t>(k)])));
            double step = 0.0;
            if (p.bits != 0 && !strict) {
                const double limit = static_cast<double>(largest_activation(p.bits));
                step = amax / limit * (1.0 + u) * (0.5 + 2.0 * u * limit);
            }
            for (index k = begins[b]; k < begins[b + 1]; ++k) {
                const double terms = weight_terms(w, n, k);
                of_activations += terms * step;
                magnitude += terms * (std::fabs(static_cast<double>(x[static_cast<std::size_t>(k)])) + step);
            }
        }
        const double gamma = roundings * u / (1.0 - roundings * u);
        bound.push_back(of_activations + gamma * magnitude + 0x1p-149);
    }
    return bound;
}

/// How far a product is from the truth in units of its bound; NaN and Inf count as infinitely far.
[[nodiscard]] inline double bounds_away(float got, double wanted, double bound) {
    const std::uint32_t u = std::bit_cast<std::uint32_t>(got);
    if ((u & 0x7fffffffu) >= 0x7f800000u) return 1e300;
    return std::fabs(static_cast<double>(got) - wanted) / bound;
}

NIBBLE_FP_END

/// Column j of a matrix of floats.
template <class Derived>
[[nodiscard]] std::vector<float> column(const Eigen::DenseBase<Derived>& m, index j) {
    std::vector<float> x;
    for (index i = 0; i < m.rows(); ++i) x.push_back(m.derived().coeff(i, j));
    return x;
}

}  // namespace reference
