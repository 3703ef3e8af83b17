// The one quantized matrix. Rows are lanes: a panel is 16 rows, a cell is 64 bytes.
//
//   codes, one panel after the other; within a panel cells run over k:
//     4-bit cell, 8 k      byte 4r + j = code[r][8b + j] | code[r][8b + 4 + j] << 4          r < 16, j < 4
//     8-bit cell, 4 k      byte 4r + j = code[r][4b + j]
//     2-bit cell, 16 k     bits 2f .. of byte 4r + j = code[r][16b + 4f + j]                 1-bit, 32 k: likewise
//     16-bit cell, 2 k     bytes 4r .. 4r + 3 = code[r][2b], code[r][2b + 1]
//     3, 5, 6 bits, 32 k   cells of the low 2, 4, 4 bits, then cells of the high 1, 1, 2 bits
//   scales  [panel][group][line of 16]   (one lane where all rows of a panel share the scale)
//   offsets [panel][group][line of 16]
//   supers  [panel][super-group][16] fp16 d, then dmin        two_level
//           [groups / 256] float                              double_quantized
//
// Groups start at a k that is a multiple of 4 (groups of other sizes are padded); N is padded to 16 rows. Padding codes
// are zero bits and padding rows have scale zero. Why lanes are rows: no horizontal sum anywhere, so every instruction
// set adds the same numbers in the same order.
//
// A row block is a matrix whose layout begins inside the buffer of another: at a panel, maybe inside a tile of rows that
// share a scale, maybe inside a run of groups that share a second-level scale.
#pragma once

#include <algorithm>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "detail/dispatch.hpp"
#include "detail/fp_environment.hpp"
#include "granularity.hpp"
#include "quantizers/quantizer.hpp"
#include "view.hpp"

namespace nibble::inline NIBBLE_ABI {

inline constexpr index panel_rows = 16;
inline constexpr index cell_bytes = 64;

namespace detail {

/// 64-byte aligned bytes, zero from `zero_from` on. Large ones ask the operating system for large pages: touching fresh
/// memory in pages of 4 KiB takes several times as long as reading the weights, and streaming it later misses the TLB.
class aligned_bytes {
public:
    explicit aligned_bytes(std::size_t size, std::size_t zero_from = 0) : size_(size) {
        if (size == 0) return;
        data_ = static_cast<std::uint8_t*>(::operator new(size, alignment()));
#if defined(MADV_HUGEPAGE)
        if (size >= 4 * large_page) static_cast<void>(madvise(data_, size / large_page * large_page, MADV_HUGEPAGE));
#endif
        std::memset(data_ + zero_from, 0, size - zero_from);
    }
    aligned_bytes(const aligned_bytes&) = delete;
    aligned_bytes& operator=(const aligned_bytes&) = delete;
    ~aligned_bytes() {
        if (data_ != nullptr) ::operator delete(data_, alignment());
    }
    [[nodiscard]] std::uint8_t* data() noexcept { return data_; }
    [[nodiscard]] const std::uint8_t* data() const noexcept { return data_; }
    [[nodiscard]] std::size_t size() const noexcept { return size_; }

private:
    static constexpr std::size_t large_page = std::size_t{1} << 21;
    [[nodiscard]] std::align_val_t alignment() const noexcept { return std::align_val_t{size_ >= 4 * large_page ? large_page : 64}; }

    std::uint8_t* data_ = nullptr;
    std::size_t size_ = 0;
};

[[nodiscard]] constexpr index ceil_div(index a, index b) noexcept { return (a + b - 1) / b; }

/// a * b, or an error: sizes are checked before anything is allocated.
[[nodiscard]] inline index checked_product(index a, index b) {
    if (a != 0 && b > PTRDIFF_MAX / a)
        fail(errc::out_of_range, "qmatrix: " + std::to_string(a) + " * " + std::to_string(b) + " bytes do not fit in memory");
    return a * b;
}

/// Where everything lies in a matrix's one buffer. Positions are relative to data(); those of a row block are where its
/// first panel begins.
struct layout {
    index rows = 0, cols = 0;
    int bits = 0;                 // of a code
    index group = 1;              // columns of a group, >= 1
    index groups = 0;             // along one row
    index block_rows = 1;         // rows that share a scale
    index padded_group = 4;       // group rounded up to a k-quad
    index panels = 0;
    index panel_bytes = 0;        // codes of one panel
    int lanes = 16;               // of a scale line: 16, or 1 where a panel shares its scales
    int scale_bits = 0;
    int offset_bits = 0;
    index scale_line = 0;         // bytes
    index offset_line = 0;
    index supers = 0;             // second-level scales: along one row (two_level), or in all (double_quantized)
    index super_line = 0;         // bytes of one panel's d (and dmin) of one super-group
    index first_row = 0;          // of a row block: its place in the buffer. Tiles of rows and the supers of
                                  // double_quantized are counted from the buffer's first row
    index codes_at = 0, scales_at = 0, offsets_at = 0, supers_at = 0;
    index size = 0;               // of the whole buffer

    /// The first row's place in its tile of block_rows rows.
    [[nodiscard]] index tile_row() const noexcept { return first_row % block_rows; }
    [[nodiscard]] index position(index k) const noexcept { return k / group * padded_group + k % group; }
    /// Of one row, a whole number of k-quads.
    [[nodiscard]] index positions() const noexcept {
        return cols == 0 ? 0 : (groups - 1) * padded_group + ceil_div(cols - (groups - 1) * group, 4) * 4;
    }
    [[nodiscard]] index group_begin(index g) const noexcept { return g * group; }
    [[nodiscard]] index group_end(index g) const noexcept { return (std::min)(cols, (g + 1) * group); }

    friend bool operator==(const layout&, const layout&) noexcept = default;
};

[[nodiscard]] constexpr index line_bytes(int bits, int lanes) noexcept {
    return bits < 8 ? 2 * bits : static_cast<index>(bits) / 8 * lanes;  // b-bit lines are always whole
}

/// Bits of a stored offset.
[[nodiscard]] constexpr int offset_bits(offset_kind kind, const scale_scheme& s, int code_bits) noexcept {
    switch (kind) {
        case offset_kind::none: return 0;
        case offset_kind::zero_point: return code_bits;
        default: return s.bits;
    }
}

[[nodiscard]] inline layout make_layout(index rows, index cols, int code_bits, const scale_scheme& scheme,
                                        offset_kind offset, granularity g) {
    // One bound for every size below, so that none of them overflows.
    constexpr index most = PTRDIFF_MAX / 64 - 64;
    if (rows > most || cols > most)
        fail(errc::out_of_range, "qmatrix: a shape of " + std::to_string(rows) + "x" + std::to_string(cols) + " does not fit in memory");
    static_cast<void>(checked_product(checked_product(rows + 16, cols + 4), 32));
    layout l;
    l.rows = rows;
    l.cols = cols;
    l.bits = code_bits;
    l.group = std::max<index>(1, g.cols == 0 ? cols : (std::min)(g.cols, std::max<index>(1, cols)));
    l.groups = ceil_div(cols, l.group);
    l.block_rows = std::max<index>(1, g.rows == 0 ? rows : (std::min)(g.rows, std::max<index>(1, rows)));
    l.padded_group = ceil_div(l.group, 4) * 4;
    l.panels = ceil_div(rows, panel_rows);
    const bool two_planes = code_bits == 3 || code_bits == 5 || code_bits == 6;
    const index per_step = two_planes ? 32 : 32 / code_bits;
    const index step_bytes = two_planes ? cell_bytes * code_bits : cell_bytes;
    l.panel_bytes = checked_product(ceil_div(l.positions(), per_step), step_bytes);
    l.lanes = l.block_rows % panel_rows == 0 || l.block_rows >= rows ? 1 : 16;
    l.scale_bits = scheme.bits;
    l.offset_bits = offset_bits(offset, scheme, code_bits);
    if (l.offset_bits < 8 && l.offset_bits > 0) l.lanes = 16;  // lines of small integers are always whole
    if (l.scale_bits < 8 && l.scale_bits > 0) l.lanes = 16;
    l.scale_line = line_bytes(l.scale_bits, l.lanes);
    l.offset_line = line_bytes(l.offset_bits, l.lanes);
    if (scheme.storage == scale_storage::two_level) {
        l.supers = ceil_div(l.groups, scheme.span);
        l.super_line = panel_rows * 2 * (offset == offset_kind::minimum ? 2 : 1);
    } else if (scheme.storage == scale_storage::double_quantized) {
        l.supers = ceil_div(checked_product(rows, l.groups), scheme.span);
    }
    const index lines = checked_product(l.panels, l.groups);
    l.scales_at = checked_product(l.panels, l.panel_bytes);
    l.offsets_at = ceil_div(l.scales_at + checked_product(lines, l.scale_line), 64) * 64;
    l.supers_at = ceil_div(l.offsets_at + checked_product(lines, l.offset_line), 64) * 64;
    const index super_bytes =
        scheme.storage == scale_storage::double_quantized ? l.supers * 4 : l.panels * l.supers * l.super_line;
    l.size = l.supers_at + super_bytes;
    return l;
}

/// Bits of all scales and offsets, as the format itself counts them.
[[nodiscard]] inline double scale_bits(const layout& l, const scale_scheme& scheme, offset_kind offset) noexcept {
    const double groups = static_cast<double>(ceil_div(l.tile_row() + l.rows, l.block_rows)) * static_cast<double>(l.groups);
    const double bits = groups * (l.scale_bits + l.offset_bits);
    switch (scheme.storage) {
        case scale_storage::two_level:
            return bits + static_cast<double>(l.rows) * static_cast<double>(l.supers) * (offset == offset_kind::minimum ? 32.0 : 16.0);
        case scale_storage::double_quantized: return bits + 32.0 * static_cast<double>(l.supers) + 32.0;
        case scale_storage::e4m3_f32: return bits + 32.0;
        default: return bits;
    }
}

/// Reads one code of a panel at a padded position.
[[nodiscard]] inline unsigned get_code(const std::uint8_t* panel, int bits, int row, index position) noexcept {
    if (bits == 16) {
        std::uint16_t u;
        std::memcpy(&u, panel + position / 2 * cell_bytes + 4 * row + 2 * (position % 2), 2);
        return u;
    }
    const index block = position / 32;
    const int within = static_cast<int>(position % 32);
    const std::uint8_t* at = panel + block * cell_bytes * bits;
    unsigned code = 0;
    int done = 0;
    for (int plane = 8; plane != 0; plane >>= 1) {
        if ((bits & plane) == 0) continue;
        const int per_cell = 32 / plane;
        const std::uint8_t byte = at[within / per_cell * cell_bytes + 4 * row + within % 4];
        code |= ((static_cast<unsigned>(byte) >> (plane * (within % per_cell / 4))) & ((1u << plane) - 1)) << done;
        at += cell_bytes * plane;
        done += plane;
    }
    return code;
}

/// The codes of four consecutive positions (a k-quad) of one row, one byte each; for formats of at most 8 bits.
[[nodiscard]] inline std::uint32_t get_quad(const std::uint8_t* panel, int bits, int row, index position) noexcept {
    const int within = static_cast<int>(position % 32);
    const std::uint8_t* at = panel + position / 32 * cell_bytes * bits + 4 * row;
    std::uint32_t codes = 0;
    int done = 0;
    for (int plane = 8; plane != 0; plane >>= 1) {
        if ((bits & plane) == 0) continue;
        const int per_cell = 32 / plane;
        std::uint32_t word;
        std::memcpy(&word, at + within / per_cell * cell_bytes, 4);
        codes |= ((word >> (plane * (within % per_cell / 4))) & 0x01010101u * ((1u << plane) - 1)) << done;
        at += cell_bytes * plane;
        done += plane;
    }
    return codes;
}

/// Writes one code of a panel. The bits must be zero before.
inline void put_code(std::uint8_t* panel, int bits, int row, index position, unsigned code) noexcept {
    if (bits == 16) {
        const auto u = static_cast<std::uint16_t>(code);
        std::memcpy(panel + position / 2 * cell_bytes + 4 * row + 2 * (position % 2), &u, 2);
        return;
    }
    const index block = position / 32;
    const int within = static_cast<int>(position % 32);
    std::uint8_t* at = panel + block * cell_bytes * bits;
    for (int plane = 8; plane != 0; plane >>= 1) {
        if ((bits & plane) == 0) continue;
        const int per_cell = 32 / plane;
        std::uint8_t& byte = at[within / per_cell * cell_bytes + 4 * row + within % 4];
        byte = static_cast<std::uint8_t>(byte | ((code & ((1u << plane) - 1)) << (plane * (within % per_cell / 4))));
        code >>= plane;
        at += cell_bytes * plane;
    }
}

/// Writes the codes of four consecutive positions (a k-quad, one byte each) of one row. A row of a cell is four bytes,
/// so a quad is one word of it. The bits must be zero before.
inline void put_quad(std::uint8_t* panel, int bits, int row, index position, std::uint32_t codes) noexcept {
    const int within = static_cast<int>(position % 32);
    std::uint8_t* at = panel + position / 32 * cell_bytes * bits + 4 * row;
    for (int plane = 8; plane != 0; plane >>= 1) {
        if ((bits & plane) == 0) continue;
        const int per_cell = 32 / plane;
        const std::uint32_t mask = 0x01010101u * ((1u << plane) - 1);
        std::uint32_t word;
        std::memcpy(&word, at + within / per_cell * cell_bytes, 4);
        word |= (codes & mask) << (plane * (within % per_cell / 4));
        std::memcpy(at + within / per_cell * cell_bytes, &word, 4);
        codes >>= plane;
        at += cell_bytes * plane;
    }
}

}  // namespace detail

namespace detail {
enum class initial_codes : std::uint8_t { zero, unset };
}

struct transposed_qmatrix;

/// A quantized matrix of N x K weights (out x in). A value: copies share the immutable weights and cost nothing.
/// Made by quantize(), by a column_quantizer, or by a reader of checkpoint files.
class qmatrix {
public:
    /// An empty 0 x 0 matrix.
    qmatrix() noexcept = default;

    [[nodiscard]] index rows() const noexcept { return layout_.rows; }
    [[nodiscard]] index cols() const noexcept { return layout_.cols; }
    /// The name of the recipe it was made by, else of its code format.
    [[nodiscard]] const std::string& name() const noexcept { return name_; }
    [[nodiscard]] const code_format& format() const noexcept { return *format_; }
    [[nodiscard]] const scale_scheme& scheme() const noexcept { return scheme_; }
    [[nodiscard]] offset_kind offset_type() const noexcept { return offset_; }
    /// The code format with what keeps its table alive.
    [[nodiscard]] const format_handle& handle() const noexcept { return format_; }
    /// Rows and columns that share a scale. (The first tile of a row block may be the rest of one.)
    [[nodiscard]] granularity grouping() const noexcept {
        return {std::max<index>(1, (std::min)(layout_.block_rows, rows())), layout_.group};
    }
    [[nodiscard]] index group_size() const noexcept { return layout_.group; }
    /// Groups along one row.
    [[nodiscard]] index groups() const noexcept { return layout_.groups; }

    /// Bits per weight of the format itself: codes, scales and offsets, without this library's padding.
    [[nodiscard]] double bits_per_weight() const noexcept {
        const double weights = static_cast<double>(rows()) * static_cast<double>(cols());
        return weights == 0.0 ? 0.0 : format_bits() / weights;
    }
    /// Bytes of the format itself, rounded up.
    [[nodiscard]] std::size_t bytes() const noexcept { return static_cast<std::size_t>((format_bits() + 7.0) / 8.0); }
    /// Bytes that this object holds in memory, padding included. A row block keeps the whole of its matrix alive, and
    /// counts it.
    [[nodiscard]] std::size_t memory_bytes() const noexcept { return static_cast<std::size_t>(layout_.size); }

    /// The unsigned code of weight (n, k). Throws errc::out_of_range past the end, as the accessors below do.
    [[nodiscard]] unsigned code(index n, index k) const {
        check_element(n, k);
        return detail::get_code(panel(n / panel_rows), layout_.bits, static_cast<int>(n % panel_rows), layout_.position(k));
    }
    /// The decoded scale of group g of row n.
    [[nodiscard]] float scale(index n, index g) const {
        check_group(n, g);
        const detail::fp_environment environment;
        return decoded_scale(n, g).scale;
    }
    /// The decoded offset of group g of row n: the zero point, the float zero or the minimum; 0 if there is none.
    [[nodiscard]] float offset(index n, index g) const {
        check_group(n, g);
        const detail::fp_environment environment;
        return decoded_scale(n, g).offset;
    }
    /// The decoded weight (n, k): exactly the value that the format defines.
    [[nodiscard]] float operator()(index n, index k) const {
        check_element(n, k);
        const detail::fp_environment environment;
        return decoded_weight(n, k);
    }

    /// Rows [first, first + count) as a matrix of their own that shares this one's memory: nothing is copied. Products,
    /// decoded weights and stored numbers are those of the rows of this matrix, bit for bit. A block begins where a panel
    /// does: throws errc::invalid_argument unless first is a multiple of 16, errc::out_of_range past the end.
    [[nodiscard]] qmatrix row_block(index first, index count) const;

    /// For products with tokens as rows: X * Wq.transpose() is tokens x N.
    [[nodiscard]] transposed_qmatrix transpose() const;

    /// What groups [first, first + count) of a panel mean, as lines of 16 floats. Rows past the end have scale 0. Offsets
    /// are 0 where there are none.
    void expand_scales(index panel, index first, index count, float* scale, float* offset) const noexcept;

    // What a kernel reads. The layout is described at the top of this file.
    [[nodiscard]] detail::scale_source scales_of(index panel) const noexcept;
    [[nodiscard]] const detail::layout& layout() const noexcept { return layout_; }
    [[nodiscard]] const std::uint8_t* panel(index p) const noexcept {
        return data() + layout_.codes_at + p * layout_.panel_bytes;
    }
    /// The whole buffer, memory_bytes() long.
    [[nodiscard]] const std::uint8_t* data() const noexcept { return bytes_.get(); }
    /// The factor of the whole tensor (e4m3_f32), or the mean of the scales (double_quantized).
    [[nodiscard]] float tensor_scale() const noexcept { return tensor_scale_; }
    /// floor(log2) of the largest |scale * value| that occurs, -127 for a zero matrix. A row block has its matrix's.
    [[nodiscard]] int exponent() const noexcept { return exponent_; }

    /// The stored integer of group g of row n: the bits of a direct scale, the code of a two-level or double-quantized
    /// one. What a writer of files needs.
    [[nodiscard]] std::uint32_t stored_scale(index n, index g) const {
        check_group(n, g);
        return detail_stored(layout_.scales_at, layout_.scale_line, layout_.scale_bits, n, g);
    }
    [[nodiscard]] std::uint32_t stored_offset(index n, index g) const {
        check_group(n, g);
        return detail_stored(layout_.offsets_at, layout_.offset_line, layout_.offset_bits, n, g);
    }
    /// The fp16 d (and dmin) of super-group s of row n of a two-level matrix.
    [[nodiscard]] std::uint16_t stored_super(index n, index s, bool minimum = false) const noexcept {
        std::uint16_t u;
        std::memcpy(&u, super_line(n / panel_rows, s) + (minimum ? 32 : 0) + 2 * (n % panel_rows), 2);
        return u;
    }
    /// The s-th of the second-level absmaxes that the groups of a double-quantized matrix fall under. The first one of a
    /// row block may begin with groups of rows above.
    [[nodiscard]] float nested_absmax(index s) const noexcept {
        float f;
        std::memcpy(&f, data() + layout_.supers_at + 4 * (layout_.first_row * layout_.groups / scheme_.span + s), 4);
        return f;
    }

private:
    friend class qmatrix_builder;

    [[nodiscard]] const std::uint8_t* super_line(index panel, index s) const noexcept {
        return data() + layout_.supers_at + (panel * layout_.supers + s) * layout_.super_line;
    }
    [[nodiscard]] std::uint32_t detail_stored(index at, index line, int bits, index n, index g) const noexcept {
        if (bits == 0) return 0;
        const std::uint8_t* p = data() + at + (n / panel_rows * layout_.groups + g) * line;
        const int lane = layout_.lanes == 1 ? 0 : static_cast<int>(n % panel_rows);
        return bits < 8 ? detail::get_lane(p, bits, lane) : detail::load_bits(p + lane * (bits / 8), bits / 8);
    }
    // Not inlined: their arithmetic belongs inside the fp_environment of the caller.
    [[nodiscard]] group_scale decoded_scale(index n, index g) const noexcept;
    [[nodiscard]] float decoded_weight(index n, index k) const noexcept;
    [[nodiscard]] double format_bits() const noexcept;
    void check_element(index n, index k) const {
        if (n < 0 || n >= rows() || k < 0 || k >= cols())
            detail::fail(errc::out_of_range, "qmatrix: element (" + std::to_string(n) + ", " + std::to_string(k) +
                                                 ") of a " + detail::shape_text(rows(), cols()) + " matrix");
    }
    void check_group(index n, index g) const {
        if (n < 0 || n >= rows() || g < 0 || g >= groups())
            detail::fail(errc::out_of_range, "qmatrix: group (" + std::to_string(n) + ", " + std::to_string(g) + ") of " +
                                                 detail::shape_text(rows(), groups()) + " groups");
    }

    format_handle format_{int8::format};
    scale_scheme scheme_;
    offset_kind offset_ = offset_kind::none;
    detail::layout layout_;
    float tensor_scale_ = 1.0f;
    int exponent_ = -127;
    std::string name_;
    std::shared_ptr<const std::uint8_t> bytes_;  // with what keeps them alive
};

/// A quantized matrix that stands transposed in a product.
struct transposed_qmatrix {
    qmatrix matrix;
};

inline transposed_qmatrix qmatrix::transpose() const { return {*this}; }

inline detail::scale_source qmatrix::scales_of(index panel) const noexcept {
    const detail::layout& l = layout_;
    const bool nested = scheme_.storage == scale_storage::double_quantized;
    detail::scale_source s;
    s.scales = data() + l.scales_at + panel * l.groups * l.scale_line;
    s.offsets = data() + l.offsets_at + panel * l.groups * l.offset_line;
    s.supers = data() + l.supers_at + (nested ? 0 : panel * l.supers * l.super_line);
    s.scale_line = l.scale_line;
    s.offset_line = l.offset_line;
    s.super_line = l.super_line;
    s.span = scheme_.span;
    s.groups = l.groups;
    s.first_row = l.first_row + panel * panel_rows;
    s.live = static_cast<int>((std::min)(panel_rows, l.rows - panel * panel_rows));
    s.storage = static_cast<std::uint8_t>(scheme_.storage);
    s.offset = static_cast<std::uint8_t>(offset_);
    s.is_signed = scheme_.is_signed;
    s.shared = l.lanes == 1;
    s.scale_bits = l.scale_bits;
    s.offset_bits = l.offset_bits;
    s.tensor_scale = tensor_scale_;
    return s;
}

inline double qmatrix::format_bits() const noexcept {
    const double weights = static_cast<double>(layout_.rows) * static_cast<double>(layout_.cols);
    return weights == 0.0 ? 0.0 : weights * layout_.bits + detail::scale_bits(layout_, scheme_, offset_);
}

inline qmatrix qmatrix::row_block(index first, index count) const {
    if (first < 0 || count < 0 || first > rows() || count > rows() - first)
        detail::fail(errc::out_of_range, "row_block: " + std::to_string(count) + " rows from row " + std::to_string(first) +
                                             " of a " + detail::shape_text(rows(), cols()) + " matrix");
    if (first % panel_rows != 0)
        detail::fail(errc::invalid_argument, "row_block: it would begin at row " + std::to_string(first) +
                                                 ", but blocks begin at multiples of 16 rows");
    qmatrix block = *this;
    detail::layout& l = block.layout_;
    const index panel = first / panel_rows;
    l.rows = count;
    l.panels = detail::ceil_div(count, panel_rows);
    l.codes_at += panel * l.panel_bytes;
    l.scales_at += panel * l.groups * l.scale_line;
    l.offsets_at += panel * l.groups * l.offset_line;
    l.first_row += first;
    if (scheme_.storage == scale_storage::two_level) {
        l.supers_at += panel * l.supers * l.super_line;
    } else if (scheme_.storage == scale_storage::double_quantized) {
        l.supers = detail::ceil_div(l.first_row * l.groups % scheme_.span + count * l.groups, scheme_.span);
    }
    return block;
}

#if NIBBLE_DEFINE_API
NIBBLE_FP_BEGIN

NIBBLE_NOINLINE NIBBLE_API void qmatrix::expand_scales(index panel, index first, index count, float* scale, float* offset) const noexcept {
    if (offset_ == offset_kind::none) std::memset(offset, 0, static_cast<std::size_t>(16 * count) * sizeof(float));
    detail::active_kernels().expand(scales_of(panel), first, count, 1.0f, false, scale, offset);
}

NIBBLE_NOINLINE NIBBLE_API group_scale qmatrix::decoded_scale(index n, index g) const noexcept {
    float s[panel_rows], o[panel_rows];
    expand_scales(n / panel_rows, g, 1, s, o);
    return {s[n % panel_rows], o[n % panel_rows]};
}

NIBBLE_NOINLINE NIBBLE_API float qmatrix::decoded_weight(index n, index k) const noexcept {
    const group_scale s = decoded_scale(n, k / layout_.group);
    const unsigned u = detail::get_code(panel(n / panel_rows), layout_.bits, static_cast<int>(n % panel_rows), layout_.position(k));
    return detail::decode_weight(*format_, offset_, u, s.scale, s.offset);
}

NIBBLE_FP_END
#endif

/// Fills a qmatrix: what quantize() and every reader of files is built on. Scales first, then codes; finish() hands the
/// matrix over.
class qmatrix_builder {
public:
    /// Throws errc::unsupported when the combination does not exist and errc::invalid_argument for bad shapes. Codes are
    /// zero, unless they are `unset` for a caller who writes every panel as a whole.
    qmatrix_builder(index rows, index cols, format_handle format, const scale_scheme& scheme, offset_kind offset,
                    granularity group, std::string name = {}, detail::initial_codes codes = detail::initial_codes::zero)
        : bytes_(nullptr) {
        check_combination(rows, cols, *format, scheme, offset, group).or_throw();
        m_.format_ = format;
        m_.scheme_ = scheme;
        m_.offset_ = offset;
        m_.layout_ = detail::make_layout(rows, cols, format->bits, scheme, offset, group);
        m_.name_ = name.empty() ? format->name : std::move(name);
        bytes_ = std::make_shared<detail::aligned_bytes>(
            static_cast<std::size_t>(m_.layout_.size),
            static_cast<std::size_t>(codes == detail::initial_codes::zero ? 0 : m_.layout_.scales_at));
        m_.bytes_ = std::shared_ptr<const std::uint8_t>(bytes_, bytes_->data());
    }

    /// A matrix that refers to memory of another owner, laid out as make_layout() says: a mapped file. Kernels ask for no
    /// alignment. Nothing is read, and nothing is checked but the combination.
    [[nodiscard]] static qmatrix adopt(std::shared_ptr<const std::uint8_t> bytes, index rows, index cols, format_handle format,
                                       const scale_scheme& scheme, offset_kind offset, granularity group, std::string name,
                                       float tensor_scale, int exponent) {
        check_combination(rows, cols, *format, scheme, offset, group).or_throw();
        qmatrix m;
        m.layout_ = detail::make_layout(rows, cols, format->bits, scheme, offset, group);
        m.format_ = std::move(format);
        m.scheme_ = scheme;
        m.offset_ = offset;
        m.name_ = std::move(name);
        m.tensor_scale_ = tensor_scale;
        m.exponent_ = exponent;
        m.bytes_ = std::move(bytes);
        return m;
    }
    /// What exponent() of a matrix must be, from its scales.
    [[nodiscard]] static int measure_exponent(const qmatrix& m) noexcept;

    /// Whether such a matrix exists; the message says what does.
    [[nodiscard]] static status check_combination(index rows, index cols, const code_format& format,
                                                  const scale_scheme& scheme, offset_kind offset, granularity group) {
        const auto bad = [](errc code, const std::string& text) { return status(code, "qmatrix: " + text); };
        if (rows < 0 || cols < 0) return bad(errc::invalid_argument, "a shape of " + detail::shape_text(rows, cols));
        if (group.rows < 0 || group.cols < 0)
            return bad(errc::invalid_argument, "a granularity of " + detail::shape_text(group.rows, group.cols) +
                                                   " (0 means all, else at least 1)");
        if (format.decode != decode_class::integer && offset != offset_kind::none)
            return bad(errc::unsupported, std::string(format.name) + " has no " + name_of(offset) +
                                              "; offsets go with the integer formats");
        if (offset != offset_kind::none && (&format == &binary::format || &format == &ternary::format))
            return bad(errc::unsupported, std::string(format.name) + " has no " + name_of(offset) +
                                              "; use int2 for two bits with an offset");
        if (format.decode == decode_class::wide && scheme.storage != scale_storage::none)
            return bad(errc::unsupported, std::string(format.name) + " has no scale, but the scheme is " +
                                              name_of(scheme.storage));
        if (format.decode != decode_class::wide && scheme.storage == scale_storage::none)
            return bad(errc::unsupported, std::string(format.name) + " needs a scale scheme other than none");
        const bool floats = offset == offset_kind::minimum || offset == offset_kind::float_zero;
        const bool direct = scheme.storage == scale_storage::f32 || scheme.storage == scale_storage::f16 ||
                            scheme.storage == scale_storage::bf16;
        const bool two_level = scheme.storage == scale_storage::two_level;
        if (floats && !direct && !(two_level && offset == offset_kind::minimum))
            return bad(errc::unsupported, std::string("a ") + name_of(offset) + " cannot be stored in scheme " +
                                              name_of(scheme.storage) + "; use f32, f16 or bf16" +
                                              (offset == offset_kind::minimum ? ", or two_level" : ""));
        if (two_level && (scheme.bits < 1 || scheme.bits > 8 || scheme.span < 1))
            return bad(errc::invalid_argument, "two_level scales of " + std::to_string(scheme.bits) + " bits, " +
                                                   std::to_string(scheme.span) + " groups to one d");
        const bool by_row = group.rows == 1 || (rows <= 1 && group.rows <= 1);
        if ((two_level || scheme.storage == scale_storage::double_quantized) && !by_row)
            return bad(errc::unsupported, std::string(name_of(scheme.storage)) + " scales belong to groups of one row");
        return {};
    }

    [[nodiscard]] const detail::layout& layout() const noexcept { return m_.layout_; }
    /// The buffer, for whoever copies whole panels and lines.
    [[nodiscard]] std::uint8_t* data() noexcept { return bytes_->data(); }
    /// The matrix as far as it is filled.
    [[nodiscard]] const qmatrix& peek() const noexcept { return m_; }

    void set_code(index n, index k, unsigned code) noexcept {
        detail::put_code(bytes_->data() + n / panel_rows * layout().panel_bytes, layout().bits,
                         static_cast<int>(n % panel_rows), layout().position(k), code);
    }
    /// All K codes of row n at once, one byte each; for formats of at most 8 bits.
    void set_row(index n, const std::uint8_t* codes) noexcept {
        const detail::layout& l = layout();
        std::uint8_t* panel = bytes_->data() + n / panel_rows * l.panel_bytes;
        for (index g = 0; g < l.groups; ++g) {
            const index end = l.group_end(g);
            index position = g * l.padded_group;
            for (index k = l.group_begin(g); k < end; k += 4, position += 4) {
                std::uint32_t quad = 0;
                std::memcpy(&quad, codes + k, static_cast<std::size_t>(std::min<index>(4, end - k)));
                detail::put_quad(panel, l.bits, static_cast<int>(n % panel_rows), position, quad);
            }
        }
    }
    /// The cells of panel p, layout().panel_bytes of them.
    [[nodiscard]] std::uint8_t* panel(index p) noexcept { return bytes_->data() + p * layout().panel_bytes; }
    /// Stores the bits (direct schemes) or the code of the scale of row n, group g.
    void set_scale(index n, index g, std::uint32_t stored) noexcept {
        set_stored(layout().scales_at, layout().scale_line, layout().scale_bits, n, g, stored);
    }
    void set_offset(index n, index g, std::uint32_t stored) noexcept {
        set_stored(layout().offsets_at, layout().offset_line, layout().offset_bits, n, g, stored);
    }
    /// Those of all groups of row n.
    void set_scales(index n, const std::uint32_t* stored) noexcept {
        set_stored_row(layout().scales_at, layout().scale_line, layout().scale_bits, n, stored);
    }
    void set_offsets(index n, const std::uint32_t* stored) noexcept {
        set_stored_row(layout().offsets_at, layout().offset_line, layout().offset_bits, n, stored);
    }
    void set_super(index n, index s, std::uint16_t d, bool minimum = false) noexcept {
        const detail::layout& l = layout();
        std::uint8_t* line = bytes_->data() + l.supers_at + (n / panel_rows * l.supers + s) * l.super_line;
        std::memcpy(line + (minimum ? 32 : 0) + 2 * (n % panel_rows), &d, 2);
    }
    void set_nested_absmax(index s, float absmax) noexcept {
        std::memcpy(bytes_->data() + layout().supers_at + 4 * s, &absmax, 4);
    }
    void set_tensor_scale(float s) noexcept { m_.tensor_scale_ = s; }

    /// Hands the matrix over; the builder is empty afterwards.
    [[nodiscard]] qmatrix finish() &&;

private:
    [[nodiscard]] static float largest_stored(const qmatrix& m, index at, index line, int bits) noexcept;
    void set_stored(index at, index line, int bits, index n, index g, std::uint32_t stored) noexcept {
        if (bits == 0) return;
        std::uint8_t* p = bytes_->data() + at + (n / panel_rows * layout().groups + g) * line;
        const int lane = layout().lanes == 1 ? 0 : static_cast<int>(n % panel_rows);
        if (bits < 8) detail::set_lane(p, bits, lane, stored);
        else detail::store_bits(p + lane * (bits / 8), bits / 8, stored);
    }

    void set_stored_row(index at, index line, int bits, index n, const std::uint32_t* stored) noexcept {
        const detail::layout& l = layout();
        const index groups = l.groups;
        if (bits == 0) return;
        std::uint8_t* p = bytes_->data() + at + n / panel_rows * groups * line;
        const int lane = l.lanes == 1 ? 0 : static_cast<int>(n % panel_rows);
        if (bits == 16) {
            for (index g = 0; g < groups; ++g) detail::store_bits(p + g * line + 2 * lane, 2, stored[g]);
        } else if (bits == 4) {
            for (index g = 0; g < groups; ++g) detail::set_lane(p + g * line, 4, lane, stored[g]);
        } else {
            for (index g = 0; g < groups; ++g) set_stored(at, line, bits, n, g, stored[g]);
        }
    }

    qmatrix m_;
    std::shared_ptr<detail::aligned_bytes> bytes_;
};

#if NIBBLE_DEFINE_API
NIBBLE_FP_BEGIN

/// The largest magnitude of the floats in all lines, which is that of the largest bits; 0 where lines hold other numbers.
NIBBLE_NOINLINE NIBBLE_API float qmatrix_builder::largest_stored(const qmatrix& m, index at, index line, int bits) noexcept {
    const index count = m.layout().panels * m.layout().groups * line / (bits == 16 ? 2 : 4);
    const std::uint8_t* from = m.data() + at;
    std::uint32_t largest = 0;
    for (index i = 0; i < count && bits == 16; ++i) {
        std::uint16_t u;
        std::memcpy(&u, from + 2 * i, 2);
        largest = (std::max)(largest, u & 0x7fffu);
    }
    for (index i = 0; i < count && bits == 32; ++i) {
        std::uint32_t u;
        std::memcpy(&u, from + 4 * i, 4);
        largest = (std::max)(largest, u & 0x7fffffffu);
    }
    switch (m.scheme_.storage) {
        case scale_storage::f32:
        case scale_storage::f16:
        case scale_storage::bf16: return detail::decode_stored(m.scheme_.storage, largest);
        default: return 0.0f;
    }
}

NIBBLE_NOINLINE NIBBLE_API int qmatrix_builder::measure_exponent(const qmatrix& m) noexcept {
    // The largest |scale| times the largest |value| bounds every weight; products use it to stay clear of underflow.
    const detail::layout& l = m.layout();
    float value = m.format_->max_value;
    if (m.offset_ != offset_kind::none) value = static_cast<float>(m.format_->code_count());
    if (m.format_->decode == decode_class::wide) value = 1.0f;
    float largest = largest_stored(m, l.scales_at, l.scale_line, l.scale_bits);
    if (m.offset_ == offset_kind::minimum) largest = (std::max)(largest, largest_stored(m, l.offsets_at, l.offset_line, l.offset_bits) / value);
    const bool known = m.scheme_.storage == scale_storage::f32 || m.scheme_.storage == scale_storage::f16 || m.scheme_.storage == scale_storage::bf16;
    if (!known || !detail::is_finite_bits(detail::bits_of(largest))) {
        constexpr index at_once = 16;
        float s[16 * at_once], o[16 * at_once];
        const auto largest_bits = detail::active_kernels().largest_bits;
        std::uint32_t most = 0, most_offset = 0;
        for (index p = 0; p < l.panels; ++p) {
            for (index g = 0; g < l.groups; g += at_once) {
                const index count = (std::min)(at_once, l.groups - g);
                m.expand_scales(p, g, count, s, o);
                most = (std::max)(most, largest_bits(s, 16 * count));
                if (m.offset_ == offset_kind::minimum) most_offset = (std::max)(most_offset, largest_bits(o, 16 * count));
            }
        }
        largest = (std::max)(detail::float_of(most), detail::float_of(most_offset) / value);
    }
    const int e = largest > 0.0f ? detail::exponent_of(largest) + detail::exponent_of(value) : -127;
    return e < -127 ? -127 : e > 128 ? 128 : e;
}

NIBBLE_API qmatrix qmatrix_builder::finish() && {
    const detail::fp_environment environment;
    m_.exponent_ = measure_exponent(m_);
    qmatrix out = std::move(m_);
    m_ = qmatrix();
    bytes_.reset();
    return out;
}

NIBBLE_FP_END
#endif

}  // namespace nibble
