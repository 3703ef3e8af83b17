#include <algorithm>
#include <ctime>

#include <Eigen/Cholesky>

#include <nibble/algorithms/gptq.hpp>
#include <nibble/algorithms/llm_int8.hpp>
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
// still to come, by Eigen.
cost_row gptq_cost(const settings& s) {
    const index k = s.channels;
    const row_matrix w = normal_matrix(k, k, 0.02f, 3);
    const Eigen::MatrixXf x = normal_matrix(k, s.tokens, 1.0f, 4);
    cost_row row{"gptq " + std::to_string(k) + "x" + std::to_string(k) + ", " + std::to_string(s.tokens) + " tokens", "its float operations, by Eigen", 0.0, 0.0, 3.0};
    row.own_ms = cpu_ms([&] {
        nibble::hessian h(k);
        h.add(x);
        static_cast<void>(nibble::gptq(w, h, nibble::int4_zero_g128::get(), {.measure_before = false}));
    });
    row.other_ms = cpu_ms([&] {
        Eigen::MatrixXf h = Eigen::MatrixXf::Zero(k, k);
        h.selfadjointView<Eigen::Lower>().rankUpdate(x);
        h.diagonal().array() += static_cast<float>(s.tokens);
        const Eigen::LLT<Eigen::Ref<Eigen::MatrixXf>> llt(h);
        Eigen::MatrixXf rest = w;
        constexpr index block = 128;
        for (index j = block; j < k; j += block) rest.rightCols(k - j).noalias() -= rest.middleCols(j - block, block) * h.block(j, j - block, k - j, block).transpose();
        volatile const float used = rest(0, k - 1);
        static_cast<void>(used);
    });
    return row;
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
    shown.status("gptq");
    if (!was_interrupted()) r.costs.push_back(gptq_cost(s));
    r.complete = !was_interrupted();
}

}  // namespace bench::algorithms
