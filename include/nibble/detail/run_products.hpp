// Products in tasks: all columns of all products, then all panels, then the columns that only strict_f32 can carry.
#pragma once

#include "product.hpp"

namespace nibble::inline NIBBLE_ABI::detail {

/// One product of a call. Either x or ready is given.
struct product_call {
    const qmatrix* w = nullptr;
    const const_view* x = nullptr;
    const prepared_activations* ready = nullptr;
    output to;
    product_path path;
    const index* order = nullptr;  ///< column k of w meets row order[k] of x; null: row k

    [[nodiscard]] index columns() const noexcept { return to.y.cols; }
};

/// Runs the products of one call with shared threads and scratch memory.
class product_runner {
public:
    product_runner(std::span<const product_call> calls, nibble::workspace& memory, executor& threads) noexcept
        : calls_(calls), memory_(memory), threads_(threads) {}

    void run() {
        // Plain data of the products themselves; everything a product touches comes from the workspace.
        index largest = 0;
        for (const product_call& c : calls_) largest = (std::max)(largest, c.columns());
        const int concurrency = (std::max)(1, threads_.concurrency());
        tasks_ = concurrency == 1 ? 1 : index{concurrency} * (largest >= 16 ? 4 : 1);
        strict_tile_ = active_kernels().value_columns;
        std::span<product> products;
        std::span<index> hostile;
        std::span<std::byte> rest;
        lay_out(memory_, [&](arena& memory) {
            products = memory.take<product>(static_cast<index>(calls_.size()));
            scratch_ = memory.take<task_scratch>(tasks_);
            hostile = memory.take<index>(largest);
            task_scratch::sizes sizes;
            index strict_bytes = 0, widest = 0;
            for (std::size_t i = 0; i < calls_.size(); ++i) {
                product p(*calls_[i].w, calls_[i].columns(), calls_[i].path);
                p.lay_out(memory);
                sizes.include(p.scratch());
                if (calls_[i].order != nullptr) widest = (std::max)(widest, checked_product(calls_[i].w->cols(), size_of(calls_[i].x->type)));
                if (!products.empty()) products[i] = p;
                if (calls_[i].path.strict) continue;
                product strict(*calls_[i].w, strict_tile_, strict_path);
                arena count;
                strict.lay_out(count);
                strict_bytes = (std::max)(strict_bytes, static_cast<index>(count.bytes()));
                sizes.include(strict.scratch());
            }
            for (index t = 0; t < tasks_; ++t) {
                task_scratch s;
                s.lay_out(memory, sizes);
                if (!scratch_.empty()) scratch_[static_cast<std::size_t>(t)] = s;
            }
            rest = memory.take<std::byte>(strict_bytes);
            ordered_bytes_ = widest;
            ordered_ = memory.take<std::byte>(checked_product(tasks_, widest));
        });
        run_all(products, nullptr);
        for (std::size_t i = 0; i < calls_.size(); ++i)
            if (!calls_[i].path.strict) run_strict(calls_[i], products[i], hostile, rest);
    }

private:
    static constexpr product_path strict_path{0, 0, true};

    void run_strict(const product_call& call, const product& done, std::span<index> hostile, std::span<std::byte> rest) {
        index count = 0;
        for (index j = 0; j < call.columns(); ++j)
            if (!done.carried(j)) hostile[static_cast<std::size_t>(count++)] = j;
        product_call strict = call;
        strict.path = strict_path;
        for (index first = 0; first < count; first += strict_tile_) {
            product p(*call.w, (std::min)(strict_tile_, count - first), strict_path);
            arena memory(rest);
            p.lay_out(memory);
            product_runner some = *this;
            some.calls_ = {&strict, 1};
            some.run_all({&p, 1}, hostile.data() + first);
        }
    }

    /// Columns, then panels, in tasks that each take a share of every product. chosen: the columns of X and Y, or all.
    void run_all(std::span<product> products, const index* chosen) {
        const auto columns = [&](index task) {
            const fp_environment environment;
            for_share(task, products, &product::columns, [&](product& p, const product_call& c, index first, index last) {
                for (index j = first; j < last; ++j) take(p, c, j, chosen != nullptr ? chosen[j] : j, task);
            });
        };
        const auto panels = [&](index task) {
            const fp_environment environment;
            for_share(task, products, &product::panel_tasks, [&](product& p, const product_call& c, index first, index last) {
                p.run(first, last, scratch_[static_cast<std::size_t>(task)], c.to, chosen);
            });
        };
        threads_.parallel_for(tasks_, columns);
        threads_.parallel_for(tasks_, panels);
    }

    /// Calls body with a task's share of the units of all products, laid end to end.
    template <class Body>
    void for_share(index task, std::span<product> products, index (product::*units)() const noexcept, Body body) const {
        index total = 0;
        for (const product& p : products) total += (p.*units)();
        const index begin = share(total, task);
        const index end = share(total, task + 1);
        index at = 0;
        for (std::size_t i = 0; i < products.size(); ++i) {
            const index n = (products[i].*units)();
            const index first = (std::max)(begin, at);
            const index last = (std::min)(end, at + n);
            if (first < last) body(products[i], calls_[i], first - at, last - at);
            at += n;
        }
    }
    [[nodiscard]] index share(index total, index task) const noexcept { return total / tasks_ * task + total % tasks_ * task / tasks_; }

    void take(product& p, const product_call& c, index j, index column, index task) const noexcept {
        const task_scratch& s = scratch_[static_cast<std::size_t>(task)];
        if (c.ready == nullptr) {
            const const_view& x = *c.x;
            const const_view one{x.at(0, column), x.type, x.rows, 1, x.row_stride, x.col_stride};
            p.take_column(j, c.order != nullptr ? in_order(one, c.order, task) : one, s);
            return;
        }
        const prepared_activations& a = *c.ready;
        // Scaling depends on the weights too, and whether a column can be carried depends on its scaling.
        const bool scaled_otherwise = (a.exponent(column) != 0 || !a.carried(column)) && a.weight_exponent() != c.w->exponent();
        if (c.path.strict || scaled_otherwise) {
            p.take_column(j, a.raw(column), s);
        } else {
            p.pack(j, const_cast<prepared_activations&>(a).column(column, p.blocks()), a.carried(column));  // only read
        }
    }

    /// The elements of a column in the order of the weights' columns, in the memory of a task.
    [[nodiscard]] const_view in_order(const const_view& x, const index* order, index task) const noexcept {
        const auto size = static_cast<std::size_t>(size_of(x.type));
        std::byte* const first = ordered_.data() + task * ordered_bytes_;
        for (index k = 0; k < x.rows; ++k) std::memcpy(first + static_cast<std::size_t>(k) * size, x.at(order[k], 0), size);
        return {first, x.type, x.rows, 1, 1, x.rows};
    }

    std::span<const product_call> calls_;
    nibble::workspace& memory_;
    executor& threads_;
    std::span<task_scratch> scratch_;
    index tasks_ = 1;
    index strict_tile_ = 1;
    std::span<std::byte> ordered_;  // a column for each task, where a call gives an order
    index ordered_bytes_ = 0;
};

}  // namespace nibble::detail
