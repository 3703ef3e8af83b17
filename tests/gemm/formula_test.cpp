// Products bit for bit against the formula, computed another way (support/reference.hpp), for every recipe and every
// combination of code format, offset and grouping, in every compute class, at every instruction-set level.
#include <nibble/nibble.hpp>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/reference.hpp"

using Eigen::MatrixXf;
using nibble::compute;
using Index = nibble::index;
using nibble::offset_kind;
using nibble::qmatrix;
using reference::tally;

namespace {

constexpr std::array<compute, 4> classes = {compute::strict_f32, compute::f32, compute::a16, compute::a8};

/// The product at every level, element for element against the formula.
void compare(const std::string& what, const qmatrix& w, const MatrixXf& x, tally& t) {
    const reference::weights read = reference::read(w);
    std::vector<std::vector<reference::formula_result>> wanted(classes.size());
    for (std::size_t c = 0; c < classes.size(); ++c)
        for (Index j = 0; j < x.cols(); ++j)
            wanted[c].push_back(reference::formula(read, reference::column(x, j), classes[c]));
    for_each_isa([&](nibble::isa level) {
        for (std::size_t c = 0; c < classes.size(); ++c) {
            MatrixXf y = MatrixXf::Constant(w.rows(), x.cols(), 12345.0f);
            nibble::gemm(w, x, y, {.compute = classes[c]});
            for (Index j = 0; j < x.cols(); ++j)
                for (Index n = 0; n < w.rows(); ++n) {
                    const float expected = wanted[c][static_cast<std::size_t>(j)].y[static_cast<std::size_t>(n)];
                    t.check(reference::bits_from_float(y(n, j)) == reference::bits_from_float(expected), [&] {
                        return what + " " + nibble::name_of(classes[c]) + " at " + nibble::name_of(level) + ": Y(" +
                               std::to_string(n) + ", " + std::to_string(j) + ") is " + std::to_string(y(n, j)) +
                               ", the formula says " + std::to_string(expected);
                    });
                }
        }
    });
}

/// Columns of every kind that a product treats in its own way.
MatrixXf activations(Index k, std::uint64_t stream) {
    MatrixXf x(k, 8);
    x.col(0) = data::matrix(k, 1, stream);
    x.col(1) = data::matrix(k, 1, stream + 1, data::distribution::layer);
    x.col(2) = data::matrix(k, 1, stream + 2, data::distribution::cauchy);
    x.col(3).setZero();
    x.col(4) = data::matrix(k, 1, stream + 4) * 1e-30f;
    x.col(5) = data::matrix(k, 1, stream + 5) * 1e30f;
    x.col(6) = data::matrix(k, 1, stream + 6);
    if (k > 0) x(k / 2, 6) = 0x1p20f;  // hides its neighbours: strict in the class f32
    x.col(7) = data::matrix(k, 1, stream + 7, data::distribution::uniform);
    for (Index i = 0; i < k; i += 3) x(i, 7) = 0.0f;
    return x;
}

}  // namespace

TEST_CASE("products of every recipe are the formula, bit for bit", "[gemm][formula]") {
    CAPTURE(data::seed());
    tally t;
    std::size_t count = 0;
    for (const nibble::recipe& r : nibble::recipes()) {
        ++count;
        const Index n = 21;
        const Index k = 777;  // three super-blocks, the last one ragged; a whole-row group makes four sub-blocks
        const MatrixXf w = data::matrix(n, k, count);
        compare(r.name, nibble::quantize(w, r.name), activations(k, 100 * count), t);
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(count == nibble::recipes().size());
    CHECK(count >= 52);
    CHECK(t.cases() == count * classes.size() * supported_isas().size() * 21 * 8);
}

TEST_CASE("products of random codes are the formula, bit for bit", "[gemm][formula]") {
    // Codes that no quantizer makes (-128, ternary 3, all of a zero-point format), scales of both signs and zero.
    CAPTURE(data::seed());
    namespace s = nibble::scales;
    struct combination {
        const nibble::code_format* format;
        nibble::scale_scheme scheme;
        offset_kind offset;
    };
    std::vector<combination> all;
    for (const nibble::code_format* f : nibble::formats()) {
        if (f->bits == 16) {
            all.push_back({f, s::none, offset_kind::none});
            continue;
        }
        for (const nibble::scale_scheme& scheme :
             {s::f32, s::f16, s::bf16, s::e8m0, s::e4m3, s::e4m3_f32, s::double_quantized, s::two_level(6, false, 4),
              s::two_level(4, true, 3), s::two_level(8, true, 5)})
            all.push_back({f, scheme, offset_kind::none});
        if (f->decode != nibble::decode_class::integer || f == &nibble::binary::format || f == &nibble::ternary::format)
            continue;
        for (const nibble::scale_scheme& scheme : {s::f32, s::f16, s::bf16}) {
            all.push_back({f, scheme, offset_kind::zero_point});
            all.push_back({f, scheme, offset_kind::float_zero});
            all.push_back({f, scheme, offset_kind::minimum});
        }
        all.push_back({f, s::e8m0, offset_kind::zero_point});
        all.push_back({f, s::e4m3, offset_kind::zero_point});
        all.push_back({f, s::two_level(6, false, 4), offset_kind::minimum});
        all.push_back({f, s::two_level(4, false, 16), offset_kind::minimum});
        all.push_back({f, s::two_level(8, false, 2), offset_kind::minimum});
        all.push_back({f, s::two_level(6, false, 4), offset_kind::zero_point});
        all.push_back({f, s::two_level(6, true, 4), offset_kind::zero_point});
    }
    tally t;
    std::uint64_t stream = 0;
    for (const combination& c : all) {
        ++stream;
        // groups 1, 2, 3, 5, 16, 31, 32, 64, 100, 256, 300 and the whole row, in turn
        constexpr std::array<Index, 12> groups = {1, 2, 3, 5, 16, 31, 32, 64, 100, 256, 300, 0};
        const Index group = groups[stream % groups.size()];
        const qmatrix w = data::random_codes(18, 301, *c.format, c.scheme, c.offset, {1, group}, stream);
        compare(std::string(c.format->name) + " " + nibble::name_of(c.scheme.storage) + " " +
                    nibble::name_of(c.offset) + " g" + std::to_string(group),
                w, activations(301, 1000 + 10 * stream).leftCols(7), t);
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(all.size() == 19 * 10 + 2 + 6 * 16);
    CHECK(t.cases() == all.size() * classes.size() * supported_isas().size() * 18 * 7);
}

TEST_CASE("products of every grouping are the formula, bit for bit", "[gemm][formula]") {
    CAPTURE(data::seed());
    constexpr std::array<nibble::granularity, 18> groupings = {nibble::granularity{1, 1},
                                                               {1, 2},
                                                               {1, 3},
                                                               {1, 5},
                                                               {1, 16},
                                                               {1, 31},
                                                               {1, 32},
                                                               {1, 64},
                                                               {1, 100},
                                                               {1, 256},
                                                               {1, 300},
                                                               {1, 0},
                                                               {0, 0},
                                                               {2, 3},
                                                               {16, 16},
                                                               {128, 128},
                                                               {5, 7},
                                                               {0, 64}};
    struct kind {
        const nibble::code_format* format;
        offset_kind offset;
    };
    const std::array<kind, 8> kinds = {
        kind{&nibble::int8::format, offset_kind::none},   {&nibble::int8::format, offset_kind::zero_point},
        {&nibble::int4::format, offset_kind::zero_point}, {&nibble::int3::format, offset_kind::minimum},
        {&nibble::int5::format, offset_kind::float_zero}, {&nibble::nf4::format, offset_kind::none},
        {&nibble::fp6_e3m2::format, offset_kind::none},   {&nibble::binary::format, offset_kind::none}};
    tally t;
    std::uint64_t stream = 5000;
    for (const nibble::granularity g : groupings)
        for (const kind& k : kinds) {
            ++stream;
            const qmatrix w = data::random_codes(37, 600, *k.format, nibble::scales::f32, k.offset, g, stream);
            compare(std::string(k.format->name) + " " + nibble::name_of(k.offset) + " in tiles of " +
                        std::to_string(g.rows) + "x" + std::to_string(g.cols),
                    w, data::matrix(600, 3, stream), t);
        }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 18 * 8 * classes.size() * supported_isas().size() * 37 * 3);
}

TEST_CASE("products of every shape are the formula, bit for bit", "[gemm][formula][shapes]") {
    // 289 shapes; every pair of (N, K), (N, M), (K, M) of 17 sizes. Format, group and class rotate. The formula is
    // computed for three columns; the others are compared between levels, and with products of one column elsewhere.
    CAPTURE(data::seed());
    struct kind {
        const nibble::code_format* format;
        nibble::scale_scheme scheme;
        offset_kind offset;
        Index group;
    };
    namespace s = nibble::scales;
    const std::array<kind, 13> kinds = {kind{&nibble::int8::format, s::f32, offset_kind::none, 0},
                                        {&nibble::int4::format, s::f16, offset_kind::zero_point, 32},
                                        {&nibble::nf4::format, s::f32, offset_kind::none, 64},
                                        {&nibble::int3::format, s::two_level(6, true, 16), offset_kind::none, 16},
                                        {&nibble::fp8_e4m3::format, s::f32, offset_kind::none, 0},
                                        {&nibble::int6::format, s::two_level(8, true, 16), offset_kind::none, 16},
                                        {&nibble::int5::format, s::f16, offset_kind::minimum, 31},
                                        {&nibble::bf16::format, s::none, offset_kind::none, 0},
                                        {&nibble::int2::format, s::two_level(4, false, 16), offset_kind::minimum, 16},
                                        {&nibble::binary::format, s::f16, offset_kind::none, 128},
                                        {&nibble::fp4_e2m1::format, s::e8m0, offset_kind::none, 32},
                                        {&nibble::int8::format, s::f32, offset_kind::zero_point, 5},
                                        {&nibble::ternary::format, s::f16, offset_kind::none, 256}};
    tally t;
    std::size_t shapes = 0;
    std::size_t products = 0;
    for (const data::shape& at : data::covering_shapes()) {
        const kind& k = kinds[shapes % kinds.size()];
        ++shapes;
        const qmatrix w = data::random_codes(at.n, at.k, *k.format, k.scheme, k.offset, {1, k.group}, 9000 + shapes);
        const MatrixXf x =
            data::matrix(at.k, at.m, 10000 + shapes, data::distributions[shapes % data::distributions.size()]);
        const reference::weights read = reference::read(w);
        for (std::size_t c = 0; c < classes.size(); ++c) {
            if (at.n * at.k * at.m > 300000 && (shapes + c) % 4 != 0) continue;
            ++products;
            std::vector<MatrixXf> by_level;
            for_each_isa([&](nibble::isa) {
                MatrixXf y = MatrixXf::Constant(at.n, at.m, 12345.0f);
                nibble::gemm(w, x, y, {.compute = classes[c]});
                by_level.push_back(y);
            });
            for (const MatrixXf& y : by_level)
                t.check(data::bits_differing(y, by_level.front()) == 0, [&] {
                    return std::string("levels differ at ") + k.format->name + " " + std::to_string(at.n) + "x" +
                           std::to_string(at.k) + "x" + std::to_string(at.m);
                });
            for (const Index j : {Index{0}, at.m / 2, at.m - 1}) {
                if (j < 0 || j >= at.m) continue;
                const reference::formula_result wanted = reference::formula(read, reference::column(x, j), classes[c]);
                Index wrong = 0;
                for (Index n = 0; n < at.n; ++n)
                    wrong += reference::bits_from_float(by_level.front()(n, j)) !=
                                     reference::bits_from_float(wanted.y[static_cast<std::size_t>(n)])
                                 ? 1
                                 : 0;
                t.check(wrong == 0, [&] {
                    return std::string(k.format->name) + " " + nibble::name_of(classes[c]) + " " +
                           std::to_string(at.n) + "x" + std::to_string(at.k) + "x" + std::to_string(at.m) + ": " +
                           std::to_string(wrong) + " rows of column " + std::to_string(j) + " differ";
                });
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(shapes == 289);
    CHECK(products >= 900);
    CAPTURE(products, t.cases());
    CHECK(t.cases() >= products * supported_isas().size());
}

TEST_CASE("integer sums stay exact past every overflow limit", "[gemm][formula][extremes]") {
    // the algorithm study 16.3: int32 sums overflow at K = 33025 (255 * 255), 66311 (255 * 127) and 133144 (127 * 127),
    // sums in float at 258, 518 and 1040. Activations at +-max make every digit 127 (or -128), codes are all the
    // largest.
    tally t;
    std::size_t count = 0;
    struct kind {
        const nibble::code_format* format;
        offset_kind offset;
        unsigned code;
        unsigned zero;
    };
    for (const kind& k : {kind{&nibble::int8::format, offset_kind::none, 0, 0},    // -128
                          kind{&nibble::int8::format, offset_kind::none, 255, 0},  // 127
                          kind{&nibble::int8::format, offset_kind::zero_point, 255, 0},
                          kind{&nibble::int8::format, offset_kind::zero_point, 0, 255},
                          kind{&nibble::int4::format, offset_kind::zero_point, 15, 0},
                          kind{&nibble::int6::format, offset_kind::minimum, 63, 0},
                          kind{&nibble::iq4_nl::format, offset_kind::none, 0, 0}}) {
        for (const Index depth :
             {Index{257}, Index{259}, Index{519}, Index{1041}, Index{33026}, Index{66312}, Index{133145}}) {
            nibble::qmatrix_builder b(3, depth, *k.format, nibble::scales::f32, k.offset, nibble::per_channel{});
            for (Index n = 0; n < 3; ++n) {
                b.set_scale(n, 0, reference::bits_from_float(0.01f * static_cast<float>(n + 1)));
                if (k.offset != offset_kind::none)
                    b.set_offset(n, 0, k.offset == offset_kind::minimum ? reference::bits_from_float(-0.3f) : k.zero);
                for (Index i = 0; i < depth; ++i) b.set_code(n, i, k.code);
            }
            const qmatrix w = std::move(b).finish();
            MatrixXf x(depth, 4);
            x.col(0).setConstant(1.0f);
            x.col(1).setConstant(-1.0f);
            // 0x7F7F7F has the digits 127, 127, 127; half of it, rounded up, has -128 in the low ones
            x.col(2).setConstant(0.50195312f);
            x(0, 2) = 1.0f;
            for (Index i = 0; i < depth; ++i) x(i, 3) = i % 2 == 0 ? 1.0f : -0.9960785f;
            compare(std::string(k.format->name) + " K = " + std::to_string(depth), w, x, t);
            ++count;
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(count == 7 * 7);
    CHECK(t.cases() == count * classes.size() * supported_isas().size() * 3 * 4);
}

TEST_CASE("the fma of every level rounds once, also next to a midpoint and in the subnormal range", "[gemm][formula]") {
    // A level without an fma computes it in double, where c + ab can round to a midpoint between two floats that the
    // exact sum is not on. Two columns of K: the weights (c, b) and x = (1, a) make the chain of strict_f32 end in
    // fma(b, a, c).
    CAPTURE(data::seed());
    data::random r(1);
    constexpr Index rows = 4096;
    nibble::qmatrix_builder b(rows, 2, nibble::int8::format, nibble::scales::f32, offset_kind::none,
                              nibble::per_group{1});
    const float a = 1.0f + 0x1p-23f;
    std::size_t double_rounding_differs = 0;
    for (Index n = 0; n < rows; ++n) {
        const int exponent = n % 2 == 0 ? 0 : static_cast<int>(r.below(5)) - 126;  // the product has 24 bits fewer
        const float sign = (r() & 1) != 0 ? 1.0f : -1.0f;
        const auto mantissa = static_cast<double>((1u << 23) | static_cast<std::uint32_t>(r()) % (1u << 23));
        // c and half a unit of its last place, which a makes 2^-46 of it less
        const float c = static_cast<float>(std::ldexp(mantissa, exponent - 23));
        const float half = sign * static_cast<float>(std::ldexp(1.0 - 0x1p-23, std::max(exponent - 24, -126)));
        b.set_code(n, 0, 129);
        b.set_code(n, 1, 129);
        b.set_scale(n, 0, reference::bits_from_float(c));
        b.set_scale(n, 1, reference::bits_from_float(half));
        const reference::default_environment environment;
        const double sum = static_cast<double>(a) * static_cast<double>(half) + static_cast<double>(c);
        double_rounding_differs += static_cast<float>(sum) != std::fma(a, half, c) ? 1u : 0u;
    }
    CHECK(double_rounding_differs > 500);  // the test can tell
    MatrixXf x(2, 2);
    x << 1.0f, 1.0f, a, -a;
    tally t;
    compare("next to midpoints", std::move(b).finish(), x, t);
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == classes.size() * supported_isas().size() * rows * 2);
}
