// QLoRA: a layer whose task has shifted. Its weights stay frozen in 4 bits; a correction of rank 8 learns. How close does it come
// to the best that any float weights can do?
#include <nibble/layers/qlora.hpp>
#include <nibble/nibble.hpp>

#include <Eigen/Cholesky>

#include <cmath>
#include <cstdio>
#include <random>

using Eigen::Index;
using Eigen::MatrixXf;

namespace {

/// Adam (Kingma and Ba 2015).
struct adam {
    MatrixXf m, v;
    int steps = 0;
    void operator()(MatrixXf& p, const MatrixXf& g, float rate) {
        if (steps++ == 0) m = v = MatrixXf::Zero(g.rows(), g.cols());
        m = 0.9f * m + 0.1f * g;
        v = 0.999f * v + 0.001f * g.cwiseAbs2();
        const float first = 1.0f - std::pow(0.9f, static_cast<float>(steps)), second = 1.0f - std::pow(0.999f, static_cast<float>(steps));
        p.array() -= rate * (m.array() / first) / ((v.array() / second).sqrt() + 1e-8f);
    }
};

}  // namespace

int main() {
    constexpr Index in = 64, out = 48, tokens = 4096, rank = 8, batch = 512;
    std::mt19937 random(1);
    const auto normal = [&](Index rows, Index cols, float sigma) {  // sums of uniform numbers: the same with every standard library
        MatrixXf m = MatrixXf::Zero(rows, cols);
        for (float& x : m.reshaped())
            for (int i = 0; i < 12; ++i) x += (static_cast<float>(random() >> 8) * 0x1p-24f - 0.5f) * sigma;
        return m;
    };
    // What the layer was trained for, and the new task: other weights by a matrix of rank 4, outputs with noise in them.
    const MatrixXf W = normal(out, in, 0.125f);
    const MatrixXf task = W + normal(out, 4, 0.25f) * normal(4, in, 0.25f);
    const MatrixXf X = normal(in, tokens, 1.0f);
    const MatrixXf Y = task * X + normal(out, tokens, 0.5f);
    const auto loss = [&](const MatrixXf& y) { return static_cast<double>((y - Y).squaredNorm()) / static_cast<double>(Y.size()); };

    nibble::qlora layer(nibble::quantize<nibble::nf4_double>(W), rank, 16.0f);
    const double before = loss(layer.forward(X));
    adam a, b;
    for (int step = 0; step < 300; ++step) {
        const Index at = step % (tokens / batch) * batch;
        const MatrixXf x = X.middleCols(at, batch);
        const auto g = layer.backward(x, 2.0f * (layer.forward(x) - Y.middleCols(at, batch)) / static_cast<float>(batch * out));
        const float rate = 0.01f * (1.0f - static_cast<float>(step) / 300.0f);
        a(layer.a(), g.a, rate);
        b(layer.b(), g.b, rate);
    }
    const double adapted = loss(layer.forward(X));
    // Full fine-tuning at its end: the least squares of all weights.
    const MatrixXf tuned = (X * X.transpose()).llt().solve(X * Y.transpose()).transpose();
    const double full = loss(tuned * X);
    const double merged = loss(layer.merged(nibble::make_plan(nibble::nf4_double::get())) * X);

    std::printf("mean squared error on the new task\n  frozen NF4, %.2f bits per weight   %.4f\n  + rank %td, %td of %td numbers      %.4f\n"
                "  full fine-tuning, least squares   %.4f\n  merged into NF4 again             %.4f\n",
                layer.base().bits_per_weight(), before, rank, layer.a().size() + layer.b().size(), W.size(), adapted, full, merged);
    std::printf("the low rank is within %.1f %% of full fine-tuning\n", 100.0 * (adapted / full - 1.0));
    return before > 1.5 * full && adapted <= 1.05 * full ? 0 : 1;
}
