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

#include "../activation_function.hpp"
#include "../activations.hpp"
#include "../eigen.hpp"
#include "../executor.hpp"
#include "../workspace.hpp"
#include "codec.hpp"
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

/// Whether narrow kernels are the faster ones for codes up to `largest`. Those that flush need not be: a digit costs one
/// multiplication and its share of a flush, while wide kernels then take two for up to two digits and four for three.
[[nodiscard]] constexpr bool prefers_narrow(const digit_kernels& narrow, int largest, int digits) noexcept {
    if (largest > 127) return false;
    if (!narrow.flushes) return true;
    const index flush = flush_quads(largest);
    return 10 * digits * (flush + 1) <= 23 * flush * (digits == 3 ? 2 : 1);
}

/// What is done to the outputs, and where they go.
struct output {
    output_view y;
    const bias_view* bias = nullptr;  // or no bias
    activation function = activation::none;
    bool accumulate = false;          // added to what is there

    /// A finished line of 16: rows [first_row, first_row + live) of a column. It is changed.
    NIBBLE_INLINE void store(float* line, index first_row, index live, index column, int exponent, const epilogue_table& kernels) const noexcept {
        if (exponent != 0)
            for (index r = 0; r < live; ++r) line[r] = scale_by_power(line[r], -exponent);
        if (bias != nullptr)
            for (index r = 0; r < live; ++r) line[r] += *bias->at(first_row + r);
        if (accumulate)
            for (index r = 0; r < live; ++r) line[r] += load_scalar(y.at(first_row + r, column), y.type);
        if (const epilogue_table::function f = kernel_of(kernels, function)) f(line, line, 1);
        constexpr std::uint32_t canonical_nan = 0x7fc00000u;  // x86 and ARM differ in sign and payload
        for (index r = 0; r < live; ++r)
            if ((bits_of(line[r]) & 0x7fffffffu) > 0x7f800000u) line[r] = float_of(canonical_nan);
        if (y.type == scalar_type::f32) return put(line, first_row, live, column);
        std::uint16_t narrow[16];
        (y.type == scalar_type::bf16 ? kernels.to_bf16 : kernels.to_fp16)(line, narrow, 1);
        put(narrow, first_row, live, column);
    }

private:
    template <class T>
    NIBBLE_INLINE void put(const T* line, index first_row, index live, index column) const noexcept {
        if (y.row_stride == 1) {
            std::memcpy(y.at(first_row, column), line, static_cast<std::size_t>(live) * sizeof(T));
            return;
        }
        for (index r = 0; r < live; ++r) std::memcpy(y.at(first_row + r, column), line + r, sizeof(T));
    }
};

/// Scratch memory of one task: as large as the largest product of a call needs.
class task_scratch {
public:
    struct sizes {
        index cols = 0, positions = 0, blocks = 0, columns = 0;
        int panels = 1;
        void include(const sizes& s) noexcept {
            cols = (std::max)(cols, s.cols);
            positions = (std::max)(positions, s.positions);
            blocks = (std::max)(blocks, s.blocks);
            columns = (std::max)(columns, s.columns);
            panels = (std::max)(panels, s.panels);
        }
    };
    static constexpr index quads = 256;         // 16 KiB of unpacked bytes a panel
    static constexpr index scale_lines = 64;    // 4 KiB of scales, 4 KiB of offsets a panel

    void lay_out(arena& memory, const sizes& s) {
        x = memory.take<float>(s.cols).data();
        q = memory.take<std::int32_t>(s.positions).data();
        prepared = memory.take<float>(s.positions).data();
        activation_scale = memory.take<float>(s.blocks).data();
        sum = memory.take<float>(s.blocks).data();
        total = memory.take<std::int32_t>(s.blocks).data();
        codes = memory.take<std::uint8_t>(s.panels * quads * 64).data();
        values = memory.take<float>(16 * sub_block).data();
        scale = memory.take<float>(s.panels * scale_lines * 16).data();
        offset = memory.take<float>(s.panels * scale_lines * 16).data();
        accumulator = memory.take<float>(checked_product(s.panels * 16, s.columns)).data();
    }

    float* x = nullptr;                // a column of X
    std::int32_t* q = nullptr;
    float* prepared = nullptr;
    float* activation_scale = nullptr;
    float* sum = nullptr;
    std::int32_t* total = nullptr;
    std::uint8_t* codes = nullptr;     // unpacked
    float* values = nullptr;
    float* scale = nullptr;
    float* offset = nullptr;
    float* accumulator = nullptr;      // [panel][column] lines
};

/// A product of a matrix with M columns by one path. Its arrays come from an arena.
class product {
public:
    product(const qmatrix& w, index columns, product_path path) noexcept
        : w_(&w), kernels_(&active_kernels()), path_(path), m_(columns), blocks_(w.layout().group, w.cols()) {
        map_ = integers_of_path();
        kind_ = prefers_narrow(*kernels_->narrow, map_.largest, path.digits) ? kernels_->narrow : kernels_->wide;
        decodes_ = make_decoder(w.format(), path.strict ? w.offset_type() : offset_kind::none, decoder_, table_);
        // Codes are decoded in registers for few columns, where steps and sub-blocks agree.
        const index step = coded_step(decoder_.bits);
        in_registers_ = path.digits == 0 && !path.strict && decodes_ && m_ <= 2 * coded_columns && step != 0 && w.layout().group % step == 0 &&
                        w.cols() % step == 0 && ((decoder_.bits == 4 && decoder_.table != nullptr) || decoder_.bits == 16 || decoder_.is_minifloat);
        panels_ = path.digits > 0 ? kernels_->panels : in_registers_ ? coded_panels : 1;
        tile_ = path.digits > 0 ? kind_->columns[path.digits - 1] : in_registers_ ? coded_columns : kernels_->value_columns;
        stream_bytes_ = path.digits > 0 ? kind_->stream_bytes[path.digits - 1] : 16;
        has_table_ = decoder_.table == table_;
        if (has_table_) decoder_.table = nullptr;  // set when it is used: a product may be copied
    }

    [[nodiscard]] const sub_blocks& blocks() const noexcept { return blocks_; }
    [[nodiscard]] index columns() const noexcept { return m_; }
    /// Units of work that threads can share.
    [[nodiscard]] index panel_tasks() const noexcept { return ceil_div(w_->layout().panels, panels_); }

    /// The kernel in words.
    [[nodiscard]] std::string describe() const {
        const std::string shape = "tiles of " + std::to_string(tile_) + " columns x " + std::to_string(panels_) + (panels_ == 1 ? " panel" : " panels");
        if (path_.digits > 0) {
            const int bits = w_->layout().bits;
            const bool direct = (bits == 8 || (bits == 4 && kind_->reads_nibbles && m_ <= 2 * tile_)) && map_.identity;
            return std::string(kind_->name) + ", " + (direct ? "codes read as they lie" : "codes unpacked in L1 once for all columns") + ", " + shape;
        }
        if (in_registers_) return "fma, weights decoded in registers, " + shape;
        return "fma, weights decoded in L1 once for all columns, " + shape;
    }

    [[nodiscard]] task_scratch::sizes scratch() const noexcept { return {w_->cols(), blocks_.positions(), blocks_.count(), m_, panels_}; }

    void lay_out(arena& memory) {
        const index count = blocks_.count();
        streams_ = memory.take<std::uint8_t>(checked_product(checked_product(blocks_.positions() / 4, m_), stream_bytes_)).data();
        scale_ = memory.take<float>(checked_product(count, m_)).data();
        sum_ = memory.take<float>(checked_product(count, m_)).data();
        bias_ = memory.take<std::int32_t>(checked_product(count * bias_of_column(), m_)).data();
        exponent_ = memory.take<int>(m_).data();
        carried_ = memory.take<std::uint8_t>(m_).data();
    }

    /// Prepares and packs column j with the scratch of a task. x: the column of X, read once.
    NIBBLE_NOINLINE void take_column(index j, const const_view& x, const task_scratch& s) noexcept {
        load_block(x, 0, x.rows, 0, 1, s.x, 1);
        if (path_.strict) {
            pack_floats(j, s.x, true);
            carried_[j] = 1;
            exponent_[j] = 0;
            return;
        }
        int exponent = 0;
        const bool digits = path_.digits > 0;
        const prepared_column to{digits ? s.q : nullptr, digits ? nullptr : s.prepared, s.activation_scale, s.sum, s.total, &exponent};
        pack(j, to, prepare_column(*kernels_, s.x, blocks_, w_->cols(), path_, w_->exponent(), to));
    }

    /// Packs a column that was prepared before. One that is not carried is left to strict_f32.
    NIBBLE_NOINLINE void pack(index j, const prepared_column& from, bool carried = true) noexcept {
        carried_[j] = carried ? 1 : 0;
        exponent_[j] = *from.exponent;
        if (path_.digits > 0) pack_digits(j, from);
        else pack_floats(j, from.x, false);
        const tile_place t = tile_of(tile_, m_, j);
        for (index b = 0; b < blocks_.count(); ++b) {
            const index at = t.first * blocks_.count() + b * t.columns + (j - t.first);
            scale_[at] = from.scale[b];
            sum_[at] = from.sum[b];
        }
    }

    [[nodiscard]] bool carried(index j) const noexcept { return carried_[j] != 0; }

    /// Units of work [first, last) times all columns, to Y. chosen: the columns of Y, or all. Columns that are not carried
    /// are left to strict_f32: an output that is added to must be written once.
    NIBBLE_NOINLINE void run(index first, index last, const task_scratch& s, const output& y, const index* chosen) noexcept {
        if (m_ == 0) return;
        const epilogue_table& epilogues = active_epilogues();
        const index panels = w_->layout().panels;
        for (index p = first * panels_; p < (std::min)(last * panels_, panels); p += panels_) {
            std::memset(s.accumulator, 0, static_cast<std::size_t>(panels_ * 16 * m_) * 4);
            for (index b = 0; b < blocks_.count();) b += path_.digits > 0 ? multiply_digits(p, b, s) : in_registers_ ? multiply_coded(p, b, s) : multiply_values(p, b, s, s.accumulator);
            for (int v = 0; v < panels_ && p + v < panels; ++v) {
                const index row = (p + v) * panel_rows;
                const index live = (std::min)(panel_rows, w_->rows() - row);
                for (index j = 0; j < m_; ++j) {
                    if (carried_[j] == 0) continue;
                    y.store(s.accumulator + 16 * (v * m_ + j), row, live, chosen != nullptr ? chosen[j] : j, exponent_[j], epilogues);
                }
            }
        }
    }

    /// The exact sums of (u - z) q of the panels of one unit of work, [panel][column] lines. For matrices of one group and
    /// one digit; the caller has bounded K.
    NIBBLE_NOINLINE void sum(index unit, const task_scratch& s, std::int32_t* lines) const noexcept {
        if (m_ == 0) return;
        std::memset(lines, 0, static_cast<std::size_t>(panels_ * 16 * m_) * 4);
        for (index b = 0; b < blocks_.count();) b += multiply_digits(unit * panels_, b, s, lines);
    }

    /// Panels of a unit of work.
    [[nodiscard]] int unit_panels() const noexcept { return panels_; }

private:
    [[nodiscard]] integer_map integers_of_path() const noexcept {
        return path_.digits > 0 ? integers_of(w_->format(), w_->offset_type()) : integer_map{};
    }
    [[nodiscard]] index bias_of_column() const noexcept { return path_.digits == 3 ? 2 : 1; }

    void pack_digits(index j, const prepared_column& from) noexcept {
        const tile_place t = tile_of(tile_, m_, j);
        const index quads = blocks_.positions() / 4;
        const index step = stream_bytes_ * t.columns;
        std::uint8_t* base = streams_ + stream_bytes_ * (t.first * quads + (j - t.first));
        const bool own_zero = w_->offset_type() == offset_kind::zero_point;
        const std::int32_t zero = own_zero ? 1 : map_.zero - kind_->code_offset;
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
        const tile_place t = tile_of(tile_, m_, j);
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
        const bool fold = path_.digits > 0 && w_->offset_type() == offset_kind::float_zero;  // s (u - z) = s u - s z
        kernels_->expand(w_->scales_of(panel), first, groups, unit, fold, scale, offset);
        return groups > 1 ? 16 : 0;
    }

    /// The integer products of a run of sub-blocks from b on, to the accumulators or, where given, to sums; returns how many.
    index multiply_digits(index panel, index b, const task_scratch& s, std::int32_t* sums = nullptr) const noexcept {
        const layout& l = w_->layout();
        const index quads = ceil_div(blocks_.length(b), 4);
        const index quad = blocks_.position(b) / 4;
        const index quad_step = blocks_.per_group() == 1 ? l.padded_group / 4 : sub_block / 4;
        // Cells are read as they are when they hold bytes, or nibbles for few columns; else they are unpacked once for all.
        const bool nibbles = l.bits == 4 && map_.identity && m_ <= 2 * tile_ && quads % 2 == 0 && quad % 2 == 0 && quad_step % 2 == 0;
        const bool direct = nibbles ? kind_->reads_nibbles : l.bits == 8 && map_.identity;
        const index most = direct && m_ <= 2 * tile_ ? task_scratch::scale_lines : (std::max)(index{1}, task_scratch::quads / quad_step);
        const index count = run_length(b, (std::min)(most, task_scratch::scale_lines));
        const index last = (std::min)(index{panels_}, l.panels - panel);
        weight_run run;
        run.blocks = count;
        run.quads = quads;
        run.flush = flush_quads(map_.largest);
        run.bits = direct && nibbles ? 4 : 8;
        run.ahead = direct ? cells_ahead : 0;
        run.scale = s.scale;
        run.scale_panel = last > 1 ? task_scratch::scale_lines * 16 : 0;
        for (index v = 0; v < last; ++v)
            run.scale_step = expand(panel + v, b, count, map_.unit, s.scale + v * task_scratch::scale_lines * 16, s.offset + v * task_scratch::scale_lines * 16);
        run.minimum = w_->offset_type() == offset_kind::minimum || w_->offset_type() == offset_kind::float_zero ? s.offset : nullptr;
        run.zero = w_->offset_type() == offset_kind::zero_point ? s.offset : nullptr;
        if (direct) {
            run.cells = w_->panel(panel) + quad * 64 * l.bits / 8;
            run.panel_step = last > 1 ? l.panel_bytes : 0;
        } else {
            // Sub-blocks without padding between them are one run of quads, however their ends lie in the cells.
            const index together = quads == quad_step ? count : 1;
            for (index v = 0; v < last; ++v)
                for (index i = 0; i < count; i += together)
                    kernels_->unpack(w_->panel(panel + v), l.bits, quad + i * quad_step, quads * together, map_.identity ? nullptr : map_.table,
                                    s.codes + (v * task_scratch::quads + i * quads) * 64);
            run.cells = s.codes;
            run.panel_step = last > 1 ? task_scratch::quads * 64 : 0;
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
            if (sums != nullptr) c.sums = sums + 16 * j;
            kind_->multiply(run, c, path_.digits);
            run.ahead = 0;  // by now the cells are in a cache
            j += columns;
        }
        return count;
    }

    /// The products of a run of sub-blocks whose codes are decoded in registers; returns how many.
    index multiply_coded(index panel, index b, const task_scratch& s) const noexcept {
        const layout& l = w_->layout();
        const decoder rule = own_decoder();
        const index position = blocks_.position(b);
        const index bytes = blocks_.length(b) * 2 * l.bits;
        // Cells that are searched for special codes first: as many as the products before them have prefetched.
        const bool special = rule.is_minifloat && l.bits == 8;
        const index count = run_length(b, special ? (std::max)(index{1}, cells_ahead / bytes) : task_scratch::scale_lines);
        const index last = (std::min)(index{panels_}, l.panels - panel);
        coded_run run;
        run.rule = &rule;
        run.cells = w_->panel(panel) + position * 2 * l.bits;
        run.panel_step = last > 1 ? l.panel_bytes : 0;
        run.blocks = count;
        run.length = blocks_.length(b);
        run.ahead = cells_ahead;
        if (special)
            for (index v = 0; v < last; ++v)
                if (kernels_->codec.has_special(rule, run.cells + v * l.panel_bytes, count * bytes / 64)) return multiply_special(panel, b, last, s);
        run.scale = s.scale;
        run.scale_panel = last > 1 ? task_scratch::scale_lines * 16 : 0;
        for (index v = 0; v < last; ++v)
            run.scale_step = expand(panel + v, b, count, 1.0f, s.scale + v * task_scratch::scale_lines * 16, s.offset);
        for (index j = 0; j < m_;) {
            const int columns = tile_columns(tile_, m_ - j);
            column_tile c = value_columns(b, j, columns);
            c.accumulator = s.accumulator + 16 * j;
            c.accumulator_panel = 16 * m_;
            kernels_->coded(run, c);
            run.ahead = 0;  // by now the cells are in L1
            j += columns;
        }
        return count;
    }

    /// The products of one sub-block that holds NaN or Inf, which `coded` does not know.
    NIBBLE_NOINLINE index multiply_special(index panel, index b, index panels, const task_scratch& s) const noexcept {
        for (index v = 0; v < panels; ++v) multiply_values(panel + v, b, s, s.accumulator + 16 * v * m_);
        return 1;
    }

    /// The decoder with the address of its own table: a product may be copied.
    [[nodiscard]] decoder own_decoder() const noexcept {
        decoder d = decoder_;
        if (d.table == nullptr && has_table_) d.table = table_;
        return d;
    }

    /// Columns [j, j + columns) of floats from sub-block b on, without their accumulators.
    [[nodiscard]] column_tile value_columns(index b, index j, int columns) const noexcept {
        column_tile c{};
        c.streams = streams_ + 4 * (j * blocks_.positions() + blocks_.position(b) * columns);
        c.scale = scale_ + j * blocks_.count() + b * columns;
        c.columns = columns;
        return c;
    }

    /// The float products of one sub-block and panel.
    index multiply_values(index panel, index b, const task_scratch& s, float* accumulator) const noexcept {
        const code_format& f = w_->format();
        const index n = blocks_.length(b);
        const index position = blocks_.position(b);
        expand(panel, b, 1, 1.0f, s.scale, s.offset);
        constexpr float one[16] = {1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f};
        constexpr float none[16] = {};
        if (w_->offset_type() == offset_kind::none) std::memcpy(s.offset, none, sizeof none);
        if (decodes_) {
            kernels_->codec.decode(own_decoder(), w_->panel(panel), position / 4, ceil_div(n, 4), path_.strict ? s.scale : one, s.offset, s.values, 16);
        } else {
            for (index i = 0; i < n; ++i)
                for (int r = 0; r < 16; ++r) {
                    const unsigned code = get_code(w_->panel(panel), w_->layout().bits, r, position + i);
                    s.values[16 * i + r] = path_.strict ? decode_weight(f, w_->offset_type(), code, s.scale[r], s.offset[r]) : f.value(code);
                }
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
            column_tile c = value_columns(b, j, columns);
            c.accumulator = accumulator + 16 * j;
            kernels_->chain(run, c);
            j += columns;
        }
        return 1;
    }

    const qmatrix* w_;
    const kernel_table* kernels_;
    product_path path_;
    index m_;
    sub_blocks blocks_;
    integer_map map_;
    const digit_kernels* kind_ = nullptr;
    int panels_ = 1;
    int tile_ = 1;
    index stream_bytes_ = 0;
    decoder decoder_{};
    bool decodes_ = false;
    bool in_registers_ = false;
    bool has_table_ = false;
    float table_[16] = {};
    std::uint8_t* streams_ = nullptr;
    float* scale_ = nullptr;
    float* sum_ = nullptr;
    std::int32_t* bias_ = nullptr;
    int* exponent_ = nullptr;
    std::uint8_t* carried_ = nullptr;
};

NIBBLE_FP_END

}  // namespace nibble::detail
