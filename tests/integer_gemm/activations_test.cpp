// Quantizing activations: the codes of PyTorch, the rule by plain loops at every level, any layout, and what is refused.
#include <nibble/nibble.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/for_each_isa.hpp"
#include "support/golden.hpp"
#include "support/integer_reference.hpp"
#include "support/mistake.hpp"
#include "support/reference.hpp"

namespace ref = integer_reference;
using Eigen::MatrixXf;
using Index = nibble::index;
using nibble::activation_rule;
using nibble::activation_type;
using nibble::quantized_activations;
using reference::tally;

namespace {

std::vector<int> codes_of(const quantized_activations& a) {
    std::vector<int> all;
    for (Index j = 0; j < a.cols(); ++j)
        for (Index k = 0; k < a.rows(); ++k) all.push_back(a.code(k, j));
    return all;
}

std::vector<int> golden_codes(const golden::file& file, const std::string& name, activation_type t) {
    if (t == activation_type::u8) {
        const auto u = file.read<std::uint8_t>(name);
        return {u.begin(), u.end()};
    }
    const auto i = file.read<std::int8_t>(name);
    return {i.begin(), i.end()};
}

Eigen::Map<const Eigen::VectorXf> column(const std::vector<float>& x) { return {x.data(), static_cast<Index>(x.size())}; }

struct grid {
    float scale;
    int zero;
};

NIBBLE_FP_BEGIN

grid wanted_grid(const float* x, Index n, activation_type t) {
    float low = 0.0f, high = 0.0f;
    for (Index i = 0; i < n; ++i) {
        low = std::min(low, x[i]);
        high = std::max(high, x[i]);
    }
    const float least = std::ldexp(1.0f, -126);
    if (t == activation_type::i8) return {std::max(least, std::max(-low, high) / 127.0f), 0};
    const double width = static_cast<double>(high) - static_cast<double>(low);
    const float narrow = high - low;
    float scale = std::isinf(narrow) ? static_cast<float>(width / 255.0) : narrow / 255.0f;
    scale = std::max(least, scale);
    volatile float ratio = low / scale;
    return {scale, static_cast<int>(std::min(255.0f, -std::nearbyint(ratio)))};
}

int wanted_code(float x, grid g, activation_type t, bool dynamic) {
    volatile float inv = 1.0f / g.scale;
    volatile float product = x * inv;
    const double q = std::nearbyint(static_cast<double>(product)) + g.zero;
    const double low = t == activation_type::u8 ? 0.0 : dynamic ? -127.0 : -128.0;
    return static_cast<int>(std::min(t == activation_type::u8 ? 255.0 : 127.0, std::max(low, q)));
}

NIBBLE_FP_END

void compare(const std::string& what, const MatrixXf& x, const activation_rule& rule, tally& t) {
    const reference::default_environment environment;
    for_each_isa([&](nibble::isa level) {
        const quantized_activations a = nibble::quantize_activations(x, rule);
        const auto name = [&] { return what + " at " + nibble::name_of(level) + " in groups of " + std::to_string(rule.group); };
        t.check(a.rows() == x.rows() && a.cols() == x.cols() && a.type() == rule.type, name);
        for (Index j = 0; j < x.cols(); ++j)
            for (Index g = 0; g * a.group_size() < x.rows(); ++g) {
                const Index first = g * a.group_size();
                const Index n = std::min(a.group_size(), x.rows() - first);
                const grid want = !rule.dynamic ? grid{rule.scale, rule.zero}
                                  : rule.shared ? wanted_grid(x.data(), x.size(), rule.type)
                                                : wanted_grid(x.data() + j * x.rows() + first, n, rule.type);
                t.check(a.scale(g, j) == want.scale && a.zero(g, j) == want.zero, [&] { return name() + ": scale " + std::to_string(a.scale(g, j)); });
                for (Index k = first; k < first + n; ++k)
                    t.check(a.code(k, j) == wanted_code(x(k, j), want, rule.type, rule.dynamic), [&] {
                        return name() + ": code " + std::to_string(a.code(k, j)) + " of X(" + std::to_string(k) + ", " + std::to_string(j) + ")";
                    });
            }
    });
}

}  // namespace

TEST_CASE("the codes of PyTorch", "[activations][pytorch]") {
    const golden::file file("pytorch/per_tensor");
    int fixed = 0, dynamic = 0;
    for_each_isa([&](nibble::isa) {
        for (const char* set : {"g1", "g2", "normal", "outliers", "positive", "negative", "zeros", "tiny", "ties"}) {
            const auto x = file.read<float>(std::string(set) + ".x");
            const std::string name = std::string(set) + ".quint8.affine";
            INFO(name);
            const float scale = file.read<float>(name + ".scale").at(0);
            if (scale <= 0x1p-23f) continue;  // the eps of PyTorch's observer
            const quantized_activations a = nibble::quantize_activations(column(x), activation_rule::per_token(activation_type::u8));
            CHECK(a.scale(0, 0) == scale);
            CHECK(codes_of(a) == golden_codes(file, name + ".codes_decomposed", activation_type::u8));
            ++dynamic;
        }
        struct choice {
            const char* name;
            activation_type type;
            float scale;
            int zero;
        };
        for (const choice& c : {choice{"given0.quint8", activation_type::u8, 0.5f, 3}, choice{"given1.qint8", activation_type::i8, 1.0f, 7},
                                choice{"given2.qint8", activation_type::i8, 0.1f, -5}, choice{"given3.quint8", activation_type::u8, 0.3333333432674408f, 128},
                                choice{"given4.qint8", activation_type::i8, 0.0021485486067831516f, 0}}) {
            INFO(c.name);
            const auto x = file.read<float>(std::string(c.name).substr(0, 6) + ".x");
            const quantized_activations a = nibble::quantize_activations(column(x), activation_rule::fixed(c.scale, c.zero, c.type));
            CHECK(codes_of(a) == golden_codes(file, std::string(c.name) + ".codes_decomposed", c.type));
            ++fixed;
        }
    });
    CHECK(fixed >= 5);
    CHECK(dynamic >= 7);
}

TEST_CASE("codes are the rule, at every level", "[activations]") {
    tally t;
    std::uint64_t stream = 0;
    for (const Index k : {0, 1, 5, 16, 33, 255, 257, 600})
        for (const activation_type type : {activation_type::i8, activation_type::u8}) {
            const std::string name = type == activation_type::i8 ? "i8" : "u8";
            for (const data::distribution d : data::distributions) {
                const MatrixXf x = data::matrix(k, 3, ++stream, d);
                compare(name, x, activation_rule::per_token(type), t);
                compare(name, x, activation_rule::per_tensor(type), t);
                for (const Index group : {1, 7, 32, 256}) compare(name, x, activation_rule::per_group(group, type), t);
                compare(name, x, activation_rule::fixed(0.0313f, type == activation_type::i8 ? -77 : 77, type), t);
            }
        }
    const MatrixXf base = data::matrix(70, 2, ++stream);
    for (const float scale : {0.0f, 1e-45f, 1e-40f, 1e-38f, 1e-30f, 1e30f, 7e37f}) {
        MatrixXf x = base * scale;
        if (scale > 1.0f) x(3, 1) = std::numeric_limits<float>::max(), x(4, 1) = -x(3, 1);
        for (const activation_type type : {activation_type::i8, activation_type::u8}) {
            compare("times " + std::to_string(scale), x, activation_rule::per_token(type), t);
            compare("times " + std::to_string(scale), x.cwiseAbs(), activation_rule::per_token(type), t);
            compare("times " + std::to_string(scale), -x.cwiseAbs(), activation_rule::per_tensor(type), t);
            compare("times " + std::to_string(scale), -x.cwiseAbs(), activation_rule::per_group(16, type), t);
            compare("times " + std::to_string(scale), x, activation_rule::fixed(1.5f, 0, type), t);
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() > 100000);
}

TEST_CASE("activations of any layout and type", "[activations]") {
    const MatrixXf x = data::matrix(50, 4, 3);
    const auto rule = activation_rule::per_group(20, activation_type::u8);
    const std::vector<int> wanted = codes_of(nibble::quantize_activations(x, rule));
    const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> rows = x;
    CHECK(codes_of(nibble::quantize_activations(rows, rule)) == wanted);
    CHECK(codes_of(nibble::quantize_activations(x.cast<double>(), rule)) == wanted);
    CHECK(codes_of(nibble::quantize_activations(2.0f * x - x, rule)) == wanted);
    MatrixXf big = MatrixXf::Constant(60, 9, 1e9f);
    big.block(3, 2, 50, 4) = x;
    CHECK(codes_of(nibble::quantize_activations(big.block(3, 2, 50, 4), rule)) == wanted);
    const quantized_activations original = nibble::quantize_activations(x, rule);
    const quantized_activations copy = original;  // holds its own codes
    CHECK(codes_of(copy) == wanted);
}

TEST_CASE("powers of two move scales, not codes; one scale for all can be requantized", "[activations]") {
    const MatrixXf x = data::matrix(64, 5, 5);
    for (const activation_rule& r : {activation_rule::per_token(), activation_rule::per_token(activation_type::u8), activation_rule::per_group(16),
                                     activation_rule::per_tensor(), activation_rule::per_tensor(activation_type::u8)}) {
        const quantized_activations a = nibble::quantize_activations(x, r), b = nibble::quantize_activations(0.03125f * x, r);
        CHECK(codes_of(a) == codes_of(b));
        CHECK(b.scale(0, 4) == 0.03125f * a.scale(0, 4));
    }
    const nibble::qmatrix w = nibble::quantize(data::matrix(8, 64, 6), "int8_per_channel");
    Eigen::Matrix<std::int8_t, Eigen::Dynamic, Eigen::Dynamic> y(8, 5);
    const quantized_activations one = nibble::quantize_activations(x, activation_rule::per_tensor());
    CHECK(one.shared());
    nibble::integer_gemm(w, one, {.scale = 0.5f}, nibble::writable_integers(y));
    CHECK((y.cast<float>() * 0.5f - w * x).cwiseAbs().maxCoeff() < 0.6f);
    // FP8 by token, or by token and 128 channels (DeepSeek): tokens are the rows of a matrix of their own.
    const nibble::qmatrix fp8 = nibble::quantize<nibble::fp8_e4m3>(x.transpose(), nibble::per_channel{});
    for (Index j = 0; j < 5; ++j) CHECK(fp8.scale(j, 0) == x.col(j).cwiseAbs().maxCoeff() / 448.0f);
    CHECK(nibble::sqnr_db(x, nibble::dequantize(fp8).transpose()) > 29.0);
}

TEST_CASE("what is no activation", "[activations][errors]") {
    using nibble::errc;
    MatrixXf x = data::matrix(40, 3, 4);
    const auto quantize = [&](const activation_rule& r) {
        return of([&] { static_cast<void>(nibble::quantize_activations(x, r)); });
    };
    for (const float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity()}) {
        x(33, 2) = bad;
        for (const activation_rule& r : {activation_rule::per_token(), activation_rule::per_token(activation_type::u8), activation_rule::per_group(16),
                                         activation_rule::per_tensor(), activation_rule::fixed(1.0f, 0, activation_type::i8)}) {
            const mistake m = quantize(r);
            CHECK(m.code == errc::non_finite);
            CHECK(contains(m.message, "X(33, 2) is " + std::string(std::isnan(bad) ? "nan" : bad > 0 ? "inf" : "-inf")));
        }
    }
    x(33, 2) = 0.0f;
    CHECK(quantize(activation_rule::per_token()).code == errc::ok);
    CHECK(quantize(activation_rule::per_group(-1)).code == errc::invalid_argument);
    CHECK(contains(quantize(activation_rule::fixed(1.0f, 128, activation_type::i8)).message, "zero point of 128, codes are -128 to 127"));
    CHECK(contains(quantize(activation_rule::fixed(1.0f, -1, activation_type::u8)).message, "zero point of -1, codes are 0 to 255"));
    for (const float scale : {0.0f, -1.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN(), 1e-45f})
        CHECK(quantize(activation_rule::fixed(scale, 0, activation_type::i8)).code == errc::invalid_argument);
    const ref::int8_matrix codes = ref::int8_matrix::Zero(40, 3);
    const std::vector<float> scales(3, 1.0f), bad_scales = {1.0f, 0.0f, 1.0f};
    const std::vector<int> zeros = {0, 200, 0};
    const auto wrap = [&](std::span<const float> s, std::span<const int> z, Index group) {
        return of([&] { static_cast<void>(nibble::wrap_activations(codes, s, z, group)); });
    };
    CHECK(wrap(scales, {}, 0).code == errc::ok);
    CHECK(wrap(scales, {}, 20).code == errc::shape_mismatch);
    CHECK(contains(wrap(scales, {}, 20).message, "3 scales and 0 zero points for 3 columns of 2 groups"));
    CHECK(wrap(scales, std::span<const int>(zeros).first(2), 0).code == errc::shape_mismatch);
    CHECK(wrap(scales, zeros, 0).code == errc::invalid_argument);
    CHECK(wrap(bad_scales, {}, 0).code == errc::invalid_argument);
}
