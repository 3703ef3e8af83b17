// GPTQ (Frantar et al. 2022, arXiv:2210.17323): columns are quantized one after the other, and what rounding lost is made
// up for in the columns still to come, by the second moments of the activations.
//
//     nibble::hessian h(K);
//     for each batch: h.add(X);                                  // K x T, a column per token
//     auto [Wq, order, report] = nibble::gptq(W, h, nibble::int4_zero_g128::get());
//
// With H + d I = R R^T, R upper triangular, and e = (w - q) R for a row w and its rounded q, the loss (w - q) H (w - q)^T
// is |e|^2 (and d |w - q|^2 less). Column j of e is made small by rounding
//
//     w'_j = w_j + sum over i < j of (w_i - q_i) R_ij / R_jj        to  q_j;  then e_j = (w'_j - q_j) R_jj.
//
// When its turn comes, that is the weight that the paper has after its updates by the upper factor U = R^-1 of the inverse,
// without inverting anything (LDLQ of Chee et al. 2023, arXiv:2307.13304).
//
// Codes are chosen by column_quantizer, so every format with scales of single rows will do. The result depends on the
// rounding of Eigen's products: it is the same for any executor, and may differ between machines and compiler flags.
#pragma once

#include <functional>
#include <numeric>
#include <optional>

#include <Eigen/Cholesky>

#include "../calibration/hessian.hpp"
#include "../calibration/importance.hpp"
#include "../column_quantizer.hpp"
#include "../dequantize.hpp"
#include "../quantize.hpp"
#include "refine.hpp"

namespace nibble::inline NIBBLE_ABI {

struct gptq_options {
    /// Added to the diagonal of H, as a part of its mean; empty: automatic_damping, which falls with the number of tokens.
    /// Raised as often as the Cholesky decomposition needs.
    std::optional<double> damping{};
    /// Columns with the largest activations first, so that the others can make up for them.
    bool act_order = true;
    /// All scales from W as it was. Else those of a group are chosen from the corrected weights when its first column is
    /// reached: better, but with act_order groups are then made of consecutive columns in that order, and the matrix
    /// has its columns in it.
    bool static_groups = true;
    /// Choose scales by a grid of clipped ranges with errors weighted by the diagonal of H, where the rule of the plan
    /// looks at the range alone (absmax, zero_point, min_offset, float_zero). Rules that search get the weights, too.
    bool search_scales = true;
    /// Measure the loss of rounding to nearest by the rule of the plan (about a third of the work of the sweep).
    bool measure_before = true;
    /// Columns between updates of all others. Changes nothing but the speed, and codes on ties.
    index block = 128;
    nibble::executor* executor = nullptr;
    /// Called after each block with columns done and all columns; returning false stops with errc::cancelled.
    std::function<bool(index done, index total)> progress{};
    /// Rounds of refine() after the sweep, with the same damped H; 0: none, as the paper has it. 0.1 to 0.4 dB, about twice the time.
    int refine_rounds = 2;
};

/// What happened. Losses are means over the calibration tokens of the squared error of all outputs, |(W - Q) x|^2.
struct gptq_report {
    double loss_before = 0.0;   ///< rounding to nearest; 0 if it was not measured
    double loss_after = 0.0;
    double damped_loss = 0.0;   ///< with the damping in H: what the sweep works on
    double damping = 0.0;       ///< used, as a part of the mean diagonal
    int damping_raised = 0;     ///< how often it was
    index tokens = 0;
    bool few_tokens = false;    ///< fewer than columns: H has no full rank, and the damping decides much
    std::vector<index> dead;    ///< columns whose activations were all zero; their weights become the code of 0
};

struct gptq_result {
    qmatrix weights;
    /// Empty: columns are in their natural order. Else column j of `weights` is column order[j] of W, and its product
    /// wants the rows of X so: Wq * X(order, Eigen::all).
    std::vector<index> order;
    gptq_report report;
};

namespace detail {

/// The factor of the damped Hessian in the order of the sweep.
template <class Scalar>
struct gptq_factor {
    Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic> unit;  ///< R_ij / R_jj; 1 on the diagonal, 0 below
    std::vector<double> pivot;                                   ///< R_jj
    double damping = 0.0, added = 0.0;                           ///< relative, and what was added to sum / tokens
    int raised = 0;
};

template <class Scalar>
[[nodiscard]] gptq_factor<Scalar> factorize(const basic_hessian<Scalar>& h, const std::vector<index>& order, const std::vector<bool>& dead,
                                            double mean, double damping) {
    const index n = h.channels();
    gptq_factor<Scalar> f;
    f.damping = damping;
    f.pivot.resize(static_cast<std::size_t>(n));
    const Scalar per_token = Scalar(1) / static_cast<Scalar>(h.tokens());
    for (;; ++f.raised) {
        // The Cholesky decomposition of the matrix with both orders reversed, reversed again: upper times lower.
        f.added = f.damping * mean;
        f.unit.resize(n, n);
        for (index j = 0; j < n; ++j) {
            const index b = order[static_cast<std::size_t>(n - 1 - j)];
            for (index i = j; i < n; ++i) {
                const index a = order[static_cast<std::size_t>(n - 1 - i)];
                f.unit(i, j) = h.sum((std::max)(a, b), (std::min)(a, b)) * per_token;
            }
            const bool is_dead = dead[static_cast<std::size_t>(b)];
            f.unit(j, j) = static_cast<Scalar>((is_dead ? mean : static_cast<double>(f.unit(j, j))) + f.added);
        }
        Eigen::LLT<Eigen::Ref<Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>>> llt(f.unit);
        bool good = llt.info() == Eigen::Success;
        // Pivots below the rounding of the decomposition are noise, which would be divided by. (Written so that NaN fails.)
        const double least = static_cast<double>(n) * static_cast<double>(std::numeric_limits<Scalar>::epsilon()) * mean;
        for (index j = 0; j < n && good; ++j) {
            const double p = static_cast<double>(f.unit(j, j));
            good = p * p > least && p * p < 1e300;
        }
        if (good) break;
        if (f.raised == 20)
            fail(errc::invalid_argument, "gptq: the Hessian of " + std::to_string(n) + " channels has no Cholesky factor, not even with a damping of " +
                                             std::to_string(f.damping));
        f.damping = f.damping < 0.005 ? 0.01 : 2.0 * f.damping;
    }
    std::reverse(f.unit.data(), f.unit.data() + f.unit.size());
    for (index j = 0; j < n; ++j) {
        const Scalar p = f.unit(j, j);
        f.pivot[static_cast<std::size_t>(j)] = static_cast<double>(p);
        f.unit.col(j).head(j) *= Scalar(1) / p;
        f.unit(j, j) = Scalar(1);
        f.unit.col(j).tail(n - 1 - j).setZero();
    }
    return f;
}

/// One run. W is only read.
template <class Scalar>
class gptq_run {
    using matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;

public:
    gptq_run(const const_view& w, const basic_hessian<Scalar>& h, const quantize_plan& plan, const gptq_options& options)
        : w_(w), h_(h), plan_(plan), options_(options) {}

    [[nodiscard]] gptq_result run() &&;

private:
    static constexpr index tile_rows = 256;  // of products: the same with any number of threads
    static constexpr index strip = 16;       // columns between updates of the rest of a block

    void check() const {
        const std::string who = "gptq";
        if (w_.cols != h_.channels())
            fail(errc::shape_mismatch, who + ": W is " + shape_text(w_.rows, w_.cols) + ", the Hessian has " + std::to_string(h_.channels()) + " channels");
        if (h_.tokens() == 0) fail(errc::invalid_argument, who + ": the Hessian of " + std::to_string(h_.channels()) + " channels has seen no token");
        if (!(damping() >= 0.0 && damping() <= 1e6))
            fail(errc::invalid_argument, who + ": a damping of " + std::to_string(damping()) + " of the mean diagonal");
        if (options_.refine_rounds < 0) fail(errc::invalid_argument, who + ": " + std::to_string(options_.refine_rounds) + " rounds of refinement");
        if (options_.block < 1) fail(errc::invalid_argument, who + ": blocks of " + std::to_string(options_.block) + " columns");
        check_quantize(w_, plan_).or_throw();
    }

    void look_at_diagonal() {
        const index n = w_.cols;
        std::vector<double> diagonal(static_cast<std::size_t>(n));
        dead_.assign(diagonal.size(), false);
        double sum = 0.0;
        for (index k = 0; k < n; ++k) {
            const double d = static_cast<double>(h_.sum(k, k));
            if ((std::bit_cast<std::uint64_t>(d) & 0x7ff0000000000000u) == 0x7ff0000000000000u)
                fail(errc::out_of_range, "gptq: the squares of channel " + std::to_string(k) + " overflowed; scale the activations down");
            diagonal[static_cast<std::size_t>(k)] = d;
            if (d == 0.0) {
                dead_[static_cast<std::size_t>(k)] = true;
                result_.report.dead.push_back(k);
            }
            sum += d;
        }
        if (n != 0 && sum == 0.0)
            fail(errc::invalid_argument, "gptq: the activations of all " + std::to_string(n) + " channels were zero in all " + std::to_string(h_.tokens()) + " tokens");
        mean_ = n == 0 ? 0.0 : sum / static_cast<double>(n - static_cast<index>(result_.report.dead.size())) / static_cast<double>(h_.tokens());
        importance_.resize(diagonal.size());
        relative_weights(diagonal.data(), n, importance_.data());
        order_.resize(diagonal.size());
        std::iota(order_.begin(), order_.end(), index{0});
        if (options_.act_order)
            std::stable_sort(order_.begin(), order_.end(), [&](index a, index b) { return diagonal[static_cast<std::size_t>(a)] > diagonal[static_cast<std::size_t>(b)]; });
    }

    [[nodiscard]] double damping() const noexcept { return options_.damping.value_or(automatic_damping(w_.cols, h_.tokens())); }
    [[nodiscard]] index column(index j) const noexcept { return order_[static_cast<std::size_t>(j)]; }
    [[nodiscard]] bool is_dead(index j) const noexcept { return dead_[static_cast<std::size_t>(column(j))]; }
    /// Column j of the sweep, as it was; zero if it is dead.
    void load_column(index j, float* out) const {
        if (is_dead(j)) std::fill_n(out, w_.rows, 0.0f);
        else load_block(w_, 0, w_.rows, column(j), 1, out, 1);
    }
    /// body(first, count) for tiles of rows.
    template <class Body>
    void for_tiles(const Body& body) const {
        const auto task = [&](index i) {
            const fp_environment environment;
            body(i * tile_rows, (std::min)(tile_rows, w_.rows - i * tile_rows));
        };
        const index tiles = ceil_div(w_.rows, tile_rows);
        if (options_.executor != nullptr) options_.executor->parallel_for(tiles, task);
        else for (index i = 0; i < tiles; ++i) task(i);
    }

    void measure_before() {
        quantize_options plain;
        plain.executor = options_.executor;
        const Eigen::MatrixXf rounded = dequantize(quantize(w_, plan_, plain));
        Eigen::VectorXf original(w_.rows);
        for (index j = 0; j < w_.cols; ++j) {
            load_column(j, original.data());
            if (is_dead(j)) corrections_.col(j).setZero();
            else corrections_.col(j) = original.template cast<Scalar>() - rounded.col(column(j)).template cast<Scalar>();
        }
        double damped = 0.0;
        matrix e;
        for (index first = 0; first < w_.cols; first += options_.block) {
            const index count = (std::min)(options_.block, w_.cols - first), last = first + count;
            e.resize(w_.rows, count);
            for_tiles([&](index row, index rows) {
                e.middleRows(row, rows).noalias() = corrections_.block(row, 0, rows, last) * factor_.unit.block(0, first, last, count);
            });
            for (index j = 0; j < count; ++j) {
                const double p = factor_.pivot[static_cast<std::size_t>(first + j)];
                damped += p * p * e.col(j).template cast<double>().squaredNorm();
            }
        }
        double squares = 0.0;
        for (index j = 0; j < w_.cols; ++j) squares += corrections_.col(j).template cast<double>().squaredNorm();
        result_.report.loss_before = (std::max)(0.0, damped - factor_.added * squares);
    }

    /// The rule that scales are chosen by.
    [[nodiscard]] quantize_plan searching_plan() {
        quantize_plan plan = plan_;
        const std::string_view name = plan.rule.name;
        const bool by_range = plan.rule.from_range != nullptr && plan.rule.encode == nullptr &&
                              (name == absmax::name || name == zero_point::name || name == min_offset::name || name == float_zero::name);
        if (!options_.search_scales || !by_range) return plan;
        grid_ = {plan.rule.offset, 30, 0.0175f, 1};
        plan.rule = erase(grid_);
        return plan;
    }

    void sweep() {
        const index n = w_.rows, k = w_.cols;
        const bool permuted = options_.act_order && !options_.static_groups;
        const quantize_plan plan = searching_plan();
        std::vector<float> weights;
        quantize_options choose;
        if (options_.search_scales && plan.rule.searches) {
            weights = importance_;
            if (permuted)
                for (index j = 0; j < k; ++j) weights[static_cast<std::size_t>(j)] = importance_[static_cast<std::size_t>(column(j))];
            choose.importance = weights;
        }
        column_quantizer quantizer(n, k, plan, choose);
        if (options_.static_groups) choose_static(quantizer);
        const index group = (std::max)(index{1}, quantizer.group_size());

        corrections_.setZero();
        matrix lost(n, (std::min)(options_.block, k));  // w - q of the columns of a block
        std::vector<float> original(static_cast<std::size_t>(n)), now(original.size()), rounded(original.size());
        Eigen::MatrixXf of_group;
        double squares = 0.0;
        for (index first = 0; first < k;) {
            index last = (std::min)(first + options_.block, k);
            // Scales of a group see all corrections by earlier columns: no group begins inside a block and ends beyond it.
            if (!options_.static_groups && last < k && last % group != 0 && last / group * group > first) last = last / group * group;
            for (index begin = first; begin < last;) {
                index end = (std::min)(begin + strip, last);
                if (!options_.static_groups) end = (std::min)(end, (begin / group + 1) * group);
                if (!options_.static_groups && begin % group == 0) {
                    predict(begin, (std::min)(group, k - begin), of_group);
                    quantizer.choose_scales(begin / group, of_group);
                }
                for (index j = begin; j < end; ++j) {
                    load_column(j, original.data());
                    const auto was = Eigen::Map<const Eigen::VectorXf>(original.data(), n).template cast<Scalar>();
                    auto correction = corrections_.col(j);
                    correction.noalias() += lost.middleCols(begin - first, j - begin) * factor_.unit.col(j).segment(begin, j - begin);
                    Eigen::Map<Eigen::VectorXf>(now.data(), n) = (was + correction).template cast<float>();
                    quantizer.quantize(permuted ? j : column(j), now.data(), 1, rounded.data(), nullptr);
                    const auto q = Eigen::Map<const Eigen::VectorXf>(rounded.data(), n).template cast<Scalar>();
                    lost.col(j - first) = was - q;
                    if (is_dead(j)) continue;
                    const double p = factor_.pivot[static_cast<std::size_t>(j)];
                    result_.report.damped_loss += p * p * (lost.col(j - first) + correction).template cast<double>().squaredNorm();
                    squares += lost.col(j - first).template cast<double>().squaredNorm();
                }
                update(lost, first, begin, end, last);
                begin = end;
            }
            update(lost, first, first, last, k);
            if (options_.progress && !options_.progress(last, k))
                fail(errc::cancelled, "gptq: cancelled after " + std::to_string(last) + " of " + std::to_string(k) + " columns");
            first = last;
        }
        result_.report.loss_after = (std::max)(0.0, result_.report.damped_loss - factor_.added * squares);
        result_.weights = std::move(quantizer).finish();
    }

    /// Columns [first, first + count) as they would be if nothing were lost from here on: with corrections C by earlier
    /// columns they are w + x with x_j = C_j + sum over i < j of the group of -x_i R_ij / R_jj, so x = C unit^-1.
    void predict(index first, index count, Eigen::MatrixXf& out) const {
        matrix x = corrections_.middleCols(first, count);
        factor_.unit.block(first, first, count, count).template triangularView<Eigen::UnitUpper>().template solveInPlace<Eigen::OnTheRight>(x);
        out.resize(w_.rows, count);
        for (index j = 0; j < count; ++j) {
            load_column(first + j, out.col(j).data());
            out.col(j) = (out.col(j).template cast<Scalar>() + x.col(j)).template cast<float>();
        }
    }

    /// Scales of all groups, from W without its dead columns.
    void choose_static(column_quantizer& quantizer) const {
        if (result_.report.dead.empty()) {
            quantizer.choose_all(w_);
            return;
        }
        Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> w(w_.rows, w_.cols);
        load_block(w_, 0, w_.rows, 0, w_.cols, w.data(), w_.cols);
        for (const index k : result_.report.dead) w.col(k).setZero();
        quantizer.choose_scales(w);
    }

    /// Codes and scales once more, against all columns at once.
    void refine() {
        factor_.unit.resize(0, 0);
        corrections_.resize(0, 0);
        refine_options o;
        o.rounds = options_.refine_rounds;
        o.order = result_.order;
        o.executor = options_.executor;
        if (options_.progress) o.progress = [this](index, index) { return options_.progress(w_.cols, w_.cols); };
        refine_result better = refine_run<Scalar>(w_, result_.weights, h_, factor_.added, o).run();
        result_.report.damped_loss = better.report.damped_after;
        result_.report.loss_after = better.report.loss_after;
        result_.weights = std::move(better.weights);
    }

    /// corrections[end, last) += lost[begin, end) times the factor; `lost` begins at column `first`.
    void update(const matrix& lost, index first, index begin, index end, index last) {
        if (end == last) return;
        for_tiles([&](index row, index rows) {
            corrections_.block(row, end, rows, last - end).noalias() +=
                lost.block(row, begin - first, rows, end - begin) * factor_.unit.block(begin, end, end - begin, last - end);
        });
    }

    const const_view& w_;
    const basic_hessian<Scalar>& h_;
    const quantize_plan& plan_;
    const gptq_options& options_;
    gptq_result result_;
    gptq_factor<Scalar> factor_;
    std::vector<index> order_;  // of the sweep
    std::vector<bool> dead_;    // by column of W
    std::vector<float> importance_;
    double mean_ = 0.0;         // of the diagonal of sum / tokens, dead channels left out
    matrix corrections_;        // N x K, in the order of the sweep
    mse grid_;
};

// Not inline: with nibble::compiled it is instantiated there, for it takes a compiler ten seconds.
template <class Scalar>
gptq_result gptq_run<Scalar>::run() && {
    check();
    const fp_environment environment;
    look_at_diagonal();
    result_.report.tokens = h_.tokens();
    result_.report.few_tokens = h_.tokens() < w_.cols;
    factor_ = factorize(h_, order_, dead_, mean_, damping());
    result_.report.damping = factor_.damping;
    result_.report.damping_raised = factor_.raised;
    corrections_.resize(w_.rows, w_.cols);
    if (options_.measure_before) measure_before();
    sweep();
    if (options_.act_order && !options_.static_groups) result_.order = order_;
    if (options_.refine_rounds > 0) refine();
    return std::move(result_);
}

#if defined(NIBBLE_COMPILED)
#if NIBBLE_DEFINE_ALGORITHMS
template class gptq_run<float>;
template class gptq_run<double>;
#else
extern template class gptq_run<float>;
extern template class gptq_run<double>;
#endif
#endif

}  // namespace detail

/// Quantizes W (N x K) by GPTQ against the activations that `h` has seen. plan: make_plan(recipe or format, rule, group).
/// Throws errc::shape_mismatch, errc::invalid_argument (no tokens, activations all zero, options that cannot be),
/// errc::non_finite for weights, errc::unsupported for formats without scales of single rows, errc::cancelled.
template <class Scalar>
[[nodiscard]] gptq_result gptq(const const_view& w, const basic_hessian<Scalar>& h, const quantize_plan& plan, const gptq_options& options = {}) {
    return detail::gptq_run<Scalar>(w, h, plan, options).run();
}
template <eigen_expression W, class Scalar>
[[nodiscard]] gptq_result gptq(const Eigen::DenseBase<W>& w, const basic_hessian<Scalar>& h, const quantize_plan& plan, const gptq_options& options = {}) {
    return gptq(eigen_view<W>(w).get(), h, plan, options);
}
template <eigen_expression W, class Scalar>
[[nodiscard]] gptq_result gptq(const Eigen::DenseBase<W>& w, const basic_hessian<Scalar>& h, const recipe& r, const gptq_options& options = {}) {
    return gptq(eigen_view<W>(w).get(), h, make_plan(r), options);
}

}  // namespace nibble
