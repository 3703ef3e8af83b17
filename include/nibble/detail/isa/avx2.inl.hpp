// 16 lanes of float in two ymm registers. No include guard: see foreach_level.hpp.

struct lanes {
    __m256 a, b;
};

struct lanes_int {
    __m256i a, b;
};

inline constexpr int max_streams = 6;  // 12 accumulators, 2 values, 1 broadcast of 16 registers

NIBBLE_INLINE lanes load(const float* p) noexcept { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
NIBBLE_INLINE void store(float* p, lanes x) noexcept {
    _mm256_storeu_ps(p, x.a);
    _mm256_storeu_ps(p + 8, x.b);
}
NIBBLE_INLINE lanes set(float x) noexcept { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
NIBBLE_INLINE lanes zero() noexcept { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
NIBBLE_INLINE lanes multiply(lanes x, lanes y) noexcept { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
NIBBLE_INLINE lanes fma(lanes x, lanes y, lanes z) noexcept {
    return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
NIBBLE_INLINE lanes multiply_add_exact(lanes x, float s, lanes y) noexcept { return fma(x, set(s), y); }

NIBBLE_INLINE lanes subtract(lanes x, lanes y) noexcept { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }

NIBBLE_INLINE lanes_int load_words(const std::uint8_t* p) noexcept {
    return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32))};
}
NIBBLE_INLINE lanes_int field(lanes_int x, int shift, int mask) noexcept {
    const __m128i count = _mm_cvtsi32_si128(shift);
    const __m256i m = _mm256_set1_epi32(mask);
    return {_mm256_and_si256(_mm256_srl_epi32(x.a, count), m), _mm256_and_si256(_mm256_srl_epi32(x.b, count), m)};
}
NIBBLE_INLINE lanes_int combine(lanes_int low, lanes_int high, int bits) noexcept {
    const __m128i count = _mm_cvtsi32_si128(bits);
    return {_mm256_or_si256(low.a, _mm256_sll_epi32(high.a, count)), _mm256_or_si256(low.b, _mm256_sll_epi32(high.b, count))};
}
NIBBLE_INLINE lanes to_lanes(lanes_int x) noexcept { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

NIBBLE_INLINE __m256 look_up_half(const float* table, int size, __m256i code) noexcept {
    if (size > 16) return _mm256_i32gather_ps(table, code, 4);
    // vpermps takes three bits of the index; the fourth, at the sign, picks between the two halves of the table.
    const __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), code);
    const __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), code);
    return _mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32(code, 28)));
}
/// out[r] = table[code[r]]. Tables of fewer than 16 entries are padded to 16 by whoever made them.
NIBBLE_INLINE void look_up(const float* table, int size, lanes_int code, float* out) noexcept {
    _mm256_storeu_ps(out, look_up_half(table, size, code.a));
    _mm256_storeu_ps(out + 8, look_up_half(table, size, code.b));
}

NIBBLE_INLINE __m256i low_digits(__m256 d0, __m256 d1) noexcept {
    return _mm256_add_epi32(_mm256_cvttps_epi32(d0), _mm256_slli_epi32(_mm256_cvttps_epi32(d1), 8));
}
NIBBLE_INLINE __m256 join_three_half(__m256 d0, __m256 d1, __m256 d2) noexcept {
    const __m256i e = low_digits(d0, d1);
    const __m256i high = _mm256_add_epi32(_mm256_cvttps_epi32(d2), _mm256_srai_epi32(e, 16));
    const __m256i low = _mm256_and_si256(e, _mm256_set1_epi32(0xffff));
    return _mm256_fmadd_ps(_mm256_cvtepi32_ps(high), _mm256_set1_ps(65536.0f), _mm256_cvtepi32_ps(low));
}
NIBBLE_INLINE lanes join_two(lanes x, lanes y) noexcept {
    return {_mm256_cvtepi32_ps(low_digits(x.a, y.a)), _mm256_cvtepi32_ps(low_digits(x.b, y.b))};
}
NIBBLE_INLINE lanes join_three(lanes x, lanes y, lanes z) noexcept {
    return {join_three_half(x.a, y.a, z.a), join_three_half(x.b, y.b, z.b)};
}

// ---- Epilogues: activation functions in double, and 16-bit outputs (see scalar.inl.hpp) ----

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
NIBBLE_INLINE __m256i is_nan_half(__m256 x) noexcept {
    const __m256i a = _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
    return _mm256_cmpgt_epi32(a, _mm256_set1_epi32(0x7f800000));
}
NIBBLE_INLINE __m256 or_nan_half(__m256 x, __m256 y) noexcept {
    const __m256 canonical = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fc00000));
    return _mm256_blendv_ps(y, canonical, _mm256_castsi256_ps(is_nan_half(x)));
}
NIBBLE_INLINE lanes or_nan(lanes x, lanes y) noexcept { return {or_nan_half(x.a, y.a), or_nan_half(x.b, y.b)}; }
NIBBLE_INLINE __m256 positive_half(__m256 x) noexcept {
    const __m256i u = _mm256_castps_si256(x);
    return _mm256_castsi256_ps(_mm256_andnot_si256(_mm256_srai_epi32(u, 31), u));
}
NIBBLE_INLINE lanes positive(lanes x) noexcept { return {positive_half(x.a), positive_half(x.b)}; }

NIBBLE_INLINE __m256i bf16_half(__m256 x) noexcept {
    const __m256i u = _mm256_castps_si256(x);
    const __m256i high = _mm256_srli_epi32(u, 16);
    const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
    return _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), is_nan_half(x));
}
NIBBLE_INLINE void store_bf16(std::uint16_t* p, lanes x) noexcept {
    // The pack works within halves of a register: words 0-3 8-11 4-7 12-15.
    const __m256i packed = _mm256_packus_epi32(bf16_half(x.a), bf16_half(x.b));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
NIBBLE_INLINE void store_fp16(std::uint16_t* p, lanes x) noexcept {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
