// Cells to codes and codes to values (no include guard: see product.inl.hpp). The cells are drawn in qmatrix.hpp.

/// One plane of `P` bits over 32 k: P cells of 64 bytes. codes[k * 16 + r] |= bits << shift.
template <int P, bool First>
NIBBLE_INLINE void unpack_plane(const std::uint8_t* cells, int shift, std::uint8_t* codes) noexcept {
    constexpr int per_cell = 32 / P;
    for (int c = 0; c < P; ++c, cells += 64, codes += 16 * per_cell) {
        for (int f = 0; f < per_cell / 4; ++f) {
            for (int j = 0; j < 4; ++j) {
                std::uint8_t* line = codes + 16 * (4 * f + j);
                for (int r = 0; r < 16; ++r) {
                    const unsigned bits = (static_cast<unsigned>(cells[4 * r + j]) >> (P * f)) & ((1u << P) - 1);
                    if constexpr (First) line[r] = static_cast<std::uint8_t>(bits);
                    else line[r] = static_cast<std::uint8_t>(line[r] | bits << shift);
                }
            }
        }
    }
}

/// The last block of a panel may hold fewer than 32 k: only whole cells are stored.
template <int Low, int High>
NIBBLE_INLINE void unpack_planes(const std::uint8_t* panel, std::ptrdiff_t positions, std::uint8_t* codes) noexcept {
    constexpr int bytes = 64 * (Low + High);
    for (; positions >= 32; positions -= 32, panel += bytes, codes += 16 * 32) {
        unpack_plane<Low, true>(panel, 0, codes);
        if constexpr (High != 0) unpack_plane<High == 0 ? 1 : High, false>(panel + 64 * Low, Low, codes);
    }
    if (positions <= 0) return;
    std::uint8_t block[64 * 8] = {};
    std::uint8_t whole[16 * 32];
    constexpr int per_cell = 32 / Low;
    const std::ptrdiff_t cells = High != 0 ? Low + High : (positions + per_cell - 1) / per_cell;
    std::memcpy(block, panel, static_cast<std::size_t>(64 * cells));
    unpack_plane<Low, true>(block, 0, whole);
    if constexpr (High != 0) unpack_plane<High == 0 ? 1 : High, false>(block + 64 * Low, Low, whole);
    std::memcpy(codes, whole, static_cast<std::size_t>(16 * positions));
}

/// All codes of a panel: codes[position * 16 + row]; 16-bit codes as two bytes each.
NIBBLE_NOINLINE inline void unpack_codes(const std::uint8_t* panel, int bits, std::ptrdiff_t positions, std::uint8_t* codes) noexcept {
    switch (bits) {
        case 1: return unpack_planes<1, 0>(panel, positions, codes);
        case 2: return unpack_planes<2, 0>(panel, positions, codes);
        case 3: return unpack_planes<2, 1>(panel, positions, codes);
        case 4: return unpack_planes<4, 0>(panel, positions, codes);
        case 5: return unpack_planes<4, 1>(panel, positions, codes);
        case 6: return unpack_planes<4, 2>(panel, positions, codes);
        case 8: return unpack_planes<8, 0>(panel, positions, codes);
        default: break;
    }
    for (std::ptrdiff_t p = 0; p < positions; ++p)
        for (int r = 0; r < 16; ++r) std::memcpy(codes + 2 * (16 * p + r), panel + p / 2 * 64 + 4 * r + 2 * (p % 2), 2);
}

NIBBLE_NOINLINE inline void map_codes(const std::uint8_t* codes, std::ptrdiff_t length, const value_map& map, float* values) noexcept {
    if (map.table != nullptr) {
        for (std::ptrdiff_t i = 0; i < 16 * length; ++i) values[i] = map.table[codes[i]];
        return;
    }
    for (std::ptrdiff_t k = 0; k < length; ++k)
        for (int r = 0; r < 16; ++r)
            values[16 * k + r] = static_cast<float>(codes[16 * k + r]) - (map.zero != nullptr ? map.zero[r] : 0.0f);
}
