// Z = W^T Y: the reduction runs over the rows of W. Backward passes need it, and products with tokens as rows.
//
// One arithmetic for every class: z = fma(w, y, z) on decoded weights, n ascending, one chain for each output. Lanes are 16
// columns of W: a panel is decoded to lines of 16 rows, blocks of 16 lines are transposed, and then a line of 16 columns is
// multiplied as in strict_f32. Tasks are blocks of columns; the reduction is never split.
#pragma once

#include "product.hpp"

namespace nibble::inline NIBBLE_ABI::detail {

NIBBLE_FP_BEGIN

class transposed_product {
public:
    transposed_product(const qmatrix& w, index columns) noexcept
        : w_(&w), kernels_(&active_kernels()), m_(columns), tile_(kernels_->value_columns) {
        const layout& l = w.layout();
        per_group_ = ceil_div(l.group, 16);
        const index last = l.cols - (l.groups - 1) * l.group;
        blocks_ = l.groups == 0 ? 0 : (l.groups - 1) * per_group_ + ceil_div(last, 16);
        decodes_ = make_decoder(w.format(), w.offset_type(), decoder_, table_);
        own_table_ = decoder_.table == table_;
    }

    /// Slabs of columns of W: what threads share.
    [[nodiscard]] index slabs() const noexcept { return ceil_div(blocks_, slab_blocks); }
    [[nodiscard]] index columns() const noexcept { return m_; }

    struct scratch {
        float* lines = nullptr;        // [k][row] of a slab
        float* rows = nullptr;         // [row][k] of a block
        float* accumulator = nullptr;  // [block][column] lines
        float* y = nullptr;            // a column of Y
    };
    void lay_out(arena& memory) { streams_ = memory.take<float>(checked_product(w_->rows(), m_)).data(); }
    void lay_out(arena& memory, scratch& s) const {
        s.lines = memory.take<float>(16 * 16 * slab_blocks).data();
        s.rows = memory.take<float>(16 * 16).data();
        s.accumulator = memory.take<float>(checked_product(slab_blocks * 16, m_)).data();
        s.y = memory.take<float>(w_->rows()).data();
    }

    /// Packs column j of Y: [tile][n][column].
    NIBBLE_NOINLINE void take_column(index j, const const_view& y, const scratch& s) noexcept {
        load_block(y, 0, y.rows, 0, 1, s.y, 1);
        const tile_place t = tile_of(tile_, m_, j);
        float* to = streams_ + t.first * w_->rows() + (j - t.first);
        for (index n = 0; n < w_->rows(); ++n) to[n * t.columns] = s.y[n];
    }

    NIBBLE_NOINLINE void run(index slab, const scratch& s, const output& to) noexcept {
        if (m_ == 0) return;
        const index first = slab * slab_blocks;
        const index last = (std::min)(blocks_, first + slab_blocks);
        std::memset(s.accumulator, 0, static_cast<std::size_t>((last - first) * 16 * m_) * 4);
        for (index p = 0; p < w_->layout().panels; ++p) {
            decode(p, first, last, s);
            const index live = (std::min)(panel_rows, w_->rows() - p * panel_rows);
            for (index b = first; b < last; ++b) multiply(p, live, b - first, s);
        }
        const epilogue_table& epilogues = active_epilogues();
        for (index b = first; b < last; ++b)
            for (index j = 0; j < m_; ++j) to.store(s.accumulator + 16 * ((b - first) * m_ + j), begin(b), length(b), j, 0, epilogues);
    }

private:
    static constexpr index slab_blocks = 16;

    // Blocks of 16 columns, the last one of a group shorter.
    [[nodiscard]] index begin(index b) const noexcept { return b / per_group_ * w_->layout().group + b % per_group_ * 16; }
    [[nodiscard]] index length(index b) const noexcept {
        return (std::min)(index{16}, w_->layout().group_end(b / per_group_) - begin(b));
    }

    /// Weights of the blocks [first, last) of a panel, 16 lines a block; what a short block lacks is zero.
    void decode(index panel, index first, index last, const scratch& s) const noexcept {
        const layout& l = w_->layout();
        float scale[16], offset[16];
        index group = -1;
        decoder d = decoder_;
        if (own_table_) d.table = table_;
        for (index b = first; b < last; ++b) {
            const index n = length(b);
            float* lines = s.lines + (b - first) * 256;
            if (b / per_group_ != group) {
                group = b / per_group_;
                w_->expand_scales(panel, group, 1, scale, offset);
            }
            if (decodes_) {
                kernels_->codec.decode(d, w_->panel(panel), l.position(begin(b)) / 4, ceil_div(n, 4), scale, offset, lines, 16);
            } else {
                for (index i = 0; i < n; ++i)
                    for (int r = 0; r < 16; ++r)
                        lines[16 * i + r] = decode_weight(w_->format(), w_->offset_type(), get_code(w_->panel(panel), l.bits, r, l.position(begin(b) + i)), scale[r], offset[r]);
            }
            std::memset(lines + 16 * n, 0, static_cast<std::size_t>(16 - n) * 64);
        }
    }

    void multiply(index panel, index live, index block, const scratch& s) const noexcept {
        kernels_->codec.transpose(reinterpret_cast<const std::uint8_t*>(s.lines + 256 * block), 64, reinterpret_cast<std::uint8_t*>(s.rows), 64);
        value_run run;
        run.values = s.rows;
        run.blocks = 1;
        run.length = live;
        run.block_step = 0;
        run.scale = nullptr;
        run.scale_step = 0;
        for (index j = 0; j < m_;) {
            const int columns = tile_columns(tile_, m_ - j);
            column_tile c{};
            c.streams = reinterpret_cast<const std::uint8_t*>(streams_ + j * w_->rows() + panel * panel_rows * columns);
            c.accumulator = s.accumulator + 16 * (block * m_ + j);
            c.columns = columns;
            kernels_->chain(run, c);
            j += columns;
        }
    }

    const qmatrix* w_;
    const kernel_table* kernels_;
    index m_;
    int tile_;
    index per_group_ = 1;
    index blocks_ = 0;
    decoder decoder_{};
    float table_[16] = {};
    bool decodes_ = false;
    bool own_table_ = false;
    float* streams_ = nullptr;
};

NIBBLE_FP_END

}  // namespace nibble::detail
