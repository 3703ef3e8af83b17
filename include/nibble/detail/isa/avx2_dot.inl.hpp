// Integer dots of AVX2 (see kernels/digits.inl.hpp). No include guard: see foreach_level.hpp.

NIBBLE_INLINE __m256i broadcast(const std::uint8_t* p) noexcept {
    std::int32_t word;
    std::memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
}
/// sum += x in the register of the sum. By hand: GCC 12 otherwise adds into another register and copies it back, for every
/// accumulator of the inner loop.
NIBBLE_INLINE void add_words(__m256i& sum, __m256i x) noexcept { __asm__("vpaddw %1, %0, %0" : "+x"(sum) : "x"(x)); }
NIBBLE_INLINE void add_dwords(__m256i& sum, __m256i x) noexcept { __asm__("vpaddd %1, %0, %0" : "+x"(sum) : "x"(x)); }

/// vpmaddubsw: pairs of code * digit into 16-bit sums. A pair is at most 2 * code * 128, so codes up to 127 never
/// saturate, and 32767 / (2 * code * 128) k-quads fit before the sums are widened.
struct narrow_kind {
    static constexpr const char* name = "vpmaddubsw";
    static constexpr bool flushes = true;
    static constexpr bool reads_nibbles = true;
    static constexpr int code_offset = 0;
    static constexpr int chunk = 1;
    static constexpr int streams(int digits) noexcept { return digits; }
    static constexpr int columns(int digits) noexcept { return digits == 1 ? 4 : 2; }  // 8 or 12 accumulators of 16 registers

    template <int I>
    NIBBLE_INLINE static void one(lanes_int* d, const lanes_int* w, const std::uint8_t* a) noexcept {
        const __m256i x = broadcast(a + 4 * I);
        add_words(d[I].a, _mm256_maddubs_epi16(w->a, x));
        add_words(d[I].b, _mm256_maddubs_epi16(w->b, x));
    }
    template <int... I>
    NIBBLE_INLINE static void all(lanes_int* d, const lanes_int* w, const std::uint8_t* a, std::integer_sequence<int, I...>) noexcept {
        (one<I>(d, w, a), ...);
    }
    template <int T>
    NIBBLE_INLINE static void step(lanes_int* d, const lanes_int* w, const std::uint8_t* a) noexcept {
        all(d, w, a, std::make_integer_sequence<int, T>());
    }
    NIBBLE_INLINE static lanes_int widen(lanes_int x) noexcept {
        const __m256i ones = _mm256_set1_epi16(1);
        return {_mm256_madd_epi16(x.a, ones), _mm256_madd_epi16(x.b, ones)};
    }
    NIBBLE_INLINE static void pack(const std::int32_t* q, int digits, std::uint8_t* out) noexcept { pack_bytes(q, digits, out); }
    static constexpr std::int32_t highest(std::int32_t q) noexcept { return highest_byte(q); }
};

/// vpmaddwd: codes widened to words (even and odd bytes apart), digits of 16 bits. Never saturates, and two digits cost
/// what one does.
struct wide_kind {
    static constexpr const char* name = "vpmaddwd";
    static constexpr bool flushes = false;
    static constexpr bool reads_nibbles = false;
    static constexpr int code_offset = 0;
    static constexpr int chunk = 2;
    static constexpr int streams(int digits) noexcept { return digits == 3 ? 2 : 1; }
    static constexpr int columns(int digits) noexcept { return digits == 3 ? 3 : 4; }

    template <int I>
    NIBBLE_INLINE static void one(lanes_int* d, __m256i wa, __m256i wb, const std::uint8_t* a) noexcept {
        const __m256i x = broadcast(a);
        add_dwords(d[I].a, _mm256_madd_epi16(wa, x));
        add_dwords(d[I].b, _mm256_madd_epi16(wb, x));
    }
    template <int... I>
    NIBBLE_INLINE static void all(lanes_int* d, const lanes_int* w, const std::uint8_t* a, std::integer_sequence<int, I...>) noexcept {
        const __m256i low = _mm256_set1_epi16(255);
        const __m256i even_a = _mm256_and_si256(w->a, low);
        const __m256i even_b = _mm256_and_si256(w->b, low);
        (one<I>(d, even_a, even_b, a + 8 * I), ...);
        const __m256i odd_a = _mm256_srli_epi16(w->a, 8);
        const __m256i odd_b = _mm256_srli_epi16(w->b, 8);
        (one<I>(d, odd_a, odd_b, a + 8 * I + 4), ...);
    }
    template <int T>
    NIBBLE_INLINE static void step(lanes_int* d, const lanes_int* w, const std::uint8_t* a) noexcept {
        all(d, w, a, std::make_integer_sequence<int, T>());
    }
    NIBBLE_INLINE static lanes_int widen(lanes_int x) noexcept { return x; }
    NIBBLE_INLINE static void pack(const std::int32_t* q, int digits, std::uint8_t* out) noexcept { pack_words(q, digits, out); }
    static constexpr std::int32_t highest(std::int32_t q) noexcept { return highest_word(q); }
};
