// Products on exact integers, written once against the integer dot of a level (no include guard: detail/isa/foreach_level.hpp
// includes this file once per level, inside the level's namespace and region).
//
//   acc = fma(m, sum, acc)                       with a minimum
//   acc = fma(RN(D), RN(s_w * s_a), acc)         D = sum of (u - z) q over a sub-block of at most 256, exact
//
// q = e + 65536 h with |e| <= 32896 and |h| <= 128: two signed base-256 digits, or one of 16 bits, and the third. With
// codes u and zero points z of at most 255, |sum of (u - z) e| <= 255 * 32896 * 256 < 2^31, |sum of (u - z) h| < 2^23, and
// RN(D) = fma(h' , 65536, e & 0xffff) with h' = h + (e >> 16) of at most 24 bits: both conversions are exact and the fma
// rounds once. Sums of u alone obey the same bounds, so nothing wraps.
//
// Integer products (one digit) end a sub-block another way: D is added to lines of int32, exact as long as the caller has
// bounded K.
//
// A tile holds C columns: T accumulators of 16 lanes, folded over an index sequence (GCC 12 keeps an array that nested
// loops fill in memory). A kind says how a level multiplies codes with digits:
//
//   streams(P)          accumulators of a column: one a digit, or one for the two lower digits
//   name                of the instruction, for explain()
//   code_offset         what step() subtracts from codes: z is less by as much. Sums of u - 128 obey the bounds above, too
//   chunk               dwords of activations that one accumulator takes for a k-quad
//   step<T>(d, w, a)    d[t] += sum over the quad of code * digit, for T streams
//   widen<T>(d)         where 16-bit sums have to be flushed: to 32 bits

/// Cells of Bits-bit codes: `quads` k-quads in `bytes` bytes; get<I> is quad I, one code a byte.
template <int Bits>
struct cells {
    static constexpr bool two_planes = Bits == 3 || Bits == 5 || Bits == 6;
    static constexpr int low = Bits == 3 ? 2 : two_planes ? 4 : Bits;
    static constexpr int high = Bits - low;
    static constexpr int quads = two_planes ? 8 : 8 / Bits;
    static constexpr std::ptrdiff_t bytes = two_planes ? 64 * Bits : 64;

    template <int I>
    NIBBLE_INLINE static lanes_int get(const std::uint8_t* p) noexcept {
        lanes_int code = plane<low, I>(p);
        if constexpr (two_planes) code = bit_or(code, shift_left<low>(plane<high, I>(p + 64 * low)));
        return code;
    }

private:
    template <int P, int I>
    NIBBLE_INLINE static lanes_int plane(const std::uint8_t* p) noexcept {
        if constexpr (P == 8) return load_words(p);
        else return field<I % (8 / P) * P, 0x01010101 * ((1 << P) - 1)>(p + I / (8 / P) * 64);
    }
};

inline constexpr int V = tile_panels;  // accumulator (column c, stream s, panel v) is d[(c * streams + s) * V + v]

template <class Source, int I, int... P>
NIBBLE_INLINE void load_codes(const std::uint8_t* codes, std::ptrdiff_t panel_step, lanes_int* w, std::integer_sequence<int, P...>) noexcept {
    ((w[P] = Source::template get<I>(codes + P * panel_step)), ...);
}

template <class Kind, int T, class Source, int I>
NIBBLE_INLINE void dot_quad(const std::uint8_t* codes, std::ptrdiff_t panel_step, const std::uint8_t* streams, lanes_int* d) noexcept {
    lanes_int w[static_cast<std::size_t>(V)];
    load_codes<Source, I>(codes, panel_step, w, std::make_integer_sequence<int, V>());
    Kind::template step<T>(d, w, streams + I * (4 * Kind::chunk * T));
}

template <class Kind, int T, class Source, int... I>
NIBBLE_INLINE void dot_cell(const std::uint8_t* codes, std::ptrdiff_t panel_step, const std::uint8_t* streams, lanes_int* d,
                            std::integer_sequence<int, I...>) noexcept {
    (dot_quad<Kind, T, Source, I>(codes, panel_step, streams, d), ...);
}

template <int... P>
NIBBLE_INLINE void prefetch_panels(const std::uint8_t* codes, std::ptrdiff_t panel_step, std::integer_sequence<int, P...>) noexcept {
    (prefetch(codes + P * panel_step), ...);
}

/// d += codes * digits over `quads` k-quads, a whole number of the source's steps.
template <class Kind, int T, class Source>
NIBBLE_INLINE void dot_quads(const std::uint8_t*& codes, std::ptrdiff_t panel_step, std::ptrdiff_t ahead, const std::uint8_t*& streams,
                             std::ptrdiff_t quads, lanes_int* d) noexcept {
    for (std::ptrdiff_t q = 0; q < quads; q += Source::quads) {
        if constexpr (T <= 4) prefetch_panels(codes + ahead, panel_step, std::make_integer_sequence<int, V>());
        dot_cell<Kind, T, Source>(codes, panel_step, streams, d, std::make_integer_sequence<int, Source::quads>());
        codes += Source::bytes;
        streams += Source::quads * (4 * Kind::chunk * T);
    }
}

template <int... I>
NIBBLE_INLINE void clear_sums(lanes_int* d, std::integer_sequence<int, I...>) noexcept {
    ((d[I] = zero_int()), ...);
}
template <class Kind, int... I>
NIBBLE_INLINE void widen_sums(lanes_int* d, std::integer_sequence<int, I...>) noexcept {
    ((d[I] = Kind::widen(d[I])), ...);
}
template <class Kind, int... I>
NIBBLE_INLINE void widen_into(lanes_int* total, const lanes_int* d, std::integer_sequence<int, I...>) noexcept {
    ((total[I] = add(total[I], Kind::widen(d[I]))), ...);
}
template <int... I>
NIBBLE_INLINE void copy_sums(lanes_int* to, const lanes_int* from, std::integer_sequence<int, I...>) noexcept {
    ((to[I] = from[I]), ...);
}

/// Zero points of a sub-block as sums of a kind see them.
template <class Kind>
NIBBLE_INLINE lanes_int load_zero(const float* line) noexcept {
    const lanes_int zero = to_int(load(line));
    if constexpr (Kind::code_offset == 0) return zero;
    else return subtract(zero, set_int(Kind::code_offset));
}

/// Sums without their zero point. zero: of the lanes; null: bias holds it already.
NIBBLE_INLINE lanes_int less_zero(lanes_int sum, const lanes_int* zero, std::int32_t bias) noexcept {
    return subtract(sum, zero != nullptr ? multiply_low(*zero, set_int(bias)) : set_int(bias));
}

/// RN(D) of one column and panel. d: its first accumulator.
template <class Kind, int P>
NIBBLE_INLINE lanes join(const lanes_int* d, const lanes_int* zero, const std::int32_t* bias) noexcept {
    constexpr int S = Kind::streams(P);
    lanes_int e = d[0];
    if constexpr (P >= 2 && S == P) e = add(e, shift_left<8>(d[V]));
    e = less_zero(e, zero, bias[0]);
    if constexpr (P < 3) {
        return to_lanes(e);
    } else {
        const lanes_int h = add(less_zero(d[(S - 1) * V], zero, bias[1]), shift_right<16>(e));
        return fma(to_lanes(h), set(65536.0f), to_lanes(bit_and(e, 0xffff)));
    }
}

template <class Kind, int P, int I>
NIBBLE_INLINE void finish_column(const lanes_int* d, lanes scale, const float* minimum, const lanes_int* zero, const column_tile& c,
                                 float* accumulator) noexcept {
    lanes acc = load(accumulator + 16 * I);
    if (minimum != nullptr) acc = fma(load(minimum), set(c.sum[I]), acc);
    const lanes term = join<Kind, P>(d + I * Kind::streams(P) * V, zero, c.bias + I * (P == 3 ? 2 : 1));
    store(accumulator + 16 * I, fma(term, multiply(scale, set(c.scale[I])), acc));
}

template <class Kind, int P, int... I>
NIBBLE_INLINE void finish_panel(const weight_run& w, std::ptrdiff_t line, const lanes_int* d, const column_tile& c, float* accumulator,
                                std::integer_sequence<int, I...>) noexcept {
    const lanes scale = load(w.scale + line);
    const float* minimum = w.minimum != nullptr ? w.minimum + line : nullptr;
    if (w.zero != nullptr) {
        const lanes_int zero = load_zero<Kind>(w.zero + line);
        (finish_column<Kind, P, I>(d, scale, minimum, &zero, c, accumulator), ...);
    } else {
        (finish_column<Kind, P, I>(d, scale, minimum, nullptr, c, accumulator), ...);
    }
}

/// sums += D of one column and panel.
NIBBLE_INLINE void add_sum(std::int32_t* sums, lanes_int d, const lanes_int* zero, std::int32_t bias) noexcept {
    store_words(sums, add(load_words(sums), less_zero(d, zero, bias)));
}

template <class Kind, int... I>
NIBBLE_INLINE void add_panel(const weight_run& w, std::ptrdiff_t line, const lanes_int* d, const column_tile& c, std::int32_t* sums,
                             std::integer_sequence<int, I...>) noexcept {
    if (w.zero != nullptr) {
        const lanes_int zero = load_zero<Kind>(w.zero + line);
        (add_sum(sums + 16 * I, d[I * V], &zero, c.bias[I]), ...);
    } else {
        (add_sum(sums + 16 * I, d[I * V], nullptr, c.bias[I]), ...);
    }
}

/// Ends a sub-block of one panel: in integers where the tile asks for sums, else in floats.
template <class Kind, int P, int C>
NIBBLE_INLINE void finish_block_of(const weight_run& w, std::ptrdiff_t line, const lanes_int* d, const column_tile& c, int panel) noexcept {
    using columns = std::make_integer_sequence<int, C>;
    if constexpr (P == 1)
        if (c.sums != nullptr) return add_panel<Kind>(w, line, d, c, c.sums + panel * c.accumulator_panel, columns());
    finish_panel<Kind, P>(w, line, d, c, c.accumulator + panel * c.accumulator_panel, columns());
}

template <class Kind, int P, int C, int... Panel>
NIBBLE_INLINE void finish_block(const weight_run& w, std::ptrdiff_t block, const lanes_int* d, const column_tile& c,
                                std::integer_sequence<int, Panel...>) noexcept {
    (finish_block_of<Kind, P, C>(w, block * w.scale_step + Panel * w.scale_panel, d + Panel, c, Panel), ...);
}

/// One tile of C columns over a run of sub-blocks.
template <class Kind, class Source, int P, int C>
NIBBLE_NOINLINE inline void digit_tile(const weight_run& w, column_tile c) noexcept {
    constexpr int T = Kind::streams(P) * C;
    using all = std::make_integer_sequence<int, T * V>;
    using panels = std::make_integer_sequence<int, V>;
    const std::uint8_t* codes = w.cells;
    const std::uint8_t* streams = c.streams;
    for (std::ptrdiff_t b = 0; b < w.blocks; ++b) {
        lanes_int d[static_cast<std::size_t>(T * V)];
        clear_sums(d, all());
        if constexpr (Kind::flushes) {
            dot_quads<Kind, T, Source>(codes, w.panel_step, w.ahead, streams, w.quads < w.flush ? w.quads : w.flush, d);
            if (w.quads <= w.flush) {
                widen_sums<Kind>(d, all());
            } else {
                lanes_int total[static_cast<std::size_t>(T * V)];
                clear_sums(total, all());
                widen_into<Kind>(total, d, all());
                for (std::ptrdiff_t q = w.flush; q < w.quads; q += w.flush) {
                    clear_sums(d, all());
                    dot_quads<Kind, T, Source>(codes, w.panel_step, w.ahead, streams, w.quads - q < w.flush ? w.quads - q : w.flush, d);
                    widen_into<Kind>(total, d, all());
                }
                copy_sums(d, total, all());
            }
        } else {
            dot_quads<Kind, T, Source>(codes, w.panel_step, w.ahead, streams, w.quads, d);
        }
        finish_block<Kind, P, C>(w, b, d, c, panels());
        c.scale += C;
        c.sum += C;
        c.bias += C * (P == 3 ? 2 : 1);
    }
}

template <class Kind, class Source, int P, int C = Kind::columns(P)>
NIBBLE_INLINE void choose_columns(const weight_run& w, const column_tile& c) noexcept {
    if constexpr (C == 1) {
        digit_tile<Kind, Source, P, 1>(w, c);
    } else {
        if (c.columns == C) digit_tile<Kind, Source, P, C>(w, c);
        else choose_columns<Kind, Source, P, next_tile(C)>(w, c);
    }
}

template <class Kind, class Source>
NIBBLE_INLINE void choose_digits(const weight_run& w, const column_tile& c, int digits) noexcept {
    if (digits == 1) choose_columns<Kind, Source, 1>(w, c);
    else if (digits == 2) choose_columns<Kind, Source, Kind::streams(2), Kind::columns(2)>(w, c);  // one stream is one digit
    else choose_columns<Kind, Source, 3>(w, c);
}

/// One tile over a run: 4-bit codes are unpacked in registers, all others come as bytes.
template <class Kind>
NIBBLE_NOINLINE inline void multiply_digits(const weight_run& w, const column_tile& c, int digits) noexcept {
    if constexpr (Kind::reads_nibbles) {
        if (w.bits == 4) return choose_digits<Kind, cells<4>>(w, c, digits);
    }
    choose_digits<Kind, cells<8>>(w, c, digits);
}

template <class Kind>
NIBBLE_NOINLINE inline std::int32_t pack_digits(const std::int32_t* q, std::ptrdiff_t quads, int digits, std::uint8_t* streams,
                                                std::ptrdiff_t step) noexcept {
    for (std::ptrdiff_t i = 0; i < quads; ++i) Kind::pack(q + 4 * i, digits, streams + i * step);
    std::int32_t high = 0;
    if (digits == 3)
        for (std::ptrdiff_t i = 0; i < 4 * quads; ++i) high += Kind::highest(q[i]);
    return high;
}

template <class Kind>
inline constexpr digit_kernels digit_kernels_of = {
    Kind::name,
    {4 * Kind::chunk * Kind::streams(1), 4 * Kind::chunk * Kind::streams(2), 4 * Kind::chunk * Kind::streams(3)},
    {Kind::columns(1), Kind::columns(2), Kind::columns(3)},
    Kind::reads_nibbles,
    Kind::flushes,
    Kind::code_offset,
    &pack_digits<Kind>,
    &multiply_digits<Kind>,
};
