// A feed-forward layer the way an inference program writes it: gate and up projections share their prepared activations,
// bias and silu are fused, scratch memory is kept, rows are shared out to threads of the program's own.
#include <nibble/nibble.hpp>

#include <cstdio>
#include <thread>
#include <vector>

int main() {
    using namespace nibble;
    const Eigen::MatrixXf gate = Eigen::MatrixXf::Random(1024, 512);
    const Eigen::MatrixXf up = Eigen::MatrixXf::Random(1024, 512);
    const Eigen::MatrixXf down = Eigen::MatrixXf::Random(512, 1024);
    const Eigen::VectorXf bias = Eigen::VectorXf::Random(1024);
    const Eigen::MatrixXf tokens = Eigen::MatrixXf::Random(512, 4);  // a column per token

    const qmatrix gate_q = quantize<int4_g32>(gate);
    const qmatrix up_q = quantize<int4_g32>(up);
    const qmatrix down_q = quantize<int8_per_channel>(down);

    // Threads are the program's business; a real one lends its pool (executors/openmp.hpp, executors/eigen_thread_pool.hpp).
    auto threads = make_executor(2, [](nibble::index tasks, task_body body) {
        std::vector<std::thread> pool;
        for (nibble::index t = 1; t < tasks; ++t) pool.emplace_back([=] { body(t); });
        body(0);
        for (std::thread& t : pool) t.join();
    });
    workspace scratch;

    const prepared_activations x = prepare(gate_q, tokens, compute::a8);
    Eigen::MatrixXf g(1024, 4), u(1024, 4);
    gemm(gate_q, x, g, {.compute = compute::a8, .bias = bias, .activation = activation::silu, .workspace = &scratch, .executor = &threads});
    gemm(up_q, x, u, {.compute = compute::a8, .workspace = &scratch, .executor = &threads});
    g.array() *= u.array();
    Eigen::Matrix<Eigen::bfloat16, Eigen::Dynamic, Eigen::Dynamic> y(512, 4);
    gemm(down_q, g, y, {.workspace = &scratch, .executor = &threads});

    const Eigen::ArrayXXf s = ((gate * tokens).colwise() + bias).array();
    const Eigen::MatrixXf exact = down * (s / (1.0f + (-s).exp()) * (up * tokens).array()).matrix();
    std::printf("%s\noutputs: %.1f dB\n", explain(gate_q, 4, {.compute = compute::a8}).c_str(), sqnr_db(exact, y.cast<float>().eval()));
    return sqnr_db(exact, y.cast<float>().eval()) > 15.0 ? 0 : 1;
}
