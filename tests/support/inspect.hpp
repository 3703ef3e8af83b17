// What tests look at in a quantized matrix: every code, every decoded weight, its scales.
#pragma once

#include <nibble/detail/fp_environment.hpp>
#include <nibble/qmatrix.hpp>

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

namespace inspect {

/// All weights, row by row. The floating-point environment of a host program (-ffast-math flushes subnormals) is set
/// aside: the accessors of a matrix are plain arithmetic.
[[nodiscard]] inline std::vector<float> decoded(const nibble::qmatrix& m) {
    const nibble::detail::fp_environment environment;
    std::vector<float> w;
    for (nibble::index n = 0; n < m.rows(); ++n)
        for (nibble::index k = 0; k < m.cols(); ++k) w.push_back(m(n, k));
    return w;
}

[[nodiscard]] inline std::vector<unsigned> codes(const nibble::qmatrix& m) {
    std::vector<unsigned> c;
    for (nibble::index n = 0; n < m.rows(); ++n)
        for (nibble::index k = 0; k < m.cols(); ++k) c.push_back(m.code(n, k));
    return c;
}

[[nodiscard]] inline std::vector<float> scales(const nibble::qmatrix& m) {
    const nibble::detail::fp_environment environment;
    std::vector<float> s;
    for (nibble::index n = 0; n < m.rows(); ++n)
        for (nibble::index g = 0; g < m.groups(); ++g) s.push_back(m.scale(n, g));
    return s;
}

[[nodiscard]] inline std::vector<float> offsets(const nibble::qmatrix& m) {
    const nibble::detail::fp_environment environment;
    std::vector<float> o;
    for (nibble::index n = 0; n < m.rows(); ++n)
        for (nibble::index g = 0; g < m.groups(); ++g) o.push_back(m.offset(n, g));
    return o;
}

/// Two matrices hold the same numbers: shape, format, codes, stored scales.
[[nodiscard]] inline bool same(const nibble::qmatrix& a, const nibble::qmatrix& b) {
    if (a.rows() != b.rows() || a.cols() != b.cols() || &a.format() != &b.format() || !(a.scheme() == b.scheme()) ||
        a.offset_type() != b.offset_type() || a.memory_bytes() != b.memory_bytes() ||
        a.tensor_scale() != b.tensor_scale() || a.exponent() != b.exponent())
        return false;
    for (std::size_t i = 0; i < a.memory_bytes(); ++i)
        if (a.data()[i] != b.data()[i]) return false;
    return true;
}

/// Root mean square of the difference, in double.
[[nodiscard]] inline double rmse(const std::vector<float>& a, const std::vector<float>& b) {
    double sum = 0.0;
    for (std::size_t i = 0; i < a.size(); ++i) {
        const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
        sum += d * d;
    }
    return std::sqrt(sum / static_cast<double>(a.size()));
}

/// Where two sequences first differ, as text; empty when they are equal.
template <class A, class B>
[[nodiscard]] std::string difference(const std::vector<A>& a, const std::vector<B>& b) {
    if (a.size() != b.size()) return std::to_string(a.size()) + " and " + std::to_string(b.size()) + " elements";
    std::size_t count = 0;
    std::string text;
    for (std::size_t i = 0; i < a.size(); ++i) {
        if (a[i] == static_cast<A>(b[i])) continue;
        if (++count <= 4)
            text += " [" + std::to_string(i) + "] " + std::to_string(a[i]) + " != " + std::to_string(b[i]);
    }
    return count == 0 ? std::string() : std::to_string(count) + " of " + std::to_string(a.size()) + " differ:" + text;
}

}  // namespace inspect
