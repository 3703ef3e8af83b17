// A codebook learned from the weights: 16 values by Lloyd's algorithm (k-means in one dimension) on groups scaled by
// their largest magnitude, and the same matrix type and products as every other format.
#include <algorithm>
#include <array>
#include <cmath>
#include <iostream>
#include <vector>

#include <Eigen/Core>
#include <nibble/nibble.hpp>

std::array<float, 16> learn(const Eigen::MatrixXf& W, Eigen::Index group) {
    std::vector<float> t;
    for (Eigen::Index n = 0; n < W.rows(); ++n)
        for (Eigen::Index k = 0; k < W.cols(); k += group) {
            const auto block = W.row(n).segment(k, std::min(group, W.cols() - k));
            for (const float x : block) t.push_back(x / block.cwiseAbs().maxCoeff());
        }
    std::sort(t.begin(), t.end());
    std::array<float, 16> book{};
    for (std::size_t i = 0; i < 16; ++i) book[i] = t[(2 * i + 1) * t.size() / 32];
    for (int pass = 0; pass < 30; ++pass) {
        std::array<double, 16> sum{}, count{};
        for (const float x : t) {
            const auto nearest = std::min_element(book.begin(), book.end(), [&](float a, float b) { return std::abs(x - a) < std::abs(x - b); });
            const auto i = static_cast<std::size_t>(nearest - book.begin());
            sum[i] += static_cast<double>(x);
            count[i] += 1.0;
        }
        for (std::size_t i = 0; i < 16; ++i)
            if (count[i] > 0.0) book[i] = static_cast<float>(sum[i] / count[i]);
    }
    return book;
}

int main() {
    // Weights with heavy tails: a table made for normal weights is not the best for them.
    const Eigen::MatrixXf W = Eigen::MatrixXf::Random(128, 512).array().cube();
    const Eigen::MatrixXf X = Eigen::MatrixXf::Random(512, 4);

    const nibble::format_handle book = nibble::make_codebook("learned", learn(W, 64));
    const nibble::absmax rule;
    const nibble::qmatrix mine = nibble::quantize(W, nibble::make_plan(book, rule, nibble::per_group{64}));
    const nibble::qmatrix nf4 = nibble::quantize<nibble::nf4>(W, rule, nibble::per_group{64});

    const double learned_db = nibble::sqnr_db(W, nibble::dequantize(mine));
    const double nf4_db = nibble::sqnr_db(W, nibble::dequantize(nf4));
    std::cout << "nf4     " << nf4_db << " dB, outputs " << nibble::sqnr_db(W * X, nf4 * X) << " dB\n"
              << "learned " << learned_db << " dB, outputs " << nibble::sqnr_db(W * X, mine * X) << " dB\n";
    return learned_db > nf4_db ? 0 : 1;
}
