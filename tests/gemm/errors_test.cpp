// Every mistake in a product or a dequantization: the code, a message that names what disagrees, and outputs that
// nobody touched. The public checks say the same without throwing.
#include <nibble/nibble.hpp>

#include <cstring>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/mistake.hpp"

using Eigen::MatrixXf;
using nibble::const_view;
using nibble::errc;
using nibble::float_view;
using nibble::qmatrix;
using nibble::scalar_type;
using Index = nibble::index;

namespace {

struct fixture {
    qmatrix w = nibble::quantize<nibble::int4>(data::matrix(19, 70, 1));
    MatrixXf x = data::matrix(70, 5, 2);
    MatrixXf y = data::matrix(19, 5, 3);
    std::vector<std::uint32_t> before = data::bits(y);
    [[nodiscard]] bool untouched() const { return data::bits(y) == before; }
};

}  // namespace

TEST_CASE("gemm: shapes that do not fit", "[gemm][errors]") {
    fixture f;
    const MatrixXf short_x = data::matrix(69, 5, 4);
    mistake m = of([&] { nibble::gemm(f.w, short_x, f.y); });
    CHECK(m.code == errc::shape_mismatch);
    CAPTURE(m.message);
    CHECK(contains(m.message, "W is 19x70"));
    CHECK(contains(m.message, "X is 69x5"));
    CHECK(f.untouched());

    CHECK(of([&] { static_cast<void>(f.w * short_x); }).message == m.message);
    CHECK(of([&] { static_cast<void>(short_x.transpose() * f.w.transpose()); }).code == errc::shape_mismatch);
    CHECK(of([&] { static_cast<void>(f.w * (short_x + short_x)); }).code == errc::shape_mismatch);
    CHECK(of([&] { static_cast<void>(f.w * short_x.col(0)); }).code == errc::shape_mismatch);
    CHECK(of([&] { static_cast<void>(nibble::strict_columns(f.w, short_x)); }).code == errc::shape_mismatch);
    CHECK(contains(of([&] { static_cast<void>(nibble::strict_columns(f.w, short_x)); }).message, "69x5"));

    MatrixXf small_y = MatrixXf::Constant(18, 5, 7.0f);
    m = of([&] { nibble::gemm(f.w, f.x, small_y); });
    CHECK(m.code == errc::shape_mismatch);
    CAPTURE(m.message);
    CHECK(contains(m.message, "19x70"));
    CHECK(contains(m.message, "70x5"));
    CHECK(contains(m.message, "19x5"));  // what Y must be
    CHECK(contains(m.message, "18x5"));  // what it is
    CHECK((small_y.array() == 7.0f).all());
    MatrixXf wide_y = MatrixXf::Constant(19, 6, 7.0f);
    CHECK(of([&] { nibble::gemm(f.w, f.x, wide_y); }).code == errc::shape_mismatch);
    CHECK((wide_y.array() == 7.0f).all());
    MatrixXf empty_y;
    CHECK(of([&] { nibble::gemm(f.w, f.x, empty_y); }).code == errc::shape_mismatch);
}

TEST_CASE("gemm: an output that overlaps an input", "[gemm][errors]") {
    // Memory for X (70 x 5) and Y (19 x 5) at every distance that overlaps, and at two that do not.
    fixture f;
    std::vector<float> memory(1000, 3.0f);
    const Index x_length = 70 * 5;
    const Index y_length = 19 * 5;
    int overlaps = 0;
    int allowed = 0;
    for (const Index y_at :
         {Index{200}, 200 + x_length - 1, 200 - y_length + 1, Index{300}, 200 + x_length, 200 - y_length}) {
        const std::vector<float> before = memory;
        const mistake m = of([&] {
            nibble::gemm(f.w, nibble::column_major(std::as_const(memory).data() + 200, 70, 5),
                         nibble::column_major(memory.data() + y_at, 19, 5));
        });
        if (m.code == errc::ok) {
            ++allowed;
            continue;
        }
        ++overlaps;
        CHECK(m.code == errc::overlap);
        CHECK(contains(m.message, "70x5"));
        CHECK(contains(m.message, "shares memory with X"));
        CHECK(memory == before);
    }
    CHECK(overlaps == 4);
    CHECK(allowed == 2);

    MatrixXf square = data::matrix(20, 20, 5);
    const qmatrix w = nibble::quantize<nibble::int8>(square);
    CHECK(of([&] { nibble::gemm(w, square, square); }).code == errc::overlap);
    CHECK(of([&] { nibble::gemm(w, square.col(3), square.col(3)); }).code == errc::overlap);
    CHECK(of([&] { nibble::gemm(w, square.col(3), square.col(4)); }).code == errc::ok);  // neighbours
    CHECK(of([&] { nibble::gemm(w, square.transpose(), square); }).code == errc::overlap);
    // Negative strides reach down from their pointer.
    std::vector<float> line(60, 1.0f);
    const const_view down{line.data() + 39, scalar_type::f32, 20, 1, -1, 20};
    CHECK(of([&] { nibble::gemm(w, down, float_view{line.data() + 5, 20, 1, 1, 20}); }).code == errc::overlap);
    CHECK(of([&] { nibble::gemm(w, down, float_view{line.data() + 40, 20, 1, 1, 20}); }).code == errc::ok);
    // Other scalars: bytes count.
    std::vector<double> doubles(40, 1.0);
    float* inside = static_cast<float*>(static_cast<void*>(doubles.data() + 19));
    const mistake m = of([&] {
        nibble::gemm(w, const_view{doubles.data(), scalar_type::f64, 20, 1, 1, 20}, float_view{inside, 20, 1, 1, 20});
    });
    CHECK(m.code == errc::overlap);
}

TEST_CASE("gemm: an output inside W", "[gemm][errors]") {
    fixture f;
    const std::vector<std::uint8_t> bytes(f.w.data(), f.w.data() + f.w.memory_bytes());
    // Nobody does so by accident, but a view may come from anywhere.
    auto* inside = static_cast<float*>(const_cast<void*>(static_cast<const void*>(f.w.data())));
    const mistake m = of([&] {
        nibble::gemm(f.w, nibble::column_major(std::as_const(f.x).data(), 70, 5), float_view{inside, 19, 5, 1, 19});
    });
    CHECK(m.code == errc::overlap);
    CHECK(contains(m.message, "shares memory with W"));
    CHECK(std::memcmp(bytes.data(), f.w.data(), bytes.size()) == 0);
}

TEST_CASE("gemm and dequantize: null pointers", "[gemm][errors]") {
    fixture f;
    const const_view x = nibble::column_major(std::as_const(f.x).data(), 70, 5);
    const float_view y = nibble::column_major(f.y.data(), 19, 5);
    const const_view no_x{nullptr, scalar_type::f32, 70, 5, 1, 70};
    const float_view no_y{nullptr, 19, 5, 1, 19};
    CHECK(of([&] { nibble::gemm(f.w, no_x, y); }).code == errc::invalid_argument);
    CHECK(contains(of([&] { nibble::gemm(f.w, no_x, y); }).message, "null"));
    CHECK(of([&] { nibble::gemm(f.w, x, no_y); }).code == errc::invalid_argument);
    CHECK(f.untouched());
    CHECK(of([&] { nibble::dequantize(f.w, float_view{nullptr, 19, 70, 1, 19}); }).code == errc::invalid_argument);
    // Nothing to read or write: null is fine.
    const qmatrix no_rows = nibble::quantize<nibble::int4>(MatrixXf(0, 70));
    const qmatrix no_cols = nibble::quantize<nibble::int4>(MatrixXf(19, 0));
    CHECK(of([&] { nibble::gemm(no_rows, x, float_view{nullptr, 0, 5, 1, 0}); }).code == errc::ok);
    CHECK(of([&] { nibble::gemm(no_cols, const_view{nullptr, scalar_type::f32, 0, 5, 1, 0}, y); }).code == errc::ok);
    CHECK((f.y.array() == 0.0f).all());
    CHECK(of([&] { nibble::dequantize(no_rows, float_view{nullptr, 0, 70, 1, 0}); }).code == errc::ok);
}

TEST_CASE("check_gemm says what gemm would throw", "[gemm][errors]") {
    fixture f;
    const const_view x = nibble::column_major(std::as_const(f.x).data(), 70, 5);
    const float_view y = nibble::column_major(f.y.data(), 19, 5);
    CHECK(static_cast<bool>(nibble::check_gemm(f.w, x, y)));
    CHECK(nibble::check_gemm(f.w, x, y).code() == errc::ok);
    CHECK(nibble::check_gemm(f.w, x, y).message().empty());
    int compared = 0;
    const auto same = [&](const const_view& bad_x, const float_view& bad_y) {
        const nibble::status s = nibble::check_gemm(f.w, bad_x, bad_y);
        const mistake m = of([&] { nibble::gemm(f.w, bad_x, bad_y); });
        CHECK(!s);
        CHECK(s.code() == m.code);
        CHECK(s.message() == m.message);
        ++compared;
    };
    same({x.data, scalar_type::f32, 69, 5, 1, 69}, y);
    same(x, {y.data, 18, 5, 1, 18});
    same(x, {y.data, 19, 4, 1, 19});
    same({nullptr, scalar_type::f32, 70, 5, 1, 70}, y);
    same(x, {nullptr, 19, 5, 1, 19});
    same(x, {f.x.data() + 10, 19, 5, 1, 19});
    CHECK(compared == 6);
    CHECK(f.untouched());
}

TEST_CASE("dequantize: shapes and rows that do not exist", "[dequantize][errors]") {
    fixture f;
    MatrixXf out = MatrixXf::Constant(19, 69, 7.0f);
    const mistake m = of([&] { nibble::dequantize(f.w, out); });
    CHECK(m.code == errc::shape_mismatch);
    CHECK(contains(m.message, "19x70"));
    CHECK(contains(m.message, "19x69"));
    CHECK((out.array() == 7.0f).all());
    std::vector<float> row(70, 7.0f);
    for (const Index n : {Index{-1}, Index{19}, Index{1} << 40}) {
        const mistake r = of([&] { nibble::dequantize_row(f.w, n, row.data()); });
        CHECK(r.code == errc::out_of_range);
        CHECK(contains(r.message, std::to_string(n)));
        CHECK(contains(r.message, "19x70"));
    }
    CHECK(row == std::vector<float>(70, 7.0f));
}

TEST_CASE("empty products", "[gemm]") {
    const MatrixXf x = data::matrix(30, 4, 1);
    for (const nibble::recipe& r : nibble::recipes()) {
        CAPTURE(r.name);
        const qmatrix no_rows = nibble::quantize(MatrixXf(0, 30), r.name);
        CHECK(no_rows.rows() == 0);
        CHECK(no_rows.cols() == 30);
        const MatrixXf a = no_rows * x;
        CHECK(a.rows() == 0);
        CHECK(a.cols() == 4);
        const qmatrix no_cols = nibble::quantize(MatrixXf(7, 0), r.name);
        const MatrixXf b = no_cols * MatrixXf(0, 4);
        REQUIRE(b.rows() == 7);
        REQUIRE(b.cols() == 4);
        CHECK((b.array() == 0.0f).all());
        const MatrixXf c = nibble::quantize(data::matrix(7, 30, 2), r.name) * MatrixXf(30, 0);
        CHECK(c.rows() == 7);
        CHECK(c.cols() == 0);
        const qmatrix nothing = nibble::quantize(MatrixXf(0, 0), r.name);
        CHECK((nothing * MatrixXf(0, 3)).size() == 0);
        CHECK(nibble::dequantize(nothing).size() == 0);
        CHECK(nibble::dequantize(no_cols).rows() == 7);
        CHECK(nothing.bits_per_weight() == 0.0);
    }
    const qmatrix made_by_default;
    CHECK((made_by_default * MatrixXf(0, 3)).cols() == 3);
    CHECK(nibble::dequantize(made_by_default).size() == 0);
    CHECK(of([&] { static_cast<void>(made_by_default * x); }).code == errc::shape_mismatch);
}

TEST_CASE("gemm: more columns than memory has addresses", "[gemm][errors]") {
    // A stride of zero makes any number of columns of one: the sizes of scratch memory must not wrap.
    const qmatrix w = nibble::quantize<nibble::int8>(data::matrix(16, 64, 1));
    const MatrixXf x = data::matrix(64, 1, 2);
    MatrixXf y = MatrixXf::Constant(16, 1, 7.0f);
    for (const int power : {57, 58, 59, 60, 61, 62}) {
        const Index m = Index{1} << power;
        const mistake wrong = of([&] {
            nibble::gemm(w, const_view{x.data(), scalar_type::f32, 64, m, 1, 0}, float_view{y.data(), 16, m, 1, 0});
        });
        CHECK(wrong.code == errc::out_of_range);
        CHECK((y.array() == 7.0f).all());
    }
}
