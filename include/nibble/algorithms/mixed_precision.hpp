// A format for each layer under a budget of bytes.
//
//     std::vector<nibble::layer_choice> layers;
//     for each W:  layers.push_back(nibble::measure_formats(W, squares, {"q2_k", "q4_k", "q6_k"}));
//     nibble::assignment best = nibble::choose_formats(layers, budget);          // best.choice[i] is an index into layers[i].options
//
// squares[k] is importance::mean_square(k): weights() are relative, and would not compare one layer with another.
// Minimizes the sum of losses, where a layer's loss is of its own making alone: a measured loss of the model, or
// sum over k of E[x_k^2] |w_k - q_k|^2 (importance.hpp). Choosing one option per layer is the multiple-choice knapsack problem.
//
//   choose_formats          exact, by dynamic programming over bytes in units (Dudzinski and Walukiewicz 1987)
//   choose_formats_greedy   along the convex hulls of (bytes, loss), steepest first; exact at its own stops, at once for any number
#pragma once

#include <limits>
#include <span>

#include "../dequantize.hpp"
#include "../quantize.hpp"

namespace nibble::inline NIBBLE_ABI {

/// What a layer would be in one format.
struct format_option {
    std::string name;
    std::uint64_t bytes = 0;
    double loss = 0.0;
};
struct layer_choice {
    std::vector<format_option> options;
};

/// One option for each layer.
struct assignment {
    std::vector<std::size_t> choice;
    std::uint64_t bytes = 0;
    double loss = 0.0;
};

namespace detail {

[[nodiscard]] inline std::uint64_t least_bytes(const layer_choice& l) noexcept {
    std::uint64_t least = l.options.front().bytes;
    for (const format_option& o : l.options) least = (std::min)(least, o.bytes);
    return least;
}

/// Checks the layers; the sum of their smallest options.
[[nodiscard]] inline std::uint64_t check_layers(std::span<const layer_choice> layers, std::uint64_t budget) {
    std::uint64_t least = 0;
    for (std::size_t i = 0; i < layers.size(); ++i) {
        if (layers[i].options.empty()) fail(errc::invalid_argument, "choose_formats: layer " + std::to_string(i) + " has no options");
        for (const format_option& o : layers[i].options)
            if (!(o.loss >= 0.0 && o.loss <= (std::numeric_limits<double>::max)()))
                fail(errc::invalid_argument, "choose_formats: " + o.name + " of layer " + std::to_string(i) + " has a loss of " + std::to_string(o.loss));
        least += least_bytes(layers[i]);
    }
    if (least > budget)
        fail(errc::out_of_range, "choose_formats: the smallest formats of " + std::to_string(layers.size()) + " layers take " + std::to_string(least) +
                                     " bytes, the budget is " + std::to_string(budget));
    return least;
}

inline void add_up(std::span<const layer_choice> layers, assignment& a) {
    a.bytes = 0;
    a.loss = 0.0;
    for (std::size_t i = 0; i < layers.size(); ++i) {
        a.bytes += layers[i].options[a.choice[i]].bytes;
        a.loss += layers[i].options[a.choice[i]].loss;
    }
}

/// The options on the lower convex hull, by bytes: each step down costs more per byte than the one before.
[[nodiscard]] inline std::vector<std::size_t> hull_of(const layer_choice& l) {
    std::vector<std::size_t> order(l.options.size()), hull;
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    const auto& o = l.options;
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        return o[a].bytes != o[b].bytes ? o[a].bytes < o[b].bytes : o[a].loss != o[b].loss ? o[a].loss < o[b].loss : a < b;
    });
    const auto slope = [&](std::size_t a, std::size_t b) { return (o[a].loss - o[b].loss) / static_cast<double>(o[b].bytes - o[a].bytes); };
    for (const std::size_t i : order) {
        if (!hull.empty() && (o[i].bytes == o[hull.back()].bytes || o[i].loss >= o[hull.back()].loss)) continue;
        while (hull.size() > 1 && slope(hull[hull.size() - 2], hull.back()) <= slope(hull.back(), i)) hull.pop_back();
        hull.push_back(i);
    }
    return hull;
}

}  // namespace detail

/// Starts with the smallest options and takes the upgrade with the most loss per byte as long as one fits, the next one of
/// another layer where it does not. Throws errc::invalid_argument for a layer without options or a loss below 0,
/// errc::out_of_range when not even the smallest fit.
[[nodiscard]] inline assignment choose_formats_greedy(std::span<const layer_choice> layers, std::uint64_t budget) {
    std::uint64_t bytes = detail::check_layers(layers, budget);
    std::vector<std::vector<std::size_t>> hulls;
    assignment a;
    for (const layer_choice& l : layers) {
        hulls.push_back(detail::hull_of(l));
        a.choice.push_back(0);  // a place on the hull; the last loop makes it an option
    }
    for (;;) {
        std::size_t best = layers.size();
        double steepest = -1.0;
        for (std::size_t i = 0; i < layers.size(); ++i) {
            if (a.choice[i] + 1 == hulls[i].size()) continue;
            const format_option& now = layers[i].options[hulls[i][a.choice[i]]];
            const format_option& next = layers[i].options[hulls[i][a.choice[i] + 1]];
            const double slope = (now.loss - next.loss) / static_cast<double>(next.bytes - now.bytes);
            if (next.bytes - now.bytes > budget - bytes || slope <= steepest) continue;
            steepest = slope;
            best = i;
        }
        if (best == layers.size()) break;
        bytes -= layers[best].options[hulls[best][a.choice[best]]].bytes;
        bytes += layers[best].options[hulls[best][++a.choice[best]]].bytes;
    }
    for (std::size_t i = 0; i < layers.size(); ++i) a.choice[i] = hulls[i][a.choice[i]];
    detail::add_up(layers, a);
    return a;
}

/// The assignment with the least loss. Bytes above those of the smallest options are counted in `units` parts of what the
/// budget leaves, rounded up, so it always fits; it is the best when all bytes are whole numbers of units, and otherwise the
/// best of a budget smaller by at most a unit a layer. (And never worse than the greedy one.) Time and memory: layers x options x
/// units, layers x units bytes. Throws what choose_formats_greedy throws, and errc::invalid_argument for more than 256 options or no
/// unit.
[[nodiscard]] inline assignment choose_formats(std::span<const layer_choice> layers, std::uint64_t budget, std::uint64_t units = 10000) {
    const std::uint64_t least = detail::check_layers(layers, budget);
    if (units == 0) detail::fail(errc::invalid_argument, "choose_formats: a budget of 0 units");
    for (const layer_choice& l : layers)
        if (l.options.size() > 256) detail::fail(errc::invalid_argument, "choose_formats: a layer with " + std::to_string(l.options.size()) + " options");
    const std::uint64_t left = budget - least;
    const std::uint64_t unit = std::max<std::uint64_t>(1, left / units + (left % units != 0 ? 1 : 0));
    const std::uint64_t whole = left / unit;
    constexpr double never = std::numeric_limits<double>::infinity();
    std::vector<double> loss(whole + 1, 0.0), next;
    std::vector<std::uint8_t> chosen(layers.size() * (whole + 1));
    for (std::size_t i = 0; i < layers.size(); ++i) {
        next.assign(whole + 1, never);
        const std::uint64_t base = detail::least_bytes(layers[i]);
        for (std::size_t o = 0; o < layers[i].options.size(); ++o) {
            const std::uint64_t more = layers[i].options[o].bytes - base;
            const std::uint64_t cost = more / unit + (more % unit != 0 ? 1 : 0);
            for (std::uint64_t u = cost; u <= whole; ++u) {
                const double sum = loss[u - cost] + layers[i].options[o].loss;
                if (sum < next[u]) {
                    next[u] = sum;
                    chosen[i * (whole + 1) + u] = static_cast<std::uint8_t>(o);
                }
            }
        }
        loss.swap(next);
    }
    assignment a;
    a.choice.resize(layers.size());
    std::uint64_t u = whole;
    for (std::size_t i = layers.size(); i-- > 0;) {
        const std::size_t o = chosen[i * (whole + 1) + u];
        a.choice[i] = o;
        const std::uint64_t more = layers[i].options[o].bytes - detail::least_bytes(layers[i]);
        u -= more / unit + (more % unit != 0 ? 1 : 0);
    }
    detail::add_up(layers, a);
    assignment greedy = choose_formats_greedy(layers, budget);
    return greedy.loss < a.loss ? greedy : a;
}

/// The bytes and losses of W in each of the recipes: sum over k of importance[k] |w_k - q_k|^2, all ones without importance (which
/// recipes that search also use). Throws what quantize throws, errc::not_found for a name that is no recipe.
[[nodiscard]] inline layer_choice measure_formats(const Eigen::Ref<const Eigen::MatrixXf>& w, std::span<const float> importance,
                                                  const std::vector<std::string>& names, nibble::executor* executor = nullptr) {
    if (!importance.empty() && static_cast<index>(importance.size()) != w.cols())
        detail::fail(errc::shape_mismatch, "measure_formats: " + std::to_string(importance.size()) + " importance weights for W of " + detail::shape_text(w.rows(), w.cols()));
    layer_choice l;
    for (const std::string& name : names) {
        const quantize_plan plan = detail::plan_of_name(name);
        quantize_options options;
        options.executor = executor;
        if (plan.rule.searches) options.importance = importance;
        const qmatrix q = quantize(w, plan, options);
        const Eigen::MatrixXf back = dequantize(q, {executor});
        double loss = 0.0;
        for (index k = 0; k < w.cols(); ++k)
            loss += (importance.empty() ? 1.0 : static_cast<double>(importance[static_cast<std::size_t>(k)])) *
                    (back.col(k) - w.col(k)).cast<double>().squaredNorm();
        l.options.push_back({name, q.bytes(), loss});
    }
    return l;
}

}  // namespace nibble
