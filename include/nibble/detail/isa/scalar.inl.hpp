// 16 lanes of float for every CPU: four quads, which GCC and clang map to SSE or NEON registers, or plain arrays.
// No include guard: see foreach_level.hpp.

#if defined(__GNUC__)
typedef float quad __attribute__((vector_size(16)));
typedef std::int32_t quad_int __attribute__((vector_size(16)));
NIBBLE_INLINE quad_int to_int(quad x) noexcept { return __builtin_convertvector(x, quad_int); }
NIBBLE_INLINE quad to_float(quad_int x) noexcept { return __builtin_convertvector(x, quad); }
NIBBLE_INLINE quad splat(float x) noexcept { return quad{x, x, x, x}; }
#else
struct quad {
    float v[4];
    float& operator[](int i) noexcept { return v[i]; }
    float operator[](int i) const noexcept { return v[i]; }
    friend quad operator*(quad a, quad b) noexcept { return {{a.v[0] * b.v[0], a.v[1] * b.v[1], a.v[2] * b.v[2], a.v[3] * b.v[3]}}; }
    friend quad operator+(quad a, quad b) noexcept { return {{a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2], a.v[3] + b.v[3]}}; }
};
NIBBLE_INLINE quad splat(float x) noexcept { return quad{{x, x, x, x}}; }
#endif

struct lanes {
    quad a, b, c, d;
};

#if defined(__GNUC__)
struct lanes_int {
    quad_int a, b, c, d;
};
NIBBLE_INLINE lanes_int load_words(const std::uint8_t* p) noexcept {
    lanes_int x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
/// (x >> shift) & mask; what an arithmetic shift brings in is masked off.
NIBBLE_INLINE lanes_int field(lanes_int x, int shift, int mask) noexcept {
    return {(x.a >> shift) & mask, (x.b >> shift) & mask, (x.c >> shift) & mask, (x.d >> shift) & mask};
}
NIBBLE_INLINE lanes_int combine(lanes_int low, lanes_int high, int bits) noexcept {
    return {low.a | (high.a << bits), low.b | (high.b << bits), low.c | (high.c << bits), low.d | (high.d << bits)};
}
NIBBLE_INLINE lanes to_lanes(lanes_int x) noexcept { return {to_float(x.a), to_float(x.b), to_float(x.c), to_float(x.d)}; }
NIBBLE_INLINE lanes subtract(lanes x, lanes y) noexcept { return {x.a - y.a, x.b - y.b, x.c - y.c, x.d - y.d}; }
#else
struct lanes_int {
    std::int32_t v[16];
};
NIBBLE_INLINE lanes_int load_words(const std::uint8_t* p) noexcept {
    lanes_int x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
NIBBLE_INLINE lanes_int field(lanes_int x, int shift, int mask) noexcept {
    for (int r = 0; r < 16; ++r) x.v[r] = (x.v[r] >> shift) & mask;
    return x;
}
NIBBLE_INLINE lanes_int combine(lanes_int low, lanes_int high, int bits) noexcept {
    for (int r = 0; r < 16; ++r) low.v[r] |= high.v[r] << bits;
    return low;
}
NIBBLE_INLINE lanes to_lanes(lanes_int x) noexcept {
    float f[16];
    for (int r = 0; r < 16; ++r) f[r] = static_cast<float>(x.v[r]);
    lanes y;
    std::memcpy(&y, f, sizeof y);
    return y;
}
NIBBLE_INLINE lanes subtract(lanes x, lanes y) noexcept {
    float f[16], g[16];
    std::memcpy(f, &x, sizeof f);
    std::memcpy(g, &y, sizeof g);
    for (int r = 0; r < 16; ++r) f[r] -= g[r];
    std::memcpy(&x, f, sizeof x);
    return x;
}
#endif
/// out[r] = table[code[r]].
NIBBLE_INLINE void look_up(const float* table, int, lanes_int code, float* out) noexcept {
    std::int32_t u[16];
    std::memcpy(u, &code, sizeof u);
    for (int r = 0; r < 16; ++r) out[r] = table[u[r]];
}

/// Streams that one pass over a sub-block can sum without running out of registers.
inline constexpr int max_streams = 3;

NIBBLE_INLINE quad load_quad(const float* p) noexcept {
    quad q;
    std::memcpy(&q, p, sizeof q);
    return q;
}
NIBBLE_INLINE lanes load(const float* p) noexcept {
    return {load_quad(p), load_quad(p + 4), load_quad(p + 8), load_quad(p + 12)};
}
NIBBLE_INLINE void store(float* p, lanes x) noexcept { std::memcpy(p, &x, sizeof x); }
NIBBLE_INLINE lanes set(float x) noexcept { return {splat(x), splat(x), splat(x), splat(x)}; }
NIBBLE_INLINE lanes zero() noexcept { return set(0.0f); }
NIBBLE_INLINE lanes multiply(lanes x, lanes y) noexcept { return {x.a * y.a, x.b * y.b, x.c * y.c, x.d * y.d}; }

/// x * s + y where the caller knows that neither step rounds.
NIBBLE_INLINE lanes multiply_add_exact(lanes x, float s, lanes y) noexcept {
    const quad q = splat(s);
    return {x.a * q + y.a, x.b * q + y.b, x.c * q + y.c, x.d * q + y.d};
}

NIBBLE_INLINE quad fma_quad(quad x, quad y, quad z) noexcept {
    quad r{};
    for (int i = 0; i < 4; ++i) r[i] = fma_rounded(static_cast<double>(x[i]) * static_cast<double>(y[i]), z[i]);
    return r;
}
/// x * y + z, rounded once.
NIBBLE_INLINE lanes fma(lanes x, lanes y, lanes z) noexcept {
    return {fma_quad(x.a, y.a, z.a), fma_quad(x.b, y.b, z.b), fma_quad(x.c, y.c, z.c), fma_quad(x.d, y.d, z.d)};
}

/// RN(d0 + 256 d1) and RN(d0 + 256 d1 + 65536 d2) of exact integers below 2^23 (see product.inl.hpp).
#if defined(__GNUC__)
NIBBLE_INLINE quad join_two_quad(quad d0, quad d1) noexcept { return to_float(to_int(d0) + to_int(d1) * 256); }
NIBBLE_INLINE quad join_three_quad(quad d0, quad d1, quad d2) noexcept {
    const quad_int e = to_int(d0) + to_int(d1) * 256;
    return fma_quad(to_float(to_int(d2) + (e >> 16)), splat(65536.0f), to_float(e & 0xffff));
}
#else
NIBBLE_INLINE quad join_two_quad(quad d0, quad d1) noexcept {
    quad r{};
    for (int i = 0; i < 4; ++i) r[i] = static_cast<float>(static_cast<double>(d0[i]) + 256.0 * static_cast<double>(d1[i]));
    return r;
}
NIBBLE_INLINE quad join_three_quad(quad d0, quad d1, quad d2) noexcept {
    quad r{};
    for (int i = 0; i < 4; ++i)
        r[i] = static_cast<float>(static_cast<double>(d0[i]) + 256.0 * static_cast<double>(d1[i]) +
                                  65536.0 * static_cast<double>(d2[i]));
    return r;
}
#endif
NIBBLE_INLINE lanes join_two(lanes x, lanes y) noexcept {
    return {join_two_quad(x.a, y.a), join_two_quad(x.b, y.b), join_two_quad(x.c, y.c), join_two_quad(x.d, y.d)};
}
NIBBLE_INLINE lanes join_three(lanes x, lanes y, lanes z) noexcept {
    return {join_three_quad(x.a, y.a, z.a), join_three_quad(x.b, y.b, z.b), join_three_quad(x.c, y.c, z.c),
            join_three_quad(x.d, y.d, z.d)};
}

// ---- Epilogues: activation functions in double, and 16-bit outputs ----
//
// wide       as many doubles as one register holds; + - * / round as IEEE says
// widen      16 floats to doubles, exact;  narrow: back, rounded to nearest
// larger     x > y ? x : y;  smaller: x < y ? x : y;  where_negative: x < 0 ? y : z
// two_to     2^n of n + 1.5 * 2^52, for -1022 <= n <= 1023
// or_nan     y, but the canonical NaN where x is NaN, by its bits
// positive   x, but +0 where the sign bit is set

#if defined(__GNUC__)
typedef double wide __attribute__((vector_size(16)));
typedef std::int64_t wide_int __attribute__((vector_size(16)));
inline constexpr int wide_lanes = 2;
NIBBLE_INLINE wide wide_set(double x) noexcept { return wide{x, x}; }
NIBBLE_INLINE void widen(lanes x, wide* w) noexcept {
    float f[16];
    std::memcpy(f, &x, sizeof f);
    for (int i = 0; i < 8; ++i) w[i] = wide{static_cast<double>(f[2 * i]), static_cast<double>(f[2 * i + 1])};
}
NIBBLE_INLINE lanes narrow(const wide* w) noexcept {
    float f[16];
    for (int i = 0; i < 8; ++i) {
        f[2 * i] = static_cast<float>(w[i][0]);
        f[2 * i + 1] = static_cast<float>(w[i][1]);
    }
    return load(f);
}
NIBBLE_INLINE wide choose(wide_int mask, wide x, wide y) noexcept {
    return reinterpret_cast<wide>((reinterpret_cast<wide_int>(x) & mask) | (reinterpret_cast<wide_int>(y) & ~mask));
}
NIBBLE_INLINE wide larger(wide x, wide y) noexcept { return choose(x > y, x, y); }
NIBBLE_INLINE wide smaller(wide x, wide y) noexcept { return choose(x < y, x, y); }
NIBBLE_INLINE wide where_negative(wide x, wide y, wide z) noexcept { return choose(x < wide_set(0.0), y, z); }
NIBBLE_INLINE wide two_to(wide shifted) noexcept { return reinterpret_cast<wide>((reinterpret_cast<wide_int>(shifted) + 1023) << 52); }

NIBBLE_INLINE quad or_nan_quad(quad x, quad y) noexcept {
    const quad_int nan = (reinterpret_cast<quad_int>(x) & 0x7fffffff) > 0x7f800000;
    return reinterpret_cast<quad>((reinterpret_cast<quad_int>(y) & ~nan) | (nan & 0x7fc00000));
}
NIBBLE_INLINE lanes or_nan(lanes x, lanes y) noexcept {
    return {or_nan_quad(x.a, y.a), or_nan_quad(x.b, y.b), or_nan_quad(x.c, y.c), or_nan_quad(x.d, y.d)};
}
NIBBLE_INLINE quad positive_quad(quad x) noexcept {
    const quad_int u = reinterpret_cast<quad_int>(x);
    return reinterpret_cast<quad>(u & ~(u >> 31));
}
NIBBLE_INLINE lanes positive(lanes x) noexcept { return {positive_quad(x.a), positive_quad(x.b), positive_quad(x.c), positive_quad(x.d)}; }
#else
typedef double wide;
inline constexpr int wide_lanes = 1;
NIBBLE_INLINE wide wide_set(double x) noexcept { return x; }
NIBBLE_INLINE void widen(lanes x, wide* w) noexcept {
    float f[16];
    std::memcpy(f, &x, sizeof f);
    for (int r = 0; r < 16; ++r) w[r] = static_cast<double>(f[r]);
}
NIBBLE_INLINE lanes narrow(const wide* w) noexcept {
    float f[16];
    for (int r = 0; r < 16; ++r) f[r] = static_cast<float>(w[r]);
    return load(f);
}
NIBBLE_INLINE wide larger(wide x, wide y) noexcept { return x > y ? x : y; }
NIBBLE_INLINE wide smaller(wide x, wide y) noexcept { return x < y ? x : y; }
NIBBLE_INLINE wide where_negative(wide x, wide y, wide z) noexcept { return x < 0.0 ? y : z; }
NIBBLE_INLINE wide two_to(wide shifted) noexcept {
    std::uint64_t u;
    std::memcpy(&u, &shifted, sizeof u);
    u = (u + 1023) << 52;
    std::memcpy(&shifted, &u, sizeof u);
    return shifted;
}
NIBBLE_INLINE lanes or_nan(lanes x, lanes y) noexcept {
    std::uint32_t u[16], v[16];
    std::memcpy(u, &x, sizeof u);
    std::memcpy(v, &y, sizeof v);
    for (int r = 0; r < 16; ++r)
        if ((u[r] & 0x7fffffffu) > 0x7f800000u) v[r] = 0x7fc00000u;
    std::memcpy(&y, v, sizeof v);
    return y;
}
NIBBLE_INLINE lanes positive(lanes x) noexcept {
    std::uint32_t u[16];
    std::memcpy(u, &x, sizeof u);
    for (int r = 0; r < 16; ++r)
        if ((u[r] >> 31) != 0) u[r] = 0;
    std::memcpy(&x, u, sizeof u);
    return x;
}
#endif

/// Rounded to nearest even, with the bits of float_to_bf16 and float_to_fp16 (formats/half.hpp), NaN included.
NIBBLE_INLINE void store_bf16(std::uint16_t* p, lanes x) noexcept {
    float f[16];
    std::memcpy(f, &x, sizeof f);
    for (int r = 0; r < 16; ++r) p[r] = float_to_bf16(f[r]);
}
NIBBLE_INLINE void store_fp16(std::uint16_t* p, lanes x) noexcept {
    float f[16];
    std::memcpy(f, &x, sizeof f);
    for (int r = 0; r < 16; ++r) p[r] = float_to_fp16(f[r]);
}
