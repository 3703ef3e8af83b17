#include <algorithm>
#include <ctime>
#include <optional>

#include <Eigen/Cholesky>

#include <benchmark/benchmark.h>
#include <nibble/algorithms/gptq.hpp>
#include <nibble/algorithms/llm_int8.hpp>
#include <nibble/algorithms/refine.hpp>
#include <nibble/integer_gemm.hpp>
#include <nibble/layers/kv_cache.hpp>

#include "../data.hpp"
#include "algorithms_benchmark.hpp"

namespace bench::algorithms {
namespace {

using nibble::index;

// Milliseconds of CPU of one call: what takes seconds is run once.
template <class F>
double cpu_ms(const F& f) {
    const std::clock_t start = std::clock();
    f();
    return 1e3 * static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
}

// Against the float operations that GPTQ cannot avoid: second moments, a Cholesky factor, and the updates of the columns
// still to come, by Eigen; its refinement against a product of N x K with K x K for each of its sweeps.
void gptq_costs(const settings& s, progress& shown, results& r) {
    const index k = s.channels;
    const row_matrix w = normal_matrix(k, k, 0.02f, 3);
    const Eigen::MatrixXf x = normal_matrix(k, s.tokens, 1.0f, 4);
    const nibble::quantize_plan plan = nibble::make_plan(nibble::int4_zero_g128::get());
    const std::string size = std::to_string(k) + "x" + std::to_string(k);
    const nibble::gptq_options sweep{.measure_before = false, .refine_rounds = 0};
    cost_row row{"gptq " + size + ", " + std::to_string(s.tokens) + " tokens, sweep alone", "its float operations, by Eigen", 0.0, 0.0, 3.0};
    cost_row refined{"refine " + size + ", four sweeps", "four products with H, by Eigen", 0.0, 0.0, 3.0};
    nibble::hessian h(k);
    std::optional<nibble::gptq_result> made;
    shown.status("gptq");
    row.own_ms = cpu_ms([&] {
        h.add(x);
        made = nibble::gptq(w, h, plan, sweep);
    });
    shown.status("refine");
    refined.own_ms = cpu_ms([&] { static_cast<void>(nibble::refine(w, made->weights, h, {.rounds = 2})); });
    shown.status("Eigen");
    Eigen::MatrixXf moments = Eigen::MatrixXf::Zero(k, k);
    row.other_ms = cpu_ms([&] {
        moments.selfadjointView<Eigen::Lower>().rankUpdate(x);
        moments.diagonal().array() += static_cast<float>(s.tokens);
        Eigen::MatrixXf factor = moments;
        const Eigen::LLT<Eigen::Ref<Eigen::MatrixXf>> llt(factor);
        Eigen::MatrixXf rest = w;
        constexpr index block = 128;
        for (index j = block; j < k; j += block)
            rest.rightCols(k - j).noalias() -= rest.middleCols(j - block, block) * factor.block(j, j - block, k - j, block).transpose();
        benchmark::DoNotOptimize(rest.data());
    });
    refined.other_ms = cpu_ms([&] {
        for (int sweep_of = 0; sweep_of < 4; ++sweep_of) {
            const Eigen::MatrixXf lost = w * moments;
            benchmark::DoNotOptimize(lost.data());
        }
    });
    r.costs.push_back(row);
    r.costs.push_back(refined);
}

// Runs each of two several times, in turns; the least of each.
template <class A, class B>
void take_turns(cost_row& row, int rounds, const A& own, const B& other) {
    for (int i = 0; i < rounds; ++i) {
        const double a = cpu_ms(own), b = cpu_ms(other);
        row.own_ms = i == 0 ? a : (std::min)(row.own_ms, a);
        row.other_ms = i == 0 ? b : (std::min)(row.other_ms, b);
    }
}

// Both quantize X.
cost_row llm_int8_cost(const settings& s) {
    constexpr index tokens = 16;
    const index k = s.channels;
    const nibble::llm_int8 layer(normal_matrix(k, k, 0.02f, 3));
    Eigen::MatrixXf x = normal_matrix(k, tokens, 1.0f, 4).cwiseMax(-5.0f).cwiseMin(5.0f);
    for (index i = 0; i < k / 1000; ++i) x(1000 * i, i % tokens) = 60.0f;
    Eigen::MatrixXf y(k, tokens);
    nibble::workspace memory;
    cost_row row{"llm_int8, 0.1 % outlier channels, " + std::to_string(tokens) + " tokens", "int8 without outliers", 0.0, 0.0, 1.3};
    take_turns(
        row, 15, [&] { layer.multiply(x, y, {.workspace = &memory}); },
        [&] {
            const nibble::quantized_activations a = nibble::quantize_activations(x, nibble::activation_rule::per_token());
            nibble::integer_gemm(layer.weights(), a, y, {.workspace = &memory});
        });
    return row;
}

// As many tokens again, behind a cache of 16 times the length.
cost_row kv_cache_cost() {
    constexpr index channels = 128, tokens = 2048;
    const Eigen::MatrixXf keys = normal_matrix(channels, tokens, 1.0f, 5), values = normal_matrix(channels, tokens, 1.0f, 6);
    nibble::kv_cache brief(channels), long_one(channels);
    for (int i = 0; i < 16; ++i) long_one.append(keys, values);
    cost_row row{"kv_cache: append 2048 tokens to 32768", "to an empty one", 0.0, 0.0, 1.25};
    take_turns(
        row, 5, [&] { long_one.append(keys, values); },
        [&] {
            brief = nibble::kv_cache(channels);
            brief.append(keys, values);
        });
    return row;
}

}  // namespace

void measure_costs(const settings& s, progress& shown, results& r) {
    shown.status("kv_cache");
    r.costs.push_back(kv_cache_cost());
    shown.status("llm_int8");
    r.costs.push_back(llm_int8_cost(s));
    if (!was_interrupted()) gptq_costs(s, shown, r);
    r.complete = !was_interrupted();
}

}  // namespace bench::algorithms
