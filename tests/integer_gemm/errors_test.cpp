// Every mistake is an error that holds the numbers, leaves the output alone, and is what check_integer_gemm says before.
#include <nibble/nibble.hpp>

#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/count_allocations.hpp"
#include "support/integer_reference.hpp"
#include "support/mistake.hpp"

namespace ref = integer_reference;
using Index = nibble::index;
using nibble::activation_rule;
using nibble::activation_type;
using nibble::errc;
using nibble::offset_kind;
using nibble::qmatrix;
using nibble::quantized_activations;

namespace {

qmatrix weights(const nibble::code_format& f, offset_kind offset, Index n, Index k, Index group = 0) {
    return data::random_codes(n, k, f, nibble::scales::f32, offset, {1, group}, 1);
}

struct activations {
    ref::int8_matrix i;
    ref::uint8_matrix u;
    activations(Index k, Index m) : i(ref::codes<std::int8_t>(k, m, 2)), u(ref::codes<std::uint8_t>(k, m, 3)) {}
};

mistake sums(const qmatrix& w, const quantized_activations& a, Index rows, Index cols) {
    ref::MatrixXi y = ref::MatrixXi::Constant(rows, cols, 42);
    const mistake m = of([&] { nibble::integer_gemm(w, a, y); });
    const nibble::status s = nibble::check_integer_gemm(w, a, nibble::writable_integers(y));
    CHECK(s.code() == m.code);
    CHECK(s.message() == m.message);
    if (m.code != errc::ok) CHECK((y.array() == 42).all());
    return m;
}

mistake requantized(const qmatrix& w, const quantized_activations& a, const nibble::requantization& r) {
    ref::int8_matrix y = ref::int8_matrix::Constant(w.rows(), a.cols(), 42);
    const mistake m = of([&] { nibble::integer_gemm(w, a, r, y); });
    const nibble::status s = nibble::check_integer_gemm(w, a, r, nibble::writable_integers(y));
    CHECK(s.code() == m.code);
    if (m.code != errc::ok) CHECK((y.array() == 42).all());
    return m;
}

mistake floats(const qmatrix& w, const quantized_activations& a) {
    Eigen::MatrixXf y(w.rows(), a.cols());
    return of([&] { nibble::integer_gemm(w, a, y); });
}

}  // namespace

TEST_CASE("shapes, formats and groups that integer products refuse", "[integer_gemm][errors]") {
    const activations x(64, 3);
    const quantized_activations a = nibble::wrap_activations(x.i, 1.0f);
    const qmatrix w = weights(nibble::int8::format, offset_kind::none, 20, 64);
    CHECK(sums(w, a, 20, 3).code == errc::ok);
    CHECK(contains(sums(weights(nibble::int8::format, offset_kind::none, 20, 63), a, 20, 3).message, "W is 20x63 int8, A is 64x3"));
    CHECK(sums(w, a, 20, 4).code == errc::shape_mismatch);
    CHECK(contains(sums(w, a, 19, 3).message, "Y must be 20x3, but it is 19x3"));
    CHECK(sums(weights(nibble::nf4::format, offset_kind::none, 20, 64), a, 20, 3).code == errc::unsupported);
    CHECK(sums(weights(nibble::fp8_e4m3::format, offset_kind::none, 20, 64), a, 20, 3).code == errc::unsupported);
    CHECK(contains(sums(weights(nibble::int4::format, offset_kind::minimum, 20, 64), a, 20, 3).message, "W has a minimum"));
    CHECK(contains(sums(weights(nibble::int4::format, offset_kind::float_zero, 20, 64), a, 20, 3).message, "W has a float_zero"));
    const mistake grouped = sums(weights(nibble::int4::format, offset_kind::none, 20, 64, 32), a, 20, 3);
    CHECK(grouped.code == errc::unsupported);
    CHECK(contains(grouped.message, "in groups of 32 and 64"));
    const std::vector<float> scales(6, 1.0f);
    const quantized_activations halves = nibble::wrap_activations(x.i, scales, {}, 32);
    CHECK(contains(sums(w, halves, 20, 3).message, "in groups of 64 and 32"));
    CHECK(contains(floats(w, halves).message, "groups of 32 activations end inside groups of 64 weights"));
    CHECK(floats(weights(nibble::int4::format, offset_kind::none, 20, 64, 32), halves).code == errc::ok);
    CHECK(floats(weights(nibble::int4::format, offset_kind::none, 20, 64, 16), halves).code == errc::ok);
    CHECK(floats(weights(nibble::nf4::format, offset_kind::none, 20, 64), a).code == errc::unsupported);
    CHECK(floats(nibble::quantize(data::matrix(20, 64, 1), "bf16"), a).code == errc::unsupported);
}

TEST_CASE("a K at which int32 might overflow is refused", "[integer_gemm][errors]") {
    struct limit {
        const nibble::code_format* format;
        offset_kind offset;
        bool is_signed;
        int zero;
        Index most;
        const char* text;
    };
    for (const limit& l : {limit{&nibble::int8::format, offset_kind::none, true, 0, 131071, "128 times |a - z| up to 128"},
                           limit{&nibble::int8::format, offset_kind::none, false, 0, 65793, "128 times |a - z| up to 255"},
                           limit{&nibble::int8::format, offset_kind::zero_point, false, 128, 65793, "255 times |a - z| up to 128"},
                           limit{&nibble::int8::format, offset_kind::zero_point, false, 255, 33025, "255 times |a - z| up to 255"},
                           limit{&nibble::int8::format, offset_kind::zero_point, true, -128, 33025, "255 times |a - z| up to 255"},
                           limit{&nibble::int4::format, offset_kind::none, true, 0, 2097151, "8 times |a - z| up to 128"}}) {
        for (const Index k : {l.most, l.most + 1}) {
            const activations x(k, 1);
            const quantized_activations a = l.is_signed ? nibble::wrap_activations(x.i, 1.0f, l.zero) : nibble::wrap_activations(x.u, 1.0f, l.zero);
            const mistake m = sums(weights(*l.format, l.offset, 1, k), a, 1, 1);
            CHECK(m.code == (k == l.most ? errc::ok : errc::out_of_range));
            if (k == l.most) continue;
            CHECK(contains(m.message, "K = " + std::to_string(l.most) + " of"));
            CHECK(contains(m.message, l.text));
        }
    }
}

TEST_CASE("requantizations that cannot be", "[integer_gemm][errors]") {
    const activations x(64, 3);
    const quantized_activations a = nibble::wrap_activations(x.u, 1.0f, 3);
    const qmatrix w = weights(nibble::int8::format, offset_kind::none, 20, 64);
    CHECK(requantized(w, a, {.scale = 1.0f}).code == errc::ok);
    for (const float scale : {0.0f, -1.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()})
        CHECK(requantized(w, a, {.scale = scale}).code == errc::invalid_argument);
    CHECK(contains(requantized(w, a, {.scale = 1.0f, .zero = 128}).message, "a zero point of 128, codes are -128 to 127"));
    CHECK(requantized(w, a, {.scale = 1.0f, .lowest = 5, .highest = 4}).code == errc::invalid_argument);
    CHECK(requantized(w, a, {.scale = 1.0f, .lowest = 128}).code == errc::invalid_argument);
    CHECK(requantized(w, a, {.scale = 1.0f, .highest = -129}).code == errc::invalid_argument);
    std::vector<std::int32_t> bias(19, 0);
    CHECK(contains(requantized(w, a, {.scale = 1.0f, .bias = bias}).message, "the bias has 19 elements, not 20"));
    bias.resize(20);
    const std::int32_t room = 2147483647 - 64 * 128 * 252;
    for (const int sign : {1, -1}) {
        bias[7] = sign * room;
        CHECK(requantized(w, a, {.scale = 1.0f, .bias = bias}).code == errc::ok);
        bias[7] = sign * (room + 1);
        const mistake m = requantized(w, a, {.scale = 1.0f, .bias = bias});
        CHECK(m.code == errc::out_of_range);
        CHECK(contains(m.message, "a bias of " + std::to_string(room + 1)));
    }
    bias[7] = std::numeric_limits<std::int32_t>::min();
    CHECK(requantized(w, a, {.scale = 1.0f, .bias = bias}).code == errc::out_of_range);
    const std::vector<float> scales = {1.0f, 2.0f, 3.0f};
    const mistake token = requantized(w, nibble::wrap_activations(x.u, scales), {.scale = 1.0f});
    CHECK(token.code == errc::unsupported);
    CHECK(contains(token.message, "a scale for each column"));
    nibble::qmatrix_builder b(20, 64, nibble::int8::format, nibble::scales::f32, offset_kind::none, {1, 0});
    b.set_scale(17, 0, nibble::detail::bits_of(std::numeric_limits<float>::infinity()));
    const mistake row = requantized(std::move(b).finish(), a, {.scale = 1.0f});
    CHECK(row.code == errc::non_finite);
    CHECK(contains(row.message, "the scale of row 17 is inf"));
}

TEST_CASE("outputs that share memory with inputs, and null pointers", "[integer_gemm][errors]") {
    const qmatrix w = weights(nibble::int8::format, offset_kind::none, 16, 64);
    std::vector<std::int32_t> memory(256, 0);
    const nibble::integer_view<std::int8_t> codes{reinterpret_cast<std::int8_t*>(memory.data()), 64, 4, 1, 64};
    const quantized_activations a = nibble::wrap_activations(codes, 1.0f);
    const auto to = [&](std::int32_t* y) { return of([&] { nibble::integer_gemm(w, a, nibble::integer_view<std::int32_t>{y, 16, 4, 1, 16}); }); };
    CHECK(to(memory.data() + 63).code == errc::overlap);
    CHECK(to(memory.data() + 64).code == errc::ok);
    CHECK(to(nullptr).code == errc::invalid_argument);
    CHECK(to(reinterpret_cast<std::int32_t*>(const_cast<std::uint8_t*>(w.data()))).code == errc::overlap);
    CHECK(of([] { static_cast<void>(nibble::wrap_activations(nibble::integer_view<std::int8_t>{nullptr, 3, 3, 1, 3}, 1.0f)); }).code == errc::invalid_argument);
    CHECK(of([] { static_cast<void>(nibble::quantize_activations(nibble::const_view{nullptr, nibble::scalar_type::f32, 3, 3, 1, 3}, activation_rule::per_token())); }).code ==
          errc::invalid_argument);
}

TEST_CASE("nothing is allocated with a workspace that is large enough", "[integer_gemm][workspace]") {
    const activations x(300, 9);
    const quantized_activations a = nibble::wrap_activations(x.u, 1.0f, 3);
    const qmatrix w = weights(nibble::int4::format, offset_kind::zero_point, 40, 300);
    const qmatrix grouped = weights(nibble::int4::format, offset_kind::zero_point, 40, 300, 32);
    nibble::workspace scratch;
    ref::MatrixXi y(40, 9);
    ref::int8_matrix z(40, 9);
    Eigen::MatrixXf f(40, 9);
    const auto all = [&] {
        nibble::integer_gemm(w, a, y, {.workspace = &scratch});
        nibble::integer_gemm(w, a, {.scale = 9.0f}, z, {.workspace = &scratch});
        nibble::integer_gemm(w, a, f, {.workspace = &scratch});
        nibble::integer_gemm(grouped, a, f, {.workspace = &scratch});
    };
    CHECK(allocations::of(all) > 0);
    CHECK(allocations::of(all) == 0);
}
