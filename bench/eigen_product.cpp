#include <Eigen/Core>

#include "eigen_products.hpp"

namespace bench {

void eigen_product(const product_arguments& p) {
    const Eigen::Map<const Eigen::MatrixXf> w(p.w, p.n, p.k);
    const Eigen::Map<const Eigen::MatrixXf> x(p.x, p.k, p.m);
    Eigen::Map<Eigen::MatrixXf> y(p.y, p.n, p.m);
    if (p.m == 1)
        y.col(0).noalias() = w * x.col(0);  // a matrix-vector product, as Wq * X.col(j) would be written
    else
        y.noalias() = w * x;
}

std::string eigen_instruction_sets() { return Eigen::SimdInstructionSetsInUse(); }

}  // namespace bench
