// Cells to lines of bytes or floats (no include guard: see digits.inl.hpp). The cells are drawn in qmatrix.hpp.
//
// A cell is 16 words of 32 bits, one a row. The codes of k = 4q + j of a plane of P bits are bits P * f + 8 * j of every
// word of one cell, f = q mod (8 / P): so a k-quad of codes is a shift and a mask of 16 words, and rows stay in lanes.

template <int Bits, int... I>
NIBBLE_INLINE void unpack_step(const std::uint8_t* step, const std::uint8_t* table, std::uint8_t* out, std::integer_sequence<int, I...>) noexcept {
    if (table != nullptr) {
        const byte_table map = load_table(table);
        (store_words(out + 64 * I, look_up(map, cells<Bits>::template get<I>(step))), ...);
    } else {
        (store_words(out + 64 * I, cells<Bits>::template get<I>(step)), ...);
    }
}

/// One quad of a step, where a sub-block begins or ends within a step.
template <int Bits, int... I>
NIBBLE_INLINE lanes_int quad_of_step(const std::uint8_t* step, std::ptrdiff_t which, std::integer_sequence<int, I...>) noexcept {
    lanes_int w = zero_int();
    (static_cast<void>(which == I ? (w = cells<Bits>::template get<I>(step), 0) : 0), ...);
    return w;
}

template <int Bits>
NIBBLE_NOINLINE inline void unpack_cells(const std::uint8_t* panel, std::ptrdiff_t first, std::ptrdiff_t quads, const std::uint8_t* table,
                                         std::uint8_t* out) noexcept {
    constexpr std::ptrdiff_t per_step = cells<Bits>::quads;
    using all = std::make_integer_sequence<int, cells<Bits>::quads>;
    std::ptrdiff_t q = first;
    const std::ptrdiff_t end = first + quads;
    while (q < end) {
        const std::uint8_t* step = panel + q / per_step * cells<Bits>::bytes;
        if (q % per_step == 0 && end - q >= per_step) {
            unpack_step<Bits>(step, table, out, all());
            out += 64 * per_step;
            q += per_step;
        } else {
            lanes_int w = quad_of_step<Bits>(step, q % per_step, all());
            if (table != nullptr) w = look_up(load_table(table), w);
            store_words(out, w);
            out += 64;
            ++q;
        }
    }
}

NIBBLE_NOINLINE inline void unpack_quads(const std::uint8_t* panel, int bits, std::ptrdiff_t first, std::ptrdiff_t quads,
                                         const std::uint8_t* table, std::uint8_t* out) noexcept {
    switch (bits) {
        case 1: return unpack_cells<1>(panel, first, quads, table, out);
        case 2: return unpack_cells<2>(panel, first, quads, table, out);
        case 3: return unpack_cells<3>(panel, first, quads, table, out);
        case 4: return unpack_cells<4>(panel, first, quads, table, out);
        case 5: return unpack_cells<5>(panel, first, quads, table, out);
        case 6: return unpack_cells<6>(panel, first, quads, table, out);
        default: return unpack_cells<8>(panel, first, quads, table, out);
    }
}

template <int... J>
NIBBLE_INLINE void read_quad(lanes_int words, const float* table, int size, float* values, std::integer_sequence<int, J...>) noexcept {
    if (table != nullptr) (store(values + 16 * J, look_up(table, size, bit_and(shift_right_logical<8 * J>(words), 0xff))), ...);
    else (store(values + 16 * J, to_lanes(bit_and(shift_right_logical<8 * J>(words), 0xff))), ...);
}

/// Lines of floats of the positions 4 * first .. 4 * (first + quads) - 1 of a panel, for codes of at most 8 bits.
NIBBLE_NOINLINE inline void read_quads(const std::uint8_t* panel, int bits, std::ptrdiff_t first, std::ptrdiff_t quads,
                                       const float* table, float* values) noexcept {
    constexpr std::ptrdiff_t most = 32;
    std::uint8_t bytes[64 * most];
    for (std::ptrdiff_t done = 0; done < quads; done += most) {
        const std::ptrdiff_t n = quads - done < most ? quads - done : most;
        unpack_quads(panel, bits, first + done, n, nullptr, bytes);
        for (std::ptrdiff_t q = 0; q < n; ++q)
            read_quad(load_words(bytes + 64 * q), table, 1 << bits, values + 64 * (done + q), std::make_integer_sequence<int, 4>());
    }
}
