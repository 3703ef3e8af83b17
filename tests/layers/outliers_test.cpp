// Dense and sparse: which weights are kept, exactly; products against a loop of their own, bit for bit; bad input.
#include <nibble/algorithms/gptq.hpp>
#include <nibble/calibration/importance.hpp>
#include <nibble/layers/outliers.hpp>
#include <nibble/nibble.hpp>

#include <cmath>
#include <limits>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/mistake.hpp"
#include "support/spawning.hpp"

using Eigen::MatrixXf;
using extent = nibble::index;
using nibble::errc;
using nibble::outlier_matrix;
using nibble::split_outliers;

namespace {

nibble::quantize_plan named(const char* name) { return nibble::make_plan(*nibble::find_recipe(name)); }
MatrixXf halves(const MatrixXf& m) { return m.cast<Eigen::half>().cast<float>(); }

/// The outliers that a matrix stands for, from its arrays.
MatrixXf sparse_part(const outlier_matrix& w) {
    MatrixXf s = MatrixXf::Zero(w.rows(), w.cols());
    for (extent n = 0; n < w.rows(); ++n)
        for (extent i = w.row_begin()[static_cast<std::size_t>(n)]; i < w.row_begin()[static_cast<std::size_t>(n + 1)]; ++i)
            s(n, w.columns()[static_cast<std::size_t>(i)]) = static_cast<float>(Eigen::numext::bit_cast<Eigen::half>(w.values()[static_cast<std::size_t>(i)]));
    return s;
}

}  // namespace

TEST_CASE("the costliest weights are kept, exactly", "[outliers]") {
    const MatrixXf w = halves(data::matrix(24, 200, 1, data::distribution::student_t4));
    for (const char* name : {"int3_zero_g64", "int4_g32", "nf4", "q4_k", "int2_min_g32", "iq4_nl"}) {
        CAPTURE(name);
        const outlier_matrix m = split_outliers(w, named(name), {.fraction = 0.01});
        CHECK(m.outliers() == 48);
        const MatrixXf back = nibble::dequantize(m), kept = sparse_part(m);
        float least = 1e9f, largest = 0.0f;
        for (extent i = 0; i < w.size(); ++i) {
            const float size = std::abs(w.data()[i]);
            if (kept.data()[i] != 0.0f) {
                least = std::min(least, size);
                CHECK(std::abs(back.data()[i] - w.data()[i]) <= 0x1p-10f * size);
            } else {
                largest = std::max(largest, size);
            }
        }
        CHECK(largest <= least);
        CHECK(nibble::sqnr_db(w, back) > nibble::sqnr_db(w, nibble::dequantize(nibble::quantize(w, name))) + 1.0);
        CHECK(m.bits_per_weight() == Approx(m.dense().bits_per_weight() + 32.0 * (48 + 24) / 4800));
    }
    // Where 0 is a code of the dense part, fp16 weights are what they were, to the bit: outliers, and so all of them.
    for (const char* name : {"int3_zero_g64", "int4_g32", "nf4", "int8_per_channel"}) {
        const outlier_matrix some = split_outliers(w, named(name), {.fraction = 0.02}), all = split_outliers(w, named(name), {.fraction = 1.0});
        const MatrixXf back = nibble::dequantize(some), kept = sparse_part(some);
        for (extent i = 0; i < w.size(); ++i)
            if (kept.data()[i] != 0.0f) CHECK(back.data()[i] == w.data()[i]);
        CHECK(nibble::dequantize(all) == w);
    }
    // Scales shrink, so errors keep within half a step of the dense format's scale, and mostly within less.
    const nibble::qmatrix dense = nibble::quantize(w, "int4_g32");
    const MatrixXf plain = nibble::dequantize(dense);
    const outlier_matrix five = split_outliers(w, named("int4_g32"), {.fraction = 0.05});
    const MatrixXf back = nibble::dequantize(five);
    for (extent n = 0; n < 24; ++n)
        for (extent g = 0; g < dense.groups(); ++g) {
            CHECK(five.dense().scale(n, g) <= dense.scale(n, g));
            CHECK((back - w).row(n).segment(32 * g, std::min<extent>(32, 200 - 32 * g)).cwiseAbs().maxCoeff() <= 0.501f * five.dense().scale(n, g));
        }
    // None at all: the dense format.
    const outlier_matrix none = split_outliers(w, named("int4_g32"), {.fraction = 0.0});
    CHECK(none.outliers() == 0);
    CHECK(nibble::dequantize(none) == plain);
    // Importance moves the choice.
    std::vector<float> h(200, 1.0f);
    h[17] = 1e6f;
    const outlier_matrix chosen = split_outliers(w, named("int4_g32"), {.fraction = 0.005, .importance = h});
    extent in_column = 0;
    for (const std::int32_t c : chosen.columns()) in_column += c == 17 ? 1 : 0;
    CHECK(in_column == 24);
}

TEST_CASE("products add the outliers in the order of columns, the same bits everywhere", "[outliers]") {
    for (const char* name : {"int3_zero_g64", "nf4"})
        for (const extent columns : {1, 3, 9}) {
            const MatrixXf w = data::matrix(37, 150, 11, data::distribution::student_t4), x = data::matrix(150, columns, 12);
            const outlier_matrix m = split_outliers(w, named(name), {.fraction = 0.02});
            const MatrixXf kept = sparse_part(m);
            MatrixXf wanted = m.dense() * x;
            for (extent n = 0; n < 37; ++n)
                for (extent j = 0; j < columns; ++j)
                    for (extent k = 0; k < 150; ++k)
                        if (kept(n, k) != 0.0f) wanted(n, j) = std::fma(kept(n, k), x(k, j), wanted(n, j));
            const MatrixXf y = m * x;
            CHECK(data::bits_differing(y, wanted) == 0);
            for_each_isa([&](nibble::isa) { CHECK(data::bits_differing(m * x, y) == 0); });
            CHECK(data::bits_differing(MatrixXf(m * x.col(columns - 1)), y.col(columns - 1)) == 0);
            auto threads = nibble::make_executor(3, spawning{3});
            MatrixXf parallel(37, columns);
            nibble::gemm(m, x, parallel, {.executor = &threads});
            CHECK(data::bits_differing(parallel, y) == 0);
            CHECK(nibble::relative_error(nibble::dequantize(m) * x, y) < 1e-6);
            CHECK(nibble::sqnr_db(w * x, y) > nibble::sqnr_db(w * x, nibble::quantize(w, name) * x) + 1.0);
            // Bias and what y holds come before.
            const Eigen::VectorXf bias = data::matrix(37, 1, 13);
            MatrixXf more = MatrixXf::Ones(37, columns);
            nibble::gemm(m, x, more, {.bias = bias, .accumulate = true});
            CHECK((more - (y.colwise() + bias) - MatrixXf::Ones(37, columns)).cwiseAbs().maxCoeff() < 1e-4f);
        }
    const outlier_matrix empty = split_outliers(MatrixXf(0, 16), named("int4_g32"));
    CHECK((empty * MatrixXf(16, 2)).rows() == 0);
}

TEST_CASE("GPTQ for the rest, outliers beside it", "[outliers]") {
    const MatrixXf w = data::matrix(32, 64, 31, data::distribution::student_t4);
    const MatrixXf x = data::matrix(64, 6, 32) * data::matrix(6, 300, 33) + 0.3f * data::matrix(64, 300, 34);
    nibble::hessian h(64);
    h.add(x);
    nibble::importance seen(64);
    seen.add(x);
    const std::vector<float> weights = seen.weights();
    const nibble::quantize_plan plan = named("int3_zero_g64");
    const auto lost = [&](const MatrixXf& q) { return static_cast<double>(((w - q) * x).squaredNorm()); };
    const nibble::outlier_split split = nibble::find_outliers(w, plan, {.fraction = 0.02, .importance = weights});
    const nibble::qmatrix dense = nibble::gptq(split.rest, h, plan).weights;
    const double both = lost(nibble::dequantize(nibble::join_outliers(dense, w, split.rest, split)));
    CHECK(both < 0.8 * lost(nibble::dequantize(nibble::gptq(w, h, plan).weights)));
    CHECK(both < 0.5 * lost(nibble::dequantize(split_outliers(w, plan, {.fraction = 0.02, .importance = weights}))));
    // What is left over is the error of the rest, but for the rounding to fp16.
    const MatrixXf error = nibble::dequantize(nibble::join_outliers(dense, w, split.rest, split)) - w, wanted = nibble::dequantize(dense) - split.rest;
    CHECK((error - wanted).cwiseAbs().maxCoeff() <= 0x1p-11f * w.cwiseAbs().maxCoeff());
    CHECK(of([&] { static_cast<void>(nibble::join_outliers(dense, w.leftCols(3), split.rest, split)); }).code == errc::shape_mismatch);
}

TEST_CASE("what cannot be split or put together says why", "[outliers]") {
    MatrixXf w = data::matrix(4, 64, 21);
    const auto said = [&](const nibble::outlier_options& o) { return of([&] { static_cast<void>(split_outliers(w, named("int4_g32"), o)); }); };
    CHECK(said({.fraction = -0.1}).code == errc::invalid_argument);
    CHECK(said({.fraction = 1.5}).code == errc::invalid_argument);
    CHECK(said({.fraction = std::numeric_limits<double>::quiet_NaN()}).code == errc::invalid_argument);
    const std::vector<float> few(3, 1.0f);
    CHECK(said({.importance = few}).code == errc::shape_mismatch);
    w(2, 5) = 1e6f;
    CHECK(said({.fraction = 0.01}).code == errc::out_of_range);
    CHECK(contains(said({.fraction = 0.01}).message, "W(2, 5)"));
    w(2, 5) = std::numeric_limits<float>::quiet_NaN();
    CHECK(said({}).code == errc::non_finite);
    CHECK(contains(said({}).message, "W(2, 5)"));
    const nibble::qmatrix q = nibble::quantize<nibble::int4>(data::matrix(2, 32, 22));
    const auto built = [&](std::vector<extent> rows, std::vector<std::int32_t> cols, std::vector<std::uint16_t> values) {
        return of([&] { outlier_matrix(q, std::move(rows), std::move(cols), std::move(values)); }).code;
    };
    CHECK(built({0, 1, 2}, {3, 31}, {1, 2}) == errc::ok);
    CHECK(built({0, 2}, {3, 31}, {1, 2}) == errc::shape_mismatch);
    CHECK(built({0, 1, 1}, {3, 31}, {1, 2}) == errc::shape_mismatch);
    CHECK(built({0, 1, 2}, {3, 32}, {1, 2}) == errc::invalid_argument);
    CHECK(built({0, 2, 2}, {3, 3}, {1, 2}) == errc::invalid_argument);
    CHECK(built({0, 3, 2}, {3, 4}, {1, 2}) == errc::invalid_argument);
    CHECK(built({0, 1, 2}, {3, 31}, {1, 0x7e00}) == errc::non_finite);
    const outlier_matrix m = split_outliers(data::matrix(4, 64, 23), named("int4_g32"));
    MatrixXf y(4, 1);
    CHECK(of([&] { nibble::gemm(m, MatrixXf::Zero(64, 1), y, {.activation = nibble::activation::relu}); }).code == errc::unsupported);
    CHECK(of([&] { static_cast<void>(m * MatrixXf::Zero(63, 1)); }).code == errc::shape_mismatch);
}
