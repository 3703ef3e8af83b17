// Products and quantization read and write memory of any layout in place: every kind of Eigen expression, strides of
// both signs, unaligned addresses, and buffers that end at a page nobody may touch. The result has the bits that a
// plain column-major copy gives.
#include <nibble/nibble.hpp>

#include <array>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/guarded_buffer.hpp"
#include "support/reference.hpp"

using Eigen::MatrixXf;
using nibble::compute;
using nibble::const_view;
using nibble::float_view;
using nibble::qmatrix;
using nibble::scalar_type;
using reference::tally;
using Index = nibble::index;
using RowMajorXf = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using AnyStride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;

namespace {

constexpr Index rows = 19, depth = 70, columns = 5;

struct fixture {
    MatrixXf dense = data::matrix(rows, depth, 1);
    qmatrix w = nibble::quantize<nibble::int4>(dense);
    MatrixXf x = data::matrix(depth, columns, 2);
    MatrixXf y = nibble::operator*(w, x);
};

bool same_matrix(const qmatrix& a, const qmatrix& b) {
    return a.rows() == b.rows() && a.cols() == b.cols() && a.memory_bytes() == b.memory_bytes() &&
           std::memcmp(a.data(), b.data(), a.memory_bytes()) == 0;
}

/// Copies a matrix into memory with the given strides, into a buffer that is exactly as long as it must be.
template <class T>
struct strided {
    guarded_buffer<T> memory;
    T* origin;

    strided(const MatrixXf& m, Index row_stride, Index col_stride, side where)
        : memory(span_of(m, row_stride, col_stride), where), origin(memory.data() - lowest(m, row_stride, col_stride)) {
        for (Index c = 0; c < m.cols(); ++c)
            for (Index r = 0; r < m.rows(); ++r) origin[r * row_stride + c * col_stride] = static_cast<T>(m(r, c));
    }
    static Index lowest(const MatrixXf& m, Index rs, Index cs) {
        return std::min<Index>(0, (m.rows() - 1) * rs) + std::min<Index>(0, (m.cols() - 1) * cs);
    }
    static std::size_t span_of(const MatrixXf& m, Index rs, Index cs) {
        if (m.size() == 0) return 0;
        const Index highest = std::max<Index>(0, (m.rows() - 1) * rs) + std::max<Index>(0, (m.cols() - 1) * cs);
        return static_cast<std::size_t>(highest - lowest(m, rs, cs) + 1);
    }
};

}  // namespace

TEST_CASE("X may be any Eigen expression", "[gemm][views]") {
    const fixture f;
    const MatrixXf& x = f.x;
    tally t;
    const auto check = [&](const MatrixXf& y, const char* what) {
        t.check(data::bits_differing(y, f.y) == 0, [&] { return std::string(what); });
    };
    const RowMajorXf row_major = x;
    check(f.w * row_major, "row-major");
    const MatrixXf transposed = x.transpose();
    check(f.w * transposed.transpose(), "a transpose");
    check(f.w * row_major.transpose().eval().transpose(), "a transpose of a row-major temporary");
    MatrixXf wide = MatrixXf::Constant(depth + 7, columns + 4, 99.0f);
    wide.block(3, 2, depth, columns) = x;
    check(f.w * wide.block(3, 2, depth, columns), "a block");
    check(f.w * wide.middleRows(3, depth).middleCols(2, columns), "a block of a block");
    RowMajorXf wide_rows = wide;
    check(f.w * wide_rows.block(3, 2, depth, columns), "a block of a row-major matrix");
    check(f.w * Eigen::Ref<const MatrixXf, 0, Eigen::OuterStride<>>(wide.block(3, 2, depth, columns)), "a Ref");
    const Eigen::Ref<const MatrixXf> whole_ref = x;
    check(f.w * whole_ref, "a Ref of a whole matrix");
    check(f.w * Eigen::Map<const MatrixXf>(x.data(), depth, columns), "a Map");
    std::vector<float> spread(static_cast<std::size_t>(3 * depth * 2 * columns), 7.0f);
    Eigen::Map<MatrixXf, 0, AnyStride> sparse(spread.data(), depth, columns, AnyStride(3 * depth * 2, 3));
    sparse = x;
    check(f.w * sparse, "a Map with an inner stride of 3");
    MatrixXf flipped = x.colwise().reverse();
    check(f.w * Eigen::Map<MatrixXf, 0, AnyStride>(flipped.data() + depth - 1, depth, columns, AnyStride(depth, -1)),
          "a Map with a negative inner stride");
    flipped = x.rowwise().reverse();
    check(f.w * Eigen::Map<MatrixXf, 0, AnyStride>(flipped.data() + (columns - 1) * depth, depth, columns,
                                                   AnyStride(-depth, 1)),
          "a Map with a negative outer stride");
    check(f.w * x.array(), "an array view");
    const Eigen::ArrayXXf array = x.array();
    check(f.w * array, "an array");
    check(f.w * array.matrix(), "a matrix view of an array");
    // No memory of their own: evaluated once.
    check(f.w * (x + MatrixXf::Zero(depth, columns)), "a sum");
    check(f.w * (0.5f * (2.0f * x)), "a scaled expression");
    check(f.w * x.cast<double>(), "a cast to double");
    check(f.w * x.cast<double>().eval(), "doubles");
    check(f.w * x.cast<double>().cast<float>(), "a cast back");
    check(f.w * (x * MatrixXf::Identity(columns, columns)), "a product");
    check(f.w * x.reverse().reverse(), "a reverse expression");
    check(f.w * x.replicate(1, 1), "a replicate");
    check(f.w * x.array().abs().sign().cwiseProduct(x.array()), "an array expression");
    check(f.w * std::as_const(wide).block(3, 2, depth, columns), "a block of a const matrix");
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 25);
}

TEST_CASE("X in double, half and bfloat16 is rounded to float, or exact", "[gemm][views]") {
    const fixture f;
    tally t;
    const auto check = [&](const auto& x, const char* what) {
        MatrixXf rounded(x.rows(), x.cols());
        for (Index j = 0; j < x.cols(); ++j)
            for (Index k = 0; k < x.rows(); ++k) rounded(k, j) = static_cast<float>(x(k, j));
        for (const compute c : {compute::strict_f32, compute::f32, compute::a16, compute::a8}) {
            MatrixXf wanted(rows, x.cols()), got(rows, x.cols());
            nibble::gemm(f.w, rounded, wanted, {.compute = c});
            nibble::gemm(f.w, x, got, {.compute = c});
            t.check(data::bits_differing(wanted, got) == 0, [&] { return std::string(what); });
            nibble::gemm(f.w, x.transpose().eval().transpose(), got, {.compute = c});
            t.check(data::bits_differing(wanted, got) == 0, [&] { return std::string(what) + " transposed"; });
            nibble::gemm(f.w, x.col(1), got.col(0), {.compute = c});
            t.check(data::bits_differing(wanted.col(1), got.col(0)) == 0,
                    [&] { return std::string(what) + " one column"; });
        }
    };
    check(Eigen::MatrixXd((f.x.cast<double>().array() * 1.0000000123).matrix()), "double");
    check(Eigen::Matrix<Eigen::half, -1, -1>(f.x.cast<Eigen::half>()), "half");
    check(Eigen::Matrix<Eigen::bfloat16, -1, -1>(f.x.cast<Eigen::bfloat16>()), "bfloat16");
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 3 * 4 * 3);
}

TEST_CASE("vectors, fixed sizes and the shape of the result", "[gemm][views]") {
    const fixture f;
    const Eigen::VectorXf v = f.x.col(2);
    const auto y = f.w * v;
    static_assert(std::is_same_v<std::remove_const_t<decltype(y)>, Eigen::Matrix<float, Eigen::Dynamic, 1>>);
    CHECK(data::bits_differing(y, f.y.col(2)) == 0);
    CHECK(data::bits_differing(f.w * f.x.col(2), f.y.col(2)) == 0);
    const Eigen::Matrix<float, depth, columns> fixed = f.x;
    const auto z = f.w * fixed;
    static_assert(std::is_same_v<std::remove_const_t<decltype(z)>, Eigen::Matrix<float, Eigen::Dynamic, columns>>);
    CHECK(data::bits_differing(z, f.y) == 0);
    Eigen::Matrix<float, rows, columns> fixed_y;
    nibble::gemm(f.w, fixed, fixed_y);
    CHECK(data::bits_differing(fixed_y, f.y) == 0);
    const qmatrix small = nibble::quantize<nibble::int8>(Eigen::Matrix4f(Eigen::Matrix4f::Identity() * 2.0f));
    CHECK((small * Eigen::Vector4f(1.0f, 2.0f, 3.0f, 4.0f) - Eigen::Vector4f(2.0f, 4.0f, 6.0f, 8.0f)).norm() < 1e-5f);

    // Tokens as rows: X * W.transpose() is (W * X^T)^T.
    const MatrixXf tokens = f.x.transpose();
    const RowMajorXf row_tokens = tokens;
    CHECK(data::bits_differing(tokens * f.w.transpose(), f.y.transpose().eval()) == 0);
    CHECK(data::bits_differing(row_tokens * f.w.transpose(), f.y.transpose().eval()) == 0);
    CHECK(data::bits_differing((tokens + MatrixXf::Zero(columns, depth)) * f.w.transpose(), f.y.transpose().eval()) ==
          0);
    CHECK(data::bits_differing(f.x.transpose() * f.w.transpose(), f.y.transpose().eval()) == 0);
    const Eigen::RowVectorXf token = tokens.row(3);
    const auto row = token * f.w.transpose();
    static_assert(decltype(row)::RowsAtCompileTime == 1);
    CHECK(data::bits_differing(row, f.y.col(3).transpose().eval()) == 0);
    CHECK(data::bits_differing(tokens.row(3) * f.w.transpose(), f.y.col(3).transpose().eval()) == 0);
}

TEST_CASE("products add up in larger expressions", "[gemm][views]") {
    const fixture f;
    const MatrixXf sum = f.w * f.x + MatrixXf::Ones(rows, columns);
    CHECK(data::bits_differing(sum, (f.y.array() + 1.0f).matrix().eval()) == 0);
    MatrixXf x = f.x;
    x = (f.w * x).topRows(rows).eval();  // the result may replace its operand: it is a value
    CHECK(data::bits_differing(x, f.y) == 0);
}

TEST_CASE("Y may be any writable memory, and nothing beside it is written", "[gemm][views]") {
    const fixture f;
    tally t;
    for_each_isa([&](nibble::isa) {
        MatrixXf wide = MatrixXf::Constant(rows + 9, columns + 6, 42.0f);
        nibble::gemm(f.w, f.x, wide.block(4, 3, rows, columns));
        MatrixXf wanted = MatrixXf::Constant(rows + 9, columns + 6, 42.0f);
        wanted.block(4, 3, rows, columns) = f.y;
        t.check(data::bits_differing(wide, wanted) == 0, [] { return std::string("a block"); });
        RowMajorXf row_major(rows, columns);
        nibble::gemm(f.w, f.x, row_major);
        t.check(data::bits_differing(row_major, f.y) == 0, [] { return std::string("row-major"); });
        MatrixXf transposed(columns, rows);
        nibble::gemm(f.w, f.x, transposed.transpose());
        t.check(data::bits_differing(transposed.transpose().eval(), f.y) == 0,
                [] { return std::string("a transpose"); });
        std::vector<float> spread(static_cast<std::size_t>(2 * rows * 3 * columns), 7.0f);
        Eigen::Map<MatrixXf, 0, AnyStride> sparse(spread.data(), rows, columns, AnyStride(2 * rows * 3, 2));
        nibble::gemm(f.w, f.x, sparse);
        t.check(data::bits_differing(sparse.eval(), f.y) == 0, [] { return std::string("a strided map"); });
        std::size_t untouched = 0;
        for (const float v : spread) untouched += v == 7.0f ? 1 : 0;
        t.check(untouched == spread.size() - static_cast<std::size_t>(rows * columns),
                [] { return std::string("between the strides"); });
        Eigen::ArrayXXf array(rows, columns);
        nibble::gemm(f.w, f.x, array);
        t.check(data::bits_differing(array, f.y) == 0, [] { return std::string("an array"); });
        Eigen::Ref<MatrixXf> ref = wide.block(4, 3, rows, columns);
        ref.setZero();
        nibble::gemm(f.w, f.x, ref);
        t.check(data::bits_differing(ref.eval(), f.y) == 0, [] { return std::string("a Ref"); });
        MatrixXf one_by_one(rows, columns);
        for (Index j = 0; j < columns; ++j) nibble::gemm(f.w, f.x.col(j), one_by_one.col(j));
        t.check(data::bits_differing(one_by_one, f.y) == 0, [] { return std::string("columns"); });
    });
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 8 * supported_isas().size());
}

TEST_CASE("strides of every sign, right up to guard pages", "[gemm][views][guard]") {
    const fixture f;
    tally t;
    struct strides {
        Index row, col;
    };
    // For X (70 x 5) and Y (19 x 5): dense both ways, gaps both ways, and backwards in either or both.
    const auto choices = [](Index r, Index c) {
        return std::array<strides, 10>{strides{1, r}, {c, 1},  {1, r + 3}, {c + 2, 1}, {2, 2 * r + 1},
                                       {-1, r},       {1, -r}, {-1, -r},   {-c, 1},    {-c - 1, -1}};
    };
    for_each_isa([&](nibble::isa) {
        for (const side where : {side::left, side::right}) {
            for (const strides sx : choices(depth, columns)) {
                const strided<float> x(f.x, sx.row, sx.col, where);
                for (const strides sy : choices(rows, columns)) {
                    strided<float> y(MatrixXf::Constant(rows, columns, 1.0f), sy.row, sy.col, where);
                    const float_view to{y.origin, rows, columns, sy.row, sy.col};
                    nibble::gemm(f.w, const_view{x.origin, scalar_type::f32, depth, columns, sx.row, sx.col}, to);
                    Index wrong = 0;
                    for (Index j = 0; j < columns; ++j)
                        for (Index n = 0; n < rows; ++n)
                            wrong += reference::bits_from_float(to.at(n, j)) != reference::bits_from_float(f.y(n, j))
                                         ? 1
                                         : 0;
                    t.check(wrong == 0, [&] {
                        return "X strides " + std::to_string(sx.row) + ", " + std::to_string(sx.col) + "; Y strides " +
                               std::to_string(sy.row) + ", " + std::to_string(sy.col);
                    });
                }
            }
        }
    });
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 200 * supported_isas().size());
}

TEST_CASE("a stride of zero repeats a column or a row of X", "[gemm][views]") {
    const fixture f;
    MatrixXf y(rows, 4);
    nibble::gemm(f.w, const_view{f.x.data(), scalar_type::f32, depth, 4, 1, 0}, {y.data(), rows, 4, 1, rows});
    for (Index j = 0; j < 4; ++j) CHECK(data::bits_differing(y.col(j), f.y.col(0)) == 0);
    const float one = 1.5f;
    nibble::gemm(f.w, const_view{&one, scalar_type::f32, depth, 4, 0, 0}, {y.data(), rows, 4, 1, rows});
    CHECK(data::bits_differing(y, (f.w * MatrixXf::Constant(depth, 4, 1.5f)).eval()) == 0);
}

TEST_CASE("guard pages around every buffer, for every tail", "[gemm][views][guard]") {
    CAPTURE(data::seed());
    tally t;
    std::size_t count = 0;
    for (const char* name : {"int8_per_channel", "int4_g32", "int3_zero_g64", "q5_1", "q6_k", "nf4", "fp8_block128",
                             "bf16", "binary_g128"}) {
        for (const Index n : {1, 15, 16, 17, 33}) {
            for (const Index k : {1, 3, 4, 5, 31, 32, 33, 63, 65, 129}) {
                const MatrixXf dense = data::matrix(n, k, 3);
                const MatrixXf plain = data::matrix(k, 7, 4);
                const qmatrix wanted = nibble::quantize(dense, name);
                const MatrixXf y_wanted = wanted * plain;
                const MatrixXf back_wanted = nibble::dequantize(wanted);
                for (const side where : {side::left, side::right}) {
                    ++count;
                    const auto at = [&](const char* what) {
                        return std::string(name) + " " + std::to_string(n) + "x" + std::to_string(k) + ": " + what;
                    };
                    const strided<float> by_columns(dense, 1, n, where);
                    const strided<float> by_rows(dense, k, 1, where);
                    const nibble::quantize_plan plan = nibble::make_plan(*nibble::find_recipe(name));
                    const qmatrix w = nibble::quantize(nibble::column_major(by_columns.origin, n, k), plan);
                    t.check(same_matrix(w, wanted), [&] { return at("quantize, column-major"); });
                    t.check(same_matrix(nibble::quantize(nibble::row_major(by_rows.origin, n, k), plan), wanted),
                            [&] { return at("quantize, row-major"); });
                    const strided<float> x(plain, 1, k, where);
                    for_each_isa([&](nibble::isa) {
                        strided<float> y(MatrixXf::Zero(n, 7), 1, n, where);
                        nibble::gemm(w, nibble::column_major(std::as_const(x.origin), k, 7),
                                     nibble::column_major(y.origin, n, 7));
                        t.check(data::bits_differing(Eigen::Map<MatrixXf>(y.origin, n, 7), y_wanted) == 0,
                                [&] { return at("gemm"); });
                        strided<float> back(MatrixXf::Zero(n, k), k, 1, where);
                        nibble::dequantize(w, nibble::row_major(back.origin, n, k));
                        t.check(data::bits_differing(Eigen::Map<RowMajorXf>(back.origin, n, k), back_wanted) == 0,
                                [&] { return at("dequantize"); });
                        guarded_buffer<float> row(static_cast<std::size_t>(k), where);
                        nibble::dequantize_row(w, n - 1, row.data());
                        t.check(data::bits_differing(Eigen::Map<Eigen::RowVectorXf>(row.data(), k),
                                                     back_wanted.row(n - 1)) == 0,
                                [&] { return at("dequantize_row"); });
                    });
                }
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(count == 9 * 5 * 10 * 2);
    CHECK(t.cases() == count * (2 + 3 * supported_isas().size()));
}

TEST_CASE("importance weights are not read past their end", "[gemm][views][guard]") {
    const MatrixXf dense = data::matrix(17, 256, 5);
    for (const side where : {side::left, side::right}) {
        guarded_buffer<float> importance(256, where);
        for (std::size_t i = 0; i < 256; ++i) importance[i] = 1.0f + 0.25f * static_cast<float>(i % 7);
        for (const char* name : {"q4_k", "q6_k", "q3_k", "q2_k", "iq4_xs", "q4_0"}) {
            const qmatrix w = nibble::quantize(dense, name, {.importance = {importance.data(), 256}});
            CHECK(nibble::sqnr_db(dense, nibble::dequantize(w)) > 5.0);
        }
    }
}

TEST_CASE("data at every byte offset", "[gemm][views]") {
    // const_view reads with memcpy: any address will do, for every scalar type.
    const fixture f;
    tally t;
    const auto check = [&]<class T>(T, scalar_type type) {
        std::vector<T> x_values, w_values;
        MatrixXf rounded_x(depth, columns), rounded_w(rows, depth);
        for (Index i = 0; i < depth * columns; ++i) {
            x_values.push_back(static_cast<T>(f.x.data()[i]));
            rounded_x.data()[i] = static_cast<float>(x_values.back());
        }
        for (Index i = 0; i < rows * depth; ++i) {
            w_values.push_back(static_cast<T>(f.dense.data()[i]));
            rounded_w.data()[i] = static_cast<float>(w_values.back());
        }
        const qmatrix w = nibble::quantize<nibble::int4>(rounded_w);
        const MatrixXf y = w * rounded_x;
        std::vector<std::uint8_t> bytes(w_values.size() * sizeof(T) + 64);
        for (std::size_t offset = 0; offset < 64; ++offset) {
            std::memcpy(bytes.data() + offset, x_values.data(), x_values.size() * sizeof(T));
            MatrixXf got(rows, columns);
            nibble::gemm(w, const_view{bytes.data() + offset, type, depth, columns, 1, depth},
                         {got.data(), rows, columns, 1, rows});
            t.check(data::bits_differing(got, y) == 0, [&] { return "X at byte " + std::to_string(offset); });
            std::memcpy(bytes.data() + offset, w_values.data(), w_values.size() * sizeof(T));
            const qmatrix again = nibble::quantize(const_view{bytes.data() + offset, type, rows, depth, 1, rows},
                                                   nibble::make_plan(*nibble::default_recipe(nibble::int4::format)));
            t.check(same_matrix(again, w), [&] { return "W at byte " + std::to_string(offset); });
        }
    };
    check(float{}, scalar_type::f32);
    check(double{}, scalar_type::f64);
    check(Eigen::half{}, scalar_type::f16);
    check(Eigen::bfloat16{}, scalar_type::bf16);
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 4 * 64 * 2);
}

TEST_CASE("outputs at every float offset", "[gemm][views]") {
    const fixture f;
    tally t;
    std::vector<float> memory(static_cast<std::size_t>(rows * depth) + 16);
    for_each_isa([&](nibble::isa) {
        for (std::size_t offset = 0; offset < 16; ++offset) {
            nibble::gemm(f.w, f.x, Eigen::Map<MatrixXf>(memory.data() + offset, rows, columns));
            t.check(data::bits_differing(Eigen::Map<MatrixXf>(memory.data() + offset, rows, columns), f.y) == 0,
                    [&] { return "Y at float " + std::to_string(offset); });
            nibble::dequantize(f.w, Eigen::Map<MatrixXf>(memory.data() + offset, rows, depth));
            t.check(data::bits_differing(Eigen::Map<MatrixXf>(memory.data() + offset, rows, depth),
                                         nibble::dequantize(f.w)) == 0,
                    [&] { return "dequantize to float " + std::to_string(offset); });
        }
    });
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 32 * supported_isas().size());
}

TEST_CASE("W may be any Eigen expression", "[gemm][views]") {
    const MatrixXf w = data::matrix(rows, depth, 1);
    const qmatrix wanted = nibble::quantize<nibble::int4>(w);
    tally t;
    const auto check = [&](const qmatrix& q, const char* what) {
        t.check(same_matrix(q, wanted), [&] { return std::string(what); });
    };
    using nibble::int4;
    using nibble::quantize;
    const RowMajorXf row_major = w;
    check(quantize<int4>(row_major), "row-major");
    const MatrixXf transposed = w.transpose();
    check(quantize<int4>(transposed.transpose()), "a transpose");
    MatrixXf wide = MatrixXf::Constant(rows + 7, depth + 4, 99.0f);
    wide.block(3, 2, rows, depth) = w;
    check(quantize<int4>(wide.block(3, 2, rows, depth)), "a block");
    check(quantize<int4>(Eigen::Ref<const MatrixXf>(wide.block(3, 2, rows, depth))), "a Ref");
    check(quantize<int4>(Eigen::Map<const MatrixXf>(w.data(), rows, depth)), "a Map");
    std::vector<float> spread(static_cast<std::size_t>(3 * rows * 2 * depth), 7.0f);
    Eigen::Map<MatrixXf, 0, AnyStride> sparse(spread.data(), rows, depth, AnyStride(3 * rows * 2, 3));
    sparse = w;
    check(quantize<int4>(sparse), "a strided Map");
    MatrixXf flipped = w.colwise().reverse();
    check(
        quantize<int4>(Eigen::Map<MatrixXf, 0, AnyStride>(flipped.data() + rows - 1, rows, depth, AnyStride(rows, -1))),
        "a negative inner stride");
    flipped = w.rowwise().reverse();
    check(quantize<int4>(Eigen::Map<MatrixXf, 0, AnyStride>(flipped.data() + (depth - 1) * rows, rows, depth,
                                                            AnyStride(-rows, 1))),
          "a negative outer stride");
    RowMajorXf flipped_rows = row_major.rowwise().reverse();
    check(quantize<int4>(
              Eigen::Map<RowMajorXf, 0, AnyStride>(flipped_rows.data() + depth - 1, rows, depth, AnyStride(depth, -1))),
          "a negative inner stride, row-major");
    check(quantize<int4>(w.array()), "an array");
    check(quantize<int4>(w + MatrixXf::Zero(rows, depth)), "a sum");
    check(quantize<int4>(w.cast<double>()), "doubles");
    check(quantize<int4>(MatrixXf::Identity(rows, rows) * w), "a product");
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 13);
}

TEST_CASE("parts of a column are inputs and outputs", "[gemm][views]") {
    // Y.col(0).head(n) is a VectorBlock, which is not the DenseBase of itself.
    const nibble::qmatrix w = nibble::quantize<nibble::int8>(MatrixXf::Random(20, 12));
    const MatrixXf x = MatrixXf::Random(30, 2);
    MatrixXf y = MatrixXf::Constant(50, 2, 9.0f);
    nibble::gemm(w, x.col(1).segment(5, 12), y.col(0).segment(7, 20));
    MatrixXf wanted = MatrixXf::Constant(50, 2, 9.0f);
    wanted.block(7, 0, 20, 1) = w * MatrixXf(x.block(5, 1, 12, 1));
    CHECK(y == wanted);
}
