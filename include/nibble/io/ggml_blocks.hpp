// The tensor types of ggml, which GGUF files hold: blocks of bytes to a qmatrix and back, nothing rounded either way.
//
//     auto m = nibble::io::ggml::unpack(nibble::io::ggml::type::q4_k, bytes, rows, cols);   // result<qmatrix>
//     auto b = nibble::io::ggml::pack(m.value());                                           // result<vector<uint8_t>>
//
// A row is a run of whole blocks, ceil(cols / block_elements) of them; rows follow each other. ggml itself refuses rows
// that end inside a block. Here the last block of a row may be partial: unpack ignores what lies beyond the last
// column, and pack fills it with scales of zero and the code of zero (code 0 where there is a minimum).
//
// What is kept and what is not, so that pack(unpack(bytes)) == bytes:
//   all types   every bit, as long as rows end with their blocks; but
//   NVFP4       a scale byte of 7F means 0 in ggml, and NaN in E4M3: it is read as 0 and written as 0
//   TQ1_0       a byte of five trits that no quantizer writes has a canonical twin, which is what pack writes
//   Q8_1, Q8_K  ggml's activations: unpack reads them without their sums, and pack does not write them
// Refused: scales, minima and weights that are Inf or NaN (so does ggml's validate_row_data), MXFP4 exponent FF,
// NVFP4 scale bytes with a sign bit.
#pragma once

#include <optional>
#include <span>
#include <vector>

#include "../detail/dispatch.hpp"
#include "../detail/fp_environment.hpp"
#include "../executor.hpp"
#include "../qmatrix.hpp"
#include "ggml_types.hpp"

namespace nibble::inline NIBBLE_ABI::io::ggml {

namespace detail {

/// A block taken apart: 256 codes, which are in a row elsewhere, and 16 groups at most.
struct block {
    std::uint8_t* code = nullptr;
    std::uint8_t scale[32];  // stored scales of the groups, then the minima
    std::uint32_t d = 0;     // or, of a direct scheme, the scale
    std::uint16_t m = 0;     // or the minimum
};

[[nodiscard]] inline std::uint16_t load_u16(const std::uint8_t* at) noexcept {
    return static_cast<std::uint16_t>(at[0] | at[1] << 8);
}
inline void store_u16(std::uint8_t* at, std::uint16_t u) noexcept {
    at[0] = static_cast<std::uint8_t>(u & 0xff);
    at[1] = static_cast<std::uint8_t>(u >> 8);
}
[[nodiscard]] constexpr bool is_finite_fp16(std::uint16_t h) noexcept { return (h & 0x7c00u) != 0x7c00u; }
[[nodiscard]] constexpr bool is_finite_fp32(std::uint32_t u) noexcept { return (u & 0x7f800000u) != 0x7f800000u; }
[[nodiscard]] constexpr bool is_finite_bf16(std::uint16_t h) noexcept { return (h & 0x7f80u) != 0x7f80u; }

// Planes are read and written eight numbers at a time, one in each byte of a word, where runs have a multiple of eight bytes.
inline constexpr std::uint64_t in_each_byte = 0x0101010101010101u;
[[nodiscard]] inline std::uint64_t load_u64(const std::uint8_t* at) noexcept {
    std::uint64_t u;
    std::memcpy(&u, at, sizeof u);
    return u;
}
inline void store_u64(std::uint8_t* at, std::uint64_t u) noexcept { std::memcpy(at, &u, sizeof u); }

/// out[i] = number i, or with `done` bits there already out[i] |= number i << done.
template <int Bits>
inline void read_wide_plane(const std::uint8_t* run, int width, int count, int done, std::uint8_t* out) noexcept {
    constexpr std::uint64_t mask = ((1u << Bits) - 1) * in_each_byte;
    for (int i = 0; i < count; run += width)
        for (int shift = 0; shift < 8; shift += Bits)
            for (int w = 0; w < width; w += 8, i += 8) {
                const std::uint64_t numbers = (load_u64(run + w) >> shift) & mask;
                store_u64(out + i, done == 0 ? numbers : load_u64(out + i) | numbers << done);
            }
}
inline void read_plane(const std::uint8_t* bytes, const plane& p, int count, int done, std::uint8_t* out) noexcept {
    if (p.bits == 0) return;
    const std::uint8_t* run = bytes + p.at;
    if (p.width % 8 == 0) {
        switch (p.bits) {
            case 1: return read_wide_plane<1>(run, p.width, count, done, out);
            case 2: return read_wide_plane<2>(run, p.width, count, done, out);
            case 4: return read_wide_plane<4>(run, p.width, count, done, out);
            default: return read_wide_plane<8>(run, p.width, count, done, out);
        }
    }
    const unsigned mask = (1u << p.bits) - 1;
    for (int i = 0; i < count; run += p.width)
        for (int shift = 0; shift < 8; shift += p.bits)
            for (int w = 0; w < p.width; ++w, ++i) {
                const unsigned number = ((static_cast<unsigned>(run[w]) >> shift) & mask) << done;
                out[i] = static_cast<std::uint8_t>(done == 0 ? number : out[i] | number);
            }
}
/// The reverse; the bytes must be zero before.
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

// The first exception: 8 scales and 8 minima of 6 bits in the 12 bytes of Q4_K and Q5_K. Groups 4 to 7 have their two
// high bits in the bytes of groups 0 to 3.
inline void read_k4_scales(const std::uint8_t* s, std::uint8_t* scale, std::uint8_t* least) noexcept {
    for (int j = 0; j < 4; ++j) {
        scale[j] = s[j] & 63;
        least[j] = s[j + 4] & 63;
        scale[j + 4] = static_cast<std::uint8_t>((s[j + 8] & 15) | (s[j] >> 6) << 4);
        least[j + 4] = static_cast<std::uint8_t>(s[j + 8] >> 4 | (s[j + 4] >> 6) << 4);
    }
}
inline void write_k4_scales(std::uint8_t* s, const std::uint8_t* scale, const std::uint8_t* least) noexcept {
    for (int j = 0; j < 4; ++j) {
        s[j] = static_cast<std::uint8_t>(scale[j] | (scale[j + 4] >> 4) << 6);
        s[j + 4] = static_cast<std::uint8_t>(least[j] | (least[j + 4] >> 4) << 6);
        s[j + 8] = static_cast<std::uint8_t>((scale[j + 4] & 15) | (least[j + 4] & 15) << 4);
    }
}

// The second: the base-3 digits of TQ1_0. A byte is ceil(digits * 256 / 243), so that multiplying by 3 and looking at
// the carry yields one digit after the other, the first the most significant. Digit n of the bytes of a run is
// element n * width + byte of it.
struct trit_run {
    int at, width, digits, first;  // first byte, bytes, digits in use, first element
};
inline constexpr trit_run trit_runs[3] = {{0, 32, 5, 0}, {32, 16, 5, 160}, {48, 4, 4, 240}};

inline void read_trits(const std::uint8_t* bytes, std::uint8_t* code) noexcept {
    for (const trit_run& run : trit_runs) {
        for (int w = 0; w < run.width; ++w) {
            unsigned b = bytes[run.at + w];
            for (int n = 0; n < run.digits; ++n) {
                code[run.first + n * run.width + w] = static_cast<std::uint8_t>(b * 3 >> 8);
                b = b * 3 & 255u;
            }
        }
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

/// Types of activations, which are read only.
[[nodiscard]] constexpr bool is_activation(type t) noexcept { return t == type::q8_1 || t == type::q8_k; }

/// 12 bytes of scales: after d and dmin.
[[nodiscard]] constexpr bool has_k4_scales(type t) noexcept { return t == type::q4_k || t == type::q5_k; }

[[nodiscard]] constexpr int groups_of(const block_type& t) noexcept { return t.elements / t.group; }
/// Numbers in the planes of stored scales.
[[nodiscard]] constexpr int stored_scales(const block_type& t) noexcept {
    return t.scale_low.bits == 0 ? 0 : groups_of(t) * (t.offset == offset_kind::minimum ? 2 : 1);
}

inline void read_block(const block_type& t, const std::uint8_t* bytes, block& b) noexcept {
    std::memset(b.scale, 0, sizeof b.scale);
    if (t.id == type::tq1_0) read_trits(bytes, b.code);
    read_plane(bytes, t.low, t.elements, 0, b.code);
    read_plane(bytes, t.high, t.elements, t.low.bits, b.code);
    flip_bytes(b.code, t.elements, t.flip);
    if (has_k4_scales(t.id)) read_k4_scales(bytes + 4, b.scale, b.scale + 8);
    read_plane(bytes, t.scale_low, stored_scales(t), 0, b.scale);
    read_plane(bytes, t.scale_high, stored_scales(t), t.scale_low.bits, b.scale);
    for (int i = 0; i < stored_scales(t); ++i) b.scale[i] = static_cast<std::uint8_t>(b.scale[i] ^ t.scale_flip);
    if (t.d_at >= 0) b.d = load_u16(bytes + t.d_at);
    if (t.id == type::q8_k) b.d |= static_cast<std::uint32_t>(load_u16(bytes + 2)) << 16;
    if (t.m_at >= 0) b.m = load_u16(bytes + t.m_at);
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

[[nodiscard]] inline nibble::failure bad(errc code, std::string text, std::uint64_t at = 0) {
    return {code, "ggml: " + std::move(text), at};
}
[[nodiscard]] inline std::string shape(index rows, index cols) { return nibble::detail::shape_text(rows, cols); }

[[nodiscard]] inline std::string place(const block_type& t, index n, index b) {
    return std::string(t.name) + " block " + std::to_string(b) + " of row " + std::to_string(n);
}

/// What makes a block unreadable, and at which byte of it.
struct defect {
    const char* text = nullptr;
    int at = 0;
};
[[nodiscard]] inline defect find_defect(const block_type& t, const block& b) noexcept {
    if (t.id == type::q8_k) return is_finite_fp32(b.d) ? defect{} : defect{"the fp32 scale is Inf or NaN", t.d_at};
    if (t.d_at >= 0 && !is_finite_fp16(static_cast<std::uint16_t>(b.d))) return {"the fp16 scale is Inf or NaN", t.d_at};
    if (t.m_at >= 0 && !is_finite_fp16(b.m)) return {"the fp16 minimum is Inf or NaN", t.m_at};
    if (t.id == type::mxfp4 && b.scale[0] == 0xff) return {"the exponent is FF, which is NaN", 0};
    if (t.id == type::nvfp4)
        for (int g = 0; g < 4; ++g)
            if (b.scale[g] >= 0x80) return {"a scale has its sign bit set", g};
    return {};
}

/// The stored scales and offsets of a panel, [group][row of 16], of up to 16 bits each.
class panel_of_scales {
public:
    explicit panel_of_scales(const nibble::detail::layout& l) : l_(l), scale_(bytes_of(l.scale_bits)), offset_(bytes_of(l.offset_bits)) {}

    void set_scale(index n, index g, unsigned stored) noexcept { set(scale_, l_.scale_bits, n, g, stored); }
    void set_offset(index n, index g, unsigned stored) noexcept { set(offset_, l_.offset_bits, n, g, stored); }
    [[nodiscard]] unsigned scale(index n, index g) const noexcept { return get(scale_, l_.scale_bits, n, g); }
    [[nodiscard]] unsigned offset(index n, index g) const noexcept { return get(offset_, l_.offset_bits, n, g); }

    /// To the lines of panel p, which begin at `buffer` for the whole matrix; and from the lines of a panel.
    void store(std::uint8_t* buffer, index p) const noexcept {
        for (index g = 0; g < l_.groups; ++g) {
            store_line(scale_, l_.scale_bits, buffer + l_.scales_at + (p * l_.groups + g) * l_.scale_line, g, l_.lanes == 1);
            store_line(offset_, l_.offset_bits, buffer + l_.offsets_at + (p * l_.groups + g) * l_.offset_line, g, l_.lanes == 1);
        }
    }
    void load(const nibble::detail::scale_source& from) noexcept {
        for (index g = 0; g < l_.groups; ++g) {
            load_line(scale_, l_.scale_bits, from.scales + g * from.scale_line, g, from.shared);
            load_line(offset_, l_.offset_bits, from.offsets + g * from.offset_line, g, from.shared);
        }
    }

private:
    static constexpr index rows = panel_rows;
    [[nodiscard]] std::size_t bytes_of(int bits) const { return static_cast<std::size_t>(nibble::detail::checked_product(l_.groups, bits == 0 ? 0 : bits <= 8 ? rows : 2 * rows)); }

    static void set(std::vector<std::uint8_t>& lines, int bits, index n, index g, unsigned stored) noexcept {
        std::uint8_t* line = lines.data() + g * (bits <= 8 ? rows : 2 * rows);
        if (bits == 0) return;
        if (bits <= 8) line[n % rows] = static_cast<std::uint8_t>(stored);
        else store_u16(line + 2 * (n % rows), static_cast<std::uint16_t>(stored));
    }
    [[nodiscard]] static unsigned get(const std::vector<std::uint8_t>& lines, int bits, index n, index g) noexcept {
        const std::uint8_t* line = lines.data() + g * (bits <= 8 ? rows : 2 * rows);
        return bits == 0 ? 0u : bits <= 8 ? line[n % rows] : load_u16(line + 2 * (n % rows));
    }
    // Where one row, or one for all, has a scale (`shared`), a line is one lane.
    static void store_line(const std::vector<std::uint8_t>& lines, int bits, std::uint8_t* to, index g, bool shared) noexcept {
        if (bits == 0) return;
        const std::uint8_t* from = lines.data() + g * (bits <= 8 ? rows : 2 * rows);
        if (bits >= 8) std::memcpy(to, from, static_cast<std::size_t>((shared ? 1 : rows) * bits / 8));
        else if (shared) nibble::detail::set_lane(to, bits, 0, from[0]);
        else nibble::detail::set_line(to, bits, from);
    }
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

/// Stores the scales of a block in row n, from column `first` on.
inline void fill_scales(const block_type& t, const block& b, qmatrix_builder& out, panel_of_scales& to, index n, index first) noexcept {
    const index count = std::min<index>(t.elements, out.layout().cols - first);
    const bool two_level = t.scheme.storage == scale_storage::two_level;
    if (two_level) {
        out.set_super(n, first / t.elements, static_cast<std::uint16_t>(b.d));
        if (t.m_at >= 0) out.set_super(n, first / t.elements, b.m, true);
    }
    const index at = first / t.group;
    const index groups = nibble::detail::ceil_div(count, t.group);
    if (t.id == type::q8_k) {
        out.set_scale(n, at, b.d);  // 32 bits
    } else if (t.d_at >= 0 && !two_level) {
        for (index g = 0; g < groups; ++g) to.set_scale(n, at + g, b.d);
        if (t.m_at >= 0)
            for (index g = 0; g < groups; ++g) to.set_offset(n, at + g, b.m);
    } else {
        for (index g = 0; g < groups; ++g) to.set_scale(n, at + g, t.id == type::nvfp4 && b.scale[g] == 0x7f ? 0u : b.scale[g]);
        if (t.offset == offset_kind::minimum)
            for (index g = 0; g < groups; ++g) to.set_offset(n, at + g, b.scale[groups_of(t) + g]);
    }
}

/// Rows of codes, 16 of them, on their way between blocks and the cells of a panel.
class panel_of_codes {
public:
    panel_of_codes(const nibble::detail::layout& l, const block_type& t)
        : stride_((nibble::detail::ceil_div((l.cols + t.elements) * (t.format->bits > 8 ? 2 : 1), 64) + 1) * 64),
          codes_(static_cast<std::size_t>(panel_rows * stride_)) {}

    [[nodiscard]] std::uint8_t* row(index n) noexcept { return codes_.data() + n % panel_rows * stride_; }
    [[nodiscard]] index stride() const noexcept { return stride_; }

    /// Nothing is left of what was in `row` from element `first` on.
    void clear_row(index n, index first, index bytes_each) noexcept {
        std::memset(row(n) + first * bytes_each, 0, static_cast<std::size_t>(stride_ - first * bytes_each));
    }

private:
    index stride_;  // bytes; not a power of two, which would share cache sets
    std::vector<std::uint8_t> codes_;
};

/// Where the first unreadable block or weight is, and why.
struct first_failure {
    std::uint64_t at = 0;
    std::string text;
};

/// Unpacks rows of one type into a builder, a panel at a time.
class block_reader {
public:
    block_reader(const block_type& t, std::span<const std::uint8_t> bytes, qmatrix_builder& out)
        : t_(t), bytes_(bytes), out_(out), codes_(out.layout(), t), scales_(out.layout()) {}

    /// Panels [first, last); false when a block cannot be read.
    [[nodiscard]] bool run(index first, index last, first_failure& why) {
        const nibble::detail::layout& l = out_.layout();
        const bool wide = t_.format->decode == decode_class::wide;
        for (index p = first; p < last; ++p) {
            for (index n = p * panel_rows; n < (p + 1) * panel_rows; ++n) {
                if (n >= l.rows) clear_row(n);
                else if (!(wide ? read_wide_row(n, why) : read_row(n, why))) return false;
            }
            if (!wide && t_.id != type::q8_k) scales_.store(out_.data(), p);
            kernels_.pack(codes_.row(0), codes_.stride(), l.bits, out_.panel(p), l.panel_bytes, l.scales_at >= streamed);
        }
        return true;
    }

private:
    static constexpr index streamed = index{1} << 22;  // bytes of cells that would push everything else out of the caches

    /// A row past the last: zeros.
    void clear_row(index n) noexcept {
        codes_.clear_row(n, 0, 1);
        for (index g = 0; g < out_.layout().groups && t_.id != type::q8_k; ++g) {
            scales_.set_scale(n, g, 0);
            scales_.set_offset(n, g, 0);
        }
    }

    [[nodiscard]] bool read_row(index n, first_failure& why) {
        const nibble::detail::layout& l = out_.layout();
        const std::uint8_t* at = bytes_.data() + n * nibble::detail::ceil_div(l.cols, t_.elements) * t_.bytes;
        for (index first = 0; first < l.cols; first += t_.elements, at += t_.bytes) {
            block_.code = codes_.row(n) + first;
            read_block(t_, at, block_);
            if (const defect d = find_defect(t_, block_); d.text != nullptr) {
                why = {static_cast<std::uint64_t>(at - bytes_.data() + d.at), place(t_, n, first / t_.elements) + ": " + d.text};
                return false;
            }
            fill_scales(t_, block_, out_, scales_, n, first);
        }
        codes_.clear_row(n, l.cols, 1);
        return true;
    }

    [[nodiscard]] bool read_wide_row(index n, first_failure& why) {
        const index cols = out_.layout().cols;
        const std::uint8_t* from = bytes_.data() + 2 * n * cols;
        std::uint8_t* to = codes_.row(n);
        for (index k = 0; k < cols; ++k) {
            const std::uint16_t u = load_u16(from + 2 * k);
            if (!(t_.id == type::f16 ? is_finite_fp16(u) : is_finite_bf16(u))) {
                why = {static_cast<std::uint64_t>(from + 2 * k - bytes_.data()),
                       std::string(t_.name) + " weight (" + std::to_string(n) + ", " + std::to_string(k) + ") is Inf or NaN"};
                return false;
            }
            std::memcpy(to + 2 * k, &u, 2);
        }
        codes_.clear_row(n, cols, 2);
        return true;
    }

    const block_type& t_;
    std::span<const std::uint8_t> bytes_;
    qmatrix_builder& out_;
    const nibble::detail::codec_kernels& kernels_ = nibble::detail::active_kernels().codec;
    panel_of_codes codes_;
    panel_of_scales scales_;
    block block_;
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

}  // namespace detail

/// Bytes of one row of `cols` weights: whole blocks. -1 for a number that is no type of ggml's or a row too long.
[[nodiscard]] constexpr index row_bytes(type t, index cols) noexcept {
    const detail::block_type* b = detail::find(t);
    if (b == nullptr || cols < 0 || cols > PTRDIFF_MAX / 1024) return -1;
    return (cols + b->elements - 1) / b->elements * b->bytes;
}

/// The matrix in `bytes`, rows x cols (ne[1] x ne[0] of GGUF), exactly. A failure names what was expected and the byte
/// of `bytes` at which it went wrong. threads: or none but the caller's.
[[nodiscard]] inline result<qmatrix> unpack(type t, std::span<const std::uint8_t> bytes, index rows, index cols, executor* threads = nullptr) {
    const detail::block_type* b = detail::find(t);
    if (b == nullptr)
        return detail::bad(errc::unsupported,
                           "there is no tensor type " + std::to_string(static_cast<std::uint32_t>(t)));
    if (b->format == nullptr)
        return detail::bad(errc::unsupported,
                           std::string("a tensor of type ") + b->name + " cannot be a quantized matrix");
    const index row = row_bytes(t, cols);
    if (rows < 0 || row < 0) return detail::bad(errc::malformed, "a shape of " + detail::shape(rows, cols));
    const std::size_t size = bytes.size();
    const bool fits = row == 0 ? size == 0
                               : size % static_cast<std::size_t>(row) == 0 &&
                                     size / static_cast<std::size_t>(row) == static_cast<std::size_t>(rows);
    if (!fits)
        return detail::bad(errc::malformed,
                           "a " + detail::shape(rows, cols) + " matrix of type " + b->name + " takes " +
                               std::to_string(rows) + " rows of " + std::to_string(row) + " bytes, there are " +
                               std::to_string(size) + " bytes",
                           size);
    const bool wide = b->format->decode == decode_class::wide;
    const granularity group = wide ? granularity(per_channel{}) : granularity(per_group{b->group});
    qmatrix_builder out(rows, cols, format_handle(*b->format), b->scheme, b->offset, group, b->matrix_name, nibble::detail::initial_codes::unset);
    const index panels = out.layout().panels;
    const int concurrency = threads != nullptr ? threads->concurrency() : 1;
    const index tasks = (std::min)(panels, index{concurrency <= 1 ? 1 : concurrency * 4});  // none without rows, however long they are
    std::vector<detail::first_failure> failures(static_cast<std::size_t>(tasks));
    std::vector<std::uint8_t> failed(failures.size());
    const auto task = [&](index i) {
        detail::block_reader reader(*b, bytes, out);
        const auto at = static_cast<std::size_t>(i);
        failed[at] = reader.run(panels * i / tasks, panels * (i + 1) / tasks, failures[at]) ? 0 : 1;
    };
    if (tasks == 1) task(0);
    else if (tasks > 1) threads->parallel_for(tasks, task);
    for (std::size_t i = 0; i < failures.size(); ++i)  // tasks are in the order of rows
        if (failed[i] != 0) return detail::bad(errc::malformed, failures[i].text, failures[i].at);
    return std::move(out).finish();
}

/// The type whose blocks can hold the matrix exactly, by its code format, scale scheme, offset and groups. A scale that
/// serves several blocks is repeated, so int4 with fp16 scales in groups of 128 is Q4_0, too. Of ternary types the one
/// that takes fewer bytes: TQ2_0, but Q2_0 for groups of 64 and for rows of at most 192; TQ1_0 only when asked for.
[[nodiscard]] inline std::optional<type> type_of(const qmatrix& m) noexcept {
    const detail::block_type* best = nullptr;
    for (const detail::block_type& t : detail::table::types) {
        if (t.id == type::tq1_0 || !detail::holds(t, m)) continue;
        if (best == nullptr || row_bytes(t.id, m.cols()) < row_bytes(best->id, m.cols())) best = &t;
    }
    return best != nullptr ? std::optional<type>(best->id) : std::nullopt;
}

/// The bytes of the matrix as tensor type t. Fails if that type cannot hold it exactly.
[[nodiscard]] inline result<std::vector<std::uint8_t>> pack(const qmatrix& m, type t) {
    const detail::block_type* b = detail::find(t);
    if (b == nullptr || !detail::holds(*b, m))
        return detail::bad(errc::unsupported, std::string("type ") + name(t) + " does not hold " + m.name() + ": " +
                                                  m.format().name + " codes, " + name_of(m.scheme().storage) +
                                                  " scales, offset " + name_of(m.offset_type()) + ", groups of " +
                                                  std::to_string(m.group_size()));
    const index row = row_bytes(t, m.cols());
    std::vector<std::uint8_t> bytes(static_cast<std::size_t>(nibble::detail::checked_product(m.rows(), row)));
    if (m.rows() == 0) return bytes;
    std::uint8_t* at = bytes.data();
    detail::panel_of_codes codes(m.layout(), *b);
    detail::panel_of_scales scales(m.layout());
    detail::block block;
    for (index n = 0; n < m.rows(); ++n) {
        if (b->format->decode == decode_class::wide) {
            for (index k = 0; k < m.cols(); ++k, at += 2) detail::store_u16(at, static_cast<std::uint16_t>(m.code(n, k)));
            continue;
        }
        if (n % panel_rows == 0) {
            detail::take_codes(m, n / panel_rows, codes);
            scales.load(m.scales_of(n / panel_rows));
        }
        for (index first = 0; first < m.cols(); first += b->elements, at += b->bytes) {
            block.code = codes.row(n) + first;
            detail::take_block(*b, m, scales, n, first, block);
            if (t == type::tq1_0)
                for (index i = 0; i < b->elements; ++i)
                    if (block.code[i] > 2)
                        return detail::bad(errc::unsupported,
                                           "TQ1_0 has no code 3, row " + std::to_string(n) + " has; use TQ2_0",
                                           static_cast<std::uint64_t>(at - bytes.data()));
            detail::write_block(*b, block, at);
        }
    }
    return bytes;
}

/// The bytes of the matrix as the tensor type of type_of().
[[nodiscard]] inline result<std::vector<std::uint8_t>> pack(const qmatrix& m) {
    if (const std::optional<type> t = type_of(m)) return pack(m, *t);
    return detail::bad(errc::unsupported, "no tensor type holds " + m.name() + ": " + m.format().name + " codes, " +
                                              name_of(m.scheme().storage) + " scales, offset " +
                                              name_of(m.offset_type()) + ", groups of " +
                                              std::to_string(m.group_size()));
}

}  // namespace nibble::io::ggml
