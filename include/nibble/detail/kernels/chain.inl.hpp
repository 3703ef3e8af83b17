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

/// k of a 4-bit cell in natural order: nibbles at bits 0, 8, 16, 24, 4, 12, 20, 28.
template <int C, int K, int... I>
NIBBLE_INLINE void table_step(float_table table, lanes_int first, lanes_int second, const float* x, lanes* t, std::integer_sequence<int, I...>) noexcept {
    constexpr int shift = K % 4 * 8 + K / 4 * 4;
    const lanes v = look_up(table, shift_right_logical<shift>(first));
    const lanes w = look_up(table, shift_right_logical<shift>(second));
    ((t[2 * I] = fma(v, set(x[C * K + I]), t[2 * I]), t[2 * I + 1] = fma(w, set(x[C * K + I]), t[2 * I + 1])), ...);
}
template <int C, int... K>
NIBBLE_INLINE void table_cell(float_table table, const std::uint8_t* cell, std::ptrdiff_t panel_step, const float* x, lanes* t,
                              std::integer_sequence<int, K...>) noexcept {
    const lanes_int first = load_words(cell);
    const lanes_int second = load_words(cell + panel_step);
    (table_step<C, K>(table, first, second, x, t, std::make_integer_sequence<int, C>()), ...);
}
template <int... I>
NIBBLE_INLINE void finish_table(const table_run& w, std::ptrdiff_t line, const lanes* t, const column_tile& c, std::integer_sequence<int, I...>) noexcept {
    const lanes first = load(w.scale + line);
    const lanes second = load(w.scale + line + w.scale_panel);
    float* upper = c.accumulator + c.accumulator_panel;
    ((store(c.accumulator + 16 * I, fma(t[2 * I], multiply(first, set(c.scale[I])), load(c.accumulator + 16 * I))),
      store(upper + 16 * I, fma(t[2 * I + 1], multiply(second, set(c.scale[I])), load(upper + 16 * I)))),
     ...);
}

template <int C>
NIBBLE_NOINLINE inline void table_tile(const table_run& w, column_tile c) noexcept {
    const float_table table = load_table(w.table);
    const std::uint8_t* cell = w.cells;
    const float* x = reinterpret_cast<const float*>(c.streams);
    for (std::ptrdiff_t b = 0; b < w.blocks; ++b) {
        lanes t[static_cast<std::size_t>(2 * C)];
        clear_lanes(t, std::make_integer_sequence<int, 2 * C>());
        for (std::ptrdiff_t i = 0; i < w.cells_of_block; ++i, cell += 64, x += 8 * C)
            table_cell<C>(table, cell, w.panel_step, x, t, std::make_integer_sequence<int, 8>());
        finish_table(w, b * w.scale_step, t, c, std::make_integer_sequence<int, C>());
        c.scale += C;
    }
}

NIBBLE_NOINLINE inline void multiply_table(const table_run& w, const column_tile& c) noexcept {
    if (c.columns == 2) table_tile<2>(w, c);
    else table_tile<1>(w, c);
}
