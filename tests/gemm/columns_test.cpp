// Column j of W X is W X.col(j), bit for bit, however the columns are batched, placed or accompanied, at every level.
#include <nibble/nibble.hpp>

#include <array>
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

/// Every third column is one that some class sends to strict_f32.
MatrixXf mixed_columns(Index k, Index m, std::uint64_t stream) {
    MatrixXf x = data::matrix(k, m, stream);
    for (Index j = 0; j < m; j += 3) {
        if (j % 2 == 0)
            x(k / 3, j) = 0x1p22f;
        else
            x(k / 3, j) = std::bit_cast<float>(0x7f800000u);
    }
    return x;
}

}  // namespace

TEST_CASE("a column does not depend on the batch", "[gemm][columns]") {
    CAPTURE(data::seed());
    tally t;
    std::size_t count = 0;
    for (const nibble::recipe& r : nibble::recipes()) {
        ++count;
        const qmatrix w = nibble::quantize(data::matrix(35, 288, count), r.name);
        const MatrixXf x = mixed_columns(288, 17, 1000 + count);
        for_each_isa([&](nibble::isa level) {
            for (const compute c : classes) {
                MatrixXf whole(35, 17);
                nibble::gemm(w, x, whole, {.compute = c});
                const auto check = [&](const MatrixXf& y, const char* how) {
                    t.check(data::bits_differing(whole, y) == 0, [&] {
                        return std::string(r.name) + " " + nibble::name_of(c) + " at " + nibble::name_of(level) + ", " +
                               how;
                    });
                };
                MatrixXf y = MatrixXf::Constant(35, 17, 7.0f);
                for (Index j = 0; j < 17; ++j) nibble::gemm(w, x.col(j), y.col(j), {.compute = c});
                check(y, "column by column");
                y.setZero();
                for (Index j = 0; j < 17; j += 5) {
                    const Index m = std::min<Index>(5, 17 - j);
                    nibble::gemm(w, x.middleCols(j, m), y.middleCols(j, m), {.compute = c});
                }
                check(y, "five at a time");
                y.setZero();
                nibble::gemm(w, x.rowwise().reverse().eval(), y, {.compute = c});
                check(y.rowwise().reverse().eval(), "in reverse");
                MatrixXf twice(288, 34);
                twice << x, x;
                MatrixXf both = MatrixXf::Constant(35, 34, 7.0f);  // a column that nobody writes is seen
                nibble::gemm(w, twice, both, {.compute = c});
                check(both.rightCols(17), "after a copy of themselves");
            }
        });
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == count * supported_isas().size() * 4 * 4);
    CHECK(count >= 52);
}

TEST_CASE("rows do not depend on each other", "[gemm][columns]") {
    // Panels of 16 rows: the same weights further up or down give the same bits.
    const MatrixXf w = data::matrix(50, 96, 1);
    const MatrixXf x = mixed_columns(96, 5, 2);
    tally t;
    for (const char* name : {"int4_g32", "int8_zero_point", "q6_k", "nf4", "mxfp4", "fp16"}) {
        for (const compute c : classes) {
            MatrixXf whole(50, 5);
            nibble::gemm(nibble::quantize(w, name), x, whole, {.compute = c});
            for (const Index first : {1, 3, 15, 16, 17, 33}) {
                MatrixXf part(50 - first, 5);
                nibble::gemm(nibble::quantize(w.bottomRows(50 - first), name), x, part, {.compute = c});
                t.check(data::bits_differing(part, whole.bottomRows(50 - first)) == 0,
                        [&] { return std::string(name) + " from row " + std::to_string(first); });
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 6 * 4 * 6);
}

TEST_CASE("a product leaves the level, the matrix and X as they were", "[gemm][columns]") {
    const isa_guard restore;
    const MatrixXf x = data::matrix(64, 3, 3);
    const MatrixXf copy = x;
    const qmatrix w = nibble::quantize<nibble::int4>(data::matrix(20, 64, 4));
    const std::vector<std::uint8_t> bytes(w.data(), w.data() + w.memory_bytes());
    for (const nibble::isa level : supported_isas()) {
        nibble::set_active_isa(level);
        const MatrixXf y = w * x;
        CHECK(nibble::active_isa() == level);
        CHECK(y.rows() == 20);
    }
    CHECK(data::bits_differing(x, copy) == 0);
    CHECK(std::vector<std::uint8_t>(w.data(), w.data() + w.memory_bytes()) == bytes);
}

TEST_CASE("explain names the matrix, the class, the level and the path", "[gemm]") {
    const isa_guard restore;
    const qmatrix w = nibble::quantize<nibble::int4>(data::matrix(20, 64, 4), nibble::absmax{}, nibble::per_group{32});
    const qmatrix t = nibble::quantize<nibble::nf4>(data::matrix(20, 512, 4), nibble::absmax{}, nibble::per_channel{});
    const qmatrix h = nibble::quantize<nibble::fp16>(data::matrix(20, 64, 4));
    const auto contains = [](const std::string& text, const std::string& part) {
        return text.find(part) != std::string::npos;
    };
    for (const nibble::isa level : supported_isas()) {
        nibble::set_active_isa(level);
        const std::string text = nibble::explain(w, 7);
        CAPTURE(text);
        CHECK(contains(text, "int4"));
        CHECK(contains(text, "20x64"));
        CHECK(contains(text, "7"));
        CHECK(contains(text, "f32"));
        CHECK(contains(text, nibble::name_of(level)));
        CHECK(contains(text, "3 base-256 digits"));
        CHECK(contains(text, "32"));
    }
    CHECK(contains(nibble::explain(w, 1, {.compute = compute::a8}), "1 base-256 digit "));
    CHECK(contains(nibble::explain(w, 1, {.compute = compute::a16}), "2 base-256 digits"));
    CHECK(contains(nibble::explain(t, 1), "table"));
    CHECK(contains(nibble::explain(t, 1), "256"));  // sub-blocks are cut there
    CHECK(contains(nibble::explain(t, 1, {.compute = compute::a8}), "8 bits"));
    CHECK(contains(nibble::explain(h, 1), "16-bit weights"));
    CHECK(contains(nibble::explain(w, 1, {.compute = compute::strict_f32}), "strict_f32"));
}
