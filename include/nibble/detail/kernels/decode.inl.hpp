// Cells to lines of weights (no include guard: see digits.inl.hpp). The arithmetic is that of decode_weight: each step is
// rounded once.

enum class line_rule { plain, subtracted, added, table_16, minifloat, table };

/// Small floating point without special codes.
NIBBLE_INLINE lanes minifloat_value(const decoder& d, lanes_int code) noexcept {
    const lanes_int m = bit_and(code, (1 << (d.bits - 1)) - 1);
    const lanes normal = as_lanes(add(shift_left(m, 23 - d.mantissa_bits), set_int((d.least_exponent - 1) << 23)));
    const lanes subnormal = multiply(to_lanes(m), as_lanes(set_int((d.least_exponent - d.mantissa_bits) << 23)));
    const lanes value = select_less(m, set_int(1 << d.mantissa_bits), subnormal, normal);
    return as_lanes(bit_or(as_bits(value), shift_left(bit_and(code, 1 << (d.bits - 1)), 32 - d.bits)));
}

template <line_rule Rule, int J>
NIBBLE_INLINE void decode_line(const decoder& d, float_table table, lanes_int words, lanes s, lanes o, float* out) noexcept {
    const lanes_int code = bit_and(shift_right_logical<8 * J>(words), 0xff);
    lanes v;
    if constexpr (Rule == line_rule::table_16) v = look_up(table, code);
    else if constexpr (Rule == line_rule::minifloat) v = minifloat_value(d, code);
    else if constexpr (Rule == line_rule::table) v = gather(d.table, code);
    else if constexpr (Rule == line_rule::plain) v = add(multiply(to_lanes(code), set(d.step)), set(d.base));  // both exact
    else v = to_lanes(code);
    if constexpr (Rule == line_rule::subtracted) v = subtract(v, o);
    v = multiply(s, v);
    if constexpr (Rule == line_rule::added) v = add(rounded(v), o);
    store(out, v);
}

template <line_rule Rule, int... J>
NIBBLE_INLINE void decode_quad(const decoder& d, float_table table, lanes_int words, lanes s, lanes o, float* out,
                               std::ptrdiff_t stride, std::integer_sequence<int, J...>) noexcept {
    (decode_line<Rule, J>(d, table, words, s, o, out + J * stride), ...);
}

/// Weights of quads that are unpacked to bytes.
template <line_rule Rule>
NIBBLE_NOINLINE inline void decode_bytes(decoder d, const std::uint8_t* bytes, std::ptrdiff_t quads, const float* scale, const float* offset,
                                         float* out, std::ptrdiff_t stride) noexcept {
    using all = std::make_integer_sequence<int, 4>;
    constexpr float none[16] = {};
    const float_table table = load_table(Rule == line_rule::table_16 ? d.table : none);
    const lanes s = load(scale);
    const lanes o = load(offset);
    for (std::ptrdiff_t q = 0; q < quads; ++q, out += 4 * stride) {
        if (stride > 16)
            for (int j = 0; j < 4; ++j) prefetch_to_write(out + (8 + j) * stride);
        const lanes_int words = load_words(bytes + 64 * q);
        decode_quad<Rule>(d, table, words, s, o, out, stride, all());
    }
}

/// 16-bit floating point: two k to a cell.
NIBBLE_NOINLINE inline void decode_16_bits(const decoder& d, const std::uint8_t* panel, std::ptrdiff_t first, std::ptrdiff_t quads,
                                           const float* scale, float* out, std::ptrdiff_t stride) noexcept {
    const bool fp16 = d.is_fp16;
    const lanes s = load(scale);
    for (std::ptrdiff_t cell = 2 * first; cell < 2 * (first + quads); ++cell, out += 2 * stride) {
        const lanes_int words = load_words(panel + 64 * cell);
        const lanes even = fp16 ? from_fp16(bit_and(words, 0xffff)) : as_lanes(shift_left<16>(words));
        const lanes odd = fp16 ? from_fp16(shift_right_logical<16>(words)) : as_lanes(bit_and(words, -65536));
        store(out, multiply(s, even));
        store(out + stride, multiply(s, odd));
    }
}

NIBBLE_NOINLINE inline void decode(const decoder& d, const std::uint8_t* panel, std::ptrdiff_t first, std::ptrdiff_t quads, const float* scale,
                                   const float* offset, float* out, std::ptrdiff_t stride) noexcept {
    using enum line_rule;
    if (d.bits == 16) return decode_16_bits(d, panel, first, quads, scale, out, stride);
    constexpr std::ptrdiff_t most = 32;
    std::uint8_t bytes[64 * most];
    for (std::ptrdiff_t done = 0; done < quads; done += most, out += 4 * most * stride) {
        const std::ptrdiff_t n = quads - done < most ? quads - done : most;
        unpack_quads(panel, d.bits, first + done, n, nullptr, bytes);
        if (d.table != nullptr && d.bits <= 4) decode_bytes<table_16>(d, bytes, n, scale, offset, out, stride);
        else if (d.mantissa_bits > 0 && largest_byte(bytes, n, d.special_add, d.special_mask) <= d.special_above)
            decode_bytes<minifloat>(d, bytes, n, scale, offset, out, stride);
        else if (d.table != nullptr) decode_bytes<table>(d, bytes, n, scale, offset, out, stride);
        else if (d.subtracts) decode_bytes<subtracted>(d, bytes, n, scale, offset, out, stride);
        else if (d.adds) decode_bytes<added>(d, bytes, n, scale, offset, out, stride);
        else decode_bytes<plain>(d, bytes, n, scale, offset, out, stride);
    }
}

NIBBLE_NOINLINE inline void transpose_words(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to, std::ptrdiff_t to_stride) noexcept {
    if (to_stride > 64)
        for (int c = 0; c < 16; ++c) prefetch_to_write(to + c * to_stride + 256);
    transpose(from, from_stride, to, to_stride);
}
