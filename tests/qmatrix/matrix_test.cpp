// The quantized matrix as a value: sizes, copies, accessors, and what it refuses.
#include <nibble/nibble.hpp>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/mistake.hpp"
#include "support/reference.hpp"

using Eigen::MatrixXf;
using nibble::errc;
using nibble::offset_kind;
using nibble::qmatrix;
using nibble::qmatrix_builder;
using Index = nibble::index;
namespace scales = nibble::scales;

namespace {

/// Bits per weight at N x K = 4096 x 4096, from the format study 1.6 and 7.0 and the definitions of the formats.
const std::map<std::string, double>& known_sizes() {
    constexpr double k = 4096.0, all = 4096.0 * 4096.0;
    static const std::map<std::string, double> sizes = {
        {"int8_per_channel", 8 + 32 / k},
        {"int8_per_tensor", 8 + 32 / all},
        {"int8_zero_point", 8 + 40 / k},
        {"int8_g32", 8.5},
        {"int6_g64", 6.25},
        {"int5_g64", 5.25},
        {"int4_g32", 4.5},
        {"int4_g64", 4.25},
        {"int4_g128", 4.125},
        {"int4_zero_g128", 4.15625},
        {"int4_min_g64", 4.5},
        {"int4_hqq_g64", 4.5},
        {"int3_zero_g64", 3 + 19.0 / 64},
        {"int2_zero_g32", 2 + 18.0 / 32},
        {"int2_min_g32", 3.0},
        {"q8_0", 8.5},
        {"q5_0", 5.5},
        {"q5_1", 6.0},
        {"q4_0", 4.5},
        {"q4_1", 5.0},
        {"q6_k", 6.5625},
        {"q5_k", 5.5},
        {"q4_k", 4.5},
        {"q3_k", 3.4375},
        {"q2_k", 2.625},
        {"iq4_xs", 4.25},
        {"tq2_0", 2.0625},
        {"nf4_double", 4.126953125 + 32 / all},
        {"fp4_double", 4.126953125 + 32 / all},
        {"fp8_per_tensor", 8 + 32 / all},
        {"fp8_per_channel", 8 + 32 / k},
        {"fp8_block128", 8 + 32.0 / 16384},
        {"mxfp4", 4.25},
        {"mxfp4_ggml", 4.25},
        {"mxfp6", 6.25},
        {"mxfp6_e3m2", 6.25},
        {"mxfp8", 8.25},
        {"mxfp8_e5m2", 8.25},
        {"nvfp4", 4.5 + 32 / all},
        {"nvfp4_ggml", 4.5},
        {"fp8_e5m2_per_channel", 8 + 32 / k},
        {"fp8_e4m3fnuz_per_channel", 8 + 32 / k},
        {"fp8_e5m2fnuz_per_channel", 8 + 32 / k},
        {"ternary_twn", 2 + 32 / k},
        {"bitnet_b158", 2 + 32 / all},
        {"binary_g128", 1.125},
        {"iq4_nl", 4.5},
        {"nf4", 4.5},
        {"fp4", 4.5},
        {"af4", 4.5},
        {"bf16", 16.0},
        {"fp16", 16.0},
    };
    return sizes;
}

}  // namespace

TEST_CASE("bits per weight of every recipe, and what it takes in memory", "[qmatrix][size]") {
    std::size_t known = 0;
    for (const nibble::recipe& r : nibble::recipes()) {
        CAPTURE(r.name);
        qmatrix_builder b(4096, 4096, *r.format, r.scale, r.offset(), r.group);
        const qmatrix w = std::move(b).finish();
        const auto it = known_sizes().find(r.name);
        if (it == known_sizes().end()) {
            WARN("no size written down for " << r.name);
        } else {
            ++known;
            CHECK(w.bits_per_weight() == it->second);
            CHECK(w.bytes() == static_cast<std::size_t>(std::ceil(it->second * 4096.0 * 4096.0 / 8.0)));
        }
        CHECK(static_cast<double>(w.memory_bytes()) <= 1.02 * static_cast<double>(w.bytes()));
        CHECK(w.memory_bytes() >= w.bytes() - 8);  // the factor of a tensor lies in the object
    }
    CHECK(known == known_sizes().size());
    CHECK(known >= 52);
}

TEST_CASE("bits per weight of ragged matrices count what the format stores", "[qmatrix][size]") {
    const auto bits = [](Index n, Index k, const nibble::recipe& r) {
        qmatrix_builder b(n, k, *r.format, r.scale, r.offset(), r.group);
        return std::move(b).finish().bits_per_weight() * static_cast<double>(n) * static_cast<double>(k);
    };
    const auto named = [](const char* name) -> const nibble::recipe& { return *nibble::find_recipe(name); };
    CHECK(bits(3, 70, named("int4_g32")) == 3 * (70 * 4 + 3 * 16));
    CHECK(bits(3, 70, named("int4_zero_g128")) == 3 * (70 * 4 + 20));
    CHECK(bits(3, 300, named("q4_k")) == 3 * (300 * 4 + 10 * 12 + 2 * 32));
    CHECK(bits(3, 300, named("q6_k")) == 3 * (300 * 6 + 19 * 8 + 2 * 16));
    CHECK(bits(130, 257, named("fp8_block128")) == 130 * 257 * 8 + 2 * 3 * 32);
    CHECK(bits(3, 70, named("nf4_double")) == 3 * 70 * 4 + 6 * 8 + 32 + 32);
    CHECK(bits(3, 70, named("nvfp4")) == 3 * (70 * 4 + 5 * 8) + 32);
    CHECK(bits(1, 1, named("binary_g128")) == 17.0);
    CHECK(bits(5, 7, named("fp16")) == 560.0);
    qmatrix_builder b(3, 3, nibble::int3::format, scales::f16, offset_kind::zero_point, nibble::per_channel{});
    CHECK(std::move(b).finish().bytes() == (27 + 3 * 19 + 7) / 8);  // rounded up
}

TEST_CASE("a copy shares the weights", "[qmatrix]") {
    const MatrixXf dense = data::matrix(20, 64, 1);
    qmatrix a = nibble::quantize<nibble::int4>(dense);
    const std::uint8_t* where = a.data();
    const qmatrix b = a;
    CHECK(b.data() == where);
    const qmatrix c = std::move(a);
    CHECK(c.data() == where);
    a = nibble::quantize<nibble::int8>(dense);  // a moved-from matrix may be assigned to
    CHECK(a.data() != where);
    CHECK(b.code(3, 5) == c.code(3, 5));
    CHECK(b.name() == c.name());
    MatrixXf y;
    {
        const qmatrix temporary = b;
        y = temporary * MatrixXf::Ones(64, 2);
    }
    CHECK(data::bits_differing(y, (c * MatrixXf::Ones(64, 2)).eval()) == 0);
    CHECK(reinterpret_cast<std::uintptr_t>(where) % 64 == 0);
}

TEST_CASE("an empty matrix", "[qmatrix]") {
    const qmatrix w;
    CHECK(w.rows() == 0);
    CHECK(w.cols() == 0);
    CHECK(w.groups() == 0);
    CHECK(w.bits_per_weight() == 0.0);
    CHECK(w.bytes() == 0);
    CHECK(w.memory_bytes() == 0);
    CHECK(w.data() == nullptr);
    CHECK(w.exponent() == -127);
    CHECK(of([&] { static_cast<void>(w.code(0, 0)); }).code == errc::out_of_range);
    CHECK(of([&] { static_cast<void>(w.scale(0, 0)); }).code == errc::out_of_range);
}

TEST_CASE("a matrix knows how it was made", "[qmatrix]") {
    const MatrixXf dense = data::matrix(20, 300, 1);
    for (const nibble::recipe& r : nibble::recipes()) {
        CAPTURE(r.name);
        const qmatrix w = nibble::quantize(dense, r.name);
        CHECK(w.name() == r.name);
        CHECK(&w.format() == r.format);
        CHECK(w.scheme() == r.scale);
        CHECK(w.offset_type() == r.offset());
        CHECK(w.rows() == 20);
        CHECK(w.cols() == 300);
        const Index group = r.group.cols == 0 ? 300 : r.group.cols;
        CHECK(w.group_size() == group);
        CHECK(w.groups() == (300 + group - 1) / group);
        CHECK(w.grouping().cols == group);
        CHECK(w.grouping().rows == (r.group.rows == 0 ? 20 : std::min<Index>(20, r.group.rows)));
    }
    CHECK(nibble::quantize<nibble::int4>(dense, nibble::absmax{}, nibble::per_group{50}).name() == "int4");
}

TEST_CASE("the exponent is that of the largest weight, give or take one", "[qmatrix]") {
    const reference::default_environment environment;
    for (const nibble::recipe& r : nibble::recipes()) {
        if (r.format->bits == 16) continue;  // no scales: the exponent is 0
        for (const int e : {-100, -60, 0, 60, 100}) {
            if ((r.scale.storage != nibble::scale_storage::f32 || r.rule.from_range == nullptr) && e != 0) continue;
            const MatrixXf dense = data::matrix(20, 300, 1) * std::ldexp(1.0f, e);
            const qmatrix w = nibble::quantize(dense, r.name);
            const float largest = nibble::dequantize(w).cwiseAbs().maxCoeff();
            if (largest == 0.0f) continue;  // PyTorch's zero points have a smallest scale, 2^-23
            CAPTURE(r.name, e, w.exponent(), largest);
            CHECK(std::abs(w.exponent() - std::ilogb(largest)) <= 2);
        }
    }
    CHECK(nibble::quantize<nibble::int8>(MatrixXf::Zero(3, 3)).exponent() == -127);
}

TEST_CASE("accessors refuse what is past the end", "[qmatrix][errors]") {
    const qmatrix w = nibble::quantize<nibble::int4>(data::matrix(19, 70, 1), nibble::absmax{}, nibble::per_group{32});
    int refused = 0;
    for (const auto& [n, k] :
         {std::pair<Index, Index>(-1, 0), {19, 0}, {0, -1}, {0, 70}, {Index{1} << 40, 0}, {0, Index{1} << 40}}) {
        CAPTURE(n, k);
        const std::string place = "(" + std::to_string(n) + ", " + std::to_string(k) + ")";
        const mistake a = of([&, row = n, col = k] { static_cast<void>(w.code(row, col)); });
        CHECK(a.code == errc::out_of_range);
        CHECK(contains(a.message, place));
        CHECK(contains(a.message, "19x70"));
        const mistake b = of([&, row = n, col = k] { static_cast<void>(w(row, col)); });
        CHECK(b.code == errc::out_of_range);
        CAPTURE(b.message);
        CHECK(contains(b.message, place));
        ++refused;
    }
    for (const auto& [n, g] : {std::pair<Index, Index>(-1, 0), {19, 0}, {0, -1}, {0, 3}}) {
        CAPTURE(n, g);
        const std::string place = "(" + std::to_string(n) + ", " + std::to_string(g) + ")";
        for (const mistake& m : {of([&, row = n, col = g] { static_cast<void>(w.scale(row, col)); }),
                                 of([&, row = n, col = g] { static_cast<void>(w.offset(row, col)); }),
                                 of([&, row = n, col = g] { static_cast<void>(w.stored_scale(row, col)); }),
                                 of([&, row = n, col = g] { static_cast<void>(w.stored_offset(row, col)); })}) {
            CHECK(m.code == errc::out_of_range);
            CHECK(contains(m.message, place));
            CHECK(contains(m.message, "19x3"));
            ++refused;
        }
    }
    CHECK(refused == 6 + 16);
    CHECK(of([&] { static_cast<void>(w.code(18, 69)); }).code == errc::ok);
    CHECK(of([&] { static_cast<void>(w.scale(18, 2)); }).code == errc::ok);
}

TEST_CASE("combinations that do not exist", "[qmatrix][errors]") {
    using nibble::code_format;
    struct combination {
        const code_format* format;
        nibble::scale_scheme scheme;
        offset_kind offset;
        nibble::granularity group;
        errc code;
        const char* says;  // what does exist, or what was wrong
    };
    const code_format* int4 = &nibble::int4::format;
    const nibble::granularity g32{1, 32};
    const std::vector<combination> bad = {
        {&nibble::nf4::format, scales::f32, offset_kind::zero_point, g32, errc::unsupported,
         "offsets go with the integer formats"},
        {&nibble::nf4::format, scales::f32, offset_kind::minimum, g32, errc::unsupported, "nf4"},
        {&nibble::fp8_e4m3::format, scales::f32, offset_kind::float_zero, g32, errc::unsupported, "float_zero"},
        {&nibble::iq4_nl::format, scales::f16, offset_kind::minimum, g32, errc::unsupported, "iq4_nl"},
        {&nibble::bf16::format, scales::none, offset_kind::minimum, g32, errc::unsupported, "bf16"},
        {&nibble::binary::format, scales::f32, offset_kind::zero_point, g32, errc::unsupported, "int2"},
        {&nibble::ternary::format, scales::f32, offset_kind::minimum, g32, errc::unsupported, "int2"},
        {&nibble::fp16::format, scales::f32, offset_kind::none, g32, errc::unsupported, "no scale"},
        {&nibble::bf16::format, scales::two_level(6, true, 8), offset_kind::none, g32, errc::unsupported, "two_level"},
        {int4, scales::none, offset_kind::none, g32, errc::unsupported, "needs a scale"},
        {&nibble::nf4::format, scales::none, offset_kind::none, g32, errc::unsupported, "needs a scale"},
        {int4, scales::e8m0, offset_kind::minimum, g32, errc::unsupported, "f32, f16 or bf16, or two_level"},
        {int4, scales::e4m3, offset_kind::minimum, g32, errc::unsupported, "e4m3"},
        {int4, scales::e4m3_f32, offset_kind::float_zero, g32, errc::unsupported, "f32, f16 or bf16"},
        {int4, scales::double_quantized, offset_kind::minimum, g32, errc::unsupported, "double_quantized"},
        {int4, scales::double_quantized, offset_kind::float_zero, g32, errc::unsupported, "double_quantized"},
        {int4, scales::two_level(6, false, 8), offset_kind::float_zero, g32, errc::unsupported, "two_level"},
        {int4, scales::two_level(0, false, 8), offset_kind::none, g32, errc::invalid_argument, "0 bits"},
        {int4, scales::two_level(9, false, 8), offset_kind::none, g32, errc::invalid_argument, "9 bits"},
        {int4, scales::two_level(6, false, 0), offset_kind::none, g32, errc::invalid_argument, "0 groups"},
        {int4, scales::two_level(6, false, 8), offset_kind::none, {16, 32}, errc::unsupported, "groups of one row"},
        {int4, scales::two_level(6, false, 8), offset_kind::none, {0, 0}, errc::unsupported, "groups of one row"},
        {&nibble::nf4::format,
         scales::double_quantized,
         offset_kind::none,
         {2, 64},
         errc::unsupported,
         "groups of one row"},
        {int4, scales::f32, offset_kind::none, {-1, 32}, errc::invalid_argument, "-1x32"},
        {int4, scales::f32, offset_kind::none, {1, -5}, errc::invalid_argument, "1x-5"},
    };
    for (const combination& c : bad) {
        CAPTURE(c.format->name, nibble::name_of(c.scheme.storage), nibble::name_of(c.offset), c.group.rows,
                c.group.cols);
        const nibble::status s = qmatrix_builder::check_combination(64, 64, *c.format, c.scheme, c.offset, c.group);
        CHECK(s.code() == c.code);
        CAPTURE(s.message());
        CHECK(contains(s.message(), c.says));
        const mistake m = of([&] { qmatrix_builder(64, 64, *c.format, c.scheme, c.offset, c.group); });
        CHECK(m.code == s.code());
        CHECK(m.message == s.message());
        // quantize says the same in its own name, before it looks at a weight.
        nibble::quantize_plan plan{nibble::format_handle(*c.format), c.scheme, c.group,
                                   nibble::erase(nibble::detail::rules::absmax), "plan"};
        plan.rule.offset = c.offset;
        const MatrixXf dense = MatrixXf::Ones(64, 64);
        const mistake q = of([&] { static_cast<void>(nibble::quantize(dense, plan)); });
        CHECK(q.code == c.code);
        CHECK(contains(q.message, "quantize: "));
        CHECK(contains(q.message, c.says));
        CHECK(nibble::check_quantize(nibble::eigen_view<MatrixXf>(dense).get(), plan).message() == q.message);
    }
    CHECK(bad.size() == 25);
    CHECK(qmatrix_builder::check_combination(-1, 5, *int4, scales::f32, offset_kind::none, g32).code() ==
          errc::invalid_argument);
    CHECK(contains(qmatrix_builder::check_combination(-1, 5, *int4, scales::f32, offset_kind::none, g32).message(),
                   "-1x5"));
}

TEST_CASE("sizes that do not fit in memory are refused before anything is allocated", "[qmatrix][errors]") {
    constexpr Index huge = std::numeric_limits<Index>::max();
    int refused = 0;
    for (const auto& [n, k] : {std::pair<Index, Index>(huge, huge),
                               {huge, 1},
                               {1, huge},
                               {huge / 2, 3},
                               {3, huge / 2},
                               {Index{1} << 40, Index{1} << 40},
                               {huge - 15, 16},
                               {16, huge - 3},
                               {Index{1} << 62, 2}})
        for (const nibble::granularity g : {nibble::granularity{1, 0}, {1, 1}, {1, 3}, {0, 0}, {2, 5}}) {
            CAPTURE(n, k, g.rows, g.cols);
            const mistake m = of([&, rows = n, cols = k] {
                qmatrix_builder(rows, cols, nibble::int8::format, scales::f32, offset_kind::minimum, g);
            });
            CHECK(m.code == errc::out_of_range);
            refused += m.code == errc::out_of_range ? 1 : 0;
        }
    CHECK(refused == 9 * 5);
}
