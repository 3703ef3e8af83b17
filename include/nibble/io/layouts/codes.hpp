// How the numbers of checkpoint layouts get in and out: bit fields, words of codes into cells, columns in the order of
// their groups, tensors to be written.
#pragma once

#include <numeric>

#include "../../executor.hpp"
#include "common.hpp"

namespace nibble::inline NIBBLE_ABI::io::layouts::detail {

// --- bit fields ----------------------------------------------------------------------------------------------------

/// Field i of a stream of `bits`-bit fields, least significant first and without gaps, in 32-bit words that lie
/// `stride` words apart.
[[nodiscard]] inline unsigned get_field(const std::byte* words, index stride, int bits, index i) noexcept {
    const index first = i * bits;
    std::uint32_t low;
    std::memcpy(&low, words + 4 * (first / 32 * stride), 4);
    std::uint64_t u = low;
    if (first % 32 + bits > 32) {
        std::uint32_t high;
        std::memcpy(&high, words + 4 * ((first / 32 + 1) * stride), 4);
        u |= std::uint64_t{high} << 32;
    }
    return static_cast<unsigned>(u >> (first % 32)) & ((1u << bits) - 1);
}
/// The same into words that are zero there.
inline void put_field(std::byte* words, index stride, int bits, index i, unsigned value) noexcept {
    const index first = i * bits;
    const std::uint64_t u = std::uint64_t{value} << (first % 32);
    for (int part = 0; part < (first % 32 + bits > 32 ? 2 : 1); ++part) {
        std::byte* const at = words + 4 * ((first / 32 + part) * stride);
        std::uint32_t word;
        std::memcpy(&word, at, 4);
        word |= static_cast<std::uint32_t>(u >> (32 * part));
        std::memcpy(at, &word, 4);
    }
}

// --- codes and scales ----------------------------------------------------------------------------------------------

/// The format of b-bit integers, b = 1 .. 8, and what to add to their codes: 1- and 7-bit codes are those of int2 and
/// int8 moved up, so that the middle stays the middle.
struct integer_codes {
    const code_format* format = nullptr;
    unsigned shift = 0;
};
[[nodiscard]] constexpr integer_codes codes_of(int bits) noexcept {
    switch (bits) {
        case 1: return {&int2::format, 1};
        case 2: return {&int2::format, 0};
        case 3: return {&int3::format, 0};
        case 4: return {&int4::format, 0};
        case 5: return {&int5::format, 0};
        case 6: return {&int6::format, 0};
        case 7: return {&int8::format, 64};
        case 8: return {&int8::format, 0};
        default: return {};
    }
}

/// body(first, last) for ranges of panels that make up a matrix, on an executor if there is one.
template <class Body>
inline void for_panels(const qmatrix_builder& out, executor* threads, Body body) {
    const index panels = out.layout().panels;
    const index tasks = threads == nullptr ? (std::min)(index{1}, panels) : (std::min)(index{4} * threads->concurrency(), panels);
    (threads != nullptr ? *threads : serial()).parallel_for(tasks, [&](index t) { body(panels * t / tasks, panels * (t + 1) / tasks); });
}

/// scale(n, g) and, where the matrix has offsets, offset(n, g) are the stored bits of all groups.
template <class Scale, class Offset>
inline void set_groups(qmatrix_builder& out, executor* threads, Scale scale, Offset offset) {
    const nibble::detail::layout& l = out.layout();
    for_panels(out, threads, [&](index begin, index end) {
        for (index p = begin; p < end; ++p)
            for (index g = 0; g < l.groups; ++g)
                for (index n = p * panel_rows; n < (std::min)(l.rows, (p + 1) * panel_rows); ++n) {
                    out.set_scale(n, g, scale(n, g));
                    if (l.offset_bits != 0) out.set_offset(n, g, offset(n, g));
                }
    });
}
template <class Scale>
inline void set_groups(qmatrix_builder& out, executor* threads, Scale scale) {
    set_groups(out, threads, scale, [](index, index) { return 0u; });
}

/// fill(first, count, codes) writes the codes of `count` rows, `cols` bytes each. Column j of the matrix is column
/// permutation[j] of those, or column j where there is no permutation.
template <class Fill>
inline void set_rows(qmatrix_builder& out, executor* threads, std::span<const index> permutation, Fill fill) {
    const index rows = out.layout().rows;
    const index cols = out.layout().cols;
    if (cols == 0) return;
    for_panels(out, threads, [&](index begin, index end) {
        std::vector<std::uint8_t> codes(static_cast<std::size_t>(panel_rows * cols));
        std::vector<std::uint8_t> ordered(permutation.size());
        for (index first = begin * panel_rows; first < (std::min)(rows, end * panel_rows); first += panel_rows) {
            const index count = (std::min)(panel_rows, rows - first);
            fill(first, count, codes.data());
            for (index r = 0; r < count; ++r) {
                const std::uint8_t* row = codes.data() + r * cols;
                for (std::size_t j = 0; j < ordered.size(); ++j) ordered[j] = row[permutation[j]];
                out.set_row(first + r, ordered.empty() ? row : ordered.data());
            }
        }
    });
}

/// Eight 4-bit codes, code i at bit 4 i, in the order of a cell: those of the high half between those of the low one.
[[nodiscard]] constexpr std::uint32_t cell_word(std::uint32_t u) noexcept {
    std::uint32_t low = u & 0xffffu, high = u >> 16;
    low = (low | low << 8) & 0x00ff00ffu;
    high = (high | high << 8) & 0x00ff00ffu;
    low = (low | low << 4) & 0x0f0f0f0fu;
    high = (high | high << 4) & 0x0f0f0f0fu;
    return low | high << 4;
}

/// Whether set_words can fill a matrix: 4 or 8 bits, rows that end with a word, groups that end with a k-quad.
[[nodiscard]] constexpr bool by_words(int bits, index cols, index group) noexcept {
    return (bits == 4 || bits == 8) && cols % (32 / bits) == 0 && (group == 0 || cols <= group || group % 4 == 0);
}
/// set_words writes all codes; everyone else needs zeros to begin with.
[[nodiscard]] constexpr nibble::detail::initial_codes initial(bool words) noexcept {
    return words ? nibble::detail::initial_codes::unset : nibble::detail::initial_codes::zero;
}

/// The fast way for 4 and 8 bits, where words of codes become words of cells: word(n, i) is the i-th word of row n, codes
/// in the order of their bits. Rows: words of a row follow each other in the file, else those of 16 rows do. Blocks of 16
/// words a row, because 16 rows that are a power of two apart share few lines of the cache.
template <bool Rows, class Word>
inline void set_words(qmatrix_builder& out, executor* threads, Word word) {
    const nibble::detail::layout& l = out.layout();
    const index words = l.cols * l.bits / 32;
    for_panels(out, threads, [&](index begin, index end) {
        std::uint32_t block[16][panel_rows] = {};
        for (index p = begin; p < end; ++p) {
            const index first = p * panel_rows, live = (std::min)(panel_rows, l.rows - first);
            if (live < panel_rows) std::memset(block, 0, sizeof block);
            std::uint8_t* to = out.panel(p);
            for (index i = 0; i < words; i += 16) {
                const index count = (std::min)(index{16}, words - i);
                for (index a = 0; a < (Rows ? live : count); ++a)
                    for (index b = 0; b < (Rows ? count : live); ++b)
                        (Rows ? block[b][a] : block[a][b]) = word(first + (Rows ? a : b), i + (Rows ? b : a));
                if (l.bits == 4)
                    for (auto& line : block)
                        for (std::uint32_t& u : line) u = cell_word(u);
                std::memcpy(to, block, static_cast<std::size_t>(count * cell_bytes));
                to += count * cell_bytes;
            }
        }
    });
}
/// Word i of a byte sequence, which need not be aligned.
[[nodiscard]] inline std::uint32_t word_at(const std::byte* bytes, index i) noexcept {
    std::uint32_t u;
    std::memcpy(&u, bytes + 4 * i, 4);
    return u;
}

/// The columns of a layer in an order in which its groups are runs, cut into runs of one length.
struct column_runs {
    index size = 1;                  // columns of a run; the last may have fewer
    std::vector<index> group;        // of each run
    std::vector<index> permutation;  // column j of the ordered matrix is input permutation[j]; empty: j
};

/// Groups of `size` columns in the order of the columns.
[[nodiscard]] inline column_runs plain_runs(index cols, index size) {
    column_runs runs;
    runs.size = (std::max)(index{1}, size);
    runs.group.resize(static_cast<std::size_t>(ceil_div(cols, runs.size)));
    std::iota(runs.group.begin(), runs.group.end(), index{0});
    return runs;
}

/// The groups that a g_idx tensor (I32 [cols], values below `groups`) assigns. Groups keep the order of their columns.
/// Runs are as long as fits: the group size for the files that quantizers write, the common divisor of all places where
/// a group ends for others.
[[nodiscard]] inline column_runs indexed_runs(const tensor& g_idx, index cols, index groups, checks& check) {
    column_runs runs;
    std::vector<index> begin(static_cast<std::size_t>(groups) + 1);
    for (index k = 0; k < cols; ++k) {
        const auto g = at<std::int32_t>(g_idx, k);
        if (g < 0 || g >= groups) {
            check.fail_at(g_idx, k,
                          "is " + std::to_string(g) + ", but there are " + std::to_string(groups) + " groups");
            return runs;
        }
        ++begin[static_cast<std::size_t>(g) + 1];
    }
    std::partial_sum(begin.begin(), begin.end(), begin.begin());
    index size = 0;
    for (const index b : begin)
        if (b != cols) size = std::gcd(size, b);
    runs.size = size == 0 ? (std::max)(index{1}, cols) : size;
    std::vector<index> next(begin.begin(), begin.end() - 1);
    runs.permutation.resize(static_cast<std::size_t>(cols));
    bool same_order = true;
    for (index k = 0; k < cols; ++k) {
        const index j = next[static_cast<std::size_t>(at<std::int32_t>(g_idx, k))]++;
        runs.permutation[static_cast<std::size_t>(j)] = k;
        same_order = same_order && j == k;
    }
    for (index j = 0; j < cols; j += runs.size)
        runs.group.push_back(at<std::int32_t>(g_idx, runs.permutation[static_cast<std::size_t>(j)]));
    if (same_order) runs.permutation.clear();
    return runs;
}

/// Bias: F32, F16 or BF16, [rows] elements of it from `first` on.
inline void read_bias(const tensor* bias, index first, index rows, std::vector<float>& out) {
    if (bias == nullptr) return;
    out.resize(static_cast<std::size_t>(rows));
    for (index n = 0; n < rows; ++n) out[static_cast<std::size_t>(n)] = float_at(*bias, first + n);
}
inline void check_bias(checks& check, const tensor* bias, index rows) {
    if (bias == nullptr) return;
    check.type(*bias, float_types);
    check.shape(*bias, {rows});
    check.finite(*bias);
}

// --- writers -------------------------------------------------------------------------------------------------------

/// A tensor of zero bytes.
[[nodiscard]] inline tensor_data make_tensor(std::string name, dtype type, std::initializer_list<index> shape) {
    tensor_data t{std::move(name), type, {}, {}};
    index bits = static_cast<index>(safetensors::bits_of(type));
    for (const index d : shape) {
        t.shape.push_back(static_cast<std::uint64_t>(d));
        bits = nibble::detail::checked_product(bits, d);
    }
    t.bytes.resize(static_cast<std::size_t>(ceil_div(bits, 8)));
    return t;
}
template <class T>
inline void put(tensor_data& t, index i, T value) noexcept {
    std::memcpy(t.bytes.data() + static_cast<std::size_t>(i) * sizeof(T), &value, sizeof(T));
}
/// Stores the low bits of a scale as element i.
inline void put_bits(tensor_data& t, index i, std::uint32_t bits) noexcept {
    const std::size_t size = safetensors::bits_of(t.type) / 8;
    std::memcpy(t.bytes.data() + static_cast<std::size_t>(i) * size, &bits, size);
}
/// The dtype of stored scales; U8 where a scheme has none of its own.
[[nodiscard]] constexpr dtype dtype_of(scale_storage s) noexcept {
    switch (s) {
        case scale_storage::f32: return dtype::f32;
        case scale_storage::f16: return dtype::f16;
        case scale_storage::bf16: return dtype::bf16;
        case scale_storage::e4m3:
        case scale_storage::e4m3_f32: return dtype::f8_e4m3;
        default: return dtype::u8;
    }
}
[[nodiscard]] constexpr bool is_direct(scale_storage s) noexcept {
    return s == scale_storage::f32 || s == scale_storage::f16 || s == scale_storage::bf16;
}
/// A group, or the only tile of rows, begins with the first row; so scales can be read from tile to tile.
[[nodiscard]] inline bool whole_tiles(const qmatrix& m) noexcept { return m.layout().tile_row() == 0; }
[[nodiscard]] inline bool by_row(const qmatrix& m) noexcept { return m.layout().block_rows == 1; }

[[nodiscard]] inline nibble::failure misfit(const char* layout, const qmatrix& m, std::string_view fits) {
    return {errc::unsupported,
            std::string(layout) + " does not hold " + m.name() + " " + nibble::detail::shape_text(m.rows(), m.cols()) +
                " (" + m.format().name + " codes, " + name_of(m.scheme().storage) + " scales, offset " +
                name_of(m.offset_type()) + ", groups of " +
                nibble::detail::shape_text(m.grouping().rows, m.grouping().cols) + "); it takes " + std::string(fits),
            0};
}

/// The code of weight (n, k) and its zero point, as the layouts write them: symmetric codes are measured from the middle.
[[nodiscard]] inline unsigned zero_of(const qmatrix& m, index n, index g) {
    return m.offset_type() == offset_kind::zero_point ? m.stored_offset(n, g) : m.format().zero_code;
}

}  // namespace nibble::io::layouts::detail
