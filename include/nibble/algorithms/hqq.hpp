// HQQ, half-quadratic quantization (Badri and Shaji 2023): no calibration; the float zero of each group is moved so that few
// weights are far off, which counts for more than that many are a little off.
//
//     auto [Wq, report] = nibble::hqq(W, nibble::int4_hqq_g64::get());
//
// minimizes |W - Q|_p^p, p = 0.7, by turns: E, what may be off, is the error with its small part shrunk away; the zero is the
// mean of q - (W - E) / scale over its group. Scales stay. Per iteration, with n = 2^bits - 1:
//
//     q = clamp(RNE(w / scale + zero), 0, n)     d = w - scale (q - zero)     e = sign(d) max(|d| - |d|^(p - 1) / beta, 0)
//     zero <- mean of q - (w - e) / scale        beta <- beta * kappa
//
// until the mean |d| of the whole matrix falls no more. The zero of the least mean is kept; hqq's own loop has moved on by one
// step then. It also sets scales of groups narrower than 1e-4 to 1, and holds 1 / scale below 20000; neither is done here.
#pragma once

#include <cmath>
#include <functional>

#include "../quantize.hpp"
#include "output_loss.hpp"

namespace nibble::inline NIBBLE_ABI {

struct hqq_options {
    double p = 0.7;          ///< the norm, in (0, 1]
    double beta = 10.0;      ///< how much is shrunk away: less as it grows
    double kappa = 1.01;     ///< its growth from step to step
    int iterations = 20;     ///< at most
    bool round_zero = true;  ///< the first zero of 4-bit codes is rounded to an integer, as hqq does
    nibble::executor* executor = nullptr;
    /// Called after each iteration with its number and the most; returning false stops with errc::cancelled.
    std::function<bool(index done, index total)> progress{};
};

struct hqq_report {
    std::vector<double> errors{};  ///< mean |w - q| at the start of each iteration
    double mean_before = 0.0;      ///< of the first zeros
    double mean_after = 0.0;       ///< of those kept, before the scheme rounds them
};

struct hqq_result {
    qmatrix weights;
    hqq_report report;
};

namespace detail {

struct hqq_group {
    double scale, zero, error, next;
};

NIBBLE_FP_BEGIN

/// One step of one group: the sum of |d| with its zero, and the zero after.
NIBBLE_NOINLINE inline void hqq_step(const float* w, index count, double last, double p, double beta, hqq_group& g) noexcept {
    double error = 0.0, sum = 0.0;
    for (index i = 0; i < count; ++i) {
        const double x = static_cast<double>(w[i]);
        double q = std::nearbyint(x / g.scale + g.zero);
        q = q < 0.0 ? 0.0 : q > last ? last : q;
        const double d = x - g.scale * (q - g.zero);
        const double size = d < 0.0 ? -d : d;
        error += size;
        double e = 0.0;
        if (size > 0.0) {
            e = size - std::pow(size, p - 1.0) / beta;
            e = e < 0.0 ? 0.0 : d < 0.0 ? -e : e;
        }
        sum += q - (x - e) / g.scale;
    }
    g.error = error;
    g.next = sum / static_cast<double>(count);
}

NIBBLE_FP_END

inline void check_hqq(const quantize_plan& plan, const hqq_options& o) {
    if (plan.rule.offset != offset_kind::float_zero)
        fail(errc::unsupported, "hqq: " + plan.name + " has no float zero to be moved; take int4_hqq_g64, or a plan with the rule float_zero");
    if (plan.group.rows != 1 || (plan.scale.storage != scale_storage::f16 && plan.scale.storage != scale_storage::bf16 && plan.scale.storage != scale_storage::f32))
        fail(errc::unsupported, "hqq: " + plan.name + " has no float scales of groups of one row");
    if (!(o.p > 0.0 && o.p <= 1.0 && o.beta > 0.0 && o.kappa > 0.0) || o.iterations < 1)
        fail(errc::invalid_argument, "hqq: p " + std::to_string(o.p) + ", beta " + std::to_string(o.beta) + ", kappa " + std::to_string(o.kappa) + ", " +
                                         std::to_string(o.iterations) + " iterations");
}

}  // namespace detail

/// Quantizes W (N x K) with a plan that has a float zero for each group of a row. The result depends on pow of the C library.
/// Throws errc::unsupported for other plans, errc::invalid_argument for options that cannot be, errc::non_finite for weights,
/// errc::cancelled.
[[nodiscard]] inline hqq_result hqq(const const_view& w, const quantize_plan& plan, const hqq_options& options = {}) {
    check_quantize(w, plan).or_throw();
    detail::check_hqq(plan, options);
    const detail::fp_environment environment;
    column_quantizer quantizer(w.rows, w.cols, plan);
    const index size = quantizer.group_size(), groups = quantizer.groups();
    const double last = static_cast<double>(plan.format->code_count() - 1);
    // Proposals of the rule. A constant group stays as it is: there is nothing to gain.
    std::vector<detail::hqq_group> all(static_cast<std::size_t>(w.rows * groups));
    std::vector<float> best(all.size()), scale(all.size());
    std::vector<double> row_error(static_cast<std::size_t>(w.rows));
    const auto for_rows = [&](const auto& body) {
        detail::for_row_tiles(w.rows, 16, options.executor, {}, "hqq", [&](index, index first, index rows) {
            std::vector<float> row(static_cast<std::size_t>(w.cols));
            for (index n = first; n < first + rows; ++n) {
                detail::load_block(w, n, 1, 0, w.cols, row.data(), w.cols);
                for (index g = 0; g < groups; ++g) {
                    const index begin = g * size;
                    body(n, g, row.data() + begin, (std::min)(size, w.cols - begin));
                }
            }
        });
    };
    for_rows([&](index n, index g, const float* x, index count) {
        const index bad = detail::find_non_finite(x, count);
        if (bad >= 0) detail::fail(errc::non_finite, "hqq: W(" + std::to_string(n) + ", " + std::to_string(g * size + bad) + ") is " + detail::non_finite_name(x + bad));
        const auto at = static_cast<std::size_t>(n * groups + g);
        const auto [low, high] = std::minmax_element(x, x + count);
        const group_scale s = float_zero{}.from_range(*low, *high, *plan.format);
        scale[at] = s.scale;
        best[at] = options.round_zero && plan.format->bits == 4 && *low != *high ? std::nearbyint(s.offset) : s.offset;
        all[at] = {*low == *high ? 0.0 : static_cast<double>(s.scale), static_cast<double>(best[at]), 0.0, static_cast<double>(best[at])};
    });

    hqq_result r;
    const double weights = (std::max)(1.0, static_cast<double>(w.rows) * static_cast<double>(w.cols));
    double beta = options.beta;
    for (int i = 0; i < options.iterations; ++i, beta *= options.kappa) {
        std::fill(row_error.begin(), row_error.end(), 0.0);
        for_rows([&](index n, index g, const float* x, index count) {
            detail::hqq_group& of = all[static_cast<std::size_t>(n * groups + g)];
            if (of.scale == 0.0) return;
            of.zero = of.next;
            detail::hqq_step(x, count, last, options.p, beta, of);
            row_error[static_cast<std::size_t>(n)] += of.error;
        });
        const double error = std::accumulate(row_error.begin(), row_error.end(), 0.0) / weights;
        r.report.errors.push_back(error);
        if (i == 0) r.report.mean_before = error;
        else if (!(error < r.report.mean_after)) break;
        r.report.mean_after = error;
        for (std::size_t j = 0; j < all.size(); ++j) best[j] = static_cast<float>(all[j].zero);
        if (options.progress && !options.progress(i + 1, options.iterations))
            detail::fail(errc::cancelled, "hqq: cancelled after " + std::to_string(i + 1) + " of " + std::to_string(options.iterations) + " iterations");
    }
    quantizer.set_scales(scale, best);
    std::vector<float> column(static_cast<std::size_t>(w.rows));
    for (index k = 0; k < w.cols; ++k) {
        detail::load_block(w, 0, w.rows, k, 1, column.data(), 1);
        quantizer.quantize(k, column.data(), 1, nullptr, nullptr);
    }
    r.weights = std::move(quantizer).finish();
    return r;
}

/// The same of an Eigen expression, with a recipe or a plan.
template <eigen_expression W>
[[nodiscard]] hqq_result hqq(const Eigen::DenseBase<W>& w, const quantize_plan& plan, const hqq_options& options = {}) {
    return hqq(eigen_view<W>(w).get(), plan, options);
}
template <eigen_expression W>
[[nodiscard]] hqq_result hqq(const Eigen::DenseBase<W>& w, const recipe& r, const hqq_options& options = {}) {
    return hqq(eigen_view<W>(w).get(), make_plan(r), options);
}

}  // namespace nibble
