// 16 lanes of float or int32 in four q registers. No include guard: see foreach_level.hpp.
//
// Operators on floats, not intrinsics: clang compiles intrinsics with the options of the including file, see avx2.inl.hpp.

struct lanes {
    float32x4_t a, b, c, d;
};

struct lanes_int {
    int32x4_t a, b, c, d;
};

inline constexpr int tile_panels = 1;
inline constexpr int value_columns = 4;  // 16 accumulators and 4 values of 32 registers; with 6 columns GCC 12 spills one

#define NIBBLE_EACH(f, x) {f(x.a), f(x.b), f(x.c), f(x.d)}
#define NIBBLE_EACH_PAIR(f, x, y) {f(x.a, y.a), f(x.b, y.b), f(x.c, y.c), f(x.d, y.d)}
#define NIBBLE_EACH_WITH(f, x, y) {f(x.a, y), f(x.b, y), f(x.c, y), f(x.d, y)}

// Memory is read and written as bytes: of any alignment and type.
NIBBLE_INLINE uint8x16_t load_bytes(const void* p) noexcept { return vld1q_u8(static_cast<const std::uint8_t*>(p)); }
NIBBLE_INLINE void store_bytes(void* p, uint8x16_t x) noexcept { vst1q_u8(static_cast<std::uint8_t*>(p), x); }

NIBBLE_INLINE float32x4_t as_floats(int32x4_t x) noexcept { return vreinterpretq_f32_s32(x); }
NIBBLE_INLINE int32x4_t as_words(float32x4_t x) noexcept { return vreinterpretq_s32_f32(x); }
NIBBLE_INLINE uint32x4_t as_mask(int32x4_t x) noexcept { return vreinterpretq_u32_s32(x); }
NIBBLE_INLINE int32x4_t as_words(uint32x4_t x) noexcept { return vreinterpretq_s32_u32(x); }
NIBBLE_INLINE uint8x16_t as_bytes(int32x4_t x) noexcept { return vreinterpretq_u8_s32(x); }

NIBBLE_INLINE float32x4_t load_floats(const void* p) noexcept { return vreinterpretq_f32_u8(load_bytes(p)); }
NIBBLE_INLINE void store_floats(void* p, float32x4_t x) noexcept { store_bytes(p, vreinterpretq_u8_f32(x)); }
NIBBLE_INLINE lanes load(const float* p) noexcept { return {load_floats(p), load_floats(p + 4), load_floats(p + 8), load_floats(p + 12)}; }
NIBBLE_INLINE void store(float* p, lanes x) noexcept {
    store_floats(p, x.a);
    store_floats(p + 4, x.b);
    store_floats(p + 8, x.c);
    store_floats(p + 12, x.d);
}
NIBBLE_INLINE lanes set(float x) noexcept {
    const float32x4_t v = vdupq_n_f32(x);
    return {v, v, v, v};
}
NIBBLE_INLINE lanes zero() noexcept { return set(0.0f); }
NIBBLE_INLINE lanes multiply(lanes x, lanes y) noexcept { return {x.a * y.a, x.b * y.b, x.c * y.c, x.d * y.d}; }
NIBBLE_INLINE lanes add(lanes x, lanes y) noexcept { return {x.a + y.a, x.b + y.b, x.c + y.c, x.d + y.d}; }
NIBBLE_INLINE lanes subtract(lanes x, lanes y) noexcept { return {x.a - y.a, x.b - y.b, x.c - y.c, x.d - y.d}; }
NIBBLE_INLINE lanes fma(lanes x, lanes y, lanes z) noexcept {
    return {vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b), vfmaq_f32(z.c, x.c, y.c), vfmaq_f32(z.d, x.d, y.d)};
}
// x < y ? x : y and x > y ? x : y, as on x86: fmin and fmax treat NaN and -0 otherwise.
NIBBLE_INLINE float32x4_t smaller(float32x4_t x, float32x4_t y) noexcept { return vbslq_f32(reinterpret_cast<uint32x4_t>(x < y), x, y); }
NIBBLE_INLINE float32x4_t larger(float32x4_t x, float32x4_t y) noexcept { return vbslq_f32(reinterpret_cast<uint32x4_t>(x > y), x, y); }
NIBBLE_INLINE lanes smaller(lanes x, lanes y) noexcept { return NIBBLE_EACH_PAIR(smaller, x, y); }
NIBBLE_INLINE lanes larger(lanes x, lanes y) noexcept { return NIBBLE_EACH_PAIR(larger, x, y); }

NIBBLE_INLINE lanes_int load_words(const void* p) noexcept {
    const auto* at = static_cast<const std::uint8_t*>(p);
    return {vreinterpretq_s32_u8(load_bytes(at)), vreinterpretq_s32_u8(load_bytes(at + 16)), vreinterpretq_s32_u8(load_bytes(at + 32)),
            vreinterpretq_s32_u8(load_bytes(at + 48))};
}
NIBBLE_INLINE void store_words(void* p, lanes_int x) noexcept {
    auto* at = static_cast<std::uint8_t*>(p);
    store_bytes(at, as_bytes(x.a));
    store_bytes(at + 16, as_bytes(x.b));
    store_bytes(at + 32, as_bytes(x.c));
    store_bytes(at + 48, as_bytes(x.d));
}
NIBBLE_INLINE lanes_int set_int(std::int32_t x) noexcept {
    const int32x4_t v = vdupq_n_s32(x);
    return {v, v, v, v};
}
NIBBLE_INLINE lanes_int zero_int() noexcept { return set_int(0); }
NIBBLE_INLINE lanes_int add(lanes_int x, lanes_int y) noexcept { return NIBBLE_EACH_PAIR(vaddq_s32, x, y); }
NIBBLE_INLINE lanes_int subtract(lanes_int x, lanes_int y) noexcept { return NIBBLE_EACH_PAIR(vsubq_s32, x, y); }
NIBBLE_INLINE lanes_int multiply_low(lanes_int x, lanes_int y) noexcept { return NIBBLE_EACH_PAIR(vmulq_s32, x, y); }
NIBBLE_INLINE lanes_int bit_or(lanes_int x, lanes_int y) noexcept { return NIBBLE_EACH_PAIR(vorrq_s32, x, y); }
NIBBLE_INLINE lanes_int bit_and(lanes_int x, lanes_int y) noexcept { return NIBBLE_EACH_PAIR(vandq_s32, x, y); }
NIBBLE_INLINE lanes_int bit_and(lanes_int x, std::int32_t y) noexcept { return bit_and(x, set_int(y)); }
template <int N>
NIBBLE_INLINE lanes_int shift_left(lanes_int x) noexcept {
    return NIBBLE_EACH_WITH(vshlq_n_s32, x, N);
}
NIBBLE_INLINE lanes_int shift_left(lanes_int x, int n) noexcept { return NIBBLE_EACH_WITH(vshlq_s32, x, vdupq_n_s32(n)); }
template <int N>
NIBBLE_INLINE lanes_int shift_right(lanes_int x) noexcept {
    return NIBBLE_EACH_WITH(vshrq_n_s32, x, N);
}
NIBBLE_INLINE lanes_int shift_right_logical(lanes_int x, int n) noexcept {
    const int32x4_t count = vdupq_n_s32(-n);
    return {as_words(vshlq_u32(as_mask(x.a), count)), as_words(vshlq_u32(as_mask(x.b), count)), as_words(vshlq_u32(as_mask(x.c), count)),
            as_words(vshlq_u32(as_mask(x.d), count))};
}
template <int N>
NIBBLE_INLINE lanes_int shift_right_logical(lanes_int x) noexcept {
    if constexpr (N == 0) return x;
    else return {as_words(vshrq_n_u32(as_mask(x.a), N)), as_words(vshrq_n_u32(as_mask(x.b), N)), as_words(vshrq_n_u32(as_mask(x.c), N)),
                 as_words(vshrq_n_u32(as_mask(x.d), N))};
}
template <int N>
NIBBLE_INLINE int32x4_t shift_bytes_right(int32x4_t x) noexcept {
    return vreinterpretq_s32_u8(vshrq_n_u8(as_bytes(x), N));
}
/// (words >> Shift) & Mask; the mask is the same for every byte.
template <int Shift, std::int32_t Mask>
NIBBLE_INLINE lanes_int field(const std::uint8_t* p) noexcept {
    static_assert(Mask == (Mask & 255) * 0x01010101);
    const lanes_int x = load_words(p);
    if constexpr (Shift == 0) {
        return bit_and(x, Mask);
    } else {
        const lanes_int shifted = NIBBLE_EACH(shift_bytes_right<Shift>, x);
        if constexpr ((Mask & 255) == 255 >> Shift) return shifted;
        else return bit_and(shifted, Mask);
    }
}
NIBBLE_INLINE lanes_int larger(lanes_int x, lanes_int y) noexcept { return NIBBLE_EACH_PAIR(vmaxq_s32, x, y); }
NIBBLE_INLINE lanes_int smaller(lanes_int x, lanes_int y) noexcept { return NIBBLE_EACH_PAIR(vminq_s32, x, y); }
NIBBLE_INLINE lanes_int absolute(lanes_int x) noexcept { return NIBBLE_EACH(vabsq_s32, x); }
/// All bits of a lane that equals y, else none.
NIBBLE_INLINE lanes_int equal(lanes_int x, std::int32_t y) noexcept {
    const int32x4_t v = vdupq_n_s32(y);
    return {as_words(vceqq_s32(x.a, v)), as_words(vceqq_s32(x.b, v)), as_words(vceqq_s32(x.c, v)), as_words(vceqq_s32(x.d, v))};
}
NIBBLE_INLINE lanes_int select(lanes_int mask, lanes_int yes, lanes_int no) noexcept {
    return {vbslq_s32(as_mask(mask.a), yes.a, no.a), vbslq_s32(as_mask(mask.b), yes.b, no.b), vbslq_s32(as_mask(mask.c), yes.c, no.c),
            vbslq_s32(as_mask(mask.d), yes.d, no.d)};
}
/// All bits of the first n lanes.
NIBBLE_INLINE lanes_int first_lanes(int n) noexcept {
    const int32x4_t v = {0, 1, 2, 3};
    return {as_words(vcgtq_s32(vdupq_n_s32(n), v)), as_words(vcgtq_s32(vdupq_n_s32(n - 4), v)), as_words(vcgtq_s32(vdupq_n_s32(n - 8), v)),
            as_words(vcgtq_s32(vdupq_n_s32(n - 12), v))};
}
NIBBLE_INLINE lanes to_lanes(lanes_int x) noexcept { return NIBBLE_EACH(vcvtq_f32_s32, x); }
NIBBLE_INLINE lanes_int to_int(lanes x) noexcept { return NIBBLE_EACH(vcvtq_s32_f32, x); }
/// Ties to even.
NIBBLE_INLINE lanes_int nearest_int(lanes x) noexcept { return NIBBLE_EACH(vcvtnq_s32_f32, x); }
/// The same for 16-bit codes, where other levels promise less (see scalar.inl.hpp).
NIBBLE_INLINE lanes_int round_to_int(lanes x) noexcept { return nearest_int(x); }
NIBBLE_INLINE lanes as_lanes(lanes_int x) noexcept { return NIBBLE_EACH(as_floats, x); }
NIBBLE_INLINE lanes_int as_bits(lanes x) noexcept { return NIBBLE_EACH(as_words, x); }
NIBBLE_INLINE lanes negate(lanes x) noexcept {
    const int32x4_t sign = vdupq_n_s32(static_cast<std::int32_t>(0x80000000u));
    const lanes_int u = as_bits(x);
    return as_lanes(NIBBLE_EACH_WITH(veorq_s32, u, sign));
}

/// 16 unsigned words or bytes to lanes.
NIBBLE_INLINE lanes_int widen_words(uint16x8_t low, uint16x8_t high) noexcept {
    return {as_words(vmovl_u16(vget_low_u16(low))), as_words(vmovl_high_u16(low)), as_words(vmovl_u16(vget_low_u16(high))),
            as_words(vmovl_high_u16(high))};
}
NIBBLE_INLINE lanes_int widen_bytes(uint8x16_t x) noexcept { return widen_words(vmovl_u8(vget_low_u8(x)), vmovl_high_u8(x)); }
/// The low 16 bits of every lane.
NIBBLE_INLINE uint16x8_t low_words(int32x4_t x, int32x4_t y) noexcept { return vmovn_high_u32(vmovn_u32(as_mask(x)), as_mask(y)); }

NIBBLE_INLINE lanes from_fp16(uint16x8_t low, uint16x8_t high) noexcept {
    const float16x8_t x = vreinterpretq_f16_u16(low);
    const float16x8_t y = vreinterpretq_f16_u16(high);
    return {vcvt_f32_f16(vget_low_f16(x)), vcvt_high_f32_f16(x), vcvt_f32_f16(vget_low_f16(y)), vcvt_high_f32_f16(y)};
}
NIBBLE_INLINE lanes load_half(const void* p) noexcept {
    const auto* at = static_cast<const std::uint8_t*>(p);
    return from_fp16(vreinterpretq_u16_u8(load_bytes(at)), vreinterpretq_u16_u8(load_bytes(at + 16)));
}
NIBBLE_INLINE lanes_int load_u16(const void* p) noexcept {
    const auto* at = static_cast<const std::uint8_t*>(p);
    return widen_words(vreinterpretq_u16_u8(load_bytes(at)), vreinterpretq_u16_u8(load_bytes(at + 16)));
}
NIBBLE_INLINE lanes_int load_u8(const std::uint8_t* p) noexcept { return widen_bytes(load_bytes(p)); }

/// Lane r of a plane of P bits: bits P * (r / 2P) of byte r mod 2P (scale.hpp).
template <int P>
NIBBLE_INLINE lanes_int lane_plane(const std::uint8_t* p) noexcept {
    uint8x16_t v;
    int8x16_t shift;
    if constexpr (P == 4) {
        const uint8x8_t bytes = vld1_u8(p);
        v = vcombine_u8(bytes, bytes);
        shift = int8x16_t{0, 0, 0, 0, 0, 0, 0, 0, -4, -4, -4, -4, -4, -4, -4, -4};
    } else if constexpr (P == 2) {
        std::uint32_t word;
        std::memcpy(&word, p, 4);
        v = vreinterpretq_u8_u32(vdupq_n_u32(word));
        shift = int8x16_t{0, 0, 0, 0, -2, -2, -2, -2, -4, -4, -4, -4, -6, -6, -6, -6};
    } else {
        std::uint16_t word;
        std::memcpy(&word, p, 2);
        v = vreinterpretq_u8_u16(vdupq_n_u16(word));
        shift = int8x16_t{0, 0, -1, -1, -2, -2, -3, -3, -4, -4, -5, -5, -6, -6, -7, -7};
    }
    return widen_bytes(vandq_u8(vshlq_u8(v, shift), vdupq_n_u8((1 << P) - 1)));
}

/// table[code] of any size.
NIBBLE_INLINE lanes gather(const float* table, lanes_int code) noexcept {
    std::int32_t u[16];
    float f[16];
    store_words(u, code);
    for (int r = 0; r < 16; ++r) f[r] = table[u[r]];
    return load(f);
}
/// Floats through a table of 16 entries, which are 64 bytes: what tbl looks up in.
struct float_table {
    uint8x16x4_t bytes;
};
NIBBLE_INLINE float_table load_table(const float* p) noexcept {
    return {{{load_bytes(p), load_bytes(p + 4), load_bytes(p + 8), load_bytes(p + 12)}}};
}
/// The entry at byte J of every word of `at`, which holds offsets in the table: four times codes.
template <int J>
NIBBLE_INLINE float32x4_t look_up_quad(float_table t, uint8x16_t at) noexcept {
    const uint8x16_t spread = {J, J, J, J, J + 4, J + 4, J + 4, J + 4, J + 8, J + 8, J + 8, J + 8, J + 12, J + 12, J + 12, J + 12};
    const uint8x16_t within = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
    return vreinterpretq_f32_u8(vqtbl4q_u8(t.bytes, vorrq_u8(vqtbl1q_u8(at, spread), within)));
}

// The values of a k-quad: a row has four codes, a byte each; v[j] are those of k = j. In quarters of 4 rows.

/// Only the low four bits of a code count.
NIBBLE_INLINE void quarter_values(const float_table& t, int32x4_t codes, float32x4_t* v) noexcept {
    const uint8x16_t at = vandq_u8(vshlq_n_u8(as_bytes(codes), 2), vdupq_n_u8(0x3c));
    v[0] = look_up_quad<0>(t, at);
    v[1] = look_up_quad<1>(t, at);
    v[2] = look_up_quad<2>(t, at);
    v[3] = look_up_quad<3>(t, at);
}

/// Small floating point by bytes of bf16 (decoder).
struct minifloat_fields {
    uint8x16_t low, high, low_start, high_start, high_mask;
    int8x16_t to_sign;
};
NIBBLE_INLINE minifloat_fields load_minifloat(const decoder& d) noexcept {
    return {load_bytes(d.low), load_bytes(d.high), load_bytes(d.low_start), load_bytes(d.high_start),
            vdupq_n_u8(static_cast<std::uint8_t>(d.high_mask)), vdupq_n_s8(static_cast<std::int8_t>(8 - d.bits))};
}
NIBBLE_INLINE void quarter_values(const minifloat_fields& m, int32x4_t codes, float32x4_t* v) noexcept {
    const uint8x16_t by_column = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    const uint8x16_t u = vqtbl1q_u8(as_bytes(codes), by_column);
    const uint8x16_t nibble = vandq_u8(u, vdupq_n_u8(15));
    const uint8x16_t upper = vandq_u8(vshrq_n_u8(u, 3), m.high_mask);
    const uint8x16_t starts = vceqq_u8(upper, vdupq_n_u8(0));
    const uint8x16_t low = vbslq_u8(starts, vqtbl1q_u8(m.low_start, nibble), vqtbl1q_u8(m.low, nibble));
    const uint8x16_t magnitude = vbslq_u8(starts, vqtbl1q_u8(m.high_start, nibble), vqtbl1q_u8(m.high, upper));
    const uint8x16_t high = vorrq_u8(magnitude, vandq_u8(vshlq_u8(u, m.to_sign), vdupq_n_u8(128)));
    const uint16x8_t none = vdupq_n_u16(0);
    const uint16x8_t even = vreinterpretq_u16_u8(vzip1q_u8(low, high));
    const uint16x8_t odd = vreinterpretq_u16_u8(vzip2q_u8(low, high));
    v[0] = vreinterpretq_f32_u16(vzip1q_u16(none, even));
    v[1] = vreinterpretq_f32_u16(vzip2q_u16(none, even));
    v[2] = vreinterpretq_f32_u16(vzip1q_u16(none, odd));
    v[3] = vreinterpretq_f32_u16(vzip2q_u16(none, odd));
}

template <class Map>
NIBBLE_INLINE void quad_values(const Map& map, lanes_int codes, lanes* v) noexcept {
    float32x4_t a[4], b[4], c[4], d[4];
    quarter_values(map, codes.a, a);
    quarter_values(map, codes.b, b);
    quarter_values(map, codes.c, c);
    quarter_values(map, codes.d, d);
    v[0] = {a[0], b[0], c[0], d[0]};
    v[1] = {a[1], b[1], c[1], d[1]};
    v[2] = {a[2], b[2], c[2], d[2]};
    v[3] = {a[3], b[3], c[3], d[3]};
}
template <int C, class Map>
NIBBLE_INLINE void multiply_quarter(const Map& map, int32x4_t codes, const float* x, float32x4_t& first, float32x4_t& second) noexcept {
    float32x4_t v[4];
    quarter_values(map, codes, v);
    first = vfmaq_n_f32(first, v[0], x[0]);
    first = vfmaq_n_f32(first, v[1], x[C]);
    first = vfmaq_n_f32(first, v[2], x[2 * C]);
    first = vfmaq_n_f32(first, v[3], x[3 * C]);
    if constexpr (C == 2) {
        second = vfmaq_n_f32(second, v[0], x[1]);
        second = vfmaq_n_f32(second, v[1], x[3]);
        second = vfmaq_n_f32(second, v[2], x[5]);
        second = vfmaq_n_f32(second, v[3], x[7]);
    }
}
/// t[c] = fma(values[j], x[j * C + c], t[c]) for j = 0, 1, 2, 3.
template <int C, class Map>
NIBBLE_INLINE void multiply_quad(const Map& map, lanes_int codes, const float* x, lanes* t) noexcept {
    multiply_quarter<C>(map, codes.a, x, t[0].a, t[C - 1].a);
    multiply_quarter<C>(map, codes.b, x, t[0].b, t[C - 1].b);
    multiply_quarter<C>(map, codes.c, x, t[0].c, t[C - 1].c);
    multiply_quarter<C>(map, codes.d, x, t[0].d, t[C - 1].d);
}

/// Bytes through a table of 16.
struct byte_table {
    uint8x16_t entries;
};
NIBBLE_INLINE byte_table load_table(const std::uint8_t* p) noexcept { return {load_bytes(p)}; }
NIBBLE_INLINE int32x4_t look_up_bytes(byte_table t, int32x4_t codes) noexcept {
    return vreinterpretq_s32_u8(vqtbl1q_u8(t.entries, as_bytes(codes)));
}
NIBBLE_INLINE lanes_int look_up(byte_table t, lanes_int codes) noexcept {
    return {look_up_bytes(t, codes.a), look_up_bytes(t, codes.b), look_up_bytes(t, codes.c), look_up_bytes(t, codes.d)};
}

// ---- Epilogues: doubles for activation functions, 16-bit outputs (see scalar.inl.hpp) ----

typedef float64x2_t wide;
inline constexpr int wide_lanes = 2;
NIBBLE_INLINE wide wide_set(double x) noexcept { return vdupq_n_f64(x); }
NIBBLE_INLINE void widen(lanes x, wide* w) noexcept {
    w[0] = vcvt_f64_f32(vget_low_f32(x.a));
    w[1] = vcvt_high_f64_f32(x.a);
    w[2] = vcvt_f64_f32(vget_low_f32(x.b));
    w[3] = vcvt_high_f64_f32(x.b);
    w[4] = vcvt_f64_f32(vget_low_f32(x.c));
    w[5] = vcvt_high_f64_f32(x.c);
    w[6] = vcvt_f64_f32(vget_low_f32(x.d));
    w[7] = vcvt_high_f64_f32(x.d);
}
NIBBLE_INLINE float32x4_t narrow(wide x, wide y) noexcept { return vcvt_high_f32_f64(vcvt_f32_f64(x), y); }
NIBBLE_INLINE lanes narrow(const wide* w) noexcept { return {narrow(w[0], w[1]), narrow(w[2], w[3]), narrow(w[4], w[5]), narrow(w[6], w[7])}; }
NIBBLE_INLINE wide larger(wide x, wide y) noexcept { return vbslq_f64(reinterpret_cast<uint64x2_t>(x > y), x, y); }
NIBBLE_INLINE wide smaller(wide x, wide y) noexcept { return vbslq_f64(reinterpret_cast<uint64x2_t>(x < y), x, y); }
NIBBLE_INLINE wide where_negative(wide x, wide y, wide z) noexcept {
    return vbslq_f64(reinterpret_cast<uint64x2_t>(x < wide_set(0.0)), y, z);
}
NIBBLE_INLINE wide two_to(wide shifted) noexcept {
    return vreinterpretq_f64_s64(vshlq_n_s64(vaddq_s64(vreinterpretq_s64_f64(shifted), vdupq_n_s64(1023)), 52));
}
NIBBLE_INLINE void store_u16(std::uint16_t* p, lanes_int x) noexcept {
    store_bytes(p, vreinterpretq_u8_u16(low_words(x.a, x.b)));
    store_bytes(p + 8, vreinterpretq_u8_u16(low_words(x.c, x.d)));
}
NIBBLE_INLINE uint16x8_t fp16_words(float32x4_t x, float32x4_t y) noexcept {
    return vreinterpretq_u16_f16(vcvt_high_f16_f32(vcvt_f16_f32(x), y));
}
NIBBLE_INLINE void store_fp16(std::uint16_t* p, lanes x) noexcept {
    store_bytes(p, vreinterpretq_u8_u16(fp16_words(x.a, x.b)));
    store_bytes(p + 8, vreinterpretq_u8_u16(fp16_words(x.c, x.d)));
}

// --- encoding and decoding -------------------------------------------------------------------------------------------

NIBBLE_INLINE void prefetch(const void* p) noexcept { __builtin_prefetch(p); }
NIBBLE_INLINE void prefetch_to_write(const void* p) noexcept { __builtin_prefetch(p, 1); }

/// Through the caches: they recognize long runs of whole lines by themselves.
NIBBLE_INLINE void stream_words(std::uint8_t* p, lanes_int x) noexcept { store_words(p, x); }
NIBBLE_INLINE void stream_end() noexcept {}

NIBBLE_INLINE lanes divide(lanes x, lanes y) noexcept { return {x.a / y.a, x.b / y.b, x.c / y.c, x.d / y.d}; }
/// x, once it is rounded: stands between a product and a sum that must not become one fma.
NIBBLE_INLINE lanes rounded(lanes x) noexcept {
    __asm__("" : "+w"(x.a), "+w"(x.b), "+w"(x.c), "+w"(x.d));
    return x;
}
/// a < b ? x : y, signed.
NIBBLE_INLINE float32x4_t select_less(int32x4_t a, int32x4_t b, float32x4_t x, float32x4_t y) noexcept {
    return vbslq_f32(vcltq_s32(a, b), x, y);
}
NIBBLE_INLINE lanes select_less(lanes_int a, lanes_int b, lanes x, lanes y) noexcept {
    return {select_less(a.a, b.a, x.a, y.a), select_less(a.b, b.b, x.b, y.b), select_less(a.c, b.c, x.c, y.c), select_less(a.d, b.d, x.d, y.d)};
}
/// a < b ? x : y; false for NaN.
NIBBLE_INLINE float32x4_t select_less(float32x4_t a, float32x4_t b, float32x4_t x, float32x4_t y) noexcept {
    return vbslq_f32(vcltq_f32(a, b), x, y);
}
NIBBLE_INLINE lanes select_less(lanes a, lanes b, lanes x, lanes y) noexcept {
    return {select_less(a.a, b.a, x.a, y.a), select_less(a.b, b.b, x.b, y.b), select_less(a.c, b.c, x.c, y.c), select_less(a.d, b.d, x.d, y.d)};
}

NIBBLE_INLINE float least(lanes x) noexcept { return vminvq_f32(smaller(smaller(x.a, x.b), smaller(x.c, x.d))); }
NIBBLE_INLINE float greatest(lanes x) noexcept { return vmaxvq_f32(larger(larger(x.a, x.b), larger(x.c, x.d))); }
NIBBLE_INLINE std::int32_t greatest(lanes_int x) noexcept { return vmaxvq_s32(vmaxq_s32(vmaxq_s32(x.a, x.b), vmaxq_s32(x.c, x.d))); }

/// 16 bytes clamp(x + zero, lowest, highest), 0 <= zero, lowest, highest <= 255.
NIBBLE_INLINE uint8x8_t codes_of(int32x4_t x, int32x4_t y, int zero, int lowest, int highest) noexcept {
    int16x8_t v = vqaddq_s16(vqmovn_high_s32(vqmovn_s32(x), y), vdupq_n_s16(static_cast<std::int16_t>(zero)));
    v = vmaxq_s16(v, vdupq_n_s16(static_cast<std::int16_t>(lowest)));
    return vqmovun_s16(vminq_s16(v, vdupq_n_s16(static_cast<std::int16_t>(highest))));
}
NIBBLE_INLINE void store_codes(std::uint8_t* p, lanes_int x, int zero, int lowest, int highest) noexcept {
    store_bytes(p, vcombine_u8(codes_of(x.a, x.b, zero, lowest, highest), codes_of(x.c, x.d, zero, lowest, highest)));
}
/// p[i] = table[p[i]] of 16 bytes and 16 entries.
NIBBLE_INLINE void map_bytes(const std::uint8_t* table, std::uint8_t* p) noexcept { store_bytes(p, vqtbl1q_u8(load_bytes(table), load_bytes(p))); }
/// Finite floats to fp16, to nearest even.
NIBBLE_INLINE lanes_int to_fp16(lanes x) noexcept { return widen_words(fp16_words(x.a, x.b), fp16_words(x.c, x.d)); }
NIBBLE_INLINE lanes from_fp16(lanes_int x) noexcept { return from_fp16(low_words(x.a, x.b), low_words(x.c, x.d)); }
/// 16 doubles, each rounded once.
NIBBLE_INLINE float32x4_t load_four_doubles(const double* p) noexcept {
    return narrow(vreinterpretq_f64_u8(load_bytes(p)), vreinterpretq_f64_u8(load_bytes(p + 2)));
}
NIBBLE_INLINE lanes load_doubles(const double* p) noexcept {
    return {load_four_doubles(p), load_four_doubles(p + 4), load_four_doubles(p + 8), load_four_doubles(p + 12)};
}

/// 15 ascending thresholds for count_below: a tree of four comparisons.
struct thresholds_16 {
    float32x4_t middle, quarter, three_quarters;
    uint8x16_t eighths;       // 4 floats
    uint8x16x2_t sixteenths;  // 8 floats
};
NIBBLE_INLINE thresholds_16 load_thresholds(const float* t) noexcept {
    const float eighths[4] = {t[1], t[5], t[9], t[13]};
    const float sixteenths[8] = {t[0], t[2], t[4], t[6], t[8], t[10], t[12], t[14]};
    return {vdupq_n_f32(t[7]), vdupq_n_f32(t[3]), vdupq_n_f32(t[11]), load_bytes(eighths), {{load_bytes(sixteenths), load_bytes(sixteenths + 4)}}};
}
/// 2 * i + (x > t).
NIBBLE_INLINE int32x4_t descend(int32x4_t i, float32x4_t x, float32x4_t t) noexcept {
    return vsubq_s32(vaddq_s32(i, i), reinterpret_cast<int32x4_t>(x > t));
}
NIBBLE_INLINE uint8x16_t bytes_of_entry(int32x4_t i) noexcept {
    return as_bytes(vmlaq_s32(vdupq_n_s32(0x03020100), i, vdupq_n_s32(0x04040404)));
}
NIBBLE_INLINE int32x4_t count_below(const thresholds_16& t, float32x4_t x) noexcept {
    int32x4_t i = descend(vdupq_n_s32(0), x, t.middle);
    i = descend(i, x, vbslq_f32(reinterpret_cast<uint32x4_t>(x > t.middle), t.three_quarters, t.quarter));
    i = descend(i, x, vreinterpretq_f32_u8(vqtbl1q_u8(t.eighths, bytes_of_entry(i))));
    return descend(i, x, vreinterpretq_f32_u8(vqtbl2q_u8(t.sixteenths, bytes_of_entry(i))));
}
/// How many thresholds are below x.
NIBBLE_INLINE lanes_int count_below(const thresholds_16& t, lanes x) noexcept {
    return {count_below(t, x.a), count_below(t, x.b), count_below(t, x.c), count_below(t, x.d)};
}

/// 4 rows of 4 words become 4 columns.
NIBBLE_INLINE void transpose_quad(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to, std::ptrdiff_t to_stride) noexcept {
    const uint32x4_t r0 = vreinterpretq_u32_u8(load_bytes(from));
    const uint32x4_t r1 = vreinterpretq_u32_u8(load_bytes(from + from_stride));
    const uint32x4_t r2 = vreinterpretq_u32_u8(load_bytes(from + 2 * from_stride));
    const uint32x4_t r3 = vreinterpretq_u32_u8(load_bytes(from + 3 * from_stride));
    const uint64x2_t t0 = vreinterpretq_u64_u32(vtrn1q_u32(r0, r1));
    const uint64x2_t t1 = vreinterpretq_u64_u32(vtrn2q_u32(r0, r1));
    const uint64x2_t t2 = vreinterpretq_u64_u32(vtrn1q_u32(r2, r3));
    const uint64x2_t t3 = vreinterpretq_u64_u32(vtrn2q_u32(r2, r3));
    store_bytes(to, vreinterpretq_u8_u64(vtrn1q_u64(t0, t2)));
    store_bytes(to + to_stride, vreinterpretq_u8_u64(vtrn1q_u64(t1, t3)));
    store_bytes(to + 2 * to_stride, vreinterpretq_u8_u64(vtrn2q_u64(t0, t2)));
    store_bytes(to + 3 * to_stride, vreinterpretq_u8_u64(vtrn2q_u64(t1, t3)));
}
/// 16 rows of 4 words of 32 bits become 4 columns; strides in bytes.
NIBBLE_INLINE void transpose_four(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to, std::ptrdiff_t to_stride) noexcept {
    for (int rows = 0; rows < 4; ++rows) transpose_quad(from + 4 * rows * from_stride, from_stride, to + 16 * rows, to_stride);
}
/// 16 rows of 16 words become 16 columns.
NIBBLE_INLINE void transpose(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to, std::ptrdiff_t to_stride) noexcept {
    for (int quad = 0; quad < 4; ++quad)  // whole lines of the output one after the other
        transpose_four(from + 16 * quad, from_stride, to + 4 * quad * to_stride, to_stride);
}

/// The largest byte (u + add) & mask of `quads` lines of 64 bytes u.
NIBBLE_INLINE int largest_byte(const std::uint8_t* bytes, std::ptrdiff_t quads, int add, int mask) noexcept {
    const uint8x16_t adder = vdupq_n_u8(static_cast<std::uint8_t>(add));
    const uint8x16_t masked = vdupq_n_u8(static_cast<std::uint8_t>(mask));
    uint8x16_t most = vdupq_n_u8(0);
    for (std::ptrdiff_t i = 0; i < 4 * quads; ++i)
        most = vmaxq_u8(most, vandq_u8(vaddq_u8(load_bytes(bytes + 16 * i), adder), masked));
    return vmaxvq_u8(most);
}

#undef NIBBLE_EACH
#undef NIBBLE_EACH_PAIR
#undef NIBBLE_EACH_WITH
