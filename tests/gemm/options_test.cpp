// What is done to the outputs of a product: y = f(w x + bias + y), each step rounded to float once and in this order, 16
// bits last. The oracle starts from the product without options, which formula_test.cpp compares with plain loops.
#include <nibble/nibble.hpp>

#include <array>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/guarded_buffer.hpp"
#include "support/mistake.hpp"
#include "support/reference.hpp"

using Eigen::MatrixXf;
using nibble::activation;
using nibble::compute;
using nibble::const_view;
using nibble::errc;
using nibble::output_view;
using nibble::qmatrix;
using nibble::scalar_type;
using reference::bits_from_float;
using reference::float_from_bits;
using reference::tally;
using Index = nibble::index;

namespace {

constexpr std::array<compute, 4> classes = {compute::strict_f32, compute::f32, compute::a16, compute::a8};
constexpr std::array<activation, 5> functions = {activation::none, activation::relu, activation::gelu_erf, activation::gelu_tanh, activation::silu};
constexpr std::array<scalar_type, 3> outputs = {scalar_type::f32, scalar_type::f16, scalar_type::bf16};

const float inf = float_from_bits(0x7f800000u);
const float quiet_nan = float_from_bits(0xffc12345u);

NIBBLE_FP_BEGIN

/// Nearest, ties to even, on integers: the bits of a 16-bit float of `fraction` fraction bits and `exponent` exponent
/// bits. NaN has the top fraction bit alone.
std::uint16_t narrow(float x, int exponent, int fraction) {
    const std::uint32_t u = bits_from_float(x);
    const std::uint32_t sign = (u >> 31) << 15;
    const std::uint32_t infinite = ((1u << exponent) - 1) << fraction;
    const std::uint32_t magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return static_cast<std::uint16_t>(infinite | (1u << (fraction - 1)));
    if (magnitude == 0x7f800000u) return static_cast<std::uint16_t>(sign | infinite);
    const int bias = (1 << (exponent - 1)) - 1;
    const std::uint64_t significand = magnitude >= 0x00800000u ? (magnitude & 0x7fffffu) | 0x800000u : magnitude;
    const int power = static_cast<int>(magnitude >> 23 == 0 ? 1 : magnitude >> 23) - 127 - 23;  // x = significand 2^power
    // In units of the result: 2^(e - bias - fraction), e its exponent field, 1 for subnormals.
    int field = power + 23 + bias;
    if (field < 1) field = 1;
    const int shift = field - bias - fraction - power;
    std::uint64_t whole = 0;
    if (shift <= 0) {
        whole = significand << -shift;
    } else if (shift < 40) {
        const std::uint64_t rest = significand & ((std::uint64_t{1} << shift) - 1);
        const std::uint64_t half = std::uint64_t{1} << (shift - 1);
        whole = significand >> shift;
        if (rest > half || (rest == half && (whole & 1) != 0)) ++whole;
    }
    const std::uint64_t result = whole + (static_cast<std::uint64_t>(field - 1) << fraction);  // a carry raises the exponent
    return static_cast<std::uint16_t>(sign | static_cast<std::uint32_t>(result < infinite ? result : infinite));
}

/// The bits of x in a type; f32 in 32 bits.
std::uint32_t stored(float x, scalar_type type) {
    if (type == scalar_type::f16) return narrow(x, 5, 10);
    if (type == scalar_type::bf16) return narrow(x, 8, 7);
    return bits_from_float(x);
}

float widened(std::uint32_t u, scalar_type type) {
    if (type == scalar_type::f32) return float_from_bits(u);
    if (type == scalar_type::bf16) return float_from_bits(u << 16);
    Eigen::half h;
    h.x = static_cast<std::uint16_t>(u);
    return static_cast<float>(h);
}

/// The function of one number, at level scalar, which apply_test.cpp compares with the exact one.
float function_of(activation f, float x) {
    if (f == activation::none) return x;
    if (f == activation::relu && !reference::is_nan_bits(bits_from_float(x))) return x > 0.0f ? x : 0.0f;
    const isa_guard restore;
    nibble::set_active_isa(nibble::isa::scalar);
    float y = 0.0f;
    nibble::apply(f, &x, &y, 1);
    return y;
}

/// f(product + bias + y), step by step. Without bias or y that step is left out: x + 0 is not x for -0.
std::uint32_t finished(float product, const float* bias, const float* y, activation f, scalar_type type) {
    const reference::default_environment environment;  // a host with -ffast-math flushes
    float r = product;
    if (bias != nullptr) r = reference::rounded_sum(r, *bias);
    if (y != nullptr) r = reference::rounded_sum(r, *y);
    return stored(reference::canonical(function_of(f, r)), type);
}

NIBBLE_FP_END

/// An output of any strides in memory that ends at pages nobody may touch.
class placed {
public:
    placed(Index rows, Index cols, scalar_type type, Index row_stride, Index col_stride, side where)
        : memory_(bytes(rows, cols, type, row_stride, col_stride), where), type_(type) {
        const Index low = std::min<Index>(0, (rows - 1) * row_stride) + std::min<Index>(0, (cols - 1) * col_stride);
        view_ = {memory_.data() - low * nibble::size_of(type), type, rows, cols, row_stride, col_stride};
    }
    [[nodiscard]] const output_view& view() const { return view_; }
    [[nodiscard]] std::uint32_t get(Index r, Index c) const {
        std::uint32_t u = 0;
        std::memcpy(&u, view_.at(r, c), static_cast<std::size_t>(nibble::size_of(type_)));
        return u;
    }
    void set(Index r, Index c, std::uint32_t u) { std::memcpy(view_.at(r, c), &u, static_cast<std::size_t>(nibble::size_of(type_))); }
    /// Bytes that still have the filling of a guarded buffer.
    [[nodiscard]] std::size_t untouched() const {
        std::size_t count = 0;
        for (std::size_t i = 0; i < memory_.size(); ++i) count += memory_[i] == 0xa5 ? 1u : 0u;
        return count;
    }

private:
    static std::size_t bytes(Index rows, Index cols, scalar_type type, Index rs, Index cs) {
        return static_cast<std::size_t>(((rows - 1) * std::abs(rs) + (cols - 1) * std::abs(cs) + 1) * nibble::size_of(type));
    }
    guarded_buffer<unsigned char> memory_;
    scalar_type type_;
    output_view view_;
};

constexpr Index rows = 35, depth = 96, columns = 7;

/// Columns of every kind: plain, with an outlier, zero, NaN, of extreme magnitude.
MatrixXf activations() {
    MatrixXf x = data::matrix(depth, columns, 2);
    x(40, 1) = 0x1p24f;
    x.col(2).setZero();
    x(5, 3) = quiet_nan;
    x(95, 4) = -inf;
    x.col(5) *= 0x1p-60f;
    return x;
}

qmatrix weights(const char* name, std::uint64_t stream = 1) { return nibble::quantize(data::matrix(rows, depth, stream), name); }

constexpr std::array<const char*, 4> recipes = {"int4_g32", "q4_k", "nf4", "fp16"};

}  // namespace

TEST_CASE("the oracle narrows as known values say", "[gemm][options]") {
    CHECK(narrow(1.0f, 5, 10) == 0x3c00);
    CHECK(narrow(-2.0f, 5, 10) == 0xc000);
    CHECK(narrow(65504.0f, 5, 10) == 0x7bff);
    CHECK(narrow(65519.0f, 5, 10) == 0x7bff);
    CHECK(narrow(65520.0f, 5, 10) == 0x7c00);
    CHECK(narrow(0x1p-24f, 5, 10) == 0x0001);
    CHECK(narrow(0x1p-25f, 5, 10) == 0x0000);
    CHECK(narrow(0x1.8p-24f, 5, 10) == 0x0002);
    CHECK(narrow(0x1.002p0f, 5, 10) == 0x3c00);
    CHECK(narrow(0x1.006p0f, 5, 10) == 0x3c02);
    CHECK(narrow(1.0f, 8, 7) == 0x3f80);
    CHECK(narrow(0x1.01p0f, 8, 7) == 0x3f80);
    CHECK(narrow(0x1.03p0f, 8, 7) == 0x3f82);
    CHECK(narrow(0x1.fffffep127f, 8, 7) == 0x7f80);
    CHECK(narrow(float_from_bits(1), 8, 7) == 0x0000);
    CHECK(narrow(float_from_bits(0x00018000), 8, 7) == 0x0002);
    CHECK(narrow(quiet_nan, 8, 7) == 0x7fc0);
    CHECK(narrow(-inf, 5, 10) == 0xfc00);
}

TEST_CASE("bias, function, accumulation and output type in every combination", "[gemm][options][guard]") {
    const MatrixXf x = activations();
    const MatrixXf before = data::matrix(rows, columns, 3);
    struct strides {
        Index row, col;
    };
    // Column-major, row-major (also a transpose), gaps in both directions, backwards.
    const std::array<strides, 5> layouts = {strides{1, rows}, {columns, 1}, {2, 2 * rows + 3}, {columns + 3, 1}, {-1, -rows - 2}};
    guarded_buffer<float> bias(rows);
    for (Index i = 0; i < rows; ++i) bias[static_cast<std::size_t>(i)] = 3.0f * data::matrix(rows, 1, 4)(i, 0);
    tally t;
    std::size_t count = 0;
    for (const char* name : recipes) {
        const qmatrix w = weights(name);
        for (const compute c : classes) {
            MatrixXf plain(rows, columns);
            nibble::gemm(w, x, plain, {.compute = c});
            for (const scalar_type type : outputs) {
                for (const activation f : functions) {
                    for (const bool with_bias : {false, true}) {
                        for (const bool accumulate : {false, true}) {
                            std::vector<std::uint32_t> start, wanted;
                            for (Index j = 0; j < columns; ++j)
                                for (Index n = 0; n < rows; ++n) {
                                    start.push_back(stored(before(n, j), type));
                                    const float y = widened(start.back(), type);
                                    wanted.push_back(finished(plain(n, j), with_bias ? &bias[static_cast<std::size_t>(n)] : nullptr,
                                                              accumulate ? &y : nullptr, f, type));
                                }
                            nibble::gemm_options options{.compute = c, .activation = f, .accumulate = accumulate};
                            if (with_bias) options.bias = std::span<const float>(bias.data(), rows);
                            for_each_isa([&](nibble::isa level) {
                                for (std::size_t l = 0; l < layouts.size(); ++l) {
                                    const side where = (l + count) % 2 == 0 ? side::left : side::right;
                                    placed y(rows, columns, type, layouts[l].row, layouts[l].col, where);
                                    for (Index i = 0; i < rows * columns; ++i)
                                        y.set(i % rows, i / rows, start[static_cast<std::size_t>(i)]);
                                    nibble::gemm(w, nibble::column_major(x.data(), depth, columns), y.view(), options);
                                    Index wrong = 0;
                                    for (Index i = 0; i < rows * columns; ++i)
                                        wrong += y.get(i % rows, i / rows) != wanted[static_cast<std::size_t>(i)] ? 1 : 0;
                                    t.check(wrong == 0, [&] {
                                        return std::string(name) + " " + nibble::name_of(c) + " at " + nibble::name_of(level) + ", " +
                                               nibble::name_of(f) + (with_bias ? ", bias" : "") + (accumulate ? ", accumulate" : "") +
                                               ", output type " + std::to_string(static_cast<int>(type)) + ", layout " +
                                               std::to_string(l) + ": " + std::to_string(wrong) + " differ";
                                    });
                                }
                            });
                            ++count;
                        }
                    }
                }
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(count == recipes.size() * 4 * 3 * 5 * 2 * 2);
    CHECK(t.cases() == count * layouts.size() * supported_isas().size());
}

TEST_CASE("options write the elements of Y and nothing between them", "[gemm][options][guard]") {
    const qmatrix w = weights("int4_g32");
    MatrixXf x = data::matrix(depth, columns, 5);
    x(40, 1) = 0x1p24f;  // one column in the second pass
    const Eigen::VectorXf bias = data::matrix(rows, 1, 6);
    tally t;
    for_each_isa([&](nibble::isa) {
        for (const scalar_type type : outputs) {
            placed y(rows, columns, type, 3, 3 * rows + 5, side::right);
            const std::size_t size = y.untouched();
            const auto own = static_cast<std::size_t>(rows * columns * nibble::size_of(type));
            nibble::gemm(w, nibble::column_major(x.data(), depth, columns), y.view(), {.bias = bias, .activation = activation::silu});
            t.check(y.untouched() >= size - own && y.untouched() < size - own / 2, [&] { return std::to_string(static_cast<int>(type)); });
        }
    });
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 3 * supported_isas().size());
}

TEST_CASE("functions are the ones that they are named after", "[gemm][options]") {
    const qmatrix w = weights("int8_per_channel");
    const MatrixXf x = 0.3f * data::matrix(depth, 5, 2);
    const MatrixXf plain = w * x;
    Index differ = 0;
    for (const activation f : functions) {
        MatrixXf y(rows, 5);
        nibble::gemm(w, x, y, {.activation = f});
        for (Index i = 0; i < y.size(); ++i) {
            const double v = static_cast<double>(plain.data()[i]);
            const double inner = 0.7978845608028654 * (v + 0.044715 * v * v * v);
            const double exact = f == activation::none        ? v
                                 : f == activation::relu      ? (v > 0.0 ? v : 0.0)
                                 : f == activation::gelu_erf  ? 0.5 * v * (1.0 + std::erf(v / std::sqrt(2.0)))
                                 : f == activation::gelu_tanh ? 0.5 * v * (1.0 + std::tanh(inner))
                                                              : v / (1.0 + std::exp(-v));
            CHECK(std::fabs(static_cast<double>(y.data()[i]) - exact) <= 1e-7 * std::fabs(exact) + 1e-12 * std::fabs(v));
        }
        differ += data::bits_differing(y, plain) != 0 ? 1 : 0;
    }
    CHECK(differ == 4);
}

TEST_CASE("a bias may be a vector, a row, a block with a stride or a span", "[gemm][options]") {
    const qmatrix w = weights("int4_g32");
    const MatrixXf x = data::matrix(depth, columns, 2);
    const Eigen::VectorXf bias = data::matrix(rows, 1, 7);
    MatrixXf wanted = w * x;
    for (Index j = 0; j < columns; ++j)
        for (Index n = 0; n < rows; ++n) wanted(n, j) = reference::rounded_sum(wanted(n, j), bias(n));
    const auto check = [&](const nibble::bias_view& b) {
        MatrixXf y(rows, columns);
        nibble::gemm(w, x, y, {.bias = b});
        CHECK(data::bits_differing(y, wanted) == 0);
    };
    check(bias);
    const Eigen::RowVectorXf row = bias.transpose();
    check(row);
    check(bias.transpose());
    check(std::span<const float>(bias.data(), rows));
    const std::vector<float> list(bias.data(), bias.data() + rows);
    check(std::span<const float>(list));
    const Eigen::ArrayXf array = bias.array();
    check(array);
    const Eigen::Matrix<float, rows, 1> fixed = bias;
    check(fixed);
    check(Eigen::Map<const Eigen::VectorXf>(bias.data(), rows));
    MatrixXf wide = MatrixXf::Constant(rows + 4, 5, 99.0f);
    wide.block(2, 3, rows, 1) = bias;
    check(wide.col(3).segment(2, rows));
    MatrixXf tall = MatrixXf::Constant(4, rows + 6, 99.0f);
    tall.block(2, 1, 1, rows) = bias.transpose();
    check(tall.row(2).segment(1, rows));  // inner stride 4
    std::vector<float> spread(3 * rows, 99.0f);
    Eigen::Map<Eigen::VectorXf, 0, Eigen::InnerStride<>> every_third(spread.data(), rows, Eigen::InnerStride<>(3));
    every_third = bias;
    check(every_third);
    const Eigen::Ref<const Eigen::VectorXf> ref = bias;
    check(ref);
    Eigen::VectorXf flipped = bias.reverse();
    check(Eigen::Map<Eigen::VectorXf, 0, Eigen::InnerStride<>>(flipped.data() + rows - 1, rows, Eigen::InnerStride<>(-1)));
}

TEST_CASE("half and bfloat16 matrices, blocks and maps are written", "[gemm][options]") {
    const qmatrix w = weights("nf4");
    const MatrixXf x = data::matrix(depth, columns, 2);
    const MatrixXf plain = w * x;
    const auto check = [&]<class Scalar>(Scalar, scalar_type type) {
        using Matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;
        using RowMajor = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
        const auto same = [&](const auto& y) {
            Index wrong = 0;
            for (Index j = 0; j < columns; ++j)
                for (Index n = 0; n < rows; ++n) {
                    const Scalar v = y(n, j);
                    std::uint16_t u = 0;
                    std::memcpy(&u, &v, 2);
                    wrong += u != stored(plain(n, j), type) ? 1 : 0;
                }
            return wrong == 0;
        };
        Matrix y(rows, columns);
        nibble::gemm(w, x, y);
        CHECK(same(y));
        RowMajor r(rows, columns);
        nibble::gemm(w, x, r);
        CHECK(same(r));
        Matrix transposed(columns, rows);
        nibble::gemm(w, x, transposed.transpose());
        CHECK(same(transposed.transpose()));
        Matrix wide = Matrix::Constant(rows + 4, columns + 3, Scalar(7.0f));
        nibble::gemm(w, x, wide.block(2, 1, rows, columns));
        CHECK(same(wide.block(2, 1, rows, columns)));
        Index sevens = 0;
        for (Index i = 0; i < wide.size(); ++i) sevens += static_cast<float>(wide.data()[i]) == 7.0f ? 1 : 0;
        CHECK(sevens == wide.size() - rows * columns);
        for (Index j = 0; j < columns; ++j) nibble::gemm(w, x.col(j), y.col(j));
        CHECK(same(y));
        nibble::gemm(w, nibble::prepare(w, x), y);
        CHECK(same(y));
    };
    check(Eigen::half{}, scalar_type::f16);
    check(Eigen::bfloat16{}, scalar_type::bf16);
}

TEST_CASE("16-bit outputs are rounded to nearest even, at every midpoint and its neighbours", "[gemm][options]") {
    const reference::default_environment environment;  // midpoints of subnormals are subnormal
    // A weight of 1 in class strict_f32: y is x.
    const qmatrix one = nibble::quantize(MatrixXf::Ones(1, 1), "bf16");
    for (const scalar_type type : {scalar_type::f16, scalar_type::bf16}) {
        std::vector<float> x;
        const std::uint32_t last = type == scalar_type::f16 ? 0x7c00 : 0x7f80;
        for (std::uint32_t h = 0; h < last; ++h) {
            const double low = static_cast<double>(widened(h, type));
            const double next = h + 1 == last ? 2.0 * low - static_cast<double>(widened(h - 1, type)) : static_cast<double>(widened(h + 1, type));
            const auto middle = static_cast<float>(0.5 * (low + next));
            for (const std::uint32_t sign : {0u, 0x80000000u})
                for (const std::uint32_t step : {0xffffffffu, 0u, 1u}) {
                    const std::uint32_t u = (bits_from_float(middle) + step) | sign;
                    if ((u & 0x7fffffffu) <= 0x7f7fffffu) x.push_back(float_from_bits(u));
                }
        }
        const auto m = static_cast<Index>(x.size());
        REQUIRE(x.size() > 6 * (last - 2));
        for_each_isa([&](nibble::isa) {
            placed y(1, m, type, 1, 1, side::right);
            nibble::gemm(one, nibble::column_major(x.data(), 1, m), y.view());
            std::size_t wrong = 0;
            for (Index j = 0; j < m; ++j) {
                const float v = x[static_cast<std::size_t>(j)];
                // +0 + -0 is +0; the sum of a product never is -0 here.
                wrong += y.get(0, j) != stored(bits_from_float(v) == 0x80000000u ? 0.0f : v, type) ? 1u : 0u;
            }
            CHECK(wrong == 0);
        });
    }
}

TEST_CASE("NaN and Inf in X, W, bias and Y propagate, and NaN is canonical", "[gemm][options][extremes]") {
    const qmatrix w = weights("int4_g32");
    const MatrixXf x = activations();
    Eigen::VectorXf bias = data::matrix(rows, 1, 8);
    bias(3) = quiet_nan;
    bias(17) = inf;
    bias(34) = -inf;
    MatrixXf before = data::matrix(rows, columns, 9);
    before(5, 0) = quiet_nan;
    before(6, 0) = float_from_bits(0x7f800001u);  // a signalling one
    before(17, 1) = -inf;
    before(9, 2) = inf;
    tally t;
    Index nans = 0;
    for (const compute c : classes) {
        MatrixXf plain(rows, columns);
        nibble::gemm(w, x, plain, {.compute = c});
        for (const activation f : functions) {
            for (const scalar_type type : outputs) {
                for_each_isa([&](nibble::isa level) {
                    placed y(rows, columns, type, 1, rows, side::right);
                    std::vector<std::uint32_t> wanted;
                    for (Index j = 0; j < columns; ++j)
                        for (Index n = 0; n < rows; ++n) {
                            const std::uint32_t u = stored(before(n, j), type);
                            y.set(n, j, u);
                            const float v = widened(u, type);
                            wanted.push_back(finished(plain(n, j), &bias(n), &v, f, type));
                        }
                    nibble::gemm(w, nibble::column_major(x.data(), depth, columns), y.view(),
                                 {.compute = c, .bias = bias, .activation = f, .accumulate = true});
                    for (Index i = 0; i < rows * columns; ++i) {
                        const std::uint32_t got = y.get(i % rows, i / rows);
                        nans += got == stored(quiet_nan, type) ? 1 : 0;
                        t.check(got == wanted[static_cast<std::size_t>(i)], [&] {
                            return std::string(nibble::name_of(c)) + " at " + nibble::name_of(level) + ", " + nibble::name_of(f) + ": (" +
                                   std::to_string(i % rows) + ", " + std::to_string(i / rows) + ") is " + reference::hex(got);
                        });
                    }
                });
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(nans >= 4 * 5 * 3 * (rows + columns));  // row 3 and column 3 at least
}

TEST_CASE("a row of W or a column of X with nothing in it", "[gemm][options]") {
    // K = 0: f(bias + y). No columns: nothing is read or written.
    const qmatrix w = nibble::quantize<nibble::int4>(MatrixXf(rows, 0));
    const Eigen::VectorXf bias = data::matrix(rows, 1, 8);
    const MatrixXf before = data::matrix(rows, 3, 9);
    for (const compute c : classes) {
        MatrixXf y = before;
        nibble::gemm(w, MatrixXf(0, 3), y, {.compute = c, .bias = bias, .activation = activation::silu, .accumulate = true});
        Index wrong = 0;
        for (Index j = 0; j < 3; ++j)
            for (Index n = 0; n < rows; ++n)
                wrong += bits_from_float(y(n, j)) != finished(0.0f, &bias(n), &before(n, j), activation::silu, scalar_type::f32) ? 1 : 0;
        CHECK(wrong == 0);
        MatrixXf none(rows, 0);
        nibble::gemm(weights("int4_g32"), MatrixXf(depth, 0), none, {.compute = c, .bias = bias, .accumulate = true});
        CHECK(none.size() == 0);
    }
    const qmatrix no_rows = nibble::quantize<nibble::int4>(MatrixXf(0, depth));
    MatrixXf empty(0, 3);
    nibble::gemm(no_rows, MatrixXf::Zero(depth, 3), empty, {.bias = std::span<const float>(), .accumulate = true});
    CHECK(of([&] { nibble::gemm(no_rows, MatrixXf::Zero(depth, 3), empty, {.bias = bias}); }).code == errc::shape_mismatch);
}

TEST_CASE("mistakes with options have their message and touch nothing", "[gemm][options][errors]") {
    const qmatrix w = weights("int4_g32");
    const MatrixXf x = data::matrix(depth, columns, 2);
    MatrixXf y = data::matrix(rows, columns, 3);
    const MatrixXf before = y;
    const Eigen::VectorXf bias = data::matrix(rows + 1, 1, 8);
    const const_view from = nibble::column_major(x.data(), depth, columns);

    mistake m = of([&] { nibble::gemm(w, x, y, {.bias = bias}); });
    CAPTURE(m.message);
    CHECK(m.code == errc::shape_mismatch);
    CHECK(contains(m.message, "bias has 36 elements, not 35"));
    CHECK(contains(m.message, "W is 35x96"));
    CHECK(of([&] { nibble::gemm(w, x, y, {.bias = bias.head(rows - 1)}); }).code == errc::shape_mismatch);
    CHECK(of([&] { nibble::gemm(w, x, y, {.bias = std::span<const float>()}); }).code == errc::shape_mismatch);
    CHECK(nibble::check_gemm(w, from, nibble::column_major(y.data(), rows, columns), bias).code() == errc::shape_mismatch);
    CHECK(static_cast<bool>(nibble::check_gemm(w, from, nibble::column_major(y.data(), rows, columns), bias.head(rows))));

    std::vector<double> doubles(rows * columns, 1.0);
    m = of([&] { nibble::gemm(w, from, output_view{doubles.data(), scalar_type::f64, rows, columns, 1, rows}); });
    CHECK(m.code == errc::unsupported);
    CHECK(contains(m.message, "double"));
    CHECK(contains(m.message, "fp16 or bf16"));
    CHECK(doubles == std::vector<double>(rows * columns, 1.0));

    m = of([&] { nibble::gemm(w, from, output_view{nullptr, scalar_type::bf16, rows, columns, 1, rows}); });
    CHECK(m.code == errc::invalid_argument);
    CHECK(contains(m.message, "Y is a null pointer"));

    // 16-bit outputs overlap by bytes: the 35 x 7 halves that end one byte into X, and those that end where X begins.
    std::vector<float> memory(1000, 1.0f);
    auto* bytes = reinterpret_cast<unsigned char*>(memory.data());
    const const_view inside = nibble::column_major(static_cast<const float*>(memory.data()) + 200, depth, columns);
    const auto halves = [&](Index at) { return output_view{bytes + at, scalar_type::f16, rows, columns, 1, rows}; };
    const Index length = rows * columns * 2;
    m = of([&] { nibble::gemm(w, inside, halves(800 - length + 2)); });
    CHECK(m.code == errc::overlap);
    CHECK(contains(m.message, "Y shares memory with X"));
    CHECK(of([&] { nibble::gemm(w, inside, halves(800 + 4 * depth * columns - 2)); }).code == errc::overlap);
    CHECK(of([&] { nibble::gemm(w, inside, halves(800)); }).code == errc::overlap);
    CHECK(memory == std::vector<float>(1000, 1.0f));
    CHECK(of([&] { nibble::gemm(w, inside, halves(800 - length)); }).code == errc::ok);
    CHECK(of([&] { nibble::gemm(w, inside, halves(800 + 4 * depth * columns)); }).code == errc::ok);
    auto* in_w = const_cast<std::uint8_t*>(w.data());
    const std::vector<std::uint8_t> kept(w.data(), w.data() + w.memory_bytes());
    m = of([&] { nibble::gemm(w, from, output_view{in_w + 16, scalar_type::bf16, rows, columns, 1, rows}); });
    CHECK(m.code == errc::overlap);
    CHECK(contains(m.message, "Y shares memory with W"));
    CHECK(std::memcmp(kept.data(), w.data(), kept.size()) == 0);

    // A bias that the output overwrites before the last column has read it.
    m = of([&] { nibble::gemm(w, x, y, {.bias = y.col(0)}); });
    CHECK(m.code == errc::overlap);
    CHECK(contains(m.message, "Y shares memory with the bias"));
    CHECK(of([&] { nibble::gemm(w, x, y, {.bias = y.col(columns - 1)}); }).code == errc::overlap);
    CHECK(of([&] { nibble::gemm(w, x.leftCols(2), y.leftCols(2), {.bias = Eigen::VectorXf(y.col(3))}); }).code == errc::ok);
    y.leftCols(2) = before.leftCols(2);
    CHECK(of([&] { nibble::gemm(w, x.leftCols(2), y.leftCols(2), {.bias = y.col(3)}); }).code == errc::ok);
    y.leftCols(2) = before.leftCols(2);
    CHECK(data::bits_differing(y, before) == 0);
}
