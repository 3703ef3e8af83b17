// W^T Y: one chain of fma over n for every output, whatever the format, the level, the number of columns and the threads.
#include <nibble/nibble.hpp>

#include <cmath>
#include <cstring>
#include <vector>

#include "support/catch.hpp"
#include "support/count_allocations.hpp"
#include "support/for_each_isa.hpp"
#include "support/mistake.hpp"
#include "support/reference.hpp"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using reference::tally;

MatrixXf numbers(Index rows, Index cols, std::uint32_t seed) {
    MatrixXf m(rows, cols);
    std::uint32_t state = seed * 2654435761u + 1;
    for (Index j = 0; j < cols; ++j)
        for (Index i = 0; i < rows; ++i) {
            state = state * 1664525u + 1013904223u;
            m(i, j) = static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-31f;
        }
    return m;
}

/// The definition: std::fma is rounded once, on every machine.
MatrixXf by_definition(const nibble::qmatrix& w, const MatrixXf& y) {
    const MatrixXf weights = nibble::dequantize(w);
    MatrixXf z = MatrixXf::Zero(w.cols(), y.cols());
    for (Index j = 0; j < y.cols(); ++j)
        for (Index k = 0; k < w.cols(); ++k)
            for (Index n = 0; n < w.rows(); ++n) z(k, j) = std::fma(weights(n, k), y(n, j), z(k, j));
    return z;
}

bool same(const MatrixXf& a, const MatrixXf& b) {
    return a.rows() == b.rows() && a.cols() == b.cols() &&
           (a.size() == 0 || std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * 4) == 0);
}

}  // namespace

TEST_CASE("W^T Y is a chain of fma over the rows, for every recipe and level", "[gemm][transposed]") {
    tally t;
    std::uint32_t seed = 1;
    for (const nibble::recipe& r : nibble::recipes()) {
        const nibble::qmatrix w = nibble::quantize(numbers(35, 300, ++seed), r.name);
        const MatrixXf y = numbers(35, 5, ++seed);
        const MatrixXf wanted = by_definition(w, y);
        for_each_isa([&](nibble::isa level) {
            t.check(same(w.transpose() * y, wanted), [&] { return std::string(r.name) + " at " + nibble::name_of(level); });
        });
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
}

TEST_CASE("W^T Y for ragged shapes, groups and numbers of columns", "[gemm][transposed]") {
    tally t;
    std::uint32_t seed = 100;
    for (const Index n : {0, 1, 15, 16, 33})
        for (const Index k : {0, 1, 15, 16, 17, 40, 257, 300})
            for (const Index group : {Index{0}, Index{6}, Index{16}, Index{20}, Index{64}}) {
                if (group > k) continue;
                const nibble::qmatrix w = nibble::quantize<nibble::int3>(numbers(n, k, ++seed), nibble::zero_point{}, nibble::granularity{1, group});
                for (const Index m : {0, 1, 2, 7, 17}) {
                    const MatrixXf y = numbers(n, m, ++seed);
                    const MatrixXf wanted = by_definition(w, y);
                    for_each_isa([&](nibble::isa level) {
                        t.check(same(w.transpose() * y, wanted), [&] {
                            return std::to_string(n) + "x" + std::to_string(k) + " in groups of " + std::to_string(group) + ", " +
                                   std::to_string(m) + " columns at " + nibble::name_of(level);
                        });
                    });
                }
            }
    INFO(t.report());
    CHECK(t.failures() == 0);
}

TEST_CASE("W^T Y takes a bias, an activation, a workspace and threads", "[gemm][transposed]") {
    const nibble::qmatrix w = nibble::quantize(numbers(40, 700, 7), "int4_g32");
    const MatrixXf y = numbers(40, 3, 8);
    const Eigen::VectorXf bias = numbers(700, 1, 9);
    const MatrixXf plain = w.transpose() * y;
    MatrixXf wanted(700, 3);
    for (Index j = 0; j < 3; ++j)
        for (Index k = 0; k < 700; ++k) wanted(k, j) = (std::max)(plain(k, j) + bias(k), 0.0f);
    nibble::workspace scratch;
    auto threads = nibble::make_executor(3, [](nibble::index tasks, nibble::task_body body) {
        for (nibble::index i = tasks; i-- > 0;) body(i);
    });
    MatrixXf z(700, 3);
    const nibble::gemm_options options{.bias = bias, .activation = nibble::activation::relu, .workspace = &scratch, .executor = &threads};
    nibble::gemm(w.transpose(), y, z, options);
    CHECK(same(z, wanted));
    z.setZero();
    const nibble::transposed_qmatrix t = w.transpose();
    CHECK(allocations::of([&] {
              nibble::gemm(t, nibble::column_major(y.data(), 40, 3), nibble::column_major(z.data(), 700, 3), options);
          }) == 0);
    CHECK(same(z, wanted));
}

TEST_CASE("W^T Y says what is wrong", "[gemm][transposed]") {
    const nibble::qmatrix w = nibble::quantize(numbers(4, 6, 1), "int8_per_channel");
    MatrixXf y = numbers(4, 2, 2);
    MatrixXf z(6, 2);
    const auto says = [](const mistake& m, nibble::errc code, const char* part) {
        CAPTURE(m.message);
        CHECK(m.code == code);
        CHECK(contains(m.message, part));
    };
    says(of([&] { nibble::gemm(w.transpose(), numbers(6, 2, 3), z); }), nibble::errc::shape_mismatch, "W is 4x6, Y is 6x2");
    says(of([&] { nibble::gemm(w.transpose(), y, y); }), nibble::errc::shape_mismatch, "Z must be 6x2, but it is 4x2");
    says(of([&] { nibble::gemm(w.transpose(), y, z, {.compute = nibble::compute::a8}); }), nibble::errc::unsupported, "a8 does not exist");
    const Eigen::VectorXf bias = Eigen::VectorXf::Zero(4);
    says(of([&] { nibble::gemm(w.transpose(), y, z, {.bias = bias}); }), nibble::errc::shape_mismatch, "bias has 4 elements, not 6");
    const nibble::qmatrix square = nibble::quantize(numbers(4, 4, 1), "int8_per_channel");
    says(of([&] { nibble::gemm(square.transpose(), y, y); }), nibble::errc::overlap, "shares memory");
}
