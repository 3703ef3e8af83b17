// gather_rows against dequantize, bit for bit, for every recipe; outputs of any stride; indices of any integer type.
#include <nibble/nibble.hpp>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/guarded_buffer.hpp"
#include "support/mistake.hpp"
#include "support/reference_formats.hpp"

using Eigen::MatrixXf;
using nibble::errc;
using nibble::float_view;
using nibble::qmatrix;
using reference::tally;
using Index = nibble::index;

TEST_CASE("gathered rows are the decoded rows, for every recipe", "[rows]") {
    const std::vector<std::int32_t> tokens = {7, 0, 52, 7, 31, 16, 15, 48};
    tally t;
    for (const Index depth : {200, 97, 3}) {
        const MatrixXf dense = data::matrix(53, depth, 1, data::distribution::student_t4);
        for (const nibble::recipe& r : nibble::recipes()) {
            const qmatrix w = nibble::quantize(dense, r.name);
            const MatrixXf decoded = nibble::dequantize(w);
            const MatrixXf x = nibble::gather_rows(w, tokens);
            t.check(x.rows() == depth && x.cols() == 8, [&] { return std::string(r.name); });
            for (Index j = 0; j < 8; ++j)
                t.check(data::bits_differing(x.col(j), decoded.row(tokens[static_cast<std::size_t>(j)]).transpose()) == 0,
                        [&] { return std::string(r.name) + ", column " + std::to_string(j); });
            const MatrixXf block = nibble::gather_rows(w.row_block(32, 21), std::array<int, 2>{16, 20});
            t.check(data::bits_differing(block.transpose(), decoded(std::array<int, 2>{48, 52}, Eigen::all)) == 0,
                    [&] { return std::string(r.name) + ", of a row block"; });
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 3 * 10 * nibble::recipes().size());
}

TEST_CASE("gathered rows go to storage of any layout", "[rows]") {
    const qmatrix w = nibble::quantize(data::matrix(40, 70, 2), "q4_k");
    const std::vector<Index> rows = {39, 1, 1};
    const MatrixXf wanted = nibble::dequantize(w)(rows, Eigen::all).transpose();
    const std::span<const Index> indices(rows);

    guarded_buffer<float> columns(70 * 3);
    nibble::gather_rows(w, indices, nibble::column_major(columns.data(), 70, 3));
    CHECK(data::bits_differing(Eigen::Map<MatrixXf>(columns.data(), 70, 3), wanted) == 0);
    // One token per row, in K-long rows: the same memory.
    guarded_buffer<float> tokens(3 * 70, side::left);
    nibble::gather_rows(w, indices, float_view{tokens.data(), 70, 3, 1, 70});
    CHECK(data::bits_differing(Eigen::Map<Eigen::Matrix<float, -1, -1, Eigen::RowMajor>>(tokens.data(), 3, 70).transpose(), wanted) == 0);
    MatrixXf y(3, 70);
    nibble::gather_rows(w, rows, y.transpose());
    CHECK(data::bits_differing(y, wanted.transpose()) == 0);
    // Row-major K x count, strides of both signs, a block of a larger matrix.
    guarded_buffer<float> across(70 * 3);
    nibble::gather_rows(w, indices, nibble::row_major(across.data(), 70, 3));
    CHECK(data::bits_differing(Eigen::Map<Eigen::Matrix<float, -1, -1, Eigen::RowMajor>>(across.data(), 70, 3), wanted) == 0);
    guarded_buffer<float> backwards(70 * 3);
    nibble::gather_rows(w, indices, float_view{backwards.data() + 70 * 3 - 1, 70, 3, -1, -70});
    CHECK(data::bits_differing(Eigen::Map<MatrixXf>(backwards.data(), 70, 3).reverse(), wanted) == 0);
    MatrixXf large = MatrixXf::Constant(80, 6, 9.0f);
    nibble::gather_rows(w, rows, large.block(5, 2, 70, 3));
    CHECK(data::bits_differing(large.block(5, 2, 70, 3), wanted) == 0);
    CHECK((large.topRows(5).array() == 9.0f).all());
    CHECK((large.bottomRows(5).array() == 9.0f).all());
    CHECK((large.leftCols(2).array() == 9.0f).all());
    CHECK((large.rightCols(1).array() == 9.0f).all());
}

TEST_CASE("indices of any integer type", "[rows]") {
    const qmatrix w = nibble::quantize(data::matrix(300, 8, 3), "int8_per_channel");
    const MatrixXf wanted = nibble::gather_rows(w, std::vector<int>{200, 3});
    CHECK(data::bits_differing(nibble::gather_rows(w, std::vector<std::uint8_t>{200, 3}), wanted) == 0);
    CHECK(data::bits_differing(nibble::gather_rows(w, std::array<std::int64_t, 2>{200, 3}), wanted) == 0);
    CHECK(data::bits_differing(nibble::gather_rows(w, std::vector<std::uint64_t>{200, 3}), wanted) == 0);
    const int tokens[2] = {200, 3};
    CHECK(data::bits_differing(nibble::gather_rows(w, tokens), wanted) == 0);
    CHECK(data::bits_differing(nibble::gather_rows(w, std::span<const int>(tokens)), wanted) == 0);
    CHECK(nibble::gather_rows(w, std::vector<int>{}).cols() == 0);
}

TEST_CASE("mistakes are named before anything is written", "[rows]") {
    const qmatrix w = nibble::quantize(data::matrix(20, 8, 4), "int4_g32");
    MatrixXf x = MatrixXf::Constant(8, 3, 5.0f);
    const auto check = [&](auto indices, const char* a, const char* b) {
        const mistake m = of([&] { nibble::gather_rows(w, indices, x); });
        INFO(m.message);
        CHECK(m.code == errc::out_of_range);
        CHECK(contains(m.message, a));
        CHECK(contains(m.message, b));
        CHECK(contains(m.message, "20 rows"));
    };
    check(std::vector<int>{0, 1, 20}, "index 20", "position 2");
    check(std::vector<int>{0, -1, 20}, "index -1", "position 1");
    check(std::vector<std::uint64_t>{UINT64_MAX, 1, 2}, "index 18446744073709551615", "position 0");
    check(std::vector<std::int64_t>{1, INT64_MIN, 2}, "index -9223372036854775808", "position 1");
    CHECK((x.array() == 5.0f).all());
    const mistake m = of([&] { nibble::gather_rows(w, std::vector<int>{0, 1}, x); });
    CHECK(m.code == errc::shape_mismatch);
    CHECK(contains(m.message, "8x2"));
    CHECK(contains(m.message, "8x3"));
    const int zero = 0;
    CHECK(of([&] { nibble::gather_rows(w, std::span<const int>(&zero, 1), float_view{nullptr, 8, 1, 1, 8}); }).code == errc::invalid_argument);
}
