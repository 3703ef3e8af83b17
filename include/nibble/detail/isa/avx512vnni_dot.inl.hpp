// The integer dot of AVX512-VNNI (see kernels/digits.inl.hpp). No include guard: see foreach_level.hpp.

NIBBLE_INLINE __m512i broadcast(const std::uint8_t* p) noexcept {
    std::int32_t word;
    std::memcpy(&word, p, 4);
    return _mm512_set1_epi32(word);
}

/// vpdpbusd: four codes times four signed digits, into 32 bits. Exact for all codes. Tiles of two panels: one broadcast
/// serves two dots, else the load ports are the limit.
struct dot_kind {
    static constexpr const char* name = "vpdpbusd";
    static constexpr bool flushes = false;
    static constexpr bool reads_nibbles = true;
    static constexpr int code_offset = 0;
    static constexpr int chunk = 1;
    static constexpr int streams(int digits) noexcept { return digits; }
    static constexpr int columns(int digits) noexcept { return digits == 1 ? 8 : 4; }  // 16, 16, 24 accumulators of 32 registers

    template <int I>
    NIBBLE_INLINE static void one(lanes_int* d, const lanes_int* w, const std::uint8_t* a) noexcept {
        const __m512i x = broadcast(a + 4 * I);
        d[2 * I].v = _mm512_dpbusd_epi32(d[2 * I].v, w[0].v, x);
        d[2 * I + 1].v = _mm512_dpbusd_epi32(d[2 * I + 1].v, w[1].v, x);
        __asm__("" : "+v"(d[2 * I].v), "+v"(d[2 * I + 1].v));  // GCC 12 otherwise copies accumulators at loop edges
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
