// Stored scales and offsets to lines of floats: the only code that knows how scales are stored (scale.hpp says what they
// mean). No include guard: see digits.inl.hpp.

/// A line of integers of at most 8 bits. Bits: how many, or 0 for as many as `bits` says.
template <int Bits>
NIBBLE_INLINE lanes_int integer_line(const std::uint8_t* p, int bits, bool shared) noexcept {
    if (shared) return set_int(p[0]);
    if constexpr (Bits == 8) return load_u8(p);
    if constexpr (Bits == 4) return lane_plane<4>(p);
    if constexpr (Bits == 6) return bit_or(lane_plane<4>(p), shift_left<4>(lane_plane<2>(p + 8)));
    lanes_int u = zero_int();
    int done = 0;
    if ((bits & 8) != 0) {
        u = load_u8(p);
        p += 16;
        done = 8;
    }
    if ((bits & 4) != 0) {
        u = bit_or(u, shift_left(lane_plane<4>(p), done));
        p += 8;
        done += 4;
    }
    if ((bits & 2) != 0) {
        u = bit_or(u, shift_left(lane_plane<2>(p), done));
        p += 4;
        done += 2;
    }
    if ((bits & 1) != 0) u = bit_or(u, shift_left(lane_plane<1>(p), done));
    return u;
}

NIBBLE_INLINE lanes e8m0_lanes(lanes_int u) noexcept {
    const lanes_int normal = select(equal(u, 0), set_int(0x00400000), shift_left<23>(u));
    return as_lanes(select(equal(u, 255), set_int(0x7fc00000), normal));
}

NIBBLE_INLINE lanes e4m3_lanes(lanes_int u) noexcept {
    const lanes_int m = bit_and(u, 0x7f);
    const lanes_int normal = add(shift_left<20>(m), set_int(120 << 23));
    const lanes_int subnormal = as_bits(multiply(to_lanes(m), set(0.001953125f)));  // 2^-9
    const lanes_int finite = select(equal(bit_and(u, 0x78), 0), subnormal, normal);
    return as_lanes(bit_or(select(equal(m, 0x7f), set_int(0x7fc00000), finite), shift_left<24>(bit_and(u, 0x80))));
}

/// A line of a scheme that stores floats.
template <scale_storage Storage>
NIBBLE_INLINE lanes float_line(const std::uint8_t* p, bool shared) noexcept {
    std::uint8_t copies[64];
    if (shared) {
        constexpr int bytes = stored_bytes(Storage);
        for (int r = 0; r < 16; ++r) std::memcpy(copies + r * bytes, p, static_cast<std::size_t>(bytes));
        p = copies;
    }
    if constexpr (Storage == scale_storage::f32) return as_lanes(load_words(p));
    else if constexpr (Storage == scale_storage::f16) return load_half(p);
    else if constexpr (Storage == scale_storage::bf16) return as_lanes(shift_left<16>(load_u16(p)));
    else if constexpr (Storage == scale_storage::e8m0) return e8m0_lanes(load_u8(p));
    else return e4m3_lanes(load_u8(p));
}

/// The second-level absmax of every row for group g, and the number of groups from g on for which it stays.
NIBBLE_INLINE std::ptrdiff_t nested_line(const scale_source& s, std::ptrdiff_t g, float* absmax) noexcept {
    std::ptrdiff_t stays = s.groups;
    for (int r = 0; r < 16; ++r) {
        absmax[r] = 0.0f;
        if (r >= s.live) continue;
        const std::ptrdiff_t block = (s.first_row + r) * s.groups + g;
        std::memcpy(absmax + r, s.supers + block / s.span * 4, 4);
        const std::ptrdiff_t left = s.span - block % s.span;
        stays = left < stays ? left : stays;
    }
    return stays;
}

struct expanded {
    lanes_int live;
    lanes unit;
    bool fold;
    float* scale;
    float* offset;
};

NIBBLE_INLINE void put_scale(const expanded& e, std::ptrdiff_t i, lanes value) noexcept {
    store(e.scale + 16 * i, as_lanes(bit_and(as_bits(multiply(value, e.unit)), e.live)));
}
NIBBLE_INLINE void put_offset(const expanded& e, std::ptrdiff_t i, lanes value, lanes start) noexcept {
    if (e.fold) start = negate(multiply(value, start));
    store(e.offset + 16 * i, as_lanes(bit_and(as_bits(start), e.live)));
}

template <scale_storage Storage>
NIBBLE_INLINE void expand_direct(const scale_source& s, std::ptrdiff_t first, std::ptrdiff_t count, const expanded& e) noexcept {
    const auto kind = static_cast<offset_kind>(s.offset);
    const std::uint8_t* scales = s.scales + first * s.scale_line;
    const std::uint8_t* offsets = s.offsets + first * s.offset_line;
    const bool scaled = Storage == scale_storage::e4m3_f32;
    for (std::ptrdiff_t i = 0; i < count; ++i, scales += s.scale_line, offsets += s.offset_line) {
        lanes value = float_line<Storage>(scales, s.shared);
        if (scaled) value = multiply(value, set(s.tensor_scale));
        put_scale(e, i, value);
        if (kind == offset_kind::none) continue;
        const bool integer = kind == offset_kind::zero_point;
        put_offset(e, i, value, integer ? to_lanes(integer_line<0>(offsets, s.offset_bits, s.shared)) : float_line<Storage>(offsets, s.shared));
    }
}

template <int Bits>
NIBBLE_INLINE void expand_two_level(const scale_source& s, std::ptrdiff_t first, std::ptrdiff_t count, const expanded& e) noexcept {
    const bool minimum = static_cast<offset_kind>(s.offset) == offset_kind::minimum;
    const lanes_int half = set_int(s.is_signed ? 1 << (s.scale_bits - 1) : 0);
    std::ptrdiff_t i = 0;
    while (i < count) {
        const std::ptrdiff_t super = (first + i) / s.span;
        const std::ptrdiff_t end = (super + 1) * s.span - first < count ? (super + 1) * s.span - first : count;
        const std::uint8_t* line = s.supers + super * s.super_line;
        const lanes d = load_half(line);
        const lanes dmin = minimum ? load_half(line + 32) : d;
        for (; i < end; ++i) {
            const lanes_int u = integer_line<Bits>(s.scales + (first + i) * s.scale_line, s.scale_bits, s.shared);
            const lanes value = multiply(d, to_lanes(subtract(u, half)));
            put_scale(e, i, value);
            const std::uint8_t* at = s.offsets + (first + i) * s.offset_line;
            if (minimum) put_offset(e, i, value, negate(multiply(dmin, to_lanes(integer_line<Bits>(at, s.offset_bits, s.shared)))));
            else if (s.offset_bits > 0) put_offset(e, i, value, to_lanes(integer_line<0>(at, s.offset_bits, s.shared)));
        }
    }
}

NIBBLE_INLINE void expand_nested(const scale_source& s, std::ptrdiff_t first, std::ptrdiff_t count, const expanded& e) noexcept {
    float absmax[16];
    std::ptrdiff_t stays = 0;
    for (std::ptrdiff_t i = 0; i < count; ++i, --stays) {
        if (stays == 0) stays = nested_line(s, first + i, absmax);
        const lanes_int u = integer_line<8>(s.scales + (first + i) * s.scale_line, 8, s.shared);
        const lanes product = multiply(gather(signed_dynamic_map.values.data(), u), load(absmax));
        const lanes value = add(rounded(product), set(s.tensor_scale));
        put_scale(e, i, value);
        if (s.offset_bits > 0)
            put_offset(e, i, value, to_lanes(integer_line<0>(s.offsets + (first + i) * s.offset_line, s.offset_bits, s.shared)));
    }
}

/// Groups [first, first + count); offsets only where the matrix has some.
NIBBLE_NOINLINE inline void expand_lines(const scale_source& s, std::ptrdiff_t first, std::ptrdiff_t count, float unit, bool fold,
                                         float* scale, float* offset) noexcept {
    const expanded e = {first_lanes(s.live), set(unit), fold, scale, offset};
    switch (static_cast<scale_storage>(s.storage)) {
        case scale_storage::f32: return expand_direct<scale_storage::f32>(s, first, count, e);
        case scale_storage::f16: return expand_direct<scale_storage::f16>(s, first, count, e);
        case scale_storage::bf16: return expand_direct<scale_storage::bf16>(s, first, count, e);
        case scale_storage::e8m0: return expand_direct<scale_storage::e8m0>(s, first, count, e);
        case scale_storage::e4m3: return expand_direct<scale_storage::e4m3>(s, first, count, e);
        case scale_storage::e4m3_f32: return expand_direct<scale_storage::e4m3_f32>(s, first, count, e);
        case scale_storage::double_quantized: return expand_nested(s, first, count, e);
        case scale_storage::two_level:
            if (s.scale_bits == 6) return expand_two_level<6>(s, first, count, e);
            if (s.scale_bits == 8 && s.offset_bits == 0) return expand_two_level<8>(s, first, count, e);
            if (s.scale_bits == 4) return expand_two_level<4>(s, first, count, e);
            return expand_two_level<0>(s, first, count, e);
        default:
            for (std::ptrdiff_t i = 0; i < count; ++i) put_scale(e, i, set(1.0f));
    }
}
