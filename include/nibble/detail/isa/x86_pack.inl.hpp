// Activations as the digits that x86 dots take, one k-quad at a time. No include guard: see foreach_level.hpp.

/// Balanced digits: byte p of q + 0x808080, minus 128. Four k of a digit are one dword.
NIBBLE_INLINE void pack_bytes(const std::int32_t* q, int digits, std::uint8_t* out) noexcept {
    const __m128i half = _mm_set1_epi32(0x808080);
    const __m128i v = _mm_xor_si128(_mm_add_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(q)), half), half);
    const __m128i planes = _mm_shuffle_epi8(v, _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    std::uint8_t bytes[16];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), planes);
    std::memcpy(out, bytes, static_cast<std::size_t>(4 * digits));
}
NIBBLE_INLINE constexpr std::int32_t highest_byte(std::int32_t q) noexcept { return (q + 0x8080) >> 16; }

/// q0 q2, q1 q3 in words; with three digits then their high parts, where low + 65536 * high = q.
NIBBLE_INLINE void pack_words(const std::int32_t* q, int digits, std::uint8_t* out) noexcept {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(q));
    const __m128i low = _mm_setr_epi8(0, 1, 8, 9, 4, 5, 12, 13, -1, -1, -1, -1, -1, -1, -1, -1);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out), _mm_shuffle_epi8(v, low));
    if (digits < 3) return;
    const __m128i high = _mm_setr_epi8(2, 3, 10, 11, 6, 7, 14, 15, -1, -1, -1, -1, -1, -1, -1, -1);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(out + 8), _mm_shuffle_epi8(_mm_add_epi32(v, _mm_set1_epi32(0x8000)), high));
}
NIBBLE_INLINE constexpr std::int32_t highest_word(std::int32_t q) noexcept { return (q + 0x8000) >> 16; }
