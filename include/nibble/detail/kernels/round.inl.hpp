// Activations to integers; lanes are consecutive k of one column (no include guard: see digits.inl.hpp).

NIBBLE_NOINLINE inline std::uint32_t largest_magnitude_bits(const float* x, std::ptrdiff_t n) noexcept {
    lanes_int largest = zero_int();
    std::ptrdiff_t i = 0;
    for (; i + 16 <= n; i += 16) largest = larger(largest, bit_and(as_bits(load(x + i)), 0x7fffffff));
    if (i < n) {
        float rest[16] = {};
        std::memcpy(rest, x + i, static_cast<std::size_t>(n - i) * 4);
        largest = larger(largest, bit_and(as_bits(load(rest)), 0x7fffffff));
    }
    std::int32_t lane[16];
    store_words(lane, largest);
    std::int32_t all = 0;
    for (const std::int32_t u : lane) all = u > all ? u : all;
    return static_cast<std::uint32_t>(all);
}

struct round_sums {
    lanes_int total, absolute, largest, zeros;
};

NIBBLE_INLINE lanes_int round_lanes(lanes x, lanes inv, lanes low, lanes high, round_sums& s) noexcept {
    const lanes_int q = nearest_int(smaller(larger(multiply(x, inv), low), high));
    const lanes_int a = absolute(q);
    s.total = add(s.total, q);
    s.absolute = add(s.absolute, a);
    s.largest = larger(s.largest, a);
    s.zeros = add(s.zeros, equal(shift_left<1>(as_bits(x)), 0));
    return q;
}

NIBBLE_NOINLINE inline rounded_stats round_values(const float* x, std::ptrdiff_t n, float inv, float limit, std::int32_t* q) noexcept {
    round_sums s = {zero_int(), zero_int(), zero_int(), zero_int()};
    const lanes factor = set(inv);
    const lanes low = set(-limit);
    const lanes high = set(limit);
    std::ptrdiff_t i = 0;
    for (; i + 16 <= n; i += 16) store_words(q + i, round_lanes(load(x + i), factor, low, high, s));
    if (i < n) {
        float rest[16] = {};
        std::int32_t out[16];
        std::memcpy(rest, x + i, static_cast<std::size_t>(n - i) * 4);
        store_words(out, round_lanes(load(rest), factor, low, high, s));
        std::memcpy(q + i, out, static_cast<std::size_t>(n - i) * 4);
    }
    std::int32_t lane[4][16];
    store_words(lane[0], s.total);
    store_words(lane[1], s.absolute);
    store_words(lane[2], s.largest);
    store_words(lane[3], s.zeros);
    rounded_stats r = {0, 0, 0, 0};
    std::int32_t zeros = 0;
    for (int j = 0; j < 16; ++j) {
        r.total += lane[0][j];
        r.absolute += lane[1][j];
        r.largest = lane[2][j] > r.largest ? lane[2][j] : r.largest;
        zeros -= lane[3][j];
    }
    const std::ptrdiff_t padded = (n + 15) / 16 * 16;
    r.nonzero = static_cast<std::int32_t>(padded - zeros);
    return r;
}
