#include "check.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <nibble/dequantize.hpp>

namespace bench {
namespace {

constexpr double unit_roundoff = 5.9604644775390625e-08;  // 2^-24
constexpr Eigen::Index longest_sub_block = 256;

// The step count L of a compute class; 0 when activations are not rounded.
double activation_steps(nibble::compute c) {
    switch (c) {
        case nibble::compute::strict_f32: return 0.0;
        case nibble::compute::f32: return 8355711.0;
        case nibble::compute::a16: return 32639.0;
        case nibble::compute::a8: return 127.0;
    }
    return 0.0;
}

// The noise^2 of the comment in check.hpp.
double rounding_noise(const row_matrix& w, Eigen::Index group_size, const Eigen::MatrixXf& x, double steps) {
    const Eigen::VectorXd squares = w.cast<double>().colwise().squaredNorm().transpose();
    double noise = 0.0;
    for (Eigen::Index group = 0; group < w.cols(); group += group_size) {
        const Eigen::Index group_end = (std::min)(group + group_size, w.cols());
        for (Eigen::Index first = group; first < group_end; first += longest_sub_block) {
            const Eigen::Index length = (std::min)(longest_sub_block, group_end - first);
            const double weights = squares.segment(first, length).sum();
            for (Eigen::Index j = 0; j < x.cols(); ++j) {
                const double step = static_cast<double>(x.col(j).segment(first, length).cwiseAbs().maxCoeff()) / steps;
                noise += step * step / 12.0 * weights;
            }
        }
    }
    return noise;
}

}  // namespace

Eigen::MatrixXd reference_product(const row_matrix& w, const Eigen::MatrixXf& x) {
    // Tokens side by side, so that the compiler can add many columns at once; each output is still one chain along k.
    const Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> tokens = x.cast<double>();
    Eigen::MatrixXd y(w.rows(), x.cols());
    std::vector<double> sums(static_cast<std::size_t>(x.cols()));
    for (Eigen::Index n = 0; n < w.rows(); ++n) {
        std::fill(sums.begin(), sums.end(), 0.0);
        for (Eigen::Index k = 0; k < w.cols(); ++k) {
            const double weight = static_cast<double>(w(n, k));
            const double* token = tokens.data() + k * tokens.cols();
            for (std::size_t j = 0; j < sums.size(); ++j) sums[j] += weight * token[j];
        }
        for (Eigen::Index j = 0; j < x.cols(); ++j) y(n, j) = sums[static_cast<std::size_t>(j)];
    }
    return y;
}

row_matrix decode_rows(const nibble::qmatrix& w, const std::vector<Eigen::Index>& rows) {
    row_matrix decoded(static_cast<Eigen::Index>(rows.size()), w.cols());
    for (std::size_t i = 0; i < rows.size(); ++i)
        nibble::dequantize_row(w, rows[i], decoded.data() + static_cast<Eigen::Index>(i) * decoded.cols());
    return decoded;
}

std::vector<Eigen::Index> spread_rows(Eigen::Index total, Eigen::Index count) {
    std::vector<Eigen::Index> rows(static_cast<std::size_t>((std::min)(total, count)));
    if (total <= count) {
        std::iota(rows.begin(), rows.end(), Eigen::Index{0});
    } else {
        for (Eigen::Index i = 0; i < count; ++i)
            rows[static_cast<std::size_t>(i)] = count == 1 ? 0 : i * (total - 1) / (count - 1);
    }
    return rows;
}

verdict check_product(const row_matrix& decoded, Eigen::Index group_size, const Eigen::MatrixXf& x,
                      const Eigen::MatrixXf& y, nibble::compute c) {
    return check_product(decoded, group_size, x, y, c, reference_product(decoded, x));
}

verdict check_product(const row_matrix& decoded, Eigen::Index group_size, const Eigen::MatrixXf& x,
                      const Eigen::MatrixXf& y, nibble::compute c, const Eigen::MatrixXd& reference) {
    const double norm = reference.norm();
    const double difference = (y.cast<double>() - reference).norm();
    const double steps = activation_steps(c);
    const double noise = steps == 0.0 ? 0.0 : rounding_noise(decoded, group_size, x, steps);
    const double chain = 4.0 * unit_roundoff * std::sqrt(static_cast<double>(decoded.cols())) * norm;
    const double allowed = std::sqrt(chain * chain + 16.0 * noise);
    if (norm == 0.0) return {difference, allowed};
    return {difference / norm, allowed / norm};
}

}  // namespace bench
