// The judge of the benchmark program: it must accept every right product and refuse a wrong one.
#include "support/catch.hpp"

#include <algorithm>
#include <iterator>
#include <limits>

#include <nibble/nibble.hpp>

#include "../../bench/check.hpp"
#include "../../bench/data.hpp"

namespace {

using Eigen::Index;

struct product {
    nibble::qmatrix w;
    Eigen::MatrixXf x, y;
    bench::row_matrix decoded;

    product(const char* format, Index n, Index k, Index m, nibble::compute c)
        : w(nibble::quantize(bench::normal_matrix(n, k, 0.05f, 1), nibble::make_plan(*nibble::find_recipe(format)))),
          x(bench::normal_matrix(m, k, 1.0f, 2).transpose()),
          y(n, m),
          decoded(bench::decode_rows(w, bench::spread_rows(n, n))) {
        nibble::gemm(w, x, y, {.compute = c});
    }
    [[nodiscard]] bench::verdict judge(nibble::compute c) const {
        return bench::check_product(decoded, w.group_size(), x, y, c);
    }
};

constexpr nibble::compute classes[] = {nibble::compute::strict_f32, nibble::compute::f32, nibble::compute::a16,
                                       nibble::compute::a8};

Index largest(const Eigen::MatrixXf& y) {
    Index at = 0;
    y.reshaped().cwiseAbs().maxCoeff(&at);
    return at;
}

}  // namespace

TEST_CASE("every format's product is right in every compute class") {
    for (const nibble::recipe& r : nibble::recipes()) {
        for (const nibble::compute c : classes) {
            for (const Index k : {1, 100, 512}) {
                const product p(r.name, 37, k, 5, c);
                const bench::verdict v = p.judge(c);
                CAPTURE(r.name, nibble::name_of(c), k, v.error, v.tolerance);
                CHECK(v.right());
            }
        }
    }
}

TEST_CASE("a product that is wrong in one way is refused") {
    struct mistake {
        const char* what;
        void (*make)(Eigen::MatrixXf& y);
    };
    const mistake mistakes[] = {
        {"one output is NaN", [](Eigen::MatrixXf& y) { y(3, 2) = std::numeric_limits<float>::quiet_NaN(); }},
        {"one output is infinite", [](Eigen::MatrixXf& y) { y(3, 2) = std::numeric_limits<float>::infinity(); }},
        {"one output has another sign", [](Eigen::MatrixXf& y) { y.reshaped()(largest(y)) *= -1.0f; }},
        {"two columns are swapped", [](Eigen::MatrixXf& y) { y.col(0).swap(y.col(7)); }},
        {"the last row is not written", [](Eigen::MatrixXf& y) { y.row(63).setZero(); }},
        {"a factor is forgotten", [](Eigen::MatrixXf& y) { y *= 1.03f; }},
    };
    for (const nibble::compute c : classes) {
        for (const mistake& m : mistakes) {
            CAPTURE(nibble::name_of(c), m.what);
            product p("q4_k", 64, 1024, 8, c);
            CHECK(p.judge(c).right());
            m.make(p.y);
            CHECK_FALSE(p.judge(c).right());
        }
    }
}

TEST_CASE("the tolerance follows the compute class") {
    // What one class may do is wrong in the next one, and the tolerance is no larger than a few times what happens.
    const product f32("int4_g32", 64, 1024, 16, nibble::compute::f32);
    const product a16("int4_g32", 64, 1024, 16, nibble::compute::a16);
    const product a8("int4_g32", 64, 1024, 16, nibble::compute::a8);
    CHECK_FALSE(a16.judge(nibble::compute::f32).right());
    CHECK_FALSE(a8.judge(nibble::compute::a16).right());
    CHECK(a16.judge(nibble::compute::a16).error > a16.judge(nibble::compute::a16).tolerance / 8.0);
    CHECK(a8.judge(nibble::compute::a8).error > a8.judge(nibble::compute::a8).tolerance / 8.0);
    CHECK(f32.judge(nibble::compute::f32).tolerance < 1e-5);
}

TEST_CASE("one part in ten thousand is wrong for f32") {
    product p("q8_0", 16, 256, 4, nibble::compute::f32);
    p.y *= 1.0001f;
    CHECK_FALSE(p.judge(nibble::compute::f32).right());
}

TEST_CASE("a zero product is right, and only zero") {
    const bench::row_matrix w = bench::row_matrix::Zero(4, 32);
    const Eigen::MatrixXf x = Eigen::MatrixXf::Ones(32, 3);
    Eigen::MatrixXf y = Eigen::MatrixXf::Zero(4, 3);
    CHECK(bench::check_product(w, 32, x, y, nibble::compute::f32).right());
    y(1, 1) = 1e-20f;
    CHECK_FALSE(bench::check_product(w, 32, x, y, nibble::compute::f32).right());
}

TEST_CASE("rows are spread over the whole matrix") {
    CHECK(bench::spread_rows(3, 32) == std::vector<Index>{0, 1, 2});
    CHECK(bench::spread_rows(5, 1) == std::vector<Index>{0});
    const std::vector<Index> rows = bench::spread_rows(4096, 32);
    REQUIRE(rows.size() == 32);
    CHECK(rows.front() == 0);
    CHECK(rows.back() == 4095);
    bool positions[16] = {};  // in panels of 16
    for (const Index n : rows) positions[n % 16] = true;
    CHECK(std::count(std::begin(positions), std::end(positions), true) >= 12);
}

TEST_CASE("the reference product is the definition") {
    bench::row_matrix w(2, 3);
    w << 1, 2, 3, 4, 5, 6;
    Eigen::MatrixXf x(3, 2);
    x << 1, 0, 0, 1, 1, 1;
    Eigen::MatrixXd expected(2, 2);
    expected << 4, 5, 10, 11;
    CHECK(bench::reference_product(w, x) == expected);
}
