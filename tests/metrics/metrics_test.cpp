// Error metrics against values worked out by hand.
#include <nibble/metrics.hpp>

#include <cmath>
#include <limits>
#include <string>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/reference.hpp"

using Eigen::MatrixXf;
using nibble::compare;
using nibble::error_metrics;

namespace {

// By bits, so that -ffinite-math-only cannot answer for us.
bool is_nan(double x) { return (std::bit_cast<std::uint64_t>(x) & 0x7fffffffffffffffu) > 0x7ff0000000000000u; }
bool is_infinite(double x) { return std::bit_cast<std::uint64_t>(x) == 0x7ff0000000000000u; }
bool near(double a, double b) { return std::fabs(a - b) <= 1e-14 * std::fabs(b); }

const float quiet_nan = reference::float_from_bits(0x7fc00000u);
const float inf = reference::float_from_bits(0x7f800000u);

}  // namespace

TEST_CASE("metrics by hand", "[metrics]") {
    MatrixXf wanted(2, 2), got(2, 2);
    wanted << 3.0f, -4.0f, 0.0f, 12.0f;  // sum of squares 169
    got << 3.0f, -2.0f, 1.0f, 14.0f;     // errors 0, 2, 1, 2: squares 9, sum 5
    const error_metrics m = compare(wanted, got);
    CHECK(near(m.sqnr_db, 10.0 * std::log10(169.0 / 9.0)));
    CHECK(near(m.relative_error, 3.0 / 13.0));
    CHECK(m.max_error == 2.0);
    CHECK(m.mean_error == 1.25);
    CHECK(m.rmse == 1.5);
    // dot 9 + 8 + 168 = 185; |got|^2 = 9 + 4 + 1 + 196 = 210
    CHECK(near(m.cosine, 185.0 / (13.0 * std::sqrt(210.0))));
    CHECK(nibble::sqnr_db(wanted, got) == m.sqnr_db);
    CHECK(nibble::relative_error(wanted, got) == m.relative_error);
}

TEST_CASE("half the amplitude is 6.02 dB", "[metrics]") {
    const MatrixXf x = data::matrix(30, 40, 1);
    CHECK(near(nibble::sqnr_db(x, (x * 0.5f).eval()), 20.0 * std::log10(2.0)));
    CHECK(near(nibble::relative_error(x, (x * 0.5f).eval()), 0.5));
    CHECK(near(compare(x, (x * 0.5f).eval()).cosine, 1.0));
    CHECK(near(compare(x, (-x).eval()).cosine, -1.0));
    CHECK(near(nibble::relative_error(x, (-x).eval()), 2.0));
}

TEST_CASE("equal matrices", "[metrics]") {
    const MatrixXf x = data::matrix(5, 6, 2);
    const error_metrics m = compare(x, x);
    CHECK(is_infinite(m.sqnr_db));
    CHECK(m.relative_error == 0.0);
    CHECK(m.max_error == 0.0);
    CHECK(m.mean_error == 0.0);
    CHECK(m.rmse == 0.0);
    CHECK(near(m.cosine, 1.0));
}

TEST_CASE("zeros", "[metrics]") {
    const MatrixXf zero = MatrixXf::Zero(3, 3);
    const MatrixXf one = MatrixXf::Ones(3, 3);
    error_metrics m = compare(zero, zero);
    CHECK(is_infinite(m.sqnr_db));
    CHECK(m.relative_error == 0.0);
    CHECK(m.cosine == 1.0);
    m = compare(zero, one);  // all noise, no signal
    CHECK(std::bit_cast<std::uint64_t>(m.sqnr_db) == 0xfff0000000000000u);
    CHECK(is_infinite(m.relative_error));
    CHECK(m.rmse == 1.0);
    CHECK(m.cosine == 0.0);
    m = compare(one, zero);
    CHECK(m.sqnr_db == 0.0);
    CHECK(m.relative_error == 1.0);
    CHECK(m.cosine == 0.0);
}

TEST_CASE("empty matrices are equal", "[metrics]") {
    const error_metrics m = compare(MatrixXf(0, 5), MatrixXf(0, 5));
    CHECK(is_infinite(m.sqnr_db));
    CHECK(m.relative_error == 0.0);
    CHECK(m.mean_error == 0.0);
    CHECK(m.rmse == 0.0);
    CHECK(m.cosine == 1.0);
}

TEST_CASE("NaN is never a good result", "[metrics]") {
    const MatrixXf wanted = data::matrix(4, 4, 3);
    for (int at = 0; at < 16; ++at) {
        CAPTURE(at);
        MatrixXf got = wanted;
        got(at % 4, at / 4) = quiet_nan;
        const error_metrics m = compare(wanted, got);
        CHECK(is_nan(m.sqnr_db));
        CHECK(is_nan(m.relative_error));
        CHECK(is_nan(m.max_error));
        CHECK(is_nan(m.mean_error));
        CHECK(is_nan(m.rmse));
        CHECK(is_nan(m.cosine));
    }
    // Not even where everything wanted is zero.
    MatrixXf got = wanted;
    got(1, 2) = quiet_nan;
    CHECK(is_nan(compare(MatrixXf::Zero(4, 4), got).cosine));
    CHECK(is_nan(compare(MatrixXf::Zero(4, 4), got).sqnr_db));
    CHECK(is_nan(compare(got, wanted).sqnr_db));
    got(1, 2) = inf;
    const error_metrics m = compare(wanted, got);
    CHECK(is_infinite(m.max_error));
    CHECK(is_infinite(m.rmse));
    CHECK(is_infinite(m.relative_error));
    CHECK(std::bit_cast<std::uint64_t>(m.sqnr_db) == 0xfff0000000000000u);
}

TEST_CASE("large and small numbers do not overflow in double", "[metrics]") {
    const MatrixXf big = MatrixXf::Constant(8, 8, 3e38f);
    const error_metrics m = compare(big, (big * 0.5f).eval());
    CHECK(near(m.relative_error, 0.5));
    CHECK(near(m.sqnr_db, 20.0 * std::log10(2.0)));
    const MatrixXf small = MatrixXf::Constant(8, 8, 2e-38f);
    CHECK(near(compare(small, (small * 2.0f).eval()).relative_error, 1.0));
}

TEST_CASE("mixed scalars, layouts and shapes", "[metrics]") {
    const MatrixXf x = data::matrix(9, 7, 4);
    const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows = x;
    CHECK(is_infinite(nibble::sqnr_db(x, rows)));
    CHECK(is_infinite(nibble::sqnr_db(x.cast<double>(), x)));
    // Doubles are compared as doubles.
    const Eigen::MatrixXd exact = x.cast<double>().array() + 1e-12;
    CHECK(compare(exact, x).max_error > 0.0);
    CHECK(compare(exact, x).max_error < 1.1e-12);
    CHECK(compare(x.array(), (x.array() * 1.0f)).max_error == 0.0);
    CHECK(compare(x.block(1, 1, 3, 3), x.block(1, 1, 3, 3)).max_error == 0.0);
    try {
        static_cast<void>(compare(x, x.transpose().eval()));
        CHECK(false);
    } catch (const nibble::error& e) {
        CHECK(e.code() == nibble::errc::shape_mismatch);
        CHECK(std::string(e.what()).find("9x7") != std::string::npos);
        CHECK(std::string(e.what()).find("7x9") != std::string::npos);
    }
}
