#include <ctime>

#include <Eigen/Cholesky>

#include <nibble/algorithms/gptq.hpp>

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

}  // namespace

void measure_costs(const settings& s, progress& shown, results& r) {
    shown.status("gptq");
    r.costs.push_back(gptq_cost(s));
}

}  // namespace bench::algorithms
