// Integer dots of AVX-512 without VNNI: those of avx2, on one zmm a panel (see kernels/digits.inl.hpp). No include guard:
// see foreach_level.hpp.

NIBBLE_INLINE __m512i broadcast(const std::uint8_t* p) noexcept {
    std::int32_t word;
    std::memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
}
/// sum += x in the register of the sum (see avx2_dot.inl.hpp).
NIBBLE_INLINE void add_words(__m512i& sum, __m512i x) noexcept { __asm__("vpaddw %1, %0, %0" : "+v"(sum) : "v"(x)); }
NIBBLE_INLINE void add_dwords(__m512i& sum, __m512i x) noexcept { __asm__("vpaddd %1, %0, %0" : "+v"(sum) : "v"(x)); }

/// vpmaddubsw into 16-bit sums, for codes of at most 127, flushed in time.
struct narrow_kind {
    static constexpr const char* name = "vpmaddubsw";
    static constexpr bool flushes = true;
    static constexpr bool reads_nibbles = true;
    static constexpr int code_offset = 0;
    static constexpr int chunk = 1;
    static constexpr int streams(int digits) noexcept { return digits; }
    static constexpr int columns(int digits) noexcept { return digits == 1 ? 4 : 2; }

    template <int I>
    NIBBLE_INLINE static void one(lanes_int* d, const lanes_int* w, const std::uint8_t* a) noexcept {
        const __m512i x = broadcast(a + 4 * I);
        add_words(d[2 * I].v, _mm512_maddubs_epi16(w[0].v, x));
        add_words(d[2 * I + 1].v, _mm512_maddubs_epi16(w[1].v, x));
    }
    template <int... I>
    NIBBLE_INLINE static void all(lanes_int* d, const lanes_int* w, const std::uint8_t* a, std::integer_sequence<int, I...>) noexcept {
        (one<I>(d, w, a), ...);
    }
    template <int T>
    NIBBLE_INLINE static void step(lanes_int* d, const lanes_int* w, const std::uint8_t* a) noexcept {
        all(d, w, a, std::make_integer_sequence<int, T>());
    }
    NIBBLE_INLINE static lanes_int widen(lanes_int x) noexcept { return {_mm512_madd_epi16(x.v, _mm512_set1_epi16(1))}; }
    NIBBLE_INLINE static void pack(const std::int32_t* q, int digits, std::uint8_t* out) noexcept { pack_bytes(q, digits, out); }
    static constexpr std::int32_t highest(std::int32_t q) noexcept { return highest_byte(q); }
};

/// vpmaddwd on even and odd bytes, digits of 16 bits.
struct wide_kind {
    static constexpr const char* name = "vpmaddwd";
    static constexpr bool flushes = false;
    static constexpr bool reads_nibbles = false;
    static constexpr int code_offset = 0;
    static constexpr int chunk = 2;
    static constexpr int streams(int digits) noexcept { return digits == 3 ? 2 : 1; }
    static constexpr int columns(int) noexcept { return 4; }

    template <int I>
    NIBBLE_INLINE static void one(lanes_int* d, __m512i first, __m512i second, const std::uint8_t* a) noexcept {
        const __m512i x = broadcast(a);
        add_dwords(d[2 * I].v, _mm512_madd_epi16(first, x));
        add_dwords(d[2 * I + 1].v, _mm512_madd_epi16(second, x));
    }
    template <int... I>
    NIBBLE_INLINE static void all(lanes_int* d, const lanes_int* w, const std::uint8_t* a, std::integer_sequence<int, I...>) noexcept {
        const __m512i low = _mm512_set1_epi16(255);
        const __m512i even_first = _mm512_and_si512(w[0].v, low);
        const __m512i even_second = _mm512_and_si512(w[1].v, low);
        (one<I>(d, even_first, even_second, a + 8 * I), ...);
        const __m512i odd_first = _mm512_srli_epi16(w[0].v, 8);
        const __m512i odd_second = _mm512_srli_epi16(w[1].v, 8);
        (one<I>(d, odd_first, odd_second, a + 8 * I + 4), ...);
    }
    template <int T>
    NIBBLE_INLINE static void step(lanes_int* d, const lanes_int* w, const std::uint8_t* a) noexcept {
        all(d, w, a, std::make_integer_sequence<int, T>());
    }
    NIBBLE_INLINE static lanes_int widen(lanes_int x) noexcept { return x; }
    NIBBLE_INLINE static void pack(const std::int32_t* q, int digits, std::uint8_t* out) noexcept { pack_words(q, digits, out); }
    static constexpr std::int32_t highest(std::int32_t q) noexcept { return highest_word(q); }
};
