// The oracle of integer products: plain loops in int64 over the codes of both, read through their accessors.
#pragma once

#include <nibble/executor.hpp>
#include <nibble/qmatrix.hpp>
#include <nibble/quantized_activations.hpp>

#include <Eigen/Core>

#include <cmath>
#include <cstdint>
#include <vector>

#include "support/data.hpp"

namespace integer_reference {

using nibble::index;
using Eigen::MatrixXi;
using int8_matrix = Eigen::Matrix<std::int8_t, Eigen::Dynamic, Eigen::Dynamic>;
using uint8_matrix = Eigen::Matrix<std::uint8_t, Eigen::Dynamic, Eigen::Dynamic>;
using int64_matrix = Eigen::Matrix<std::int64_t, Eigen::Dynamic, Eigen::Dynamic>;

/// The integer of a weight's code.
[[nodiscard]] inline std::int64_t integer_of(const nibble::qmatrix& w, index n, index k) {
    const unsigned u = w.code(n, k);
    if (w.offset_type() == nibble::offset_kind::zero_point)
        return static_cast<std::int64_t>(u) - std::llround(static_cast<double>(w.offset(n, k / w.group_size())));
    if (w.offset_type() != nibble::offset_kind::none) return u;
    return std::llround(static_cast<double>(w.format().value(u)) / static_cast<double>(w.format().unit));
}

[[nodiscard]] inline int64_matrix integers_of(const nibble::qmatrix& w) {
    int64_matrix v(w.rows(), w.cols());
    for (index n = 0; n < w.rows(); ++n)
        for (index k = 0; k < w.cols(); ++k) v(n, k) = integer_of(w, n, k);
    return v;
}

/// a - z.
[[nodiscard]] inline int64_matrix integers_of(const nibble::quantized_activations& a) {
    int64_matrix v(a.rows(), a.cols());
    for (index j = 0; j < a.cols(); ++j)
        for (index k = 0; k < a.rows(); ++k) v(k, j) = a.code(k, j) - a.zero(k / a.group_size(), j);
    return v;
}

/// sum over k of (u - z)(a - z).
[[nodiscard]] inline int64_matrix sums(const nibble::qmatrix& w, const nibble::quantized_activations& a) {
    const int64_matrix v = integers_of(w);
    const int64_matrix q = integers_of(a);
    int64_matrix s = int64_matrix::Zero(w.rows(), a.cols());
    for (index j = 0; j < a.cols(); ++j)
        for (index k = 0; k < w.cols(); ++k)
            for (index n = 0; n < w.rows(); ++n) s(n, j) += v(n, k) * q(k, j);
    return s;
}

/// Random codes; one column in four has only the codes at the ends.
template <class T>
[[nodiscard]] Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic> codes(index k, index m, std::uint64_t stream) {
    data::random r(stream);
    Eigen::Matrix<T, Eigen::Dynamic, Eigen::Dynamic> a(k, m);
    for (index j = 0; j < m; ++j)
        for (index i = 0; i < k; ++i) {
            const auto u = static_cast<std::uint8_t>(r.below(256));
            a(i, j) = static_cast<T>(j % 4 == 1 ? (u < 128 ? std::numeric_limits<T>::min() : std::numeric_limits<T>::max()) : static_cast<T>(u));
        }
    return a;
}

/// Runs tasks last to first, and says it has three threads.
class backwards final : public nibble::executor {
public:
    [[nodiscard]] int concurrency() const noexcept override { return 3; }
    int runs = 0;

private:
    void run(index tasks, nibble::task_body body) override {
        ++runs;
        for (index i = tasks; i-- > 0;) body(i);
    }
};

}  // namespace integer_reference
