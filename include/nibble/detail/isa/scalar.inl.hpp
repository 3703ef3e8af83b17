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

// --- encoding and decoding -------------------------------------------------------------------------------------------

NIBBLE_INLINE void prefetch(const void*) noexcept {}
NIBBLE_INLINE void prefetch_to_write(const void*) noexcept {}

/// Past the caches where there is a way, to 64-byte aligned memory; stream_end() before anyone else reads it.
NIBBLE_INLINE void stream_words(std::uint8_t* p, lanes_int x) noexcept { std::memcpy(p, &x, sizeof x); }
NIBBLE_INLINE void stream_end() noexcept {}

NIBBLE_INLINE lanes_int as_bits(lanes x) noexcept {
    lanes_int y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}
NIBBLE_INLINE lanes as_lanes(lanes_int x) noexcept {
    lanes y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}

// One operation on every lane: on four quads, or on an array of 16.
#if defined(__GNUC__)
#define NIBBLE_LANEWISE(type, name, expression)                                                           \
    NIBBLE_INLINE decltype(type::a) name##_quad(decltype(type::a) x, decltype(type::a) y) noexcept { return expression; } \
    NIBBLE_INLINE type name(type x, type y) noexcept {                                                    \
        return {name##_quad(x.a, y.a), name##_quad(x.b, y.b), name##_quad(x.c, y.c), name##_quad(x.d, y.d)}; \
    }
#else
NIBBLE_INLINE float lane_type(lanes) noexcept { return 0.0f; }
NIBBLE_INLINE std::int32_t lane_type(lanes_int) noexcept { return 0; }
#define NIBBLE_LANEWISE(type, name, expression)                                       \
    NIBBLE_INLINE type name(type left, type right) noexcept {                         \
        decltype(lane_type(left)) p[16], q[16];                                       \
        std::memcpy(p, &left, sizeof p);                                              \
        std::memcpy(q, &right, sizeof q);                                             \
        for (int r = 0; r < 16; ++r) {                                                \
            const auto x = p[r];                                                      \
            const auto y = q[r];                                                      \
            p[r] = expression;                                                        \
        }                                                                             \
        std::memcpy(&left, p, sizeof p);                                              \
        return left;                                                                  \
    }
#endif
NIBBLE_LANEWISE(lanes, add, x + y)
NIBBLE_LANEWISE(lanes, divide, x / y)
/// x < y ? x : y and x > y ? x : y.
NIBBLE_LANEWISE(lanes, smaller, x < y ? x : y)
NIBBLE_LANEWISE(lanes, larger, x > y ? x : y)
NIBBLE_LANEWISE(lanes_int, add, x + y)
NIBBLE_LANEWISE(lanes_int, subtract, x - y)
NIBBLE_LANEWISE(lanes_int, smaller, x < y ? x : y)
NIBBLE_LANEWISE(lanes_int, larger, x > y ? x : y)
NIBBLE_LANEWISE(lanes_int, bit_and, x & y)
NIBBLE_LANEWISE(lanes_int, bit_or, x | y)
NIBBLE_LANEWISE(lanes_int, less, x < y ? x - x - 1 : x - x)  // all ones where x < y
#undef NIBBLE_LANEWISE

/// x, once it is rounded: stands between a product and a sum that must not become one fma.
NIBBLE_INLINE lanes rounded(lanes x) noexcept { return x; }

NIBBLE_INLINE lanes_int set_int(std::int32_t x) noexcept {
    lanes_int y;
    std::int32_t v[16];
    for (int r = 0; r < 16; ++r) v[r] = x;
    std::memcpy(&y, v, sizeof y);
    return y;
}
NIBBLE_INLINE lanes_int shift_left(lanes_int x, int n) noexcept {
    std::uint32_t v[16];
    std::memcpy(v, &x, sizeof v);
    for (int r = 0; r < 16; ++r) v[r] <<= n;
    std::memcpy(&x, v, sizeof v);
    return x;
}
/// Brings in zeros.
NIBBLE_INLINE lanes_int shift_right(lanes_int x, int n) noexcept {
    std::uint32_t v[16];
    std::memcpy(v, &x, sizeof v);
    for (int r = 0; r < 16; ++r) v[r] >>= n;
    std::memcpy(&x, v, sizeof v);
    return x;
}
/// a < b ? x : y, signed.
NIBBLE_INLINE lanes select_less(lanes_int a, lanes_int b, lanes x, lanes y) noexcept {
    const lanes_int mask = less(a, b);
    return as_lanes(bit_or(bit_and(mask, as_bits(x)), bit_and(subtract(set_int(-1), mask), as_bits(y))));
}

NIBBLE_INLINE float least(lanes x) noexcept {
    float v[16];
    store(v, x);
    float m = v[0];
    for (int r = 1; r < 16; ++r) m = v[r] < m ? v[r] : m;
    return m;
}
NIBBLE_INLINE float greatest(lanes x) noexcept {
    float v[16];
    store(v, x);
    float m = v[0];
    for (int r = 1; r < 16; ++r) m = v[r] > m ? v[r] : m;
    return m;
}
NIBBLE_INLINE std::int32_t greatest(lanes_int x) noexcept {
    std::int32_t v[16];
    std::memcpy(v, &x, sizeof v);
    std::int32_t m = v[0];
    for (int r = 1; r < 16; ++r) m = v[r] > m ? v[r] : m;
    return m;
}

/// To nearest, ties to even, for x <= 2^17; what lies below -32768 becomes some integer there.
NIBBLE_INLINE lanes_int round_to_int(lanes x) noexcept {
    const lanes shifted = add(larger(x, set(-65536.0f)), set(12582912.0f));  // 1.5 * 2^23: the last bit is the unit
    return subtract(as_bits(shifted), set_int(0x4b400000));
}

/// 16 bytes clamp(x + zero, lowest, highest), 0 <= zero, lowest, highest <= 255.
NIBBLE_INLINE void store_codes(std::uint8_t* p, lanes_int x, int zero, int lowest, int highest) noexcept {
    const lanes_int v = smaller(larger(add(x, set_int(zero)), set_int(lowest)), set_int(highest));
    std::int32_t u[16];
    std::memcpy(u, &v, sizeof u);
    for (int r = 0; r < 16; ++r) p[r] = static_cast<std::uint8_t>(u[r]);
}
/// p[i] = table[p[i]] of 16 bytes and 16 entries.
NIBBLE_INLINE void map_bytes(const std::uint8_t* table, std::uint8_t* p) noexcept {
    for (int r = 0; r < 16; ++r) p[r] = table[p[r]];
}
/// 16 numbers of 16 bits, zero-extended in lanes.
NIBBLE_INLINE void store_halves(std::uint16_t* p, lanes_int x) noexcept {
    std::uint32_t u[16];
    std::memcpy(u, &x, sizeof u);
    for (int r = 0; r < 16; ++r) p[r] = static_cast<std::uint16_t>(u[r]);
}
NIBBLE_INLINE lanes_int load_halves(const std::uint16_t* p) noexcept {
    std::uint32_t u[16];
    for (int r = 0; r < 16; ++r) u[r] = p[r];
    lanes_int x;
    std::memcpy(&x, u, sizeof x);
    return x;
}
/// Finite floats to fp16, to nearest even.
NIBBLE_INLINE lanes_int to_fp16(lanes x) noexcept {
    float v[16];
    std::uint16_t h[16];
    store(v, x);
    for (int r = 0; r < 16; ++r) h[r] = float_to_fp16(v[r]);
    return load_halves(h);
}
NIBBLE_INLINE lanes from_fp16(lanes_int x) noexcept {
    std::uint16_t h[16];
    float v[16];
    store_halves(h, x);
    for (int r = 0; r < 16; ++r) v[r] = fp16_to_float(h[r]);
    return load(v);
}
/// 16 doubles, each rounded once.
NIBBLE_INLINE lanes load_doubles(const double* p) noexcept {
    float v[16];
    for (int r = 0; r < 16; ++r) {
        double d;
        std::memcpy(&d, p + r, sizeof d);
        v[r] = static_cast<float>(d);
    }
    return load(v);
}

/// table[code] of 16 entries.
NIBBLE_INLINE lanes look_up_16(const float* table, lanes_int code) noexcept {
    float v[16];
    look_up(table, 16, code, v);
    return load(v);
}

/// 15 ascending thresholds for count_below.
struct thresholds_16 {
    float t[15];
};
NIBBLE_INLINE thresholds_16 load_thresholds(const float* t) noexcept {
    thresholds_16 s;
    std::memcpy(s.t, t, sizeof s.t);
    return s;
}
/// How many thresholds are below x.
NIBBLE_INLINE lanes_int count_below(const thresholds_16& t, lanes x) noexcept {
    float v[16];
    store(v, x);
    std::int32_t n[16];
    for (int r = 0; r < 16; ++r) {
        n[r] = 0;
        for (int i = 0; i < 15; ++i) n[r] += v[r] > t.t[i] ? 1 : 0;
    }
    lanes_int y;
    std::memcpy(&y, n, sizeof y);
    return y;
}

/// 16 rows of 16 words of 32 bits become 16 columns; strides in bytes.
NIBBLE_INLINE void transpose(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to, std::ptrdiff_t to_stride) noexcept {
    for (int c = 0; c < 16; ++c)
        for (int r = 0; r < 16; ++r) std::memcpy(to + c * to_stride + 4 * r, from + r * from_stride + 4 * c, 4);
}
