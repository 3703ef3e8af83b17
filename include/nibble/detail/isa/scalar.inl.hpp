// 16 lanes for every CPU: floats in four quads, which GCC and clang map to SSE or NEON registers, integers in an array
// that compilers vectorize. No include guard: see foreach_level.hpp.

#if defined(__GNUC__)
typedef float quad __attribute__((vector_size(16)));
NIBBLE_INLINE quad splat(float x) noexcept { return quad{x, x, x, x}; }
#else
struct quad {
    float v[4];
    float& operator[](int i) noexcept { return v[i]; }
    float operator[](int i) const noexcept { return v[i]; }
    friend quad operator*(quad a, quad b) noexcept { return {{a.v[0] * b.v[0], a.v[1] * b.v[1], a.v[2] * b.v[2], a.v[3] * b.v[3]}}; }
    friend quad operator-(quad a, quad b) noexcept { return {{a.v[0] - b.v[0], a.v[1] - b.v[1], a.v[2] - b.v[2], a.v[3] - b.v[3]}}; }
    friend quad operator/(quad a, quad b) noexcept { return {{a.v[0] / b.v[0], a.v[1] / b.v[1], a.v[2] / b.v[2], a.v[3] / b.v[3]}}; }
    friend quad operator+(quad a, quad b) noexcept { return {{a.v[0] + b.v[0], a.v[1] + b.v[1], a.v[2] + b.v[2], a.v[3] + b.v[3]}}; }
};
NIBBLE_INLINE quad splat(float x) noexcept { return quad{{x, x, x, x}}; }
#endif

// Functions on arrays are not inlined: unrolled into the kernels they take compilers many seconds.
#define NIBBLE_OUTLINE NIBBLE_NOINLINE inline

struct lanes {
    quad a, b, c, d;
};

struct lanes_int {
    std::int32_t v[16];
};

inline constexpr int tile_panels = 1;
inline constexpr int value_columns = 3;  // 12 accumulators of 16 registers

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
NIBBLE_INLINE lanes add(lanes x, lanes y) noexcept { return {x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d}; }
NIBBLE_INLINE lanes subtract(lanes x, lanes y) noexcept { return {x.a - y.a, x.b - y.b, x.c - y.c, x.d - y.d}; }

NIBBLE_INLINE quad fma_quad(quad x, quad y, quad z) noexcept {
    quad r{};
    for (int i = 0; i < 4; ++i) r[i] = fma_rounded(static_cast<double>(x[i]) * static_cast<double>(y[i]), z[i]);
    return r;
}
/// x * y + z, rounded once.
NIBBLE_OUTLINE lanes fma(const lanes& x, const lanes& y, const lanes& z) noexcept {
    return {fma_quad(x.a, y.a, z.a), fma_quad(x.b, y.b, z.b), fma_quad(x.c, y.c, z.c), fma_quad(x.d, y.d, z.d)};
}

/// The lanes as an array, and back.
struct lane_array {
    float v[16];
};
NIBBLE_INLINE lane_array to_array(lanes x) noexcept {
    lane_array f;
    std::memcpy(&f, &x, sizeof f);
    return f;
}
NIBBLE_INLINE lanes from_array(const lane_array& f) noexcept { return load(f.v); }

NIBBLE_OUTLINE lanes smaller(const lanes& x, const lanes& y) noexcept {
    lane_array a = to_array(x);
    const lane_array b = to_array(y);
    for (int r = 0; r < 16; ++r) a.v[r] = a.v[r] < b.v[r] ? a.v[r] : b.v[r];
    return from_array(a);
}
NIBBLE_OUTLINE lanes larger(const lanes& x, const lanes& y) noexcept {
    lane_array a = to_array(x);
    const lane_array b = to_array(y);
    for (int r = 0; r < 16; ++r) a.v[r] = a.v[r] > b.v[r] ? a.v[r] : b.v[r];
    return from_array(a);
}

NIBBLE_OUTLINE lanes_int load_words(const void* p) noexcept {
    lanes_int x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
NIBBLE_OUTLINE void store_words(void* p, lanes_int x) noexcept { std::memcpy(p, &x, sizeof x); }
NIBBLE_OUTLINE lanes_int set_int(std::int32_t y) noexcept {
    lanes_int x;
    for (int r = 0; r < 16; ++r) x.v[r] = y;
    return x;
}
NIBBLE_OUTLINE lanes_int zero_int() noexcept { return set_int(0); }
/// Modulo 2^32, as the vector instructions add: the bits of a NaN are an integer, too.
constexpr std::int32_t wrapped(std::uint32_t x) noexcept { return static_cast<std::int32_t>(x); }
NIBBLE_OUTLINE lanes_int add(const lanes_int& x, const lanes_int& y) noexcept {
    lanes_int out;
    for (int r = 0; r < 16; ++r) out.v[r] = wrapped(std::uint32_t(x.v[r]) + std::uint32_t(y.v[r]));
    return out;
}
NIBBLE_OUTLINE lanes_int subtract(const lanes_int& x, const lanes_int& y) noexcept {
    lanes_int out;
    for (int r = 0; r < 16; ++r) out.v[r] = wrapped(std::uint32_t(x.v[r]) - std::uint32_t(y.v[r]));
    return out;
}
NIBBLE_OUTLINE lanes_int multiply_low(const lanes_int& x, const lanes_int& y) noexcept {
    lanes_int out;
    for (int r = 0; r < 16; ++r) out.v[r] = wrapped(std::uint32_t(x.v[r]) * std::uint32_t(y.v[r]));
    return out;
}
NIBBLE_OUTLINE lanes_int bit_or(const lanes_int& x, const lanes_int& y) noexcept {
    lanes_int out;
    for (int r = 0; r < 16; ++r) out.v[r] = x.v[r] | y.v[r];
    return out;
}
NIBBLE_OUTLINE lanes_int bit_and(const lanes_int& x, const lanes_int& y) noexcept {
    lanes_int out;
    for (int r = 0; r < 16; ++r) out.v[r] = x.v[r] & y.v[r];
    return out;
}
NIBBLE_OUTLINE lanes_int bit_and(const lanes_int& x, std::int32_t y) noexcept {
    lanes_int out;
    for (int r = 0; r < 16; ++r) out.v[r] = x.v[r] & y;
    return out;
}
NIBBLE_OUTLINE lanes_int shift_left(const lanes_int& x, int n) noexcept {
    lanes_int out;
    for (int r = 0; r < 16; ++r) out.v[r] = static_cast<std::int32_t>(static_cast<std::uint32_t>(x.v[r]) << n);
    return out;
}
template <int N>
NIBBLE_INLINE lanes_int shift_left(lanes_int x) noexcept {
    return shift_left(x, N);
}
template <int N>
NIBBLE_OUTLINE lanes_int shift_right(const lanes_int& x) noexcept {
    lanes_int out;
    for (int r = 0; r < 16; ++r) out.v[r] = x.v[r] >> N;
    return out;
}
NIBBLE_OUTLINE lanes_int shift_right_logical(const lanes_int& x, int n) noexcept {
    lanes_int out;
    for (int r = 0; r < 16; ++r) out.v[r] = static_cast<std::int32_t>(static_cast<std::uint32_t>(x.v[r]) >> n);
    return out;
}
template <int N>
NIBBLE_INLINE lanes_int shift_right_logical(lanes_int x) noexcept {
    return shift_right_logical(x, N);
}
/// (words >> Shift) & Mask.
NIBBLE_OUTLINE lanes_int read_field(const std::uint8_t* p, int shift, std::int32_t mask) noexcept {
    lanes_int x = load_words(p);
    for (int r = 0; r < 16; ++r) x.v[r] = static_cast<std::int32_t>(static_cast<std::uint32_t>(x.v[r]) >> shift) & mask;
    return x;
}
template <int Shift, std::int32_t Mask>
NIBBLE_INLINE lanes_int field(const std::uint8_t* p) noexcept {
    return read_field(p, Shift, Mask);
}
NIBBLE_OUTLINE lanes_int larger(const lanes_int& x, const lanes_int& y) noexcept {
    lanes_int out;
    for (int r = 0; r < 16; ++r) out.v[r] = x.v[r] > y.v[r] ? x.v[r] : y.v[r];
    return out;
}
NIBBLE_OUTLINE lanes_int absolute(const lanes_int& x) noexcept {
    lanes_int out;
    for (int r = 0; r < 16; ++r) out.v[r] = x.v[r] < 0 ? -x.v[r] : x.v[r];
    return out;
}
/// All bits of a lane that equals y, else none.
NIBBLE_OUTLINE lanes_int equal(const lanes_int& x, std::int32_t y) noexcept {
    lanes_int out;
    for (int r = 0; r < 16; ++r) out.v[r] = x.v[r] == y ? -1 : 0;
    return out;
}
NIBBLE_OUTLINE lanes_int select(const lanes_int& mask, const lanes_int& yes, const lanes_int& no) noexcept {
    lanes_int out;
    for (int r = 0; r < 16; ++r) out.v[r] = mask.v[r] != 0 ? yes.v[r] : no.v[r];
    return out;
}
/// All bits of the first n lanes.
NIBBLE_OUTLINE lanes_int first_lanes(int n) noexcept {
    lanes_int x;
    for (int r = 0; r < 16; ++r) x.v[r] = r < n ? -1 : 0;
    return x;
}
NIBBLE_OUTLINE lanes to_lanes(const lanes_int& x) noexcept {
    lane_array f;
    for (int r = 0; r < 16; ++r) f.v[r] = static_cast<float>(x.v[r]);
    return from_array(f);
}
NIBBLE_OUTLINE lanes_int to_int(const lanes& x) noexcept {
    const lane_array f = to_array(x);
    lanes_int y;
    for (int r = 0; r < 16; ++r) y.v[r] = static_cast<std::int32_t>(f.v[r]);
    return y;
}
/// Ties to even, for |x| < 2^31.
NIBBLE_OUTLINE lanes_int nearest_int(const lanes& x) noexcept {
    constexpr double magic = 6755399441055744.0;  // 1.5 * 2^52
    const lane_array f = to_array(x);
    lanes_int y;
    for (int r = 0; r < 16; ++r) {
        const double shifted = static_cast<double>(f.v[r]) + magic;
        y.v[r] = static_cast<std::int32_t>(shifted - magic);
    }
    return y;
}
NIBBLE_OUTLINE lanes as_lanes(const lanes_int& x) noexcept {
    lanes f;
    std::memcpy(&f, &x, sizeof f);
    return f;
}
NIBBLE_OUTLINE lanes_int as_bits(const lanes& x) noexcept {
    lanes_int y;
    std::memcpy(&y, &x, sizeof y);
    return y;
}
NIBBLE_OUTLINE lanes negate(const lanes& x) noexcept {
    lanes_int y = as_bits(x);
    for (int r = 0; r < 16; ++r) y.v[r] ^= static_cast<std::int32_t>(0x80000000u);
    return as_lanes(y);
}

NIBBLE_OUTLINE lanes_int load_u16(const void* p) noexcept {
    std::uint16_t u[16];
    std::memcpy(u, p, sizeof u);
    lanes_int x;
    for (int r = 0; r < 16; ++r) x.v[r] = u[r];
    return x;
}
NIBBLE_OUTLINE lanes load_half(const void* p) noexcept {
    std::uint16_t u[16];
    std::memcpy(u, p, sizeof u);
    lane_array f;
    for (int r = 0; r < 16; ++r) f.v[r] = fp16_to_float(u[r]);
    return from_array(f);
}
NIBBLE_OUTLINE lanes_int load_u8(const std::uint8_t* p) noexcept {
    lanes_int x;
    for (int r = 0; r < 16; ++r) x.v[r] = p[r];
    return x;
}
/// Lane r of a plane of P bits: bits P * (r / 2P) of byte r mod 2P (scale.hpp).
template <int P>
NIBBLE_OUTLINE lanes_int lane_plane(const std::uint8_t* p) noexcept {
    lanes_int x;
    for (int r = 0; r < 16; ++r) x.v[r] = (p[r % (2 * P)] >> (r / (2 * P) * P)) & ((1 << P) - 1);
    return x;
}

/// table[code] of any size.
NIBBLE_OUTLINE lanes gather(const float* table, const lanes_int& code) noexcept {
    lane_array f;
    for (int r = 0; r < 16; ++r) f.v[r] = table[code.v[r]];
    return from_array(f);
}
/// Floats through a table of 16 entries.
struct float_table {
    const float* entries;
};
NIBBLE_INLINE float_table load_table(const float* p) noexcept { return {p}; }
/// The values of a k-quad: a row has four codes, a byte each; v[j] are those of k = j. Only four bits of a code count.
NIBBLE_OUTLINE void quad_values(const float_table& t, const lanes_int& codes, lanes* v) noexcept {
    for (int j = 0; j < 4; ++j) v[j] = gather(t.entries, bit_and(shift_right_logical(codes, 8 * j), 15));
}

/// Small floating point by bytes of bf16 (decoder).
struct minifloat_fields {
    const decoder* rule;
};
NIBBLE_INLINE minifloat_fields load_minifloat(const decoder& d) noexcept { return {&d}; }
NIBBLE_OUTLINE void quad_values(const minifloat_fields& m, const lanes_int& codes, lanes* v) noexcept {
    const decoder& d = *m.rule;
    for (int j = 0; j < 4; ++j) {
        lanes_int value;
        for (int r = 0; r < 16; ++r) {
            const unsigned u = static_cast<std::uint32_t>(codes.v[r]) >> (8 * j) & 255;
            const unsigned upper = u >> 3 & static_cast<unsigned>(d.high_mask);
            const unsigned low = (upper == 0 ? d.low_start : d.low)[u & 15];
            const unsigned high = upper == 0 ? d.high_start[u & 15] : d.high[upper];
            const unsigned sign = u << (8 - d.bits) & 128;
            value.v[r] = static_cast<std::int32_t>((sign | high) << 24 | low << 16);
        }
        v[j] = as_lanes(value);
    }
}

/// t[c] = fma(values[j], x[j * C + c], t[c]) for j = 0, 1, 2, 3.
template <int C, class Map>
NIBBLE_OUTLINE void multiply_quad(const Map& map, const lanes_int& codes, const float* x, lanes* t) noexcept {
    lanes v[4];
    quad_values(map, codes, v);
    for (int j = 0; j < 4; ++j)
        for (int c = 0; c < C; ++c) t[c] = fma(v[j], set(x[C * j + c]), t[c]);
}

/// Bytes through a table of 16.
struct byte_table {
    const std::uint8_t* entries;
};
NIBBLE_INLINE byte_table load_table(const std::uint8_t* p) noexcept { return {p}; }
NIBBLE_OUTLINE lanes_int look_up(byte_table t, const lanes_int& codes) noexcept {
    std::uint8_t u[64];
    std::memcpy(u, &codes, sizeof u);
    for (std::uint8_t& b : u) b = t.entries[b & 15];
    return load_words(u);
}

/// Codes times digits of 16 bits, products in int32.
struct plain_kind {
    static constexpr const char* name = "multiply and add";
    static constexpr bool flushes = false;
    static constexpr bool reads_nibbles = false;
    static constexpr int code_offset = 0;
    static constexpr int chunk = 2;
    static constexpr int streams(int digits) noexcept { return digits == 3 ? 2 : 1; }
    static constexpr int columns(int) noexcept { return 1; }  // no array of 16 stays in registers anyway

    template <int T>
    NIBBLE_NOINLINE static void step(lanes_int* d, const lanes_int* w, const std::uint8_t* a) noexcept {
        for (int t = 0; t < T; ++t) {
            std::int16_t x[4];
            std::memcpy(x, a + 8 * t, sizeof x);
            for (int r = 0; r < 16; ++r) {
                const auto u = static_cast<std::uint32_t>(w->v[r]);
                d[t].v[r] += static_cast<std::int32_t>(u & 255) * x[0] + static_cast<std::int32_t>((u >> 8) & 255) * x[1] +
                             static_cast<std::int32_t>((u >> 16) & 255) * x[2] + static_cast<std::int32_t>(u >> 24) * x[3];
            }
        }
    }
    NIBBLE_INLINE static lanes_int widen(lanes_int x) noexcept { return x; }
    /// The low 16 bits as a signed number; with three digits then the rest: low + 65536 * high = q.
    NIBBLE_INLINE static void pack(const std::int32_t* q, int digits, std::uint8_t* out) noexcept {
        std::int16_t low[4], high[4];
        for (int j = 0; j < 4; ++j) {
            low[j] = static_cast<std::int16_t>(q[j]);
            high[j] = static_cast<std::int16_t>(highest(q[j]));
        }
        std::memcpy(out, low, sizeof low);
        if (digits == 3) std::memcpy(out + 8, high, sizeof high);
    }
    static constexpr std::int32_t highest(std::int32_t q) noexcept { return (q + 0x8000) >> 16; }
};
using narrow_kind = plain_kind;
using wide_kind = plain_kind;

// ---- Epilogues: doubles for activation functions, 16-bit outputs ----
//
// wide             as many doubles as one register holds; + - * / round as IEEE says
// widen, narrow    16 floats to doubles, exact, and back, rounded to nearest
// larger, smaller  x > y ? x : y, x < y ? x : y
// where_negative   x < 0 ? y : z
// two_to           2^n of n + 1.5 * 2^52, for -1022 <= n <= 1023

#if defined(__GNUC__)
typedef double wide __attribute__((vector_size(16)));
typedef std::int64_t wide_int __attribute__((vector_size(16)));
inline constexpr int wide_lanes = 2;
NIBBLE_INLINE wide wide_set(double x) noexcept { return wide{x, x}; }
NIBBLE_INLINE void widen(lanes x, wide* w) noexcept {
    const lane_array f = to_array(x);
    for (int i = 0; i < 8; ++i) w[i] = wide{static_cast<double>(f.v[2 * i]), static_cast<double>(f.v[2 * i + 1])};
}
NIBBLE_INLINE lanes narrow(const wide* w) noexcept {
    lane_array f;
    for (int i = 0; i < 8; ++i) {
        f.v[2 * i] = static_cast<float>(w[i][0]);
        f.v[2 * i + 1] = static_cast<float>(w[i][1]);
    }
    return from_array(f);
}
NIBBLE_INLINE wide choose(wide_int mask, wide x, wide y) noexcept {
    return reinterpret_cast<wide>((reinterpret_cast<wide_int>(x) & mask) | (reinterpret_cast<wide_int>(y) & ~mask));
}
NIBBLE_INLINE wide larger(wide x, wide y) noexcept { return choose(x > y, x, y); }
NIBBLE_INLINE wide smaller(wide x, wide y) noexcept { return choose(x < y, x, y); }
NIBBLE_INLINE wide where_negative(wide x, wide y, wide z) noexcept { return choose(x < wide_set(0.0), y, z); }
NIBBLE_INLINE wide two_to(wide shifted) noexcept { return reinterpret_cast<wide>((reinterpret_cast<wide_int>(shifted) + 1023) << 52); }
#else
typedef double wide;
inline constexpr int wide_lanes = 1;
NIBBLE_INLINE wide wide_set(double x) noexcept { return x; }
NIBBLE_INLINE void widen(lanes x, wide* w) noexcept {
    const lane_array f = to_array(x);
    for (int r = 0; r < 16; ++r) w[r] = static_cast<double>(f.v[r]);
}
NIBBLE_INLINE lanes narrow(const wide* w) noexcept {
    lane_array f;
    for (int r = 0; r < 16; ++r) f.v[r] = static_cast<float>(w[r]);
    return from_array(f);
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
#endif

/// The low 16 bits of every lane; they hold numbers below 2^16.
NIBBLE_INLINE void store_u16(std::uint16_t* p, lanes_int x) noexcept {
    for (int r = 0; r < 16; ++r) p[r] = static_cast<std::uint16_t>(x.v[r]);
}
/// Rounded to nearest even, with the bits of float_to_fp16 (formats/half.hpp), NaN included.
NIBBLE_INLINE void store_fp16(std::uint16_t* p, lanes x) noexcept {
    const lane_array f = to_array(x);
    for (int r = 0; r < 16; ++r) p[r] = float_to_fp16(f.v[r]);
}

// --- encoding and decoding -------------------------------------------------------------------------------------------

NIBBLE_INLINE void prefetch(const void*) noexcept {}
NIBBLE_INLINE void prefetch_to_write(const void*) noexcept {}

/// Past the caches where there is a way, to 64-byte aligned memory; stream_end() before anyone else reads it.
NIBBLE_INLINE void stream_words(std::uint8_t* p, lanes_int x) noexcept { std::memcpy(p, &x, sizeof x); }
NIBBLE_INLINE void stream_end() noexcept {}

NIBBLE_INLINE lanes divide(lanes x, lanes y) noexcept { return {x.a / y.a, x.b / y.b, x.c / y.c, x.d / y.d}; }
NIBBLE_OUTLINE lanes_int smaller(const lanes_int& x, const lanes_int& y) noexcept {
    lanes_int out;
    for (int r = 0; r < 16; ++r) out.v[r] = x.v[r] < y.v[r] ? x.v[r] : y.v[r];
    return out;
}
/// x, once it is rounded: stands between a product and a sum that must not become one fma.
NIBBLE_INLINE lanes rounded(lanes x) noexcept { return x; }

/// a < b ? x : y, signed.
NIBBLE_OUTLINE lanes select_less(const lanes_int& a, const lanes_int& b, const lanes& x, const lanes& y) noexcept {
    lanes_int less;
    for (int r = 0; r < 16; ++r) less.v[r] = a.v[r] < b.v[r] ? -1 : 0;
    return as_lanes(select(less, as_bits(x), as_bits(y)));
}
/// a < b ? x : y; false for NaN.
NIBBLE_OUTLINE lanes select_less(const lanes& a, const lanes& b, const lanes& x, const lanes& y) noexcept {
    const lane_array p = to_array(a);
    const lane_array q = to_array(b);
    lanes_int less;
    for (int r = 0; r < 16; ++r) less.v[r] = p.v[r] < q.v[r] ? -1 : 0;
    return as_lanes(select(less, as_bits(x), as_bits(y)));
}

NIBBLE_OUTLINE float least(const lanes& x) noexcept {
    float v[16];
    store(v, x);
    float m = v[0];
    for (int r = 1; r < 16; ++r) m = v[r] < m ? v[r] : m;
    return m;
}
NIBBLE_OUTLINE float greatest(const lanes& x) noexcept {
    float v[16];
    store(v, x);
    float m = v[0];
    for (int r = 1; r < 16; ++r) m = v[r] > m ? v[r] : m;
    return m;
}
NIBBLE_OUTLINE std::int32_t greatest(const lanes_int& x) noexcept {
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
NIBBLE_OUTLINE void store_codes(std::uint8_t* p, const lanes_int& x, int zero, int lowest, int highest) noexcept {
    for (int r = 0; r < 16; ++r) {
        const std::int32_t v = x.v[r] + zero;
        p[r] = static_cast<std::uint8_t>(v < lowest ? lowest : v > highest ? highest : v);
    }
}
/// p[i] = table[p[i]] of 16 bytes and 16 entries.
NIBBLE_OUTLINE void map_bytes(const std::uint8_t* table, std::uint8_t* p) noexcept {
    for (int r = 0; r < 16; ++r) p[r] = table[p[r]];
}
/// Finite floats to fp16, to nearest even, and fp16 to floats.
NIBBLE_OUTLINE lanes_int to_fp16(const lanes& x) noexcept {
    const lane_array f = to_array(x);
    lanes_int h;
    for (int r = 0; r < 16; ++r) h.v[r] = float_to_fp16(f.v[r]);
    return h;
}
NIBBLE_OUTLINE lanes from_fp16(const lanes_int& x) noexcept {
    lane_array f;
    for (int r = 0; r < 16; ++r) f.v[r] = fp16_to_float(static_cast<std::uint16_t>(x.v[r]));
    return from_array(f);
}
/// 16 doubles, each rounded once.
NIBBLE_OUTLINE lanes load_doubles(const double* p) noexcept {
    float v[16];
    for (int r = 0; r < 16; ++r) {
        double d;
        std::memcpy(&d, p + r, sizeof d);
        v[r] = static_cast<float>(d);
    }
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
NIBBLE_OUTLINE lanes_int count_below(const thresholds_16& t, const lanes& x) noexcept {
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

/// 16 rows of 4 words of 32 bits become 4 columns; strides in bytes.
NIBBLE_OUTLINE void transpose_four(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to, std::ptrdiff_t to_stride) noexcept {
    for (int c = 0; c < 4; ++c)
        for (int r = 0; r < 16; ++r) std::memcpy(to + c * to_stride + 4 * r, from + r * from_stride + 4 * c, 4);
}
/// 16 rows of 16 words become 16 columns.
NIBBLE_OUTLINE void transpose(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to, std::ptrdiff_t to_stride) noexcept {
    for (int c = 0; c < 16; ++c)
        for (int r = 0; r < 16; ++r) std::memcpy(to + c * to_stride + 4 * r, from + r * from_stride + 4 * c, 4);
}

/// The largest byte (u + add) & mask of `quads` lines of 64 bytes u.
NIBBLE_OUTLINE int largest_byte(const std::uint8_t* bytes, std::ptrdiff_t quads, int add, int mask) noexcept {
    int most = 0;
    for (std::ptrdiff_t i = 0; i < 64 * quads; ++i) {
        const int u = (bytes[i] + add) & mask;
        most = u > most ? u : most;
    }
    return most;
}

#undef NIBBLE_OUTLINE
