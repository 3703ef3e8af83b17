// Products of float weights by Eigen, on one or more threads, with weights that are the same in every process. Compiled
// twice: into the benchmark program, and with -march=native into a program of its own (see native_eigen.hpp).
//
// No Eigen here: the two programs have different ones.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../eigen_products.hpp"
#include "thread_pool.hpp"

namespace bench::roofline {

/// Element i of an endless list of numbers between -1 and 1, another list for each seed: SplitMix64 (Steele, Lea and
/// Flood 2014).
[[nodiscard]] inline float number_at(std::uint64_t seed, std::uint64_t i) noexcept {
    std::uint64_t z = (seed << 40) + (i + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    z ^= z >> 31;
    return static_cast<float>(static_cast<std::int32_t>(z >> 40) - (1 << 23)) * (1.0f / (1 << 23));
}

inline constexpr std::uint64_t weight_seed = 1;
inline constexpr std::uint64_t activation_seed = 2;

/// W (n x k) and X (k x m): W(i, l) = number_at(weight_seed, i k + l), X(l, j) = number_at(activation_seed, j k + l).
struct float_shape {
    std::ptrdiff_t n = 0;
    std::ptrdiff_t k = 0;
    std::ptrdiff_t m = 0;  ///< the most columns of a product
    int copies = 1;        ///< of W, used in turn
};

class float_product {
public:
    /// Every thread of the pool has rows of its own, as a column-major matrix. The pool must outlive this object.
    float_product(const float_shape& shape, thread_pool& pool);

    /// Y = W X of the first m columns, `times` times; returns the seconds. warm: once more before, not timed.
    double run(std::ptrdiff_t m, int times, bool warm);
    /// Y(i, j) of the last product.
    [[nodiscard]] float y(std::ptrdiff_t i, std::ptrdiff_t j) const;

private:
    struct part {
        std::ptrdiff_t first = 0;
        std::ptrdiff_t rows = 0;
        std::vector<std::vector<float>> w;  // one for each copy
        std::vector<float> y;
    };
    void multiply(std::ptrdiff_t m);

    float_shape shape_;
    thread_pool& pool_;
    std::vector<part> parts_;
    std::vector<float> x_;
    std::size_t next_ = 0;
};

}  // namespace bench::roofline
