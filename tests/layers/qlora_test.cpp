// QLoRA: the layer begins as its base, values and gradients against double, merging, bad input.
#include <nibble/layers/qlora.hpp>
#include <nibble/nibble.hpp>

#include <limits>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/mistake.hpp"

using Eigen::MatrixXd;
using Eigen::MatrixXf;
using extent = nibble::index;
using nibble::errc;
using nibble::qlora;

namespace {

/// Sum of dy * y of the layer in double, from decoded weights.
double loss(const MatrixXd& w, const MatrixXd& a, const MatrixXd& b, double s, const MatrixXd& x, const MatrixXd& dy) {
    return dy.cwiseProduct(w * x + s * (b * (a * x))).sum();
}

template <class F>
MatrixXd slopes(MatrixXd p, F f) {
    MatrixXd g(p.rows(), p.cols());
    const double h = 1e-4;
    for (extent i = 0; i < p.size(); ++i) {
        const double at = p.data()[i];
        p.data()[i] = at + h;
        const double up = f(p);
        p.data()[i] = at - h;
        g.data()[i] = (up - f(p)) / (2 * h);
        p.data()[i] = at;
    }
    return g;
}

double distance(const MatrixXf& got, const MatrixXd& wanted) { return (got.cast<double>() - wanted).norm() / wanted.norm(); }

}  // namespace

TEST_CASE("the layer begins as its base", "[qlora]") {
    const MatrixXf w = data::matrix(24, 130, 1), x = data::matrix(130, 5, 2);
    const nibble::qmatrix base = nibble::quantize<nibble::nf4_double>(w);
    const qlora layer(base, 8, 16.0f);
    CHECK(layer.forward(x) == base * x);
    CHECK(layer.scale() == 2.0f);
    CHECK(layer.b().isZero(0.0f));
    CHECK(layer.a().cwiseAbs().maxCoeff() <= 1.0f / std::sqrt(130.0f));
    CHECK(layer.a().cwiseAbs().maxCoeff() > 0.95f / std::sqrt(130.0f));
    CHECK(std::abs(layer.a().mean()) < 0.1f / std::sqrt(130.0f));
    CHECK(layer.a() == qlora(base, 8, 1.0f).a());
    CHECK(layer.a() != qlora(base, 8, 1.0f, 2).a());
    const auto g = layer.backward(x, data::matrix(24, 5, 3));
    CHECK(g.a.isZero(0.0f));
    CHECK_FALSE(g.b.isZero(0.0f));
    CHECK(data::bits_differing(layer.merged(), nibble::dequantize(base)) == 0);
}

TEST_CASE("values and gradients agree with double", "[qlora]") {
    const MatrixXf w = data::matrix(10, 70, 4), x = data::matrix(70, 6, 5), dy = data::matrix(10, 6, 6);
    for (const char* format : {"nf4_double", "q4_k", "int4_zero_g128"}) {
        const nibble::qmatrix base = nibble::quantize(w, format);
        const MatrixXf a = data::matrix(3, 70, 7), b = data::matrix(10, 3, 8);
        const qlora layer(base, a, b, 1.5f);
        const MatrixXd wd = nibble::dequantize(base).cast<double>(), ad = a.cast<double>(), bd = b.cast<double>(), xd = x.cast<double>(), dyd = dy.cast<double>();
        CHECK(distance(layer.forward(x), wd * xd + 0.5 * (bd * (ad * xd))) < 1e-6);
        const auto g = layer.backward(x, dy);
        CHECK(distance(g.a, slopes(ad, [&](const MatrixXd& p) { return loss(wd, p, bd, 0.5, xd, dyd); })) < 1e-6);
        CHECK(distance(g.b, slopes(bd, [&](const MatrixXd& p) { return loss(wd, ad, p, 0.5, xd, dyd); })) < 1e-6);
        CHECK(distance(g.x, slopes(xd, [&](const MatrixXd& p) { return loss(wd, ad, bd, 0.5, p, dyd); })) < 1e-6);
        CHECK(distance(layer.merged(), wd + 0.5 * (bd * ad)) < 1e-6);
        CHECK(distance(layer.merged() * x, layer.forward(x).cast<double>()) < 1e-5);
        // Merged and quantized again: what quantize() makes of the merged floats.
        const nibble::quantize_plan plan = nibble::make_plan(nibble::q6_k::get());
        CHECK(data::bits_differing(nibble::dequantize(layer.merged(plan)), nibble::dequantize(nibble::quantize(layer.merged(), plan))) == 0);
        // Bias and activation come last.
        const Eigen::VectorXf bias = data::matrix(10, 1, 9);
        const MatrixXf fused = layer.forward(x, {.bias = bias, .activation = nibble::activation::relu});
        CHECK((fused - (layer.forward(x).colwise() + bias).cwiseMax(0.0f)).cwiseAbs().maxCoeff() < 1e-4f);
    }
}

TEST_CASE("a quantized layer learns what a low rank can say", "[qlora]") {
    const MatrixXf w = data::matrix(16, 64, 11), x = data::matrix(64, 200, 12);
    const nibble::qmatrix base = nibble::quantize<nibble::nf4_double>(w);
    const MatrixXf target = nibble::dequantize(base) + 0.3f * data::matrix(16, 2, 13) * data::matrix(2, 64, 14);
    qlora layer(base, 4, 4.0f);
    const auto lost = [&] { return static_cast<double>((layer.forward(x) - target * x).squaredNorm()) / 200.0; };
    const double before = lost();
    for (int i = 0; i < 400; ++i) {
        const auto g = layer.backward(x, (layer.forward(x) - target * x) / 200.0f);
        layer.a() -= 0.03f * g.a;
        layer.b() -= 0.03f * g.b;
    }
    CHECK(lost() < 1e-3 * before);
    CHECK(data::bits_differing(nibble::dequantize(layer.base()), nibble::dequantize(base)) == 0);
}

TEST_CASE("shapes that do not fit are refused", "[qlora]") {
    const nibble::qmatrix base = nibble::quantize<nibble::nf4_double>(data::matrix(8, 64, 21));
    CHECK(of([&] { qlora(base, 0, 1.0f); }).code == errc::invalid_argument);
    CHECK(of([&] { qlora(base, 2, std::numeric_limits<float>::infinity()); }).code == errc::invalid_argument);
    const mistake m = of([&] { qlora(base, MatrixXf(2, 64), MatrixXf(8, 3), 1.0f); });
    CHECK(m.code == errc::shape_mismatch);
    CHECK(contains(m.message, "8x64"));
    CHECK(contains(m.message, "8x3"));
    const qlora layer(base, 2, 1.0f);
    CHECK(of([&] { static_cast<void>(layer.forward(MatrixXf::Zero(63, 1))); }).code == errc::shape_mismatch);
    CHECK(of([&] { static_cast<void>(layer.backward(MatrixXf::Zero(64, 2), MatrixXf::Zero(8, 1))); }).code == errc::shape_mismatch);
    CHECK(layer.forward(MatrixXf(64, 0)).cols() == 0);
}
