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
NIBBLE_INLINE lanes plus(lanes x, lanes y) noexcept { return {_mm512_add_ps(x.v, y.v)}; }
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
NIBBLE_INLINE lanes_int shift_left_by(lanes_int x, int n) noexcept {
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

NIBBLE_INLINE lanes load_half(const std::uint8_t* p) noexcept {
    return {_mm512_maskz_cvtph_ps(every_lane, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
NIBBLE_INLINE lanes_int load_u16(const std::uint8_t* p) noexcept {
    return {_mm512_maskz_cvtepu16_epi32(every_lane, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
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

/// table[code]. Tables of fewer than 16 entries are padded to 16 by whoever made them.
NIBBLE_INLINE lanes look_up(const float* table, int size, lanes_int code) noexcept {
    if (size > 16) return {_mm512_mask_i32gather_ps(_mm512_setzero_ps(), every_lane, code.v, table, 4)};
    return {_mm512_maskz_permutexvar_ps(every_lane, code.v, _mm512_loadu_ps(table))};
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
