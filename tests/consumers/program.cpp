// A user's first program. Its warnings are errors.
#include <nibble/nibble.hpp>

int main() {
    const Eigen::MatrixXf w = Eigen::MatrixXf::Random(32, 64);
    const Eigen::MatrixXf x = Eigen::MatrixXf::Random(64, 2);
    const auto wq = nibble::quantize<nibble::int8>(w);
    const Eigen::MatrixXf y = wq * x;
    const Eigen::MatrixXf exact = w * x;
    return (y - exact).norm() < 0.05f * exact.norm() ? 0 : 1;
}
