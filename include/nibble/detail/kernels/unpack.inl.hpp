// Cells to lines of bytes (no include guard: see digits.inl.hpp). The cells are drawn in qmatrix.hpp.
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
    const std::uint8_t* step = panel + first / per_step * cells<Bits>::bytes;
    std::ptrdiff_t within = first % per_step;
    while (quads > 0) {
        if (within == 0 && quads >= per_step) {
            for (std::ptrdiff_t line = 0; line < cells<Bits>::bytes; line += 64) prefetch(step + cells_ahead + line);
            unpack_step<Bits>(step, table, out, all());
            out += 64 * per_step;
            quads -= per_step;
            step += cells<Bits>::bytes;
            continue;
        }
        lanes_int w = quad_of_step<Bits>(step, within, all());
        if (table != nullptr) w = look_up(load_table(table), w);
        store_words(out, w);
        out += 64;
        --quads;
        if (++within == per_step) {
            within = 0;
            step += cells<Bits>::bytes;
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
