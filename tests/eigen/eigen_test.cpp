// The door between Eigen and views: what is read in place keeps its pointer and strides, what has no memory is
// evaluated once, and writable views accept exactly what can be written.
#include <nibble/eigen.hpp>

#include <string>
#include <type_traits>

#include "support/catch.hpp"
#include "support/data.hpp"

using Eigen::MatrixXf;
using nibble::const_view;
using nibble::eigen_view;
using nibble::scalar_type;
using Index = nibble::index;

namespace {

template <class Derived>
const_view in_place(const Eigen::DenseBase<Derived>& e) {
    static_assert(nibble::detail::has_memory<Derived>);
    return eigen_view<Derived>(e).get();
}

bool is(const const_view& v, const void* data, Index rows, Index cols, Index row_stride, Index col_stride) {
    return v.data == data && v.rows == rows && v.cols == cols && v.row_stride == row_stride &&
           v.col_stride == col_stride;
}

/// How often an element was computed.
int evaluations = 0;
float counted(float x) {
    ++evaluations;
    return x;
}

}  // namespace

TEST_CASE("memory is read in place", "[eigen]") {
    MatrixXf m = data::matrix(6, 5, 1);
    const float* p = m.data();
    CHECK(is(in_place(m), p, 6, 5, 1, 6));
    CHECK(is(in_place(m.transpose()), p, 5, 6, 6, 1));
    CHECK(is(in_place(m.block(1, 2, 3, 2)), p + 13, 3, 2, 1, 6));
    CHECK(is(in_place(m.block(1, 2, 3, 2).transpose()), p + 13, 2, 3, 6, 1));
    CHECK(is(in_place(m.col(3)), p + 18, 6, 1, 1, 6));
    CHECK(in_place(m.row(2)).data == p + 2);
    CHECK(in_place(m.row(2)).col_stride == 6);
    CHECK(in_place(m.diagonal()).row_stride == 7);
    CHECK(is(in_place(m.array()), p, 6, 5, 1, 6));
    CHECK(is(in_place(std::as_const(m)), p, 6, 5, 1, 6));
    const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> r = m;
    CHECK(is(in_place(r), r.data(), 6, 5, 5, 1));
    CHECK(is(in_place(r.transpose()), r.data(), 5, 6, 1, 5));
    CHECK(is(in_place(r.middleCols(1, 3)), r.data() + 1, 6, 3, 5, 1));
    using stride = Eigen::Stride<Eigen::Dynamic, Eigen::Dynamic>;
    const Eigen::Map<MatrixXf, 0, stride> map(m.data(), 3, 2, stride(12, 2));
    CHECK(is(in_place(map), p, 3, 2, 2, 12));
    const Eigen::Map<MatrixXf, 0, stride> back(m.data() + 29, 3, 2, stride(-12, -2));
    CHECK(is(in_place(back), p + 29, 3, 2, -2, -12));
    const Eigen::Ref<const MatrixXf, 0, Eigen::OuterStride<>> ref = m.topRows(4);
    CHECK(is(in_place(ref), p, 4, 5, 1, 6));
    const Eigen::Matrix3f fixed = Eigen::Matrix3f::Identity();
    CHECK(is(in_place(fixed), fixed.data(), 3, 3, 1, 3));
    const Eigen::RowVectorXf row = m.row(0);
    CHECK(in_place(row).rows == 1);
    CHECK(in_place(row).cols == 5);
    CHECK(in_place(row).col_stride == 1);
}

TEST_CASE("the scalar type follows the matrix", "[eigen]") {
    CHECK(in_place(MatrixXf(2, 2)).type == scalar_type::f32);
    CHECK(in_place(Eigen::MatrixXd(2, 2)).type == scalar_type::f64);
    CHECK(in_place(Eigen::Matrix<Eigen::half, 2, 2>()).type == scalar_type::f16);
    CHECK(in_place(Eigen::Matrix<Eigen::bfloat16, 2, 2>()).type == scalar_type::bf16);
    static_assert(nibble::detail::weight_scalar<float> && nibble::detail::weight_scalar<const double>);
    static_assert(!nibble::detail::weight_scalar<int> && !nibble::detail::weight_scalar<long double>);
    static_assert(nibble::size_of(scalar_type::f64) == 8 && nibble::size_of(scalar_type::f32) == 4);
    static_assert(nibble::size_of(scalar_type::f16) == 2 && nibble::size_of(scalar_type::bf16) == 2);
}

TEST_CASE("expressions without memory are evaluated once", "[eigen]") {
    const MatrixXf m = data::matrix(6, 5, 1);
    evaluations = 0;
    const auto expression = m.unaryExpr([](float x) { return counted(x); });
    {
        const eigen_view<std::remove_const_t<decltype(expression)>> view(expression);
        CHECK(evaluations == 30);
        CHECK(view.get().rows == 6);
        CHECK(view.get().cols == 5);
        CHECK(view.get().data != m.data());
        CHECK(*static_cast<const float*>(view.get().at(2, 3)) == m(2, 3));
    }
    CHECK(evaluations == 30);
    // Values come through: sums, products, casts, array expressions, index lists, constants.
    const auto first = [](const auto& e) {
        const eigen_view<std::remove_cvref_t<decltype(e)>> v(e);
        CHECK(v.get().type == scalar_type::f32);
        return *static_cast<const float*>(v.get().at(1, 1));
    };
    CHECK(first(m + m) == 2.0f * m(1, 1));
    CHECK(first(MatrixXf::Identity(6, 6) * m) == m(1, 1));
    CHECK(first(m.cast<double>().cast<float>()) == m(1, 1));
    CHECK(first(m.array() * 2.0f) == 2.0f * m(1, 1));
    CHECK(first(m.reverse()) == m(4, 3));
    CHECK(first(MatrixXf::Ones(3, 3)) == 1.0f);
    CHECK(first(m(Eigen::all, Eigen::seq(0, 4, 2))) == m(1, 2));  // Eigen 3.4 flags it as having memory
    CHECK(first(m(Eigen::all, Eigen::seq(1, 3))) == m(1, 2));
    const std::vector<int> picks = {4, 0, 2};
    CHECK(first(m(picks, picks)) == m(0, 0));
}

TEST_CASE("an evaluated double keeps its bits until it is rounded once", "[eigen]") {
    const Eigen::MatrixXd d = Eigen::MatrixXd::Constant(2, 2, 1.0 / 3.0);
    const auto sum = d + d;
    const eigen_view<std::remove_const_t<decltype(sum)>> view(sum);
    CHECK(view.get().type == scalar_type::f64);
    double x = 0.0;
    std::memcpy(&x, view.get().at(1, 1), sizeof x);
    CHECK(x == 2.0 / 3.0);
}

TEST_CASE("writable views", "[eigen]") {
    MatrixXf m(6, 5);
    const auto same = [](const nibble::float_view& v, const float* data, Index rows, Index cols, Index row_stride,
                         Index col_stride) { return is(v, data, rows, cols, row_stride, col_stride); };
    CHECK(same(nibble::writable_view(m), m.data(), 6, 5, 1, 6));
    CHECK(same(nibble::writable_view(m.transpose()), m.data(), 5, 6, 6, 1));
    CHECK(same(nibble::writable_view(m.block(1, 2, 3, 2)), m.data() + 13, 3, 2, 1, 6));
    CHECK(same(nibble::writable_view(m.col(3)), m.data() + 18, 6, 1, 1, 6));
    CHECK(same(nibble::writable_view(m.array()), m.data(), 6, 5, 1, 6));
    Eigen::Map<MatrixXf> map(m.data(), 3, 10);
    CHECK(same(nibble::writable_view(map), m.data(), 3, 10, 1, 3));
    Eigen::Ref<MatrixXf> ref = m;
    CHECK(same(nibble::writable_view(ref), m.data(), 6, 5, 1, 6));
    nibble::writable_view(m).at(2, 4) = 7.0f;
    CHECK(m(2, 4) == 7.0f);
}

TEST_CASE("byte ranges of views", "[eigen][view]") {
    using nibble::detail::bytes_of;
    const float* p = nullptr;
    std::vector<float> memory(100);
    p = memory.data() + 50;
    const auto range = [&](Index rows, Index cols, Index rs, Index cs) {
        const nibble::detail::byte_range r = bytes_of({p, scalar_type::f32, rows, cols, rs, cs});
        const auto* base = static_cast<const unsigned char*>(static_cast<const void*>(p));
        return r.first == nullptr ? std::pair<Index, Index>{0, 0}
                                  : std::pair<Index, Index>{(r.first - base) / 4, (r.last - base) / 4};
    };
    CHECK(range(3, 4, 1, 3) == std::pair<Index, Index>{0, 12});
    CHECK(range(3, 4, 4, 1) == std::pair<Index, Index>{0, 12});
    CHECK(range(3, 4, 1, 10) == std::pair<Index, Index>{0, 33});
    CHECK(range(3, 4, -1, 3) == std::pair<Index, Index>{-2, 10});
    CHECK(range(3, 4, -1, -3) == std::pair<Index, Index>{-11, 1});
    CHECK(range(3, 4, 0, 0) == std::pair<Index, Index>{0, 1});
    CHECK(range(0, 4, 1, 3) == std::pair<Index, Index>{0, 0});
}
