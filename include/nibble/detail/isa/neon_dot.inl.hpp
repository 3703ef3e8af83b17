// The integer dot of the Armv8.2 dot product extension (see kernels/digits.inl.hpp). No include guard: see
// foreach_level.hpp.

/// Balanced digits: byte p of q + 0x808080, minus 128. Four k of a digit are one dword.
NIBBLE_INLINE void pack_bytes(const std::int32_t* q, int digits, std::uint8_t* out) noexcept {
    const int32x4_t half = vdupq_n_s32(0x808080);
    const int32x4_t v = veorq_s32(vaddq_s32(vreinterpretq_s32_u8(load_bytes(q)), half), half);
    const uint8x16_t order = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    std::uint8_t bytes[16];
    store_bytes(bytes, vqtbl1q_u8(as_bytes(v), order));
    std::memcpy(out, bytes, static_cast<std::size_t>(4 * digits));
}

/// sum += four signed codes times the four signed digits of dword Lane of x. By hand: arm_neon.h of clang 14 declares
/// vdotq_lane_s32 only where the including file's options have it. Volatile, that is in this order: GCC 12 otherwise mixes
/// the dots of several k-quads, and runs out of registers.
template <int Lane, class Digits>
NIBBLE_INLINE void dot(int32x4_t& sum, int32x4_t codes, Digits x) noexcept {
    __asm__ volatile("sdot %0.4s, %1.16b, %2.4b[%3]" : "+w"(sum) : "w"(codes), "w"(x), "i"(Lane));
}
/// Four rows of the dots of T dwords of digits, which are read in as few registers as hold them.
template <int T>
NIBBLE_INLINE void dot_rows(int32x4_t lanes_int::* rows, lanes_int* d, int32x4_t w, const std::uint8_t* a) noexcept {
    if constexpr (T >= 4) {
        const uint8x16_t x = load_bytes(a);
        dot<0>(d[0].*rows, w, x);
        dot<1>(d[1].*rows, w, x);
        dot<2>(d[2].*rows, w, x);
        dot<3>(d[3].*rows, w, x);
        dot_rows<T - 4>(rows, d + 4, w, a + 16);
    } else if constexpr (T >= 2) {
        const uint8x8_t x = vld1_u8(a);
        dot<0>(d[0].*rows, w, x);
        dot<1>(d[1].*rows, w, x);
        dot_rows<T - 2>(rows, d + 2, w, a + 8);
    } else if constexpr (T == 1) {
        float x;  // a register of 32 bits; no arithmetic
        std::memcpy(&x, a, 4);
        dot<0>(d[0].*rows, w, x);
    }
}
template <int T>
NIBBLE_INLINE void dots(lanes_int* d, lanes_int w, const std::uint8_t* a) noexcept {
    dot_rows<T>(&lanes_int::a, d, w.a, a);
    dot_rows<T>(&lanes_int::b, d, w.b, a);
    dot_rows<T>(&lanes_int::c, d, w.c, a);
    dot_rows<T>(&lanes_int::d, d, w.d, a);
}

/// sdot: four signed codes times four signed digits, into 32 bits. Codes up to 127 are signed bytes as they are.
struct narrow_kind {
    static constexpr const char* name = "sdot";
    static constexpr bool flushes = false;
    static constexpr bool reads_nibbles = true;
    static constexpr int code_offset = 0;
    static constexpr int chunk = 1;
    static constexpr int streams(int digits) noexcept { return digits; }
    static constexpr int columns(int digits) noexcept { return digits == 1 ? 4 : 2; }  // 16, 16, 24 accumulators of 32 registers

    template <int T>
    NIBBLE_INLINE static void step(lanes_int* d, const lanes_int* w, const std::uint8_t* a) noexcept {
        dots<T>(d, *w, a);
    }
    NIBBLE_INLINE static lanes_int widen(lanes_int x) noexcept { return x; }
    NIBBLE_INLINE static void pack(const std::int32_t* q, int digits, std::uint8_t* out) noexcept { pack_bytes(q, digits, out); }
    static constexpr std::int32_t highest(std::int32_t q) noexcept { return (q + 0x8080) >> 16; }
};

/// For all codes: less 128 they are signed bytes, and their zero points are less 128, too.
struct wide_kind : narrow_kind {
    static constexpr bool reads_nibbles = false;
    static constexpr int code_offset = 128;

    template <int T>
    NIBBLE_INLINE static void step(lanes_int* d, const lanes_int* w, const std::uint8_t* a) noexcept {
        const int32x4_t sign = vdupq_n_s32(static_cast<std::int32_t>(0x80808080u));
        dots<T>(d, {veorq_s32(w->a, sign), veorq_s32(w->b, sign), veorq_s32(w->c, sign), veorq_s32(w->d, sign)}, a);
    }
};
