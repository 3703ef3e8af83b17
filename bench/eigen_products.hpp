// The baseline: Eigen's own fp32 product. No Eigen here: eigen_product_avx2.cpp has one of its own.
#pragma once

#include <cstddef>
#include <string>

namespace bench {

/// Y = W X in place; all column-major floats: w is n x k, x is k x m, y is n x m.
struct product_arguments {
    const float* w;
    const float* x;
    float* y;
    std::ptrdiff_t n, k, m;
};
using product_function = void (*)(const product_arguments&);

/// Eigen as this program is compiled: with the compiler's default instruction set unless the user's flags say more.
void eigen_product(const product_arguments& p);
/// What that is: "SSE, SSE2".
[[nodiscard]] std::string eigen_instruction_sets();

/// Eigen compiled for AVX2 and FMA, the fairer comparison on CPUs that have them; null where it was not compiled so.
[[nodiscard]] product_function eigen_product_avx2() noexcept;

}  // namespace bench
