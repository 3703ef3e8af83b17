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

template <int K, int V, int... P>
NIBBLE_INLINE void look_up_panels(float_table table, const lanes_int* words, lanes* values, std::integer_sequence<int, P...>) noexcept {
    ((values[P] = look_up_nibble<K>(table, words[P])), ...);
}
template <int C, int V, int K, int... I>
NIBBLE_INLINE void table_step(float_table table, const lanes_int* words, const float* x, lanes* t, std::integer_sequence<int, I...>) noexcept {
    lanes values[static_cast<std::size_t>(V)];
    look_up_panels<K, V>(table, words, values, std::make_integer_sequence<int, V>());
    ((t[I] = fma(values[I % V], set(x[C * K + I / V]), t[I])), ...);
}
template <int C, int V, int... K>
NIBBLE_INLINE void table_cell(float_table table, const lanes_int* words, const float* x, lanes* t, std::integer_sequence<int, K...>) noexcept {
    (table_step<C, V, K>(table, words, x, t, std::make_integer_sequence<int, C * V>()), ...);
}
template <int... P>
NIBBLE_INLINE void load_cells(const std::uint8_t* cell, std::ptrdiff_t panel_step, lanes_int* words, std::integer_sequence<int, P...>) noexcept {
    ((words[P] = load_words(cell + P * panel_step)), ...);
}
template <int C, int V, int P, int... I>
NIBBLE_INLINE void finish_table_panel(const float* scale, const lanes* t, const column_tile& c, float* accumulator, std::integer_sequence<int, I...>) noexcept {
    const lanes s = load(scale);
    (store(accumulator + 16 * I, fma(t[I * V + P], multiply(s, set(c.scale[I])), load(accumulator + 16 * I))), ...);
}
template <int C, int V, int... P>
NIBBLE_INLINE void finish_table(const table_run& w, std::ptrdiff_t line, const lanes* t, const column_tile& c, std::integer_sequence<int, P...>) noexcept {
    (finish_table_panel<C, V, P>(w.scale + line + P * w.scale_panel, t, c, c.accumulator + P * c.accumulator_panel,
                                 std::make_integer_sequence<int, C>()),
     ...);
}

/// C columns of V panels: accumulator (column c, panel v) is t[c * V + v].
template <int C, int V>
NIBBLE_NOINLINE inline void table_tile(const table_run& w, column_tile c) noexcept {
    using panels = std::make_integer_sequence<int, V>;
    const float_table table = load_table(w.table);
    const std::uint8_t* cell = w.cells;
    const float* x = reinterpret_cast<const float*>(c.streams);
    for (std::ptrdiff_t b = 0; b < w.blocks; ++b) {
        lanes t[static_cast<std::size_t>(C * V)];
        clear_lanes(t, std::make_integer_sequence<int, C * V>());
        for (std::ptrdiff_t i = 0; i < w.cells_of_block; ++i, cell += 64, x += 8 * C) {
            lanes_int words[static_cast<std::size_t>(V)];
            load_cells(cell, w.panel_step, words, panels());
            table_cell<C, V>(table, words, x, t, std::make_integer_sequence<int, 8>());
        }
        finish_table<C, V>(w, b * w.scale_step, t, c, panels());
        c.scale += C;
    }
}

template <int C>
NIBBLE_INLINE void table_panels_of(table_run w, column_tile c) noexcept {
    for (int v = 0; v < table_panels; v += table_tile_panels) {
        table_tile<C, table_tile_panels>(w, c);
        w.cells += table_tile_panels * w.panel_step;
        w.scale += table_tile_panels * w.scale_panel;
        c.accumulator += table_tile_panels * c.accumulator_panel;
    }
}

NIBBLE_NOINLINE inline void multiply_table(const table_run& w, const column_tile& c) noexcept {
    if (c.columns == 2) table_panels_of<2>(w, c);
    else table_panels_of<1>(w, c);
}
