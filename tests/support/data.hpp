// Test data: seeded, of many shapes of distribution. NIBBLE_TEST_SEED=n in the environment draws other numbers;
// tests CAPTURE(data::seed()) so that a failure names it.
#pragma once

#include <nibble/formats/list.hpp>
#include <nibble/qmatrix.hpp>

#include <Eigen/Core>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <limits>
#include <string>
#include <vector>

namespace data {

[[nodiscard]] inline std::uint64_t seed() {
    static const std::uint64_t value = [] {
        const char* text = std::getenv("NIBBLE_TEST_SEED");
        return text != nullptr ? std::strtoull(text, nullptr, 10) : std::uint64_t{1};
    }();
    return value;
}

/// splitmix64 (Steele, Lea and Flood 2014).
class random {
public:
    explicit random(std::uint64_t stream) : state_(seed() * 0x9e3779b97f4a7c15u + stream * 0xd1342543de82ef95u) {}

    std::uint64_t operator()() {
        state_ += 0x9e3779b97f4a7c15u;
        std::uint64_t z = state_;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        return z ^ (z >> 31);
    }
    /// 0 .. count - 1
    std::uint64_t below(std::uint64_t count) { return (*this)() % count; }
    /// In (0, 1).
    double unit() { return (static_cast<double>((*this)() >> 11) + 0.5) * 0x1p-53; }
    double normal() { return std::sqrt(-2.0 * std::log(unit())) * std::cos(6.283185307179586 * unit()); }

private:
    std::uint64_t state_;
};

enum class distribution { normal, uniform, laplace, student_t4, log_normal, cauchy, layer };

inline constexpr std::array<distribution, 7> distributions = {
    distribution::normal,     distribution::uniform, distribution::laplace, distribution::student_t4,
    distribution::log_normal, distribution::cauchy,  distribution::layer};

[[nodiscard]] inline const char* name_of(distribution d) {
    constexpr std::array<const char*, 7> names = {"normal",     "uniform", "laplace", "student_t4",
                                                  "log_normal", "cauchy",  "layer"};
    return names[static_cast<std::size_t>(d)];
}

[[nodiscard]] inline double draw(distribution d, random& r) {
    switch (d) {
        case distribution::uniform: return 2.0 * r.unit() - 1.0;
        case distribution::laplace: return std::log(r.unit() / r.unit());
        case distribution::student_t4: {
            double squares = 0.0;
            for (int i = 0; i < 4; ++i) {
                const double x = r.normal();
                squares += x * x;
            }
            return r.normal() / std::sqrt(squares / 4.0);
        }
        case distribution::log_normal: return std::exp(r.normal()) * ((r() & 1) != 0 ? 1.0 : -1.0);
        case distribution::cauchy: return std::tan(3.14159 * (r.unit() - 0.5));
        default: return r.normal();
    }
}

/// A column-major matrix. `layer` is normal with one row in a thousand (at least one) times 30: the outlier features of
/// a transformer's activations.
[[nodiscard]] inline Eigen::MatrixXf matrix(nibble::index rows, nibble::index cols, std::uint64_t stream,
                                            distribution d = distribution::normal) {
    random r(stream);
    Eigen::MatrixXf m(rows, cols);
    for (nibble::index c = 0; c < cols; ++c)
        for (nibble::index i = 0; i < rows; ++i) m(i, c) = static_cast<float>(draw(d, r));
    if (d == distribution::layer && rows > 0) {
        for (nibble::index i = 0; i < rows / 1000 + 1; ++i)
            m.row(static_cast<nibble::index>(r.below(static_cast<std::uint64_t>(rows)))) *= 30.0f;
    }
    return m;
}

/// Structured matrices in which quantizers and products have gone wrong before.
[[nodiscard]] inline std::vector<std::pair<std::string, Eigen::MatrixXf>> structured(nibble::index rows,
                                                                                     nibble::index cols) {
    using Eigen::MatrixXf;
    std::vector<std::pair<std::string, MatrixXf>> all;
    all.emplace_back("zero", MatrixXf::Zero(rows, cols));
    all.emplace_back("constant", MatrixXf::Constant(rows, cols, 0.75f));
    all.emplace_back("minus constant", MatrixXf::Constant(rows, cols, -3.0f));
    MatrixXf m = MatrixXf::Zero(rows, cols);
    m(rows - 1, cols - 1) = 1.0f;
    all.emplace_back("one weight", m);
    for (nibble::index i = 0; i < rows; ++i)
        for (nibble::index k = 0; k < cols; ++k) m(i, k) = (i + k) % 2 == 0 ? 2.0f : -2.0f;
    all.emplace_back("alternating", m);
    for (nibble::index i = 0; i < rows; ++i)
        for (nibble::index k = 0; k < cols; ++k) m(i, k) = static_cast<float>(k - cols / 2) / 16.0f;
    all.emplace_back("ramp", m);
    m = matrix(rows, cols, 77);
    m.row(rows / 2).setZero();
    m.leftCols(cols / 2).row(0).setZero();
    all.emplace_back("zero row", m);
    all.emplace_back("positive", matrix(rows, cols, 78).array().abs().matrix());
    return all;
}

/// A matrix of random codes, also those that no quantizer produces, and random scales: positive, negative, and zero.
/// NaN and Inf codes of a format are left out.
[[nodiscard]] inline nibble::qmatrix random_codes(nibble::index rows, nibble::index cols,
                                                  const nibble::code_format& format, const nibble::scale_scheme& scheme,
                                                  nibble::offset_kind offset, nibble::granularity group,
                                                  std::uint64_t stream) {
    using namespace nibble;
    using nibble::index;
    random r(stream);
    qmatrix_builder b(rows, cols, format, scheme, offset, group, "random codes");
    const auto real = [&] {  // 2^-6 .. 2^1, either sign; one in 16 is zero
        if (r.below(16) == 0) return 0.0f;
        const double x = (1.0 + r.unit()) * std::ldexp(1.0, static_cast<int>(r.below(7)) - 6);
        return static_cast<float>((r() & 1) != 0 ? x : -x);
    };
    const index groups = b.layout().groups;
    const index tall = group.rows == 0 ? std::max<index>(1, rows) : group.rows;
    for (index top = 0; top < rows; top += tall) {
        for (index g = 0; g < groups; ++g) {
            std::uint32_t scale = 0;
            std::uint32_t zero = static_cast<std::uint32_t>(r.below(format.code_count()));
            switch (scheme.storage) {
                case scale_storage::f32:
                case scale_storage::f16:
                case scale_storage::bf16:
                    scale = nibble::detail::encode_stored(scheme.storage, real());
                    if (offset != offset_kind::zero_point)
                        zero = nibble::detail::encode_stored(scheme.storage, 8.0f * real());
                    break;
                case scale_storage::e8m0: scale = static_cast<std::uint32_t>(118 + r.below(10)); break;
                case scale_storage::e4m3:
                case scale_storage::e4m3_f32: scale = static_cast<std::uint32_t>(r.below(0x7f)); break;
                default:
                    scale = static_cast<std::uint32_t>(r.below(std::uint64_t{1} << scheme.bits));
                    if (offset != offset_kind::zero_point)
                        zero = static_cast<std::uint32_t>(r.below(std::uint64_t{1} << scheme.bits));
            }
            for (index n = top; n < std::min(rows, top + tall); ++n) {
                b.set_scale(n, g, scale);
                if (offset != offset_kind::none) b.set_offset(n, g, zero);
            }
        }
    }
    for (index n = 0; n < rows; ++n)
        for (index s = 0; s < b.layout().supers && scheme.storage == scale_storage::two_level; ++s) {
            b.set_super(n, s, float_to_fp16(real() / 16.0f));
            if (offset == offset_kind::minimum) b.set_super(n, s, float_to_fp16(real() / 4.0f), true);
        }
    if (scheme.storage == scale_storage::double_quantized) {
        for (index s = 0; s < b.layout().supers; ++s) b.set_nested_absmax(s, std::fabs(real()));
        b.set_tensor_scale(0.3f);
    }
    if (scheme.storage == scale_storage::e4m3_f32) b.set_tensor_scale(0.0123f);
    for (index n = 0; n < rows; ++n) {
        for (index k = 0; k < cols; ++k) {
            unsigned code = 0;
            do {
                if (format.bits == 16)  // 2^-7 .. 2^1 or zero, either sign
                    code = format.encode(format, real());
                else
                    code = static_cast<unsigned>(r.below(format.code_count()));
            } while (!nibble::detail::is_finite_bits(std::bit_cast<std::uint32_t>(format.value(code))));
            b.set_code(n, k, code);
        }
    }
    return std::move(b).finish();
}

/// The sizes that tails and tiles go wrong at. 17 of them, a prime: see covering_shapes.
inline constexpr std::array<nibble::index, 17> sizes = {0,  1,  2,  3,  7,   15,  16,  17, 31,
                                                        33, 63, 64, 65, 127, 129, 257, 300};

struct shape {
    nibble::index n, k, m;
};

/// 289 shapes in which every pair (N, K), (N, M) and (K, M) of `sizes` occurs.
[[nodiscard]] inline std::vector<shape> covering_shapes() {
    std::vector<shape> all;
    for (std::size_t i = 0; i < sizes.size(); ++i)
        for (std::size_t j = 0; j < sizes.size(); ++j)
            all.push_back({sizes[i], sizes[j], sizes[(i + 3 * j) % sizes.size()]});
    return all;
}

/// The bytes of a matrix of floats, to compare bit for bit and to prove that an output was not touched.
template <class Derived>
[[nodiscard]] std::vector<std::uint32_t> bits(const Eigen::DenseBase<Derived>& m) {
    std::vector<std::uint32_t> all;
    all.reserve(static_cast<std::size_t>(m.size()));
    for (nibble::index c = 0; c < m.cols(); ++c)
        for (nibble::index r = 0; r < m.rows(); ++r) {
            const float x = m.derived().coeff(r, c);
            all.push_back(std::bit_cast<std::uint32_t>(x));
        }
    return all;
}

/// How many elements of two matrices of one shape differ in their bits; -1 when the shapes differ.
template <class A, class B>
[[nodiscard]] nibble::index bits_differing(const Eigen::DenseBase<A>& a, const Eigen::DenseBase<B>& b) {
    if (a.rows() != b.rows() || a.cols() != b.cols()) return -1;
    const std::vector<std::uint32_t> x = bits(a);
    const std::vector<std::uint32_t> y = bits(b);
    nibble::index count = 0;
    for (std::size_t i = 0; i < x.size(); ++i) count += x[i] != y[i] ? 1 : 0;
    return count;
}

}  // namespace data
