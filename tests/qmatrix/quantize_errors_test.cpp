// Mistakes in a call of quantize: the code, the element or number that is wrong, and the same words from
// check_quantize.
#include <nibble/nibble.hpp>

#include <array>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/mistake.hpp"
#include "support/reference.hpp"

using Eigen::MatrixXf;
using nibble::errc;
using nibble::qmatrix;
using Index = nibble::index;
namespace scales = nibble::scales;

namespace {

bool same_matrix(const qmatrix& a, const qmatrix& b) {
    return a.memory_bytes() == b.memory_bytes() && std::memcmp(a.data(), b.data(), a.memory_bytes()) == 0 &&
           reference::bits_from_float(a.tensor_scale()) == reference::bits_from_float(b.tensor_scale());
}

struct nonsense {
    static constexpr const char* name = "nonsense";
    nibble::offset_kind offset = nibble::offset_kind::none;
    nibble::group_scale proposal;
    nibble::group_scale operator()(const nibble::group_view&) const { return proposal; }
};

const float quiet_nan = reference::float_from_bits(0x7fc00000u);
const float signaling_nan = reference::float_from_bits(0xff800001u);
const float inf = reference::float_from_bits(0x7f800000u);

}  // namespace

TEST_CASE("NaN and Inf in W are refused by element", "[quantize][errors]") {
    std::size_t count = 0;
    for (const nibble::recipe& r : nibble::recipes()) {
        for (const auto& [n, k] : {std::pair<Index, Index>(0, 0), {7, 33}, {15, 63}, {16, 0}, {18, 69}}) {
            for (const auto& [bad, name] : {std::pair<float, const char*>(quiet_nan, "nan"),
                                            {signaling_nan, "nan"},
                                            {inf, "inf"},
                                            {-inf, "-inf"}}) {
                ++count;
                MatrixXf dense = data::matrix(19, 70, 1);
                dense(n, k) = bad;
                const mistake m = of([&] { static_cast<void>(nibble::quantize(dense, r.name)); });
                if (m.code == errc::non_finite &&
                    contains(m.message, "W(" + std::to_string(n) + ", " + std::to_string(k) + ") is " + name) &&
                    contains(m.message, "19x70"))
                    continue;
                CAPTURE(r.name, n, k, name, m.message);
                CHECK(false);
            }
        }
    }
    CHECK(count == nibble::recipes().size() * 20);
}

TEST_CASE("the element is named in any layout and grouping", "[quantize][errors]") {
    MatrixXf dense = data::matrix(37, 41, 1);
    dense(29, 17) = quiet_nan;
    const auto names = [](const mistake& m) {
        return m.code == errc::non_finite && contains(m.message, "W(29, 17) is nan");
    };
    using nibble::int8;
    const Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> row_major = dense;
    CHECK(names(of([&] { static_cast<void>(nibble::quantize<int8>(row_major)); })));
    const MatrixXf transposed = dense.transpose();
    CHECK(names(of([&] { static_cast<void>(nibble::quantize<int8>(transposed.transpose())); })));
    CHECK(names(of([&] { static_cast<void>(nibble::quantize<int8>(dense.cast<double>())); })));
    CHECK(names(of([&] { static_cast<void>(nibble::quantize<int8>(dense.cast<Eigen::half>())); })));
    CHECK(names(of([&] { static_cast<void>(nibble::quantize<int8>(dense.cast<Eigen::bfloat16>())); })));
    for (const nibble::granularity g : {nibble::granularity{0, 0}, {5, 7}, {16, 16}, {128, 128}, {1, 3}}) {
        CHECK(names(of([&] { static_cast<void>(nibble::quantize<int8>(dense, nibble::absmax{}, g)); })));
        CHECK(names(of([&] { static_cast<void>(nibble::quantize<int8>(dense, nibble::mse{}, g)); })));
    }
    const qmatrix ok = nibble::quantize<int8>(data::matrix(37, 41, 1));
    CHECK(ok.rows() == 37);
    // A double beyond float's range is Inf once it is a float.
    Eigen::MatrixXd doubles = Eigen::MatrixXd::Ones(3, 4);
    doubles(1, 2) = 1e300;
    CHECK(contains(of([&] { static_cast<void>(nibble::quantize<int8>(doubles)); }).message, "W(1, 2) is inf"));
}

TEST_CASE("saturate: NaN is 0, Inf the largest finite magnitude of the tensor", "[quantize]") {
    std::size_t count = 0;
    for (const nibble::recipe& r : nibble::recipes()) {
        MatrixXf dense = data::matrix(37, 70, 2) * 0.5f;
        dense(20, 11) = -3.5f;  // the largest finite magnitude
        MatrixXf poisoned = dense;
        poisoned(0, 0) = quiet_nan;
        poisoned(5, 69) = inf;
        poisoned(36, 3) = -inf;
        poisoned(17, 17) = signaling_nan;
        MatrixXf wanted = dense;
        wanted(0, 0) = 0.0f;
        wanted(5, 69) = 3.5f;
        wanted(36, 3) = -3.5f;
        wanted(17, 17) = 0.0f;
        nibble::quantize_options options;
        options.non_finite = nibble::non_finite::saturate;
        CAPTURE(r.name);
        CHECK(same_matrix(nibble::quantize(poisoned, r.name, options), nibble::quantize(wanted, r.name)));
        CHECK(same_matrix(nibble::quantize(dense, r.name, options), nibble::quantize(dense, r.name)));
        ++count;
        // Tiles of rows, and the factor of a tensor, look at the saturated weights, too.
        if (r.scale.storage == nibble::scale_storage::two_level ||
            r.scale.storage == nibble::scale_storage::double_quantized)
            continue;
        nibble::quantize_plan plan = nibble::make_plan(r);
        plan.group = {3, 16};
        CHECK(same_matrix(nibble::quantize(poisoned, plan, options), nibble::quantize(wanted, plan)));
    }
    CHECK(count == nibble::recipes().size());
    nibble::quantize_options options;
    options.non_finite = nibble::non_finite::saturate;
    const MatrixXf nothing_finite = MatrixXf::Constant(3, 40, inf);
    CHECK((nibble::dequantize(nibble::quantize<nibble::int8>(nothing_finite, options)).array() == 0.0f).all());
}

TEST_CASE("importance weights", "[quantize][errors]") {
    const MatrixXf dense = data::matrix(5, 256, 3);
    std::vector<float> importance(256, 1.0f);
    const auto with = [&](const char* name) {
        nibble::quantize_options options;
        options.importance = importance;
        const mistake m = of([&] { static_cast<void>(nibble::quantize(dense, name, options)); });
        const nibble::status s = nibble::check_quantize(nibble::eigen_view<MatrixXf>(dense).get(),
                                                        nibble::make_plan(*nibble::find_recipe(name)), options);
        CHECK(s.code() == m.code);
        CHECK(s.message() == m.message);
        return m;
    };
    CHECK(with("q4_k").code == errc::ok);
    // A rule that does not search would ignore them: say so.
    for (const char* name : {"int8_per_channel", "nf4", "mxfp4", "int4_zero_g128", "fp16"}) {
        const mistake m = with(name);
        CAPTURE(m.message);
        CHECK(m.code == errc::unsupported);
        CHECK(contains(m.message, "does not search"));
    }
    importance.pop_back();
    mistake m = with("q4_k");
    CHECK(m.code == errc::shape_mismatch);
    CHECK(contains(m.message, "255"));
    CHECK(contains(m.message, "5x256"));
    importance.push_back(1.0f);
    for (const float bad : {-1.0f, quiet_nan, inf, -inf}) {
        importance[100] = bad;
        m = with("q4_k");
        CHECK(m.code == errc::invalid_argument);
        CHECK(contains(m.message, "importance weight 100"));
    }
    importance[100] = 0.0f;
    CHECK(with("q4_k").code == errc::ok);
    importance.assign(256, 0.0f);  // nothing matters, but nothing breaks
    for (const nibble::recipe& r : nibble::recipes()) {
        if (!r.rule.searches) continue;
        CAPTURE(r.name);
        CHECK(with(r.name).code == errc::ok);
    }
}

TEST_CASE("scales that their scheme cannot hold", "[quantize][errors]") {
    const MatrixXf big = data::matrix(5, 256, 4) * 1e9f;
    int refused = 0;
    for (const char* name : {"int8_g32", "int4_g32", "int4_zero_g128", "int4_min_g64", "q8_0", "q4_0", "q4_1", "q5_1",
                             "q4_k", "q6_k", "q3_k", "iq4_nl", "iq4_xs", "tq2_0", "binary_g128"}) {
        const mistake m = of([&] { static_cast<void>(nibble::quantize(big, name)); });
        CAPTURE(name, m.message);
        CHECK(m.code == errc::out_of_range);
        CHECK(contains(m.message, "does not fit"));
        CHECK(contains(m.message, "row 0"));
        CHECK(contains(m.message, "f32 or bf16"));  // what would work
        ++refused;
    }
    CHECK(refused == 15);
    nibble::quantize_options options;
    options.scale = scales::bf16;
    CHECK(of([&] { static_cast<void>(nibble::quantize(big, "int4_g32", options)); }).code == errc::ok);
    CHECK(of([&] { static_cast<void>(nibble::quantize(big, "int8_per_channel")); }).code == errc::ok);
    CHECK(of([&] { static_cast<void>(nibble::quantize(big, "nvfp4")); }).code == errc::ok);
    // The scale fits, the minimum does not.
    const MatrixXf far = MatrixXf::Constant(3, 64, 1e6f);
    const mistake m = of([&] { static_cast<void>(nibble::quantize(far, "int4_min_g64")); });
    CHECK(m.code == errc::out_of_range);
    CHECK(contains(m.message, "minimum"));
}

TEST_CASE("names that nobody knows", "[quantize][errors]") {
    const MatrixXf dense = MatrixXf::Ones(2, 32);
    for (const char* name : {"", "q4_K", "int7", "nf4 ", "no_such_format"}) {
        const mistake m = of([&] { static_cast<void>(nibble::quantize(dense, name)); });
        CAPTURE(m.message);
        CHECK(m.code == errc::not_found);
        CHECK(contains(m.message, "'" + std::string(name) + "'"));
        for (const nibble::recipe& r : nibble::recipes()) CHECK(contains(m.message, r.name));  // what there is
    }
    CHECK(nibble::find_recipe("q4_k") != nullptr);
    CHECK(nibble::find_recipe("no_such_format") == nullptr);
    CHECK(nibble::find_format("int4") == &nibble::int4::format);
    CHECK(nibble::find_format("q4_k") == nullptr);
    for (const nibble::code_format* f : nibble::formats())
        CHECK(nibble::quantize(dense, f->name).rows() == 2);  // code formats have names, too
}

TEST_CASE("quantizers that propose nonsense", "[quantize][errors]") {
    const MatrixXf dense = MatrixXf::Ones(2, 64);
    const auto quantized = [&](nibble::offset_kind kind, float scale, float offset) {
        return of([&] {
            static_cast<void>(
                nibble::quantize<nibble::int4>(dense, nonsense{kind, {scale, offset}}, nibble::per_group{32}));
        });
    };
    using nibble::offset_kind;
    CHECK(quantized(offset_kind::none, 0.5f, 0.0f).code == errc::ok);
    for (const auto& [kind, scale, offset] : {std::tuple<offset_kind, float, float>(offset_kind::none, quiet_nan, 0.0f),
                                              {offset_kind::none, inf, 0.0f},
                                              {offset_kind::minimum, 1.0f, quiet_nan},
                                              {offset_kind::minimum, 1.0f, -inf},
                                              {offset_kind::zero_point, 1.0f, 16.0f},
                                              {offset_kind::zero_point, 1.0f, -1.0f},
                                              {offset_kind::zero_point, 1.0f, 2.5f},
                                              {offset_kind::float_zero, 1.0f, inf}}) {
        const mistake m = quantized(kind, scale, offset);
        CAPTURE(m.message);
        CHECK(m.code == errc::out_of_range);
        CHECK(contains(m.message, "nonsense proposed scale"));
        CHECK(contains(m.message, "row 0, group 0"));
    }
}

TEST_CASE("plans and views without content", "[quantize][errors]") {
    const nibble::quantize_plan plan = nibble::make_plan(*nibble::find_recipe("int4_g32"));
    const nibble::const_view nowhere{nullptr, nibble::scalar_type::f32, 3, 32, 32, 1};
    mistake m = of([&] { static_cast<void>(nibble::quantize(nowhere, plan)); });
    CHECK(m.code == errc::invalid_argument);
    CHECK(contains(m.message, "3x32"));
    CHECK(contains(m.message, "null"));
    CHECK(nibble::check_quantize(nowhere, plan).message() == m.message);
    const MatrixXf dense = MatrixXf::Ones(3, 32);
    m = of([&] { static_cast<void>(nibble::quantize(dense, nibble::quantize_plan{})); });
    CHECK(m.code == errc::invalid_argument);
    CHECK(contains(m.message, "no quantizer"));
    m = of([&] {
        static_cast<void>(
            nibble::quantize(nibble::const_view{dense.data(), nibble::scalar_type::f32, -3, 32, 32, 1}, plan));
    });
    CHECK(m.code == errc::invalid_argument);
    CHECK(contains(m.message, "-3x32"));
}
