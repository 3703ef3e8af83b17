// Float outputs: one rounding of exact sums where there is one scale along K, the formula of a8 where there are groups.
#include <nibble/nibble.hpp>

#include <cmath>
#include <cstring>
#include <vector>

#include "support/catch.hpp"
#include "support/for_each_isa.hpp"
#include "support/integer_reference.hpp"
#include "support/reference.hpp"

namespace ref = integer_reference;
using Eigen::MatrixXf;
using Index = nibble::index;
using nibble::activation_rule;
using nibble::activation_type;
using nibble::offset_kind;
using nibble::qmatrix;
using nibble::quantized_activations;
using reference::tally;

namespace {

NIBBLE_FP_BEGIN

MatrixXf one_group(const qmatrix& w, const quantized_activations& a) {
    const ref::int64_matrix d = ref::sums(w, a);
    MatrixXf y(w.rows(), a.cols());
    const float unit = w.offset_type() == offset_kind::none ? w.format().unit : 1.0f;
    for (Index j = 0; j < y.cols(); ++j)
        for (Index n = 0; n < y.rows(); ++n) {
            const float s = reference::rounded_product(reference::rounded_product(w.scale(n, 0), unit), a.scale(0, j));
            y(n, j) = reference::rounded_product(static_cast<float>(d(n, j)), s);
        }
    return y;
}

/// One chain over sub-blocks: groups of w, cut at 256.
MatrixXf groups(const qmatrix& w, const quantized_activations& a) {
    const ref::int64_matrix v = ref::integers_of(w);
    const ref::int64_matrix q = ref::integers_of(a);
    MatrixXf y(w.rows(), a.cols());
    const bool offset = w.offset_type() != offset_kind::none;
    for (Index j = 0; j < y.cols(); ++j)
        for (Index n = 0; n < y.rows(); ++n) {
            float acc = 0.0f;
            for (Index g = 0; g < w.groups(); ++g) {
                const Index end = std::min(w.cols(), (g + 1) * w.group_size());
                for (Index first = g * w.group_size(); first < end; first += 256) {
                    std::int64_t d = 0, sum = 0;
                    for (Index k = first; k < std::min(end, first + 256); ++k) {
                        d += v(n, k) * q(k, j);
                        sum += q(k, j);
                    }
                    const float sa = a.scale(first / a.group_size(), j);
                    const float sw = offset ? w.scale(n, g) : reference::rounded_product(w.scale(n, g), w.format().unit);
                    float m = w.offset(n, g);
                    if (w.offset_type() == offset_kind::float_zero) m = -reference::rounded_product(w.scale(n, g), m);
                    if (w.offset_type() == offset_kind::minimum || w.offset_type() == offset_kind::float_zero)
                        acc = std::fma(m, reference::rounded_product(static_cast<float>(sum), sa), acc);
                    acc = std::fma(static_cast<float>(d), reference::rounded_product(sw, sa), acc);
                }
            }
            y(n, j) = acc;
        }
    return y;
}

NIBBLE_FP_END

void compare(const std::string& what, const qmatrix& w, const quantized_activations& a, const MatrixXf& wanted, tally& t) {
    ref::backwards threads;
    for_each_isa([&](nibble::isa level) {
        MatrixXf y(w.rows(), a.cols());
        nibble::integer_gemm(w, a, y);
        t.check(y == wanted, [&] { return what + " at " + nibble::name_of(level) + ": " + std::to_string((y - wanted).cwiseAbs().maxCoeff()); });
        MatrixXf z = MatrixXf::Constant(w.rows(), a.cols(), 3.0f);
        nibble::integer_gemm(w, a, z, {.executor = &threads});
        t.check(z == wanted, [&] { return what + " in tasks at " + nibble::name_of(level); });
    });
}

}  // namespace

TEST_CASE("with one scale along K the exact sum is scaled once", "[integer_gemm][floats]") {
    tally t;
    std::uint64_t stream = 0;
    for (const nibble::code_format* f : nibble::formats()) {
        if (!f->integral()) continue;
        const bool affine = f->decode == nibble::decode_class::integer && f != &nibble::binary::format && f != &nibble::ternary::format;
        for (const offset_kind offset : {offset_kind::none, offset_kind::zero_point}) {
            if (offset != offset_kind::none && !affine) continue;
            const qmatrix w = data::random_codes(33, 600, *f, nibble::scales::f32, offset, {1, 0}, ++stream);
            const MatrixXf x = data::matrix(600, 5, ++stream);
            for (const activation_type type : {activation_type::i8, activation_type::u8}) {
                const quantized_activations a = nibble::quantize_activations(x, activation_rule::per_token(type));
                compare(std::string(f->name), w, a, one_group(w, a), t);
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
}

TEST_CASE("groups are one chain over sub-blocks", "[integer_gemm][floats]") {
    tally t;
    std::uint64_t stream = 100;
    for (const nibble::code_format* f : {&nibble::int8::format, &nibble::int4::format, &nibble::int3::format, &nibble::iq4_nl::format, &nibble::fp4_e2m1::format})
        for (const offset_kind offset : {offset_kind::none, offset_kind::zero_point, offset_kind::minimum, offset_kind::float_zero}) {
            if (offset != offset_kind::none && f->decode != nibble::decode_class::integer) continue;
            for (const Index group : {Index{6}, Index{32}, Index{300}, Index{512}, Index{0}}) {
                const qmatrix w = data::random_codes(19, 700, *f, nibble::scales::f32, offset, {1, group}, ++stream);
                const MatrixXf x = data::matrix(700, 3, ++stream);
                for (const activation_type type : {activation_type::i8, activation_type::u8}) {
                    const bool sums = group == 0 && (offset == offset_kind::none || offset == offset_kind::zero_point);
                    const std::string name = std::string(f->name) + " " + nibble::name_of(offset) + " in groups of " + std::to_string(group);
                    const quantized_activations token = nibble::quantize_activations(x, activation_rule::per_token(type));
                    if (!sums) compare(name, w, token, groups(w, token), t);
                    const quantized_activations shared = nibble::quantize_activations(x, activation_rule::fixed(0.02f, type == activation_type::i8 ? -128 : 255, type));
                    if (!sums) compare(name + " static", w, shared, groups(w, shared), t);
                    const quantized_activations grouped = nibble::quantize_activations(x, activation_rule::per_group(group == 0 ? 256 : group, type));
                    compare(name + " both", w, grouped, groups(w, grouped), t);
                }
            }
        }
    INFO(t.report());
    CHECK(t.failures() == 0);
}

TEST_CASE("activations in the groups of the weights give the bits of gemm in a8", "[integer_gemm][floats]") {
    int cases = 0;
    const MatrixXf x = data::matrix(512, 7, 1);
    for (const char* name : {"int4_g32", "int4_zero_g128", "int4_min_g64", "int4_hqq_g64", "q4_k", "q6_k", "q8_0", "iq4_nl", "mxfp4", "int8_per_channel"}) {
        INFO(name);
        const qmatrix w = nibble::quantize(data::matrix(35, 512, 2), name);
        const quantized_activations a = nibble::quantize_activations(x, activation_rule::per_group(std::min<Index>(256, w.group_size())));
        MatrixXf y(35, 7), z(35, 7);
        nibble::gemm(w, x, y, {.compute = nibble::compute::a8});
        nibble::integer_gemm(w, a, z);
        CHECK(data::bits_differing(y, z) == 0);
        ++cases;
    }
    CHECK(cases == 10);
    // And with one sub-block a column.
    const qmatrix w = nibble::quantize(data::matrix(35, 200, 3), "int8_per_channel");
    const MatrixXf small = x.topRows(200);
    MatrixXf y(35, 7), z(35, 7);
    nibble::gemm(w, small, y, {.compute = nibble::compute::a8});
    nibble::integer_gemm(w, nibble::quantize_activations(small, activation_rule::per_token()), z);
    CHECK(data::bits_differing(y, z) == 0);
}

TEST_CASE("float outputs take bias, activation, accumulation and 16 bits", "[integer_gemm][floats]") {
    for (const Index group : {Index{32}, Index{0}}) {
        const qmatrix w = data::random_codes(19, 128, nibble::int4::format, nibble::scales::f32, offset_kind::none, {1, group}, 7);
        const quantized_activations a = nibble::quantize_activations(data::matrix(128, 4, 8), activation_rule::per_token(activation_type::u8));
        const Eigen::VectorXf bias = data::matrix(19, 1, 9);
        MatrixXf plain(19, 4);
        nibble::integer_gemm(w, a, plain);
        MatrixXf y = MatrixXf::Constant(19, 4, 0.25f);
        nibble::integer_gemm(w, a, y, {.bias = bias, .activation = nibble::activation::relu, .accumulate = true});
        CHECK(y == ((plain.colwise() + bias).array() + 0.25f).max(0.0f).matrix());
        Eigen::Matrix<Eigen::bfloat16, Eigen::Dynamic, Eigen::Dynamic> b(19, 4);
        nibble::integer_gemm(w, a, b);
        CHECK(b.cast<float>() == plain.cast<Eigen::bfloat16>().cast<float>());
    }
}

TEST_CASE("float outputs of a K too large for int32 are chains of sub-blocks", "[integer_gemm][floats]") {
    const qmatrix w = data::random_codes(2, 33026, nibble::int8::format, nibble::scales::f32, offset_kind::zero_point, {1, 0}, 3);
    const ref::uint8_matrix codes = ref::codes<std::uint8_t>(33026, 1, 4);
    const quantized_activations kept = nibble::wrap_activations(codes, 0.5f, 0);
    tally t;
    compare("int8", w, kept, groups(w, kept), t);
    INFO(t.report());
    CHECK(t.failures() == 0);
}
