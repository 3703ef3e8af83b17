// Mean squares of channels, against sums worked out here.
#include <nibble/calibration/importance.hpp>
#include <nibble/dequantize.hpp>
#include <nibble/quantize.hpp>

#include <cmath>
#include <limits>
#include <string>

#include "support/catch.hpp"
#include "support/mistake.hpp"
#include "support/data.hpp"

using Eigen::MatrixXf;
using nibble::errc;
using nibble::importance;

namespace {

template <class Call>
std::pair<errc, std::string> refused(Call call) {
    mistake m = of(call);
    return {m.code, std::move(m.message)};
}

}  // namespace

TEST_CASE("mean squares by hand", "[importance]") {
    MatrixXf x(3, 4);
    x << 1, 2, 3, 4, 0, 0, 0, 0, -2, 2, -2, 2;
    importance seen(3);
    seen.add(x);
    CHECK(seen.channels() == 3);
    CHECK(seen.tokens() == 4);
    CHECK(seen.mean_square(0) == 7.5);
    CHECK(seen.mean_square(1) == 0.0);
    CHECK(seen.mean_square(2) == 4.0);
    const std::vector<float> w = seen.weights();
    CHECK(w == std::vector<float>{1.875f, 0x1p-40f, 1.0f});  // 30, 0 and 16, over 16
}

TEST_CASE("batches, storage and scalars do not matter; merging adds", "[importance]") {
    const MatrixXf x = data::matrix(37, 1100, 3, data::distribution::student_t4);
    importance whole(37), parts(37), other(37), doubles(37);
    whole.add(x);
    parts.add(x.leftCols(1));
    parts.add(x.middleCols(1, 700));
    parts.add(x.rightCols(399));
    using rows = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    doubles.add(rows(x.cast<double>()));
    CHECK(whole.weights() == parts.weights());
    CHECK(whole.weights() == doubles.weights());
    importance first(37);
    first.add(x.leftCols(600));
    other.add(x.rightCols(500));
    first.merge(other);
    CHECK(first.tokens() == 1100);
    for (nibble::index k = 0; k < 37; ++k) {
        double sum = 0.0;
        for (nibble::index t = 0; t < 1100; ++t) sum += static_cast<double>(x(k, t)) * static_cast<double>(x(k, t));
        CHECK(whole.mean_square(k) == sum / 1100.0);
        CHECK(first.mean_square(k) == Approx(sum / 1100.0).epsilon(1e-14));
    }
}

TEST_CASE("weights survive the ends of the float range", "[importance]") {
    for (const float scale : {1e-44f, 1e-20f, 1.0f, 1e20f, 3e38f}) {
        MatrixXf x(2, 1);
        x << scale, scale / 2.0f;
        importance seen(2);
        seen.add(x);
        const std::vector<float> w = seen.weights();
        CAPTURE(scale, w[0], w[1]);
        CHECK((w[0] >= 1.0f && w[0] < 2.0f));
        CHECK(w[1] / w[0] == Approx(static_cast<double>(x(1)) * static_cast<double>(x(1)) / (static_cast<double>(x(0)) * static_cast<double>(x(0)))));
    }
    importance zeros(3);
    zeros.add(MatrixXf::Zero(3, 5));
    CHECK(zeros.weights() == std::vector<float>{1.0f, 1.0f, 1.0f});
}

TEST_CASE("a search with importance loses less where it counts", "[importance]") {
    const MatrixXf w = data::matrix(64, 256, 5);
    MatrixXf x = data::matrix(256, 400, 6);
    for (nibble::index k = 0; k < 256; k += 5) x.row(k) *= 8.0f;
    importance seen(256);
    seen.add(x);
    const std::vector<float> h = seen.weights();
    const MatrixXf a = nibble::dequantize(nibble::quantize<nibble::q4_k>(w));
    const MatrixXf b = nibble::dequantize(nibble::quantize<nibble::q4_k>(w, {.importance = h}));
    const float plain = ((w - a) * x).squaredNorm();
    const float weighted = ((w - b) * x).squaredNorm();
    CHECK(weighted < 0.95f * plain);
}

TEST_CASE("refusals leave the sums alone", "[importance]") {
    importance seen(4);
    CHECK(refused([&] { (void)seen.weights(); }).first == errc::invalid_argument);
    seen.add(MatrixXf::Ones(4, 2));
    MatrixXf x = MatrixXf::Ones(4, 600);
    x(2, 555) = std::numeric_limits<float>::quiet_NaN();
    const auto bad = refused([&] { seen.add(x); });
    CHECK(bad.first == errc::non_finite);
    CHECK(bad.second.find("X(2, 555) is nan") != std::string::npos);
    CHECK(refused([&] { seen.add(MatrixXf::Ones(5, 2)); }).first == errc::shape_mismatch);
    CHECK(refused([&] { seen.merge(importance(5)); }).first == errc::shape_mismatch);
    CHECK(refused([&] { (void)seen.mean_square(4); }).first == errc::out_of_range);
    CHECK(refused([&] { importance(-1); }).first == errc::invalid_argument);
    CHECK(seen.tokens() == 2);
    CHECK(seen.mean_square(2) == 1.0);
}
