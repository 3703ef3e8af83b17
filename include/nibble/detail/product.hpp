// From a matrix and its activations to kernel calls: which kernels, in what order, over which memory.
//
//   columns   each column of X is prepared (activations.hpp) and packed into tiles of C columns, [tile][k-quad][column], so
//             that a kernel sweeps contiguous memory
//   panels    each panel of W (a tile of two at some levels) runs over K in stretches whose codes, where they have to be
//             unpacked, and scales fit in L1; every stretch meets all column tiles. Weights stream once
//   output    a finished panel goes to Y
//
// Tasks are whole columns, then whole panels: no sum is ever split, so threads change no bit. Columns that the class cannot
// carry are computed afterwards by strict_f32, a tile at a time.
#pragma once

#include "../activations.hpp"
#include "../executor.hpp"
#include "../workspace.hpp"
#include "fp_environment.hpp"

namespace nibble::inline NIBBLE_ABI::detail {

NIBBLE_FP_BEGIN

/// How the codes of a matrix become the unsigned integers of at most 8 bits that digit kernels multiply.
struct integer_map {
    bool identity = true;      // the code itself
    std::uint8_t table[16] = {};
    int zero = 0;              // subtracted, where the matrix has no zero points of its own
    int largest = 0;           // integer
    float unit = 1.0f;         // of the values
};

[[nodiscard]] inline integer_map integers_of(const code_format& f, offset_kind offset) noexcept {
    integer_map m;
    m.largest = static_cast<int>(f.code_count()) - 1;
    if (offset != offset_kind::none) return m;
    m.unit = f.unit;
    const bool steps_of_one = f.decode == decode_class::integer && f.values[1] - f.values[0] == 1.0f;
    if (steps_of_one) {
        m.zero = -static_cast<int>(f.values[0]);
        return m;
    }
    m.identity = false;
    float low = f.values[0];
    float high = f.values[0];
    for (unsigned u = 1; u < f.code_count(); ++u) {
        low = f.values[u] < low ? f.values[u] : low;
        high = f.values[u] > high ? f.values[u] : high;
    }
    for (unsigned u = 0; u < f.code_count(); ++u) m.table[u] = static_cast<std::uint8_t>((f.values[u] - low) / f.unit);
    m.zero = -static_cast<int>(low / f.unit);
    m.largest = static_cast<int>((high - low) / f.unit);
    return m;
}

/// k-quads that 16-bit sums of codes up to `largest` hold.
[[nodiscard]] constexpr index flush_quads(int largest) noexcept { return 32767 / (256 * (largest < 1 ? 1 : largest)); }

/// Whether narrow kernels do with fewer multiplications than wide ones: a digit costs one and its share of a flush, while
/// wide kernels take two for up to two digits and four for three.
[[nodiscard]] constexpr bool prefers_narrow(int largest, int digits) noexcept {
    if (largest > 127) return false;
    const index flush = flush_quads(largest);
    return 10 * digits * (flush + 1) <= 23 * flush * (digits == 3 ? 2 : 1);
}

/// The columns of a product: where X comes from.
struct column_source {
    const const_view* x = nullptr;          // K x M
    const index* chosen = nullptr;          // the columns that count, or all
    [[nodiscard]] index column(index j) const noexcept { return chosen != nullptr ? chosen[j] : j; }
};

/// Where a finished line of 16 outputs goes.
class output {
public:
    explicit output(const float_view& y) noexcept : y_(y) {}
    NIBBLE_INLINE void store(const float* line, index first_row, index live, index column, int exponent) const noexcept {
        for (index r = 0; r < live; ++r) {
            float v = exponent == 0 ? line[r] : scale_by_power(line[r], -exponent);
            constexpr std::uint32_t canonical_nan = 0x7fc00000u;  // x86 and ARM differ in sign and payload
            if ((bits_of(v) & 0x7fffffffu) > 0x7f800000u) v = float_of(canonical_nan);
            y_.at(first_row + r, column) = v;
        }
    }

private:
    float_view y_;
};

/// A product of a matrix with M columns by one path. Arrays come from an arena (lay_out runs twice: to count, to hand out).
class product {
public:
    product(const qmatrix& w, index columns, product_path path) noexcept
        : w_(w), kernels_(active_kernels()), path_(path), m_(columns), blocks_(w.layout().group, w.cols()) {
        map_ = integers_of_path();
        kind_ = prefers_narrow(map_.largest, path.digits) ? kernels_.narrow : kernels_.wide;
        panels_ = path.digits > 0 ? kernels_.panels : 1;
        tile_ = path.digits > 0 ? kind_->columns[path.digits - 1] : kernels_.value_columns;
        stream_bytes_ = path.digits > 0 ? kind_->stream_bytes[path.digits - 1] : 16;
        const code_format& f = w.format();
        if (f.decode != decode_class::wide)
            for (unsigned u = 0; u < 16; ++u) table_[u] = u < f.code_count() ? f.values[u] : 0.0f;
    }

    [[nodiscard]] const sub_blocks& blocks() const noexcept { return blocks_; }
    [[nodiscard]] index columns() const noexcept { return m_; }
    /// Units of work that threads can share.
    [[nodiscard]] index panel_tasks() const noexcept { return ceil_div(w_.layout().panels, panels_); }

    void lay_out(arena& memory, int tasks) {
        const index count = blocks_.count();
        streams_ = memory.take<std::uint8_t>(checked_product(checked_product(blocks_.positions() / 4, m_), stream_bytes_)).data();
        scale_ = memory.take<float>(checked_product(count, m_)).data();
        sum_ = memory.take<float>(checked_product(count, m_)).data();
        bias_ = memory.take<std::int32_t>(checked_product(count * bias_of_column(), m_)).data();
        exponent_ = memory.take<int>(m_).data();
        carried_ = memory.take<std::uint8_t>(m_).data();
        columns_ = memory.take<column_scratch>(tasks).data();
        panels_of_ = memory.take<panel_scratch>(tasks).data();
        for (int t = 0; t < tasks; ++t) {
            column_scratch c;
            c.x = memory.take<float>(w_.cols()).data();
            c.q = memory.take<std::int32_t>(blocks_.positions()).data();
            c.values = memory.take<float>(blocks_.positions()).data();
            c.scale = memory.take<float>(count).data();
            c.sum = memory.take<float>(count).data();
            c.total = memory.take<std::int32_t>(count).data();
            panel_scratch p;
            p.codes = memory.take<std::uint8_t>(panels_ * scratch_quads * 64).data();
            p.values = memory.take<float>(path_.digits > 0 ? 0 : 16 * sub_block).data();
            p.scale = memory.take<float>(panels_ * scratch_blocks * 16).data();
            p.offset = memory.take<float>(panels_ * scratch_blocks * 16).data();
            p.accumulator = memory.take<float>(checked_product(panels_ * 16, m_)).data();
            if (columns_ == nullptr) continue;  // counting
            columns_[t] = c;
            panels_of_[t] = p;
        }
    }

    /// Prepares and packs column j with the scratch of a task. x: the column of X, read once.
    NIBBLE_NOINLINE void take_column(index j, const const_view& x, int task) noexcept {
        const column_scratch& s = columns_[task];
        load_block(x, 0, x.rows, 0, 1, s.x, 1);
        if (path_.strict) {
            pack_floats(j, s.x, true);
            carried_[j] = 1;
            exponent_[j] = 0;
            return;
        }
        int exponent = 0;
        const prepared_column to{path_.digits > 0 ? s.q : nullptr, path_.digits > 0 ? nullptr : s.values, s.scale, s.sum, s.total, &exponent};
        carried_[j] = prepare_column(kernels_, s.x, blocks_, w_.cols(), path_, w_.exponent(), to) ? 1 : 0;
        pack(j, to);
    }

    /// Packs a column that was prepared before.
    NIBBLE_NOINLINE void pack(index j, const prepared_column& from) noexcept {
        exponent_[j] = *from.exponent;
        if (path_.digits > 0) pack_digits(j, from);
        else pack_floats(j, from.x, false);
        const tile t = tile_of(j);
        for (index b = 0; b < blocks_.count(); ++b) {
            const index at = t.first * blocks_.count() + b * t.columns + (j - t.first);
            scale_[at] = from.scale[b];
            sum_[at] = from.sum[b];
        }
    }

    [[nodiscard]] bool carried(index j) const noexcept { return carried_[j] != 0; }
    void set_carried(index j, bool carried) noexcept { carried_[j] = carried ? 1 : 0; }

    /// Panels [first, last) times all columns, to Y.
    NIBBLE_NOINLINE void run(index first, index last, int task, const output& y, const index* chosen) noexcept {
        for (index p = first * panels_; p < (std::min)(last * panels_, w_.layout().panels); p += panels_) {
            const panel_scratch& s = panels_of_[task];
            std::memset(s.accumulator, 0, static_cast<std::size_t>(panels_ * 16 * m_) * 4);
            for (index b = 0; b < blocks_.count();) b += path_.digits > 0 ? multiply_digits(p, b, s) : multiply_values(p, b, s);
            for (int v = 0; v < panels_ && p + v < w_.layout().panels; ++v) {
                const index row = (p + v) * panel_rows;
                const index live = (std::min)(panel_rows, w_.rows() - row);
                for (index j = 0; j < m_; ++j)
                    y.store(s.accumulator + 16 * (v * m_ + j), row, live, chosen != nullptr ? chosen[j] : j, exponent_[j]);
            }
        }
    }

private:
    static constexpr index scratch_quads = 256;   // 16 KiB of bytes a panel
    static constexpr index scratch_blocks = 64;   // 4 KiB of scales, 4 KiB of offsets

    struct column_scratch {
        float* x;
        std::int32_t* q;
        float* values;
        float* scale;
        float* sum;
        std::int32_t* total;
    };
    struct panel_scratch {
        std::uint8_t* codes;
        float* values;
        float* scale;
        float* offset;
        float* accumulator;
    };
    struct tile {
        index first;
        int columns;
    };

    [[nodiscard]] integer_map integers_of_path() const noexcept {
        return path_.digits > 0 ? integers_of(w_.format(), w_.offset_type()) : integer_map{};
    }
    [[nodiscard]] index bias_of_column() const noexcept { return path_.digits == 3 ? 2 : 1; }

    /// The tile that column j belongs to: full ones, then ever narrower ones.
    [[nodiscard]] tile tile_of(index j) const noexcept {
        index first = j / tile_ * tile_;
        int columns = tile_columns(tile_, m_ - first);
        while (j >= first + columns) {
            first += columns;
            columns = tile_columns(tile_, m_ - first);
        }
        return {first, columns};
    }

    void pack_digits(index j, const prepared_column& from) noexcept {
        const tile t = tile_of(j);
        const index quads = blocks_.positions() / 4;
        const index step = stream_bytes_ * t.columns;
        std::uint8_t* base = streams_ + stream_bytes_ * (t.first * quads + (j - t.first));
        const bool own_zero = w_.offset_type() == offset_kind::zero_point;
        const std::int32_t zero = own_zero ? 1 : map_.zero;
        for (index b = 0; b < blocks_.count(); ++b) {
            const index position = blocks_.position(b);
            const std::int32_t high =
                kind_->pack(from.q + position, ceil_div(blocks_.length(b), 4), path_.digits, base + position / 4 * step, step);
            std::int32_t* bias = bias_ + (t.first * blocks_.count() + b * t.columns + (j - t.first)) * bias_of_column();
            bias[0] = zero * (from.total[b] - 65536 * high);
            if (path_.digits == 3) bias[1] = zero * high;
        }
    }

    /// natural: x is a row of columns; else of positions.
    void pack_floats(index j, const float* x, bool natural) noexcept {
        const tile t = tile_of(j);
        float* base = reinterpret_cast<float*>(streams_) + t.first * blocks_.positions() + (j - t.first);
        for (index b = 0; b < blocks_.count(); ++b) {
            const float* from = x + (natural ? blocks_.begin(b) : blocks_.position(b));
            float* to = base + blocks_.position(b) * t.columns;
            for (index i = 0; i < blocks_.length(b); ++i) to[i * t.columns] = from[i];
        }
    }

    /// Sub-blocks from b on that one kernel call can take: of one length, with scales at one step.
    [[nodiscard]] index run_length(index b, index most) const noexcept {
        const index per_group = blocks_.per_group();
        const index n = blocks_.length(b);
        const index left = per_group == 1 ? blocks_.count() - b : per_group - b % per_group;
        index count = 1;
        while (count < (std::min)(left, most) && b + count < blocks_.count() && blocks_.length(b + count) == n) ++count;
        return count;
    }

    /// Scales of the sub-blocks [b, b + count) of a panel; returns the step from one to the next.
    index expand(index panel, index b, index count, float unit, float* scale, float* offset) const noexcept {
        const index first = blocks_.group_of(b);
        const index groups = blocks_.group_of(b + count - 1) - first + 1;
        const bool fold = path_.digits > 0 && w_.offset_type() == offset_kind::float_zero;  // s (u - z) = s u - s z
        kernels_.expand(w_.scales_of(panel), first, groups, unit, fold, scale, offset);
        return groups > 1 ? 16 : 0;
    }

    /// The integer products of a run of sub-blocks from b on; returns how many.
    index multiply_digits(index panel, index b, const panel_scratch& s) const noexcept {
        const layout& l = w_.layout();
        const index quads = ceil_div(blocks_.length(b), 4);
        const index quad = blocks_.position(b) / 4;
        const index quad_step = blocks_.per_group() == 1 ? l.padded_group / 4 : sub_block / 4;
        // Cells are read as they are when they hold bytes, or nibbles for few columns; else they are unpacked once for all.
        const bool nibbles = l.bits == 4 && map_.identity && m_ <= 2 * tile_ && quads % 2 == 0 && quad % 2 == 0 && quad_step % 2 == 0;
        const bool direct = nibbles ? kind_->reads_nibbles : l.bits == 8 && map_.identity;
        const index most = direct && m_ <= 2 * tile_ ? scratch_blocks : (std::max)(index{1}, scratch_quads / quad_step);
        const index count = run_length(b, (std::min)(most, scratch_blocks));
        const index last = (std::min)(index{panels_}, l.panels - panel);
        weight_run run;
        run.blocks = count;
        run.quads = quads;
        run.flush = flush_quads(map_.largest);
        run.bits = direct && nibbles ? 4 : 8;
        run.scale = s.scale;
        run.scale_panel = last > 1 ? scratch_blocks * 16 : 0;
        for (index v = 0; v < last; ++v)
            run.scale_step = expand(panel + v, b, count, map_.unit, s.scale + v * scratch_blocks * 16, s.offset + v * scratch_blocks * 16);
        run.minimum = w_.offset_type() == offset_kind::minimum || w_.offset_type() == offset_kind::float_zero ? s.offset : nullptr;
        run.zero = w_.offset_type() == offset_kind::zero_point ? s.offset : nullptr;
        if (direct) {
            run.cells = w_.panel(panel) + quad * 64 * l.bits / 8;
            run.panel_step = last > 1 ? l.panel_bytes : 0;
        } else {
            for (index v = 0; v < last; ++v)
                for (index i = 0; i < count; ++i)
                    kernels_.unpack(w_.panel(panel + v), l.bits, quad + i * quad_step, quads, map_.identity ? nullptr : map_.table,
                                    s.codes + (v * scratch_quads + i * quads) * 64);
            run.cells = s.codes;
            run.panel_step = last > 1 ? scratch_quads * 64 : 0;
        }
        const index total = blocks_.positions() / 4;
        for (index j = 0; j < m_;) {
            const int columns = tile_columns(tile_, m_ - j);
            column_tile c;
            c.streams = streams_ + stream_bytes_ * (j * total + quad * columns);
            c.scale = scale_ + j * blocks_.count() + b * columns;
            c.sum = sum_ + j * blocks_.count() + b * columns;
            c.bias = bias_ + (j * blocks_.count() + b * columns) * bias_of_column();
            c.accumulator = s.accumulator + 16 * j;
            c.accumulator_panel = 16 * m_;
            c.columns = columns;
            kind_->multiply(run, c, path_.digits);
            j += columns;
        }
        return count;
    }

    /// The float products of one sub-block.
    index multiply_values(index panel, index b, const panel_scratch& s) const noexcept {
        const code_format& f = w_.format();
        const index n = blocks_.length(b);
        const index position = blocks_.position(b);
        expand(panel, b, 1, 1.0f, s.scale, s.offset);
        if (f.decode == decode_class::wide) {
            for (index i = 0; i < n; ++i)
                for (int r = 0; r < 16; ++r) s.values[16 * i + r] = f.decode_wide(get_code(w_.panel(panel), 16, r, position + i));
            for (int r = 0; r < 16; ++r) s.scale[r] = 1.0f;
        } else {
            const float* table = path_.strict ? nullptr : f.bits < 4 ? table_ : f.values;
            kernels_.read(w_.panel(panel), w_.layout().bits, position / 4, ceil_div(n, 4), table, s.values);
            if (path_.strict) decode(n, s);
        }
        value_run run;
        run.values = s.values;
        run.blocks = 1;
        run.length = n;
        run.block_step = 0;
        run.scale = path_.strict ? nullptr : s.scale;
        run.scale_step = 0;
        for (index j = 0; j < m_;) {
            const int columns = tile_columns(tile_, m_ - j);
            column_tile c;
            c.streams = streams_ + 4 * (j * blocks_.positions() + position * columns);
            c.scale = scale_ + j * blocks_.count() + b * columns;
            c.sum = nullptr;
            c.bias = nullptr;
            c.accumulator = s.accumulator + 16 * j;
            c.accumulator_panel = 0;
            c.columns = columns;
            kernels_.chain(run, c);
            j += columns;
        }
        return 1;
    }

    void decode(index n, const panel_scratch& s) const noexcept {
        for (index i = 0; i < n; ++i) {
            for (int r = 0; r < 16; ++r) {
                float& v = s.values[16 * i + r];
                v = decode_weight(w_.format(), w_.offset_type(), static_cast<unsigned>(v), s.scale[r], s.offset[r]);
            }
        }
    }

    const qmatrix& w_;
    const kernel_table& kernels_;
    product_path path_;
    index m_;
    sub_blocks blocks_;
    integer_map map_;
    const digit_kernels* kind_ = nullptr;
    int panels_ = 1;
    int tile_ = 1;
    index stream_bytes_ = 0;
    float table_[16] = {};
    std::uint8_t* streams_ = nullptr;
    float* scale_ = nullptr;
    float* sum_ = nullptr;
    std::int32_t* bias_ = nullptr;
    int* exponent_ = nullptr;
    std::uint8_t* carried_ = nullptr;
    column_scratch* columns_ = nullptr;
    panel_scratch* panels_of_ = nullptr;
};

NIBBLE_FP_END

}  // namespace nibble::detail
