// LLM.int8(): the numbers of the definition in double, partitions, the plain product where nothing is an outlier.
#include <nibble/algorithms/llm_int8.hpp>

#include <cmath>
#include <limits>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/golden.hpp"
#include "support/mistake.hpp"

using Eigen::MatrixXd;
using Eigen::MatrixXf;
using extent = nibble::index;
using nibble::errc;
using nibble::llm_int8;

namespace {

/// The definition, in double.
MatrixXd reference(const MatrixXf& w, const MatrixXf& x, double threshold) {
    MatrixXd y = MatrixXd::Zero(w.rows(), x.cols());
    for (extent t = 0; t < x.cols(); ++t) {
        double a = 0.0;
        for (extent k = 0; k < x.rows(); ++k) {
            const double v = std::fabs(static_cast<double>(x(k, t)));
            if (v < threshold && v > a) a = v;
        }
        for (extent n = 0; n < w.rows(); ++n) {
            const double c = static_cast<double>(w.row(n).cwiseAbs().maxCoeff());
            for (extent k = 0; k < x.rows(); ++k) {
                const double q = c == 0.0 ? 0.0 : std::nearbyint(127.0 * static_cast<double>(w(n, k)) / c), v = static_cast<double>(x(k, t));
                const bool outlier = static_cast<double>(x.row(k).cwiseAbs().maxCoeff()) >= threshold;
                y(n, t) += c / 127.0 * q * (outlier ? v : a == 0.0 ? 0.0 : a / 127.0 * std::nearbyint(127.0 * v / a));
            }
        }
    }
    return y;
}

MatrixXf with_outliers(extent channels, extent tokens, std::uint64_t stream, extent every) {
    MatrixXf x = data::matrix(channels, tokens, stream).cwiseMin(5.0f).cwiseMax(-5.0f);
    for (extent k = 1; k < channels; k += every) x(k, (k * 7) % tokens) = k % 2 == 0 ? 20.0f : -6.0f;
    return x;
}

}  // namespace

TEST_CASE("the example in double", "[llm_int8]") {
    const golden::file file("algorithms/awq");
    using rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const std::vector<float> wv = file.read_floats("golden.w"), xv = file.read_floats("golden.x");
    const MatrixXf w = Eigen::Map<const rows>(wv.data(), 8, 32), x = Eigen::Map<const rows>(xv.data(), 16, 32).transpose();
    const MatrixXd exact = w.cast<double>() * x.cast<double>();
    const llm_int8 layer(w), plain(w, 0.0f);
    CHECK(layer.outliers(x) == std::vector<extent>{3, 11, 19, 27});
    CHECK(plain.outliers(x).empty());
    const auto mse = [&](const MatrixXf& y) { return (y.cast<double>() - exact).squaredNorm() / 128.0; };
    CHECK(mse(layer * x) == Approx(.04717808).epsilon(1e-4));
    CHECK(mse(plain * x) == Approx(.121209).epsilon(1e-4));
}

TEST_CASE("the definition, in any storage and shape; the bias", "[llm_int8]") {
    for (const extent n : {1, 17, 40})
        for (const extent k : {5, 64, 300})
            for (const extent t : {1, 2, 9}) {
                CAPTURE(n, k, t);
                MatrixXf w = data::matrix(n, k, 1);
                w.row(0).setZero();
                const MatrixXf x = with_outliers(k, t, 2, 13);
                const llm_int8 layer(w);
                CHECK_FALSE(layer.outliers(x).empty());
                const MatrixXd wanted = reference(w, x, 6.0);
                const MatrixXf y = layer * x;
                const double size = (w.cwiseAbs() * x.cwiseAbs()).maxCoeff();
                CHECK((y.cast<double>() - wanted).cwiseAbs().maxCoeff() <= 2e-6 * size);
                const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows = x;
                MatrixXf wide = MatrixXf::Constant(2 * n, t, 77.0f);
                layer.multiply(rows, Eigen::Map<MatrixXf, 0, Eigen::Stride<Eigen::Dynamic, 2>>(wide.data(), n, t, Eigen::Stride<Eigen::Dynamic, 2>(2 * n, 2)));
                for (extent r = 0; r < n; ++r) CHECK(data::bits_differing(wide.row(2 * r), y.row(r)) == 0);
                const Eigen::VectorXf bias = data::matrix(n, 1, 3);
                MatrixXf biased(n, t);
                nibble::llm_int8_options o;
                o.bias = bias;
                layer.multiply(x, biased, o);
                CHECK((biased - (y.colwise() + bias)).cwiseAbs().maxCoeff() < 1e-5f * static_cast<float>(size + 1.0));
            }
}

TEST_CASE("without outliers it is the plain product, bit for bit; partitions are exact", "[llm_int8]") {
    const MatrixXf w = data::matrix(40, 200, 10), x = data::matrix(200, 6, 11).cwiseMin(5.9f).cwiseMax(-5.9f);
    const llm_int8 layer(w);
    MatrixXf plain(40, 6);
    nibble::integer_gemm(layer.weights(), nibble::quantize_activations(x, nibble::activation_rule::per_token()), plain);
    CHECK(data::bits_differing(layer * x, plain) == 0);
    CHECK(data::bits_differing(llm_int8(w, 0.0f) * x, plain) == 0);
    // everything is an outlier: floats alone
    const MatrixXf all = llm_int8(w, 1e-30f) * x;
    CHECK((all - nibble::dequantize(layer.weights()) * x).norm() < 1e-5f * plain.norm());
    // outlier channels that are powers of two, the rest integers below 128: both parts are exact, so is the sum
    MatrixXf exact(64, 64), tokens(64, 3);
    for (extent i = 0; i < exact.size(); ++i) exact.data()[i] = static_cast<float>((i * 31) % 255 - 127);
    exact.col(0).setConstant(127.0f);
    for (extent i = 0; i < tokens.size(); ++i) tokens.data()[i] = static_cast<float>((i * 17) % 255 - 127);
    tokens.row(0).setConstant(127.0f);
    tokens.row(5).setConstant(4096.0f);
    tokens.row(9).setConstant(-256.0f);
    const llm_int8 split(exact, 200.0f);
    CHECK(split.outliers(tokens) == std::vector<extent>{5, 9});
    CHECK(split * tokens == MatrixXf(exact * tokens));
}

TEST_CASE("what is refused", "[llm_int8]") {
    const MatrixXf w = data::matrix(8, 32, 20);
    const llm_int8 layer(w);
    CHECK(of([&] { llm_int8(nibble::quantize<nibble::int8_g32>(data::matrix(8, 64, 20))); }).code == errc::unsupported);
    CHECK(of([&] { llm_int8(nibble::quantize<nibble::int8_zero_point>(w)); }).code == errc::unsupported);
    CHECK(of([&] { llm_int8(w, -1.0f); }).code == errc::invalid_argument);
    CHECK(of([&] { llm_int8(w, std::numeric_limits<float>::quiet_NaN()); }).code == errc::invalid_argument);
    CHECK(of([&] { (void)(layer * data::matrix(31, 2, 21)); }).code == errc::shape_mismatch);
    MatrixXf x = data::matrix(32, 2, 21), y = MatrixXf::Constant(8, 2, 5.0f);
    x(7, 1) = std::numeric_limits<float>::infinity();
    CHECK(contains(of([&] { layer.multiply(x, y); }).message, "X(7, 1) is inf"));
    CHECK(y == MatrixXf::Constant(8, 2, 5.0f));
    MatrixXf both(40, 2);
    CHECK(of([&] { layer.multiply(both.topRows(32), both.middleRows(20, 8)); }).code == errc::overlap);
    CHECK((layer * MatrixXf(32, 0)).cols() == 0);
    CHECK((llm_int8(MatrixXf(0, 32)) * x.leftCols(1)).rows() == 0);
}
