// Products of quantized matrices with quantized activations, in tasks: all columns, then all panels.
//
//   one group    D = sum over K of (u - z_w)(a - z_a), int32. The kernels take signed bytes q = a (i8) or a - 128 (u8); with
//                z = z_a or z_a - 128, D = sum (u - z_w) q - z sum (u - z_w). The second sum is one more column, of ones.
//                max |q| <= max |a - z_a|, so what bounds D bounds both sums
//   groups       the float formula of product.hpp on q = a - z_a: one digit where all q are signed bytes, else two
#pragma once

#include "../quantized_activations.hpp"
#include "product.hpp"

namespace nibble::inline NIBBLE_ABI::detail {

/// What is subtracted from codes of a type to make them signed bytes.
[[nodiscard]] constexpr int byte_offset(activation_type t) noexcept { return t == activation_type::i8 ? 0 : 128; }

/// Whether all codes less their zero points are signed bytes.
[[nodiscard]] inline bool are_bytes(const quantized_activations& a) noexcept {
    for (const int z : a.zeros())
        if (z != byte_offset(a.type())) return false;
    return true;
}

/// Largest |u - z| of the integers of a matrix.
[[nodiscard]] inline int largest_weight(const qmatrix& w) noexcept {
    const integer_map m = integers_of(w.format(), w.offset_type());
    return (std::max)(m.zero, m.largest - m.zero);
}

/// Largest |a - z| of the codes of a type and the zero points in use.
[[nodiscard]] inline int largest_activation(const quantized_activations& a) noexcept {
    int largest = 0;
    for (const int z : a.zeros()) largest = (std::max)({largest, z - lowest_code(a.type()), highest_code(a.type()) - z});
    return largest;
}

/// Scales of the rows of a panel, each times the unit of its integers.
NIBBLE_NOINLINE inline void row_scales(const qmatrix& w, index panel, float* scale) noexcept {
    float offset[16];
    std::memset(scale, 0, 16 * sizeof(float));
    if (w.groups() != 0) active_kernels().expand(w.scales_of(panel), 0, 1, integers_of(w.format(), w.offset_type()).unit, false, scale, offset);
}

/// Rows of a panel that exist.
[[nodiscard]] inline index live_rows(const qmatrix& w, index panel) noexcept { return (std::min)(panel_rows, w.rows() - panel * panel_rows); }

NIBBLE_FP_BEGIN

/// RN(RN(D) * RN(s_w * s_a)) for the exact sums of a panel.
NIBBLE_NOINLINE inline void store_scaled(const qmatrix& w, const quantized_activations& a, index panel, index columns, const std::int32_t* sums,
                                         const output& to) noexcept {
    const epilogue_table& epilogues = active_epilogues();
    float row_scale[16], line[16];
    row_scales(w, panel, row_scale);
    for (index j = 0; j < columns; ++j) {
        const float scale = a.scale(0, j);
        for (int r = 0; r < 16; ++r) {
            const float s = row_scale[r] * scale;
            line[r] = static_cast<float>(sums[16 * j + r]) * s;
        }
        to.store(line, panel_rows * panel, live_rows(w, panel), j, 0, epilogues);
    }
}

[[nodiscard]] NIBBLE_NOINLINE inline float scaled_total(std::int32_t total, float scale) noexcept { return static_cast<float>(total) * scale; }

NIBBLE_FP_END

/// Runs one product with shared threads and scratch memory.
class integer_runner {
public:
    integer_runner(const qmatrix& w, const quantized_activations& a, nibble::workspace& memory, executor& threads) noexcept
        : w_(w), a_(a), memory_(memory), threads_(threads) {
        const int concurrency = (std::max)(1, threads.concurrency());
        tasks_ = concurrency == 1 ? 1 : index{concurrency} * 4;
    }

    /// Calls finish(panel, columns, lines) with the sums of each panel, a line of 16 a column. Both have one group along K.
    template <class Finish>
    void sums(const Finish& finish) {
        const int offset = byte_offset(a_.type());
        const bool ones = !are_bytes(a_);
        const index m = a_.cols();
        product p(w_, m + (ones ? 1 : 0), {1, 0, false});
        std::span<task_scratch> scratch;
        std::span<std::int32_t> lines;
        const index task_lines = checked_product(16 * p.unit_panels(), p.columns());
        lay_out(memory_, [&](arena& memory) {
            p.lay_out(memory);
            scratch = lay_out_tasks(memory, p);
            lines = memory.take<std::int32_t>(checked_product(task_lines, tasks_));
        });
        share(p.columns(), [&](index first, index last, index task) {
            for (index j = first; j < last; ++j) pack(p, j, scratch[static_cast<std::size_t>(task)]);
        });
        share(p.panel_tasks(), [&](index first, index last, index task) {
            std::int32_t* const own = lines.data() + task * task_lines;
            for (index unit = first; unit < last; ++unit) {
                p.sum(unit, scratch[static_cast<std::size_t>(task)], own);
                for (index v = 0; v < p.unit_panels() && unit * p.unit_panels() + v < w_.layout().panels; ++v) {
                    std::int32_t* const line = own + 16 * v * p.columns();
                    for (index j = 0; j < m; ++j)
                        if (const int z = a_.zero(0, j) - offset; z != 0)
                            for (int r = 0; r < 16; ++r) line[16 * j + r] -= z * line[16 * m + r];
                    finish(unit * p.unit_panels() + v, m, line);
                }
            }
        });
    }

    /// The float formula, to `to`.
    void floats(const output& to) {
        product p(w_, a_.cols(), {are_bytes(a_) ? 1 : 2, 0, false});
        std::span<task_scratch> scratch;
        lay_out(memory_, [&](arena& memory) {
            p.lay_out(memory);
            scratch = lay_out_tasks(memory, p);
        });
        share(p.columns(), [&](index first, index last, index task) {
            for (index j = first; j < last; ++j) pack_groups(p, j, scratch[static_cast<std::size_t>(task)]);
        });
        share(p.panel_tasks(), [&](index first, index last, index task) {
            p.run(first, last, scratch[static_cast<std::size_t>(task)], to, nullptr);
        });
    }

private:
    [[nodiscard]] std::span<task_scratch> lay_out_tasks(arena& memory, const product& p) const {
        const std::span<task_scratch> all = memory.take<task_scratch>(tasks_);
        for (index t = 0; t < tasks_; ++t) {
            task_scratch s;
            s.lay_out(memory, p.scratch());
            if (!all.empty()) all[static_cast<std::size_t>(t)] = s;
        }
        return all;
    }

    template <class Body>
    void share(index total, const Body& body) {
        threads_.parallel_for(tasks_, [&](index task) {
            const fp_environment environment;
            const auto begin = [&](index t) { return total / tasks_ * t + total % tasks_ * t / tasks_; };
            if (begin(task) < begin(task + 1)) body(begin(task), begin(task + 1), task);
        });
    }

    /// Column j less what makes it signed bytes; the column past the last is ones.
    void pack(product& p, index j, const task_scratch& s) const noexcept {
        for (index b = 0; b < p.blocks().count(); ++b) {
            std::int32_t* const q = s.q + p.blocks().position(b);
            const index n = p.blocks().length(b);
            auto total = static_cast<std::int32_t>(n);
            if (j < a_.cols()) total = a_.read(p.blocks().begin(b), n, j, byte_offset(a_.type()), q);
            else std::fill_n(q, n, 1);
            end_block(s, b, n, total, 0.0f, q);
        }
        hand_over(p, j, s);
    }

    /// Column j less its zero points.
    void pack_groups(product& p, index j, const task_scratch& s) const noexcept {
        for (index b = 0; b < p.blocks().count(); ++b) {
            std::int32_t* const q = s.q + p.blocks().position(b);
            const index n = p.blocks().length(b);
            const index g = p.blocks().begin(b) / a_.group_size();
            const std::int32_t total = a_.read(p.blocks().begin(b), n, j, a_.zero(g, j), q);
            end_block(s, b, n, total, a_.scale(g, j), q);
        }
        hand_over(p, j, s);
    }

    static void end_block(const task_scratch& s, index b, index n, std::int32_t total, float scale, std::int32_t* q) noexcept {
        for (index i = n; i < ceil_div(n, 4) * 4; ++i) q[i] = 0;
        s.total[b] = total;
        s.activation_scale[b] = scale;
        s.sum[b] = scaled_total(total, scale);
    }
    static void hand_over(product& p, index j, const task_scratch& s) noexcept {
        int exponent = 0;
        p.pack(j, {s.q, nullptr, s.activation_scale, s.sum, s.total, &exponent});
    }

    const qmatrix& w_;
    const quantized_activations& a_;
    nibble::workspace& memory_;
    executor& threads_;
    index tasks_ = 1;
};

}  // namespace nibble::detail
