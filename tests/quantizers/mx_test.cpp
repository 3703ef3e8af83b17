// Microscaling: OCP MX in the four scale modes against torchao, and NVFP4 with a scale for the tensor.
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
using reference::tally;

namespace {

struct element {
    const char* torchao;
    const nibble::code_format* format;
};
constexpr element elements[] = {{"e4m3", &nibble::fp8_e4m3::format},
                                {"e5m2", &nibble::fp8_e5m2::format},
                                {"e2m3", &nibble::fp6_e2m3::format},
                                {"e3m2", &nibble::fp6_e3m2::format},
                                {"e2m1", &nibble::fp4_e2m1::format}};
struct mode {
    const char* name;
    nibble::mx_rounding ours;
    reference::shared_exponent theirs;
};
constexpr mode modes[] = {{"floor", nibble::mx_rounding::floor, reference::shared_exponent::floor},
                          {"even", nibble::mx_rounding::even, reference::shared_exponent::even},
                          {"ceil", nibble::mx_rounding::ceil, reference::shared_exponent::ceil},
                          {"rceil", nibble::mx_rounding::rceil, reference::shared_exponent::rceil}};

nibble::qmatrix quantized(const std::vector<float>& x, extent rows, const nibble::code_format& f, nibble::mx_rounding r,
                          extent group = 32) {
    const nibble::mx rule{r};
    return nibble::quantize(nibble::row_major(x.data(), rows, static_cast<extent>(x.size()) / rows),
                            nibble::make_plan(f, rule, nibble::per_group{group}, nibble::scales::e8m0));
}
nibble::qmatrix nvfp4(const std::vector<float>& x, extent rows) {
    return nibble::quantize(nibble::row_major(x.data(), rows, static_cast<extent>(x.size()) / rows),
                            nibble::make_plan(nibble::nvfp4::get()));
}

std::vector<unsigned> nibbles(const std::vector<std::uint8_t>& bytes) {  // the first in the low half
    std::vector<unsigned> codes;
    for (const unsigned b : bytes) {
        codes.push_back(b & 15u);
        codes.push_back(b >> 4);
    }
    return codes;
}

const std::vector<float> twelve = {.3f, -.5f, .1f, .8f, -.2f, 7.0f, -3.3f, 0.0f, 1.25f, -.04f, 5.9f, -6.5f};

std::vector<float> padded(std::vector<float> x, std::size_t count) {
    x.resize(count, 0.0f);
    return x;
}

}  // namespace

TEST_CASE("one block in five formats", "[mx]") {
    struct expected {
        const nibble::code_format* f;
        unsigned scale;
        std::vector<unsigned> codes;
        std::vector<float> values;
    };
    const std::vector<expected> all = {
        {&nibble::fp4_e2m1::format,
         0x7f,
         {1, 9, 0, 2, 8, 7, 0xd, 0, 2, 8, 7, 0xf},
         {.5f, -.5f, 0, 1, 0, 6, -3, 0, 1, 0, 6, -6}},
        {&nibble::fp6_e2m3::format,
         0x7f,
         {0x02, 0x24, 0x01, 0x06, 0x22, 0x1e, 0x35, 0x00, 0x0a, 0x20, 0x1c, 0x3d},
         {.25f, -.5f, .125f, .75f, -.25f, 7, -3.25f, 0, 1.25f, 0, 6, -6.5f}},
        {&nibble::fp6_e3m2::format,
         0x7d,
         {0x0d, 0x30, 0x06, 0x12, 0x2a, 0x1f, 0x3b, 0x00, 0x15, 0x23, 0x1e, 0x3e},
         {.3125f, -.5f, .09375f, .75f, -.1875f, 7, -3.5f, 0, 1.25f, -.046875f, 6, -6}},
        {&nibble::fp8_e4m3::format,
         0x79,
         {0x5a, 0xe0, 0x4d, 0x65, 0xd5, 0x7e, 0xf5, 0x00, 0x6a, 0xc2, 0x7c, 0xfd},
         {.3125f, -.5f, .1015625f, .8125f, -.203125f, 7, -3.25f, 0, 1.25f, -.0390625f, 6, -6.5f}},
        {&nibble::fp8_e5m2::format,
         0x72,
         {0x69, 0xec, 0x62, 0x6e, 0xe6, 0x7b, 0xf7, 0x00, 0x71, 0xdd, 0x7a, 0xfa},
         {.3125f, -.5f, .09375f, .75f, -.1875f, 7, -3.5f, 0, 1.25f, -.0390625f, 6, -6}},
    };
    for (const expected& e : all) {
        INFO(e.f->name);
        const nibble::qmatrix m = quantized(padded(twelve, 32), 1, *e.f, nibble::mx_rounding::floor);
        CHECK(m.stored_scale(0, 0) == e.scale);
        std::vector<unsigned> codes = e.codes;
        codes.resize(32, 0);
        CHECK(inspect::codes(m) == codes);
        CHECK(inspect::difference(inspect::decoded(m), padded(e.values, 32)) == "");
    }
    CHECK(all.size() == 5);
}

TEST_CASE("the shared exponent in all modes", "[mx]") {
    struct line {
        float amax;
        int exponent[4];  // floor, even, ceil, rceil
    };
    constexpr line lines[] = {{1, {-2, -2, -2, -2}},     {1.5f, {-2, -2, -1, -2}}, {1.74f, {-2, -2, -1, -1}},
                              {1.75f, {-2, -1, -1, -1}}, {2, {-1, -1, -1, -1}},    {3, {-1, -1, 0, -1}},
                              {3.4f, {-1, -1, 0, 0}},    {3.5f, {-1, 0, 0, 0}},    {6, {0, 0, 1, 0}},
                              {6.1f, {0, 0, 1, 1}},      {7, {0, 1, 1, 1}},        {8, {1, 1, 1, 1}}};
    int cases = 0;
    for (const line& l : lines) {
        for (int i = 0; i < 4; ++i) {
            INFO(l.amax << " " << modes[i].name);
            CHECK(static_cast<int>(
                      quantized({l.amax, 0.1f}, 1, nibble::fp4_e2m1::format, modes[i].ours).stored_scale(0, 0)) -
                      127 ==
                  l.exponent[i]);
            CHECK(static_cast<int>(
                      quantized({0.1f, -l.amax}, 1, nibble::fp4_e2m1::format, modes[i].ours).stored_scale(0, 0)) -
                      127 ==
                  l.exponent[i]);
            ++cases;
        }
    }
    CHECK(cases == 48);
}

TEST_CASE("MX is torchao's in every mode and format", "[mx][torchao]") {
    const golden::file file("torchao/mx");
    const auto x = file.read<float>("x");
    REQUIRE(x.size() == 12 * 64);
    int cases = 0;
    int scales_apart = 0;
    std::uint64_t compared = 0;
    for (const element& e : elements) {
        for (const mode& m : modes) {
            const std::string name = std::string("mx.") + e.torchao + "." + m.name;
            INFO(name);
            const auto scale = file.read<std::uint8_t>(name + ".scale_e8m0");
            const auto stored = file.read<std::uint8_t>(name + ".codes");
            const std::vector<unsigned> codes =
                e.format->bits == 4 ? nibbles(stored) : std::vector<unsigned>(stored.begin(), stored.end());
            const auto dequant = file.read<float>(name + ".dequant");
            const nibble::qmatrix q = quantized(x, 12, *e.format, m.ours);
            const std::vector<float> values = inspect::decoded(q);
            tally good;
            for (extent n = 0; n < 12; ++n) {
                for (extent g = 0; g < 2; ++g) {
                    const auto at = static_cast<std::size_t>(2 * n + g);
                    const unsigned theirs = scale[at];
                    // Two of torchao's habits are not followed: its rceil takes a float log2, which is k for an
                    // argument a few ulp above 2^k; and its scale of code 0 multiplies by 1, not by 2^127.
                    const bool log2_too_low = std::string(m.name) == "rceil" && q.stored_scale(n, g) == theirs + 1;
                    if (log2_too_low)
                        ++scales_apart;
                    else
                        good.check(q.stored_scale(n, g) == theirs, [&] {
                            return "scale " + std::to_string(q.stored_scale(n, g)) + " != " + std::to_string(theirs) +
                                   " in row " + std::to_string(n);
                        });
                    if (log2_too_low || theirs == 0) continue;
                    for (extent k = 32 * g; k < 32 * g + 32; ++k) {
                        const auto i = static_cast<std::size_t>(64 * n + k);
                        good.check(q.code(n, k) == codes[i] && values[i] == dequant[i], [&] {
                            return std::to_string(x[i]) + ": " + std::to_string(values[i]) +
                                   " != " + std::to_string(dequant[i]);
                        });
                        ++compared;
                    }
                }
            }
            INFO(good.report());
            CHECK(good.failures() == 0);
            ++cases;
        }
    }
    CHECK(cases == 20);
    CHECK(scales_apart <= 5);
    CHECK(compared > 20 * 20 * 32);
    CAPTURE(compared, scales_apart);
}

TEST_CASE("MX is its definition at every magnitude", "[mx]") {
    const reference::default_environment environment;
    int cases = 0;
    tally scales;
    tally codes;
    reference::random_bits bits(3);
    std::vector<float> x;
    for (int row = 0; row < 400; ++row) {  // every exponent, with largest values just beside the decisions
        const int e = row % 250 - 126;
        for (int i = 0; i < 32; ++i) {
            const double size = 1.0 + static_cast<double>(bits() >> 8) * std::ldexp(1.0, -24);
            const double sign = (bits() & 1u) != 0 ? -1.0 : 1.0;
            x.push_back(static_cast<float>(std::ldexp(sign * size, e - static_cast<int>(bits() % 12))));
        }
        const float tops[] = {1.0f, 1.25f, 1.5f, 1.75f, 1.875f, 1.9375f, 1.96875f, 1.999999f};
        x.back() = static_cast<float>(std::ldexp(static_cast<double>(tops[row % 8]), std::min(e, 125))) *
                   (row % 3 == 0 ? 1.0000001f : 1.0f);
    }
    for (const element& e : elements) {
        for (const mode& m : modes) {
            const nibble::qmatrix q = quantized(x, 400, *e.format, m.ours);
            for (extent n = 0; n < 400; ++n) {
                const std::vector<float> block(x.begin() + 32 * n, x.begin() + 32 * n + 32);
                const reference::group g = reference::mx_group(block, e.format->name, m.theirs);
                scales.check(reference::e8m0_value(q.stored_scale(n, 0)) == static_cast<double>(g.scale),
                             [&] { return std::string(e.torchao) + " " + m.name + " row " + std::to_string(n); });
                for (extent k = 0; k < 32; ++k)
                    codes.check(q.code(n, k) == g.codes[static_cast<std::size_t>(k)], [&] {
                        return std::string(e.torchao) + " " + m.name + " " +
                               std::to_string(block[static_cast<std::size_t>(k)]);
                    });
            }
            ++cases;
        }
    }
    CHECK(cases == 20);
    CHECK(codes.cases() == 20 * 400 * 32);
    INFO(scales.report());
    CHECK(scales.failures() == 0);
    INFO(codes.report());
    CHECK(codes.failures() == 0);
}

TEST_CASE("a zero block has exponent -127 and zero codes", "[mx]") {
    int cases = 0;
    for (const element& e : elements) {
        for (const mode& m : modes) {
            for (const float zero : {0.0f, -0.0f}) {
                const nibble::qmatrix q = quantized(std::vector<float>(64, zero), 1, *e.format, m.ours);
                CHECK(q.stored_scale(0, 0) == 0);
                CHECK(q.stored_scale(0, 1) == 0);
                CHECK(inspect::difference(inspect::decoded(q), std::vector<float>(64, 0.0f)) == "");
                ++cases;
            }
        }
    }
    CHECK(cases == 40);
}

TEST_CASE("MX unclamped elements are within half a unit in the last place", "[mx]") {
    const std::vector<float> x = reference::normal_samples(128 * 256, 17);
    tally good;
    for (const element& e : elements) {
        const nibble::qmatrix q = quantized(x, 128, *e.format, nibble::mx_rounding::ceil);  // never clamps
        const std::vector<float> back = inspect::decoded(q);
        const reference::small_float& f = *reference::find_small_float(e.format->name);
        for (std::size_t i = 0; i < x.size(); ++i) {
            const double scale =
                static_cast<double>(q.scale(static_cast<extent>(i / 256), static_cast<extent>(i % 256 / 32)));
            const double v = std::fabs(static_cast<double>(x[i])) / scale;
            const int exponent = std::max(v == 0.0 ? -1000 : std::ilogb(v), 1 - f.bias);
            const double half_ulp = std::ldexp(scale, exponent - static_cast<int>(f.mantissa_bits) - 1);
            const double distance = std::fabs(static_cast<double>(x[i]) - static_cast<double>(back[i]));
            good.check(distance <= half_ulp, [&] { return std::to_string(x[i]); });
        }
    }
    CHECK(good.cases() == 5 * 128 * 256);
    INFO(good.report());
    CHECK(good.failures() == 0);
}

TEST_CASE("NVFP4: one block under two tensor scales", "[nvfp4]") {
    std::vector<float> x = twelve;
    for (const float v : {.6f, -1.1f, 2.2f, .05f}) x.push_back(v);
    const nibble::qmatrix m = nvfp4(x, 1);
    CHECK(m.tensor_scale() == reference::float_from_bits(0x3b2aaaab));
    CHECK(m.stored_scale(0, 0) == 0x7e);
    CHECK(inspect::codes(m) == nibbles({0x91, 0x10, 0x78, 0x0d, 0x82, 0xf7, 0xa1, 0x04}));
    CHECK(inspect::difference(inspect::decoded(m),
                              std::vector<float>{.583333373f, -.583333373f, 0, .583333373f, 0, 7.00000048f,
                                                 -3.50000024f, 0, 1.16666675f, 0, 7.00000048f, -7.00000048f,
                                                 .583333373f, -1.16666675f, 2.33333349f, 0}) == "");
    // the same block beside one that reaches 12
    std::vector<float> two = x;
    two.resize(32, 0.0f);
    two[20] = -12.0f;
    const nibble::qmatrix n = nvfp4(two, 1);
    CHECK(n.tensor_scale() == 0.00446428591f);
    CHECK(n.stored_scale(0, 0) == 0x78);
    CHECK(n.stored_scale(0, 1) == 0x7e);
    const std::vector<float> values = {
        .571428597f, -.571428597f, 0,           .571428597f,  0,           6.8571434f, -3.4285717f, 0, 1.14285719f, 0,
        6.8571434f,  -6.8571434f,  .571428597f, -1.14285719f, 2.28571439f, 0};
    for (extent k = 0; k < 16; ++k) CHECK(n(0, k) == values[static_cast<std::size_t>(k)]);
}

TEST_CASE("NVFP4 is torchao's", "[nvfp4][torchao]") {
    const golden::file file("torchao/nvfp4");
    const auto x = file.read<float>("x");
    REQUIRE(x.size() == 6 * 64);
    const nibble::qmatrix m = nvfp4(x, 6);
    CHECK(m.tensor_scale() == 0.0026041667442768812f);
    std::vector<unsigned> scales;
    for (extent n = 0; n < 6; ++n)
        for (extent g = 0; g < 4; ++g) scales.push_back(m.stored_scale(n, g));
    CHECK(inspect::difference(scales, file.read<std::uint8_t>("amax.block_scale_e4m3")) == "");
    CHECK(inspect::difference(inspect::codes(m), nibbles(file.read<std::uint8_t>("amax.packed"))) == "");
    CHECK(inspect::difference(inspect::decoded(m), file.read<float>("amax.dequant")) == "");

    // amax12: the tensor scale of a larger tensor, here one with a row that reaches 12
    std::vector<float> larger = x;
    larger.resize(7 * 64, 0.0f);
    larger.back() = 12.0f;
    const nibble::qmatrix l = nvfp4(larger, 7);
    CHECK(l.tensor_scale() == 0.004464285913854837f);
    scales.clear();
    std::vector<unsigned> codes = inspect::codes(l);
    std::vector<float> values = inspect::decoded(l);
    codes.resize(6 * 64);
    values.resize(6 * 64);
    for (extent n = 0; n < 6; ++n)
        for (extent g = 0; g < 4; ++g) scales.push_back(l.stored_scale(n, g));
    CHECK(inspect::difference(scales, file.read<std::uint8_t>("amax12.block_scale_e4m3")) == "");
    CHECK(inspect::difference(codes, nibbles(file.read<std::uint8_t>("amax12.packed"))) == "");
    CHECK(inspect::difference(values, file.read<float>("amax12.dequant")) == "");
}

TEST_CASE("NVFP4 is its definition", "[nvfp4]") {
    const reference::default_environment environment;
    int cases = 0;
    tally good;
    for (const float size : {1.0f, 1e-20f, 1e20f, 1e-37f}) {
        for (const auto& [rows, cols] : {std::pair<extent, extent>{5, 64}, {33, 40}, {1, 7}, {16, 256}}) {
            std::vector<float> x = reference::normal_samples(static_cast<std::size_t>(rows * cols), 23);
            for (std::size_t i = 0; i < x.size(); ++i) x[i] *= size * (i % 29 == 0 ? 30.0f : 1.0f);
            const nibble::qmatrix m = nvfp4(x, rows);
            const float amax = reference::extremes_of(x).magnitude();
            const float tensor = reference::over(amax, 2688.0f);
            good.check(m.tensor_scale() == tensor, [&] { return std::to_string(tensor); });
            for (extent n = 0; n < rows; ++n) {
                for (extent k = 0; k < cols; k += 16) {
                    const extent last = std::min(cols, k + 16);
                    const std::vector<float> block(x.begin() + n * cols + k, x.begin() + n * cols + last);
                    const reference::group g = reference::nvfp4_group(block, tensor);
                    good.check(m.stored_scale(n, k / 16) == static_cast<std::uint32_t>(g.offset) &&
                                   m.scale(n, k / 16) == g.scale,
                               [&] { return "scale of row " + std::to_string(n); });
                    for (extent i = k; i < last; ++i)
                        good.check(m.code(n, i) == g.codes[static_cast<std::size_t>(i - k)],
                                   [&] { return "code " + std::to_string(i); });
                }
            }
            ++cases;
        }
    }
    CHECK(cases == 16);
    CHECK(good.cases() > 20000);
    INFO(good.report());
    CHECK(good.failures() == 0);
    // zero and nearly zero tensors
    for (const float tiny : {0.0f, -0.0f, 1e-45f, 1e-42f, 1e-41f}) {
        const nibble::qmatrix m = nvfp4(std::vector<float>(32, tiny), 1);
        for (const float v : inspect::decoded(m)) CHECK(std::fabs(static_cast<double>(v)) <= 1e-38);
    }
}
