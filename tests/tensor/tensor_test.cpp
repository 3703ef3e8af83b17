// Eigen::Tensor through a channel axis, against loops over indices that know nothing of strides.
#include <cmath>
#include <string>
#include <vector>

#include <nibble/nibble.hpp>
#include <nibble/tensor.hpp>

#include "support/catch.hpp"

namespace {

template <int Layout>
Eigen::Tensor<float, 4, Layout> numbered(Eigen::Index a, Eigen::Index b, Eigen::Index c, Eigen::Index d) {
    Eigen::Tensor<float, 4, Layout> t(a, b, c, d);
    std::uint32_t state = 1;
    for (Eigen::Index i = 0; i < a; ++i)
        for (Eigen::Index j = 0; j < b; ++j)
            for (Eigen::Index k = 0; k < c; ++k)
                for (Eigen::Index l = 0; l < d; ++l) {
                    state = state * 1664525u + 1013904223u;
                    t(i, j, k, l) = static_cast<float>(static_cast<int>(state >> 8) - (1 << 23)) / 8388608.0f;
                }
    return t;
}

// The matrix that the documentation promises: a row per channel, columns in memory order of the other axes.
template <int Layout>
Eigen::MatrixXf unfolded(const Eigen::Tensor<float, 4, Layout>& t, std::size_t axis) {
    const Eigen::Index d[4] = {t.dimension(0), t.dimension(1), t.dimension(2), t.dimension(3)};
    Eigen::MatrixXf m(d[axis], t.size() / (d[axis] == 0 ? 1 : d[axis]));
    std::vector<std::size_t> order;  // the other axes, slowest first
    for (std::size_t i = 0; i < 4; ++i)
        if (i != axis) order.push_back(i);
    if (Layout == Eigen::ColMajor) order = {order[2], order[1], order[0]};
    Eigen::Index at[4] = {};
    for (at[axis] = 0; at[axis] < d[axis]; ++at[axis]) {
        Eigen::Index column = 0;
        for (at[order[0]] = 0; at[order[0]] < d[order[0]]; ++at[order[0]])
            for (at[order[1]] = 0; at[order[1]] < d[order[1]]; ++at[order[1]])
                for (at[order[2]] = 0; at[order[2]] < d[order[2]]; ++at[order[2]])
                    m(at[axis], column++) = t(at[0], at[1], at[2], at[3]);
    }
    return m;
}

template <int Layout>
int check_layout() {
    int cases = 0;
    const auto t = numbered<Layout>(5, 6, 7, 8);
    for (std::size_t axis = 0; axis < 4; ++axis) {
        CAPTURE(axis);
        const Eigen::MatrixXf m = unfolded(t, axis);
        for (const char* name : {"int8_per_channel", "q4_0", "nf4", "bf16", "int4_zero_g128", "q6_k"}) {
            CAPTURE(name);
            const nibble::qtensor q = nibble::quantize(t, static_cast<nibble::index>(axis), name);
            CHECK(q.matrix.rows() == t.dimension(axis));
            const Eigen::MatrixXf expected = nibble::dequantize(nibble::quantize(m, name));
            CHECK(nibble::dequantize(q.matrix) == expected);
            const auto back = nibble::dequantize<Eigen::Tensor<float, 4, Layout>>(q);
            CHECK(unfolded<Layout>(back, axis) == expected);
            constexpr int other = Layout == Eigen::ColMajor ? Eigen::RowMajor : Eigen::ColMajor;
            const auto swapped = nibble::dequantize<Eigen::Tensor<float, 4, other>>(q);
            bool same = true;
            for (Eigen::Index i = 0; i < 5; ++i)
                for (Eigen::Index j = 0; j < 6; ++j)
                    for (Eigen::Index k = 0; k < 7; ++k)
                        for (Eigen::Index l = 0; l < 8; ++l) same = same && swapped(i, j, k, l) == back(i, j, k, l);
            CHECK(same);
            ++cases;
        }
        // Products along this axis: every vector along it is a column.
        const Eigen::MatrixXf weights = Eigen::MatrixXf::Random(9, t.dimension(axis));
        const nibble::qmatrix w = nibble::quantize<nibble::int8>(weights);
        const auto y = nibble::multiply(w, t, static_cast<nibble::index>(axis));
        CHECK(y.dimension(axis) == 9);
        CHECK(unfolded<Layout>(y, axis) == w * m);
        ++cases;
    }
    return cases;
}

template <class F>
std::string message_of(F&& f) {
    try {
        f();
    } catch (const nibble::error& e) {
        return e.what();
    }
    return "";
}

}  // namespace

TEST_CASE("tensors quantize, decode and multiply along every axis of both orders") {
    int cases = 0;
    SECTION("column-major") {
        cases = check_layout<Eigen::ColMajor>();
        CHECK(cases == 28);
    }
    SECTION("row-major") {
        cases = check_layout<Eigen::RowMajor>();
        CHECK(cases == 28);
    }
}

TEST_CASE("maps, other scalars, other ranks and empty tensors") {
    const auto t = numbered<Eigen::ColMajor>(4, 3, 2, 5);
    const Eigen::TensorMap<const Eigen::Tensor<float, 4>> map(t.data(), 4, 3, 2, 5);
    CHECK(nibble::dequantize(nibble::quantize<nibble::nf4>(map, 1).matrix) ==
          nibble::dequantize(nibble::quantize<nibble::nf4>(t, 1).matrix));

    Eigen::Tensor<double, 1> line(10);
    for (Eigen::Index i = 0; i < 10; ++i) line(i) = static_cast<double>(i) - 4.5;
    const nibble::qtensor q = nibble::quantize<nibble::fp16>(line, 0);
    CHECK(q.matrix.rows() == 10);
    CHECK(q.matrix.cols() == 1);
    CHECK(nibble::dequantize<Eigen::Tensor<float, 1>>(q)(3) == -1.5f);

    Eigen::Tensor<Eigen::half, 2, Eigen::RowMajor> halves(3, 4);
    halves.setConstant(Eigen::half(0.5f));
    CHECK(nibble::dequantize(nibble::quantize<nibble::int8>(halves, 0).matrix) == Eigen::MatrixXf::Constant(3, 4, 0.5f));

    Eigen::Tensor<float, 3> none(3, 0, 4);
    const nibble::qtensor nothing = nibble::quantize<nibble::int8>(none, 0);
    CHECK(nothing.matrix.rows() == 3);
    CHECK(nothing.matrix.cols() == 0);
    CHECK(nibble::dequantize<Eigen::Tensor<float, 3>>(nothing).size() == 0);
}

TEST_CASE("operator* multiplies along the axis that is contiguous in memory") {
    const nibble::qmatrix w = nibble::quantize<nibble::int8>(Eigen::MatrixXf::Random(7, 5));
    const auto columns = numbered<Eigen::ColMajor>(5, 2, 3, 4);
    CHECK((w * columns).dimension(0) == 7);
    CHECK(unfolded<Eigen::ColMajor>(w * columns, 0) == w * unfolded(columns, 0));
    const auto rows = numbered<Eigen::RowMajor>(2, 3, 4, 5);
    CHECK((w * rows).dimension(3) == 7);
    CHECK(unfolded<Eigen::RowMajor>(w * rows, 3) == w * unfolded(rows, 3));
}

TEST_CASE("tensor mistakes name the axis and the dimensions") {
    const auto t = numbered<Eigen::ColMajor>(4, 3, 2, 5);
    const nibble::qmatrix w = nibble::quantize<nibble::int8>(Eigen::MatrixXf::Random(7, 5));
    CHECK(message_of([&] { (void)nibble::quantize<nibble::int8>(t, 4); }) == "quantize: axis 4 of a tensor of 4x3x2x5");
    CHECK(message_of([&] { (void)nibble::quantize<nibble::int8>(t, -1); }) == "quantize: axis -1 of a tensor of 4x3x2x5");
    CHECK(message_of([&] { (void)nibble::multiply(w, t, 0); }) == "multiply: W is 7x5, axis 0 of x (4x3x2x5) is 4");
    const nibble::qtensor q = nibble::quantize<nibble::int8>(t, 0);
    CHECK(message_of([&] { (void)nibble::dequantize<Eigen::Tensor<float, 3>>(q); }) ==
          "dequantize: a tensor of 4x3x2x5 into one of rank 3");
}
