// Compiled with -mavx2 -mfma (see CMakeLists.txt). Eigen gets another name here: of two copies of one function,
// compiled for different instruction sets, the linker keeps one, and a CPU without AVX2 could meet the wrong one.
#define Eigen eigen_for_avx2
#include <Eigen/Core>
#undef Eigen

#include "eigen_products.hpp"

namespace bench {

#if defined(__AVX2__) && defined(__FMA__)
namespace {

void product(const product_arguments& p) {
    using matrix = eigen_for_avx2::MatrixXf;
    const eigen_for_avx2::Map<const matrix> w(p.w, p.n, p.k);
    const eigen_for_avx2::Map<const matrix> x(p.x, p.k, p.m);
    eigen_for_avx2::Map<matrix> y(p.y, p.n, p.m);
    if (p.m == 1)
        y.col(0).noalias() = w * x.col(0);
    else
        y.noalias() = w * x;
}

}  // namespace

product_function eigen_product_avx2() noexcept { return &product; }
#else
product_function eigen_product_avx2() noexcept { return nullptr; }
#endif

}  // namespace bench
