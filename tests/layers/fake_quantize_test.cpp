// Fake quantization: the worked example, straight-through gradients against finite differences of what they are the
// gradients of, the deployed matrix bit for bit, bad input.
#include <nibble/layers/fake_quantize.hpp>
#include <nibble/nibble.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/mistake.hpp"

using Eigen::MatrixXf;
using extent = nibble::index;
using nibble::errc;
using nibble::fake_quantized;
using nibble::fake_quantized_gradient;
using nibble::granularity;
using nibble::offset_kind;
using nibble::quantization_grid;
using nibble::straight_through;

namespace {

/// Scales and offsets that clip some and not others.
quantization_grid grid_for(const MatrixXf& x, const nibble::code_format& format, offset_kind kind, granularity group, std::uint64_t stream) {
    quantization_grid g = nibble::lsq_grid(x, format, group);
    g.kind = kind;
    data::random r(stream);
    const int last = g.last_code();
    for (extent i = 0; i < g.scale.size(); ++i) {
        float& s = g.scale.data()[i];
        s *= static_cast<float>(0.2 + 0.4 * r.unit());
        g.offset.data()[i] = kind == offset_kind::minimum ? -s * static_cast<float>(last) * static_cast<float>(0.3 + 0.4 * r.unit())
                                                          : static_cast<float>(last * r.unit());
    }
    return g;
}

// What straight-through gradients are the derivatives of: the rounding error is a constant, the clip is not. In double.
struct surrogate {
    offset_kind kind;
    int last;
    double lost;  // RNE(t) - t, frozen
    bool inside;
    double q;     // where clipped
    [[nodiscard]] double operator()(double x, double s, double o) const {
        if (kind == offset_kind::minimum) return inside ? s * ((x - o) / s + lost) + o : s * q + o;
        // A clipped code is u = 0 or n, so s (u - z) moves with z.
        return inside ? s * (x / s + lost) : s * (q - o);
    }
};

surrogate freeze(const quantization_grid& g, straight_through rule, double x, double s, double o) {
    const bool minimum = g.kind == offset_kind::minimum;
    const double t = minimum ? (x - o) / s : x / s;
    const double u = std::nearbyint(t) + (minimum ? 0.0 : o);
    const double last = g.last_code();
    const bool inside = rule == straight_through::rounded ? u >= 0 && u <= last : t > (minimum ? 0.0 : -o) && t < (minimum ? last : last - o);
    return {g.kind, g.last_code(), std::nearbyint(t) - t, inside, u < 0 ? 0.0 : u > last ? last : u};
}

template <class F>
double slope(F f, double at) {
    const double h = 1e-5 * std::max(1e-3, std::abs(at));
    return (f(at + h) - f(at - h)) / (2 * h);
}

}  // namespace

TEST_CASE("the worked example of LSQ", "[fake_quantize]") {
    MatrixXf v(1, 5);
    v << .3f, -1, 2.6f, -.9f, .05f;
    quantization_grid g = nibble::lsq_grid(v, nibble::int3::format, nibble::per_tensor{});
    CHECK(g.scale(0, 0) == Approx(1.1200595222).epsilon(1e-6));
    CHECK(g.offset(0, 0) == 4.0f);
    g.scale(0, 0) = 0.5f;
    const float expected[] = {.5f, -1, 1.5f, -1, 0}, by_scale[] = {.4f, 0, 3, -.2f, -.1f}, mask[] = {1, 1, 0, 1, 1};
    const MatrixXf got = fake_quantized(v, g);
    for (const straight_through rule : {straight_through::rounded, straight_through::unrounded})
        for (extent i = 0; i < 5; ++i) {
            MatrixXf dy = MatrixXf::Zero(1, 5);
            dy(0, i) = 1.0f;
            const auto d = fake_quantized_gradient(v, g, dy, rule);
            CHECK(got(0, i) == expected[i]);
            CHECK(d.scale(0, 0) == Approx(by_scale[i]).margin(1e-6));
            CHECK(d.x(0, i) == mask[i]);
            CHECK(d.x.sum() == mask[i]);
        }
    CHECK(nibble::lsq_gradient_factor(5, 3) == Approx(.2581988897).epsilon(1e-9));
    // Between the last code and half a step beyond it the two rules differ.
    v << 1.7f, 1.4f, 0, 0, 0;
    const MatrixXf ones = MatrixXf::Ones(1, 5);
    const auto torch = fake_quantized_gradient(v, g, ones, straight_through::rounded), lsq = fake_quantized_gradient(v, g, ones, straight_through::unrounded);
    CHECK(torch.x(0, 0) == 1.0f);
    CHECK(lsq.x(0, 0) == 0.0f);
    CHECK(torch.scale(0, 0) == Approx(3 - 3.4 + 3 - 2.8).margin(1e-6));
    CHECK(lsq.scale(0, 0) == Approx(3 + 3 - 2.8).margin(1e-6));
}

TEST_CASE("gradients are the slopes of what they stand for", "[fake_quantize]") {
    for (const offset_kind kind : {offset_kind::zero_point, offset_kind::minimum})
        for (const granularity group : {granularity{0, 0}, granularity{1, 0}, granularity{1, 8}, granularity{3, 5}})
            for (const straight_through rule : {straight_through::rounded, straight_through::unrounded}) {
                const MatrixXf x = data::matrix(7, 19, 5), dy = data::matrix(7, 19, 6);
                const quantization_grid g = grid_for(x, nibble::int3::format, kind, group, 7);
                const auto d = fake_quantized_gradient(x, g, dy, rule);
                const extent tall = group.rows == 0 ? 7 : group.rows, wide = group.cols == 0 ? 19 : group.cols;
                Eigen::MatrixXd by_scale = Eigen::MatrixXd::Zero(g.scale.rows(), g.scale.cols()), by_offset = by_scale;
                int clipped = 0;
                for (extent n = 0; n < 7; ++n)
                    for (extent k = 0; k < 19; ++k) {
                        double o = static_cast<double>(g.offset(n / tall, k / wide));
                        if (kind == offset_kind::zero_point) o = std::nearbyint(o);
                        const double v = static_cast<double>(x(n, k)), s = static_cast<double>(g.scale(n / tall, k / wide)), up = static_cast<double>(dy(n, k));
                        const surrogate f = freeze(g, rule, v, s, o);
                        clipped += f.inside ? 0 : 1;
                        const double by_x = slope([&](double at) { return f(at, s, o); }, v);
                        CHECK(static_cast<double>(d.x(n, k)) == Approx(up * by_x).margin(1e-7));
                        by_scale(n / tall, k / wide) += up * slope([&](double at) { return f(v, at, o); }, s);
                        by_offset(n / tall, k / wide) += up * slope([&](double at) { return f(v, s, at); }, o);
                    }
                CHECK(clipped > 5);
                CHECK(clipped < 80);
                CHECK((d.scale.cast<double>() - by_scale).cwiseAbs().maxCoeff() < 1e-5);
                CHECK((d.offset.cast<double>() - by_offset).cwiseAbs().maxCoeff() < 1e-5);
            }
}

TEST_CASE("the forward pass is what the deployed matrix decodes to", "[fake_quantize]") {
    const nibble::code_format* formats[] = {&nibble::int2::format, &nibble::int3::format, &nibble::int4::format, &nibble::int5::format,
                                            &nibble::int6::format, &nibble::int8::format};
    for (const nibble::code_format* f : formats)
        for (const offset_kind kind : {offset_kind::zero_point, offset_kind::minimum})
            for (const granularity group : {granularity{0, 0}, granularity{1, 0}, granularity{1, 12}, granularity{16, 16}, granularity{5, 7}}) {
                CAPTURE(f->name, static_cast<int>(kind), group.rows, group.cols);
                const MatrixXf w = data::matrix(35, 50, 11, data::distribution::laplace);
                const quantization_grid g = grid_for(w, *f, kind, group, 12);
                const nibble::qmatrix q = nibble::quantize(w, g);
                CHECK(data::bits_differing(nibble::dequantize(q), fake_quantized(w, g)) == 0);
                // and back: the grid of the matrix is the grid, zero points rounded
                const quantization_grid again = nibble::grid_of(q);
                CHECK(data::bits_differing(again.scale, g.scale) == 0);
                CHECK(data::bits_differing(fake_quantized(w, again), fake_quantized(w, g)) == 0);
            }
    // Grids of rules that look at the range: nothing is clipped, so the values are those of quantize() itself.
    const MatrixXf w = data::matrix(20, 64, 13);
    for (const char* name : {"int8_per_channel", "int8_per_tensor", "int4_zero_g128", "int2_min_g32", "int8_zero_point"}) {
        CAPTURE(name);
        const nibble::qmatrix q = nibble::quantize(w, name);
        CHECK(data::bits_differing(nibble::dequantize(q), fake_quantized(w, nibble::grid_of(q))) == 0);
    }
    // Activations: the codes of a fixed rule.
    const MatrixXf x = data::matrix(40, 9, 14).cwiseMax(0.0f);
    const quantization_grid g = nibble::lsq_grid(x, nibble::int8::format, nibble::per_tensor{}, false);
    CHECK(g.offset(0, 0) == 0.0f);
    const auto a = nibble::quantize_activations(x, nibble::activation_rule::fixed(g.scale(0, 0), 0, nibble::activation_type::u8));
    const MatrixXf fake = fake_quantized(x, g);
    for (extent j = 0; j < 9; ++j)
        for (extent k = 0; k < 40; ++k) CHECK(fake(k, j) == g.scale(0, 0) * static_cast<float>(a.code(k, j)));
}

TEST_CASE("a layer learns a scale, and deploys what it learned", "[fake_quantize]") {
    const MatrixXf w = data::matrix(16, 64, 21);
    quantization_grid start = nibble::lsq_grid(w, nibble::int3::format, nibble::per_channel{});
    start.scale *= 3.0f;
    nibble::fake_quantize layer(start);
    const auto lost = [&](const nibble::fake_quantize& l) { return static_cast<double>((fake_quantized(w, l.grid()) - w).squaredNorm()); };
    const double before = lost(layer);
    for (int i = 0; i < 200; ++i) {
        const MatrixXf d = layer.forward(w) - w;
        const MatrixXf dx = layer.backward(d);
        CHECK(dx.rows() == 16);
        layer.step(0.01f);
    }
    CHECK(lost(layer) < 0.3 * before);
    CHECK((layer.grid().offset.array() == 4.0f).all());  // offsets stay unless asked
    CHECK(layer.scale_gradient().cwiseAbs().sum() == 0.0f);
    CHECK(data::bits_differing(nibble::dequantize(nibble::quantize(w, layer.grid())), layer.forward(w)) == 0);
    // Gradients add up, with the factor of LSQ.
    static_cast<void>(layer.backward(MatrixXf::Ones(16, 64)));
    const MatrixXf once = layer.scale_gradient();
    static_cast<void>(layer.backward(MatrixXf::Ones(16, 64)));
    CHECK(layer.scale_gradient() == 2.0f * once);
    const auto plain = fake_quantized_gradient(w, layer.grid(), MatrixXf::Ones(16, 64));
    CHECK(once(3, 0) == Approx(static_cast<double>(plain.scale(3, 0)) / std::sqrt(64.0 * 3.0)).epsilon(1e-6));
    // A step of any size leaves the scale positive.
    layer.step(1e30f);
    CHECK((layer.grid().scale.array() > 0.0f).all());
    // LSQ+: a minimum above half of the data goes down.
    const MatrixXf x = data::matrix(1, 400, 22).array() + 3.0f;
    quantization_grid off = nibble::lsq_grid(x, nibble::int4::format, nibble::per_tensor{}, false);
    off.kind = offset_kind::minimum;
    off.offset(0, 0) = 3.0f;
    nibble::fake_quantize plus(off, {.learn_offset = true});
    for (int i = 0; i < 300; ++i) {
        static_cast<void>(plus.backward(plus.forward(x) - x));
        plus.step(0.002f);
    }
    CHECK(plus.grid().offset(0, 0) < 1.5f);
    CHECK(plus.grid().offset(0, 0) > 0.0f);
    CHECK((plus.forward(x) - x).squaredNorm() < 0.5f * (fake_quantized(x, off) - x).squaredNorm());
}

TEST_CASE("PACT, and signs", "[fake_quantize]") {
    MatrixXf x(1, 6), dy(1, 6);
    x << -1, 0, .5f, 2, 2.5f, 1.9f;
    dy << 1, 2, 4, 8, 16, 32;
    CHECK(nibble::pact(x, 2.0f) == (MatrixXf(1, 6) << 0, 0, .5f, 2, 2, 1.9f).finished());
    const nibble::pact_gradients g = nibble::pact_gradient(x, 2.0f, dy);
    CHECK(g.alpha == 24.0);
    CHECK(g.x == (MatrixXf(1, 6) << 0, 0, 4, 0, 0, 32).finished());
    // The slope by alpha of the sum of dy * pact(x, alpha), from the right: 2.5 alone is beyond it.
    const double h = 0x1p-10;
    const double rise = static_cast<double>((nibble::pact(x, 2.0f + static_cast<float>(h)) - nibble::pact(x, 2.0f)).cwiseProduct(dy).sum()) / h;
    CHECK(rise == Approx(16.0));
    CHECK(nibble::clipped_gradient(x, dy) == (MatrixXf(1, 6) << 1, 2, 4, 0, 0, 0).finished());
    CHECK(of([&] { static_cast<void>(nibble::pact(x, 0.0f)); }).code == errc::invalid_argument);
    CHECK(of([&] { static_cast<void>(nibble::pact_gradient(x, 1.0f, dy.leftCols(2))); }).code == errc::shape_mismatch);
    CHECK(of([&] { static_cast<void>(nibble::clipped_gradient(x, dy.leftCols(2))); }).code == errc::shape_mismatch);
}

TEST_CASE("bad grids and bad input say what is wrong", "[fake_quantize]") {
    MatrixXf x = data::matrix(4, 6, 31);
    quantization_grid g = nibble::lsq_grid(x, nibble::int4::format, nibble::per_channel{});
    const auto said = [&](const quantization_grid& grid) { return of([&] { static_cast<void>(fake_quantized(x, grid)); }); };
    quantization_grid bad = g;
    bad.scale.conservativeResize(3, 1);
    CHECK(said(bad).code == errc::shape_mismatch);
    CHECK(contains(said(bad).message, "4x6"));
    for (const float s : {0.0f, -1.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(), 1e-42f}) {
        bad = g;
        bad.scale(2, 0) = s;
        CHECK(said(bad).code == errc::invalid_argument);
        CHECK(contains(said(bad).message, "tile (2, 0)"));
        CHECK(of([&] { static_cast<void>(nibble::quantize(x, bad)); }).code == errc::invalid_argument);
    }
    bad = g;
    bad.kind = offset_kind::float_zero;
    CHECK(said(bad).code == errc::unsupported);
    bad = g;
    bad.format = nibble::nf4::format;
    CHECK(said(bad).code == errc::unsupported);
    bad.format = nibble::ternary::format;
    CHECK(said(bad).code == errc::unsupported);
    CHECK(of([&] { static_cast<void>(nibble::grid_of(nibble::quantize<nibble::nf4>(x))); }).code == errc::unsupported);
    CHECK(of([&] { static_cast<void>(fake_quantized_gradient(x, g, x.leftCols(3))); }).code == errc::shape_mismatch);
    x(1, 5) = std::numeric_limits<float>::quiet_NaN();
    const mistake nan = said(g);
    CHECK(nan.code == errc::non_finite);
    CHECK(contains(nan.message, "X(1, 5)"));
    // Nothing at all, and nothing but zeros.
    CHECK(fake_quantized(MatrixXf(0, 3), nibble::lsq_grid(MatrixXf(0, 3), nibble::int4::format, nibble::per_channel{})).size() == 0);
    const MatrixXf zeros = MatrixXf::Zero(2, 8);
    const quantization_grid none = nibble::lsq_grid(zeros, nibble::int4::format, nibble::per_channel{});
    CHECK(fake_quantized(zeros, none) == zeros);
    CHECK(nibble::grid_of(nibble::quantize(zeros, "int8_per_channel")).scale(0, 0) > 0.0f);
}
