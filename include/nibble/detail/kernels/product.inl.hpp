// The products, written once against the lanes of a level (no include guard: detail/isa/foreach_level.hpp includes this
// file once per level, inside the level's namespace and region).
//
// One formula, the same bits everywhere (docs/numerics.md), one chain per output along k:
//
//   digits   acc = fma(RN(D), RN(s_w * s_a), acc)   D = sum of value * q over a sub-block of at most 256, exact
//   chain    t = +0; t = fma(value, x, t) along k;  acc = fma(t, RN(s_w * s_a), acc)
//   strict   acc = fma(weight, x, acc) along k
//   minimum  acc = fma(m, sum, acc) before the term of the sub-block
//
// digits: q = d0 + 256 d1 + 65536 d2 with balanced digits |d| <= 128, and |value| <= 255. The sums over one digit stay
// below 255 * 128 * 256 < 2^23, so float holds them exactly in any order. Then e = d0 + 256 d1 fits int32
// (|e| <= 257 * 8355840 < 2^31), d2 + (e >> 16) fits 24 bits, and one fma rounds once: fma(d2 + (e >> 16), 65536, e & 0xffff).

/// Sums of value * stream over a sub-block for T streams of stride `length`; exact, so fma or not does not matter.
template <int T>
NIBBLE_INLINE void dot(const float* values, std::ptrdiff_t length, const float* streams, lanes* sums) noexcept {
    lanes d[static_cast<std::size_t>(T)];
    for (int t = 0; t < T; ++t) d[t] = zero();
    for (std::ptrdiff_t k = 0; k < length; ++k) {
        const lanes v = load(values + 16 * k);
        for (int t = 0; t < T; ++t) d[t] = multiply_add_exact(v, streams[t * length + k], d[t]);
    }
    for (int t = 0; t < T; ++t) sums[t] = d[t];
}

template <int T>
NIBBLE_INLINE void chained(const float* values, std::ptrdiff_t length, const float* streams, lanes* sums) noexcept {
    lanes d[static_cast<std::size_t>(T)];
    for (int t = 0; t < T; ++t) d[t] = sums[t];
    for (std::ptrdiff_t k = 0; k < length; ++k) {
        const lanes v = load(values + 16 * k);
        for (int t = 0; t < T; ++t) d[t] = fma(v, set(streams[t * length + k]), d[t]);
    }
    for (int t = 0; t < T; ++t) sums[t] = d[t];
}

NIBBLE_INLINE void finish_block(const block_product& b, std::ptrdiff_t column, lanes sum) noexcept {
    float* at = b.accumulator + 16 * column;
    lanes acc = load(at);
    if (b.minimum != nullptr) acc = fma(load(b.minimum), set(b.activation_sum[column]), acc);
    acc = fma(sum, multiply(load(b.scale), set(b.activation_scale[column])), acc);
    store(at, acc);
}

template <int P>
NIBBLE_INLINE lanes join_digits(const lanes* d) noexcept {
    if constexpr (P == 1) return d[0];
    else if constexpr (P == 2) return join_two(d[0], d[1]);
    else return join_three(d[0], d[1], d[2]);
}

template <int P>
NIBBLE_NOINLINE inline void multiply_digits(const block_product& b) noexcept {
    constexpr int C = max_streams / P;
    lanes d[static_cast<std::size_t>(C * P)];
    std::ptrdiff_t j = 0;
    for (; j + C <= b.columns; j += C) {
        dot<C * P>(b.values, b.length, b.streams + j * P * b.length, d);
        for (int c = 0; c < C; ++c) finish_block(b, j + c, join_digits<P>(d + c * P));
    }
    for (; j < b.columns; ++j) {
        dot<P>(b.values, b.length, b.streams + j * P * b.length, d);
        finish_block(b, j, join_digits<P>(d));
    }
}

NIBBLE_NOINLINE inline void multiply_chain(const block_product& b) noexcept {
    lanes t[max_streams];
    std::ptrdiff_t j = 0;
    for (; j + max_streams <= b.columns; j += max_streams) {
        for (int c = 0; c < max_streams; ++c) t[c] = zero();
        chained<max_streams>(b.values, b.length, b.streams + j * b.length, t);
        for (int c = 0; c < max_streams; ++c) finish_block(b, j + c, t[c]);
    }
    for (; j < b.columns; ++j) {
        t[0] = zero();
        chained<1>(b.values, b.length, b.streams + j * b.length, t);
        finish_block(b, j, t[0]);
    }
}

NIBBLE_NOINLINE inline void multiply_strict(const block_product& b) noexcept {
    lanes t[max_streams];
    std::ptrdiff_t j = 0;
    for (; j + max_streams <= b.columns; j += max_streams) {
        for (int c = 0; c < max_streams; ++c) t[c] = load(b.accumulator + 16 * (j + c));
        chained<max_streams>(b.values, b.length, b.streams + j * b.length, t);
        for (int c = 0; c < max_streams; ++c) store(b.accumulator + 16 * (j + c), t[c]);
    }
    for (; j < b.columns; ++j) {
        t[0] = load(b.accumulator + 16 * j);
        chained<1>(b.values, b.length, b.streams + j * b.length, t);
        store(b.accumulator + 16 * j, t[0]);
    }
}
