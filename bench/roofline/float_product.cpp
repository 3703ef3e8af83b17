#include "float_product.hpp"

#include <chrono>

namespace bench::roofline {

float_product::float_product(const float_shape& shape, thread_pool& pool)
    : shape_(shape), pool_(pool), parts_(static_cast<std::size_t>(pool.size())) {
    const auto n = static_cast<std::size_t>(shape.n);
    const auto k = static_cast<std::size_t>(shape.k);
    for (std::size_t t = 0; t < parts_.size(); ++t) {
        part& p = parts_[t];
        const std::size_t first = n * t / parts_.size();
        const std::size_t rows = n * (t + 1) / parts_.size() - first;
        p.first = static_cast<std::ptrdiff_t>(first);
        p.rows = static_cast<std::ptrdiff_t>(rows);
        std::vector<float> w(rows * k);
        for (std::size_t i = 0; i < rows; ++i)
            for (std::size_t l = 0; l < k; ++l) w[l * rows + i] = number_at(weight_seed, (first + i) * k + l);
        p.w.assign(static_cast<std::size_t>(shape.copies), w);
        p.y.resize(rows * static_cast<std::size_t>(shape.m));
    }
    x_.resize(k * static_cast<std::size_t>(shape.m));
    for (std::size_t i = 0; i < x_.size(); ++i) x_[i] = number_at(activation_seed, i);
}

void float_product::multiply(std::ptrdiff_t m) {
    const std::size_t copy = next_++ % static_cast<std::size_t>(shape_.copies);
    pool_.on_each([&](int thread) {
        part& p = parts_[static_cast<std::size_t>(thread)];
        if (p.rows != 0) eigen_product({p.w[copy].data(), x_.data(), p.y.data(), p.rows, shape_.k, m});
    });
}

double float_product::run(std::ptrdiff_t m, int times, bool warm) {
    if (warm) multiply(m);
    const auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < times; ++i) multiply(m);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

float float_product::y(std::ptrdiff_t i, std::ptrdiff_t j) const {
    for (const part& p : parts_)
        if (i < p.first + p.rows) return p.y[static_cast<std::size_t>(j * p.rows + i - p.first)];
    return 0.0f;
}

}  // namespace bench::roofline
