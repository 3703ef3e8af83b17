// The integer dot of AVX-VNNI on the vocabulary of avx2 (see kernels/digits.inl.hpp). No include guard: see foreach_level.hpp.

NIBBLE_INLINE __m256i broadcast(const std::uint8_t* p) noexcept {
    std::int32_t word;
    std::memcpy(&word, p, 4);
    return _mm256_set1_epi32(word);
}

/// vpdpbusd: four codes times four signed digits, into 32 bits. Exact for all codes.
struct dot_kind {
    static constexpr const char* name = "vpdpbusd";
    static constexpr bool flushes = false;
    static constexpr bool reads_nibbles = true;
    static constexpr int code_offset = 0;
    static constexpr int chunk = 1;
    static constexpr int streams(int digits) noexcept { return digits; }
    static constexpr int columns(int digits) noexcept { return digits == 1 ? 4 : digits == 2 ? 2 : 1; }  // 12 accumulators and nibbles spill

    template <int I>
    NIBBLE_INLINE static void one(lanes_int* d, const lanes_int* w, const std::uint8_t* a) noexcept {
        const __m256i x = broadcast(a + 4 * I);
        d[I].a = _mm256_dpbusd_avx_epi32(d[I].a, w->a, x);
        d[I].b = _mm256_dpbusd_avx_epi32(d[I].b, w->b, x);
        __asm__("" : "+x"(d[I].a), "+x"(d[I].b));  // GCC 12 otherwise copies accumulators at loop edges
    }
    template <int... I>
    NIBBLE_INLINE static void all(lanes_int* d, const lanes_int* w, const std::uint8_t* a, std::integer_sequence<int, I...>) noexcept {
        (one<I>(d, w, a), ...);
    }
    template <int T>
    NIBBLE_INLINE static void step(lanes_int* d, const lanes_int* w, const std::uint8_t* a) noexcept {
        all(d, w, a, std::make_integer_sequence<int, T>());
    }
    NIBBLE_INLINE static lanes_int widen(lanes_int x) noexcept { return x; }
    NIBBLE_INLINE static void pack(const std::int32_t* q, int digits, std::uint8_t* out) noexcept { pack_bytes(q, digits, out); }
    static constexpr std::int32_t highest(std::int32_t q) noexcept { return highest_byte(q); }
};
using narrow_kind = dot_kind;
using wide_kind = dot_kind;
