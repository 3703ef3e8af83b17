// Products of hostile numbers: outliers, NaN and Inf, zeros of both signs, and magnitudes at both ends of float.
#include <nibble/nibble.hpp>

#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/reference.hpp"

using Eigen::MatrixXf;
using nibble::compute;
using nibble::qmatrix;
using reference::tally;
using Index = nibble::index;

namespace {

constexpr std::array<compute, 4> classes = {compute::strict_f32, compute::f32, compute::a16, compute::a8};

// From bits: with -ffast-math the compiler may fold away what std::numeric_limits gives.
const float inf = reference::float_from_bits(0x7f800000u);
const float quiet_nan = reference::float_from_bits(0x7fc12345u);
const float negative_nan = reference::float_from_bits(0xffc00001u);

std::uint32_t bits(float x) { return reference::bits_from_float(x); }
bool is_nan(float x) { return reference::is_nan_bits(bits(x)); }

/// The product at every level, which must be the formula; adds what differs to the tally and returns it.
MatrixXf checked_product(const std::string& what, const qmatrix& w, const MatrixXf& x, compute c, tally& t) {
    const reference::weights read = reference::read(w);
    MatrixXf y(w.rows(), x.cols());
    for_each_isa([&](nibble::isa level) {
        y.setConstant(12345.0f);
        nibble::gemm(w, x, y, {.compute = c});
        for (Index j = 0; j < x.cols(); ++j) {
            const reference::formula_result wanted = reference::formula(read, reference::column(x, j), c);
            for (Index n = 0; n < w.rows(); ++n)
                t.check(bits(y(n, j)) == bits(wanted.y[static_cast<std::size_t>(n)]), [&] {
                    return what + " " + nibble::name_of(c) + " at " + nibble::name_of(level) + ": Y(" +
                           std::to_string(n) + ", " + std::to_string(j) + ") has bits " +
                           reference::hex(bits(y(n, j))) + ", the formula " +
                           reference::hex(bits(wanted.y[static_cast<std::size_t>(n)]));
                });
        }
    });
    return y;
}

/// A column of length k whose neighbours of the outlier are +-1 or 0.
MatrixXf with_outlier(Index k, float outlier) {
    MatrixXf x(k, 1);
    for (Index i = 0; i < k; ++i) x(i, 0) = i % 2 == 0 ? 1.0f : -1.0f;
    x(k / 2, 0) = outlier;
    return x;
}

}  // namespace

TEST_CASE("an outlier goes to strict_f32 exactly when it would hide its neighbours", "[gemm][extremes]") {
    // activations.hpp: a sub-block whose mean |q| of the rest is below 256. The rest is 1, so q of it is 8355711 /
    // outlier, rounded: 256 up to an outlier of about 2^15.
    CAPTURE(data::seed());
    const qmatrix w = nibble::quantize<nibble::int8>(data::matrix(17, 256, 1));
    tally t;
    int strict = 0;
    for (int e = 10; e <= 24; ++e) {
        const MatrixXf x = with_outlier(256, std::ldexp(1.0f, e));
        const bool expected = e > 14;  // 8355711 / 2^15 = 254.99
        t.check((nibble::strict_columns(w, x) == 1) == expected, [&] { return "at 2^" + std::to_string(e); });
        strict += expected ? 1 : 0;
        for (const compute c : {compute::a16, compute::a8})
            t.check(nibble::strict_columns(w, x, {.compute = c}) == 0,
                    [&] { return "other classes, at 2^" + std::to_string(e); });
        t.check(nibble::strict_columns(w, x, {.compute = compute::strict_f32}) == 1,
                [&] { return std::string("strict_f32 itself"); });
        const MatrixXf y = checked_product("outlier 2^" + std::to_string(e), w, x, compute::f32, t);
        // Sent to strict_f32, the column has the bits of strict_f32.
        MatrixXf by_strict(17, 1);
        nibble::gemm(w, x, by_strict, {.compute = compute::strict_f32});
        if (expected)
            t.check(data::bits_differing(y, by_strict) == 0, [&] { return std::string("not the bits of strict_f32"); });
    }
    // The boundary itself: the largest outlier whose neighbours keep |q| = 256, and the next float.
    const float last = 8355711.0f / 255.5f;
    for (const auto& [outlier, expected] : {std::pair(last * 0.9999f, 0), std::pair(last * 1.0001f, 1)})
        t.check(nibble::strict_columns(w, with_outlier(256, outlier)) == expected,
                [&] { return std::string("near the boundary"); });
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(strict == 10);
}

TEST_CASE("the outlier test looks at sub-blocks and at what is not zero", "[gemm][extremes]") {
    const qmatrix g32 =
        nibble::quantize<nibble::int4>(data::matrix(5, 256, 2), nibble::absmax{}, nibble::per_group{32});
    const qmatrix row =
        nibble::quantize<nibble::int4>(data::matrix(5, 256, 2), nibble::absmax{}, nibble::per_channel{});
    const qmatrix table = nibble::quantize<nibble::nf4>(data::matrix(5, 256, 2));
    MatrixXf x = MatrixXf::Zero(256, 1);
    x(3, 0) = 0x1p24f;
    CHECK(nibble::strict_columns(row, x) == 0);  // alone: exact
    x(200, 0) = 1.0f;
    CHECK(nibble::strict_columns(row, x) == 1);  // rounded away
    CHECK(nibble::strict_columns(g32, x) == 0);  // another group: it has a step of its own
    x(4, 0) = 1.0f;
    CHECK(nibble::strict_columns(g32, x) == 1);
    CHECK(nibble::strict_columns(table, x) == 0);  // a chain of floats carries everything
    // Real activations have channels 20 to 1000 times the rest: they stay on the fast path.
    for (const float factor : {20.0f, 100.0f, 1000.0f}) {
        MatrixXf real = data::matrix(256, 8, 3);
        real.row(17) *= factor;
        CHECK(nibble::strict_columns(row, real) == 0);
        CHECK(nibble::strict_columns(g32, real) == 0);
    }
    MatrixXf mixed = data::matrix(256, 6, 4);
    mixed(0, 1) = 0x1p23f;
    mixed(0, 4) = quiet_nan;
    CHECK(nibble::strict_columns(row, mixed) == 2);
    CHECK(nibble::strict_columns(row, mixed, {.compute = compute::a8}) == 1);
    CHECK(nibble::strict_columns(table, mixed) == 1);
    CHECK(nibble::strict_columns(row, mixed, {.compute = compute::strict_f32}) == 6);
}

TEST_CASE("outliers keep the bound of strict_f32 where they are sent there", "[gemm][extremes]") {
    // One outlier of 2^20 under a zero weight: without the test the class f32 would be wrong in the second digit.
    MatrixXf dense = data::matrix(16, 256, 5);
    dense.col(128).setZero();
    const qmatrix w = nibble::quantize<nibble::int8>(dense);
    const reference::weights read = reference::read(w);
    tally t;
    for (int e = 0; e <= 60; e += 4) {
        MatrixXf x = data::matrix(256, 1, 6);
        x(128, 0) = std::ldexp(1.0f, e);
        const MatrixXf y = w * x;
        const reference::exact_result truth = reference::exact(read, reference::column(x, 0));
        for (Index n = 0; n < 16; ++n) {
            const auto i = static_cast<std::size_t>(n);
            const double relative = reference::bounds_away(y(n, 0), truth.y[i], truth.magnitude[i]);
            // 2^15 / 2^23 of a step where the outlier is just not hostile, else fp32
            t.check(relative < 2.5e-3, [&] { return "2^" + std::to_string(e) + ": " + std::to_string(relative); });
            if (e >= 20)
                t.check(relative < 1e-6, [&] { return "2^" + std::to_string(e) + ": " + std::to_string(relative); });
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 16 * 16 + 11 * 16);
}

TEST_CASE("NaN and Inf touch their own column only", "[gemm][extremes]") {
    tally t;
    std::size_t count = 0;
    for (const char* name : {"int8_per_channel", "int4_zero_g128", "int4_min_g64", "int4_hqq_g64", "q4_k", "nf4",
                             "fp8_per_channel", "mxfp4", "bf16", "binary_g128"}) {
        MatrixXf dense = data::matrix(20, 130, 7);
        dense.row(4).setZero();
        const qmatrix w = nibble::quantize(dense, name);
        const MatrixXf clean = data::matrix(130, 7, 8);
        for (const compute c : classes) {
            MatrixXf wanted(20, 7);
            nibble::gemm(w, clean, wanted, {.compute = c});
            for (const float bad : {quiet_nan, negative_nan, inf, -inf}) {
                for (const Index at : {0, 63, 128, 129}) {  // first, inside, last, tail
                    ++count;
                    MatrixXf x = clean;
                    x(at, 3) = bad;
                    const MatrixXf y =
                        checked_product(std::string(name) + " with " + reference::hex(bits(bad)), w, x, c, t);
                    t.check(data::bits_differing(y.leftCols(3), wanted.leftCols(3)) == 0 &&
                                data::bits_differing(y.rightCols(3), wanted.rightCols(3)) == 0,
                            [&] { return std::string(name) + ": another column changed"; });
                    for (Index n = 0; n < 20; ++n) {
                        const float v = y(n, 3);
                        if (is_nan(v))
                            t.check(bits(v) == 0x7fc00000u,
                                    [&] { return "NaN is not canonical: " + reference::hex(bits(v)); });
                        if (is_nan(bad))
                            t.check(is_nan(v), [&] { return std::string(name) + ": a NaN was lost"; });
                        else
                            t.check(!reference::is_nan_bits(bits(v)) || w(n, at) == 0.0f,
                                    [&] { return std::string("Inf became NaN"); });
                        if (!is_nan(bad) && w(n, at) != 0.0f)
                            t.check(bits(v) == bits((w(n, at) > 0.0f) == (bits(bad) >> 31 == 0) ? inf : -inf),
                                    [&] { return std::string(name) + ": the sign of an Inf"; });
                    }
                }
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(count == 10 * 4 * 4 * 4);
}

TEST_CASE("opposite infinities give a canonical NaN", "[gemm][extremes]") {
    const qmatrix w = nibble::quantize<nibble::int8>(MatrixXf::Constant(18, 40, 1.0f));
    MatrixXf x = MatrixXf::Constant(40, 2, 1.0f);
    x(0, 1) = inf;
    x(39, 1) = -inf;
    for (const compute c : classes) {
        MatrixXf y(18, 2);
        nibble::gemm(w, x, y, {.compute = c});
        for (Index n = 0; n < 18; ++n) {
            CHECK(bits(y(n, 1)) == 0x7fc00000u);
            CHECK(!is_nan(y(n, 0)));
        }
    }
}

TEST_CASE("weights that are NaN or Inf in their own format come through", "[gemm][extremes]") {
    // Only a file can hold them: FP8 code 7F is NaN, E5M2 code 7C is Inf.
    for (const auto& [format, code] :
         {std::pair(&nibble::fp8_e4m3::format, 0x7fu), std::pair(&nibble::fp8_e5m2::format, 0x7cu)}) {
        // Rows of three panels; in the second one nothing is special, in the third only the last sub-block.
        nibble::qmatrix_builder b(40, 520, *format, nibble::scales::f32, nibble::offset_kind::none, nibble::per_channel{});
        for (Index n = 0; n < 40; ++n) {
            b.set_scale(n, 0, bits(1.0f));
            for (Index k = 0; k < 520; ++k) b.set_code(n, k, (n == 1 && k == 5) || (n == 35 && k == 516) ? code : 0x38u);
        }
        const qmatrix w = std::move(b).finish();
        const std::uint32_t special = format == &nibble::fp8_e4m3::format ? 0x7fc00000u : 0x7f800000u;
        for_each_isa([&](nibble::isa) {
            for (const compute c : classes)
                for (const Index columns : {1, 3, 6}) {
                    const MatrixXf x = MatrixXf::Constant(520, columns, 0.5f);
                    MatrixXf y(40, columns);
                    nibble::gemm(w, x, y, {.compute = c});
                    for (Index j = 0; j < columns; ++j)
                        for (Index n = 0; n < 40; ++n) {
                            if (n == 1 || n == 35) CHECK(bits(y(n, j)) == special);
                            else CHECK(bits(y(n, j)) == bits(y(0, 0)));
                        }
                    CHECK(!is_nan(y(0, 0)));
                }
        });
    }
}

TEST_CASE("zeros: columns, rows, weights, activations, of both signs", "[gemm][extremes]") {
    tally t;
    for (const nibble::recipe& r : nibble::recipes()) {
        MatrixXf dense = data::matrix(18, 96, 9);
        dense.row(2).setZero();
        const qmatrix w = nibble::quantize(dense, r.name);
        MatrixXf x = data::matrix(96, 4, 10);
        x.col(1).setZero();
        x.col(2).setConstant(-0.0f);
        for (const compute c : classes) {
            const MatrixXf y = checked_product(r.name, w, x, c, t);
            for (Index n = 0; n < 18; ++n) {
                t.check((bits(y(n, 1)) & 0x7fffffffu) == 0, [&] { return std::string(r.name) + ": a zero column"; });
                t.check((bits(y(n, 2)) & 0x7fffffffu) == 0, [&] { return std::string(r.name) + ": a column of -0"; });
            }
            // -0 and +0 are the same activation.
            MatrixXf mixed = x;
            for (Index k = 0; k < 96; k += 2) mixed(k, 0) = 0.0f;
            MatrixXf negative = mixed;
            for (Index k = 0; k < 96; k += 2) negative(k, 0) = -0.0f;
            MatrixXf a(18, 1), b(18, 1);
            nibble::gemm(w, mixed.col(0), a, {.compute = c});
            nibble::gemm(w, negative.col(0), b, {.compute = c});
            t.check(data::bits_differing(a, b) == 0, [&] { return std::string(r.name) + ": -0 is not +0"; });
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == nibble::recipes().size() * 4 * (supported_isas().size() * 18 * 4 + 36 + 1));
}

TEST_CASE("tiny and huge activations", "[gemm][extremes]") {
    // Scaling X by a power of two scales every product by it, as long as the result is a normal float.
    tally t;
    for (const char* name :
         {"int8_per_channel", "int4_zero_g128", "q4_k", "int4_min_g64", "int4_hqq_g64", "mxfp4", "nf4", "bf16"}) {
        const qmatrix w = nibble::quantize(data::matrix(17, 160, 11), name);
        const MatrixXf x = data::matrix(160, 2, 12, data::distribution::uniform);
        for (const compute c : {compute::f32, compute::a16, compute::a8}) {
            const MatrixXf y = checked_product(name, w, x, c, t);
            for (const int e : {-120, -100, -60, -41, -40, 40, 41, 60, 100, 115}) {
                const MatrixXf scaled = x * std::ldexp(1.0f, e);
                const MatrixXf got = checked_product(std::string(name) + " 2^" + std::to_string(e), w, scaled, c, t);
                for (Index n = 0; n < 17; ++n)
                    for (Index j = 0; j < 2; ++j) {
                        const float wanted = std::ldexp(y(n, j), e);
                        if (std::fabs(static_cast<double>(wanted)) < 0x1p-110) continue;
                        // The chain of a table rounds where the float's own range ends; digits never do.
                        t.check(bits(got(n, j)) == bits(wanted), [&] {
                            return std::string(name) + " " + nibble::name_of(c) + " at 2^" + std::to_string(e) + ": " +
                                   std::to_string(got(n, j)) + " is not 2^e times " + std::to_string(y(n, j));
                        });
                    }
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() > 8 * 3 * 11 * 17 * 2);
}

TEST_CASE("subnormal, smallest and largest numbers on both sides", "[gemm][extremes]") {
    // Relative to sum |w| |x|, the class f32 stays fp32-class wherever the true product is a normal float.
    tally t;
    const std::array<float, 11> magnitudes = {0x1p-149f, 1e-40f, 1e-38f, 1e-30f, 1e-20f, 1.0f,
                                              1e20f,     1e30f,  1e37f,  1e38f,  3e38f};
    std::size_t products = 0;
    for (const char* name : {"int8_per_channel", "fp8_per_channel", "nf4", "bf16", "int8_zero_point", "ternary_twn"}) {
        for (const float of_w : magnitudes) {
            MatrixXf dense = data::matrix(5, 96, 13, data::distribution::uniform);
            // In double: the compiler may not flush what is subnormal here.
            for (Index i = 0; i < dense.size(); ++i)
                dense.data()[i] = static_cast<float>(static_cast<double>(dense.data()[i]) * static_cast<double>(of_w));
            const qmatrix w = nibble::quantize(dense, name);
            const reference::weights read = reference::read(w);
            for (const float of_x : magnitudes) {
                MatrixXf x = data::matrix(96, 1, 14, data::distribution::uniform);
                {
                    const reference::default_environment environment;
                    for (Index i = 0; i < x.size(); ++i)
                        x.data()[i] = static_cast<float>(static_cast<double>(x.data()[i]) * static_cast<double>(of_x));
                }
                const reference::exact_result truth = reference::exact(read, reference::column(x, 0));
                for (const compute c : classes) {
                    ++products;
                    const MatrixXf y = checked_product(
                        std::string(name) + " " + std::to_string(of_w) + " x " + std::to_string(of_x), w, x, c, t);
                    if (c != compute::f32) continue;
                    for (Index n = 0; n < 5; ++n) {
                        const auto i = static_cast<std::size_t>(n);
                        if (truth.magnitude[i] > 1e37 || truth.magnitude[i] < 1e-30) continue;
                        const double relative = reference::bounds_away(y(n, 0), truth.y[i], truth.magnitude[i]);
                        t.check(relative < 2e-6, [&] {
                            return std::string(name) + " weights of " +
                                   std::to_string(std::log10(static_cast<double>(of_w))) + " decades, activations of " +
                                   std::to_string(std::log10(static_cast<double>(of_x))) + ": off by " +
                                   std::to_string(relative);
                        });
                    }
                }
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(products == 6 * 11 * 11 * 4);
}

TEST_CASE("a column of very different sub-blocks", "[gemm][extremes]") {
    // Groups of one column from 1e-38 to 1e38, each under weights that make its share visible on its own.
    tally t;
    for (const char* name : {"int8_g32", "int4_g32", "q4_1", "mxfp4", "iq4_nl"}) {
        for (Index visible = 0; visible < 10; ++visible) {
            MatrixXf dense = MatrixXf::Zero(4, 320);
            dense.middleCols(32 * visible, 32) = data::matrix(4, 32, 15);
            const qmatrix w = nibble::quantize(dense, name);
            MatrixXf x(320, 1);
            const MatrixXf base = data::matrix(320, 1, 16, data::distribution::uniform);
            for (Index k = 0; k < 320; ++k) x(k, 0) = std::ldexp(base(k, 0), static_cast<int>(k / 32) * 25 - 120);
            const reference::weights read = reference::read(w);
            for (const compute c : classes) {
                const MatrixXf y = checked_product(name, w, x, c, t);
                if (c != compute::f32 && c != compute::strict_f32) continue;
                const reference::exact_result truth = reference::exact(read, reference::column(x, 0));
                for (Index n = 0; n < 4; ++n) {
                    const auto i = static_cast<std::size_t>(n);
                    const double relative = reference::bounds_away(y(n, 0), truth.y[i], truth.magnitude[i]);
                    t.check(relative < 2e-5, [&] {
                        return std::string(name) + " " + nibble::name_of(c) + ", group " + std::to_string(visible) +
                               " of magnitude 2^" + std::to_string(visible * 25 - 120) + " is off by " +
                               std::to_string(relative);
                    });
                }
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
}

TEST_CASE("a group far below another keeps its digits", "[gemm][extremes]") {
    // The large group lies under zero weights: what the product shows is the small one, 2^-gap times as large.
    const MatrixXf base = data::matrix(64, 1, 17, data::distribution::uniform);
    MatrixXf dense = data::matrix(4, 64, 18);
    dense.leftCols(32).setZero();
    tally t;
    for (const char* name : {"int8_g32", "int4_g32", "q4_1", "mxfp4"}) {
        const qmatrix w = nibble::quantize(dense, name);
        const reference::weights read = reference::read(w);
        for (int gap = 0; gap <= 140; gap += 4)
            for (const int top : {0, 60, 120}) {
                MatrixXf x(64, 1);
                for (Index k = 0; k < 64; ++k) x(k, 0) = std::ldexp(base(k, 0), k < 32 ? top : top - gap);
                const MatrixXf y = checked_product(name, w, x, compute::f32, t);
                const reference::exact_result truth = reference::exact(read, reference::column(x, 0));
                for (Index n = 0; n < 4; ++n) {
                    const auto i = static_cast<std::size_t>(n);
                    if (truth.magnitude[i] < 1e-30) continue;
                    const double relative = reference::bounds_away(y(n, 0), truth.y[i], truth.magnitude[i]);
                    t.check(relative < 2e-6, [&] {
                        return std::string(name) + ", a group of 2^" + std::to_string(top - gap) + " beside one of 2^" +
                               std::to_string(top) + " is off by " + std::to_string(relative);
                    });
                }
            }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() > 4 * 36 * 3 * 4);
}
