// Hadamard rotations: orthogonality of every order, numbers worked out by hand, error bounds, outliers.
#include <nibble/algorithms/hadamard.hpp>

#include <cmath>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/mistake.hpp"

using Eigen::MatrixXd;
using Eigen::MatrixXf;
using extent = nibble::index;
using nibble::hadamard_rotation;

TEST_CASE("the fast transform by hand, and exact on integers", "[hadamard]") {
    float a[] = {1, 2, 3, 4}, b[] = {1, 0, 1, 0, 0, 1, 1, 0};
    nibble::walsh_hadamard(a);
    nibble::walsh_hadamard(b);
    CHECK(std::vector<float>(a, a + 4) == std::vector<float>{10, -2, -4, 0});
    CHECK(std::vector<float>(b, b + 8) == std::vector<float>{4, 2, 0, -2, 0, 2, 0, 2});
    Eigen::Vector4f v(1, 2, 3, 4);
    hadamard_rotation(4).rotate_columns(v);
    CHECK(v == Eigen::Vector4f(5, -1, -2, 0));
    // against popcounts, and twice is n times once
    std::vector<float> x(256), y;
    for (std::size_t i = 0; i < 256; ++i) x[i] = static_cast<float>((i * 37) % 201) - 100.0f;
    y = x;
    nibble::walsh_hadamard(y);
    for (unsigned i = 0; i < 256; ++i) {
        float sum = 0;
        for (unsigned j = 0; j < 256; ++j) sum += std::popcount(i & j) % 2 == 0 ? x[j] : -x[j];
        CHECK(y[i] == sum);
    }
    nibble::walsh_hadamard(y);
    for (std::size_t i = 0; i < 256; ++i) CHECK(y[i] == 256.0f * x[i]);
    float three[3] = {};
    CHECK(of([&] { nibble::walsh_hadamard(three); }).code == nibble::errc::unsupported);
}

TEST_CASE("every order has an orthogonal matrix of +-1", "[hadamard]") {
    int orders = 0;
    for (extent n = 1; n <= 256; ++n) {
        if (!hadamard_rotation::check(n)) continue;
        ++orders;
        CAPTURE(n);
        MatrixXf h = MatrixXf::Identity(n, n);
        hadamard_rotation(n).rotate_columns(h);
        const MatrixXd s = h.cast<double>() * std::sqrt(static_cast<double>(n));
        CHECK((s.array().abs() - 1.0).abs().maxCoeff() < 1e-6);
        const MatrixXd rounded = s.array().round().matrix();
        CHECK(rounded * rounded.transpose() == static_cast<double>(n) * MatrixXd::Identity(n, n));  // exact in double
        if ((n & (n - 1)) == 0) CHECK(rounded == rounded.transpose());
    }
    CHECK(orders == 58);
    for (const extent n : {12, 20, 24, 28, 36, 40, 44, 48, 52, 60, 68, 72, 76, 80, 84, 100, 108, 140, 384, 768, 1536, 3072, 3584, 5120, 11008, 19968, 13824, 14336})
        CHECK(static_cast<bool>(hadamard_rotation::check(n)));
    for (const extent n : {0, -4, 3, 6, 10, 92, 156, 172, 254, 1020}) CHECK(hadamard_rotation::check(n).code() == nibble::errc::unsupported);
    CHECK(contains(of([] { hadamard_rotation(92); }).message, "order 92"));
}

TEST_CASE("the product stays what it was; the inverse; norms; any storage", "[hadamard]") {
    for (const extent n : {1, 2, 64, 384, 1536, 28}) {
        CAPTURE(n);
        const MatrixXf w = data::matrix(7, n, 1), x = data::matrix(n, 5, 2);
        for (const bool random : {false, true}) {
            const hadamard_rotation r = random ? hadamard_rotation(n, 42) : hadamard_rotation(n);
            CHECK(r.signs().empty() != random);
            MatrixXf wr = w, xr = x;
            r.rotate_rows(wr);
            r.rotate_columns(xr);
            const MatrixXd exact = w.cast<double>() * x.cast<double>();
            CHECK((wr.cast<double>() * xr.cast<double>() - exact).norm() < 2e-6 * exact.norm() + 1e-6);
            CHECK(xr.norm() == Approx(x.norm()).epsilon(1e-6));
            // ((1 + u)^(m + 2) - 1) |y| for m stages, each of them sqrt(2) times orthogonal; q additions more across
            MatrixXf exactly = MatrixXf::Identity(n, n);
            r.rotate_columns(exactly);
            MatrixXd h = exactly.cast<double>();
            for (extent i = 0; i < h.size(); ++i) h.data()[i] = (h.data()[i] > 0 ? 1.0 : -1.0) / std::sqrt(static_cast<double>(n));
            const MatrixXd y = h * x.cast<double>();
            const double stages = std::log2(static_cast<double>(n)) + ((n & (n - 1)) == 0 ? 2.0 : 30.0);
            CHECK((xr.cast<double>() - y).norm() <= stages * 0x1p-24 * y.norm());
            r.restore_columns(xr);
            CHECK((xr - x).norm() < 1e-6f * x.norm());
            Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows = w;
            r.rotate_rows(rows);
            CHECK(data::bits_differing(rows, wr) == 0);
            r.restore_rows(rows.topRows(3));
            CHECK((rows.topRows(3) - w.topRows(3)).norm() < 2e-6f * w.norm());
            CHECK(data::bits_differing(rows.bottomRows(4), wr.bottomRows(4)) == 0);
        }
    }
    const MatrixXf x = data::matrix(64, 3, 3);
    MatrixXf a = x, b = x, twice = x;
    hadamard_rotation(64, 1).rotate_columns(a);
    hadamard_rotation(64, 2).rotate_columns(b);
    CHECK((a - b).norm() > 0.1f);
    hadamard_rotation(64).rotate_columns(twice);
    hadamard_rotation(64).rotate_columns(twice);  // its own inverse
    CHECK((twice - x).norm() < 1e-6f * x.norm());
    CHECK(of([&] { hadamard_rotation(32).rotate_columns(a); }).code == nibble::errc::shape_mismatch);
    CHECK(of([&] { hadamard_rotation(64).rotate_rows(a); }).code == nibble::errc::shape_mismatch);
}

TEST_CASE("outliers are spread: INT4 tokens lose a third; nothing changes without outliers", "[hadamard]") {
    const auto error = [](MatrixXf x) {
        double sum = 0.0;
        for (extent t = 0; t < x.cols(); ++t) {
            const float scale = x.col(t).cwiseAbs().maxCoeff() / 7.0f;
            sum += (x.col(t) - scale * (x.col(t) / scale).array().round().matrix()).cast<double>().squaredNorm();
        }
        return sum / static_cast<double>(x.size());
    };
    const MatrixXf flat = data::matrix(128, 300, 4);
    MatrixXf outliers = flat;
    for (extent k = 0; k < 128; k += 8) outliers.row(k) *= 16.0f;
    const hadamard_rotation r(128, 5);
    for (const bool with : {true, false}) {
        MatrixXf rotated = with ? outliers : flat;
        const double before = error(rotated);
        r.rotate_columns(rotated);
        CAPTURE(with, before, error(rotated));
        CHECK(error(rotated) / before == Approx(with ? 0.3 : 1.0).epsilon(0.12));
    }
}
