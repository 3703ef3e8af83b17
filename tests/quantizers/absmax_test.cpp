// Symmetric rules: absmax with every code format, absmean, TWN, and the FP8 tiles of DeepSeek checkpoints.
#include <nibble/quantize.hpp>

#include <cmath>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/inspect.hpp"
#include "support/reference_quantizers.hpp"

using extent = nibble::index;  // index is a function of <strings.h>
using reference::float_from_bits;
using reference::tally;

namespace {

const std::vector<float> five = {0.3f, -0.5f, 0.1f, 0.8f, -0.2f};

template <class Rule>
nibble::qmatrix quantized(const std::vector<float>& x, const nibble::code_format& f, const Rule& rule,
                          nibble::granularity group, nibble::scale_scheme scheme, extent rows = 1) {
    const auto cols = static_cast<extent>(x.size()) / rows;
    return nibble::quantize(nibble::row_major(x.data(), rows, cols), nibble::make_plan(f, rule, group, scheme));
}

nibble::scale_scheme scheme_of(reference::storage s) {
    return s == reference::storage::f32   ? nibble::scales::f32
           : s == reference::storage::f16 ? nibble::scales::f16
                                          : nibble::scales::bf16;
}

// A rule of a user's: numbers chosen before.
struct given {
    static constexpr nibble::offset_kind offset = nibble::offset_kind::zero_point;
    nibble::group_scale operator()(const nibble::group_view&) const { return {0.00214854861f, 64.0f}; }
};

std::vector<int> around(const std::vector<unsigned>& codes, int zero) {
    std::vector<int> q;
    for (const unsigned c : codes) q.push_back(static_cast<int>(c) - zero);
    return q;
}

}  // namespace

TEST_CASE("codes come from the reciprocal of the scale, not from a division", "[absmax]") {
    // x * (1 / s) is 127.5 and rounds to 128, x / s is 127.49999 and rounds to 127. Around a zero point of 64
    // both are codes.
    const std::vector<float> x = {0.273939937f};
    const nibble::qmatrix m = quantized(x, nibble::int8::format, given{}, nibble::per_channel{}, nibble::scales::f32);
    CHECK(m.code(0, 0) == 64 + 128);
}

TEST_CASE("five values at every width", "[absmax]") {
    struct width {
        const nibble::code_format* f;
        std::uint32_t scale;
        std::vector<int> codes;
        std::vector<float> values;
    };
    const std::vector<width> widths = {
        {&nibble::int8::format,
         0x3bce69a0,
         {48, -79, 16, 127, -32},
         {.302362204f, -.497637808f, .100787401f, .800000012f, -.201574802f}},
        {&nibble::int6::format,
         0x3cd3680d,
         {12, -19, 4, 31, -8},
         {.309677422f, -.49032256f, .103225805f, .800000012f, -.20645161f}},
        {&nibble::int5::format,
         0x3d5a740e,
         {6, -9, 2, 15, -4},
         {.319999993f, -.480000019f, .106666669f, .800000012f, -.213333338f}},
        {&nibble::int4::format,
         0x3dea0ea1,
         {3, -4, 1, 7, -2},
         {.342857152f, -.45714286f, .114285715f, .800000012f, -.22857143f}},
        {&nibble::int3::format,
         0x3e888889,
         {1, -2, 0, 3, -1},
         {.266666681f, -.533333361f, 0.0f, .800000072f, -.266666681f}},
        {&nibble::int2::format, 0x3f4ccccd, {0, -1, 0, 1, 0}, {0.0f, -.800000012f, 0.0f, .800000012f, 0.0f}},
    };
    for (const width& w : widths) {
        INFO(w.f->name);
        const nibble::qmatrix m = quantized(five, *w.f, nibble::absmax{}, nibble::per_channel{}, nibble::scales::f32);
        CHECK(m.scale(0, 0) == float_from_bits(w.scale));
        CHECK(around(inspect::codes(m), static_cast<int>(w.f->zero_code)) == w.codes);
        CHECK(inspect::difference(inspect::decoded(m), w.values) == "");
    }
    CHECK(widths.size() == 6);
}

TEST_CASE("absmax with every format, scheme and shape is the definition", "[absmax]") {
    int cases = 0;
    tally scales;
    tally codes;
    for (const nibble::code_format* f : nibble::formats()) {
        if (f->bits == 16) continue;
        const reference::staircase encoder = reference::encoder_of(f->name);
        for (const reference::storage s :
             {reference::storage::f32, reference::storage::f16, reference::storage::bf16}) {
            for (const auto& [rows, cols, group] : {std::tuple<extent, extent, extent>{3, 128, 32},
                                                    {17, 50, 16},
                                                    {1, 7, 3},
                                                    {33, 5, 0},
                                                    {2, 64, 1},
                                                    {16, 65, 64},
                                                    {5, 9, 100}}) {
                std::vector<float> w = reference::normal_samples(static_cast<std::size_t>(rows * cols), 77);
                for (std::size_t i = 0; i < w.size(); i += 13) w[i] *= 20.0f;
                for (std::size_t i = 0; i < std::min<std::size_t>(w.size(), 40); ++i) w[i] = i % 3 == 0 ? -0.0f : 0.0f;
                const nibble::qmatrix m =
                    quantized(w, *f, nibble::absmax{}, nibble::granularity{1, group}, scheme_of(s), rows);
                const extent size = group == 0 ? cols : std::min(group, cols);
                for (extent n = 0; n < rows; ++n) {
                    for (extent g = 0; g * size < cols; ++g) {
                        const extent first = n * cols + g * size;
                        const extent last = n * cols + std::min(cols, (g + 1) * size);
                        const std::vector<float> x(w.begin() + first, w.begin() + last);
                        const float scale = reference::stored(s, reference::over(reference::extremes_of(x).magnitude(),
                                                                                 reference::absmax_target(f->name)));
                        scales.check(m.scale(n, g) == scale,
                                     [&] { return std::string(f->name) + " " + std::to_string(scale); });
                        const auto expected = reference::encoded(x, reference::reciprocal(scale), encoder);
                        for (extent k = 0; k < last - first; ++k)
                            codes.check(m.code(n, g * size + k) == expected[static_cast<std::size_t>(k)], [&] {
                                return std::string(f->name) + " of " + std::to_string(x[static_cast<std::size_t>(k)]);
                            });
                    }
                }
                ++cases;
            }
        }
    }
    CHECK(cases == 19 * 3 * 7);
    CHECK(scales.cases() == 19 * 3 * (12 + 68 + 3 + 33 + 128 + 32 + 5));
    CHECK(codes.cases() == 19 * 3 * (384 + 850 + 7 + 165 + 128 + 1040 + 45));
    INFO(scales.report());
    CHECK(scales.failures() == 0);
    INFO(codes.report());
    CHECK(codes.failures() == 0);
}

TEST_CASE("absmax stays within half a step", "[absmax]") {
    tally error;
    for (const auto* f : {&nibble::int8::format, &nibble::int6::format, &nibble::int5::format, &nibble::int4::format,
                          &nibble::int3::format, &nibble::int2::format}) {
        for (const float size : {1.0f, 1e-30f, 1e30f, 3.0e-5f}) {
            std::vector<float> w = reference::normal_samples(64 * 64, 11);
            for (float& v : w) v *= size;
            const nibble::qmatrix m =
                quantized(w, *f, nibble::absmax{}, nibble::per_group{32}, nibble::scales::f32, 64);
            const std::vector<float> back = inspect::decoded(m);
            for (std::size_t i = 0; i < w.size(); ++i) {
                const double step =
                    static_cast<double>(m.scale(static_cast<extent>(i / 64), static_cast<extent>(i % 64 / 32)));
                const double amax = step * static_cast<double>(f->max_value);
                const double distance = std::fabs(static_cast<double>(w[i]) - static_cast<double>(back[i]));
                error.check(distance <= step / 2 + std::ldexp(amax, -22),
                            [&] { return std::to_string(distance / step); });
            }
        }
    }
    CHECK(error.cases() == 6 * 4 * 4096);
    INFO(error.report());
    CHECK(error.failures() == 0);
}

TEST_CASE("one scale for a tensor, a tile or a row", "[absmax]") {
    const extent rows = 300;
    const extent cols = 260;
    const std::vector<float> w = reference::normal_samples(static_cast<std::size_t>(rows * cols), 15);
    int cases = 0;
    for (const nibble::granularity group :
         {nibble::granularity{0, 0}, {128, 128}, {1, 0}, {7, 33}, {16, 0}, {0, 5}, {1, 1}, {1000, 1000}}) {
        INFO(group.rows << " x " << group.cols);
        const nibble::qmatrix m =
            quantized(w, nibble::fp8_e4m3::format, nibble::absmax{}, group, nibble::scales::f32, rows);
        const extent tile_rows = group.rows == 0 ? rows : std::min(group.rows, rows);
        const extent tile_cols = group.cols == 0 ? cols : std::min(group.cols, cols);
        const reference::staircase encoder = reference::encoder_of("fp8_e4m3");
        tally good;
        for (extent top = 0; top < rows; top += tile_rows) {
            for (extent left = 0; left < cols; left += tile_cols) {
                float amax = 0.0f;
                for (extent n = top; n < std::min(rows, top + tile_rows); ++n)
                    for (extent k = left; k < std::min(cols, left + tile_cols); ++k)
                        amax = std::max(amax, std::fabs(w[static_cast<std::size_t>(n * cols + k)]));
                const float scale = reference::over(amax, 448.0f);
                const float inv = reference::reciprocal(scale);
                for (extent n = top; n < std::min(rows, top + tile_rows); ++n) {
                    good.check(m.scale(n, left / tile_cols) == scale,
                               [&] { return "scale of row " + std::to_string(n); });
                    for (extent k = left; k < std::min(cols, left + tile_cols); ++k)
                        good.check(
                            m.code(n, k) == encoder(reference::times(w[static_cast<std::size_t>(n * cols + k)], inv)),
                            [&] { return std::to_string(n) + ", " + std::to_string(k); });
                }
            }
        }
        INFO(good.report());
        CHECK(good.failures() == 0);
        CHECK(good.cases() == static_cast<std::uint64_t>(rows * cols + rows * ((cols + tile_cols - 1) / tile_cols)));
        ++cases;
    }
    CHECK(cases == 8);
}

TEST_CASE("XNOR-Net: the scale is mean|w|, zero is +1", "[absmean]") {
    const std::vector<float> w = {.5f, -1.5f, .25f, -.75f};
    const nibble::qmatrix m =
        quantized(w, nibble::binary::format, nibble::absmean{}, nibble::per_channel{}, nibble::scales::f32);
    CHECK(m.scale(0, 0) == 0.75f);
    CHECK(inspect::codes(m) == std::vector<unsigned>{1, 0, 1, 0});
    CHECK(inspect::decoded(m) == std::vector<float>{.75f, -.75f, .75f, -.75f});
    CHECK(std::pow(inspect::rmse(inspect::decoded(m), w), 2) == Approx(.21875));
    // |W - aB|^2 = |W|^2 - n a^2
    const std::vector<float> x = reference::normal_samples(4096, 2);
    const nibble::qmatrix b =
        quantized(x, nibble::binary::format, nibble::absmean{}, nibble::per_channel{}, nibble::scales::f32);
    double squares = 0.0;
    for (const float v : x) squares += static_cast<double>(v) * static_cast<double>(v);
    const double a = static_cast<double>(b.scale(0, 0));
    CHECK(4096 * std::pow(inspect::rmse(inspect::decoded(b), x), 2) == Approx(squares - 4096 * a * a).epsilon(1e-6));
    // signs outlive a scale that underflows
    const std::vector<float> tiny = {1e-30f, -1e-30f, 0.0f, -0.0f, -1e-38f};
    const nibble::qmatrix t =
        quantized(tiny, nibble::binary::format, nibble::absmean{}, nibble::per_channel{}, nibble::scales::f16);
    CHECK(inspect::codes(t) == std::vector<unsigned>{1, 0, 1, 1, 0});
    CHECK(t.scale(0, 0) == 0.0f);
}

TEST_CASE("BitNet b1.58 and TWN", "[ternary]") {
    const std::vector<float> w = {.9f, -.05f, .4f, -1.2f, .02f, .6f, -.3f, .31f};
    const nibble::qmatrix b =
        quantized(w, nibble::ternary::format, nibble::absmean{}, nibble::per_tensor{}, nibble::scales::f32);
    CHECK(b.scale(0, 0) == Approx(.4725));
    CHECK(around(inspect::codes(b), 1) == std::vector<int>{1, 0, 1, -1, 0, 1, -1, 1});
    const nibble::qmatrix t =
        quantized(w, nibble::ternary::format, nibble::twn{}, nibble::per_channel{}, nibble::scales::f32);
    CHECK(t.scale(0, 0) == Approx(.775));
    CHECK(around(inspect::codes(t), 1) == std::vector<int>{1, 0, 1, -1, 0, 1, 0, 0});
    // over a tensor: the threshold is the tensor's, not the row's
    std::vector<float> two_rows = w;
    for (const float v : w) two_rows.push_back(v * 0.25f);
    const nibble::qmatrix p =
        quantized(two_rows, nibble::ternary::format, nibble::twn{}, nibble::per_tensor{}, nibble::scales::f32, 2);
    // mean|w| = .29531, threshold .20672: .9 .4 1.2 .6 .3 .31 | .225 .3
    CHECK(around(inspect::codes(p), 1) == std::vector<int>{1, 0, 1, -1, 0, 1, -1, 1, 1, 0, 0, -1, 0, 0, 0, 0});
    CHECK(p.scale(0, 0) == Approx((.9 + .4 + 1.2 + .6 + .3 + .31 + .225 + .3) / 8));
    CHECK(p.scale(1, 0) == p.scale(0, 0));
    // zeros
    const std::vector<float> zeros(8, 0.0f);
    for (const char* recipe : {"ternary_twn", "bitnet_b158", "binary_g128"}) {
        const nibble::qmatrix z =
            nibble::quantize(nibble::row_major(zeros.data(), 2, 4), nibble::make_plan(*nibble::find_recipe(recipe)));
        CHECK(inspect::difference(inspect::decoded(z), zeros) == "");
    }
}

TEST_CASE("the scale of absmax is never -0", "[absmax]") {
    // E4M3 would store it with a sign bit, which NVFP4 files do not have.
    const std::vector<float> zeros(16, -0.0f);
    const nibble::qmatrix m =
        quantized(zeros, nibble::fp4_e2m1::format, nibble::absmax{}, nibble::per_group{16}, nibble::scales::e4m3);
    CHECK(m.stored_scale(0, 0) == 0);
}
