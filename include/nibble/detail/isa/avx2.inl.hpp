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
NIBBLE_INLINE lanes plus(lanes x, lanes y) noexcept { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
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
NIBBLE_INLINE lanes_int shift_left_by(lanes_int x, int n) noexcept {
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

NIBBLE_INLINE lanes load_half(const std::uint8_t* p) noexcept {
    const auto* at = reinterpret_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(at)), _mm256_cvtph_ps(_mm_loadu_si128(at + 1))};
}
NIBBLE_INLINE lanes_int load_u16(const std::uint8_t* p) noexcept {
    const auto* at = reinterpret_cast<const __m128i*>(p);
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

NIBBLE_INLINE __m256 look_up_half(const float* table, int size, __m256i code) noexcept {
    if (size > 16) return _mm256_i32gather_ps(table, code, 4);
    // vpermps takes three bits of the index; the fourth, at the sign, picks between the two halves of the table.
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), code);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), code);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
}
/// table[code]. Tables of fewer than 16 entries are padded to 16 by whoever made them.
NIBBLE_INLINE lanes look_up(const float* table, int size, lanes_int code) noexcept {
    return {look_up_half(table, size, code.a), look_up_half(table, size, code.b)};
}

/// Bytes through a table of 16.
struct byte_table {
    __m256i entries;
};
NIBBLE_INLINE byte_table load_table(const std::uint8_t* p) noexcept {
    return {_mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
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
