// A quantizer of your own: any value object that proposes a scale for a group of weights. This one clips at the
// three-sigma point when a group has outliers, which costs the outlier and helps everybody else.
#include <algorithm>
#include <cmath>
#include <iostream>

#include <Eigen/Core>
#include <nibble/nibble.hpp>

struct three_sigma {
    nibble::group_scale operator()(const nibble::group_view& g) const {
        float largest = 0.0f;
        double squares = 0.0;
        for (const float x : g.x) {
            largest = std::max(largest, std::abs(x));
            squares += static_cast<double>(x) * static_cast<double>(x);
        }
        const auto sigma = static_cast<float>(std::sqrt(squares / static_cast<double>(std::max<std::size_t>(1, g.x.size()))));
        return {std::min(largest, 3.0f * sigma) / g.format.max_value, 0.0f};
    }
};

int main() {
    Eigen::MatrixXf W = Eigen::MatrixXf::Random(64, 512);
    W(5, 100) = 9.0f;
    W(40, 300) = -7.0f;

    const auto report = [&](const char* name, const nibble::qmatrix& q) {
        const nibble::error_metrics e = nibble::compare(W, nibble::dequantize(q));
        std::cout << name << ": mean error " << e.mean_error << ", largest " << e.max_error << '\n';
        return e.mean_error;
    };
    const nibble::per_group group{128};
    const double plain = report("absmax      ", nibble::quantize<nibble::int4>(W, nibble::absmax{}, group));
    const double mine = report("three_sigma ", nibble::quantize<nibble::int4>(W, three_sigma{}, group));
    report("mse search  ", nibble::quantize<nibble::int4>(W, nibble::mse{}, group));
    return mine < plain ? 0 : 1;
}
