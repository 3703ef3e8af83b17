// GPTQ: numbers of an independent implementation in double, the identities of its algebra, bad input.
#include <nibble/algorithms/gptq.hpp>

#include <cmath>
#include <limits>
#include <string>
#include <thread>

#include "support/catch.hpp"
#include "support/mistake.hpp"
#include "support/data.hpp"
#include "support/golden.hpp"

using Eigen::MatrixXd;
using Eigen::MatrixXf;
using extent = nibble::index;
using nibble::errc;
using nibble::gptq;
using nibble::gptq_options;
using nibble::gptq_result;
using nibble::hessian;
using exact_hessian = nibble::basic_hessian<double>;

namespace {

template <class Call>
std::pair<errc, std::string> refused(Call call) {
    mistake m = of(call);
    return {m.code, std::move(m.message)};
}

const nibble::absmax absmax;
const nibble::zero_point zero_point;

template <class Format, class Rule>
nibble::quantize_plan plan(const Rule& rule, extent group) {
    return nibble::make_plan(nibble::format_handle(Format::format), rule, nibble::per_group{group}, nibble::scales::f32);
}

// Plain GPTQ as the paper has it: scales of the rule alone.
gptq_options plain(bool act_order, bool static_groups, extent block = 128, double damping = 0.01) {
    gptq_options o;
    o.damping = damping;
    o.act_order = act_order;
    o.static_groups = static_groups;
    o.search_scales = false;
    o.refine_rounds = 0;
    o.block = block;
    return o;
}

template <class Scalar = double>
nibble::basic_hessian<Scalar> seen(const MatrixXf& x) {
    nibble::basic_hessian<Scalar> h(x.rows());
    h.add(x);
    return h;
}

/// Activations that depend on each other: a few directions and noise.
MatrixXf correlated(extent channels, extent tokens, std::uint64_t stream, float noise = 0.3f) {
    return data::matrix(channels, 6, stream) * data::matrix(6, tokens, stream + 1) + noise * data::matrix(channels, tokens, stream + 2);
}

/// (w - q) (2 / T X X^T + d I) (w - q)^T / 2 of all rows, from scratch.
double loss(const MatrixXf& w, const MatrixXf& q, const MatrixXf& x, double damping) {
    const MatrixXd xd = x.cast<double>();
    MatrixXd h = 2.0 / static_cast<double>(x.cols()) * xd * xd.transpose();
    h.diagonal().array() += damping * h.diagonal().mean();
    const MatrixXd d = w.cast<double>() - q.cast<double>();
    return 0.5 * (d * h).cwiseProduct(d).sum();
}

MatrixXf natural(const gptq_result& r) {
    const MatrixXf q = nibble::dequantize(r.weights);
    if (r.order.empty()) return q;
    MatrixXf out(q.rows(), q.cols());
    for (extent j = 0; j < q.cols(); ++j) out.col(r.order[static_cast<std::size_t>(j)]) = q.col(j);
    return out;
}

std::vector<double> to_double(const std::vector<float>& v) { return {v.begin(), v.end()}; }

struct golden_case {
    const char* name;
    int bits;
    bool symmetric, act_order, static_groups;
    double loss;
};

}  // namespace

TEST_CASE("the example worked out by hand", "[gptq]") {
    MatrixXf x(4, 6);
    x << 1, .9f, .1f, -.4f, .7f, 1.2f, .8f, 1.1f, .3f, -.2f, .5f, 1, .2f, -.3f, 1.2f, .6f, .5f, .1f, .1f, .4f, .7f, 1, .6f, -.2f;
    MatrixXf w(1, 4);
    w << .90f, -.35f, .62f, .13f;
    // int3 at scale 1/4: a rule that always says so
    struct quarter {
        [[nodiscard]] nibble::group_scale from_range(float, float, const nibble::code_format&) const { return {0.25f, 0.0f}; }
    };
    const quarter rule;
    const exact_hessian h = seen(x);
    const MatrixXd m = h.matrix();
    CHECK(m(0, 0) == Approx(1.303333).epsilon(1e-6));
    CHECK(m(2, 0) == Approx(.093333).epsilon(1e-5));
    CHECK(m(0, 1) == Approx(1.15).epsilon(1e-6));
    const gptq_result r = gptq(w, h, plan<nibble::int3>(rule, 4), plain(false, true));
    const int codes[] = {3, -1, 3, 0};
    for (extent k = 0; k < 4; ++k) CHECK(static_cast<int>(r.weights.code(0, k)) - 4 == codes[k]);
    CHECK(r.report.damped_loss == Approx(.0052403154).epsilon(1e-6));
    CHECK(loss(w, nibble::dequantize(nibble::quantize(w, plan<nibble::int3>(rule, 4))), x, 0.01) == Approx(.0061707529).epsilon(1e-6));
    CHECK(r.report.loss_before == Approx(.0058798324).epsilon(1e-6));  // both without the damping
    CHECK(r.report.loss_after == Approx(.0049256651).epsilon(1e-6));
    CHECK(r.report.damping == 0.01);
    CHECK(r.report.damping_raised == 0);
    CHECK_FALSE(r.report.few_tokens);
    CHECK(r.order.empty());
}

TEST_CASE("codes, scales and losses of an implementation in double", "[gptq]") {
    const golden::file file("algorithms/gptq");
    const std::vector<double> wv = to_double(file.read_floats("w")), xv = to_double(file.read_floats("x"));
    const auto shape = file.shape("x");
    using rows = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const MatrixXf w = Eigen::Map<const rows>(wv.data(), 32, 128).cast<float>();
    const MatrixXf x = Eigen::Map<const rows>(xv.data(), static_cast<extent>(shape[0]), 128).cast<float>().transpose();
    const exact_hessian h = seen(x);
    const std::vector<double> hv = file.read<double>("hessian");
    CHECK((h.matrix() - Eigen::Map<const rows>(hv.data(), 128, 128)).norm() < 1e-6 * h.matrix().norm());
    const golden_case cases[] = {
        {"gptq.b3.asym.noorder.dynamic", 3, false, false, false, 10.067218755938532},
        {"gptq.b3.restricted.noorder.dynamic", 3, true, false, false, 17.884041625690376},
        {"gptq.b4.asym.actorder.dynamic", 4, false, true, false, 1.2409957799039697},
        {"gptq.b4.asym.actorder.static", 4, false, true, true, 1.424825779347663},
        {"gptq.b4.asym.noorder.dynamic", 4, false, false, false, 1.9709797564238247},
        {"gptq.b4.asym.noorder.static", 4, false, false, true, 2.109274182764523},
        {"gptq.b4.restricted.actorder.dynamic", 4, true, true, false, 1.9436960420240599},
        {"gptq.b4.restricted.actorder.static", 4, true, true, true, 2.2132099243106587},
        {"gptq.b4.restricted.noorder.dynamic", 4, true, false, false, 3.0765628622817625},
        {"gptq.b4.restricted.noorder.static", 4, true, false, true, 3.1979927271567283},
    };
    for (const golden_case& c : cases)
        for (const extent block : {128, 32, 7}) {
            CAPTURE(c.name, block);
            const nibble::quantize_plan p = c.symmetric ? (c.bits == 3 ? plan<nibble::int3>(absmax, 32) : plan<nibble::int4>(absmax, 32))
                                                        : (c.bits == 3 ? plan<nibble::int3>(zero_point, 32) : plan<nibble::int4>(zero_point, 32));
            const gptq_result r = gptq(w, h, p, plain(c.act_order, c.static_groups, block));
            const std::vector<std::uint8_t> codes = file.read<std::uint8_t>(std::string(c.name) + ".codes");
            const std::vector<double> scales = file.read<double>(std::string(c.name) + ".scales");
            const int less = c.symmetric ? 1 : 0;  // codes of [-Q, Q] are stored from 1 on here, from 0 on there
            int different = 0, off = 0;
            for (extent n = 0; n < 32; ++n) {
                for (extent j = 0; j < 128; ++j) {
                    const extent k = r.order.empty() ? j : r.order[static_cast<std::size_t>(j)];
                    different += static_cast<int>(r.weights.code(n, j)) - less != codes[static_cast<std::size_t>(n * 128 + k)];
                }
                for (extent g = 0; g < 4; ++g) {
                    const double wanted = scales[static_cast<std::size_t>(n * 4 + g)];
                    off += std::fabs(static_cast<double>(r.weights.scale(n, g)) - wanted) > 1e-5 * wanted;
                }
            }
            CHECK(different == 0);
            CHECK(off == 0);
            CHECK(r.report.damped_loss == Approx(c.loss).epsilon(1e-4));
            CHECK(r.order.empty() == !(c.act_order && !c.static_groups));
            if (!r.order.empty()) {
                const std::vector<std::int32_t> perm = file.read<std::int32_t>(std::string(c.name) + ".perm");
                CHECK(std::equal(perm.begin(), perm.end(), r.order.begin(), r.order.end()));
            }
            const gptq_result f = gptq(w, seen<float>(x), p, plain(c.act_order, c.static_groups, block));
            CHECK(f.report.damped_loss == Approx(c.loss).epsilon(5e-3));  // float may flip a code near a tie
        }
}

TEST_CASE("I1: reported losses are those of the Hessian; before, after, damped", "[gptq]") {
    for (std::uint64_t i = 0; i < 12; ++i) {
        const extent k = 5 + static_cast<extent>(i) * 13, t = i % 3 == 0 ? k / 2 : 3 * k;
        const MatrixXf w = data::matrix(9, k, 10 + i), x = correlated(k, t, 30 + 3 * i);
        gptq_options o = plain(i % 2 == 0, i % 4 < 2, 16, 0.05);
        o.search_scales = i % 2 == 1;
        const nibble::quantize_plan p = plan<nibble::int3>(zero_point, 16);
        const gptq_result r = gptq(w, seen(x), p, o);
        const MatrixXf q = natural(r);
        CAPTURE(k, t);
        CHECK(r.report.damped_loss == Approx(loss(w, q, x, 0.05)).epsilon(1e-9));
        CHECK(r.report.loss_after == Approx(loss(w, q, x, 0.0)).epsilon(1e-7));
        CHECK(r.report.loss_before == Approx(loss(w, nibble::dequantize(nibble::quantize(w, p)), x, 0.0)).epsilon(1e-7));
        CHECK(r.report.loss_after == Approx(((w - q) * x).cast<double>().squaredNorm() / static_cast<double>(t)).epsilon(1e-3));
        CHECK(r.report.few_tokens == (t < k));
    }
}

TEST_CASE("I2: without clipping the loss is below that of half a step in every column", "[gptq]") {
    const MatrixXf x = correlated(40, 200, 50);
    const MatrixXf w = 0.5f * data::matrix(6, 40, 51).cwiseMax(-1.0f).cwiseMin(1.0f);
    // steps of 1/16 reach far beyond the weights
    struct sixteenth {
        [[nodiscard]] nibble::group_scale from_range(float, float, const nibble::code_format&) const { return {0.0625f, 0.0f}; }
    };
    const sixteenth rule;
    const gptq_result r = gptq(w, seen(x), plan<nibble::int8>(rule, 8), plain(false, true));
    const MatrixXd xd = x.cast<double>();
    MatrixXd h = 2.0 / 200.0 * xd * xd.transpose();
    h.diagonal().array() += 0.01 * h.diagonal().mean();
    // 1 / U_jj^2 with U^T U = H^-1 is the Schur complement of what comes later: det(H[j..]) / det(H[j + 1..])
    double bound = 0.0;
    for (extent j = 0; j < 40; ++j) {
        const extent rest = 40 - j;
        const double logs = h.bottomRightCorner(rest, rest).ldlt().vectorD().array().log().sum() -
                            (rest > 1 ? h.bottomRightCorner(rest - 1, rest - 1).ldlt().vectorD().array().log().sum() : 0.0);
        bound += 0.03125 * 0.03125 * std::exp(logs);
    }
    CHECK(r.report.damped_loss <= 0.5 * 6.0 * bound * (1.0 + 1e-9));
    CHECK(r.report.damped_loss >= 0.1 * 6.0 * bound);  // the bound says something: errors are uniform, a third of it
}

TEST_CASE("I3: a diagonal Hessian changes nothing", "[gptq]") {
    MatrixXf x = MatrixXf::Zero(50, 50);
    for (extent k = 0; k < 50; ++k) x(k, k) = 1.0f + static_cast<float>(k % 7);
    const MatrixXf w = data::matrix(33, 50, 60);
    for (const bool act_order : {false, true}) {
        const nibble::quantize_plan p = plan<nibble::int4>(absmax, 16);
        const gptq_result r = gptq(w, seen<float>(x), p, plain(act_order, true));
        CHECK(data::bits_differing(nibble::dequantize(r.weights), nibble::dequantize(nibble::quantize(w, p))) == 0);
        CHECK(r.report.loss_after == Approx(r.report.loss_before).epsilon(1e-5));
    }
}

TEST_CASE("scales come from the grid of clipped ranges, weighted by the diagonal", "[gptq]") {
    MatrixXf x = MatrixXf::Zero(48, 48);
    nibble::importance squares(48);
    for (extent k = 0; k < 48; ++k) x(k, k) = std::exp2(static_cast<float>((k * 29) % 48) / 6.0f);
    squares.add(x);
    const std::vector<float> weights = squares.weights();
    const MatrixXf w = data::matrix(33, 48, 65, data::distribution::laplace);
    const nibble::quantize_plan p = plan<nibble::int3>(zero_point, 16);
    const nibble::mse grid{nibble::offset_kind::zero_point, 30, 0.0175f, 1};
    const auto searched = [&](const MatrixXf& m, const std::vector<float>& h) {
        return nibble::dequantize(nibble::quantize<nibble::int3>(m, grid, nibble::per_group{16}, {.scale = nibble::scales::f32, .importance = h}));
    };
    gptq_options o;
    o.refine_rounds = 0;
    const gptq_result in_place = gptq(w, seen<double>(x), p, o);  // nothing to compensate: the search alone is left
    CHECK(data::bits_differing(nibble::dequantize(in_place.weights), searched(w, weights)) == 0);
    o.static_groups = false;
    const gptq_result moved = gptq(w, seen<double>(x), p, o);
    REQUIRE(moved.order.size() == 48);
    MatrixXf w2(33, 48);
    std::vector<float> weights2(48);
    for (extent j = 0; j < 48; ++j) {
        w2.col(j) = w.col(moved.order[static_cast<std::size_t>(j)]);
        weights2[static_cast<std::size_t>(j)] = weights[static_cast<std::size_t>(moved.order[static_cast<std::size_t>(j)])];
        if (j > 0) CHECK(weights2[static_cast<std::size_t>(j)] <= weights2[static_cast<std::size_t>(j - 1)]);
    }
    CHECK(data::bits_differing(nibble::dequantize(moved.weights), searched(w2, weights2)) == 0);
    CHECK(in_place.report.loss_after < 0.9 * in_place.report.loss_before);
}

TEST_CASE("I4: block sizes and threads change nothing", "[gptq]") {
    const MatrixXf w = data::matrix(600, 150, 70), x = correlated(150, 400, 71);
    auto threads = nibble::make_executor(3, [](extent tasks, nibble::task_body body) {
        std::thread other([=] { for (extent i = 1; i < tasks; i += 2) body(i); });
        for (extent i = 0; i < tasks; i += 2) body(i);
        other.join();
    });
    for (const bool static_groups : {false, true}) {
        const nibble::quantize_plan p = plan<nibble::int4>(zero_point, 20);
        gptq_options o = plain(true, static_groups);
        const MatrixXf q = nibble::dequantize(gptq(w, seen<double>(x), p, o).weights);
        for (const extent block : {1, 3, 50, 1000}) {
            o.block = block;
            CAPTURE(block, static_groups);
            CHECK(data::bits_differing(nibble::dequantize(gptq(w, seen<double>(x), p, o).weights), q) == 0);
        }
        o.block = 128;
        const gptq_result one = gptq(w, seen<float>(x), p, o);
        o.executor = &threads;
        hessian shared(150);
        shared.add(x, &threads);
        const gptq_result three = gptq(w, shared, p, o);
        CHECK(data::bits_differing(nibble::dequantize(one.weights), nibble::dequantize(three.weights)) == 0);
        CHECK(one.report.damped_loss == three.report.damped_loss);
    }
}

TEST_CASE("I5: the scale of the activations and the order of tokens change nothing", "[gptq]") {
    const MatrixXf w = data::matrix(40, 96, 80), x = correlated(96, 300, 81);
    const nibble::quantize_plan p = plan<nibble::nf4>(absmax, 32);
    const gptq_result r = gptq(w, seen<double>(x), p);
    const MatrixXf q = nibble::dequantize(r.weights);
    for (const float c : {0.125f, 1024.0f})
        CHECK(data::bits_differing(nibble::dequantize(gptq(w, seen<double>(c * x), p).weights), q) == 0);
    CHECK((nibble::dequantize(gptq(w, seen<double>(3.7f * x), p).weights) - q).norm() < 1e-6f * q.norm());  // scales are fitted to a last place
    exact_hessian parts(96), other(96);
    parts.add(x.rightCols(100));
    other.add(x.leftCols(200));
    parts.merge(other);
    CHECK(parts.tokens() == 300);
    CHECK((parts.matrix() - seen<double>(x).matrix()).norm() < 1e-12 * parts.matrix().norm());
    CHECK(data::bits_differing(nibble::dequantize(gptq(w, parts, p).weights), q) == 0);
}

TEST_CASE("I6: weights that a format holds stay as they are", "[gptq]") {
    const nibble::quantize_plan p = plan<nibble::int4>(absmax, 32);
    const MatrixXf w = nibble::dequantize(nibble::quantize(data::matrix(20, 64, 90), p));
    const gptq_result r = gptq(w, seen<float>(correlated(64, 200, 91)), p, plain(true, true));
    CHECK((nibble::dequantize(r.weights) - w).norm() < 1e-6f * w.norm());
    CHECK(r.report.loss_after < 1e-9 * static_cast<double>(w.squaredNorm()));
}

TEST_CASE("I7: dead channels become the code of zero", "[gptq]") {
    MatrixXf x = correlated(64, 200, 100);
    x.row(3).setZero();
    x.row(40).setZero();
    MatrixXf w = data::matrix(20, 64, 102);
    w.col(3) *= 100.0f;  // would ruin the scales of its groups
    for (const bool static_groups : {false, true})
        for (const bool search : {false, true}) {
            gptq_options o = plain(true, static_groups);
            o.search_scales = search;
            const nibble::quantize_plan p = plan<nibble::int4>(zero_point, 16);
            const gptq_result r = gptq(w, seen<double>(x), p, o);
            const MatrixXf q = natural(r);
            CHECK(r.report.dead == std::vector<extent>{3, 40});
            CHECK(q.col(3).isZero(0.0f));
            CHECK(q.col(40).isZero(0.0f));
            MatrixXf live = w;
            live.col(3).setZero();
            live.col(40).setZero();
            CHECK(r.report.loss_after == Approx(loss(live, q, x, 0.0)).epsilon(1e-6));
            CHECK((live - q).norm() < 0.12f * live.norm());
            // zero may be no code of a minimum: what it becomes is not counted
            const nibble::min_offset minimum;
            const gptq_result m = gptq(w, seen<double>(x), plan<nibble::int4>(minimum, 16), o);
            CHECK(m.report.loss_after == Approx(loss(live, natural(m), x, 0.0)).epsilon(1e-6));
            // a dead channel is no reason to raise the damping
            o.damping = 0.0;
            CHECK(gptq(w, seen<double>(x), p, o).report.damping_raised == 0);
        }
}

TEST_CASE("correlated activations: much less is lost than by rounding, in every format", "[gptq]") {
    const MatrixXf w = data::matrix(64, 128, 110), x = correlated(128, 512, 111);
    const hessian h = seen<float>(x);
    for (const char* name : {"int4_g32", "int4_zero_g128", "int4_min_g64", "int4_hqq_g64", "int3_zero_g64", "int2_zero_g32", "nf4", "fp4", "mxfp4",
                             "nvfp4", "nf4_double", "q4_0", "q4_1", "q4_k", "q3_k", "q2_k", "q6_k", "iq4_nl", "int8_per_channel", "fp8_per_channel"}) {
        CAPTURE(name);
        const gptq_result r = gptq(w, h, *nibble::find_recipe(name));
        CAPTURE(r.report.loss_before, r.report.loss_after);
        CHECK(r.report.loss_after < 0.8 * r.report.loss_before);
        CHECK(r.weights.name() == name);
        CHECK(r.order.empty());
        CHECK(r.report.loss_after == Approx(loss(w, nibble::dequantize(r.weights), x, 0.0)).epsilon(1e-3));
    }
}

TEST_CASE("fewer tokens than columns, a singular Hessian: the damping is raised, and said", "[gptq]") {
    const MatrixXf w = data::matrix(16, 64, 120), x = correlated(64, 10, 121);
    gptq_options o;
    o.damping = 0.0;
    for (const bool in_double : {false, true}) {
        const nibble::quantize_plan p = plan<nibble::int4>(absmax, 32);
        const gptq_result r = in_double ? gptq(w, seen<double>(x), p, o) : gptq(w, seen<float>(x), p, o);
        CHECK(r.report.few_tokens);
        CHECK(r.report.tokens == 10);
        CHECK(r.report.damping_raised == 1);
        CHECK(r.report.damping == 0.01);
        CHECK(r.report.loss_after < 0.5 * r.report.loss_before);
        CHECK(nibble::dequantize(r.weights).allFinite());
        CHECK((nibble::dequantize(r.weights) - w).norm() < 0.5f * w.norm());
    }
    // pivots that are nothing but rounding, of either sign
    for (std::uint64_t i = 0; i < 20; ++i) {
        MatrixXf twice = data::matrix(24, 200, 200 + i);
        twice.row(7) = 1.7f * twice.row(20) - 0.3f * twice.row(2);
        const gptq_result r = gptq(data::matrix(8, 24, 300 + i), seen<float>(twice), plan<nibble::int4>(absmax, 24), o);
        CHECK(r.report.damping_raised == 1);
    }
    // one token
    const gptq_result r = gptq(w, seen<float>(x.leftCols(1)), plan<nibble::int4>(absmax, 32));
    CHECK(r.report.loss_after < r.report.loss_before);
}

TEST_CASE("any storage of W, and empty matrices", "[gptq]") {
    const MatrixXf w = data::matrix(16, 64, 130), x = correlated(64, 100, 131);
    const hessian h = seen<float>(x);
    const nibble::recipe& r = nibble::int4_zero_g128::get();
    const MatrixXf q = nibble::dequantize(gptq(w, h, r).weights);
    const Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows = w.cast<double>();
    CHECK(data::bits_differing(nibble::dequantize(gptq(rows, h, r).weights), q) == 0);
    CHECK(data::bits_differing(nibble::dequantize(gptq(2.0f * (0.5f * w), h, r).weights), q) == 0);
    CHECK(gptq(MatrixXf(0, 64), h, r).weights.rows() == 0);
    const gptq_result tall = gptq(data::matrix(16, 1, 132), seen<float>(MatrixXf::Ones(1, 3)), r);
    CHECK(tall.weights.cols() == 1);
}

TEST_CASE("progress, and stopping half-way", "[gptq]") {
    const MatrixXf w = data::matrix(16, 200, 140);
    const hessian h = seen<float>(correlated(200, 300, 141));
    std::vector<extent> calls;
    gptq_options o;
    o.block = 64;
    o.progress = [&](extent done, extent total) {
        CHECK(total == 200);
        calls.push_back(done);
        return true;
    };
    (void)gptq(w, h, *nibble::find_recipe("nf4"), o);
    CHECK(calls == std::vector<extent>{64, 128, 192, 200, 200});  // the last of the refinement
    o.progress = [](extent done, extent) { return done < 128; };
    const MatrixXf before = w;
    const auto stopped = refused([&] { (void)gptq(w, h, *nibble::find_recipe("nf4"), o); });
    CHECK(stopped.first == errc::cancelled);
    CHECK(stopped.second.find("128 of 200") != std::string::npos);
    CHECK(data::bits_differing(before, w) == 0);
}

TEST_CASE("refusals name the values", "[gptq]") {
    const MatrixXf w = data::matrix(16, 64, 150), x = correlated(64, 100, 151);
    const hessian h = seen<float>(x);
    const nibble::recipe& r = nibble::int4_g32::get();
    auto e = refused([&] { (void)gptq(w.leftCols(60), h, r); });
    CHECK(e.first == errc::shape_mismatch);
    CHECK(e.second == "gptq: W is 16x60, the Hessian has 64 channels");
    e = refused([&] { (void)gptq(w, hessian(64), r); });
    CHECK(e.first == errc::invalid_argument);
    CHECK(e.second.find("no token") != std::string::npos);
    e = refused([&] { (void)gptq(w, seen<float>(MatrixXf::Zero(64, 7)), r); });
    CHECK(e.first == errc::invalid_argument);
    CHECK(e.second.find("7 tokens") != std::string::npos);
    e = refused([&] { (void)gptq(w, seen<float>(1e25f * x), r); });
    CHECK(e.first == errc::out_of_range);
    for (const double bad : {-0.5, std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()})
        CHECK(refused([&] { (void)gptq(w, h, r, {.damping = bad}); }).first == errc::invalid_argument);
    CHECK(refused([&] { (void)gptq(w, h, r, {.refine_rounds = -1}); }).first == errc::invalid_argument);
    CHECK(refused([&] { (void)gptq(w, h, r, {.block = 0}); }).first == errc::invalid_argument);
    CHECK(refused([&] { (void)gptq(w, h, *nibble::find_recipe("int8_per_tensor")); }).first == errc::unsupported);
    CHECK(refused([&] { (void)gptq(w, h, *nibble::find_recipe("bf16")); }).first == errc::unsupported);
    for (const bool measure : {false, true}) {
        MatrixXf nan = w;
        nan(3, 17) = std::numeric_limits<float>::quiet_NaN();
        gptq_options o;
        o.measure_before = measure;
        e = refused([&] { (void)gptq(nan, h, r, o); });
        CHECK(e.first == errc::non_finite);
        CHECK(e.second.find("(3, 17) is nan") != std::string::npos);
    }
    MatrixXf inf = x;
    inf(5, 6) = -std::numeric_limits<float>::infinity();
    hessian sums(64);
    e = refused([&] { sums.add(inf); });
    CHECK(e.first == errc::non_finite);
    CHECK(e.second.find("X(5, 6) is -inf") != std::string::npos);
    CHECK(sums.tokens() == 0);
    CHECK(sums.matrix().isZero(0.0f));
    CHECK(refused([&] { sums.add(x.topRows(3)); }).first == errc::shape_mismatch);
    CHECK(refused([&] { sums.merge(hessian(3)); }).first == errc::shape_mismatch);
    CHECK(refused([&] { hessian(-1); }).first == errc::invalid_argument);
}
