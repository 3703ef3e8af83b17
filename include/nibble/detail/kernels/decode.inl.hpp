// Cells to lines of weights (no include guard: see product.inl.hpp). The cells are drawn in qmatrix.hpp: the codes of
// k = 4q + j of a plane of P bits are bits P * f + 8 * j of every word of one cell, f = q mod (8 / P).
//
// The arithmetic is that of decode_weight: each step is rounded once.

enum class line_rule { plain, subtracted, added, table_16, minifloat, table };

/// The codes of k = 4q + j.
template <int Low, int High>
NIBBLE_INLINE lanes_int line_codes(const std::uint8_t* panel, std::ptrdiff_t q, int j) noexcept {
    if constexpr (High == 0) {
        constexpr int quads = 8 / Low;  // of a cell
        return field(load_words(panel + q / quads * 64), Low * static_cast<int>(q % quads) + 8 * j, (1 << Low) - 1);
    } else {
        const std::uint8_t* block = panel + q / 8 * (64 * (Low + High));
        constexpr int low_quads = 8 / Low;
        constexpr int high_quads = 8 / High;
        const int within = static_cast<int>(q % 8);
        const lanes_int low = field(load_words(block + within / low_quads * 64), Low * (within % low_quads) + 8 * j, (1 << Low) - 1);
        const lanes_int high = field(load_words(block + 64 * Low + within / high_quads * 64), High * (within % high_quads) + 8 * j,
                                     (1 << High) - 1);
        return combine(low, high, Low);
    }
}

/// Small floating point without special codes.
template <int Bits>
NIBBLE_INLINE lanes minifloat_value(const decoder& d, lanes_int code) noexcept {
    const lanes_int m = bit_and(code, set_int((1 << (Bits - 1)) - 1));
    const lanes normal = as_lanes(add(shift_left(m, 23 - d.mantissa_bits), set_int((d.least_exponent - 1) << 23)));
    const lanes subnormal = multiply(to_lanes(m), as_lanes(set_int((d.least_exponent - d.mantissa_bits) << 23)));
    const lanes value = select_less(m, set_int(1 << d.mantissa_bits), subnormal, normal);
    return as_lanes(bit_or(as_bits(value), shift_left(bit_and(code, set_int(1 << (Bits - 1))), 32 - Bits)));
}

template <int Bits>
NIBBLE_INLINE lanes look_up_line(const float* table, lanes_int code) noexcept {
    float v[16];
    look_up(table, 1 << Bits, code, v);
    return load(v);
}

template <line_rule Rule, int Low, int High>
NIBBLE_NOINLINE inline void decode_with(decoder d, const std::uint8_t* panel, std::ptrdiff_t first, std::ptrdiff_t quads,
                                        const float* scale, const float* offset, float* out, std::ptrdiff_t stride) noexcept {
    constexpr int bits = Low + High;
    const lanes s = load(scale);
    const lanes o = load(offset);
    for (std::ptrdiff_t q = first; q < first + quads; ++q) {
        lanes_int code[4];
        for (int j = 0; j < 4; ++j) code[j] = line_codes<Low, High>(panel, q, j);
        bool special = false;
        if constexpr (Rule == line_rule::minifloat) {
            lanes_int most = set_int(0);
            for (int j = 0; j < 4; ++j) most = larger(most, bit_and(add(code[j], set_int(d.special_add)), set_int(d.special_mask)));
            special = greatest(most) > d.special_above;
        }
        for (int j = 0; j < 4; ++j, out += stride) {
            if (stride > 16) prefetch_to_write(out + 8 * stride);
            lanes v;
            if constexpr (Rule == line_rule::table_16) v = look_up_16(d.table, code[j]);
            else if constexpr (Rule == line_rule::minifloat) v = special ? look_up_line<bits>(d.table, code[j]) : minifloat_value<bits>(d, code[j]);
            else if constexpr (Rule == line_rule::table) v = look_up_line<bits>(d.table, code[j]);
            else if constexpr (Rule == line_rule::plain) v = multiply_add_exact(to_lanes(code[j]), d.step, set(d.base));
            else v = to_lanes(code[j]);
            if constexpr (Rule == line_rule::subtracted) v = rounded(subtract(v, o));
            v = multiply(s, v);
            if constexpr (Rule == line_rule::added) v = add(rounded(v), o);
            store(out, v);
        }
    }
}

template <int Low, int High>
NIBBLE_INLINE void decode_planes(const decoder& d, const std::uint8_t* panel, std::ptrdiff_t first, std::ptrdiff_t quads,
                                 const float* scale, const float* offset, float* out, std::ptrdiff_t stride) noexcept {
    using enum line_rule;
    if constexpr (Low + High == 4)
        if (d.table != nullptr) return decode_with<table_16, Low, High>(d, panel, first, quads, scale, offset, out, stride);
    if constexpr (Low + High >= 5)
        if (d.mantissa_bits > 0) return decode_with<minifloat, Low, High>(d, panel, first, quads, scale, offset, out, stride);
    if (d.table != nullptr) return decode_with<table, Low, High>(d, panel, first, quads, scale, offset, out, stride);
    if (d.subtracts) return decode_with<subtracted, Low, High>(d, panel, first, quads, scale, offset, out, stride);
    if (d.adds) return decode_with<added, Low, High>(d, panel, first, quads, scale, offset, out, stride);
    return decode_with<plain, Low, High>(d, panel, first, quads, scale, offset, out, stride);
}

/// 16-bit floating point: two k to a cell.
NIBBLE_NOINLINE inline void decode_16_bits(const decoder& d, const std::uint8_t* panel, std::ptrdiff_t first, std::ptrdiff_t quads,
                                           const float* scale, float* out, std::ptrdiff_t stride) noexcept {
    const bool fp16 = d.is_fp16;
    const lanes s = load(scale);
    for (std::ptrdiff_t cell = 2 * first; cell < 2 * (first + quads); ++cell, out += 2 * stride) {
        const lanes_int words = load_words(panel + 64 * cell);
        const lanes even = fp16 ? from_fp16(field(words, 0, 0xffff)) : as_lanes(shift_left(words, 16));
        const lanes odd = fp16 ? from_fp16(field(words, 16, 0xffff)) : as_lanes(bit_and(words, set_int(-65536)));
        store(out, multiply(s, even));
        store(out + stride, multiply(s, odd));
    }
}

inline void decode(const decoder& d, const std::uint8_t* panel, std::ptrdiff_t first, std::ptrdiff_t quads, const float* scale,
                   const float* offset, float* out, std::ptrdiff_t stride) noexcept {
    switch (d.bits) {
        case 1: return decode_planes<1, 0>(d, panel, first, quads, scale, offset, out, stride);
        case 2: return decode_planes<2, 0>(d, panel, first, quads, scale, offset, out, stride);
        case 3: return decode_planes<2, 1>(d, panel, first, quads, scale, offset, out, stride);
        case 4: return decode_planes<4, 0>(d, panel, first, quads, scale, offset, out, stride);
        case 5: return decode_planes<4, 1>(d, panel, first, quads, scale, offset, out, stride);
        case 6: return decode_planes<4, 2>(d, panel, first, quads, scale, offset, out, stride);
        case 16: return decode_16_bits(d, panel, first, quads, scale, out, stride);
        default: return decode_planes<8, 0>(d, panel, first, quads, scale, offset, out, stride);
    }
}

NIBBLE_NOINLINE inline void transpose_words(const std::uint8_t* from, std::ptrdiff_t from_stride, std::uint8_t* to, std::ptrdiff_t to_stride) noexcept {
    // What comes next lies below in columns that are read, and behind in rows that are written.
    for (int i = 0; i < 16 && from_stride > 64; ++i) prefetch(from + (16 + i) * from_stride);
    for (int i = 0; i < 16 && from_stride == 64; ++i) prefetch_to_write(to + i * to_stride + 256);
    transpose(from, from_stride, to, to_stride);
}
