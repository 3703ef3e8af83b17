// AWQ and SmoothQuant: numbers of independent implementations in double, invariance, bad input.
#include <nibble/algorithms/awq.hpp>
#include <nibble/algorithms/smoothquant.hpp>

#include <cmath>
#include <limits>
#include <string>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/golden.hpp"
#include "support/mistake.hpp"

using Eigen::MatrixXd;
using Eigen::MatrixXf;
using extent = nibble::index;
using nibble::errc;

namespace {

const nibble::zero_point zero_point;

template <class Format>
nibble::quantize_plan plan(extent group) {
    return nibble::make_plan(nibble::format_handle(Format::format), zero_point, nibble::per_group{group}, nibble::scales::f32);
}

struct calibration {
    nibble::basic_hessian<double> h;
    nibble::channel_magnitudes seen;
    explicit calibration(const MatrixXf& x) : h(x.rows()), seen(x.rows()) {
        h.add(x);
        seen.add(x.leftCols(x.cols() / 2));
        seen.add(x.rightCols(x.cols() - x.cols() / 2));
    }
};

MatrixXf read(const golden::file& file, const char* name) {
    const std::vector<float> v = file.read_floats(name);
    const auto shape = file.shape(name);
    using rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    return Eigen::Map<const rows>(v.data(), static_cast<extent>(shape[0]), static_cast<extent>(shape[1]));
}

/// Activations with loud channels that depend on each other.
MatrixXf loud(extent channels, extent tokens, std::uint64_t stream) {
    MatrixXf x = data::matrix(channels, 5, stream) * data::matrix(5, tokens, stream + 1) + 0.5f * data::matrix(channels, tokens, stream + 2);
    for (extent k = 3; k < channels; k += 17) x.row(k) *= 20.0f;
    return x;
}

double mean_loss(const MatrixXf& w, const MatrixXf& q, const MatrixXf& x) {
    return ((w - q).cast<double>() * x.cast<double>()).squaredNorm() / static_cast<double>(x.cols());
}

/// diag(1 / s) of the columns: what the weights of W diag(s) stand for.
MatrixXf without(MatrixXf q, const std::vector<float>& s) {
    for (extent k = 0; k < q.cols(); ++k) q.col(k) /= s[static_cast<std::size_t>(k)];
    return q;
}

template <class Format>
void compare(const std::string& prefix, const MatrixXf& w, const MatrixXf& x, extent group) {
    const golden::file file("algorithms/awq");
    const calibration c(x);
    const nibble::awq_scales found = nibble::awq_search_scales(nibble::eigen_view<MatrixXf>(w).get(), c.h, c.seen, plan<Format>(group));
    const std::vector<double> losses = file.read<double>(prefix + ".losses"), scales = file.read<double>(prefix + ".scales");
    REQUIRE(found.losses.size() == 20);
    for (std::size_t i = 0; i < 20; ++i) {
        CAPTURE(i);
        CHECK(found.losses[i] / static_cast<double>(w.rows()) == Approx(losses[i]).epsilon(2e-4));
    }
    for (std::size_t k = 0; k < scales.size(); ++k) CHECK(static_cast<double>(found.scales[k]) == Approx(scales[k]).epsilon(1e-6));
}

}  // namespace

TEST_CASE("losses of every power, and the scales, of an implementation in double", "[awq]") {
    const golden::file file("algorithms/awq");
    compare<nibble::int3>("golden.b3.g16", read(file, "golden.w"), read(file, "golden.x").transpose(), 16);
    compare<nibble::int3>("b3.g32", read(file, "w"), read(file, "x").transpose(), 32);
    compare<nibble::int4>("b4.g32", read(file, "w"), read(file, "x").transpose(), 32);
    const std::vector<double> mean = file.read<double>("b3.g32.x_mean_abs");
    const std::vector<float> ours = calibration(read(file, "x").transpose()).seen.mean();
    for (std::size_t k = 0; k < mean.size(); ++k) CHECK(static_cast<double>(ours[k]) == Approx(mean[k]).epsilon(1e-6));
}

TEST_CASE("ranges that the clip search keeps", "[awq]") {
    const golden::file file("algorithms/awq");
    const MatrixXf w = read(file, "w"), x = read(file, "x").transpose();
    const calibration c(x);
    for (const bool three : {true, false}) {
        const std::string prefix = three ? "b3.g32" : "b4.g32";
        const std::vector<double> scales = file.read<double>(prefix + ".scales"), wanted = file.read<double>(prefix + ".clip_values_after_scaling");
        const std::vector<float> s(scales.begin(), scales.end());
        MatrixXf scaled = w;
        nibble::multiply_columns(scaled, s);
        const MatrixXf limits = nibble::awq_search_clip(nibble::eigen_view<MatrixXf>(scaled).get(), c.h, three ? plan<nibble::int3>(32) : plan<nibble::int4>(32));
        REQUIRE(limits.rows() == 16);
        REQUIRE(limits.cols() == 4);
        // A range that is clipped on both sides has its zero point on a tie, 7 / 2 or 15 / 2: float may go the other way.
        int compared = 0, off = 0;
        for (extent n = 0; n < 16; ++n)
            for (extent g = 0; g < 4; ++g) {
                const double want = wanted[static_cast<std::size_t>(4 * n + g)], have = static_cast<double>(limits(n, g));
                const auto group = scaled.row(n).segment(32 * g, 32).cast<double>();
                const double tie = (std::min)(-group.minCoeff(), group.maxCoeff());
                if (want < tie || have < tie) continue;
                ++compared;
                off += std::fabs(have - want) > 1e-5;
            }
        CHECK(compared >= 20);
        CHECK(off == 0);
    }
}

TEST_CASE("losses of the report are those of the outputs; never more than rounding loses", "[awq]") {
    const MatrixXf w = data::matrix(100, 96, 1), x = loud(96, 150, 2);
    const calibration c(x);
    for (const char* name : {"int3_zero_g64", "int4_g32", "nf4", "mxfp4", "nvfp4", "q4_k", "int4_hqq_g64", "int8_per_tensor"}) {
        CAPTURE(name);
        nibble::awq_options o;
        o.steps = 6;
        o.clip_steps = 8;
        const nibble::awq_result r = nibble::awq(w, c.h, c.seen, *nibble::find_recipe(name), o);
        const MatrixXf q = without(nibble::dequantize(r.weights), r.scales);
        CHECK(r.weights.name() == name);
        CHECK(r.report.loss_after == Approx(mean_loss(w, q, x)).epsilon(1e-4));
        CHECK(r.report.loss_before == Approx(mean_loss(w, nibble::dequantize(nibble::quantize(w, name)), x)).epsilon(1e-4));
        CHECK(r.report.loss_after <= r.report.loss_before);
        CHECK(nibble::output_loss(w, q, c.h) == Approx(r.report.loss_after).epsilon(1e-6));
        CHECK(r.report.tokens == 150);
        CHECK(r.report.losses.size() == 6);
        MatrixXf divided = x;
        nibble::divide_rows(divided, r.scales);
        const MatrixXf y = r.weights * divided;
        CHECK((y - q * x).norm() < 1e-4f * y.norm());
    }
    const nibble::awq_result three = nibble::awq(w, c.h, c.seen, nibble::int3_zero_g64::get());
    CHECK(three.report.loss_after < 0.6 * three.report.loss_before);
    CHECK(three.report.clipped > 0);
    nibble::awq_options o;
    o.most_clipped = 0.0;
    const nibble::awq_result unclipped = nibble::awq(w, c.h, c.seen, nibble::int3_zero_g64::get(), o);
    CHECK(unclipped.report.clipped == 0);
    CHECK(unclipped.report.loss_after == *std::min_element(unclipped.report.losses.begin(), unclipped.report.losses.end()));
    CHECK(unclipped.report.loss_after > three.report.loss_after);
}

TEST_CASE("threads change nothing; progress; stopping", "[awq]") {
    const MatrixXf w = data::matrix(200, 64, 10), x = loud(64, 80, 11);
    const calibration c(x);
    auto backwards = nibble::make_executor(2, [](extent tasks, nibble::task_body body) {
        for (extent i = tasks; i-- > 0;) body(i);
    });
    nibble::awq_options o;
    o.steps = 3;
    const nibble::awq_result one = nibble::awq(w, c.h, c.seen, nibble::int3_zero_g64::get(), o);
    o.executor = &backwards;
    const nibble::awq_result two = nibble::awq(w, c.h, c.seen, nibble::int3_zero_g64::get(), o);
    CHECK(data::bits_differing(nibble::dequantize(one.weights), nibble::dequantize(two.weights)) == 0);
    CHECK(one.report.losses == two.report.losses);
    o.executor = nullptr;
    std::vector<extent> calls;
    o.progress = [&](extent done, extent total) {
        CHECK(total == 200);
        calls.push_back(done);
        return calls.size() < 6;
    };
    const mistake m = of([&] { (void)nibble::awq(w, c.h, c.seen, nibble::int3_zero_g64::get(), o); });
    CHECK(m.code == errc::cancelled);
    CHECK(contains(m.message, "128 of 200 rows"));
    CHECK(calls == std::vector<extent>{64, 128, 192, 200, 64, 128});
}

TEST_CASE("channels that are always zero, and what is refused", "[awq]") {
    MatrixXf w = data::matrix(20, 64, 20), x = loud(64, 50, 21);
    x.row(7).setZero();
    const calibration c(x);
    const nibble::awq_result r = nibble::awq(w, c.h, c.seen, nibble::int4_g32::get());
    for (const float s : r.scales) CHECK((s > 0.0f && std::isfinite(s)));
    CHECK(r.report.loss_after < r.report.loss_before);
    CHECK(nibble::smoothing_factors(c.seen, 0.5, w)[7] == 1.0f);

    const auto refused = [&](const MatrixXf& weights, const calibration& with, nibble::awq_options o = {}) {
        return of([&] { (void)nibble::awq(weights, with.h, with.seen, nibble::int4_g32::get(), o); });
    };
    CHECK(refused(w, calibration(MatrixXf(64, 0))).code == errc::invalid_argument);
    CHECK(contains(refused(w, calibration(MatrixXf(64, 0))).message, "no token"));
    CHECK(refused(w.leftCols(32), c).code == errc::shape_mismatch);
    nibble::awq_options o;
    o.steps = 0;
    CHECK(refused(w, c, o).code == errc::invalid_argument);
    o = {};
    o.most_clipped = 1.0;
    CHECK(refused(w, c, o).code == errc::invalid_argument);
    w(3, 5) = std::numeric_limits<float>::quiet_NaN();
    CHECK(contains(refused(w, c).message, "W(3, 5) is nan"));
    CHECK(of([&] { (void)nibble::smoothing_factors(c.seen, 0.5, w); }).code == errc::non_finite);
    CHECK(refused(data::matrix(4, 64, 22), calibration(MatrixXf::Constant(64, 3, 1e30f))).code == errc::ok);  // double holds that
    nibble::hessian overflowed(64);
    overflowed.add(MatrixXf::Constant(64, 3, 1e30f));
    CHECK(of([&] { (void)nibble::awq(data::matrix(4, 64, 22), overflowed, c.seen, nibble::int4_g32::get()); }).code == errc::out_of_range);

    nibble::channel_magnitudes seen(64);
    x(9, 4) = std::numeric_limits<float>::infinity();
    CHECK(contains(of([&] { seen.add(x); }).message, "X(9, 4) is inf"));
    CHECK(seen.tokens() == 0);
    CHECK(of([&] { (void)seen.mean(); }).code == errc::invalid_argument);
    CHECK(of([&] { (void)nibble::smoothing_factors(seen, 0.5, data::matrix(4, 64, 22)); }).code == errc::invalid_argument);
    CHECK(of([&] { (void)nibble::smoothing_factors(c.seen, 1.5, data::matrix(4, 64, 22)); }).code == errc::invalid_argument);
    CHECK(of([&] { (void)nibble::smoothing_factors(c.seen, 0.5, data::matrix(4, 63, 22)); }).code == errc::shape_mismatch);
    CHECK(of([&] { nibble::channel_magnitudes(3).merge(seen); }).code == errc::shape_mismatch);
    MatrixXf m = MatrixXf::Ones(2, 3);
    CHECK(of([&] { nibble::multiply_columns(m, std::vector<float>{1, 2}); }).code == errc::shape_mismatch);
    CHECK(of([&] { nibble::divide_rows(m, std::vector<float>{1, 0}); }).code == errc::invalid_argument);
    CHECK(m == MatrixXf::Ones(2, 3));
}

TEST_CASE("SmoothQuant: factors of an implementation in double; the product stays as it was", "[smoothquant]") {
    const golden::file file("algorithms/smoothquant");
    const MatrixXf w = read(file, "w"), x = read(file, "x").transpose();
    const calibration c(x);
    const std::pair<double, const char*> alphas[] = {{0.0, "alpha0"}, {0.25, "alpha0.25"}, {0.5, "alpha0.5"}, {0.75, "alpha0.75"}, {0.85, "alpha0.85"}, {1.0, "alpha1"}};
    for (const auto& [alpha, name] : alphas) {
        CAPTURE(name);
        const std::vector<double> wanted = file.read<double>(std::string(name) + ".scales");
        const std::vector<float> s = nibble::smoothing_factors(c.seen, alpha, w);
        for (std::size_t k = 0; k < s.size(); ++k) CHECK(static_cast<double>(s[k]) == Approx(wanted[k]).epsilon(1e-6));
        MatrixXf ws = w, xs = x;
        nibble::multiply_columns(ws, s);
        nibble::divide_rows(xs, s);
        // Both factors are rounded once: each product is off by less than 2^-23 of itself.
        const MatrixXd exact = w.cast<double>() * x.cast<double>(), size = w.cwiseAbs().cast<double>() * x.cwiseAbs().cast<double>();
        CHECK(((ws.cast<double>() * xs.cast<double>() - exact).array().abs() <= 0x1.01p-23 * size.array()).all());
        if (alpha == 0.5)
            for (extent k = 0; k < w.cols(); ++k) CHECK(ws.col(k).cwiseAbs().maxCoeff() == Approx(xs.row(k).cwiseAbs().maxCoeff()).epsilon(1e-6));
    }
    // several layers that read the same activations: the largest weight of all
    MatrixXf other = 3.0f * w;
    CHECK(nibble::smoothing_factors(c.seen, 0.25, w, other) == nibble::smoothing_factors(c.seen, 0.25, other));
    // folded into the layer before and its bias
    MatrixXf v = data::matrix(128, 32, 30), folded = w;
    Eigen::VectorXf bias = data::matrix(128, 1, 31);
    const MatrixXf input = data::matrix(32, 10, 32);
    const MatrixXf before = w * ((v * input).colwise() + bias);
    const std::vector<float> s = nibble::smoothing_factors(c.seen, 0.5, w);
    nibble::multiply_columns(folded, s);
    nibble::divide_rows(v, s);
    nibble::divide_rows(bias, s);
    CHECK((folded * ((v * input).colwise() + bias) - before).norm() < 1e-5f * before.norm());
}
