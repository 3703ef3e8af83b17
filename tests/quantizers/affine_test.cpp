// Asymmetric rules: an integer zero point (PyTorch, torchao), a float minimum, a float zero (HQQ).
#include <nibble/quantize.hpp>

#include <cmath>
#include <string>
#include <tuple>
#include <vector>

#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/inspect.hpp"
#include "support/reference_quantizers.hpp"

using extent = nibble::index;  // index is a function of <strings.h>
using reference::float_from_bits;
using reference::tally;

namespace {

const std::vector<float> five = {0.3f, -0.5f, 0.1f, 0.8f, -0.2f};

template <class Rule>
nibble::qmatrix quantized(const std::vector<float>& x, const nibble::code_format& f, const Rule& rule,
                          nibble::granularity group = nibble::per_channel{},
                          nibble::scale_scheme scheme = nibble::scales::f32, extent rows = 1) {
    const auto cols = static_cast<extent>(x.size()) / rows;
    return nibble::quantize(nibble::row_major(x.data(), rows, cols), nibble::make_plan(f, rule, group, scheme));
}

// Numbers chosen before, with the codes of the zero point rule.
struct given {
    static constexpr nibble::offset_kind offset = nibble::offset_kind::zero_point;
    float scale = 1.0f;
    int zero = 0;
    nibble::zero_point rule{};
    nibble::group_scale operator()(const nibble::group_view&) const { return {scale, static_cast<float>(zero)}; }
    void encode(const nibble::group_view& g, nibble::group_scale s, std::uint8_t* codes) const {
        rule.encode(g, s, codes);
    }
};

// Scales and zero points per row, chosen before.
struct given_rows {
    static constexpr nibble::offset_kind offset = nibble::offset_kind::zero_point;
    const std::vector<float>* scale;
    std::vector<int> zero;
    const float* first;
    extent cols;
    nibble::zero_point rule{};
    mutable std::size_t calls = 0;  // groups are chosen row by row
    nibble::group_scale operator()(const nibble::group_view&) const {
        const std::size_t at = calls++;
        return {(*scale)[at], static_cast<float>(zero[at])};
    }
    void encode(const nibble::group_view& g, nibble::group_scale s, std::uint8_t* codes) const {
        rule.encode(g, s, codes);
    }
};

// The sheet's vectors of 8 and 2 bits round the range 0.8 - -0.5 only once, after the division; PyTorch and this
// library round it before, too. The scales are neighbouring floats.
void check_close(const nibble::qmatrix& m, std::uint32_t scale, const std::vector<float>& values) {
    CHECK(m.scale(0, 0) == Approx(float_from_bits(scale)).epsilon(1.2e-7));
    for (std::size_t k = 0; k < values.size(); ++k)
        CHECK(m(0, static_cast<extent>(k)) == Approx(values[k]).epsilon(6e-7));
}

std::vector<int> shifted(const std::vector<unsigned>& codes, int by) {
    std::vector<int> q;
    for (const unsigned c : codes) q.push_back(static_cast<int>(c) - by);
    return q;
}

nibble::scale_scheme scheme_of(reference::storage s) {
    return s == reference::storage::f32   ? nibble::scales::f32
           : s == reference::storage::f16 ? nibble::scales::f16
                                          : nibble::scales::bf16;
}

const nibble::code_format& integers_of(int bits) {
    switch (bits) {
        case 2: return nibble::int2::format;
        case 3: return nibble::int3::format;
        case 4: return nibble::int4::format;
        case 5: return nibble::int5::format;
        case 6: return nibble::int6::format;
        default: return nibble::int8::format;
    }
}

}  // namespace

TEST_CASE("zero points of a hand-made range", "[zero_point]") {
    // the range of the first two is -1.5 .. 2.5; the others lie in it or are clipped
    const std::vector<float> x = {-1.5f, 2.5f, -1.0f, -0.5f, 0.0f, 0.3f, 1.0f, 2.0f};
    const nibble::qmatrix m = quantized(x, nibble::int8::format, nibble::zero_point{});
    CHECK(m.scale(0, 0) == float_from_bits(0x3c808081));
    CHECK(m.offset(0, 0) == 96.0f);
    CHECK(inspect::codes(m) == std::vector<unsigned>{0, 255, 32, 64, 96, 115, 160, 223});
    CHECK(inspect::difference(inspect::decoded(m),
                              std::vector<float>{-1.5058825f, 2.49411774f, -1.00392163f, -.501960814f, 0.0f,
                                                 .298039228f, 1.00392163f, 1.99215698f}) == "");
    const nibble::qmatrix u4 = quantized(x, nibble::int4::format, nibble::zero_point{});
    CHECK(u4.scale(0, 0) == float_from_bits(0x3e888889));
    CHECK(u4.offset(0, 0) == 6.0f);
    CHECK(inspect::codes(u4) == std::vector<unsigned>{0, 15, 2, 4, 6, 7, 10, 13});
    const nibble::qmatrix u2 = quantized(x, nibble::int2::format, nibble::zero_point{});
    CHECK(u2.scale(0, 0) == float_from_bits(0x3faaaaab));
    CHECK(u2.offset(0, 0) == 1.0f);
    CHECK(inspect::codes(u2) == std::vector<unsigned>{0, 3, 0, 1, 1, 1, 2, 3});
    // beyond the range: clipped, once a rule says so
    const std::vector<float> beyond = {3.0f, -2.0f};
    const nibble::qmatrix c = quantized(beyond, nibble::int8::format, given{float_from_bits(0x3c808081), 96});
    CHECK(inspect::codes(c) == std::vector<unsigned>{255, 0});
}

TEST_CASE("five values with a zero point", "[zero_point]") {
    const nibble::qmatrix m = quantized(five, nibble::int8::format, nibble::zero_point{});
    check_close(m, 0x3ba70d74, {.30078432f, -.499607861f, .101960786f, .800392151f, -.198823527f});
    CHECK(m.offset(0, 0) == 98.0f);
    CHECK(inspect::codes(m) == std::vector<unsigned>{157, 0, 118, 255, 59});
    const nibble::qmatrix u4 = quantized(five, nibble::int4::format, nibble::zero_point{});
    CHECK(u4.scale(0, 0) == float_from_bits(0x3db17e4b));
    CHECK(u4.offset(0, 0) == 6.0f);
    CHECK(inspect::codes(u4) == std::vector<unsigned>{9, 0, 7, 15, 4});
    CHECK(inspect::difference(inspect::decoded(u4), std::vector<float>{.25999999f, -.519999981f, .086666666f,
                                                                       .779999971f, -.173333332f}) == "");
}

TEST_CASE("one-sided groups keep zero in their range", "[zero_point]") {
    const nibble::qmatrix up = quantized({1, 2, 3}, nibble::int8::format, nibble::zero_point{});
    CHECK(up.scale(0, 0) == float_from_bits(0x3c40c0c1));
    CHECK(up.offset(0, 0) == 0.0f);
    CHECK(inspect::codes(up) == std::vector<unsigned>{85, 170, 255});
    const nibble::qmatrix down = quantized({-3, -2, -1}, nibble::int8::format, nibble::zero_point{});
    CHECK(down.offset(0, 0) == 255.0f);
    CHECK(inspect::codes(down) == std::vector<unsigned>{0, 85, 170});
}

TEST_CASE("the float minimum", "[min_offset]") {
    const nibble::qmatrix m = quantized(five, nibble::int4::format, nibble::min_offset{});
    CHECK(m.scale(0, 0) == float_from_bits(0x3db17e4b));
    CHECK(m.offset(0, 0) == -0.5f);
    CHECK(inspect::codes(m) == std::vector<unsigned>{9, 0, 7, 15, 3});
    CHECK(inspect::difference(inspect::decoded(m),
                              std::vector<float>{.279999971f, -.5f, .106666684f, .799999952f, -.24000001f}) == "");
    const nibble::qmatrix m2 = quantized(five, nibble::int2::format, nibble::min_offset{});
    check_close(m2, 0x3eddddde, {});
    CHECK(inspect::codes(m2) == std::vector<unsigned>{2, 0, 1, 3, 1});
    const nibble::qmatrix m8 = quantized(five, nibble::int8::format, nibble::min_offset{});
    CHECK(inspect::codes(m8) == std::vector<unsigned>{157, 0, 118, 255, 59});
    check_close(m8, 0x3ba70d74, {.300392151f, -.5f, .101568639f, .800000072f, -.19921568f});
    const std::vector<float> y = {-1.0f, -0.25f, 0.5f, 2.0f};
    const nibble::qmatrix y4 = quantized(y, nibble::int4::format, nibble::min_offset{});
    CHECK(y4.scale(0, 0) == 0.2f);
    CHECK(inspect::codes(y4) == std::vector<unsigned>{0, 4, 8, 15});
    CHECK(inspect::difference(inspect::decoded(y4), std::vector<float>{-1.0f, -.199999988f, .600000024f, 2.0f}) == "");
    const nibble::qmatrix y2 = quantized(y, nibble::int2::format, nibble::min_offset{});
    CHECK(inspect::codes(y2) == std::vector<unsigned>{0, 1, 2, 3});
    CHECK(inspect::decoded(y2) == std::vector<float>{-1, 0, 1, 2});
    // a constant group is exact, unlike zero
    const nibble::qmatrix c = quantized({3.7f, 3.7f}, nibble::int4::format, nibble::min_offset{});
    CHECK(inspect::decoded(c) == std::vector<float>{3.7f, 3.7f});
}

TEST_CASE("HQQ's float zero", "[float_zero]") {
    const nibble::qmatrix m = quantized(five, nibble::int4::format, nibble::float_zero{});
    CHECK(1.0f / m.scale(0, 0) == Approx(11.5384617));
    CHECK(m.offset(0, 0) == Approx(5.76923084));
    CHECK(inspect::codes(m) == std::vector<unsigned>{9, 0, 7, 15, 3});
    const std::vector<float> expected = {.280000001f, -.5f, .106666662f, .800000012f, -.24000001f};
    for (extent k = 0; k < 5; ++k) CHECK(m(0, k) == Approx(expected[static_cast<std::size_t>(k)]).epsilon(1e-6));
    for (const float v : {3.7f, -2.5f, 0.0f}) {
        const nibble::qmatrix c = quantized({v, v, v}, nibble::int4::format, nibble::float_zero{});
        CHECK(inspect::decoded(c) == std::vector<float>{v, v, v});
    }
}

TEST_CASE("asymmetric rules at every width, scheme and shape are their definitions", "[affine]") {
    int cases = 0;
    tally numbers;
    tally codes;
    for (const int bits : {2, 3, 4, 5, 6, 8}) {
        for (const reference::storage s :
             {reference::storage::f32, reference::storage::f16, reference::storage::bf16}) {
            for (const auto& [rows, cols, group] : {std::tuple<extent, extent, extent>{3, 128, 32},
                                                    {17, 50, 16},
                                                    {2, 21, 3},
                                                    {33, 5, 0},
                                                    {5, 130, 128}}) {
                std::vector<float> w = reference::normal_samples(static_cast<std::size_t>(rows * cols), 5);
                for (std::size_t i = 0; i < w.size(); i += 11) w[i] = w[i] * 8.0f + 3.0f;
                const extent size = group == 0 ? cols : std::min(group, cols);
                for (int kind = 0; kind < 3; ++kind) {
                    const nibble::granularity grouping{1, group};
                    const nibble::qmatrix m =
                        kind == 0 ? quantized(w, integers_of(bits), nibble::zero_point{}, grouping, scheme_of(s), rows)
                        : kind == 1
                            ? quantized(w, integers_of(bits), nibble::min_offset{}, grouping, scheme_of(s), rows)
                            : quantized(w, integers_of(bits), nibble::float_zero{}, grouping, scheme_of(s), rows);
                    for (extent n = 0; n < rows; ++n) {
                        for (extent g = 0; g * size < cols; ++g) {
                            const extent first = n * cols + g * size;
                            const extent last = n * cols + std::min(cols, (g + 1) * size);
                            const std::vector<float> x(w.begin() + first, w.begin() + last);
                            const reference::group e = kind == 0   ? reference::zero_point_group(x, bits, s)
                                                       : kind == 1 ? reference::minimum_group(x, bits, s)
                                                                   : reference::float_zero_group(x, bits, s);
                            numbers.check(m.scale(n, g) == e.scale && m.offset(n, g) == e.offset, [&] {
                                return std::to_string(kind) + ": " + std::to_string(m.offset(n, g)) +
                                       " != " + std::to_string(e.offset);
                            });
                            for (extent k = 0; k < last - first; ++k)
                                codes.check(m.code(n, g * size + k) == e.codes[static_cast<std::size_t>(k)], [&] {
                                    return std::to_string(kind) + " of " +
                                           std::to_string(x[static_cast<std::size_t>(k)]);
                                });
                        }
                    }
                    ++cases;
                }
            }
        }
    }
    CHECK(cases == 6 * 3 * 5 * 3);
    CHECK(codes.cases() == 6 * 3 * 3 * (384 + 850 + 42 + 165 + 650));
    INFO(numbers.report());
    CHECK(numbers.failures() == 0);
    INFO(codes.report());
    CHECK(codes.failures() == 0);
}

TEST_CASE("asymmetric rules stay within half a step", "[affine]") {
    tally error;
    for (const int bits : {2, 3, 4, 5, 6, 8}) {
        for (const float shift : {0.0f, 0.5f, -3.0f, 40.0f}) {
            std::vector<float> w = reference::normal_samples(64 * 64, 8);
            for (float& v : w) v += shift;
            for (int kind = 0; kind < 3; ++kind) {
                const nibble::qmatrix m = kind == 0   ? quantized(w, integers_of(bits), nibble::zero_point{},
                                                                  nibble::per_group{32}, nibble::scales::f32, 64)
                                          : kind == 1 ? quantized(w, integers_of(bits), nibble::min_offset{},
                                                                  nibble::per_group{32}, nibble::scales::f32, 64)
                                                      : quantized(w, integers_of(bits), nibble::float_zero{},
                                                                  nibble::per_group{32}, nibble::scales::f32, 64);
                const std::vector<float> back = inspect::decoded(m);
                for (std::size_t i = 0; i < w.size(); ++i) {
                    const double step =
                        static_cast<double>(m.scale(static_cast<extent>(i / 64), static_cast<extent>(i % 64 / 32)));
                    const double distance = std::fabs(static_cast<double>(w[i]) - static_cast<double>(back[i]));
                    error.check(distance <= step / 2 + std::ldexp(48.0, -21), [&] {
                        return std::to_string(kind) + ": " + std::to_string(distance / step) + " steps at " +
                               std::to_string(bits) + " bits";
                    });
                }
            }
        }
    }
    CHECK(error.cases() == 6 * 4 * 3 * 4096);
    INFO(error.report());
    CHECK(error.failures() == 0);
}

TEST_CASE("PyTorch's per-tensor observers and both of its quantizers", "[zero_point][pytorch]") {
    const golden::file file("pytorch/per_tensor");
    int cases = 0;
    for (const char* set : {"g1", "g2", "normal", "outliers", "positive", "negative", "zeros", "tiny", "ties"}) {
        const auto x = file.read<float>(std::string(set) + ".x");
        for (const bool is_signed : {false, true}) {
            const int below = is_signed ? 128 : 0;  // how far PyTorch's codes lie below ours
            for (const bool symmetric : {false, true}) {
                const std::string name =
                    std::string(set) + (is_signed ? ".qint8" : ".quint8") + (symmetric ? ".symmetric" : ".affine");
                INFO(name);
                const float scale = file.read<float>(name + ".scale").at(0);
                std::vector<int> codes, decomposed;
                if (is_signed) {
                    for (const std::int8_t c : file.read<std::int8_t>(name + ".codes")) codes.push_back(c);
                    for (const std::int8_t c : file.read<std::int8_t>(name + ".codes_decomposed"))
                        decomposed.push_back(c);
                } else {
                    for (const std::uint8_t c : file.read<std::uint8_t>(name + ".codes")) codes.push_back(c);
                    for (const std::uint8_t c : file.read<std::uint8_t>(name + ".codes_decomposed"))
                        decomposed.push_back(c);
                }
                nibble::zero_point rule;
                nibble::zero_point eager;
                eager.eager = true;
                eager.is_signed = is_signed;
                if (symmetric) {  // scale amax / 127.5, zero point 128: not a rule of ours
                    const nibble::qmatrix m = quantized(x, nibble::int8::format, given{scale, 128, rule});
                    CHECK(inspect::difference(shifted(inspect::codes(m), below), decomposed) == "");
                    const nibble::qmatrix e = quantized(x, nibble::int8::format, given{scale, 128, eager});
                    CHECK(inspect::difference(shifted(inspect::codes(e), below), codes) == "");
                    CHECK(inspect::difference(inspect::decoded(e), file.read<float>(name + ".dequant")) == "");
                } else {
                    const nibble::qmatrix m = quantized(x, nibble::int8::format, rule);
                    CHECK(m.scale(0, 0) == scale);
                    CHECK(inspect::difference(shifted(inspect::codes(m), below), decomposed) == "");
                    const nibble::qmatrix e = quantized(x, nibble::int8::format, eager);
                    CHECK(inspect::difference(shifted(inspect::codes(e), below), codes) == "");
                    CHECK(inspect::difference(inspect::decoded(e), file.read<float>(name + ".dequant")) == "");
                }
                ++cases;
            }
        }
    }
    CHECK(cases == 36);
}

TEST_CASE("PyTorch's quantizers with scales chosen by hand", "[zero_point][pytorch]") {
    const golden::file file("pytorch/per_tensor");
    struct choice {
        const char* name;
        bool is_signed;
        float scale;
        int zero;
    };
    for (const choice& c : {choice{"given0.quint8", false, 0.5f, 3},
                            {"given1.qint8", true, 1.0f, 7},
                            {"given2.qint8", true, 0.1f, -5},
                            {"given3.quint8", false, 0.3333333432674408f, 128},
                            {"given4.qint8", true, 0.0021485486067831516f, 0}}) {
        INFO(c.name);
        const auto x = file.read<float>(std::string(c.name).substr(0, 6) + ".x");
        const int below = c.is_signed ? 128 : 0;
        std::vector<int> codes, decomposed;
        if (c.is_signed) {
            for (const std::int8_t q : file.read<std::int8_t>(std::string(c.name) + ".codes")) codes.push_back(q);
            for (const std::int8_t q : file.read<std::int8_t>(std::string(c.name) + ".codes_decomposed"))
                decomposed.push_back(q);
        } else {
            for (const std::uint8_t q : file.read<std::uint8_t>(std::string(c.name) + ".codes")) codes.push_back(q);
            for (const std::uint8_t q : file.read<std::uint8_t>(std::string(c.name) + ".codes_decomposed"))
                decomposed.push_back(q);
        }
        nibble::zero_point eager;
        eager.eager = true;
        eager.is_signed = c.is_signed;
        const nibble::qmatrix m = quantized(x, nibble::int8::format, given{c.scale, c.zero + below, {}});
        CHECK(inspect::difference(shifted(inspect::codes(m), below), decomposed) == "");
        const nibble::qmatrix e = quantized(x, nibble::int8::format, given{c.scale, c.zero + below, eager});
        CHECK(inspect::difference(shifted(inspect::codes(e), below), codes) == "");
        CHECK(inspect::difference(inspect::decoded(e), file.read<float>(std::string(c.name) + ".dequant")) == "");
    }
}

TEST_CASE("PyTorch's per-channel quantizers", "[zero_point][pytorch]") {
    const golden::file file("pytorch/per_channel");
    int cases = 0;
    for (const std::string set : {"g2", "w"}) {
        const auto x = file.read<float>(set + ".x");
        for (const std::string scheme : {".affine", ".symmetric"}) {
            INFO(set << scheme);
            const auto scale = file.read<float>(set + scheme + ".scale");
            std::vector<int> codes, decomposed, zero;
            for (const std::int8_t c : file.read<std::int8_t>(set + scheme + ".codes")) codes.push_back(c);
            for (const std::int8_t c : file.read<std::int8_t>(set + scheme + ".codes_decomposed"))
                decomposed.push_back(c);
            for (const std::int32_t z : file.read<std::int32_t>(set + scheme + ".zero_point")) zero.push_back(z + 128);
            nibble::zero_point rule;
            nibble::zero_point eager;
            eager.eager = true;
            eager.is_signed = true;
            const bool ours = scheme == ".affine";
            const nibble::qmatrix m =
                ours ? quantized(x, nibble::int8::format, rule, nibble::per_channel{}, nibble::scales::f32, 8)
                     : quantized(x, nibble::int8::format, given_rows{&scale, zero, x.data(), 128, rule},
                                 nibble::per_channel{}, nibble::scales::f32, 8);
            const nibble::qmatrix e =
                ours ? quantized(x, nibble::int8::format, eager, nibble::per_channel{}, nibble::scales::f32, 8)
                     : quantized(x, nibble::int8::format, given_rows{&scale, zero, x.data(), 128, eager},
                                 nibble::per_channel{}, nibble::scales::f32, 8);
            CHECK(inspect::difference(inspect::scales(m), scale) == "");
            CHECK(inspect::difference(inspect::offsets(m), std::vector<float>(zero.begin(), zero.end())) == "");
            CHECK(inspect::difference(shifted(inspect::codes(m), 128), decomposed) == "");
            CHECK(inspect::difference(inspect::decoded(m), file.read<float>(set + scheme + ".fake_quant")) == "");
            CHECK(inspect::difference(shifted(inspect::codes(e), 128), codes) == "");
            CHECK(inspect::difference(inspect::decoded(e), file.read<float>(set + scheme + ".dequant")) == "");
            ++cases;
        }
    }
    CHECK(cases == 4);
}

TEST_CASE("PyTorch's fake quantization", "[zero_point][pytorch]") {
    const golden::file file("pytorch/fake_quant");
    struct choice {
        const char* name;
        int bits;
        float scale;
        int zero;  // of unsigned codes
    };
    int cases = 0;
    for (const choice& c :
         {choice{"i4", 4, 0.25f, 8}, {"u2", 2, 0.6f, 1}, {"u4_odd_zp", 4, 0.25f, 5}, {"u8", 8, 0.0125f, 96}}) {
        INFO(c.name);
        const auto x = file.read<float>(std::string(c.name) + ".x");
        const nibble::qmatrix m = quantized(x, integers_of(c.bits), given{c.scale, c.zero, {}});
        CHECK(inspect::difference(inspect::decoded(m), file.read<float>(std::string(c.name) + ".y")) == "");
        ++cases;
    }
    // -127 .. 127: the restricted range of absmax
    const auto x = file.read<float>("i8_sym.x");
    std::vector<float> with_limit = x;
    with_limit.push_back(127.0f * 0.03125f);
    std::vector<float> y = file.read<float>("i8_sym.y");
    y.push_back(127.0f * 0.03125f);
    for (float& v : with_limit)
        v = std::min(std::max(v, -127.0f * 0.03125f), 127.0f * 0.03125f);  // absmax takes its scale from the data
    const nibble::qmatrix m = quantized(with_limit, nibble::int8::format, nibble::absmax{});
    CHECK(m.scale(0, 0) == 0.03125f);
    CHECK(inspect::difference(inspect::decoded(m), y) == "");
    ++cases;
    CHECK(cases == 5);
}

TEST_CASE("torchao's affine primitives", "[zero_point][torchao]") {
    const golden::file file("torchao/affine");
    const auto w = file.read<float>("w");
    REQUIRE(w.size() == 1024);
    int cases = 0;
    for (const std::string group : {".g32", ".g128"}) {
        const nibble::granularity g = group == ".g32" ? nibble::granularity{1, 32} : nibble::granularity{1, 128};
        for (const std::string name :
             {"asym_i8", "asym_u4", "asym_u2", "sym_i8", "sym_i4", "noclip_i4", "sym_i8_127"}) {
            INFO(name << group);
            const bool is_signed = name.find("_i") != std::string::npos;
            const int bits = name.find("i8") != std::string::npos ? 8 : name.find("u2") != std::string::npos ? 2 : 4;
            const int below = is_signed ? 1 << (bits - 1) : 0;
            std::vector<int> codes, zero;
            if (is_signed)
                for (const std::int8_t c : file.read<std::int8_t>(name + group + ".codes")) codes.push_back(c);
            else
                for (const std::uint8_t c : file.read<std::uint8_t>(name + group + ".codes")) codes.push_back(c);
            for (const std::int32_t z : file.read<std::int32_t>(name + group + ".zero_point"))
                zero.push_back(z + below);
            auto scale = file.read<float>(name + group + ".scale");
            if (name == "sym_i8_127")  // torchao stores eps for a group of zeros, absmax stores 0
                for (float& s : scale) s = s == 1.1920928955078125e-7f ? 0.0f : s;
            nibble::qmatrix m;
            if (name == "sym_i8_127")
                m = quantized(w, nibble::int8::format, nibble::absmax{}, g, nibble::scales::f32, 8);
            else if (name.substr(0, 4) == "asym")
                m = quantized(w, integers_of(bits), nibble::zero_point{}, g, nibble::scales::f32, 8);
            else
                m = quantized(w, integers_of(bits), given_rows{&scale, zero, w.data(), 128, {}}, g, nibble::scales::f32,
                              8);
            CHECK(inspect::difference(inspect::scales(m), scale) == "");
            CHECK(inspect::difference(shifted(inspect::codes(m), below), codes) == "");
            CHECK(inspect::difference(inspect::decoded(m), file.read<float>(name + group + ".dequant")) == "");
            if (name != "sym_i8_127")
                CHECK(inspect::difference(inspect::offsets(m), std::vector<float>(zero.begin(), zero.end())) == "");
            ++cases;
        }
    }
    CHECK(cases == 14);
}

TEST_CASE("the eager rule is a fused multiply-add, rounded once", "[zero_point]") {
    tally good;
    reference::random_bits bits(7);
    int differ = 0;
    for (const bool is_signed : {false, true}) {
        for (int zero = 0; zero < 256; zero += 17) {
            std::vector<float> x;
            const float scale = 0.0078125f * (1.0f + static_cast<float>(bits() % 1000) / 1000.0f);
            const float inv = reference::reciprocal(scale);
            for (int i = 0; i < 2000; ++i) {  // within a few ulp of the ties
                const float tie = scale * (static_cast<float>(bits() % 512) - 256.0f + 0.5f);
                x.push_back(float_from_bits(reference::bits_from_float(tie) + bits() % 7 - 3));
            }
            nibble::zero_point eager;
            eager.eager = true;
            eager.is_signed = is_signed;
            const nibble::qmatrix m = quantized(x, nibble::int8::format, given{scale, zero, eager});
            const nibble::qmatrix plain = quantized(x, nibble::int8::format, given{scale, zero, {}});
            for (std::size_t i = 0; i < x.size(); ++i) {
                const int below = is_signed ? 128 : 0;
                const float t = std::fma(x[i], inv, static_cast<float>(zero - below));
                const int expected =
                    reference::clamped(reference::nearest_even(static_cast<double>(t)), -below, 255 - below) + below;
                const auto k = static_cast<extent>(i);
                good.check(static_cast<int>(m.code(0, k)) == expected, [&] { return std::to_string(x[i]); });
                differ += m.code(0, k) != plain.code(0, k);
            }
        }
    }
    CHECK(good.cases() == 2 * 16 * 2000);
    INFO(good.report());
    CHECK(good.failures() == 0);
    CHECK(differ > 1000);  // else the option would be pointless
}
