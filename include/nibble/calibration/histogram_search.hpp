// Where to clip: searches on a histogram of magnitudes, and PyTorch's search on one of signed values. Plain functions on
// counts, used by the observers.
//
//   percentile_limit   NVIDIA pytorch-quantization, calib/histogram.py
//   mse_limit          the same
//   entropy_limit      Migacz, "8-bit inference with TensorRT", GTC 2017; the same file
//   search_range       torch.ao HistogramObserver, _non_linear_param_search
#pragma once

#include <cmath>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "../error.hpp"
#include "../formats/integer.hpp"

namespace nibble::inline NIBBLE_ABI {

/// The smallest and the largest value to represent.
struct value_range {
    float low = 0.0f;
    float high = 0.0f;
    friend constexpr bool operator==(const value_range&, const value_range&) noexcept = default;
};

namespace detail {

inline void check_histogram(std::span<const double> counts, double width, const char* who) {
    if (counts.empty() || !(width > 0.0)) fail(errc::invalid_argument, std::string(who) + ": " + std::to_string(counts.size()) + " bins of " + std::to_string(width));
}

NIBBLE_FP_BEGIN

[[nodiscard]] inline double total_of(std::span<const double> counts) noexcept {
    double sum = 0.0;
    for (const double c : counts) sum += c;
    return sum;
}

/// The divergence of the first `kept` bins, the rest added to the last of them, from what `levels` levels make of them.
[[nodiscard]] NIBBLE_NOINLINE inline double divergence(std::span<const double> counts, std::size_t kept, std::size_t levels, double total, double beyond) {
    // Q sums to the kept counts, P to all.
    const double inside = total - beyond;
    if (!(inside > 0.0)) return std::numeric_limits<double>::infinity();
    double sum = 0.0;
    for (std::size_t k = 0; k < kept;) {
        const std::size_t level = k * levels / kept;
        std::size_t end = k, used = 0;
        double mass = 0.0;
        for (; end < kept && end * levels / kept == level; ++end) {
            mass += counts[end];
            if (counts[end] != 0.0) ++used;
        }
        for (; k < end; ++k) {
            const double here = counts[k] + (k + 1 == kept ? beyond : 0.0);
            if (here == 0.0) continue;
            if (counts[k] == 0.0) return std::numeric_limits<double>::infinity();
            const double p = here / total, q = mass / static_cast<double>(used) / inside;
            sum += p * std::log(p / q);
        }
    }
    return sum;
}

/// The sum of squared errors of bin centers at `levels` steps up to `limit`.
[[nodiscard]] NIBBLE_NOINLINE inline double squared_error(std::span<const double> counts, double width, double step, double levels) noexcept {
    double sum = 0.0;
    for (std::size_t k = 0; k < counts.size(); ++k) {
        const double center = (static_cast<double>(k) + 0.5) * width;
        const double at = center / step;
        const double code = at >= levels ? levels : (at + 6755399441055744.0) - 6755399441055744.0;  // to nearest even
        const double e = center - code * step;
        sum += counts[k] * e * e;
    }
    return sum;
}

/// rho * integral of x^2 from a to b.
[[nodiscard]] inline double norm(double a, double b, double rho) noexcept { return rho * (b * b * b - a * a * a) / 3.0; }

/// PyTorch's _compute_quantization_error for bins [start, end].
[[nodiscard]] NIBBLE_NOINLINE inline double range_error(std::span<const double> counts, double width, index start, index end, int levels) noexcept {
    const double step = width * static_cast<double>(end - start + 1) / levels;
    if (step == 0.0) return 0.0;
    double sum = 0.0;
    for (std::size_t k = 0; k < counts.size(); ++k) {
        const double b0 = static_cast<double>(static_cast<index>(k) - start) * width, b1 = b0 + width, rho = counts[k] / width;
        double d0 = std::floor(b0 / step), d1 = std::floor(b1 / step);
        d0 = d0 < 0.0 ? 0.0 : d0 > levels - 1 ? levels - 1 : d0;
        d1 = d1 < 0.0 ? 0.0 : d1 > levels - 1 ? levels - 1 : d1;
        sum += norm(b0 - (d0 + 0.5) * step, 0.5 * step, rho);
        sum += (d1 - d0 - 1.0) * norm(-0.5 * step, 0.5 * step, rho);
        sum += norm(-0.5 * step, b1 - (d1 + 0.5) * step, rho);
    }
    return sum;
}

NIBBLE_FP_END

}  // namespace detail

/// The left edge of the bin in which the running count reaches percent % of all. counts[i] lie in [i, i + 1) * width.
/// Throws errc::invalid_argument without bins, for a width that is not positive, and outside 0 < percent <= 100.
[[nodiscard]] inline double percentile_limit(std::span<const double> counts, double width, double percent) {
    detail::check_histogram(counts, width, "percentile_limit");
    if (!(percent > 0.0 && percent <= 100.0)) detail::fail(errc::invalid_argument, "percentile_limit: " + std::to_string(percent) + " %");
    const double total = detail::total_of(counts);
    double sum = 0.0;
    for (std::size_t i = 0; i < counts.size(); ++i) {
        sum += counts[i];
        if (sum / total >= percent / 100.0) return static_cast<double>(i) * width;
    }
    return static_cast<double>(counts.size()) * width;
}

/// The limit i * width, i >= first, at which codes -levels .. levels lose least; the last one on ties.
/// Throws errc::invalid_argument as percentile_limit does, and for levels < 1.
[[nodiscard]] inline double mse_limit(std::span<const double> counts, double width, int levels, index first = 128) {
    detail::check_histogram(counts, width, "mse_limit");
    if (levels < 1) detail::fail(errc::invalid_argument, "mse_limit: " + std::to_string(levels) + " levels");
    const auto bins = static_cast<index>(counts.size());
    index best = bins;
    double least = std::numeric_limits<double>::infinity();
    for (index i = (std::min)((std::max)(first, index{1}), bins); i <= bins; ++i) {
        const double e = detail::squared_error(counts, width, static_cast<double>(i) * width / levels, levels);
        if (!(e <= least)) continue;
        least = e;
        best = i;
    }
    return static_cast<double>(best) * width;
}

/// The limit i * width, i >= levels, at which the distribution of `levels` levels diverges least from the histogram
/// (Kullback-Leibler, mass beyond the limit in its last bin); the last one on ties. The first bin, where exact zeros
/// pile up, is taken to hold as much as the second. 128 levels for int8, 256 for uint8.
/// Throws errc::invalid_argument as percentile_limit does, and for levels < 1.
[[nodiscard]] inline double entropy_limit(std::span<const double> counts, double width, int levels = 128) {
    detail::check_histogram(counts, width, "entropy_limit");
    if (levels < 1) detail::fail(errc::invalid_argument, "entropy_limit: " + std::to_string(levels) + " levels");
    std::vector<double> h(counts.begin(), counts.end());
    if (h.size() > 1) h[0] = h[1];
    const double total = detail::total_of(h);
    const auto bins = h.size(), wanted = static_cast<std::size_t>(levels);
    std::size_t best = bins;
    double least = std::numeric_limits<double>::infinity(), beyond = total;
    for (std::size_t i = 1; i <= bins; ++i) {
        beyond = i == bins ? 0.0 : beyond - h[i - 1];
        if (i < wanted) continue;
        const double d = detail::divergence(h, i, wanted, total, beyond);
        if (!(d <= least)) continue;
        least = d;
        best = i;
    }
    return static_cast<double>(best) * width;
}

/// PyTorch's search: bins at either end are given up, in steps of 1e-5 of all, as long as the L2 error of `levels` levels
/// over the rest falls. A greedy search: it stops at the first rise. Returns the first and the last bin kept.
/// Throws errc::invalid_argument as percentile_limit does, and for levels < 1.
[[nodiscard]] inline std::pair<index, index> search_range(std::span<const double> counts, double width, int levels = 256) {
    detail::check_histogram(counts, width, "search_range");
    if (levels < 1) detail::fail(errc::invalid_argument, "search_range: " + std::to_string(levels) + " levels");
    constexpr double step = 1e-5;
    std::vector<double> running(counts.begin(), counts.end());
    for (std::size_t i = 1; i < running.size(); ++i) running[i] += running[i - 1];
    const double total = running.back();
    const auto at = [&](index i) { return running[static_cast<std::size_t>(i)]; };
    index start = 0, end = static_cast<index>(counts.size()) - 1;
    double alpha = 0.0, beta = 1.0, least = std::numeric_limits<double>::infinity();
    while (alpha < beta) {
        const double next_alpha = alpha + step, next_beta = beta - step;
        index l = start, r = end;
        while (l < end && at(l) < next_alpha * total) ++l;
        while (r > start && at(r) > next_beta * total) --r;
        index next_start = start, next_end = end;
        if (l - start > end - r) {
            next_start = l;
            alpha = next_alpha;
        } else {
            next_end = r;
            beta = next_beta;
        }
        if (next_start == start && next_end == end) continue;
        const double e = detail::range_error(counts, width, next_start, next_end, levels);
        if (e > least) break;
        least = e;
        start = next_start;
        end = next_end;
    }
    return {start, end};
}

}  // namespace nibble
