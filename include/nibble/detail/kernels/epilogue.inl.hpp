// Activation functions and 16-bit outputs, on 16 lanes (no include guard: see digits.inl.hpp).
//
//   relu       x > 0 ? x : +0
//   silu       x / (1 + exp(-x))
//   gelu_tanh  x / (1 + exp(-2 u)),  u = sqrt(2 / pi) (x + 0.044715 x^3)        = x / 2 (1 + tanh(u))
//   gelu_erf   x Phi(x): x Q for x < 0, x (1 - Q) else, Q = Phi(-|x|) = exp(-x^2 / 2) R(|x|)
//
// In double, and rounded to float once. Why not in float: the exponents -x^2 / 2 and -2 u reach -104 where the result
// still is a float, and would need two words each, as would the sum 1 + exp; the same few steps in double are within
// 0.503 ulp of the exact function without any of it. No fma in double: on CPUs without one it would be a call. Steps are
// + - * / and moves of bits, so every level has the same bits.
//
// Arguments are clamped where the result has long been 0 (-0: these functions approach zero from below) or x. No step
// makes a NaN of anything but a NaN; those are replaced in the end.
//
// The coefficients minimize the largest relative error: exp by a polynomial of degree 7 with constant term 1 on
// |r| <= 0.3468 (2^-34.3), R(a) = erfcx(a / sqrt 2) / 2 by a rational function of degrees 5 and 6 on 0 <= a <= 15.05
// (2^-33.3); weighted least squares on points dense at the ends, weights multiplied by the error until it was level
// (Lawson 1961), the rational one with its denominator's last values in the weights.

/// exp(x) for -200 <= x <= 200.
NIBBLE_INLINE wide exponential(wide x) noexcept {
    const wide magic = wide_set(6755399441055744.0);  // 1.5 * 2^52: the sum holds the nearest integer in its low bits
    const wide shifted = x * wide_set(1.4426950408889634) + magic;
    const wide n = shifted - magic;
    const wide r = x - n * wide_set(0.6931471805599453);
    wide p = wide_set(0.000197675878083799);
    p = p * r + wide_set(0.0013945963369214076);
    p = p * r + wide_set(0.008333569440503792);
    p = p * r + wide_set(0.04166627164550666);
    p = p * r + wide_set(0.16666665158601518);
    p = p * r + wide_set(0.5000000077411869);
    p = p * r + wide_set(1.0000000002095581);
    p = p * r + wide_set(1.0);
    return p * two_to(shifted);
}

struct silu_function {
    static NIBBLE_INLINE wide of(wide x) noexcept {
        x = larger(wide_set(-200.0), x);
        return x / (wide_set(1.0) + exponential(larger(wide_set(-200.0), wide_set(0.0) - x)));
    }
};

struct gelu_tanh_function {
    static NIBBLE_INLINE wide of(wide x) noexcept {
        x = larger(wide_set(-200.0), x);
        const wide two_u = x * (wide_set(1.5957691216057308) + wide_set(0.07135481627260025) * (x * x));
        const wide t = smaller(wide_set(200.0), larger(wide_set(-200.0), wide_set(0.0) - two_u));
        return x / (wide_set(1.0) + exponential(t));
    }
};

struct gelu_erf_function {
    static NIBBLE_INLINE wide of(wide x) noexcept {
        x = larger(wide_set(-15.0), x);
        const wide a = smaller(wide_set(15.0), where_negative(x, wide_set(0.0) - x, x));
        wide p = wide_set(0.0008979661854887137);
        p = p * a + wide_set(0.011723936247756535);
        p = p * a + wide_set(0.07166548218107609);
        p = p * a + wide_set(0.2514125668146161);
        p = p * a + wide_set(0.5084794737176161);
        p = p * a + wide_set(0.499999999955574);
        wide q = wide_set(0.0022508700024589105);
        q = q * a + wide_set(0.029387374416814837);
        q = q * a + wide_set(0.1818949217233031);
        q = q * a + wide_set(0.6594894382753892);
        q = q * a + wide_set(1.450860873647576);
        q = q * a + wide_set(1.814843499690547);
        q = q * a + wide_set(1.0);
        const wide tail = exponential(wide_set(-0.5) * (a * a)) * p / q;  // a * a is exact
        return x * where_negative(x, tail, wide_set(1.0) - tail);
    }
};

/// All bits of a lane that is NaN, else none; by its bits.
NIBBLE_INLINE lanes_int is_nan(lanes x) noexcept {
    return shift_right<31>(subtract(set_int(0x7f800000), bit_and(as_bits(x), 0x7fffffff)));
}
/// y, but the canonical NaN where x is NaN.
NIBBLE_INLINE lanes or_nan(lanes x, lanes y) noexcept { return as_lanes(select(is_nan(x), set_int(0x7fc00000), as_bits(y))); }

/// One of the functions above on 16 lanes.
template <class Function>
NIBBLE_INLINE lanes activated(lanes x) noexcept {
    wide w[16 / wide_lanes];
    widen(x, w);
    for (int i = 0; i < 16 / wide_lanes; ++i) w[i] = Function::of(w[i]);
    return or_nan(x, narrow(w));
}

/// Floats with their sign bit set are negative integers.
NIBBLE_INLINE lanes rectified(lanes x) noexcept { return or_nan(x, as_lanes(larger(as_bits(x), zero_int()))); }

/// Rounded to nearest even, with the bits of float_to_bf16 (formats/half.hpp), NaN included.
NIBBLE_INLINE void store_bf16(std::uint16_t* p, lanes x) noexcept {
    const lanes_int u = as_bits(x);
    const lanes_int high = shift_right_logical<16>(u);
    const lanes_int rounded = shift_right_logical<16>(add(u, add(bit_and(high, 1), set_int(0x7fff))));
    store_u16(p, select(is_nan(x), bit_or(high, set_int(0x40)), rounded));
}

template <class Function>
NIBBLE_NOINLINE inline void activate_lines(const float* in, float* out, std::ptrdiff_t lines) noexcept {
    for (std::ptrdiff_t i = 0; i < lines; ++i) store(out + 16 * i, activated<Function>(load(in + 16 * i)));
}
NIBBLE_NOINLINE inline void rectify_lines(const float* in, float* out, std::ptrdiff_t lines) noexcept {
    for (std::ptrdiff_t i = 0; i < lines; ++i) store(out + 16 * i, rectified(load(in + 16 * i)));
}
NIBBLE_NOINLINE inline void lines_to_bf16(const float* in, std::uint16_t* out, std::ptrdiff_t lines) noexcept {
    for (std::ptrdiff_t i = 0; i < lines; ++i) store_bf16(out + 16 * i, load(in + 16 * i));
}
NIBBLE_NOINLINE inline void lines_to_fp16(const float* in, std::uint16_t* out, std::ptrdiff_t lines) noexcept {
    for (std::ptrdiff_t i = 0; i < lines; ++i) store_fp16(out + 16 * i, load(in + 16 * i));
}

inline constexpr epilogue_table epilogues = {
    &rectify_lines, &activate_lines<gelu_erf_function>, &activate_lines<gelu_tanh_function>, &activate_lines<silu_function>,
    &lines_to_bf16, &lines_to_fp16,
};
