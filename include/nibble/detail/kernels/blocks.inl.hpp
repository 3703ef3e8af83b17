// Blocks of ggml types to cells (no include guard: see digits.inl.hpp).
//
// 16 rows go together, a row to a lane. Four consecutive numbers of a plane (bit_plane) are one field of a word, as they
// are in a cell: so the words of 16 blocks are transposed, and everything after is shifts and masks of whole lines.

inline constexpr int most_numbers = 256;  // of a block

/// The words of bytes [at, at + size) of 16 blocks, a line each. Nothing is read past the blocks.
NIBBLE_INLINE void gather_words(const block_rows& rows, int at, int size, std::uint8_t* lines) noexcept {
    for (int i = 0; i < size; i += 16) {
        const std::uint8_t* from = rows.from + at + i;
        if (at + i + 16 <= rows.block_bytes) {
            transpose_four(from, rows.row_step, lines + 16 * i, 64);
            continue;
        }
        std::uint8_t part[256] = {};
        for (int r = 0; r < 16; ++r) std::memcpy(part + 16 * r, from + r * rows.row_step, static_cast<std::size_t>(size - i < 16 ? size - i : 16));
        transpose_four(part, 16, lines + 16 * i, 64);
    }
}

/// Four fields of P bits, which lie side by side, to bytes.
NIBBLE_INLINE lanes_int spread(lanes_int u, int bits) noexcept {
    const std::int32_t pair = static_cast<std::int32_t>((1u << 2 * bits) - 1);
    u = bit_and(bit_or(u, shift_left(u, 16 - 2 * bits)), pair | pair << 16);
    return bit_and(bit_or(u, shift_left(u, 8 - bits)), static_cast<std::int32_t>(0x01010101u * ((1u << bits) - 1)));
}

/// Quads of numbers, a byte each; from bit `done` on, beside what is there already.
NIBBLE_INLINE void store_quad(std::uint8_t* to, lanes_int numbers, int done) noexcept {
    store_words(to, done == 0 ? numbers : bit_or(load_words(to), shift_left(numbers, done)));
}
NIBBLE_INLINE void read_plane(const block_rows& rows, const bit_plane& p, int count, int done, std::uint8_t* quads) noexcept {
    if (p.bits == 0) return;
    std::uint8_t lines[64 * most_numbers / 4];
    gather_words(rows, p.at, count * p.bits / 8, lines);
    const auto mask = static_cast<std::int32_t>(0x01010101u * ((1u << p.bits) - 1));
    if (p.width == 1) {
        for (int i = 0; i < count; i += 4, quads += 64) {
            const lanes_int word = load_words(lines + i * p.bits / 32 * 64);
            if (p.bits == 8) store_quad(quads, word, done);
            else store_quad(quads, spread(bit_and(shift_right_logical(word, i * p.bits % 32), (1 << 4 * p.bits) - 1), p.bits), done);
        }
        return;
    }
    const std::uint8_t* run = lines;
    for (int i = 0; i < count; run += 16 * p.width)
        for (int shift = 0; shift < 8; shift += p.bits)
            for (int w = 0; w < p.width; w += 4, i += 4, quads += 64)
                store_quad(quads, bit_and(shift_right_logical(load_words(run + 16 * w), shift), mask), done);
}

/// Groups 4 to 7 have their two high bits in the bytes of groups 0 to 3.
NIBBLE_INLINE void read_k4(const block_rows& rows, std::uint8_t* quads) noexcept {
    std::uint8_t lines[256];
    gather_words(rows, 4, 12, lines);
    const lanes_int scale = load_words(lines);
    const lanes_int least = load_words(lines + 64);
    const lanes_int rest = load_words(lines + 128);
    store_words(quads, bit_and(scale, 0x3f3f3f3f));
    store_words(quads + 64, bit_or(bit_and(rest, 0x0f0f0f0f), bit_and(shift_right_logical<2>(scale), 0x30303030)));
    store_words(quads + 128, bit_and(least, 0x3f3f3f3f));
    store_words(quads + 192, bit_or(bit_and(shift_right_logical<4>(rest), 0x0f0f0f0f), bit_and(shift_right_logical<2>(least), 0x30303030)));
}

NIBBLE_NOINLINE inline void read_numbers(const block_rows& rows, const block_numbers& n, std::uint8_t* quads) noexcept {
    if (n.is_k4) return read_k4(rows, quads);
    read_plane(rows, n.low, n.count, 0, quads);
    read_plane(rows, n.high, n.count, n.low.bits, quads);
    if (n.flip == 0) return;
    const lanes_int flip = set_int(static_cast<std::int32_t>(n.flip * 0x01010101u));
    for (int i = 0; i < n.count; i += 4, quads += 64) {
        const lanes_int u = load_words(quads);
        store_words(quads, subtract(bit_or(u, flip), bit_and(u, flip)));  // exclusive or
    }
}

NIBBLE_NOINLINE inline void unpack_numbers(const block_rows& rows, const block_numbers& n, std::uint8_t* lines) noexcept {
    std::uint8_t quads[64 * most_numbers / 4];
    read_numbers(rows, n, quads);
    for (int i = 0; i < n.count; ++i, lines += 16)
        store_codes(lines, bit_and(shift_right_logical(load_words(quads + i / 4 * 64), i % 4 * 8), 0xff), 0, 0, 255);
}

/// Zeros where there are no rows and no columns.
NIBBLE_NOINLINE inline void clear_rest(const block_rows& rows, std::ptrdiff_t left, int count, std::uint8_t* quads) noexcept {
    const lanes_int keep = first_lanes(rows.live);
    for (int i = 0; i < count; i += 4, quads += 64, left -= 4) {
        const std::int32_t columns = left >= 4 ? -1 : left <= 0 ? 0 : static_cast<std::int32_t>((1u << 8 * left) - 1);
        store_words(quads, bit_and(bit_and(load_words(quads), keep), columns));
    }
}

template <int Low, int High>
NIBBLE_NOINLINE inline void unpack_blocks_to(block_rows rows, const block_numbers& codes, std::uint8_t* to, const std::uint8_t* end, bool stream) noexcept {
    alignas(64) std::uint8_t quads[64 * most_numbers / 4];
    for (std::ptrdiff_t left = rows.cols; left > 0; left -= codes.count, rows.from += rows.block_bytes) {
        for (std::ptrdiff_t i = 0; i < 16 * rows.block_bytes; i += 64) prefetch(rows.next + i);
        rows.next += 16 * rows.block_bytes;
        read_numbers(rows, codes, quads);
        if (rows.live < 16 || left < codes.count) clear_rest(rows, left, codes.count, quads);
        for (int i = 0; i < codes.count; i += 32) {
            to = pack_plane<Low, 0>(quads + 16 * i, to, end, stream);
            if constexpr (High != 0) to = pack_plane<High, Low>(quads + 16 * i, to, end, stream);
        }
    }
    if (stream) stream_end();
}

inline void unpack_blocks(const block_rows& rows, const block_numbers& codes, int bits, std::uint8_t* to, std::ptrdiff_t bytes, bool stream) noexcept {
    const std::uint8_t* end = to + bytes;
    switch (bits) {
        case 1: return unpack_blocks_to<1, 0>(rows, codes, to, end, stream);
        case 2: return unpack_blocks_to<2, 0>(rows, codes, to, end, stream);
        case 3: return unpack_blocks_to<2, 1>(rows, codes, to, end, stream);
        case 4: return unpack_blocks_to<4, 0>(rows, codes, to, end, stream);
        case 5: return unpack_blocks_to<4, 1>(rows, codes, to, end, stream);
        case 6: return unpack_blocks_to<4, 2>(rows, codes, to, end, stream);
        default: return unpack_blocks_to<8, 0>(rows, codes, to, end, stream);
    }
}
