// Which format for these weights? Tries every recipe and keeps those that no other beats on both size and error of the
// outputs. The program ./bench/run does this with real weights and timings; this is the idea in one page.
#include <algorithm>
#include <cstdio>
#include <string>
#include <vector>

#include <Eigen/Core>
#include <nibble/nibble.hpp>

int main() {
    const Eigen::Index n = 256, k = 512, tokens = 32;
    Eigen::MatrixXf W = Eigen::MatrixXf::Random(n, k).cwiseProduct(Eigen::MatrixXf::Random(n, k));
    W.col(7) *= 8.0f;  // an outlier channel, as transformers have them
    const Eigen::MatrixXf X = Eigen::MatrixXf::Random(k, tokens);
    const Eigen::MatrixXf exact = W * X;

    struct candidate {
        std::string name;
        double bits;
        double error;
    };
    std::vector<candidate> all;
    for (const nibble::recipe& r : nibble::recipes()) {
        const nibble::qmatrix Wq = nibble::quantize(W, r.name);
        all.push_back({r.name, Wq.bits_per_weight(), nibble::relative_error(exact, Wq * X)});
    }
    std::sort(all.begin(), all.end(), [](const candidate& a, const candidate& b) { return a.bits < b.bits; });

    std::printf("%-26s %10s %14s\n", "format", "bits", "output error");
    double best = 1e9;
    for (const candidate& c : all) {
        if (c.error >= best) continue;  // something smaller is at least as good
        best = c.error;
        std::printf("%-26s %10.4f %13.4f%%\n", c.name.c_str(), c.bits, 100.0 * c.error);
    }
}
