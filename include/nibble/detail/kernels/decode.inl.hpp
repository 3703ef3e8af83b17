// Cells to lines of weights (no include guard: see digits.inl.hpp). The arithmetic is that of decode_weight: each step is
// rounded once.

enum class line_rule { plain, subtracted, added, table_16, minifloat, table };

template <line_rule Rule>
NIBBLE_INLINE void decode_line(const decoder& d, lanes v, lanes s, lanes o, float* out) noexcept {
    if constexpr (Rule == line_rule::plain) v = add(multiply(v, set(d.step)), set(d.base));  // both exact
    if constexpr (Rule == line_rule::subtracted) v = subtract(v, o);
    v = multiply(s, v);
    if constexpr (Rule == line_rule::added) v = add(rounded(v), o);
    store(out, v);
}

/// Codes of k-quad j as lanes.
template <int J>
NIBBLE_INLINE lanes_int code_of(lanes_int words) noexcept {
    return bit_and(shift_right_logical<8 * J>(words), 0xff);
}

template <line_rule Rule, class Values, int... J>
NIBBLE_INLINE void decode_quad(const decoder& d, const Values& values, lanes_int words, lanes s, lanes o, float* out, std::ptrdiff_t stride,
                               std::integer_sequence<int, J...>) noexcept {
    if constexpr (Rule == line_rule::table_16 || Rule == line_rule::minifloat) {
        lanes v[4];
        quad_values(values, words, v);
        (decode_line<Rule>(d, v[J], s, o, out + J * stride), ...);
    } else if constexpr (Rule == line_rule::table) {
        (decode_line<Rule>(d, gather(d.table, code_of<J>(words)), s, o, out + J * stride), ...);
    } else {
        (decode_line<Rule>(d, to_lanes(code_of<J>(words)), s, o, out + J * stride), ...);
    }
}

template <line_rule Rule>
NIBBLE_INLINE auto values_of(const decoder& d) noexcept {
    if constexpr (Rule == line_rule::table_16) return load_table(d.table);
    else return load_minifloat(d);
}

/// Weights of quads that are unpacked to bytes.
template <line_rule Rule>
NIBBLE_NOINLINE inline void decode_bytes(decoder d, const std::uint8_t* bytes, std::ptrdiff_t quads, const float* scale, const float* offset,
                                         float* out, std::ptrdiff_t stride) noexcept {
    using all = std::make_integer_sequence<int, 4>;
    const auto values = values_of<Rule>(d);
    const lanes s = load(scale);
    const lanes o = load(offset);
    for (std::ptrdiff_t q = 0; q < quads; ++q, out += 4 * stride) {
        if (stride > 16)
            for (int j = 0; j < 4; ++j) prefetch_to_write(out + (8 + j) * stride);
        const lanes_int words = load_words(bytes + 64 * q);
        decode_quad<Rule>(d, values, words, s, o, out, stride, all());
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

NIBBLE_NOINLINE inline bool has_special(const decoder& d, const std::uint8_t* bytes, std::ptrdiff_t lines) noexcept {
    return largest_byte(bytes, lines, d.special_add, d.special_mask) > d.special_above;
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
        else if (d.is_minifloat && !has_special(d, bytes, n))
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
