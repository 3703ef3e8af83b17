// 16 lanes of float or int32 in two ymm registers. No include guard: see foreach_level.hpp.

struct lanes {
    __m256 a, b;
};

struct lanes_int {
    __m256i a, b;
};

inline constexpr int tile_panels = 1;
inline constexpr int value_columns = 6;  // 12 accumulators, 2 values, 1 broadcast of 16 registers

NIBBLE_INLINE lanes load(const float* p) noexcept { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
NIBBLE_INLINE void store(float* p, lanes x) noexcept {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
NIBBLE_INLINE lanes set(float x) noexcept { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
NIBBLE_INLINE lanes zero() noexcept { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
NIBBLE_INLINE lanes multiply(lanes x, lanes y) noexcept { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
// Operators, not intrinsics, where it matters: clang compiles intrinsics with the options of the including file, and
// -ffast-math would make a division a reciprocal.
NIBBLE_INLINE lanes add(lanes x, lanes y) noexcept { return {x.a + y.a, x.b + y.b}; }
NIBBLE_INLINE lanes subtract(lanes x, lanes y) noexcept { return {x.a - y.a, x.b - y.b}; }
NIBBLE_INLINE lanes fma(lanes x, lanes y, lanes z) noexcept {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
NIBBLE_INLINE lanes smaller(lanes x, lanes y) noexcept { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
NIBBLE_INLINE lanes larger(lanes x, lanes y) noexcept { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }

NIBBLE_INLINE lanes_int load_words(const void* p) noexcept {
    const auto* at = static_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(at), _mm256_loadu_si256(at + 1)};
}
NIBBLE_INLINE void store_words(void* p, lanes_int x) noexcept {
    auto* at = static_cast<__m256i*>(p);
    _mm256_storeu_si256(at, x.a);
    _mm256_storeu_si256(at + 1, x.b);
}
NIBBLE_INLINE lanes_int zero_int() noexcept { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
NIBBLE_INLINE lanes_int set_int(std::int32_t x) noexcept { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
NIBBLE_INLINE lanes_int add(lanes_int x, lanes_int y) noexcept { return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
NIBBLE_INLINE lanes_int subtract(lanes_int x, lanes_int y) noexcept { return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
NIBBLE_INLINE lanes_int multiply_low(lanes_int x, lanes_int y) noexcept {
    return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)};
}
NIBBLE_INLINE lanes_int bit_or(lanes_int x, lanes_int y) noexcept { return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
NIBBLE_INLINE lanes_int bit_and(lanes_int x, lanes_int y) noexcept { return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
NIBBLE_INLINE lanes_int bit_and(lanes_int x, std::int32_t y) noexcept { return bit_and(x, set_int(y)); }
template <int N>
NIBBLE_INLINE lanes_int shift_left(lanes_int x) noexcept {
    return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)};
}
NIBBLE_INLINE lanes_int shift_left(lanes_int x, int n) noexcept {
    const __m128i count = _mm_cvtsi32_si128(n);
    return {_mm256_sll_epi32(x.a, count), _mm256_sll_epi32(x.b, count)};
}
template <int N>
NIBBLE_INLINE lanes_int shift_right(lanes_int x) noexcept {
    return {_mm256_srai_epi32(x.a, N), _mm256_srai_epi32(x.b, N)};
}
template <int N>
NIBBLE_INLINE lanes_int shift_right_logical(lanes_int x) noexcept {
    return {_mm256_srli_epi32(x.a, N), _mm256_srli_epi32(x.b, N)};
}
/// (words >> Shift) & Mask.
template <int Shift, std::int32_t Mask>
NIBBLE_INLINE lanes_int field(const std::uint8_t* p) noexcept {
    if constexpr (Shift == 0) return bit_and(load_words(p), Mask);
    else return bit_and(shift_right_logical<Shift>(load_words(p)), Mask);
}
NIBBLE_INLINE lanes_int larger(lanes_int x, lanes_int y) noexcept { return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)}; }
NIBBLE_INLINE lanes_int absolute(lanes_int x) noexcept { return {_mm256_abs_epi32(x.a), _mm256_abs_epi32(x.b)}; }
/// All bits of a lane that equals y, else none.
NIBBLE_INLINE lanes_int equal(lanes_int x, std::int32_t y) noexcept {
    const __m256i v = _mm256_set1_epi32(y);
    return {_mm256_cmpeq_epi32(x.a, v), _mm256_cmpeq_epi32(x.b, v)};
}
NIBBLE_INLINE lanes_int select(lanes_int mask, lanes_int yes, lanes_int no) noexcept {
    return {_mm256_blendv_epi8(no.a, yes.a, mask.a), _mm256_blendv_epi8(no.b, yes.b, mask.b)};
}
/// All bits of the first n lanes.
NIBBLE_INLINE lanes_int first_lanes(int n) noexcept {
    const __m256i count = _mm256_set1_epi32(n);
    return {_mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)),
            _mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))};
}
NIBBLE_INLINE lanes to_lanes(lanes_int x) noexcept { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
NIBBLE_INLINE lanes_int to_int(lanes x) noexcept { return {_mm256_cvttps_epi32(x.a), _mm256_cvttps_epi32(x.b)}; }
/// Ties to even: every call runs under fp_environment.
NIBBLE_INLINE lanes_int nearest_int(lanes x) noexcept { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }
NIBBLE_INLINE lanes as_lanes(lanes_int x) noexcept { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
NIBBLE_INLINE lanes_int as_bits(lanes x) noexcept { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
NIBBLE_INLINE lanes negate(lanes x) noexcept {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(x.a, sign), _mm256_xor_ps(x.b, sign)};
}

NIBBLE_INLINE lanes load_half(const void* p) noexcept {
    const auto* at = static_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
}
NIBBLE_INLINE lanes_int load_u16(const void* p) noexcept {
    const auto* at = static_cast<const __m128i*>(p);
    return {_mm256_cvtepu16_epi32(_mm_loadu_si128(at)), _mm256_cvtepu16_epi32(_mm_loadu_si128(at + 1))};
}
NIBBLE_INLINE lanes_int load_u8(const std::uint8_t* p) noexcept {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
}

/// Lane r of a plane of P bits: bits P * (r / 2P) of byte r mod 2P (scale.hpp).
template <int P>
NIBBLE_INLINE lanes_int lane_plane(const std::uint8_t* p) noexcept {
    const __m256i mask = _mm256_set1_epi32((1 << P) - 1);
    if constexpr (P == 4) {
        const __m256i v = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
        return {_mm256_and_si256(v, mask), _mm256_srli_epi32(v, 4)};
    } else if constexpr (P == 2) {
        std::int32_t word;
        std::memcpy(&word, p, 4);
        const __m256i v = _mm256_cvtepu8_epi32(_mm_set1_epi32(word));
        return {_mm256_and_si256(_mm256_srlv_epi32(v, _mm256_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2)), mask),
                _mm256_and_si256(_mm256_srlv_epi32(v, _mm256_setr_epi32(4, 4, 4, 4, 6, 6, 6, 6)), mask)};
    } else {
        std::int16_t word;
        std::memcpy(&word, p, 2);
        const __m256i v = _mm256_cvtepu8_epi32(_mm_set1_epi16(word));
        return {_mm256_and_si256(_mm256_srlv_epi32(v, _mm256_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3)), mask),
                _mm256_and_si256(_mm256_srlv_epi32(v, _mm256_setr_epi32(4, 4, 5, 5, 6, 6, 7, 7)), mask)};
    }
}

/// table[code] of any size.
NIBBLE_INLINE lanes gather(const float* table, lanes_int code) noexcept {
    return {_mm256_i32gather_ps(table, code.a, 4), _mm256_i32gather_ps(table, code.b, 4)};
}

// The values of a k-quad: lanes_int holds four codes a row, a byte each; values[j] are those of k = j. In halves of 8 rows.

/// A table of 16 floats, one register for each of their bytes.
struct float_table {
    __m256i plane[4];
};
NIBBLE_INLINE __m256i table_plane(__m128i a, __m128i b, __m128i c, __m128i d) noexcept {
    return _mm256_broadcastsi128_si256(_mm_unpacklo_epi64(_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d)));
}
NIBBLE_INLINE float_table load_table(const float* p) noexcept {
    // Byte i of four entries becomes dword i.
    const __m128i order = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const auto* at = reinterpret_cast<const __m128i*>(p);
    const __m128i a = _mm_shuffle_epi8(_mm_loadu_si128(at), order);
    const __m128i b = _mm_shuffle_epi8(_mm_loadu_si128(at + 1), order);
    const __m128i c = _mm_shuffle_epi8(_mm_loadu_si128(at + 2), order);
    const __m128i d = _mm_shuffle_epi8(_mm_loadu_si128(at + 3), order);
    return {{table_plane(a, b, c, d), table_plane(_mm_srli_si128(a, 4), _mm_srli_si128(b, 4), _mm_srli_si128(c, 4), _mm_srli_si128(d, 4)),
             table_plane(_mm_srli_si128(a, 8), _mm_srli_si128(b, 8), _mm_srli_si128(c, 8), _mm_srli_si128(d, 8)),
             table_plane(_mm_srli_si128(a, 12), _mm_srli_si128(b, 12), _mm_srli_si128(c, 12), _mm_srli_si128(d, 12))}};
}
/// Byte j of every dword to dword j, within quads.
NIBBLE_INLINE __m256i gather_bytes(__m256i x) noexcept {
    return _mm256_shuffle_epi8(x, _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,
                                                   0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
}
/// Only the low four bits of a code count.
NIBBLE_INLINE void half_values(const float_table& t, __m256i codes, __m256* v) noexcept {
    const __m256i u = _mm256_and_si256(gather_bytes(codes), _mm256_set1_epi8(15));
    const __m256i p0 = _mm256_shuffle_epi8(t.plane[0], u);
    const __m256i p1 = _mm256_shuffle_epi8(t.plane[1], u);
    const __m256i p2 = _mm256_shuffle_epi8(t.plane[2], u);
    const __m256i p3 = _mm256_shuffle_epi8(t.plane[3], u);
    const __m256i low = _mm256_unpacklo_epi8(p0, p1);
    const __m256i high = _mm256_unpacklo_epi8(p2, p3);
    v[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low, high));
    v[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low, high));
    const __m256i low_end = _mm256_unpackhi_epi8(p0, p1);
    const __m256i high_end = _mm256_unpackhi_epi8(p2, p3);
    v[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(low_end, high_end));
    v[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(low_end, high_end));
}

/// Small floating point by bytes of bf16 (decoder).
struct minifloat_fields {
    __m256i low, high, low_start, high_start, high_mask;
    __m128i to_sign;
};
NIBBLE_INLINE __m256i byte_plane(const std::uint8_t* p) noexcept {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
NIBBLE_INLINE minifloat_fields load_minifloat(const decoder& d) noexcept {
    return {byte_plane(d.low), byte_plane(d.high), byte_plane(d.low_start), byte_plane(d.high_start),
            _mm256_set1_epi8(static_cast<char>(d.high_mask)), _mm_cvtsi32_si128(8 - d.bits)};
}
NIBBLE_INLINE void half_values(const minifloat_fields& m, __m256i codes, __m256* v) noexcept {
    const __m256i none = _mm256_setzero_si256();
    const __m256i u = gather_bytes(codes);
    const __m256i nibble = _mm256_and_si256(u, _mm256_set1_epi8(15));
    const __m256i upper = _mm256_and_si256(_mm256_srli_epi16(u, 3), m.high_mask);
    const __m256i starts = _mm256_cmpeq_epi8(upper, none);
    const __m256i low = _mm256_blendv_epi8(_mm256_shuffle_epi8(m.low, nibble), _mm256_shuffle_epi8(m.low_start, nibble), starts);
    const __m256i magnitude = _mm256_blendv_epi8(_mm256_shuffle_epi8(m.high, upper), _mm256_shuffle_epi8(m.high_start, nibble), starts);
    const __m256i sign = _mm256_and_si256(_mm256_sll_epi16(u, m.to_sign), _mm256_set1_epi8(-128));
    const __m256i high = _mm256_or_si256(magnitude, sign);
    const __m256i even = _mm256_unpacklo_epi8(low, high);
    const __m256i odd = _mm256_unpackhi_epi8(low, high);
    v[0] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(none, even));
    v[1] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(none, even));
    v[2] = _mm256_castsi256_ps(_mm256_unpacklo_epi16(none, odd));
    v[3] = _mm256_castsi256_ps(_mm256_unpackhi_epi16(none, odd));
}

template <class Map>
NIBBLE_INLINE void quad_values(const Map& map, lanes_int codes, lanes* v) noexcept {
    __m256 a[4], b[4];
    half_values(map, codes.a, a);
    half_values(map, codes.b, b);
    v[0] = {a[0], b[0]};
    v[1] = {a[1], b[1]};
    v[2] = {a[2], b[2]};
    v[3] = {a[3], b[3]};
}
template <int C>
NIBBLE_INLINE __m256 chain_half(const __m256* v, const float* x, __m256 t) noexcept {
    t = _mm256_fmadd_ps(v[0], _mm256_broadcast_ss(x), t);
    t = _mm256_fmadd_ps(v[1], _mm256_broadcast_ss(x + C), t);
    t = _mm256_fmadd_ps(v[2], _mm256_broadcast_ss(x + 2 * C), t);
    return _mm256_fmadd_ps(v[3], _mm256_broadcast_ss(x + 3 * C), t);
}
/// t[c] = fma(values[j], x[j * C + c], t[c]) for j = 0, 1, 2, 3.
template <int C, class Map>
NIBBLE_INLINE void multiply_quad(const Map& map, lanes_int codes, const float* x, lanes* t) noexcept {
    __m256 v[4];
    __asm__ volatile("" : "+r"(x));
    half_values(map, codes.a, v);
    t[0].a = chain_half<C>(v, x, t[0].a);
    if constexpr (C == 2) t[1].a = chain_half<C>(v, x + 1, t[1].a);
    // GCC 12 would keep the broadcasts of x and spill the sums: another address for it.
    __asm__ volatile("" : "+r"(x));
    half_values(map, codes.b, v);
    t[0].b = chain_half<C>(v, x, t[0].b);
    if constexpr (C == 2) t[1].b = chain_half<C>(v, x + 1, t[1].b);
}

/// Bytes through a table of 16.
struct byte_table {
    __m256i entries;
};
NIBBLE_INLINE byte_table load_table(const std::uint8_t* p) noexcept { return {byte_plane(p)}; }
NIBBLE_INLINE lanes_int look_up(byte_table t, lanes_int codes) noexcept {
    return {_mm256_shuffle_epi8(t.entries, codes.a), _mm256_shuffle_epi8(t.entries, codes.b)};
}

// ---- Epilogues: doubles for activation functions, 16-bit outputs (see scalar.inl.hpp) ----

typedef __m256d wide;
inline constexpr int wide_lanes = 4;
NIBBLE_INLINE wide wide_set(double x) noexcept { return _mm256_set1_pd(x); }
NIBBLE_INLINE void widen(lanes x, wide* w) noexcept {
    w[0] = _mm256_cvtps_pd(_mm256_castps256_ps128(x.a));
    w[1] = _mm256_cvtps_pd(_mm256_extractf128_ps(x.a, 1));
    w[2] = _mm256_cvtps_pd(_mm256_castps256_ps128(x.b));
    w[3] = _mm256_cvtps_pd(_mm256_extractf128_ps(x.b, 1));
}
NIBBLE_INLINE lanes narrow(const wide* w) noexcept {
    return {_mm256_set_m128(_mm256_cvtpd_ps(w[1]), _mm256_cvtpd_ps(w[0])), _mm256_set_m128(_mm256_cvtpd_ps(w[3]), _mm256_cvtpd_ps(w[2]))};
}
NIBBLE_INLINE wide larger(wide x, wide y) noexcept { return _mm256_max_pd(x, y); }
NIBBLE_INLINE wide smaller(wide x, wide y) noexcept { return _mm256_min_pd(x, y); }
NIBBLE_INLINE wide where_negative(wide x, wide y, wide z) noexcept {
    return _mm256_blendv_pd(z, y, _mm256_cmp_pd(x, _mm256_setzero_pd(), _CMP_LT_OQ));
}
NIBBLE_INLINE wide two_to(wide shifted) noexcept {
    return _mm256_castsi256_pd(_mm256_slli_epi64(_mm256_add_epi64(_mm256_castpd_si256(shifted), _mm256_set1_epi64x(1023)), 52));
}
NIBBLE_INLINE void store_u16(std::uint16_t* p, lanes_int x) noexcept {
    // The pack works within halves of a register: words 0-3 8-11 4-7 12-15.
    const __m256i packed = _mm256_packus_epi32(x.a, x.b);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
NIBBLE_INLINE void store_fp16(std::uint16_t* p, lanes x) noexcept {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}

// --- encoding and decoding -------------------------------------------------------------------------------------------

NIBBLE_INLINE void prefetch(const void* p) noexcept { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
NIBBLE_INLINE void prefetch_to_write(const void* p) noexcept { __builtin_prefetch(p, 1); }

/// Past the caches, to 64-byte aligned memory; stream_end() before anyone else reads it.
NIBBLE_INLINE void stream_words(std::uint8_t* p, lanes_int x) noexcept {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p), x.a);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(p + 32), x.b);
}
NIBBLE_INLINE void stream_end() noexcept { _mm_sfence(); }

NIBBLE_INLINE lanes divide(lanes x, lanes y) noexcept { return {x.a / y.a, x.b / y.b}; }
/// x, once it is rounded: stands between a product and a sum that must not become one fma.
NIBBLE_INLINE lanes rounded(lanes x) noexcept {
    __asm__("" : "+x"(x.a), "+x"(x.b));
    return x;
}
NIBBLE_INLINE lanes_int smaller(lanes_int x, lanes_int y) noexcept { return {_mm256_min_epi32(x.a, y.a), _mm256_min_epi32(x.b, y.b)}; }
NIBBLE_INLINE lanes_int shift_right_logical(lanes_int x, int n) noexcept {
    const __m128i count = _mm_cvtsi32_si128(n);
    return {_mm256_srl_epi32(x.a, count), _mm256_srl_epi32(x.b, count)};
}
/// a < b ? x : y, signed.
NIBBLE_INLINE lanes select_less(lanes_int a, lanes_int b, lanes x, lanes y) noexcept {
    return {_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(_mm256_cmpgt_epi32(b.a, a.a))),
            _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(_mm256_cmpgt_epi32(b.b, a.b)))};
}
/// a < b ? x : y; false for NaN.
NIBBLE_INLINE lanes select_less(lanes a, lanes b, lanes x, lanes y) noexcept {
    return {a.a < b.a ? x.a : y.a, a.b < b.b ? x.b : y.b};
}

NIBBLE_INLINE float least(lanes x) noexcept {
    const __m256 v = _mm256_min_ps(x.a, x.b);
    __m128 h = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_min_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_min_ss(h, _mm_movehdup_ps(h)));
}
NIBBLE_INLINE float greatest(lanes x) noexcept {
    const __m256 v = _mm256_max_ps(x.a, x.b);
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}
NIBBLE_INLINE std::int32_t greatest(lanes_int x) noexcept {
    const __m256i v = _mm256_max_epi32(x.a, x.b);
    __m128i h = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(h, _mm_shuffle_epi32(h, 0xb1)));
}

/// To nearest, ties to even, for x <= 2^17; what lies below -32768 becomes some integer there.
NIBBLE_INLINE lanes_int round_to_int(lanes x) noexcept { return {_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)}; }

/// 16 bytes clamp(x + zero, lowest, highest), 0 <= zero, lowest, highest <= 255.
NIBBLE_INLINE void store_codes(std::uint8_t* p, lanes_int x, int zero, int lowest, int highest) noexcept {
    __m256i v = _mm256_adds_epi16(_mm256_packs_epi32(x.a, x.b), _mm256_set1_epi16(static_cast<short>(zero)));
    v = _mm256_max_epi16(v, _mm256_set1_epi16(static_cast<short>(lowest)));
    v = _mm256_min_epi16(v, _mm256_set1_epi16(static_cast<short>(highest)));
    v = _mm256_permute4x64_epi64(v, 0xd8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1)));
}
/// p[i] = table[p[i]] of 16 bytes and 16 entries.
NIBBLE_INLINE void map_bytes(const std::uint8_t* table, std::uint8_t* p) noexcept {
    auto* at = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(at, _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)), _mm_loadu_si128(at)));
}
/// Finite floats to fp16, to nearest even.
NIBBLE_INLINE lanes_int to_fp16(lanes x) noexcept {
    return {_mm256_cvtepu16_epi32(_mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT)),
            _mm256_cvtepu16_epi32(_mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT))};
}
NIBBLE_INLINE lanes from_fp16(lanes_int x) noexcept {
    const __m256i v = _mm256_permute4x64_epi64(_mm256_packus_epi32(x.a, x.b), 0xd8);
    return {_mm256_cvtph_ps(_mm256_castsi256_si128(v)), _mm256_cvtph_ps(_mm256_extracti128_si256(v, 1))};
}
/// 16 doubles, each rounded once.
NIBBLE_INLINE lanes load_doubles(const double* p) noexcept {
    return {_mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(p + 4)), _mm256_cvtpd_ps(_mm256_loadu_pd(p))),
            _mm256_set_m128(_mm256_cvtpd_ps(_mm256_loadu_pd(p + 12)), _mm256_cvtpd_ps(_mm256_loadu_pd(p + 8)))};
}

/// 15 ascending thresholds for count_below: a tree of four comparisons.
struct thresholds_16 {
    __m256 middle, quarter, three_quarters, eighths, sixteenths;
};
NIBBLE_INLINE thresholds_16 load_thresholds(const float* t) noexcept {
    return {_mm256_set1_ps(t[7]), _mm256_set1_ps(t[3]), _mm256_set1_ps(t[11]),
            _mm256_setr_ps(t[1], t[5], t[9], t[13], t[1], t[5], t[9], t[13]),
            _mm256_setr_ps(t[0], t[2], t[4], t[6], t[8], t[10], t[12], t[14])};
}
NIBBLE_INLINE __m256i count_below_half(const thresholds_16& t, __m256 x) noexcept {
    const __m256 first = _mm256_cmp_ps(x, t.middle, _CMP_GT_OQ);
    __m256i i = _mm256_srli_epi32(_mm256_castps_si256(first), 31);
    const __m256 second = _mm256_blendv_ps(t.quarter, t.three_quarters, first);
    i = _mm256_sub_epi32(_mm256_add_epi32(i, i), _mm256_castps_si256(_mm256_cmp_ps(x, second, _CMP_GT_OQ)));
    const __m256 third = _mm256_permutevar8x32_ps(t.eighths, i);
    i = _mm256_sub_epi32(_mm256_add_epi32(i, i), _mm256_castps_si256(_mm256_cmp_ps(x, third, _CMP_GT_OQ)));
    const __m256 fourth = _mm256_permutevar8x32_ps(t.sixteenths, i);
    return _mm256_sub_epi32(_mm256_add_epi32(i, i), _mm256_castps_si256(_mm256_cmp_ps(x, fourth, _CMP_GT_OQ)));
}
/// How many thresholds are below x.
NIBBLE_INLINE lanes_int count_below(const thresholds_16& t, lanes x) noexcept {
    return {count_below_half(t, x.a), count_below_half(t, x.b)};
}

/// Four words of row r and of row r + 4: with these the transpose needs no move across halves.
NIBBLE_INLINE __m256 load_two_quads(const std::uint8_t* low, const std::uint8_t* high) noexcept {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(reinterpret_cast<const float*>(low))),
                                _mm_loadu_ps(reinterpret_cast<const float*>(high)), 1);
}
/// 16 rows of 4 words of 32 bits become 4 columns; strides in bytes.
NIBBLE_INLINE void transpose_four(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to, std::ptrdiff_t to_stride) noexcept {
    for (int half = 0; half < 2; ++half) {
        const std::uint8_t* at = from + 8 * half * from_stride;
        const __m256 r0 = load_two_quads(at, at + 4 * from_stride);
        const __m256 r1 = load_two_quads(at + from_stride, at + 5 * from_stride);
        const __m256 r2 = load_two_quads(at + 2 * from_stride, at + 6 * from_stride);
        const __m256 r3 = load_two_quads(at + 3 * from_stride, at + 7 * from_stride);
        const __m256d t0 = _mm256_castps_pd(_mm256_unpacklo_ps(r0, r1));
        const __m256d t1 = _mm256_castps_pd(_mm256_unpackhi_ps(r0, r1));
        const __m256d t2 = _mm256_castps_pd(_mm256_unpacklo_ps(r2, r3));
        const __m256d t3 = _mm256_castps_pd(_mm256_unpackhi_ps(r2, r3));
        std::uint8_t* out = to + 32 * half;
        _mm256_storeu_pd(reinterpret_cast<double*>(out), _mm256_unpacklo_pd(t0, t2));
        _mm256_storeu_pd(reinterpret_cast<double*>(out + to_stride), _mm256_unpackhi_pd(t0, t2));
        _mm256_storeu_pd(reinterpret_cast<double*>(out + 2 * to_stride), _mm256_unpacklo_pd(t1, t3));
        _mm256_storeu_pd(reinterpret_cast<double*>(out + 3 * to_stride), _mm256_unpackhi_pd(t1, t3));
    }
}
/// 16 rows of 16 words become 16 columns.
NIBBLE_INLINE void transpose(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to, std::ptrdiff_t to_stride) noexcept {
    for (int quad = 0; quad < 4; ++quad)  // whole lines of the output one after the other
        transpose_four(from + 16 * quad, from_stride, to + 4 * quad * to_stride, to_stride);
}

/// The largest byte (u + add) & mask of `quads` lines of 64 bytes u.
NIBBLE_INLINE int largest_byte(const std::uint8_t* bytes, std::ptrdiff_t quads, int add, int mask) noexcept {
    const __m256i adder = _mm256_set1_epi8(static_cast<char>(add));
    const __m256i masked = _mm256_set1_epi8(static_cast<char>(mask));
    __m256i most = _mm256_setzero_si256();
    for (std::ptrdiff_t i = 0; i < 2 * quads; ++i) {
        const __m256i u = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(bytes + 32 * i));
        most = _mm256_max_epu8(most, _mm256_and_si256(_mm256_add_epi8(u, adder), masked));
    }
    std::uint8_t all[32];
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(all), most);
    int largest = 0;
    for (const std::uint8_t u : all) largest = u > largest ? u : largest;
    return largest;
}
