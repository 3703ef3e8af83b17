// Tensors of ggml types to panels of a qmatrix.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "../detail/dispatch.hpp"
#include "../qmatrix.hpp"
#include "ggml_types.hpp"

namespace nibble::inline NIBBLE_ABI::io::ggml::detail {

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

// What is in no plane: the base-3 digits of TQ1_0. A byte is ceil(digits * 256 / 243), so that multiplying by 3 and looking at
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
/// Types of activations, which are read only.
[[nodiscard]] constexpr bool is_activation(type t) noexcept { return t == type::q8_1 || t == type::q8_k; }

/// 12 bytes of scales: after d and dmin.
[[nodiscard]] constexpr bool has_k4_scales(type t) noexcept { return t == type::q4_k || t == type::q5_k; }

[[nodiscard]] constexpr int groups_of(const block_type& t) noexcept { return t.elements / t.group; }
/// Numbers in the planes of stored scales.
[[nodiscard]] constexpr int stored_scales(const block_type& t) noexcept {
    return t.scale_low.bits == 0 ? 0 : groups_of(t) * (t.offset == offset_kind::minimum ? 2 : 1);
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

[[nodiscard]] inline std::string place(const block_type& t, index n, index b) {
    return std::string(t.name) + " block " + std::to_string(b) + " of row " + std::to_string(n);
}

/// What makes a block unreadable, and at which byte of it.
struct defect {
    const char* text = nullptr;
    int at = 0;
};
[[nodiscard]] inline defect find_defect(const block_type& t, const std::uint8_t* block) noexcept {
    if (t.id == type::q8_k) return is_finite_fp32(nibble::detail::load_bits(block + t.d_at, 4)) ? defect{} : defect{"the fp32 scale is Inf or NaN", t.d_at};
    if (t.d_at >= 0 && !is_finite_fp16(load_u16(block + t.d_at))) return {"the fp16 scale is Inf or NaN", t.d_at};
    if (t.m_at >= 0 && !is_finite_fp16(load_u16(block + t.m_at))) return {"the fp16 minimum is Inf or NaN", t.m_at};
    if (t.id == type::mxfp4 && block[0] == 0xff) return {"the exponent is FF, which is NaN", 0};
    if (t.id == type::nvfp4)
        for (int g = 0; g < 4; ++g)
            if (block[g] >= 0x80) return {"a scale has its sign bit set", g};
    return {};
}

/// Unpacks rows of one type into a builder, a panel at a time.
class block_reader {
public:
    block_reader(const block_type& t, std::span<const std::uint8_t> bytes, qmatrix_builder& out)
        : t_(t), bytes_(bytes), out_(out), blocks_(nibble::detail::ceil_div(out.layout().cols, t.elements)), row_bytes_(blocks_ * t.bytes), codes_(out.layout(), t) {}

    /// Panels [first, last); false when a block cannot be read.
    [[nodiscard]] bool run(index first, index last, first_failure& why) {
        for (index p = first; p < last; ++p)
            if (!(t_.format->decode == decode_class::wide ? read_wide(p, why) : read_panel(p, why))) return false;
        return true;
    }

private:
    static constexpr index streamed = index{1} << 22;  // bytes of cells that would push everything else out of the caches
    using line_of_halves = std::uint16_t[panel_rows];

    [[nodiscard]] index live_rows(index p) const noexcept { return (std::min)(panel_rows, out_.layout().rows - p * panel_rows); }
    [[nodiscard]] const std::uint8_t* row(index n) const noexcept { return bytes_.data() + n * row_bytes_; }

    [[nodiscard]] bool read_panel(index p, first_failure& why) {
        const nibble::detail::layout& l = out_.layout();
        const index live = live_rows(p);
        nibble::detail::block_rows rows{row(p * panel_rows), row_bytes_, t_.bytes, l.cols, static_cast<int>(live), row(p * panel_rows)};
        if ((p + 2) * panel_rows <= l.rows) rows.next += panel_rows * row_bytes_;
        if (live < panel_rows) {  // with rows of zeros
            padded_.assign(static_cast<std::size_t>(panel_rows * row_bytes_), 0);
            if (!padded_.empty()) std::memcpy(padded_.data(), rows.from, static_cast<std::size_t>(live * row_bytes_));
            rows.from = rows.next = padded_.data();
        }
        if (t_.id == type::tq1_0) read_trits_of(p);
        else kernels_.unpack_blocks(rows, {t_.elements, t_.low, t_.high, t_.flip, false}, l.bits, out_.panel(p), l.panel_bytes, l.scales_at >= streamed);
        bool good = true;
        for (index b = 0; b < blocks_; ++b, rows.from += t_.bytes) good = store_scales(p, b, rows) && good;
        return good || find_first(p, why);
    }

    void read_trits_of(index p) {
        const nibble::detail::layout& l = out_.layout();
        for (index n = p * panel_rows; n < (p + 1) * panel_rows; ++n) {
            if (n < l.rows)
                for (index b = 0; b < blocks_; ++b) read_trits(row(n) + b * t_.bytes, codes_.row(n) + b * t_.elements);
            codes_.clear_row(n, n < l.rows ? l.cols : 0, 1);
        }
        kernels_.pack(codes_.row(0), codes_.stride(), l.bits, out_.panel(p), l.panel_bytes, l.scales_at >= streamed);
    }

    /// The fp16 numbers at `at` of 16 blocks; false if one is Inf or NaN.
    [[nodiscard]] static bool read_halves(const nibble::detail::block_rows& rows, int at, line_of_halves& line) noexcept {
        for (index r = 0; r < panel_rows; ++r) line[r] = load_u16(rows.from + r * rows.row_step + at);
        int most = 0;
        for (const std::uint16_t h : line) most = (std::max)(most, h & 0x7c00);
        return most != 0x7c00;
    }

    /// Scales and offsets of block b of 16 rows; false if there may be a defect.
    [[nodiscard]] bool store_scales(index p, index b, const nibble::detail::block_rows& rows) {
        const nibble::detail::layout& l = out_.layout();
        const bool two_level = t_.scheme.storage == scale_storage::two_level;
        const index first = b * t_.elements / t_.group;
        const index count = (std::min)(index{groups_of(t_)}, l.groups - first);
        if (t_.id == type::q8_k) {
            for (index r = 0; r < rows.live; ++r) out_.set_scale(p * panel_rows + r, first, nibble::detail::load_bits(rows.from + r * rows.row_step, 4));
            return has_no_defect(rows);
        }
        bool good = true;
        line_of_halves d, m;
        if (t_.d_at >= 0) good = read_halves(rows, t_.d_at, d);
        if (t_.m_at >= 0) good = read_halves(rows, t_.m_at, m) && good;
        if (t_.d_at >= 0 && !two_level) {
            for (index g = first; g < first + count; ++g) {
                store_line(scale_line(p, g), l.scale_bits, reinterpret_cast<const std::uint8_t*>(d));
                if (t_.m_at >= 0) store_line(offset_line(p, g), l.offset_bits, reinterpret_cast<const std::uint8_t*>(m));
            }
            return good;
        }
        if (two_level) {
            std::uint8_t* super = out_.data() + l.supers_at + (p * l.supers + b) * l.super_line;
            std::memcpy(super, d, sizeof d);
            if (t_.m_at >= 0) std::memcpy(super + sizeof d, m, sizeof m);
        } else {
            good = has_no_defect(rows);
        }
        const int numbers = has_k4_scales(t_.id) ? 16 : stored_scales(t_);
        std::uint8_t lines[32 * panel_rows];
        kernels_.unpack_numbers(rows, {(numbers + 3) / 4 * 4, t_.scale_low, t_.scale_high, t_.scale_flip, has_k4_scales(t_.id)}, lines);
        if (t_.id == type::nvfp4)
            for (int i = 0; i < numbers * int{panel_rows}; ++i) lines[i] = lines[i] == 0x7f ? std::uint8_t{0} : lines[i];
        if (rows.live < panel_rows && t_.scale_flip != 0)
            for (int i = 0; i < numbers; ++i) std::memset(lines + i * panel_rows + rows.live, 0, static_cast<std::size_t>(panel_rows - rows.live));
        for (index g = 0; g < count; ++g) {
            store_line(scale_line(p, first + g), l.scale_bits, lines + g * panel_rows);
            if (t_.offset == offset_kind::minimum) store_line(offset_line(p, first + g), l.offset_bits, lines + (groups_of(t_) + g) * panel_rows);
        }
        return good;
    }

    [[nodiscard]] std::uint8_t* scale_line(index p, index g) noexcept {
        const nibble::detail::layout& l = out_.layout();
        return out_.data() + l.scales_at + (p * l.groups + g) * l.scale_line;
    }
    [[nodiscard]] std::uint8_t* offset_line(index p, index g) noexcept {
        const nibble::detail::layout& l = out_.layout();
        return out_.data() + l.offsets_at + (p * l.groups + g) * l.offset_line;
    }
    /// 16 numbers of 8 bits at most in a byte each, or of 16 bits. Where a matrix of one row has one lane, the first.
    void store_line(std::uint8_t* to, int bits, const std::uint8_t* numbers) const noexcept {
        if (bits < 8) nibble::detail::set_line(to, bits, numbers);
        else if (out_.layout().lanes == 1) std::memcpy(to, numbers, static_cast<std::size_t>(bits / 8));
        else if (bits == 8) std::memcpy(to, numbers, panel_rows);
        else std::memcpy(to, numbers, 2 * panel_rows);
    }

    [[nodiscard]] bool has_no_defect(const nibble::detail::block_rows& rows) const noexcept {
        bool good = true;
        for (index r = 0; r < rows.live; ++r) good = find_defect(t_, rows.from + r * rows.row_step).text == nullptr && good;
        return good;
    }
    /// Names the first defect of panel p, row by row; false.
    [[nodiscard]] bool find_first(index p, first_failure& why) const {
        for (index n = p * panel_rows; n < p * panel_rows + live_rows(p); ++n) {
            for (index b = 0; b < blocks_; ++b) {
                const std::uint8_t* at = row(n) + b * t_.bytes;
                const defect d = find_defect(t_, at);
                if (d.text == nullptr) continue;
                why = {static_cast<std::uint64_t>(at - bytes_.data() + d.at), place(t_, n, b) + ": " + d.text};
                return false;
            }
        }
        return false;
    }

    [[nodiscard]] bool read_wide(index p, first_failure& why) {
        const nibble::detail::layout& l = out_.layout();
        for (index n = p * panel_rows; n < (p + 1) * panel_rows; ++n) {
            if (n < l.rows && l.cols != 0) {
                std::memcpy(codes_.row(n), row(n), static_cast<std::size_t>(row_bytes_));
                if (!check_wide(n, why)) return false;
            }
            codes_.clear_row(n, n < l.rows ? l.cols : 0, 2);
        }
        kernels_.pack(codes_.row(0), codes_.stride(), l.bits, out_.panel(p), l.panel_bytes, l.scales_at >= streamed);
        return true;
    }
    /// Row n is in the cache. Exponents are compared some at a time, in a loop that compilers turn into vectors.
    [[nodiscard]] bool check_wide(index n, first_failure& why) {
        constexpr index at_once = 64;
        const int exponent = t_.id == type::f16 ? 0x7c00 : 0x7f80;
        const std::uint8_t* from = codes_.row(n);
        std::int16_t most = 0;
        index k = 0;
        for (; k + at_once <= out_.layout().cols; k += at_once) {
            std::int16_t u[at_once];
            std::memcpy(u, from + 2 * k, sizeof u);
            for (const std::int16_t v : u) most = (std::max)(most, static_cast<std::int16_t>(v & exponent));
        }
        for (; k < out_.layout().cols; ++k) most = (std::max)(most, static_cast<std::int16_t>(load_u16(from + 2 * k) & exponent));
        if (most != exponent) return true;
        for (k = 0; (load_u16(from + 2 * k) & exponent) != exponent; ++k) {}
        why = {static_cast<std::uint64_t>(row(n) + 2 * k - bytes_.data()),
               std::string(t_.name) + " weight (" + std::to_string(n) + ", " + std::to_string(k) + ") is Inf or NaN"};
        return false;
    }

    const block_type& t_;
    std::span<const std::uint8_t> bytes_;
    qmatrix_builder& out_;
    const nibble::detail::codec_kernels& kernels_ = nibble::detail::active_kernels().codec;
    index blocks_, row_bytes_;           // of a row
    panel_of_codes codes_;               // of types that are in no planes
    std::vector<std::uint8_t> padded_;   // the last panel, if rows are missing
};

}  // namespace nibble::io::ggml::detail
