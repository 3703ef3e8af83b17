// Cells to lines of floats (no include guard: see product.inl.hpp). The cells are drawn in qmatrix.hpp.
//
// A cell is 16 words of 32 bits, one a row. The codes of k = 4q + j of a plane of P bits are bits P * f + 8 * j of every
// word of one cell, f = q mod (8 / P): so a line of codes is a shift and a mask of 16 words, and rows stay in lanes.

struct plane_of_cells {
    const std::uint8_t* cells;
    int bits;
};

NIBBLE_INLINE lanes_int plane_words(const plane_of_cells& p, std::ptrdiff_t index_of_quad, int& shift) noexcept {
    const int quads = 8 / p.bits;  // of one cell
    shift = p.bits * static_cast<int>(index_of_quad % quads);
    return load_words(p.cells + index_of_quad / quads * 64);
}

/// Low (and, with High > 0, high) plane bits; a step is 32 k where there are two planes.
template <int Low, int High>
NIBBLE_INLINE void read_values(const std::uint8_t* panel, std::ptrdiff_t first, std::ptrdiff_t quads, const value_map& map, float* values) noexcept {
    constexpr int step = High == 0 ? 8 / Low : 8;  // quads between two blocks of cells
    constexpr std::ptrdiff_t bytes = High == 0 ? 64 : 64 * (Low + High);
    for (std::ptrdiff_t q = first; q < first + quads; ++q, values += 64) {
        const std::uint8_t* block = panel + q / step * bytes;
        const std::ptrdiff_t within = q % step;
        int low_shift = 0;
        int high_shift = 0;
        const lanes_int low = plane_words({block, Low}, within, low_shift);
        const lanes_int high = High == 0 ? low : plane_words({block + 64 * Low, High == 0 ? 8 : High}, within, high_shift);
        for (int j = 0; j < 4; ++j) {
            lanes_int code = field(low, low_shift + 8 * j, (1 << Low) - 1);
            if constexpr (High != 0) code = combine(code, field(high, high_shift + 8 * j, (1 << High) - 1), Low);
            if (map.table != nullptr) {
                look_up(map.table, 1 << (Low + High), code, values + 16 * j);
            } else {
                lanes v = to_lanes(code);
                if (map.zero != nullptr) v = subtract(v, load(map.zero));
                store(values + 16 * j, v);
            }
        }
    }
}

/// Lines of values of the positions 4 * first .. 4 * (first + quads) - 1 of a panel, for codes of at most 8 bits.
NIBBLE_NOINLINE inline void read_quads(const std::uint8_t* panel, int bits, std::ptrdiff_t first, std::ptrdiff_t quads,
                                       const value_map& map, float* values) noexcept {
    switch (bits) {
        case 1: return read_values<1, 0>(panel, first, quads, map, values);
        case 2: return read_values<2, 0>(panel, first, quads, map, values);
        case 3: return read_values<2, 1>(panel, first, quads, map, values);
        case 4: return read_values<4, 0>(panel, first, quads, map, values);
        case 5: return read_values<4, 1>(panel, first, quads, map, values);
        case 6: return read_values<4, 2>(panel, first, quads, map, values);
        default: return read_values<8, 0>(panel, first, quads, map, values);
    }
}
