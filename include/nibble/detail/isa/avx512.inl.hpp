// 16 lanes of float or int32 in one zmm register. No include guard: see foreach_level.hpp.

struct lanes {
    __m512 v;
};

struct lanes_int {
    __m512i v;
};

inline constexpr int tile_panels = 2;
inline constexpr int value_columns = 8;

/// Intrinsics without a mask pass an undefined register to those with one, which GCC 12 warns about.
inline constexpr __mmask16 every_lane = 0xffff;

NIBBLE_INLINE lanes load(const float* p) noexcept { return {_mm512_loadu_ps(p)}; }
NIBBLE_INLINE void store(float* p, lanes x) noexcept { _mm512_storeu_ps(p, x.v); }
NIBBLE_INLINE lanes set(float x) noexcept { return {_mm512_set1_ps(x)}; }
NIBBLE_INLINE lanes zero() noexcept { return {_mm512_setzero_ps()}; }
NIBBLE_INLINE lanes multiply(lanes x, lanes y) noexcept { return {_mm512_mul_ps(x.v, y.v)}; }
// Operators, not intrinsics, where it matters: see avx2.inl.hpp.
NIBBLE_INLINE lanes add(lanes x, lanes y) noexcept { return {x.v + y.v}; }
NIBBLE_INLINE lanes subtract(lanes x, lanes y) noexcept { return {x.v - y.v}; }
NIBBLE_INLINE lanes fma(lanes x, lanes y, lanes z) noexcept { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }
NIBBLE_INLINE lanes smaller(lanes x, lanes y) noexcept { return {_mm512_maskz_min_ps(every_lane, x.v, y.v)}; }
NIBBLE_INLINE lanes larger(lanes x, lanes y) noexcept { return {_mm512_maskz_max_ps(every_lane, x.v, y.v)}; }

NIBBLE_INLINE lanes_int load_words(const void* p) noexcept { return {_mm512_loadu_si512(p)}; }
NIBBLE_INLINE void store_words(void* p, lanes_int x) noexcept { _mm512_storeu_si512(p, x.v); }
NIBBLE_INLINE lanes_int zero_int() noexcept { return {_mm512_setzero_si512()}; }
NIBBLE_INLINE lanes_int set_int(std::int32_t x) noexcept { return {_mm512_set1_epi32(x)}; }
NIBBLE_INLINE lanes_int add(lanes_int x, lanes_int y) noexcept { return {_mm512_add_epi32(x.v, y.v)}; }
NIBBLE_INLINE lanes_int subtract(lanes_int x, lanes_int y) noexcept { return {_mm512_sub_epi32(x.v, y.v)}; }
NIBBLE_INLINE lanes_int multiply_low(lanes_int x, lanes_int y) noexcept { return {_mm512_mullo_epi32(x.v, y.v)}; }
NIBBLE_INLINE lanes_int bit_or(lanes_int x, lanes_int y) noexcept { return {_mm512_or_si512(x.v, y.v)}; }
NIBBLE_INLINE lanes_int bit_and(lanes_int x, lanes_int y) noexcept { return {_mm512_and_si512(x.v, y.v)}; }
NIBBLE_INLINE lanes_int bit_and(lanes_int x, std::int32_t y) noexcept { return bit_and(x, set_int(y)); }
template <int N>
NIBBLE_INLINE lanes_int shift_left(lanes_int x) noexcept {
    return {_mm512_maskz_slli_epi32(every_lane, x.v, N)};
}
NIBBLE_INLINE lanes_int shift_left(lanes_int x, int n) noexcept {
    return {_mm512_maskz_sll_epi32(every_lane, x.v, _mm_cvtsi32_si128(n))};
}
template <int N>
NIBBLE_INLINE lanes_int shift_right(lanes_int x) noexcept {
    return {_mm512_maskz_srai_epi32(every_lane, x.v, N)};
}
template <int N>
NIBBLE_INLINE lanes_int shift_right_logical(lanes_int x) noexcept {
    return {_mm512_maskz_srli_epi32(every_lane, x.v, N)};
}
/// (words >> Shift) & Mask.
template <int Shift, std::int32_t Mask>
NIBBLE_INLINE lanes_int field(const std::uint8_t* p) noexcept {
    if constexpr (Shift == 0) return bit_and(load_words(p), Mask);
    else return bit_and(shift_right_logical<Shift>(load_words(p)), Mask);
}
NIBBLE_INLINE lanes_int larger(lanes_int x, lanes_int y) noexcept { return {_mm512_maskz_max_epi32(every_lane, x.v, y.v)}; }
NIBBLE_INLINE lanes_int absolute(lanes_int x) noexcept { return {_mm512_maskz_abs_epi32(every_lane, x.v)}; }
/// All bits of a lane that equals y, else none.
NIBBLE_INLINE lanes_int equal(lanes_int x, std::int32_t y) noexcept {
    return {_mm512_movm_epi32(_mm512_cmpeq_epi32_mask(x.v, _mm512_set1_epi32(y)))};
}
NIBBLE_INLINE lanes_int select(lanes_int mask, lanes_int yes, lanes_int no) noexcept {
    return {_mm512_mask_blend_epi32(_mm512_movepi32_mask(mask.v), no.v, yes.v)};
}
/// All bits of the first n lanes.
NIBBLE_INLINE lanes_int first_lanes(int n) noexcept { return {_mm512_movm_epi32(static_cast<__mmask16>((1u << n) - 1))}; }
NIBBLE_INLINE lanes to_lanes(lanes_int x) noexcept { return {_mm512_maskz_cvtepi32_ps(every_lane, x.v)}; }
NIBBLE_INLINE lanes_int to_int(lanes x) noexcept { return {_mm512_maskz_cvttps_epi32(every_lane, x.v)}; }
/// Ties to even: every call runs under fp_environment.
NIBBLE_INLINE lanes_int nearest_int(lanes x) noexcept { return {_mm512_maskz_cvtps_epi32(every_lane, x.v)}; }
NIBBLE_INLINE lanes as_lanes(lanes_int x) noexcept { return {_mm512_castsi512_ps(x.v)}; }
NIBBLE_INLINE lanes_int as_bits(lanes x) noexcept { return {_mm512_castps_si512(x.v)}; }
NIBBLE_INLINE lanes negate(lanes x) noexcept { return {_mm512_xor_ps(x.v, _mm512_set1_ps(-0.0f))}; }

NIBBLE_INLINE lanes load_half(const void* p) noexcept {
    return {_mm512_maskz_cvtph_ps(every_lane, _mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}
NIBBLE_INLINE lanes_int load_u16(const void* p) noexcept {
    return {_mm512_maskz_cvtepu16_epi32(every_lane, _mm256_loadu_si256(static_cast<const __m256i*>(p)))};
}
NIBBLE_INLINE __m512i widen_bytes(__m128i x) noexcept { return _mm512_maskz_cvtepu8_epi32(every_lane, x); }
NIBBLE_INLINE lanes_int load_u8(const std::uint8_t* p) noexcept {
    return {widen_bytes(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

/// Lane r of a plane of P bits: bits P * (r / 2P) of byte r mod 2P (scale.hpp).
template <int P>
NIBBLE_INLINE lanes_int lane_plane(const std::uint8_t* p) noexcept {
    __m512i bytes, shifts;
    if constexpr (P == 4) {
        std::int64_t word;
        std::memcpy(&word, p, 8);
        bytes = widen_bytes(_mm_set1_epi64x(word));
        shifts = _mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 4, 4, 4, 4, 4, 4, 4, 4);
    } else if constexpr (P == 2) {
        std::int32_t word;
        std::memcpy(&word, p, 4);
        bytes = widen_bytes(_mm_set1_epi32(word));
        shifts = _mm512_setr_epi32(0, 0, 0, 0, 2, 2, 2, 2, 4, 4, 4, 4, 6, 6, 6, 6);
    } else {
        std::int16_t word;
        std::memcpy(&word, p, 2);
        bytes = widen_bytes(_mm_set1_epi16(word));
        shifts = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    }
    return bit_and({_mm512_maskz_srlv_epi32(every_lane, bytes, shifts)}, (1 << P) - 1);
}

template <int I>
NIBBLE_INLINE __m256 half_of(__m512 x) noexcept {
    return _mm512_maskz_extractf32x8_ps(0xff, x, I);
}
template <int I>
NIBBLE_INLINE __m256i half_of(__m512i x) noexcept {
    return _mm512_maskz_extracti32x8_epi32(0xff, x, I);
}
NIBBLE_INLINE __m512 join_halves(__m256 low, __m256 high) noexcept {
    return _mm512_maskz_insertf32x8(every_lane, _mm512_maskz_broadcast_f32x8(every_lane, low), high, 1);
}

/// table[code] of any size. In halves: the mask of the whole gather draws a warning from GCC 12 at -O0.
NIBBLE_INLINE lanes gather(const float* table, lanes_int code) noexcept {
    return {join_halves(_mm256_i32gather_ps(table, half_of<0>(code.v), 4), _mm256_i32gather_ps(table, half_of<1>(code.v), 4))};
}
/// Floats through a table of 16 entries.
struct float_table {
    __m512 entries;
};
NIBBLE_INLINE float_table load_table(const float* p) noexcept { return {_mm512_loadu_ps(p)}; }
/// The values of a k-quad: a row has four codes, a byte each; values[j] are those of k = j. Only four bits of a code count.
NIBBLE_INLINE void quad_values(const float_table& t, lanes_int codes, lanes* v) noexcept {
    v[0] = {_mm512_maskz_permutexvar_ps(every_lane, codes.v, t.entries)};
    v[1] = {_mm512_maskz_permutexvar_ps(every_lane, _mm512_maskz_srli_epi32(every_lane, codes.v, 8), t.entries)};
    v[2] = {_mm512_maskz_permutexvar_ps(every_lane, _mm512_maskz_srli_epi32(every_lane, codes.v, 16), t.entries)};
    v[3] = {_mm512_maskz_permutexvar_ps(every_lane, _mm512_maskz_srli_epi32(every_lane, codes.v, 24), t.entries)};
}

/// Small floating point by bytes of bf16 (decoder).
struct minifloat_fields {
    __m512i low, high, low_start, high_start, high_mask;
    __m128i to_sign;
};
NIBBLE_INLINE __m512i byte_plane(const std::uint8_t* p) noexcept {
    return _mm512_maskz_broadcast_i32x4(every_lane, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
NIBBLE_INLINE minifloat_fields load_minifloat(const decoder& d) noexcept {
    return {byte_plane(d.low), byte_plane(d.high), byte_plane(d.low_start), byte_plane(d.high_start),
            _mm512_set1_epi8(static_cast<char>(d.high_mask)), _mm_cvtsi32_si128(8 - d.bits)};
}
NIBBLE_INLINE void quad_values(const minifloat_fields& m, lanes_int codes, lanes* v) noexcept {
    constexpr __mmask32 every_word = 0xffffffffu;
    const __m512i none = _mm512_setzero_si512();
    // Byte j of every dword to dword j of its quad.
    const __m512i u = _mm512_shuffle_epi8(
        codes.v, _mm512_maskz_broadcast_i32x4(every_lane, _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)));
    const __m512i nibble = _mm512_and_si512(u, _mm512_set1_epi8(15));
    const __m512i upper = _mm512_and_si512(_mm512_maskz_srli_epi16(every_word, u, 3), m.high_mask);
    const __mmask64 starts = _mm512_cmpeq_epi8_mask(upper, none);
    const __m512i low = _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(m.low, nibble), starts, m.low_start, nibble);
    const __m512i magnitude = _mm512_mask_shuffle_epi8(_mm512_shuffle_epi8(m.high, upper), starts, m.high_start, nibble);
    const __m512i sign = _mm512_and_si512(_mm512_maskz_sll_epi16(every_word, u, m.to_sign), _mm512_set1_epi8(-128));
    const __m512i high = _mm512_or_si512(magnitude, sign);
    const __m512i even = _mm512_unpacklo_epi8(low, high);
    const __m512i odd = _mm512_unpackhi_epi8(low, high);
    v[0] = as_lanes({_mm512_unpacklo_epi16(none, even)});
    v[1] = as_lanes({_mm512_unpackhi_epi16(none, even)});
    v[2] = as_lanes({_mm512_unpacklo_epi16(none, odd)});
    v[3] = as_lanes({_mm512_unpackhi_epi16(none, odd)});
}

template <int C>
NIBBLE_INLINE lanes chain_quad(const lanes* v, const float* x, lanes t) noexcept {
    t = fma(v[0], set(x[0]), t);
    t = fma(v[1], set(x[C]), t);
    t = fma(v[2], set(x[2 * C]), t);
    return fma(v[3], set(x[3 * C]), t);
}
/// t[c] = fma(values[j], x[j * C + c], t[c]) for j = 0, 1, 2, 3.
template <int C, class Map>
NIBBLE_INLINE void multiply_quad(const Map& map, lanes_int codes, const float* x, lanes* t) noexcept {
    lanes v[4];
    quad_values(map, codes, v);
    t[0] = chain_quad<C>(v, x, t[0]);
    if constexpr (C == 2) t[1] = chain_quad<C>(v, x + 1, t[1]);
}

/// Bytes through a table of 16.
struct byte_table {
    __m512i entries;
};
NIBBLE_INLINE byte_table load_table(const std::uint8_t* p) noexcept {
    return {_mm512_maskz_broadcast_i32x4(every_lane, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
NIBBLE_INLINE lanes_int look_up(byte_table t, lanes_int codes) noexcept { return {_mm512_shuffle_epi8(t.entries, codes.v)}; }

// ---- Epilogues: doubles for activation functions, 16-bit outputs (see scalar.inl.hpp) ----

typedef __m512d wide;
inline constexpr int wide_lanes = 8;
inline constexpr __mmask8 every_wide = 0xff;
NIBBLE_INLINE wide wide_set(double x) noexcept { return _mm512_set1_pd(x); }
NIBBLE_INLINE void widen(lanes x, wide* w) noexcept {
    w[0] = _mm512_maskz_cvtps_pd(every_wide, _mm512_maskz_extractf32x8_ps(every_wide, x.v, 0));
    w[1] = _mm512_maskz_cvtps_pd(every_wide, _mm512_maskz_extractf32x8_ps(every_wide, x.v, 1));
}
NIBBLE_INLINE lanes narrow(const wide* w) noexcept {
    const __m512 low = _mm512_castps256_ps512(_mm512_maskz_cvtpd_ps(every_wide, w[0]));
    return {_mm512_maskz_insertf32x8(every_lane, low, _mm512_maskz_cvtpd_ps(every_wide, w[1]), 1)};
}
NIBBLE_INLINE wide larger(wide x, wide y) noexcept { return _mm512_maskz_max_pd(every_wide, x, y); }
NIBBLE_INLINE wide smaller(wide x, wide y) noexcept { return _mm512_maskz_min_pd(every_wide, x, y); }
NIBBLE_INLINE wide where_negative(wide x, wide y, wide z) noexcept {
    return _mm512_mask_blend_pd(_mm512_cmp_pd_mask(x, _mm512_setzero_pd(), _CMP_LT_OQ), z, y);
}
NIBBLE_INLINE wide two_to(wide shifted) noexcept {
    const __m512i n = _mm512_add_epi64(_mm512_castpd_si512(shifted), _mm512_set1_epi64(1023));
    return _mm512_castsi512_pd(_mm512_maskz_slli_epi64(every_wide, n, 52));
}
NIBBLE_INLINE void store_u16(std::uint16_t* p, lanes_int x) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(every_lane, x.v));
}
NIBBLE_INLINE void store_fp16(std::uint16_t* p, lanes x) noexcept {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(every_lane, x.v, _MM_FROUND_TO_NEAREST_INT));
}

// --- encoding and decoding -------------------------------------------------------------------------------------------

NIBBLE_INLINE void prefetch(const void* p) noexcept { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
NIBBLE_INLINE void prefetch_to_write(const void* p) noexcept { __builtin_prefetch(p, 1); }

/// Past the caches, to 64-byte aligned memory; stream_end() before anyone else reads it.
NIBBLE_INLINE void stream_words(std::uint8_t* p, lanes_int x) noexcept { _mm512_stream_si512(reinterpret_cast<__m512i*>(p), x.v); }
NIBBLE_INLINE void stream_end() noexcept { _mm_sfence(); }

NIBBLE_INLINE lanes divide(lanes x, lanes y) noexcept { return {x.v / y.v}; }
/// x, once it is rounded: stands between a product and a sum that must not become one fma.
NIBBLE_INLINE lanes rounded(lanes x) noexcept {
    __asm__("" : "+v"(x.v));
    return x;
}
NIBBLE_INLINE lanes_int smaller(lanes_int x, lanes_int y) noexcept { return {_mm512_maskz_min_epi32(every_lane, x.v, y.v)}; }
NIBBLE_INLINE lanes_int shift_right_logical(lanes_int x, int n) noexcept {
    return {_mm512_maskz_srl_epi32(every_lane, x.v, _mm_cvtsi32_si128(n))};
}
/// a < b ? x : y, signed.
NIBBLE_INLINE lanes select_less(lanes_int a, lanes_int b, lanes x, lanes y) noexcept {
    return {_mm512_mask_blend_ps(_mm512_cmplt_epi32_mask(a.v, b.v), y.v, x.v)};
}
/// a < b ? x : y; false for NaN.
NIBBLE_INLINE lanes select_less(lanes a, lanes b, lanes x, lanes y) noexcept {
    return {_mm512_mask_blend_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ), y.v, x.v)};
}

NIBBLE_INLINE float least(lanes x) noexcept {
    const __m256 v = _mm256_min_ps(half_of<0>(x.v), half_of<1>(x.v));
    __m128 h = _mm_min_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_min_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_min_ss(h, _mm_movehdup_ps(h)));
}
NIBBLE_INLINE float greatest(lanes x) noexcept {
    const __m256 v = _mm256_max_ps(half_of<0>(x.v), half_of<1>(x.v));
    __m128 h = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    h = _mm_max_ps(h, _mm_movehl_ps(h, h));
    return _mm_cvtss_f32(_mm_max_ss(h, _mm_movehdup_ps(h)));
}
NIBBLE_INLINE std::int32_t greatest(lanes_int x) noexcept {
    const __m256i v = _mm256_max_epi32(half_of<0>(x.v), half_of<1>(x.v));
    __m128i h = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    h = _mm_max_epi32(h, _mm_shuffle_epi32(h, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(h, _mm_shuffle_epi32(h, 0xb1)));
}

/// To nearest, ties to even, for x <= 2^17; what lies below -32768 becomes some integer there.
NIBBLE_INLINE lanes_int round_to_int(lanes x) noexcept { return nearest_int(x); }

/// 16 bytes clamp(x + zero, lowest, highest), 0 <= zero, lowest, highest <= 255.
NIBBLE_INLINE void store_codes(std::uint8_t* p, lanes_int x, int zero, int lowest, int highest) noexcept {
    const lanes_int v = smaller(larger(add(x, set_int(zero)), set_int(lowest)), set_int(highest));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(every_lane, v.v));
}
/// p[i] = table[p[i]] of 16 bytes and 16 entries.
NIBBLE_INLINE void map_bytes(const std::uint8_t* table, std::uint8_t* p) noexcept {
    auto* at = reinterpret_cast<__m128i*>(p);
    _mm_storeu_si128(at, _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)), _mm_loadu_si128(at)));
}
/// Finite floats to fp16, to nearest even, and fp16 to floats.
NIBBLE_INLINE lanes_int to_fp16(lanes x) noexcept {
    return {_mm512_maskz_cvtepu16_epi32(every_lane, _mm512_maskz_cvtps_ph(every_lane, x.v, _MM_FROUND_TO_NEAREST_INT))};
}
NIBBLE_INLINE lanes from_fp16(lanes_int x) noexcept {
    return {_mm512_maskz_cvtph_ps(every_lane, _mm512_maskz_cvtepi32_epi16(every_lane, x.v))};
}
/// 16 doubles, each rounded once.
NIBBLE_INLINE lanes load_doubles(const double* p) noexcept {
    const __m256 low = _mm512_maskz_cvtpd_ps(0xff, _mm512_loadu_pd(p));
    const __m256 high = _mm512_maskz_cvtpd_ps(0xff, _mm512_loadu_pd(p + 8));
    return {join_halves(low, high)};
}

/// 15 ascending thresholds for count_below, as a heap: node n has the children 2 n and 2 n + 1.
struct thresholds_16 {
    __m512 heap;
};
NIBBLE_INLINE thresholds_16 load_thresholds(const float* t) noexcept {
    return {_mm512_setr_ps(0.0f, t[7], t[3], t[11], t[1], t[5], t[9], t[13], t[0], t[2], t[4], t[6], t[8], t[10], t[12], t[14])};
}
/// How many thresholds are below x.
NIBBLE_INLINE lanes_int count_below(const thresholds_16& t, lanes x) noexcept {
    const __m512i one = _mm512_set1_epi32(1);
    __m512i n = one;
    for (int level = 0; level < 4; ++level) {
        const __mmask16 above = _mm512_cmp_ps_mask(x.v, _mm512_maskz_permutexvar_ps(every_lane, n, t.heap), _CMP_GT_OQ);
        n = _mm512_add_epi32(n, n);
        n = _mm512_mask_add_epi32(n, above, n, one);
    }
    return {_mm512_sub_epi32(n, _mm512_set1_epi32(16))};
}

NIBBLE_INLINE __m512 merge_low(__m512 x, __m512 y) noexcept {
    return _mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, _mm512_castps_pd(x), _mm512_castps_pd(y)));
}
NIBBLE_INLINE __m512 merge_high(__m512 x, __m512 y) noexcept {
    return _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, _mm512_castps_pd(x), _mm512_castps_pd(y)));
}
NIBBLE_INLINE __m512 even_quads(__m512 x, __m512 y) noexcept { return _mm512_maskz_shuffle_f32x4(every_lane, x, y, 0x88); }
NIBBLE_INLINE __m512 odd_quads(__m512 x, __m512 y) noexcept { return _mm512_maskz_shuffle_f32x4(every_lane, x, y, 0xdd); }

/// 16 rows of 16 words of 32 bits become 16 columns; strides in bytes.
NIBBLE_INLINE void transpose(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to, std::ptrdiff_t to_stride) noexcept {
    __m512 u[16];  // u[4 i + j]: quad L is column 4 L + j of the rows 4 i .. 4 i + 3
    for (int i = 0; i < 4; ++i) {
        const std::uint8_t* at = from + 4 * i * from_stride;
        const __m512 r0 = _mm512_loadu_ps(at);
        const __m512 r1 = _mm512_loadu_ps(at + from_stride);
        const __m512 r2 = _mm512_loadu_ps(at + 2 * from_stride);
        const __m512 r3 = _mm512_loadu_ps(at + 3 * from_stride);
        const __m512 t0 = _mm512_maskz_unpacklo_ps(every_lane, r0, r1);
        const __m512 t1 = _mm512_maskz_unpackhi_ps(every_lane, r0, r1);
        const __m512 t2 = _mm512_maskz_unpacklo_ps(every_lane, r2, r3);
        const __m512 t3 = _mm512_maskz_unpackhi_ps(every_lane, r2, r3);
        u[4 * i] = merge_low(t0, t2);
        u[4 * i + 1] = merge_high(t0, t2);
        u[4 * i + 2] = merge_low(t1, t3);
        u[4 * i + 3] = merge_high(t1, t3);
    }
    for (int j = 0; j < 4; ++j) {
        const __m512 a = even_quads(u[j], u[4 + j]);
        const __m512 b = odd_quads(u[j], u[4 + j]);
        const __m512 c = even_quads(u[8 + j], u[12 + j]);
        const __m512 d = odd_quads(u[8 + j], u[12 + j]);
        _mm512_storeu_ps(to + j * to_stride, even_quads(a, c));
        _mm512_storeu_ps(to + (4 + j) * to_stride, even_quads(b, d));
        _mm512_storeu_ps(to + (8 + j) * to_stride, odd_quads(a, c));
        _mm512_storeu_ps(to + (12 + j) * to_stride, odd_quads(b, d));
    }
}

/// Row r of 4 words, then the rows 4, 8 and 12 after it.
NIBBLE_INLINE __m512 load_four_quads(const std::uint8_t* p, std::ptrdiff_t stride) noexcept {
    __m512 v = _mm512_castps128_ps512(_mm_loadu_ps(reinterpret_cast<const float*>(p)));
    v = _mm512_maskz_insertf32x4(every_lane, v, _mm_loadu_ps(reinterpret_cast<const float*>(p + 4 * stride)), 1);
    v = _mm512_maskz_insertf32x4(every_lane, v, _mm_loadu_ps(reinterpret_cast<const float*>(p + 8 * stride)), 2);
    return _mm512_maskz_insertf32x4(every_lane, v, _mm_loadu_ps(reinterpret_cast<const float*>(p + 12 * stride)), 3);
}
/// 16 rows of 4 words of 32 bits become 4 columns; strides in bytes.
NIBBLE_INLINE void transpose_four(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to, std::ptrdiff_t to_stride) noexcept {
    const __m512 r0 = load_four_quads(from, from_stride);
    const __m512 r1 = load_four_quads(from + from_stride, from_stride);
    const __m512 r2 = load_four_quads(from + 2 * from_stride, from_stride);
    const __m512 r3 = load_four_quads(from + 3 * from_stride, from_stride);
    const __m512 t0 = _mm512_maskz_unpacklo_ps(every_lane, r0, r1);
    const __m512 t1 = _mm512_maskz_unpackhi_ps(every_lane, r0, r1);
    const __m512 t2 = _mm512_maskz_unpacklo_ps(every_lane, r2, r3);
    const __m512 t3 = _mm512_maskz_unpackhi_ps(every_lane, r2, r3);
    _mm512_storeu_ps(to, merge_low(t0, t2));
    _mm512_storeu_ps(to + to_stride, merge_high(t0, t2));
    _mm512_storeu_ps(to + 2 * to_stride, merge_low(t1, t3));
    _mm512_storeu_ps(to + 3 * to_stride, merge_high(t1, t3));
}

/// The largest byte (u + add) & mask of `quads` lines of 64 bytes u.
NIBBLE_INLINE int largest_byte(const std::uint8_t* bytes, std::ptrdiff_t quads, int add, int mask) noexcept {
    const __m512i adder = _mm512_set1_epi8(static_cast<char>(add));
    const __m512i masked = _mm512_set1_epi8(static_cast<char>(mask));
    __m512i most = _mm512_setzero_si512();
    for (std::ptrdiff_t i = 0; i < quads; ++i)
        most = _mm512_max_epu8(most, _mm512_and_si512(_mm512_add_epi8(_mm512_loadu_si512(bytes + 64 * i), adder), masked));
    std::uint8_t all[64];
    _mm512_storeu_si512(all, most);
    int largest = 0;
    for (const std::uint8_t u : all) largest = u > largest ? u : largest;
    return largest;
}
