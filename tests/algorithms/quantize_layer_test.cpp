// quantize_layer and refine: every combination multiplies to about W X, losses are those of the outputs, refinement never loses.
#include <nibble/algorithms/quantize_layer.hpp>

#include <limits>
#include <string>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/mistake.hpp"

using Eigen::MatrixXd;
using Eigen::MatrixXf;
using extent = nibble::index;
using nibble::errc;
using nibble::layer_calibration;
using nibble::layer_options;
using nibble::layer_rounding;
using nibble::layer_scaling;
using nibble::quantize_layer;

namespace {

/// Activations with loud channels that depend on each other.
MatrixXf loud(extent channels, extent tokens, std::uint64_t stream) {
    MatrixXf x = data::matrix(channels, 5, stream) * data::matrix(5, tokens, stream + 1) + 0.5f * data::matrix(channels, tokens, stream + 2);
    for (extent k = 3; k < channels; k += 17) x.row(k) *= 20.0f;
    return x;
}

layer_calibration seen(const MatrixXf& x) {
    layer_calibration c(x.rows());
    c.add(x);
    return c;
}

/// Of (w - q) (X X^T / T + d I) (w - q)^T, from scratch.
double loss(const MatrixXf& w, const MatrixXf& q, const MatrixXf& x, double damping) {
    const MatrixXd d = w.cast<double>() - q.cast<double>(), xd = x.cast<double>();
    const double tokens = static_cast<double>(x.cols());
    return (d * xd).squaredNorm() / tokens + damping * xd.rowwise().squaredNorm().mean() / tokens * d.squaredNorm();
}

}  // namespace

TEST_CASE("every combination: the product, and the losses of the report", "[quantize_layer]") {
    const MatrixXf w = data::matrix(40, 96, 1), x = loud(96, 200, 2);
    const layer_calibration c = seen(x);
    const MatrixXf y = w * x;
    for (const layer_scaling scaling : {layer_scaling::none, layer_scaling::smooth, layer_scaling::awq})
        for (const bool rotate : {false, true})
            for (const layer_rounding rounding : {layer_rounding::nearest, layer_rounding::hqq, layer_rounding::gptq}) {
                CAPTURE(static_cast<int>(scaling), rotate, static_cast<int>(rounding));
                layer_options o;
                o.scaling = scaling;
                o.rotate = rotate;
                o.rounding = rounding;
                o.awq.steps = 5;
                o.gptq.static_groups = rotate;
                const nibble::quantized_layer q = quantize_layer(w, c, nibble::int4_hqq_g64::get(), o);
                const std::vector<nibble::layer_loss>& losses = q.report.losses;
                CHECK(q.scales.empty() == (scaling == layer_scaling::none));
                CHECK(q.rotation.has_value() == rotate);
                CHECK(q.order.empty() == !(rounding == layer_rounding::gptq && !rotate));
                CHECK(q.report.gptq.has_value() == (rounding == layer_rounding::gptq));
                CHECK(std::string(losses.front().step) == "nearest");
                CHECK(losses.size() >= 1u + (scaling != layer_scaling::none) + rotate + (rounding != layer_rounding::nearest));
                const MatrixXf product = q * x;
                CHECK(losses.back().loss == Approx((product - y).cast<double>().squaredNorm() / 200.0).epsilon(5e-3));
                CHECK(losses.front().loss == Approx(loss(w, nibble::dequantize(nibble::quantize(w, "int4_hqq_g64")), x, 0.0)).epsilon(1e-3));
                CHECK((product - y).norm() < 0.2f * y.norm());
                if (rounding == layer_rounding::gptq) CHECK(losses.back().loss < 0.5 * losses.front().loss);
            }
    layer_options o;
    o.scaling = layer_scaling::awq;
    o.rounding = layer_rounding::nearest;
    const nibble::quantized_layer q = quantize_layer(w, c, nibble::int3_zero_g64::get(), o);
    const nibble::awq_result a = nibble::awq(w, c.moments, c.magnitudes, nibble::int3_zero_g64::get());
    CHECK(data::bits_differing(nibble::dequantize(q.weights), nibble::dequantize(a.weights)) == 0);
    CHECK(q.report.losses.back().loss == Approx(a.report.loss_after).epsilon(1e-4));
}

TEST_CASE("what is refused", "[quantize_layer]") {
    MatrixXf w = data::matrix(8, 92, 10);
    const layer_calibration c = seen(loud(92, 50, 11));
    const auto refused = [&](const layer_calibration& with, layer_options o = {}) { return of([&] { (void)quantize_layer(w, with, nibble::int4_g32::get(), o); }); };
    layer_options o;
    o.rotate = true;
    CHECK(refused(c, o).code == errc::unsupported);
    CHECK(contains(refused(c, o).message, "order 92"));
    o = {};
    o.rounding = layer_rounding::hqq;
    CHECK(refused(c, o).code == errc::unsupported);
    CHECK(refused(layer_calibration(92)).code == errc::invalid_argument);
    CHECK(refused(layer_calibration(64)).code == errc::shape_mismatch);
    o = {};
    o.gptq.progress = [](extent, extent) { return false; };
    CHECK(refused(c, o).code == errc::cancelled);
    CHECK(of([&] { (void)(quantize_layer(w, c, nibble::int4_g32::get()) * data::matrix(91, 2, 12)); }).code == errc::shape_mismatch);
    layer_calibration bad(92);
    MatrixXf x = loud(92, 5, 13);
    x(4, 2) = std::numeric_limits<float>::quiet_NaN();
    CHECK(contains(of([&] { bad.add(x); }).message, "X(4, 2) is nan"));
    CHECK(bad.moments.tokens() == 0);
    CHECK(bad.magnitudes.tokens() == 0);
    w(3, 7) = std::numeric_limits<float>::infinity();
    CHECK(contains(refused(c).message, "W(3, 7) is inf"));
}

TEST_CASE("refinement lowers the damped loss in every format, and reports it", "[refine]") {
    const MatrixXf w = data::matrix(70, 128, 20), x = loud(128, 300, 21);
    nibble::basic_hessian<double> h(128);
    h.add(x);
    nibble::refine_options o;
    o.damping = 0.05;
    for (const char* name : {"int4_g32", "int3_zero_g64", "int4_min_g64", "int4_hqq_g64", "nf4", "mxfp4", "nvfp4", "nf4_double", "q4_k", "q3_k", "q2_k",
                             "int8_per_tensor", "fp8_per_channel", "ternary_twn", "binary_g128"}) {
        CAPTURE(name);
        const nibble::qmatrix q = nibble::quantize(w, name);
        const nibble::refine_result r = nibble::refine(w, q, h, o);
        CHECK(r.weights.name() == name);
        CHECK(r.weights.bits_per_weight() == q.bits_per_weight());
        CHECK(r.report.damped_before == Approx(loss(w, nibble::dequantize(q), x, 0.05)).epsilon(1e-6));
        CHECK(r.report.damped_after == Approx(loss(w, nibble::dequantize(r.weights), x, 0.05)).epsilon(1e-6));
        CHECK(r.report.loss_after == Approx(loss(w, nibble::dequantize(r.weights), x, 0.0)).epsilon(1e-6));
        CHECK(r.report.damped_after < 0.9 * r.report.damped_before);
        const bool fitted = q.scheme().storage == nibble::scale_storage::f16 || q.scheme().storage == nibble::scale_storage::f32;
        CHECK((r.report.scales_changed > 0) == (fitted && q.layout().block_rows == 1));
        // every code is where no other code of its column alone would lose less: once more changes almost nothing
        nibble::refine_options again = o;
        again.rounds = 1;
        again.sweeps = 50;
        const nibble::refine_result settled = nibble::refine(w, r.weights, h, again);
        CHECK(nibble::refine(w, settled.weights, h, again).report.codes_changed == 0);
        again.rounds = 0;
        CHECK(data::bits_differing(nibble::dequantize(nibble::refine(w, q, h, again).weights), nibble::dequantize(q)) == 0);
    }
}

TEST_CASE("refinement after gptq, in its order of columns; threads; dead channels; refusals", "[refine]") {
    MatrixXf w = data::matrix(70, 64, 30), x = loud(64, 150, 31);
    x.row(9).setZero();
    nibble::basic_hessian<double> h(64);
    h.add(x);
    nibble::gptq_options g;
    g.damping = 0.05;
    g.refine_rounds = 0;
    for (const bool static_groups : {true, false}) {
        g.static_groups = static_groups;
        const nibble::gptq_result swept = nibble::gptq(w, h, nibble::int3_zero_g64::get(), g);
        nibble::gptq_options both = g;
        both.refine_rounds = 2;
        const nibble::gptq_result refined = nibble::gptq(w, h, nibble::int3_zero_g64::get(), both);
        nibble::refine_options o;
        o.damping = 0.05;
        o.order = swept.order;
        const nibble::refine_result r = nibble::refine(w, swept.weights, h, o);
        CHECK(swept.order == refined.order);
        CHECK(data::bits_differing(nibble::dequantize(r.weights), nibble::dequantize(refined.weights)) == 0);
        CHECK(refined.report.damped_loss == Approx(r.report.damped_after).epsilon(1e-9));
        CHECK(refined.report.damped_loss < 0.99 * swept.report.damped_loss);
        CHECK(r.report.damped_before == Approx(swept.report.damped_loss).epsilon(1e-6));
        auto backwards = nibble::make_executor(2, [](extent tasks, nibble::task_body body) {
            for (extent i = tasks; i-- > 0;) body(i);
        });
        o.executor = &backwards;
        CHECK(data::bits_differing(nibble::dequantize(nibble::refine(w, swept.weights, h, o).weights), nibble::dequantize(r.weights)) == 0);
        CHECK(nibble::dequantize(r.weights).col(swept.order.empty() ? 9 : std::find(swept.order.begin(), swept.order.end(), 9) - swept.order.begin()).isZero(0.0f));
    }
    const nibble::qmatrix q = nibble::quantize(w, "int4_g32");
    const auto refused = [&](const nibble::qmatrix& of_q, const nibble::refine_options& o) { return of([&] { (void)nibble::refine(w, of_q, h, o); }).code; };
    nibble::refine_options o;
    o.order = {1, 2};
    CHECK(refused(q, o) == errc::invalid_argument);
    o.order.assign(64, 3);
    CHECK(refused(q, o) == errc::invalid_argument);
    o = {};
    o.rounds = -1;
    CHECK(refused(q, o) == errc::invalid_argument);
    o = {};
    CHECK(refused(nibble::quantize(w, "fp16"), o) == errc::unsupported);
    CHECK(refused(q.row_block(16, 32), o) == errc::shape_mismatch);
    CHECK(of([&] { (void)nibble::refine(w, q, nibble::hessian(64), o); }).code == errc::invalid_argument);
    o.progress = [](extent done, extent total) { return done < total; };
    CHECK(refused(q, o) == errc::cancelled);
    CHECK(nibble::automatic_damping(100, 0) == 1.0);
    CHECK(nibble::automatic_damping(384, 256) == Approx(0.61));
    CHECK(nibble::automatic_damping(4096, 262144) == Approx(0.01625));
}

TEST_CASE("zero points on either side of the range's own", "[mse]") {
    const MatrixXf w = data::matrix(30, 64, 40, data::distribution::laplace);
    const nibble::mse ranges{nibble::offset_kind::zero_point, 20, 0.025f}, both{nibble::offset_kind::zero_point, 20, 0.025f, 1};
    const auto lost = [&](const nibble::mse& rule) { return (nibble::dequantize(nibble::quantize<nibble::int3>(w, rule, nibble::per_group{32}, {.scale = nibble::scales::f32})) - w).rowwise().squaredNorm().eval(); };
    const Eigen::VectorXf one = lost(ranges), three = lost(both);
    CHECK((three.array() <= one.array() * 1.000001f).all());
    CHECK(three.sum() < 0.998f * one.sum());
}
