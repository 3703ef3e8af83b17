// Products against double arithmetic, with the error bound that each compute class promises (support/reference.hpp
// derives it), and proof that the bound means something: it is small, and a single wrong code breaks it.
#include <nibble/nibble.hpp>

#include <algorithm>
#include <array>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/reference.hpp"

using Eigen::MatrixXf;
using nibble::compute;
using nibble::qmatrix;
using reference::tally;
using Index = nibble::index;

namespace {

constexpr std::array<compute, 4> classes = {compute::strict_f32, compute::f32, compute::a16, compute::a8};

/// What a bound may be at most, relative to sum |w| |x|: fp32-class, 16 and 8 bits, on data without outliers.
constexpr std::array<double, 4> largest_bound = {1e-4, 4e-5, 3e-4, 4e-2};

struct worst {
    double bounds = 0.0;    // |error| / bound
    double relative = 0.0;  // |error| / sum |terms|
    double vacuity = 0.0;   // bound / sum |terms|
};

worst measure(const reference::weights& read, const MatrixXf& x, const MatrixXf& y, compute c) {
    worst w;
    for (Index j = 0; j < x.cols(); ++j) {
        const std::vector<float> column = reference::column(x, j);
        const reference::exact_result truth = reference::exact(read, column);
        const bool strict = reference::formula(read, column, c).strict;
        const std::vector<double> bound = reference::error_bound(read, column, c, strict);
        for (Index n = 0; n < read.n; ++n) {
            const auto i = static_cast<std::size_t>(n);
            w.bounds = std::max(w.bounds, reference::bounds_away(y(n, j), truth.y[i], bound[i]));
            if (truth.magnitude[i] == 0.0) continue;
            w.relative =
                std::max(w.relative, std::fabs(static_cast<double>(y(n, j)) - truth.y[i]) / truth.magnitude[i]);
            w.vacuity = std::max(w.vacuity, bound[i] / truth.magnitude[i]);
        }
    }
    return w;
}

}  // namespace

TEST_CASE("every recipe keeps the bound of every class, at every level", "[gemm][bound]") {
    CAPTURE(data::seed());
    tally kept;
    tally small;
    std::array<double, 4> closest{};
    std::size_t count = 0;
    for (const nibble::recipe& r : nibble::recipes()) {
        ++count;
        const qmatrix w = nibble::quantize(data::matrix(33, 520, 3 * count), r.name);
        const MatrixXf x = data::matrix(520, 4, 3 * count + 1);
        const reference::weights read = reference::read(w);
        for_each_isa([&](nibble::isa level) {
            for (std::size_t c = 0; c < classes.size(); ++c) {
                MatrixXf y(w.rows(), x.cols());
                nibble::gemm(w, x, y, {.compute = classes[c]});
                const worst e = measure(read, x, y, classes[c]);
                const auto describe = [&] {
                    return std::string(r.name) + " " + nibble::name_of(classes[c]) + " at " + nibble::name_of(level) +
                           ": " + std::to_string(e.bounds) + " bounds, the bound is " + std::to_string(e.vacuity) +
                           " of sum |w||x|";
                };
                kept.check(e.bounds <= 1.0, describe);
                small.check(e.vacuity <= largest_bound[c], describe);
                closest[c] = std::max(closest[c], e.bounds);
            }
        });
    }
    INFO(kept.report() << small.report());
    CHECK(kept.failures() == 0);
    CHECK(small.failures() == 0);
    CHECK(count == nibble::recipes().size());
    CHECK(kept.cases() == count * 4 * supported_isas().size());
    // The bounds are not far from what happens. (That of a chain of K roundings is the loosest: they cancel.)
    CAPTURE(closest[0], closest[1], closest[2], closest[3]);
    CHECK(closest[0] > 0.002);
    CHECK(closest[1] > 0.02);
    CHECK(closest[2] > 0.1);
    CHECK(closest[3] > 0.1);
}

TEST_CASE("every distribution keeps the bound", "[gemm][bound]") {
    CAPTURE(data::seed());
    tally t;
    for (const char* name :
         {"int8_per_channel", "int4_zero_g128", "q4_k", "int4_hqq_g64", "nf4", "fp8_per_channel", "mxfp4", "bf16"}) {
        for (const data::distribution d : data::distributions) {
            for (const data::distribution of_x : data::distributions) {
                const qmatrix w = nibble::quantize(data::matrix(18, 300, 500 + static_cast<std::uint64_t>(d), d), name);
                const MatrixXf x = data::matrix(300, 2, 600 + static_cast<std::uint64_t>(of_x), of_x);
                const reference::weights read = reference::read(w);
                for (const compute c : classes) {
                    MatrixXf y(w.rows(), x.cols());
                    nibble::gemm(w, x, y, {.compute = c});
                    const worst e = measure(read, x, y, c);
                    t.check(e.bounds <= 1.0, [&] {
                        return std::string(name) + " " + data::name_of(d) + " times " + data::name_of(of_x) + ": " +
                               std::to_string(e.bounds) + " bounds";
                    });
                }
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 8 * 7 * 7 * 4);
}

TEST_CASE("structured weights and activations keep the bound", "[gemm][bound]") {
    tally t;
    const auto weights = data::structured(19, 257);
    const auto columns = data::structured(257, 3);
    for (const char* name :
         {"int8_per_channel", "int4_g64", "int4_min_g64", "q6_k", "nf4", "mxfp8", "ternary_twn", "binary_g128"})
        for (const auto& w : weights) {
            const qmatrix wq = nibble::quantize(w.second, name);
            const reference::weights read = reference::read(wq);
            for (const auto& column : columns)
                for (const compute c : classes) {
                    const MatrixXf& x = column.second;
                    MatrixXf y(wq.rows(), x.cols());
                    nibble::gemm(wq, x, y, {.compute = c});
                    const worst e = measure(read, x, y, c);
                    t.check(e.bounds <= 1.0, [&] {
                        return std::string(name) + " " + w.first + " times " + column.first + " " + nibble::name_of(c) +
                               ": " + std::to_string(e.bounds) + " bounds";
                    });
                }
        }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 8 * 8 * 8 * 4);
}

TEST_CASE("one wrong code breaks the bound", "[gemm][bound]") {
    // The oracle is told that one weight has the next code: the true product must then be outside its bound.
    std::array<int, 4> caught{};
    for (const char* name : {"int8_per_channel", "int8_zero_point", "int6_g64", "int5_g64", "int4_g32", "int3_zero_g64",
                             "int4_min_g64", "nf4", "fp8_per_channel", "mxfp6"}) {
        const qmatrix w = nibble::quantize(data::matrix(16, 128, 40), name);
        const MatrixXf x = data::matrix(128, 1, 41, data::distribution::uniform);
        reference::weights read = reference::read(w);
        const std::size_t i = read.at(7, 100);
        read.code[i] += (read.code[i] & 1) == 0 ? 1 : static_cast<unsigned>(-1);
        read.value[i] = w.format().value(read.code[i]);
        for (std::size_t c = 0; c < classes.size(); ++c) {
            MatrixXf y(16, 1);
            nibble::gemm(w, x, y, {.compute = classes[c]});
            if (measure(read, x, y, classes[c]).bounds > 1.0) ++caught[c];
        }
    }
    CAPTURE(caught[0], caught[1], caught[2], caught[3]);
    CHECK(caught[0] == 10);
    CHECK(caught[1] == 10);
    CHECK(caught[2] == 10);  // one step of a8 activations is larger than one step of an int8 weight
}

TEST_CASE("classes are ordered by their error, as documented", "[gemm][bound]") {
    const qmatrix w = nibble::quantize<nibble::int8>(data::matrix(64, 4096, 50));
    const MatrixXf x = data::matrix(4096, 4, 51);
    const MatrixXf weights = nibble::dequantize(w);
    const Eigen::MatrixXd truth = weights.cast<double>() * x.cast<double>();
    std::array<double, 4> error{};
    for (std::size_t c = 0; c < classes.size(); ++c) {
        MatrixXf y(64, 4);
        nibble::gemm(w, x, y, {.compute = classes[c]});
        error[c] = (y.cast<double>() - truth).norm() / truth.norm();
    }
    CAPTURE(error[0], error[1], error[2], error[3]);
    CHECK(error[0] < 5e-6);  // a chain of 4096 roundings
    CHECK(error[1] < 1e-6);  // exact sums: 16 roundings
    CHECK(error[1] < error[0]);
    CHECK(error[2] < 1e-4);
    CHECK(error[2] > error[1]);
    CHECK(error[3] < 2e-2);
    CHECK(error[3] > error[2]);
}
