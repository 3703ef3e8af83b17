// Stored scales and offsets to lines of floats: the only code that knows how scales are stored (scale.hpp says what they
// mean). No include guard: see digits.inl.hpp.

/// A line of integers of at most 8 bits.
NIBBLE_INLINE lanes_int integer_line(const std::uint8_t* p, int bits, bool shared) noexcept {
    if (shared) return set_int(p[0]);
    lanes_int u = zero_int();
    int done = 0;
    if ((bits & 8) != 0) {
        u = load_u8(p);
        p += 16;
        done = 8;
    }
    if ((bits & 4) != 0) {
        u = bit_or(u, shift_left_by(lane_plane<4>(p), done));
        p += 8;
        done += 4;
    }
    if ((bits & 2) != 0) {
        u = bit_or(u, shift_left_by(lane_plane<2>(p), done));
        p += 4;
        done += 2;
    }
    if ((bits & 1) != 0) u = bit_or(u, shift_left_by(lane_plane<1>(p), done));
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

/// A line of the schemes that store floats.
NIBBLE_INLINE lanes float_line(const std::uint8_t* p, scale_storage storage, bool shared) noexcept {
    std::uint8_t copies[64];
    if (shared) {
        const int bytes = storage == scale_storage::f32 ? 4 : storage == scale_storage::f16 || storage == scale_storage::bf16 ? 2 : 1;
        for (int r = 0; r < 16; ++r) std::memcpy(copies + r * bytes, p, static_cast<std::size_t>(bytes));
        p = copies;
    }
    switch (storage) {
        case scale_storage::f32: return as_lanes(load_words(p));
        case scale_storage::f16: return load_half(p);
        case scale_storage::bf16: return as_lanes(shift_left<16>(load_u16(p)));
        case scale_storage::e8m0: return e8m0_lanes(load_u8(p));
        case scale_storage::e4m3:
        case scale_storage::e4m3_f32: return e4m3_lanes(load_u8(p));
        default: return set(1.0f);
    }
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

NIBBLE_NOINLINE inline void expand_lines(const scale_source& s, std::ptrdiff_t first, std::ptrdiff_t count, float unit, bool fold,
                                         float* scale, float* offset) noexcept {
    const auto storage = static_cast<scale_storage>(s.storage);
    const auto kind = static_cast<offset_kind>(s.offset);
    const lanes_int live = first_lanes(s.live);
    const std::uint8_t* scale_line = s.scales + first * s.scale_line;
    const std::uint8_t* offset_line = s.offsets + first * s.offset_line;
    float absmax[16];
    std::ptrdiff_t stays = 0;
    lanes d = set(1.0f);
    lanes dmin = set(0.0f);
    std::ptrdiff_t super = -1;
    for (std::ptrdiff_t g = first; g < first + count; ++g, scale_line += s.scale_line, offset_line += s.offset_line, scale += 16, offset += 16) {
        lanes value = set(1.0f);
        lanes start = set(0.0f);
        if (storage == scale_storage::two_level) {
            if (g / s.span != super) {
                super = g / s.span;
                const std::uint8_t* line = s.supers + super * s.super_line;
                d = load_half(line);
                if (kind == offset_kind::minimum) dmin = load_half(line + 32);
            }
            lanes_int u = integer_line(scale_line, s.scale_bits, s.shared);
            if (s.is_signed) u = subtract(u, set_int(1 << (s.scale_bits - 1)));
            value = multiply(d, to_lanes(u));
            if (kind == offset_kind::minimum)
                start = negate(multiply(dmin, to_lanes(integer_line(offset_line, s.offset_bits, s.shared))));
        } else if (storage == scale_storage::double_quantized) {
            if (stays == 0) stays = nested_line(s, g, absmax);
            --stays;
            const lanes product = multiply(look_up(signed_dynamic_map.values.data(), 256, integer_line(scale_line, 8, s.shared)), load(absmax));
            value = plus(product, set(s.tensor_scale));
        } else if (storage != scale_storage::none) {
            value = float_line(scale_line, storage, s.shared);
            if (storage == scale_storage::e4m3_f32) value = multiply(value, set(s.tensor_scale));
            if (kind == offset_kind::minimum || kind == offset_kind::float_zero) start = float_line(offset_line, storage, s.shared);
        }
        if (kind == offset_kind::zero_point)
            start = to_lanes(integer_line(offset_line, s.offset_bits, s.shared));
        if (fold) start = negate(multiply(value, start));
        store(scale, as_lanes(bit_and(as_bits(multiply(value, set(unit))), live)));
        store(offset, as_lanes(bit_and(as_bits(start), live)));
    }
}
