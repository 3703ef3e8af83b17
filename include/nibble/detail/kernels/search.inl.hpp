// ggml's searches for the scale of a group, 16 groups at a time (no include guard: see digits.inl.hpp).
//
// A lane does to its group what ggml-quants.c does, one IEEE operation after the other, and sums run from the first weight
// to the last: so the bits are the same on every level. Branches become selections; what a lane computes in a branch that
// it did not take may be Inf or NaN, and is dropped.

inline constexpr std::int32_t infinity_bits = 0x7f800000;

/// ggml's nearest_int, clamped: round to nearest even for |t| < 2^22. Beyond that, and for Inf and NaN, it is whatever the
/// bits say, which is what ggml writes for groups so small that 1 / scale overflows.
NIBBLE_INLINE lanes searched_code(lanes t, int lowest, int highest) noexcept {
    const lanes_int bits = as_bits(add(rounded(t), set(12582912.0f)));
    const lanes_int u = subtract(bit_and(bits, 0x007fffff), set_int(0x00400000));
    return to_lanes(smaller(larger(u, set_int(lowest)), set_int(highest)));
}

/// Codes of up to four weights, from line i on: clamped nearest_int((x - low) * inverse) + zero, or 0 unless a < b.
NIBBLE_INLINE void store_searched(const search_lines& s, lanes low, lanes inverse, int lowest, int highest, lanes a, lanes b) noexcept {
    for (std::ptrdiff_t i = 0; i < s.n; i += 4) {
        lanes_int word = zero_int();
        for (std::ptrdiff_t j = i; j < s.n && j < i + 4; ++j) {
            const lanes l = searched_code(multiply(inverse, rounded(subtract(load(s.x + 16 * j), low))), lowest, highest);
            word = bit_or(word, shift_left(subtract(to_int(l), set_int(lowest)), static_cast<int>(8 * (j - i))));
        }
        store_words(s.codes + 4 * i, as_bits(select_less(a, b, as_lanes(word), zero())));
    }
}

template <bool Absolute>
NIBBLE_INLINE lanes weighted_error(lanes w, lanes value, lanes x) noexcept {
    const lanes e = subtract(value, x);
    if constexpr (Absolute) return rounded(multiply(w, as_lanes(bit_and(as_bits(e), 0x7fffffff))));
    else return rounded(multiply(w, rounded(multiply(e, e))));
}

template <bool Absolute>
NIBBLE_NOINLINE inline void search_affine_with(const search_lines& s, const affine_search& p) noexcept {
    alignas(64) float trial[256 * 16];
    const lanes infinity = as_lanes(set_int(infinity_bits));
    lanes low = load(s.x);
    lanes high = low;
    lanes sum_w = load(s.w);
    lanes sum_x = multiply(sum_w, low);
    for (std::ptrdiff_t i = 1; i < s.n; ++i) {
        const lanes x = load(s.x + 16 * i);
        const lanes w = load(s.w + 16 * i);
        low = select_less(x, low, x, low);  // of equal zeros the first
        high = select_less(high, x, x, high);
        sum_w = add(sum_w, w);
        sum_x = add(rounded(sum_x), rounded(multiply(w, x)));
    }
    low = select_less(zero(), low, zero(), low);
    const lanes least = low;
    const lanes nmax = set(static_cast<float>(p.nmax));
    lanes found = divide(nmax, subtract(high, low));  // codes are those of this inverse, from this minimum on
    lanes found_low = low;
    lanes scale = divide(set(1.0f), found);
    lanes best = zero();
    for (std::ptrdiff_t i = 0; i < s.n; ++i) {
        const lanes x = load(s.x + 16 * i);
        const lanes l = searched_code(multiply(found, rounded(subtract(x, low))), 0, p.nmax);
        best = add(best, weighted_error<Absolute>(load(s.w + 16 * i), add(rounded(multiply(scale, l)), low), x));
    }
    for (int k = 0; k <= p.steps; ++k) {
        const float step = p.rdelta * static_cast<float>(k);
        const lanes inverse = divide(set(p.rmin + step + static_cast<float>(p.nmax)), subtract(high, low));
        lanes a = zero();
        lanes b = zero();
        lanes c = zero();
        for (std::ptrdiff_t i = 0; i < s.n; ++i) {
            const lanes x = load(s.x + 16 * i);
            const lanes l = searched_code(multiply(inverse, rounded(subtract(x, low))), 0, p.nmax);
            store(trial + 16 * i, l);
            const lanes wl = rounded(multiply(load(s.w + 16 * i), l));
            a = add(a, wl);
            b = add(b, rounded(multiply(wl, l)));
            c = add(c, rounded(multiply(wl, x)));
        }
        const lanes determinant = subtract(rounded(multiply(sum_w, b)), rounded(multiply(a, a)));
        lanes new_scale = divide(subtract(rounded(multiply(sum_w, c)), rounded(multiply(sum_x, a))), determinant);
        lanes new_low = divide(subtract(rounded(multiply(b, sum_x)), rounded(multiply(a, c))), determinant);
        new_scale = select_less(zero(), new_low, divide(c, b), new_scale);
        new_low = select_less(zero(), new_low, zero(), new_low);
        lanes error = zero();
        for (std::ptrdiff_t i = 0; i < s.n; ++i)
            error = add(error, weighted_error<Absolute>(load(s.w + 16 * i), add(rounded(multiply(new_scale, load(trial + 16 * i))), new_low),
                                                        load(s.x + 16 * i)));
        error = select_less(zero(), determinant, error, infinity);
        found = select_less(error, best, inverse, found);
        found_low = select_less(error, best, low, found_low);
        scale = select_less(error, best, new_scale, scale);
        low = select_less(error, best, new_low, low);  // the next trial divides by high - this minimum, as ggml does
        best = select_less(error, best, error, best);
    }
    store(s.scale, select_less(least, high, scale, zero()));
    store(s.offset, select_less(least, high, low, least));
    store_searched(s, found_low, found, 0, p.nmax, least, high);
}
inline void search_affine(const search_lines& s, const affine_search& p) noexcept {
    if (p.absolute) search_affine_with<true>(s, p);
    else search_affine_with<false>(s, p);
}

NIBBLE_NOINLINE inline void search_symmetric(const search_lines& s, int nmax) noexcept {
    alignas(64) float weighted[256 * 16];
    const lanes infinity = as_lanes(set_int(infinity_bits));
    const float half = static_cast<float>(nmax);
    lanes largest = zero();
    lanes_int amax = zero_int();
    for (std::ptrdiff_t i = 0; i < s.n; ++i) {  // the first of largest magnitude
        const lanes x = load(s.x + 16 * i);
        const lanes_int magnitude = bit_and(as_bits(x), 0x7fffffff);
        largest = select_less(amax, magnitude, x, largest);
        amax = larger(amax, magnitude);
        store(weighted + 16 * i, rounded(multiply(load(s.w + 16 * i), x)));
    }
    lanes scale = zero();
    lanes best = zero();
    lanes found = zero();
    for (int step = -10; step <= 9; ++step) {  // -10 stands for the first, unshifted trial
        const bool first = step == -10;
        if (step == 0) continue;
        const float shift = 0.1f * static_cast<float>(step);
        const lanes inverse = rounded(divide(set(first ? -half : -(half + shift)), largest));
        lanes sum_lx = zero();
        lanes sum_l2 = zero();
        for (std::ptrdiff_t i = 0; i < s.n; ++i) {
            const lanes l = searched_code(multiply(inverse, load(s.x + 16 * i)), -nmax, nmax - 1);
            sum_lx = add(sum_lx, rounded(multiply(load(weighted + 16 * i), l)));
            sum_l2 = add(sum_l2, rounded(multiply(rounded(multiply(load(s.w + 16 * i), l)), l)));
        }
        const lanes new_scale = rounded(divide(sum_lx, sum_l2));
        if (first) {
            const lanes_int none = equal(bit_and(as_bits(sum_l2), 0x7fffffff), 0);
            scale = as_lanes(select(none, zero_int(), as_bits(new_scale)));
            best = rounded(multiply(scale, sum_lx));
            found = inverse;
            continue;
        }
        const lanes square = select_less(zero(), sum_l2, rounded(multiply(sum_lx, sum_lx)), negate(infinity));
        const lanes needed = multiply(best, sum_l2);
        scale = select_less(needed, square, new_scale, scale);
        found = select_less(needed, square, inverse, found);
        best = select_less(needed, square, rounded(multiply(new_scale, sum_lx)), best);
    }
    // Groups below 1e-15 have scale 0 and codes 0.
    const lanes most = as_lanes(amax);
    const lanes tiny = set(1e-15f);
    store(s.scale, select_less(most, tiny, zero(), scale));
    store(s.offset, zero());
    store_searched(s, zero(), found, -nmax, nmax - 1, as_lanes(subtract(as_bits(tiny), set_int(1))), most);
}
