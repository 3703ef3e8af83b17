// Panels of a qmatrix to blocks of ggml types.
#pragma once

#include <algorithm>
#include <vector>

#include "ggml_block_reader.hpp"

namespace nibble::inline NIBBLE_ABI::io::ggml::detail {

/// A block taken apart: 256 codes, which are in a row elsewhere, and 16 groups at most.
struct block {
    std::uint8_t* code = nullptr;
    std::uint8_t scale[32];  // stored scales of the groups, then the minima
    std::uint32_t d = 0;     // or, of a direct scheme, the scale
    std::uint16_t m = 0;     // or the minimum
};

// Planes are written eight numbers at a time, one in each byte of a word, where runs have a multiple of eight bytes.
inline constexpr std::uint64_t in_each_byte = 0x0101010101010101u;
[[nodiscard]] inline std::uint64_t load_u64(const std::uint8_t* at) noexcept {
    std::uint64_t u;
    std::memcpy(&u, at, sizeof u);
    return u;
}
inline void store_u64(std::uint8_t* at, std::uint64_t u) noexcept { std::memcpy(at, &u, sizeof u); }

/// Number i, from bit `done` on; the bytes must be zero before.
inline void write_plane(std::uint8_t* bytes, const plane& p, int count, int done, const std::uint8_t* in) noexcept {
    if (p.bits == 0) return;
    const unsigned mask = (1u << p.bits) - 1;
    std::uint8_t* run = bytes + p.at;
    for (int i = 0; i < count; run += p.width)
        for (int shift = 0; shift < 8; shift += p.bits) {
            if (p.width % 8 == 0) {
                for (int w = 0; w < p.width; w += 8, i += 8)
                    store_u64(run + w, load_u64(run + w) | ((load_u64(in + i) >> done) & mask * in_each_byte) << shift);
                continue;
            }
            for (int w = 0; w < p.width; ++w, ++i)
                run[w] = static_cast<std::uint8_t>(run[w] | ((static_cast<unsigned>(in[i]) >> done) & mask) << shift);
        }
}
/// x[i] ^= flip for whole words of eight.
inline void flip_bytes(std::uint8_t* x, int count, unsigned flip) noexcept {
    for (int i = 0; i < count && flip != 0; i += 8) store_u64(x + i, load_u64(x + i) ^ flip * in_each_byte);
}

inline void write_k4_scales(std::uint8_t* s, const std::uint8_t* scale, const std::uint8_t* least) noexcept {
    for (int j = 0; j < 4; ++j) {
        s[j] = static_cast<std::uint8_t>(scale[j] | (scale[j + 4] >> 4) << 6);
        s[j + 4] = static_cast<std::uint8_t>(least[j] | (least[j + 4] >> 4) << 6);
        s[j + 8] = static_cast<std::uint8_t>((scale[j + 4] & 15) | (least[j + 4] & 15) << 4);
    }
}

inline void write_trits(std::uint8_t* bytes, const std::uint8_t* code) noexcept {
    for (const trit_run& run : trit_runs) {
        for (int w = 0; w < run.width; ++w) {
            unsigned q = 0;
            for (int n = 0; n < 5; ++n) q = q * 3 + (n < run.digits ? code[run.first + n * run.width + w] : 0u);
            bytes[run.at + w] = static_cast<std::uint8_t>((q * 256 + 242) / 243);
        }
    }
}

inline void write_block(const block_type& t, const block& b, std::uint8_t* bytes) noexcept {
    std::uint8_t code[256];
    std::uint8_t scale[32];
    std::memcpy(code, b.code, static_cast<std::size_t>(t.elements));
    flip_bytes(code, t.elements, t.flip);
    for (int i = 0; i < 32; ++i) scale[i] = static_cast<std::uint8_t>(b.scale[i] ^ t.scale_flip);
    if (t.id == type::tq1_0) write_trits(bytes, code);
    write_plane(bytes, t.low, t.elements, 0, code);
    write_plane(bytes, t.high, t.elements, t.low.bits, code);
    if (has_k4_scales(t.id)) write_k4_scales(bytes + 4, scale, scale + 8);
    write_plane(bytes, t.scale_low, stored_scales(t), 0, scale);
    write_plane(bytes, t.scale_high, stored_scales(t), t.scale_low.bits, scale);
    if (t.d_at >= 0) store_u16(bytes + t.d_at, static_cast<std::uint16_t>(b.d));
    if (t.m_at >= 0) store_u16(bytes + t.m_at, b.m);
}

/// The stored scales and offsets of a panel, [group][row of 16], of up to 16 bits each.
class panel_of_scales {
public:
    explicit panel_of_scales(const nibble::detail::layout& l) : l_(l), scale_(bytes_of(l.scale_bits)), offset_(bytes_of(l.offset_bits)) {}

    [[nodiscard]] unsigned scale(index n, index g) const noexcept { return get(scale_, l_.scale_bits, n, g); }
    [[nodiscard]] unsigned offset(index n, index g) const noexcept { return get(offset_, l_.offset_bits, n, g); }

    /// From the lines of a panel.
    void load(const nibble::detail::scale_source& from) noexcept {
        for (index g = 0; g < l_.groups; ++g) {
            load_line(scale_, l_.scale_bits, from.scales + g * from.scale_line, g, from.shared);
            load_line(offset_, l_.offset_bits, from.offsets + g * from.offset_line, g, from.shared);
        }
    }

private:
    static constexpr index rows = panel_rows;
    [[nodiscard]] std::size_t bytes_of(int bits) const { return static_cast<std::size_t>(nibble::detail::checked_product(l_.groups, bits == 0 ? 0 : bits <= 8 ? rows : 2 * rows)); }

    [[nodiscard]] static unsigned get(const std::vector<std::uint8_t>& lines, int bits, index n, index g) noexcept {
        const std::uint8_t* line = lines.data() + g * (bits <= 8 ? rows : 2 * rows);
        return bits == 0 ? 0u : bits <= 8 ? line[n % rows] : load_u16(line + 2 * (n % rows));
    }
    // Where one row, or one for all, has a scale (`shared`), a line is one lane.
    static void load_line(std::vector<std::uint8_t>& lines, int bits, const std::uint8_t* from, index g, bool shared) noexcept {
        if (bits == 0) return;
        std::uint8_t* to = lines.data() + g * (bits <= 8 ? rows : 2 * rows);
        if (bits < 8) {
            if (shared) std::memset(to, static_cast<int>(nibble::detail::get_lane(from, bits, 0)), rows);
            else nibble::detail::get_line(from, bits, to);
            return;
        }
        const auto size = static_cast<std::size_t>(bits / 8);
        for (index r = 0; r < rows; ++r) std::memcpy(to + r * bits / 8, from + (shared ? 0 : r * bits / 8), size);
    }

    const nibble::detail::layout& l_;
    std::vector<std::uint8_t> scale_, offset_;
};

/// A group or super-group of `size` columns: can all of a block part of `unit` columns have the same one?
[[nodiscard]] constexpr bool aligned(index size, index unit, index count) noexcept {
    return count <= 1 || size % unit == 0;
}

[[nodiscard]] inline bool holds(const block_type& t, const qmatrix& m) noexcept {
    if (t.format == nullptr || is_activation(t.id) || t.format != &m.format() || t.offset != m.offset_type()) return false;
    const scale_scheme& s = m.scheme();
    if (s.storage != t.scheme.storage || s.bits != t.scheme.bits) return false;
    if (t.format->decode == decode_class::wide) return true;
    if (s.storage == scale_storage::two_level) {
        if (s.is_signed != t.scheme.is_signed) return false;
        if (!aligned(s.span * m.group_size(), t.elements, m.layout().supers)) return false;
    }
    return aligned(m.group_size(), t.group, m.groups());
}

/// Scales of a block; its codes are in b.code already, and what lies beyond the last column is made zero.
inline void take_block(const block_type& t, const qmatrix& m, const panel_of_scales& scales, index n, index first, block& b) {
    const nibble::detail::layout& l = m.layout();
    const bool two_level = t.scheme.storage == scale_storage::two_level;
    const bool least = t.offset == offset_kind::minimum;
    const index count = std::min<index>(t.elements, m.cols() - first);
    std::memset(b.code + count, least ? 0 : static_cast<int>(t.format->zero_code), static_cast<std::size_t>(t.elements - count));
    std::memset(b.scale, t.scheme.is_signed ? 1 << (t.scheme.bits - 1) : 0, sizeof b.scale);
    for (index g = 0; g * t.group < count; ++g) {
        const index at = (first + g * t.group) / l.group;
        if (t.scheme.storage == scale_storage::f16) {
            b.d = scales.scale(n, at);
            b.m = static_cast<std::uint16_t>(scales.offset(n, at));
        } else {
            b.scale[g] = static_cast<std::uint8_t>(scales.scale(n, at));
            if (least) b.scale[groups_of(t) + g] = static_cast<std::uint8_t>(scales.offset(n, at));
        }
    }
    if (two_level) {
        const index super = first / l.group / m.scheme().span;
        b.d = m.stored_super(n, super);
        b.m = least ? m.stored_super(n, super, true) : std::uint16_t{0};
    }
}

/// Codes of all rows of panel p, by column.
inline void take_codes(const qmatrix& m, index p, panel_of_codes& to) {
    const nibble::detail::layout& l = m.layout();
    const nibble::detail::kernel_table& kernels = nibble::detail::active_kernels();
    constexpr index most = 16;  // k-quads at a time: 16 words of each of 16 rows
    std::uint8_t lines[64 * most];
    for (index g = 0; g < l.groups; ++g) {
        const index end = l.group_end(g);
        for (index k = l.group_begin(g); k < end; k += 4 * most) {
            const index quads = (std::min)(most, nibble::detail::ceil_div(end - k, 4));
            kernels.unpack(m.panel(p), l.bits, l.position(k) / 4, quads, nullptr, lines);
            if (end - k >= 4 * most) {
                kernels.codec.transpose(lines, 64, to.row(0) + k, to.stride());
                continue;
            }
            for (index r = 0; r < panel_rows; ++r)
                for (index q = 0; q < quads; ++q)
                    std::memcpy(to.row(r) + k + 4 * q, lines + 64 * q + 4 * r, static_cast<std::size_t>((std::min)(index{4}, end - k - 4 * q)));
        }
    }
}

}  // namespace nibble::io::ggml::detail
