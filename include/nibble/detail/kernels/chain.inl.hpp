// Products of floats, written once against the lanes of a level (no include guard: see digits.inl.hpp).
//
//   chain    t = +0; t = fma(value, x, t) along k;  acc = fma(t, RN(s_w * s_a), acc)      scales given
//   strict   acc = fma(weight, x, acc) along k                                            without scales
//
// Activations of a tile of C columns are packed [k][C]: one sweep is contiguous.

template <int... I>
NIBBLE_INLINE void value_step(lanes v, const float* x, lanes* t, std::integer_sequence<int, I...>) noexcept {
    ((t[I] = fma(v, set(x[I]), t[I])), ...);
}
template <int... I>
NIBBLE_INLINE void clear_lanes(lanes* t, std::integer_sequence<int, I...>) noexcept {
    ((t[I] = zero()), ...);
}
template <int... I>
NIBBLE_INLINE void load_lanes(lanes* t, const float* from, std::integer_sequence<int, I...>) noexcept {
    ((t[I] = load(from + 16 * I)), ...);
}
template <int... I>
NIBBLE_INLINE void store_lanes(const lanes* t, float* to, std::integer_sequence<int, I...>) noexcept {
    (store(to + 16 * I, t[I]), ...);
}
template <int... I>
NIBBLE_INLINE void finish_values(const lanes* t, lanes scale, const column_tile& c, std::integer_sequence<int, I...>) noexcept {
    (store(c.accumulator + 16 * I, fma(t[I], multiply(scale, set(c.scale[I])), load(c.accumulator + 16 * I))), ...);
}

template <int C>
NIBBLE_NOINLINE inline void value_tile(const value_run& w, column_tile c) noexcept {
    using all = std::make_integer_sequence<int, C>;
    lanes t[static_cast<std::size_t>(C)];
    load_lanes(t, c.accumulator, all());
    const float* streams = reinterpret_cast<const float*>(c.streams);
    for (std::ptrdiff_t b = 0; b < w.blocks; ++b) {
        const float* values = w.values + 16 * b * w.block_step;
        const float* x = streams + C * b * w.block_step;
        if (w.scale != nullptr) clear_lanes(t, all());
        for (std::ptrdiff_t k = 0; k < w.length; ++k, values += 16, x += C) value_step(load(values), x, t, all());
        if (w.scale != nullptr) finish_values(t, load(w.scale + b * w.scale_step), c, all());
        c.scale += C;
    }
    if (w.scale == nullptr) store_lanes(t, c.accumulator, all());
}

template <int C>
NIBBLE_INLINE void choose_value_columns(const value_run& w, const column_tile& c) noexcept {
    if constexpr (C == 1) {
        value_tile<1>(w, c);
    } else {
        if (c.columns == C) value_tile<C>(w, c);
        else choose_value_columns<next_tile(C)>(w, c);
    }
}

NIBBLE_NOINLINE inline void multiply_values(const value_run& w, const column_tile& c) noexcept {
    choose_value_columns<value_columns>(w, c);
}
