// Activations that are prepared once: a product from them has the bits of the product from X, with every matrix that they
// are for, and an error with every other.
#include <nibble/nibble.hpp>

#include <array>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/mistake.hpp"
#include "support/reference.hpp"

using Eigen::MatrixXf;
using nibble::compute;
using nibble::errc;
using nibble::prepared_activations;
using nibble::qmatrix;
using reference::float_from_bits;
using reference::tally;
using Index = nibble::index;

namespace {

constexpr std::array<compute, 4> classes = {compute::strict_f32, compute::f32, compute::a16, compute::a8};

/// Columns of every kind: plain, with NaN, Inf or an outlier, zero, tiny, huge, and of magnitudes that lie far apart.
MatrixXf activations(Index k, std::uint64_t stream) {
    MatrixXf x = data::matrix(k, 14, stream);
    x(k / 3, 1) = float_from_bits(0x7fc12345u);
    x(k - 1, 2) = float_from_bits(0xff800000u);
    x(k / 2, 3) = 0x1p24f;
    x.col(4).setZero();
    x.col(5) *= 1e-30f;
    x.col(6) *= 1e30f;
    x.col(7) *= 0x1p-45f;
    x.col(8) *= 0x1p45f;
    x.col(9).topRows(k / 2) *= 0x1p-60f;
    x.col(9).bottomRows(k - k / 2) *= 0x1p50f;
    x.col(10).topRows(k / 2) *= 0x1p-75f;
    x.col(11) *= 0x1p-126f;
    x.col(11).bottomRows(k - k / 2) *= 0x1p-10f;  // subnormal
    x.col(12).topRows(k / 2).setZero();
    x.col(12) *= 0x1p-50f;
    return x;
}

MatrixXf product(const qmatrix& w, const MatrixXf& x, compute c) {
    MatrixXf y = MatrixXf::Constant(w.rows(), x.cols(), 7.0f);
    nibble::gemm(w, x, y, {.compute = c});
    return y;
}

MatrixXf product(const qmatrix& w, const prepared_activations& x, compute c) {
    MatrixXf y = MatrixXf::Constant(w.rows(), x.cols(), 8.0f);
    nibble::gemm(w, x, y, {.compute = c});
    return y;
}

/// prepare() for a copy of X that is gone, and overwritten, when it returns.
prepared_activations prepared(const qmatrix& w, const MatrixXf& x, compute c) {
    MatrixXf copy = x;
    prepared_activations a = nibble::prepare(w, copy, c);
    copy.setConstant(99.0f);
    return a;
}

}  // namespace

TEST_CASE("prepared activations give the bits of X, for every recipe and class", "[gemm][prepared]") {
    tally t;
    std::size_t count = 0;
    for (const nibble::recipe& r : nibble::recipes()) {
        ++count;
        const qmatrix w = nibble::quantize(data::matrix(33, 512, count), r.name);
        const MatrixXf x = activations(512, 1000 + count);
        for_each_isa([&](nibble::isa level) {
            for (const compute c : classes) {
                const MatrixXf wanted = product(w, x, c);
                const prepared_activations a = prepared(w, x, c);
                t.check(data::bits_differing(product(w, a, c), wanted) == 0,
                        [&] { return std::string(r.name) + " " + nibble::name_of(c) + " at " + nibble::name_of(level); });
                t.check(a.strict_columns() == nibble::strict_columns(w, x, {.compute = c}) && a.cols() == x.cols() && a.rows() == 512 &&
                            a.compute() == c && a.group_size() == w.group_size() && static_cast<bool>(a.check(w)),
                        [&] { return std::string(r.name) + " " + nibble::name_of(c) + ": what the activations say of themselves"; });
            }
        });
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == count * 4 * 2 * supported_isas().size());
    CHECK(count >= 52);
}

TEST_CASE("prepared at one level, multiplied at another", "[gemm][prepared]") {
    const isa_guard restore;
    const MatrixXf x = activations(320, 5);
    tally t;
    for (const char* name : {"int4_g32", "int8_per_channel", "q4_k", "nf4"}) {
        const qmatrix w = nibble::quantize(data::matrix(20, 320, 6), name);
        for (const compute c : classes) {
            const MatrixXf wanted = product(w, x, c);
            for (const nibble::isa one : supported_isas()) {
                nibble::set_active_isa(one);
                const prepared_activations a = prepared(w, x, c);
                for (const nibble::isa other : supported_isas()) {
                    nibble::set_active_isa(other);
                    t.check(data::bits_differing(product(w, a, c), wanted) == 0, [&] {
                        return std::string(name) + " " + nibble::name_of(c) + ": " + nibble::name_of(one) + ", then " + nibble::name_of(other);
                    });
                }
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 16 * supported_isas().size() * supported_isas().size());
}

TEST_CASE("several matrices share what was prepared for one of them", "[gemm][prepared]") {
    // Same K and group, and integers all: q, k and v of other heights, other code formats, scales and offsets.
    const Index k = 288;
    const MatrixXf x = activations(k, 7);
    const std::vector<std::vector<const char*>> families = {
        {"int4_g32", "q4_0", "q8_0", "q4_1", "q5_1", "iq4_nl", "mxfp4", "int2_zero_g32"},
        {"mxfp8", "mxfp6", "mxfp8_e5m2", "mxfp6_e3m2"},
        {"int8_per_channel", "ternary_twn"},
        {"bf16", "fp16"},
    };
    tally t;
    std::size_t pairs = 0;
    for (const std::vector<const char*>& family : families) {
        for (std::size_t i = 0; i < family.size(); ++i) {
            if (nibble::find_recipe(family[i]) == nullptr) FAIL("no recipe " << family[i]);
            const qmatrix first = nibble::quantize(data::matrix(16, k, 20 + i), family[i]);
            for (const compute c : classes) {
                const prepared_activations a = prepared(first, x, c);
                for (std::size_t j = 0; j < family.size(); ++j) {
                    const qmatrix w = nibble::quantize(data::matrix(16 + 17 * static_cast<Index>(j), k, 30 + j), family[j]);
                    const nibble::status s = a.check(w);
                    INFO(family[i] << ", then " << family[j] << ": " << s.message());
                    REQUIRE(static_cast<bool>(s));
                    ++pairs;
                    t.check(data::bits_differing(product(w, a, c), product(w, x, c)) == 0,
                            [&] { return std::string(nibble::name_of(c)) + ": for " + family[i] + ", with " + family[j]; });
                }
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(pairs == 4 * (64 + 16 + 4 + 4));
}

TEST_CASE("weights of other magnitudes share activations, or are refused", "[gemm][prepared][extremes]") {
    const Index k = 192;
    MatrixXf x(k, 60);
    for (Index j = 0; j < 60; ++j) {
        // The magnitudes of the two halves: near, far, and beyond each limit.
        x.col(j) = data::matrix(k, 1, 40 + static_cast<std::uint64_t>(j));
        x.col(j).topRows(96) *= std::ldexp(1.0f, static_cast<int>(j % 10) * 20 - 100);
        x.col(j).bottomRows(96) *= std::ldexp(1.0f, static_cast<int>(j / 10) * 20 - 60);
    }
    const std::array<float, 9> magnitudes = {1.0f, 0x1p-20f, 0x1p-38f, 0x1p20f, 0x1p38f, 0x1p-50f, 0x1p50f, 1e-30f, 1e30f};
    const auto matrix = [&](std::size_t i, std::size_t format) {
        const MatrixXf dense = magnitudes[i] * data::matrix(17, k, 50 + i);
        const nibble::quantize_options floats{.scale = nibble::scales::f32};
        return format == 0   ? nibble::quantize<nibble::int4>(dense, nibble::absmax{}, nibble::per_group{32}, floats)
               : format == 1 ? nibble::quantize<nibble::int8>(dense, nibble::min_offset{}, nibble::per_group{32}, floats)
                             : nibble::quantize<nibble::nf4>(dense, nibble::absmax{}, nibble::per_group{32}, floats);
    };
    tally t;
    std::size_t shared = 0;
    std::size_t refused = 0;
    for (const std::size_t format : {0u, 1u, 2u}) {
        for (std::size_t i = 0; i < magnitudes.size(); ++i) {
            const qmatrix first = matrix(i, format);
            for (const compute c : classes) {
                const prepared_activations a = prepared(first, x, c);
                for (std::size_t j = 0; j < magnitudes.size(); ++j) {
                    const qmatrix w = matrix(j, format);
                    const auto name = [&] {
                        return w.name() + " " + nibble::name_of(c) + ": for weights of " + std::to_string(i) + ", with those of " + std::to_string(j);
                    };
                    if (const nibble::status s = a.check(w); !s) {
                        ++refused;
                        // Only weights whose own magnitude scales every column.
                        t.check(i != j && j >= 5 && s.code() == errc::invalid_argument && contains(s.message(), "2^" + std::to_string(w.exponent())), name);
                        continue;
                    }
                    ++shared;
                    const MatrixXf wanted = product(w, x, c);
                    t.check(data::bits_differing(product(w, a, c), wanted) == 0, name);
                }
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(refused == 3 * 3 * 4 * 8);  // three classes round
    CHECK(shared + refused == 3 * 4 * 81);
}

TEST_CASE("prepared activations and every option", "[gemm][prepared][options]") {
    const MatrixXf x = activations(256, 60);
    const qmatrix w = nibble::quantize(data::matrix(40, 256, 61), "int4_g32");
    const Eigen::VectorXf bias = data::matrix(40, 1, 62);
    tally t;
    for (const compute c : classes) {
        const prepared_activations a = prepared(w, x, c);
        for (const bool accumulate : {false, true}) {
            nibble::workspace scratch;
            const nibble::gemm_options options{.compute = c, .bias = bias, .activation = nibble::activation::silu, .accumulate = accumulate, .workspace = &scratch};
            MatrixXf wanted = data::matrix(40, x.cols(), 63);
            MatrixXf got = wanted;
            nibble::gemm(w, x, wanted, options);
            nibble::gemm(w, a, got, options);
            t.check(data::bits_differing(got, wanted) == 0, [&] { return std::string(nibble::name_of(c)); });
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
}

TEST_CASE("X of any layout and type is prepared alike", "[gemm][prepared]") {
    const MatrixXf x = data::matrix(70, 5, 64);
    const qmatrix w = nibble::quantize(data::matrix(19, 70, 65), "int4_g32");
    const MatrixXf wanted = w * x;
    const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> row_major = x;
    CHECK(data::bits_differing(product(w, nibble::prepare(w, row_major), compute::f32), wanted) == 0);
    const MatrixXf transposed = x.transpose();
    CHECK(data::bits_differing(product(w, nibble::prepare(w, transposed.transpose()), compute::f32), wanted) == 0);
    CHECK(data::bits_differing(product(w, nibble::prepare(w, x.cast<double>()), compute::f32), wanted) == 0);
    CHECK(data::bits_differing(product(w, nibble::prepare(w, 0.5f * (x + x)), compute::f32), wanted) == 0);
    MatrixXf y(19, 5);
    nibble::gemm(w, nibble::prepare(w, x, compute::a8), y);  // the class is theirs
    CHECK(data::bits_differing(y, product(w, x, compute::a8)) == 0);
    prepared_activations a = nibble::prepare(w, x);
    const prepared_activations copy = a;
    const prepared_activations moved = std::move(a);
    CHECK(data::bits_differing(product(w, copy, compute::f32), wanted) == 0);
    CHECK(data::bits_differing(product(w, moved, compute::f32), wanted) == 0);
}

TEST_CASE("prepared activations of nothing", "[gemm][prepared]") {
    const qmatrix w = nibble::quantize(data::matrix(19, 70, 65), "int4_g32");
    const qmatrix no_cols = nibble::quantize(MatrixXf(19, 0), "int4_g32");
    const qmatrix no_rows = nibble::quantize(MatrixXf(0, 70), "int4_g32");
    for (const compute c : classes) {
        CHECK(product(w, nibble::prepare(w, MatrixXf(70, 0), c), c).cols() == 0);
        const MatrixXf zeros = product(no_cols, nibble::prepare(no_cols, MatrixXf(0, 4), c), c);
        CHECK((zeros.rows() == 19 && zeros.cols() == 4 && (zeros.array() == 0.0f).all()));
        CHECK(product(no_rows, nibble::prepare(no_rows, MatrixXf(MatrixXf::Ones(70, 3)), c), c).rows() == 0);
    }
}

TEST_CASE("activations that were prepared for something else are errors", "[gemm][prepared][errors]") {
    const MatrixXf x = data::matrix(128, 3, 66);
    const MatrixXf dense = data::matrix(19, 128, 67);
    const auto of_format = [&](const char* name) { return nibble::quantize(dense, name); };
    const qmatrix w = of_format("int4_g32");
    MatrixXf y = MatrixXf::Constant(19, 3, 7.0f);
    const auto refused = [&](const qmatrix& with, const prepared_activations& a, compute c, errc code, const std::string& part) {
        const mistake m = of([&] { nibble::gemm(with, a, y, {.compute = c}); });
        INFO(m.message);
        CHECK(m.code == code);
        CHECK(contains(m.message, part));
        CHECK((y.array() == 7.0f).all());
    };
    for (const compute c : {compute::f32, compute::a16, compute::a8}) {
        const prepared_activations a = nibble::prepare(w, x, c);
        refused(nibble::quantize(data::matrix(19, 129, 67), "int4_g32"), a, c, errc::shape_mismatch, "K = 128, W is 19x129");
        refused(nibble::quantize(dense, "int4_zero_g128"), a, c, errc::invalid_argument, "groups of 32, W has groups of 128");
        refused(of_format("int8_per_channel"), a, c, errc::invalid_argument, "groups of 32, W has groups of 128");
        refused(nibble::quantize<nibble::nf4>(dense, nibble::absmax{}, nibble::per_group{32}), a, c, errc::invalid_argument, "another kind of code format than nf4");
        refused(of_format("bf16"), a, c, errc::invalid_argument, "another kind of code format than bf16");
        for (const compute other : classes)
            if (other != c) refused(w, a, other, errc::invalid_argument, std::string("prepared for class ") + nibble::name_of(c) + ", not " + nibble::name_of(other));
    }
    // strict_f32 knows no groups and no kinds.
    const prepared_activations strict = nibble::prepare(w, x, compute::strict_f32);
    for (const char* name : {"int4_zero_g128", "nf4", "bf16", "q4_k"}) {
        const qmatrix other = nibble::quantize(data::matrix(19, 128, 67), name);
        CHECK(data::bits_differing(product(other, strict, compute::strict_f32), product(other, x, compute::strict_f32)) == 0);
    }
    // Outputs are checked as ever.
    const prepared_activations a = nibble::prepare(w, x);
    MatrixXf small(18, 3);
    mistake m = of([&] { nibble::gemm(w, a, small); });
    CHECK(m.code == errc::shape_mismatch);
    CHECK(contains(m.message, "Y must be 19x3, but it is 18x3"));
    CHECK(contains(m.message, "the activations are 128x3"));
    const Eigen::VectorXf bias = data::matrix(20, 1, 1);
    m = of([&] { nibble::gemm(w, a, y, {.bias = bias}); });
    CHECK(m.code == errc::shape_mismatch);
    CHECK(contains(m.message, "bias has 20 elements, not 19"));
    auto* inside = static_cast<float*>(const_cast<void*>(static_cast<const void*>(w.data())));
    CHECK(of([&] { nibble::gemm(w, a, nibble::column_major(inside, 19, 3)); }).code == errc::overlap);
    CHECK((y.array() == 7.0f).all());
    m = of([&] { static_cast<void>(nibble::prepare(w, data::matrix(127, 3, 1))); });
    CHECK(m.code == errc::shape_mismatch);
    CHECK(contains(m.message, "W is 19x128, X is 127x3"));
    m = of([&] { static_cast<void>(nibble::prepare(w, nibble::const_view{nullptr, nibble::scalar_type::f32, 128, 3, 1, 128})); });
    CHECK(m.code == errc::invalid_argument);
    CHECK(contains(m.message, "null"));
}
