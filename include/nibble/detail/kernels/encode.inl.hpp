// Floats to cells of codes (no include guard: see digits.inl.hpp): range, rounding of scales, codes, packing.
//
// Everything here is defined by scalar code elsewhere and must give its bytes: range_of and store_direct of the
// quantizing side, encode_weight, code_format::encode, put_quad. Ranges and codes do not depend on the order of lanes.

/// Up to 16 floats; the rest is zero.
NIBBLE_INLINE lanes load_some(const float* p, std::ptrdiff_t n) noexcept {
    if (n >= 16) return load(p);
    float part[16] = {};
    std::memcpy(part, p, static_cast<std::size_t>(n) * 4);
    return load(part);
}
NIBBLE_INLINE void store_some(float* p, std::ptrdiff_t n, lanes x) noexcept {
    if (n >= 16) return store(p, x);
    float part[16];
    store(part, x);
    std::memcpy(p, part, static_cast<std::size_t>(n) * 4);
}

/// The first zero: +0 and -0 compare equal, so lanes do not know which of them came first.
NIBBLE_NOINLINE inline float first_zero(const float* x, std::ptrdiff_t n) noexcept {
    for (std::ptrdiff_t i = 0; i < n; ++i)
        if (x[i] == 0.0f) return x[i];
    return 0.0f;
}

template <bool Magnitudes>
struct range_of_lanes {
    lanes low, high;
    lanes_int bits;  // of the largest magnitude
};
template <bool Magnitudes>
NIBBLE_INLINE range_of_lanes<Magnitudes> widened(range_of_lanes<Magnitudes> r, lanes v) noexcept {
    r.bits = larger(r.bits, bit_and(as_bits(v), set_int(0x7fffffff)));
    if constexpr (!Magnitudes) {
        r.low = smaller(v, r.low);
        r.high = larger(v, r.high);
    }
    return r;
}

template <bool Magnitudes>
NIBBLE_NOINLINE inline std::uint32_t scan(const float* x, std::ptrdiff_t cols, std::ptrdiff_t group, float* low, float* high,
                                          const float* next) noexcept {
    lanes_int most = set_int(0);
    for (std::ptrdiff_t begin = 0; begin < cols; begin += group, ++low, ++high) {
        const float* p = x + begin;
        const std::ptrdiff_t n = cols - begin < group ? cols - begin : group;
        float few[16];
        if (n < 16) {  // padded with what is there already
            for (std::ptrdiff_t i = 0; i < 16; ++i) few[i] = p[i < n ? i : 0];
            p = few;
        }
        const std::ptrdiff_t count = n < 16 ? 16 : n;
        range_of_lanes<Magnitudes> r{load(p), load(p), set_int(0)};
        std::ptrdiff_t i = 0;
        for (; i + 32 <= count; i += 32) {
            prefetch(next + begin + i);  // the other half: encode_row
            r = widened<Magnitudes>(r, load(p + i));
            r = widened<Magnitudes>(r, load(p + i + 16));
        }
        if (i + 16 <= count) r = widened<Magnitudes>(r, load(p + i));
        if (count % 16 != 0) r = widened<Magnitudes>(r, load(p + count - 16));  // some of them again
        most = larger(most, r.bits);
        if constexpr (Magnitudes) {
            const std::int32_t u = greatest(r.bits);
            std::memcpy(high, &u, 4);
            *low = -*high;
            continue;
        }
        *low = least(r.low);
        *high = greatest(r.high);
        if (*low == 0.0f) *low = first_zero(x + begin, n);
        if (*high == 0.0f) *high = first_zero(x + begin, n);
    }
    return static_cast<std::uint32_t>(greatest(most));
}

/// The lanes whose magnitude is a number.
NIBBLE_INLINE lanes finite_or_zero(lanes x) noexcept {
    return select_less(bit_and(as_bits(x), set_int(0x7fffffff)), set_int(0x7f800000), x, zero());
}

NIBBLE_NOINLINE inline void invert(const float* scale, std::ptrdiff_t count, float* inverse) noexcept {
    for (std::ptrdiff_t g = 0; g < count; g += 16)
        store_some(inverse + g, count - g, finite_or_zero(divide(set(1.0f), load_some(scale + g, count - g))));
}

/// Finite floats to bits of a type and back.
NIBBLE_INLINE lanes_int stored_bits(stored_float storage, lanes x) noexcept {
    const lanes_int u = as_bits(x);
    if (storage == stored_float::f16) return to_fp16(x);
    if (storage == stored_float::bf16)
        return shift_right_logical(add(add(u, set_int(0x7fff)), bit_and(shift_right_logical(u, 16), set_int(1))), 16);
    return u;
}
NIBBLE_INLINE lanes stored_value(stored_float storage, lanes_int u) noexcept {
    return storage == stored_float::f16 ? from_fp16(u) : as_lanes(storage == stored_float::bf16 ? shift_left(u, 16) : u);
}

NIBBLE_NOINLINE inline bool round_scales(const scale_rounding& r, std::ptrdiff_t count, float* scale, float* offset,
                                         std::uint32_t* stored_scale, std::uint32_t* stored_offset) noexcept {
    const lanes_int magnitude = set_int(0x7fffffff);
    lanes_int most = set_int(0);
    for (std::ptrdiff_t g = 0; g < count; g += 16) {
        const std::ptrdiff_t n = count - g < 16 ? count - g : 16;
        lanes s = load_some(scale + g, n);
        lanes o = load_some(offset + g, n);
        most = larger(larger(most, bit_and(as_bits(s), magnitude)), bit_and(as_bits(o), magnitude));
        const lanes_int s_bits = stored_bits(r.storage, s);
        s = stored_value(r.storage, s_bits);
        std::memcpy(stored_scale + g, &s_bits, static_cast<std::size_t>(n) * 4);
        store_some(scale + g, n, s);
        if (r.rounds_offset) {
            const lanes_int o_bits = stored_bits(r.storage, o);
            o = stored_value(r.storage, o_bits);
            std::memcpy(stored_offset + g, &o_bits, static_cast<std::size_t>(n) * 4);
            store_some(offset + g, n, o);
        }
        const lanes low = rounded(multiply(s, rounded(r.subtracts ? subtract(set(r.low), o) : set(r.low))));
        const lanes high = multiply(s, rounded(r.subtracts ? subtract(set(r.high), o) : set(r.high)));
        most = larger(most, bit_and(as_bits(r.adds ? add(low, o) : low), magnitude));
        most = larger(most, bit_and(as_bits(high), magnitude));
    }
    return greatest(most) < 0x7f800000;
}

/// 16 codes of weights at scale 1.
template <rounding_rule Rule>
NIBBLE_INLINE void encode_line(const encoder& e, const thresholds_16& thresholds, int zero, lanes t, std::uint8_t* out) noexcept {
    if constexpr (Rule == rounding_rule::integer) {
        store_codes(out, round_to_int(smaller(t, set(65536.0f))), zero, e.lowest, e.highest);
    } else if constexpr (Rule == rounding_rule::truncated) {
        const lanes shifted = add(rounded(t), set(e.bias));
        store_codes(out, to_int(smaller(larger(shifted, set(0.0f)), set(static_cast<float>(e.highest)))), 0, 0, 255);
    } else if constexpr (Rule == rounding_rule::away) {
        t = smaller(larger(t, set(static_cast<float>(e.lowest - zero))), set(static_cast<float>(e.highest - zero)));
        const lanes_int whole = to_int(t);
        const lanes rest = subtract(t, to_lanes(whole));  // exact; twice it is +-1 and more from the halves on
        store_codes(out, add(whole, to_int(add(rest, rest))), zero, 0, 255);
    } else if constexpr (Rule == rounding_rule::threshold) {
        store_codes(out, count_below(thresholds, t), 0, 0, 255);
        if (!e.ordered) map_bytes(e.order, out);
    } else {
        // Adding 2^(exponent + 23 - M) rounds to M bits of mantissa, and at the least exponent to a subnormal number; the
        // sum holds the rounded integer r, and the code is r + (exponent - least << M).
        const int cut = 23 - e.mantissa_bits;
        const lanes_int bits = as_bits(t);
        const lanes_int a = smaller(bit_and(bits, set_int(0x7fffffff)), as_bits(set(e.max_value)));
        const lanes_int exponent = larger(bit_and(a, set_int(0x7f800000)), set_int(e.least_exponent << 23));
        const lanes_int adder = add(exponent, set_int(cut << 23));
        const lanes_int r = subtract(as_bits(add(as_lanes(a), as_lanes(adder))), adder);
        const lanes_int code = add(r, shift_right_logical(subtract(exponent, set_int(e.least_exponent << 23)), cut));
        lanes_int sign = bit_and(shift_right_logical(bits, 32 - e.bits), set_int(1 << (e.bits - 1)));
        if (!e.minus_zero) sign = smaller(sign, shift_left(code, 8));
        store_codes(out, bit_or(code, sign), 0, 0, 255);
    }
}

template <scaled_weight Weight>
NIBBLE_INLINE lanes scaled(lanes x, lanes inverse, lanes offset) noexcept {
    if constexpr (Weight == scaled_weight::product) return multiply(x, inverse);
    else if constexpr (Weight == scaled_weight::shifted) return add(rounded(multiply(x, inverse)), offset);
    else if constexpr (Weight == scaled_weight::difference) return multiply(rounded(subtract(x, offset)), inverse);
    else return divide(rounded(subtract(x, offset)), inverse);
}

template <rounding_rule Rule, scaled_weight Weight>
NIBBLE_INLINE void encode_row(const encoder& e, const row_encoding& row) noexcept {
    const thresholds_16 thresholds = load_thresholds(e.thresholds);
    std::ptrdiff_t g = 0;
    for (std::ptrdiff_t begin = 0; begin < row.cols; begin += row.group, ++g) {
        const std::ptrdiff_t n = row.cols - begin < row.group ? row.cols - begin : row.group;
        const float* x = row.x + begin;
        std::uint8_t* out = row.codes + g * row.padded_group;
        if constexpr (Weight == scaled_weight::quotient) {
            std::uint32_t bits;
            std::memcpy(&bits, row.inverse + g, 4);
            if (bits == 0x80000000u) std::memset(out, 0, static_cast<std::size_t>(n));
            if ((bits & 0x7fffffffu) == 0) continue;
        }
        const lanes inverse = set(row.inverse[g]);
        const lanes offset = set(row.offset[g]);
        const int zero = e.zero_is_offset ? static_cast<int>(row.offset[g]) : e.zero;
        std::ptrdiff_t i = 0;
        for (; i + 32 <= n; i += 32) {
            prefetch(row.next + begin + i + 16);  // the other half: scan
            encode_line<Rule>(e, thresholds, zero, scaled<Weight>(load(x + i), inverse, offset), out + i);
            encode_line<Rule>(e, thresholds, zero, scaled<Weight>(load(x + i + 16), inverse, offset), out + i + 16);
        }
        for (; i + 16 <= n; i += 16)
            encode_line<Rule>(e, thresholds, zero, scaled<Weight>(load(x + i), inverse, offset), out + i);
        if (i == n) continue;
        std::uint8_t codes[16];
        encode_line<Rule>(e, thresholds, zero, scaled<Weight>(load_some(x + i, n - i), inverse, offset), codes);
        std::memcpy(out + i, codes, static_cast<std::size_t>(n - i));
    }
}

// By value: bytes may alias everything, so the compiler would load the constants again after every store of codes.
template <rounding_rule Rule, scaled_weight Weight>
NIBBLE_NOINLINE inline void encode_with(encoder e, row_encoding row) noexcept {
    encode_row<Rule, Weight>(e, row);
}

inline void encode(const encoder& e, const row_encoding& row) noexcept {
    using enum rounding_rule;
    using enum scaled_weight;
    if (e.rule == threshold) return encode_with<threshold, product>(e, row);
    if (e.rule == minifloat) return encode_with<minifloat, product>(e, row);
    if (e.rule == away) return encode_with<away, product>(e, row);
    if (e.rule == truncated) return e.weight == product ? encode_with<truncated, product>(e, row) : encode_with<truncated, difference>(e, row);
    if (e.weight == quotient) return encode_with<integer, quotient>(e, row);
    if (e.weight == shifted) return encode_with<integer, shifted>(e, row);
    if (e.weight == difference) return encode_with<integer, difference>(e, row);
    return encode_with<integer, product>(e, row);
}

/// Magnitudes above `limit` become it, so that no finite weight becomes Inf.
template <stored_float To>
NIBBLE_INLINE void encode_16_bits(const float* x, std::ptrdiff_t count, float limit, std::uint16_t* codes) noexcept {
    for (std::ptrdiff_t i = 0; i < count; i += 16) {
        const lanes v = larger(smaller(load_some(x + i, count - i), set(limit)), set(-limit));
        const lanes_int u = stored_bits(To, v);
        if (count - i >= 16) {
            store_u16(codes + i, u);
            continue;
        }
        std::uint16_t part[16];
        store_u16(part, u);
        std::memcpy(codes + i, part, static_cast<std::size_t>(count - i) * 2);
    }
}
NIBBLE_NOINLINE inline void encode_fp16_row(const float* x, std::ptrdiff_t count, std::uint16_t* codes) noexcept {
    encode_16_bits<stored_float::f16>(x, count, 65504.0f, codes);
}
NIBBLE_NOINLINE inline void encode_bf16_row(const float* x, std::ptrdiff_t count, std::uint16_t* codes) noexcept {
    encode_16_bits<stored_float::bf16>(x, count, 3.3895313892515355e38f, codes);
}

NIBBLE_INLINE void store_cell(std::uint8_t* to, lanes_int cell, bool stream) noexcept {
    if (stream) stream_words(to, cell);
    else store_words(to, cell);
}

/// Quad F of a cell of P-bit codes, in its place.
template <int P, int Done, int F>
NIBBLE_INLINE lanes_int packed_quad(const std::uint8_t* words) noexcept {
    return shift_left<P * F>(field<Done, 0x01010101 * ((1 << P) - 1)>(words + 64 * F));
}
template <int P, int Done, int... F>
NIBBLE_INLINE lanes_int packed_cell(const std::uint8_t* words, std::integer_sequence<int, F...>) noexcept {
    lanes_int cell = zero_int();
    ((cell = bit_or(cell, packed_quad<P, Done, F>(words))), ...);
    return cell;
}

/// Cells of one plane of P bits, which start at bit Done of a code, from the words of 8 k-quads (16 bits: of 16 k).
template <int P, int Done>
NIBBLE_INLINE std::uint8_t* pack_plane(const std::uint8_t* words, std::uint8_t* to, const std::uint8_t* end, bool stream) noexcept {
    for (int q = 0; q < 8 && to < end; q += 8 / P, to += 64) {
        if constexpr (P == 8) store_cell(to, load_words(words + 64 * q), stream);
        else store_cell(to, packed_cell<P, Done>(words + 64 * q, std::make_integer_sequence<int, 8 / P>()), stream);
    }
    return to;
}

template <int Low, int High>
NIBBLE_NOINLINE inline void pack_planes(const std::uint8_t* codes, std::ptrdiff_t stride, std::uint8_t* to, const std::uint8_t* end, bool stream) noexcept {
    alignas(64) std::uint8_t words[1024];
    for (; to < end; codes += 64) {
        transpose(codes, stride, words, 64);
        for (int half = 0; half < 2; ++half) {
            to = pack_plane<Low, 0>(words + 512 * half, to, end, stream);
            if constexpr (High != 0) to = pack_plane<High, Low>(words + 512 * half, to, end, stream);
        }
    }
    if (stream) stream_end();
}

inline void pack(const std::uint8_t* codes, std::ptrdiff_t stride, int bits, std::uint8_t* to, std::ptrdiff_t bytes, bool stream) noexcept {
    const std::uint8_t* end = to + bytes;
    switch (bits) {
        case 1: return pack_planes<1, 0>(codes, stride, to, end, stream);
        case 2: return pack_planes<2, 0>(codes, stride, to, end, stream);
        case 3: return pack_planes<2, 1>(codes, stride, to, end, stream);
        case 4: return pack_planes<4, 0>(codes, stride, to, end, stream);
        case 5: return pack_planes<4, 1>(codes, stride, to, end, stream);
        case 6: return pack_planes<4, 2>(codes, stride, to, end, stream);
        default: return pack_planes<8, 0>(codes, stride, to, end, stream);
    }
}

NIBBLE_NOINLINE inline void load_fp16_row(const std::uint16_t* from, std::ptrdiff_t count, float* to) noexcept {
    std::ptrdiff_t i = 0;
    for (; i + 16 <= count; i += 16) store(to + i, load_half(from + i));
    for (; i < count; ++i) to[i] = fp16_to_float(from[i]);
}
NIBBLE_NOINLINE inline void load_bf16_row(const std::uint16_t* from, std::ptrdiff_t count, float* to) noexcept {
    std::ptrdiff_t i = 0;
    for (; i + 16 <= count; i += 16) store(to + i, as_lanes(shift_left(load_u16(from + i), 16)));
    for (; i < count; ++i) to[i] = bf16_to_float(from[i]);
}
NIBBLE_NOINLINE inline void load_f64_row(const double* from, std::ptrdiff_t count, float* to) noexcept {
    std::ptrdiff_t i = 0;
    for (; i + 16 <= count; i += 16) store(to + i, load_doubles(from + i));
    for (; i < count; ++i) to[i] = static_cast<float>(from[i]);
}
