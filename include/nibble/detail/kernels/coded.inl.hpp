// Products of floats whose codes are decoded in registers, for few columns: the chains of chain.inl.hpp, two panels at once
// to hide the latency of fma (no include guard: see digits.inl.hpp). A kind of codes has
//
//   k, bytes         of a step
//   step<C>(p, x, t) t[c] = fma(value, x[k][c], t[c]) along the k of a step, for C columns

struct nibble_codes {
    static constexpr int k = 8;
    static constexpr int bytes = 64;
    float_table table;
    NIBBLE_INLINE explicit nibble_codes(const decoder& d) noexcept : table(load_table(d.table)) {}

    template <int C>
    NIBBLE_INLINE void step(const std::uint8_t* p, const float* x, lanes* t) const noexcept {
        const lanes_int words = load_words(p);
        multiply_quad<C>(table, words, x, t);
        multiply_quad<C>(table, shift_right_logical<4>(words), x + 4 * C, t);
    }
};

/// Small floating point without special codes.
template <int Bits>
struct minifloat_codes {
    static constexpr int k = 4 * cells<Bits>::quads;
    static constexpr int bytes = cells<Bits>::bytes;
    minifloat_fields values;
    NIBBLE_INLINE explicit minifloat_codes(const decoder& d) noexcept : values(load_minifloat(d)) {}

    template <int C>
    NIBBLE_INLINE void step(const std::uint8_t* p, const float* x, lanes* t) const noexcept {
        quads<C>(p, x, t, std::make_integer_sequence<int, cells<Bits>::quads>());
    }

private:
    template <int C, int... I>
    NIBBLE_INLINE void quads(const std::uint8_t* p, const float* x, lanes* t, std::integer_sequence<int, I...>) const noexcept {
        (multiply_quad<C>(values, cells<Bits>::template get<I>(p), x + 4 * C * I, t), ...);
    }
};

/// 16-bit floating point: two k to a cell.
template <bool Fp16>
struct half_codes {
    static constexpr int k = 2;
    static constexpr int bytes = 64;
    NIBBLE_INLINE explicit half_codes(const decoder&) noexcept {}

    template <int C>
    NIBBLE_INLINE void step(const std::uint8_t* p, const float* x, lanes* t) const noexcept {
        const lanes_int words = load_words(p);
        value_step(Fp16 ? from_fp16(bit_and(words, 0xffff)) : as_lanes(shift_left<16>(words)), x, t, std::make_integer_sequence<int, C>());
        value_step(Fp16 ? from_fp16(shift_right_logical<16>(words)) : as_lanes(bit_and(words, -65536)), x + C, t, std::make_integer_sequence<int, C>());
    }
};

/// acc = fma(t, RN(s_w * s_a), acc) of one panel.
template <int... I>
NIBBLE_INLINE void finish_coded(const float* scale, const lanes* t, const column_tile& c, float* accumulator, std::integer_sequence<int, I...>) noexcept {
    const lanes s = load(scale);
    (store(accumulator + 16 * I, fma(t[I], multiply(s, set(c.scale[I])), load(accumulator + 16 * I))), ...);
}

template <class Codes, int C>
NIBBLE_NOINLINE inline void coded_tile(const coded_run& w, column_tile c) noexcept {
    using columns = std::make_integer_sequence<int, C>;
    const Codes codes(*w.rule);
    const std::uint8_t* cell = w.cells;
    const float* x = reinterpret_cast<const float*>(c.streams);
    for (std::ptrdiff_t b = 0; b < w.blocks; ++b) {
        lanes first[static_cast<std::size_t>(C)];
        lanes second[static_cast<std::size_t>(C)];
        clear_lanes(first, columns());
        clear_lanes(second, columns());
        for (std::ptrdiff_t i = 0; i < w.length; i += Codes::k, cell += Codes::bytes, x += Codes::k * C) {
            if constexpr (Codes::k > 2) {  // 16-bit codes compute so little that hardware keeps up
                for (std::ptrdiff_t line = 0; line < Codes::bytes; line += 64) {
                    prefetch(cell + w.ahead + line);
                    prefetch(cell + w.panel_step + w.ahead + line);
                }
            }
            codes.template step<C>(cell, x, first);
            codes.template step<C>(cell + w.panel_step, x, second);
        }
        const float* scale = w.scale + b * w.scale_step;
        finish_coded(scale, first, c, c.accumulator, columns());
        finish_coded(scale + w.scale_panel, second, c, c.accumulator + c.accumulator_panel, columns());
        c.scale += C;
    }
}

template <class Codes>
NIBBLE_INLINE void choose_coded_columns(const coded_run& w, const column_tile& c) noexcept {
    if (c.columns == 2) coded_tile<Codes, 2>(w, c);
    else coded_tile<Codes, 1>(w, c);
}

NIBBLE_NOINLINE inline void multiply_coded(const coded_run& w, const column_tile& c) noexcept {
    switch (w.rule->bits) {
        case 4: return choose_coded_columns<nibble_codes>(w, c);
        case 6: return choose_coded_columns<minifloat_codes<6>>(w, c);
        case 8: return choose_coded_columns<minifloat_codes<8>>(w, c);
        default: return w.rule->is_fp16 ? choose_coded_columns<half_codes<true>>(w, c) : choose_coded_columns<half_codes<false>>(w, c);
    }
}
