// Code formats restated from their definitions, in double and without a line of the library: what tests compare with.
//
// The oracle of an encoder is a *staircase*: all floats in order, cut where the expected code changes. The cuts are the
// exact midpoints between neighbouring values (in double, where they need no rounding) with the format's tie rule.
// A staircase answers for one float, yields the few floats at which an encoder can go wrong, and can be walked over all
// 2^32 floats as fast as the encoder runs.
//
// Floats are ordered by a 32-bit key: -Inf < ... < -0 < +0 < ... < +Inf, neighbouring floats have neighbouring keys,
// and NaNs lie outside [key of -Inf, key of +Inf].
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace reference {

// --- counting -----------------------------------------------------------------------------------------------------

/// Counts cases and failures of a hot loop, and keeps the first few failures as text.
class tally {
public:
    /// `describe` is only called for the first few failures.
    template <class Describe>
    void check(bool good, Describe describe) {
        ++cases_;
        if (good) return;
        if (++failures_ <= 5) text_ += "\n  " + describe();
    }
    void add_cases(std::uint64_t count) { cases_ += count; }

    [[nodiscard]] std::uint64_t cases() const { return cases_; }
    [[nodiscard]] std::uint64_t failures() const { return failures_; }
    [[nodiscard]] std::string report() const {
        return std::to_string(failures_) + " of " + std::to_string(cases_) + " cases failed" + text_;
    }

private:
    std::uint64_t cases_ = 0;
    std::uint64_t failures_ = 0;
    std::string text_;
};

[[nodiscard]] inline std::string hex(std::uint32_t u) {
    std::string s;
    for (int shift = 28; shift >= 0; shift -= 4) s += "0123456789abcdef"[(u >> shift) & 15u];
    return s;
}

// --- floats in order ----------------------------------------------------------------------------------------------

[[nodiscard]] inline float float_from_bits(std::uint32_t u) { return std::bit_cast<float>(u); }
[[nodiscard]] inline std::uint32_t bits_from_float(float x) { return std::bit_cast<std::uint32_t>(x); }
[[nodiscard]] inline bool is_nan_bits(std::uint32_t u) { return (u & 0x7fffffffu) > 0x7f800000u; }

[[nodiscard]] inline std::uint32_t key_from_bits(std::uint32_t u) {
    return (u & 0x80000000u) != 0 ? ~u : u | 0x80000000u;
}
[[nodiscard]] inline std::uint32_t bits_from_key(std::uint32_t key) {
    return (key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key;
}
[[nodiscard]] inline float float_from_key(std::uint32_t key) { return float_from_bits(bits_from_key(key)); }

inline constexpr std::uint32_t first_key = 0x007fffffu;  // -Inf
inline constexpr std::uint32_t minus_zero_key = 0x7fffffffu;
inline constexpr std::uint32_t plus_zero_key = 0x80000000u;
inline constexpr std::uint32_t last_key = 0xff800000u;  // +Inf

/// The first key whose float satisfies a condition that only ever turns from false to true along the order.
template <class Condition>
[[nodiscard]] std::uint32_t first_key_where(Condition holds) {
    std::uint32_t low = first_key;
    std::uint32_t high = last_key + 1;  // nowhere
    while (low < high) {
        const std::uint32_t middle = low + (high - low) / 2;
        if (holds(static_cast<double>(float_from_key(middle)))) high = middle;
        else low = middle + 1;
    }
    return low;
}
[[nodiscard]] inline std::uint32_t key_at_least(double m) {
    return first_key_where([m](double x) { return x >= m; });
}
[[nodiscard]] inline std::uint32_t key_above(double m) {
    return first_key_where([m](double x) { return x > m; });
}

/// x rounded to the nearest float, ties to the even one; from distances, not from a cast.
[[nodiscard]] inline float nearest_float(double x) {
    if (x == 0.0) return 0.0f;
    const std::uint32_t above = key_at_least(x);
    const float high = float_from_key(above);
    if (static_cast<double>(high) == x) return high;
    const float low = float_from_key(above - 1);
    const double down = x - static_cast<double>(low);
    const double up = static_cast<double>(high) - x;
    if (down != up) return down < up ? low : high;
    return (bits_from_float(low) & 1u) == 0 ? low : high;
}

// --- staircases ---------------------------------------------------------------------------------------------------

/// A value and its code.
struct entry {
    double value;
    unsigned code;
};

/// The expected code of every float that is not NaN.
class staircase {
public:
    struct step {
        std::uint32_t first;  // the smallest key of this code
        unsigned code;
    };

    /// Adds the code of all floats from key `first` on. A code that no float has is left out.
    void add(std::uint32_t first, unsigned code) {
        while (!steps_.empty() && steps_.back().first >= first) steps_.pop_back();
        if (first <= last_key) steps_.push_back({first, code});
    }

    [[nodiscard]] const std::vector<step>& steps() const { return steps_; }
    [[nodiscard]] std::uint32_t last_of(std::size_t i) const {
        return i + 1 < steps_.size() ? steps_[i + 1].first - 1 : last_key;
    }
    [[nodiscard]] unsigned operator()(float x) const {
        const std::uint32_t key = key_from_bits(bits_from_float(x));
        const auto after = std::upper_bound(steps_.begin(), steps_.end(), key,
                                            [](std::uint32_t k, const step& s) { return k < s.first; });
        return std::prev(after)->code;
    }

    /// Floats around every edge: the last two of each step and the first two of the next.
    [[nodiscard]] std::vector<float> edges() const {
        std::vector<float> out;
        for (std::size_t i = 1; i < steps_.size(); ++i)
            for (std::uint32_t k = steps_[i].first - 2; k != steps_[i].first + 2; ++k)
                if (k >= first_key && k <= last_key) out.push_back(float_from_key(k));
        return out;
    }

private:
    std::vector<step> steps_;
};

/// The staircase of entries in ascending order. `tie_goes_up(low, high)` decides for the exact midpoint.
template <class TieRule>
[[nodiscard]] staircase staircase_of(const std::vector<entry>& entries, TieRule tie_goes_up) {
    staircase s;
    s.add(first_key, entries.front().code);
    for (std::size_t i = 1; i < entries.size(); ++i) {
        const entry& low = entries[i - 1];
        const entry& high = entries[i];
        if (low.value == 0.0 && high.value == 0.0) {  // -0 and +0 have codes of their own
            s.add(plus_zero_key, high.code);
            continue;
        }
        const double middle = (low.value + high.value) * 0.5;
        s.add(tie_goes_up(low, high) ? key_at_least(middle) : key_above(middle), high.code);
    }
    return s;
}

// --- small floats -------------------------------------------------------------------------------------------------

enum class specials { none, fn, ieee, fnuz };

/// A floating-point format by its parameters (the format study 4).
struct small_float {
    std::string_view name;
    unsigned exponent_bits;
    unsigned mantissa_bits;
    int bias;
    specials special;

    [[nodiscard]] constexpr unsigned bits() const { return 1 + exponent_bits + mantissa_bits; }
    [[nodiscard]] constexpr unsigned code_count() const { return 1u << bits(); }
    [[nodiscard]] constexpr unsigned sign_bit() const { return 1u << (exponent_bits + mantissa_bits); }

    [[nodiscard]] bool is_nan(unsigned code) const {
        const unsigned magnitude = code & (sign_bit() - 1);
        if (special == specials::fnuz) return code == sign_bit();
        if (special == specials::fn) return magnitude == sign_bit() - 1;
        if (special == specials::ieee) return magnitude > infinity();
        return false;
    }
    [[nodiscard]] bool is_infinite(unsigned code) const {
        return special == specials::ieee && (code & (sign_bit() - 1)) == infinity();
    }
    /// Exponent all ones, mantissa zero.
    [[nodiscard]] constexpr unsigned infinity() const { return ((1u << exponent_bits) - 1) << mantissa_bits; }

    /// The value of a code as its fields say, with no regard to special codes.
    [[nodiscard]] double plain_value(unsigned code) const {
        const unsigned mantissa = code & ((1u << mantissa_bits) - 1);
        const unsigned exponent = (code >> mantissa_bits) & ((1u << exponent_bits) - 1);
        const int m = static_cast<int>(mantissa_bits);
        const double magnitude =
            exponent == 0 ? std::ldexp(static_cast<double>(mantissa), 1 - bias - m)
                          : std::ldexp(1.0 + std::ldexp(static_cast<double>(mantissa), -m),
                                       static_cast<int>(exponent) - bias);
        return (code & sign_bit()) != 0 ? -magnitude : magnitude;
    }
    [[nodiscard]] double value(unsigned code) const {
        if (is_nan(code)) return std::numeric_limits<double>::quiet_NaN();
        if (is_infinite(code)) {
            const double inf = std::numeric_limits<double>::infinity();
            return (code & sign_bit()) != 0 ? -inf : inf;
        }
        return plain_value(code);
    }
    [[nodiscard]] unsigned largest_finite() const {
        unsigned code = sign_bit() - 1;
        while (is_nan(code) || is_infinite(code)) --code;
        return code;
    }

    /// Round to nearest, ties to the even code. Saturating: everything above the largest value becomes it. Otherwise
    /// what would round to the next value up becomes Inf or NaN.
    [[nodiscard]] staircase encoder(bool saturate) const {
        const unsigned largest = largest_finite();
        const double next = 2.0 * plain_value(largest) - plain_value(largest - 1);  // had the format one value more
        std::vector<entry> entries;
        if (!saturate) entries.push_back({-next, overflow(sign_bit())});
        for (unsigned c = largest; c > 0; --c) entries.push_back({-plain_value(c), c | sign_bit()});
        if (special != specials::fnuz) entries.push_back({-0.0, sign_bit()});
        for (unsigned c = 0; c <= largest; ++c) entries.push_back({plain_value(c), c});
        if (!saturate) entries.push_back({next, overflow(0)});
        return staircase_of(entries, [this](const entry& low, const entry& high) {
            // Of two neighbouring codes exactly one is even; the one nearer to zero is never an overflow code.
            const bool positive = high.value > 0.0;
            const unsigned inner = (positive ? low.code : high.code) & (sign_bit() - 1);
            const bool inner_is_even = (inner & 1u) == 0;
            return positive ? !inner_is_even : inner_is_even;
        });
    }
    /// What overflow of a sign becomes when it does not saturate.
    [[nodiscard]] unsigned overflow(unsigned sign) const {
        if (special == specials::fnuz) return sign_bit();
        if (special == specials::ieee) return infinity() | sign;
        return (sign_bit() - 1) | sign;
    }
    /// NaN: kept where the format has one; else zero with the sign inverted, as ml_dtypes does.
    [[nodiscard]] unsigned code_of_nan(bool negative) const {
        const unsigned sign = negative ? sign_bit() : 0u;
        switch (special) {
            case specials::none: return sign ^ sign_bit();
            case specials::fn: return (sign_bit() - 1) | sign;
            case specials::ieee: return infinity() | (1u << (mantissa_bits - 1)) | sign;
            case specials::fnuz: return sign_bit();
        }
        return 0;
    }
};

inline constexpr std::array<small_float, 9> small_floats = {{
    {"fp4_e2m1", 2, 1, 1, specials::none},
    {"fp6_e2m3", 2, 3, 1, specials::none},
    {"fp6_e3m2", 3, 2, 3, specials::none},
    {"fp8_e4m3", 4, 3, 7, specials::fn},
    {"fp8_e5m2", 5, 2, 15, specials::ieee},
    {"fp8_e4m3fnuz", 4, 3, 8, specials::fnuz},
    {"fp8_e5m2fnuz", 5, 2, 16, specials::fnuz},
    {"bf16", 8, 7, 127, specials::ieee},
    {"fp16", 5, 10, 15, specials::ieee},
}};

[[nodiscard]] inline const small_float* find_small_float(std::string_view name) {
    for (const small_float& f : small_floats)
        if (f.name == name) return &f;
    return nullptr;
}

// --- integers -----------------------------------------------------------------------------------------------------

struct integer_format {
    std::string_view name;
    int bits;
    int step;      // value = step * code + base
    int base;
    int smallest;  // the range that encoding uses
    int largest;
};

inline constexpr std::array<integer_format, 8> integer_formats = {{
    {"int8", 8, 1, -128, -127, 127},
    {"int6", 6, 1, -32, -31, 31},
    {"int5", 5, 1, -16, -15, 15},
    {"int4", 4, 1, -8, -7, 7},
    {"int3", 3, 1, -4, -3, 3},
    {"int2", 2, 1, -2, -1, 1},
    {"binary", 1, 2, -1, -1, 1},
    {"ternary", 2, 1, -1, -1, 1},
}};

[[nodiscard]] inline const integer_format* find_integer(std::string_view name) {
    for (const integer_format& f : integer_formats)
        if (f.name == name) return &f;
    return nullptr;
}

/// Nearest, ties to the even *value*; binary sends zero to +1.
[[nodiscard]] inline staircase integer_encoder(const integer_format& f) {
    std::vector<entry> entries;
    for (int v = f.smallest; v <= f.largest; v += f.step)
        entries.push_back({static_cast<double>(v), static_cast<unsigned>((v - f.base) / f.step)});
    return staircase_of(entries, [&f](const entry& low, const entry&) {
        return f.step == 2 || std::fmod(low.value, 2.0) != 0.0;
    });
}

// --- codebooks ----------------------------------------------------------------------------------------------------

/// A table of 16 values in code order.
using table16 = std::array<float, 16>;

// The bit patterns of the format study 3.1.
inline constexpr std::array<std::uint32_t, 16> nf4_bits = {
    0xbf800000, 0xbf3239b1, 0xbf066b30, 0xbeca32a0, 0xbe91a24d, 0xbe3d353f, 0xbdba7871, 0x00000000,
    0x3da2faff, 0x3e24cae3, 0x3e7c04dd, 0x3ead033a, 0x3ee1a4b8, 0x3f1007ab, 0x3f3913b3, 0x3f800000};

// Written out by the NF4 implementations; between neighbouring values, ascending.
inline constexpr std::array<double, 15> nf4_thresholds = {
    -0.8480964004993439,  -0.6106329262256622,   -0.4599952697753906, -0.33967943489551544, -0.23460740596055984,
    -0.13791173323988914, -0.045525018125772476, 0.03979014977812767, 0.1202552504837513,   0.2035212516784668,
    0.2920137718319893,   0.3893125355243683,    0.5016634166240692,  0.6427869200706482,   0.8614784181118011};

[[nodiscard]] inline table16 nf4_table() {
    table16 t{};
    for (std::size_t i = 0; i < 16; ++i) t[i] = float_from_bits(nf4_bits[i]);
    return t;
}
/// {0, 1/16, 8, 12, 4, 6, 2, 3} / 12, bit 3 the sign; code 8 is +0.
[[nodiscard]] inline table16 fp4_table() {
    constexpr std::array<double, 8> twelfths = {0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0};
    table16 t{};
    for (std::size_t i = 0; i < 8; ++i) {
        t[i] = nearest_float(twelfths[i] / 12.0);
        t[i + 8] = i == 0 ? 0.0f : -t[i];
    }
    return t;
}
/// AbnormalFloat for blocks of 64, stored from the largest value down.
[[nodiscard]] inline table16 af4_table() {
    constexpr std::array<double, 16> ascending = {
        -1.0, -0.69441008, -0.51243739, -0.3736951, -0.25607552, -0.14982478, -0.04934812, 0.0,
        0.04273164, 0.12934483, 0.21961274, 0.31675666, 0.42563882, 0.55496234, 0.72424863, 1.0};
    table16 t{};
    for (std::size_t i = 0; i < 16; ++i) t[i] = nearest_float(ascending[15 - i]);
    return t;
}
[[nodiscard]] inline table16 iq4_nl_table() {
    return {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
}

/// The entries of a table in ascending order; equal values keep the order of their codes.
[[nodiscard]] inline std::vector<entry> sorted_entries(const table16& table) {
    std::vector<entry> entries;
    for (unsigned c = 0; c < 16; ++c) entries.push_back({static_cast<double>(table[c]), c});
    std::stable_sort(entries.begin(), entries.end(), [](const entry& a, const entry& b) { return a.value < b.value; });
    return entries;
}

/// A float midpoint, rounded once; a value on it goes down. The midpoint of neighbouring floats never swallows the
/// upper one: that one is its own nearest entry.
[[nodiscard]] inline staircase codebook_encoder(const table16& table) {
    const std::vector<entry> entries = sorted_entries(table);
    staircase s;
    s.add(first_key, entries.front().code);
    for (std::size_t i = 1; i < entries.size(); ++i) {
        const double low = entries[i - 1].value;
        const double high = entries[i].value;
        const double threshold = static_cast<double>(nearest_float((low + high) * 0.5));
        s.add(threshold >= high && low < high ? key_at_least(high) : key_above(threshold), entries[i].code);
    }
    return s;
}
/// ggml: nearest, ties up.
[[nodiscard]] inline staircase iq4_nl_encoder() {
    return staircase_of(sorted_entries(iq4_nl_table()), [](const entry&, const entry&) { return true; });
}

[[nodiscard]] inline table16 codebook_table(std::string_view name) {
    if (name == "nf4") return nf4_table();
    if (name == "fp4") return fp4_table();
    if (name == "af4") return af4_table();
    return iq4_nl_table();
}

// --- any format by its name ---------------------------------------------------------------------------------------

/// The value of every code.
[[nodiscard]] inline std::vector<double> values_of(std::string_view name) {
    std::vector<double> values;
    if (const small_float* f = find_small_float(name)) {
        for (unsigned c = 0; c < f->code_count(); ++c) values.push_back(f->value(c));
    } else if (const integer_format* i = find_integer(name)) {
        for (int c = 0; c < (1 << i->bits); ++c) values.push_back(static_cast<double>(i->step * c + i->base));
    } else {
        for (const float v : codebook_table(name)) values.push_back(static_cast<double>(v));
    }
    return values;
}

/// What the library's default encoder must do with every float that is not NaN.
[[nodiscard]] inline staircase encoder_of(std::string_view name) {
    if (const small_float* f = find_small_float(name)) return f->encoder(true);
    if (const integer_format* i = find_integer(name)) return integer_encoder(*i);
    if (name == "iq4_nl") return iq4_nl_encoder();
    return codebook_encoder(codebook_table(name));
}

// --- the scale of OCP MX ------------------------------------------------------------------------------------------

/// 2^(code - 127); 255 is NaN.
[[nodiscard]] inline double e8m0_value(unsigned code) {
    return code == 255 ? std::numeric_limits<double>::quiet_NaN() : std::ldexp(1.0, static_cast<int>(code) - 127);
}
/// Nearest power of two, ties up; zero and everything up to 2^-127 is code 0, the other subnormals code 1; negative
/// numbers, and what would round to 2^128, are NaN. (-0 is a zero.)
[[nodiscard]] inline staircase e8m0_encoder() {
    staircase s;
    s.add(first_key, 255);
    s.add(minus_zero_key, 0);
    s.add(key_above(std::ldexp(1.0, -127)), 1);
    for (unsigned c = 2; c <= 255; ++c) s.add(key_at_least(std::ldexp(0.75, static_cast<int>(c) - 127)), c);
    return s;
}

// --- the dynamic map of bitsandbytes ------------------------------------------------------------------------------

/// The signed 8-bit map that double quantization looks its scales up in (the format study 3.6). torch.linspace computes
/// the first half from the start and the second half from the end, each with one fused multiply-add.
[[nodiscard]] inline std::vector<float> dynamic_map() {
    std::vector<float> data;
    for (int i = 0; i < 7; ++i) {
        const int points = (1 << i) + 1;
        const float step = (1.0f - 0.1f) / static_cast<float>(points - 1);
        std::vector<float> bounds;
        for (int k = 0; k < points; ++k)
            bounds.push_back(k < points / 2 ? std::fma(step, static_cast<float>(k), 0.1f)
                                            : std::fma(-step, static_cast<float>(points - 1 - k), 1.0f));
        const double decade = std::pow(10.0, i - 6);
        for (std::size_t k = 0; k + 1 < bounds.size(); ++k) {
            const float mean = (bounds[k] + bounds[k + 1]) / 2.0f;
            const float value = static_cast<float>(decade) * mean;
            data.push_back(value);
            data.push_back(-value);
        }
    }
    data.push_back(0.0f);
    data.push_back(1.0f);
    std::sort(data.begin(), data.end());
    return data;
}

// --- the test generators of the format study 0.1 -------------------------------------------------------------------

/// G1: period 101, values in [-1.5625, 1.5625].
[[nodiscard]] inline std::vector<float> generator_g1(std::size_t count) {
    std::vector<float> x;
    for (std::size_t i = 0; i < count; ++i)
        x.push_back(static_cast<float>(static_cast<int>((i * 37 + 11) % 101) - 50) / 32.0f);
    return x;
}

/// A small deterministic source of random bits (Marsaglia's xorshift).
class random_bits {
public:
    explicit random_bits(std::uint32_t seed) : state_(seed) {}
    std::uint32_t operator()() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 17;
        state_ ^= state_ << 5;
        return state_;
    }

private:
    std::uint32_t state_;
};

}  // namespace reference
