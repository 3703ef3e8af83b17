// Rules that look at every weight: mse over a grid of clipped ranges, percentile.
#include <nibble/quantize.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/inspect.hpp"
#include "support/reference_quantizers.hpp"

using extent = nibble::index;  // index is a function of <strings.h>
using reference::tally;

namespace {

template <class Rule>
nibble::qmatrix quantized(const std::vector<float>& x, const nibble::code_format& f, const Rule& rule,
                          nibble::granularity group, extent rows = 1, const std::vector<float>& importance = {}) {
    nibble::quantize_options options;
    options.importance = importance;
    return nibble::quantize(nibble::row_major(x.data(), rows, static_cast<extent>(x.size()) / rows),
                            nibble::make_plan(f, rule, group, nibble::scales::f32), options);
}

double squared_error(const std::vector<float>& x, const std::vector<float>& back,
                     const std::vector<float>& importance = {}) {
    double sum = 0.0;
    for (std::size_t i = 0; i < x.size(); ++i)
        sum += (importance.empty() ? 1.0 : static_cast<double>(importance[i % importance.size()])) *
               std::pow(static_cast<double>(x[i]) - static_cast<double>(back[i]), 2);
    return sum;
}

// The grid of the mse rule for int4 without an offset, in double. Returns the best scale.
float best_scale(const std::vector<float>& x, const std::vector<float>& importance, int largest) {
    const reference::extremes e = reference::extremes_of(x);
    float best = 0.0f;
    double least = std::numeric_limits<double>::infinity();
    for (int i = 0; i < 80; ++i) {
        const float keep = reference::minus(1.0f, reference::times(static_cast<float>(i), 0.01f));
        const float amax = std::max(-reference::times(e.low, keep), reference::times(e.high, keep));
        const float scale = reference::over(amax, static_cast<float>(largest));
        const float inv = reference::reciprocal(scale);
        double loss = 0.0;
        for (std::size_t k = 0; k < x.size(); ++k) {
            const int q = reference::clamped(reference::nearest_even(static_cast<double>(reference::times(x[k], inv))),
                                             -largest, largest);
            const double d =
                static_cast<double>(reference::times(scale, static_cast<float>(q))) - static_cast<double>(x[k]);
            loss += (importance.empty() ? 1.0 : static_cast<double>(importance[k])) * d * d;
        }
        if (loss < least) {
            least = loss;
            best = scale;
        }
    }
    return best;
}

}  // namespace

TEST_CASE("mse takes the best scale of its grid", "[mse]") {
    const std::vector<float> x = reference::normal_samples(64 * 128, 12);
    std::vector<float> importance(128);
    for (std::size_t i = 0; i < 128; ++i) importance[i] = static_cast<float>(i % 5) * 0.5f;
    int cases = 0;
    tally good;
    for (const bool weighted : {false, true}) {
        for (const auto* f : {&nibble::int4::format, &nibble::int3::format, &nibble::int8::format}) {
            const nibble::qmatrix m = quantized(x, *f, nibble::mse{}, nibble::per_group{32}, 64,
                                                weighted ? importance : std::vector<float>());
            for (extent n = 0; n < 64; ++n) {
                for (extent g = 0; g < 4; ++g) {
                    const std::vector<float> group(x.begin() + n * 128 + g * 32, x.begin() + n * 128 + g * 32 + 32);
                    const std::vector<float> w(importance.begin() + g * 32, importance.begin() + g * 32 + 32);
                    const float expected =
                        best_scale(group, weighted ? w : std::vector<float>(), static_cast<int>(f->max_value));
                    good.check(m.scale(n, g) == expected,
                               [&] { return std::to_string(m.scale(n, g)) + " != " + std::to_string(expected); });
                }
            }
            ++cases;
        }
    }
    CHECK(cases == 6);
    CHECK(good.cases() == 6 * 256);
    INFO(good.report());
    CHECK(good.failures() == 0);
}

TEST_CASE("mse never loses to the rule it clips", "[mse]") {
    std::vector<float> x = reference::normal_samples(32 * 256, 6);
    for (std::size_t i = 0; i < x.size(); i += 101) x[i] *= 6.0f;
    int cases = 0;
    for (const auto* f : {&nibble::int2::format, &nibble::int3::format, &nibble::int4::format, &nibble::int5::format,
                          &nibble::int6::format, &nibble::int8::format, &nibble::nf4::format, &nibble::fp4_e2m1::format,
                          &nibble::fp8_e4m3::format, &nibble::iq4_nl::format}) {
        INFO(f->name);
        CHECK(squared_error(x, inspect::decoded(quantized(x, *f, nibble::mse{}, nibble::per_group{64}, 32))) <=
              squared_error(x, inspect::decoded(quantized(x, *f, nibble::absmax{}, nibble::per_group{64}, 32))));
        ++cases;
        if (f->decode != nibble::decode_class::integer) continue;
        const nibble::mse zero{nibble::offset_kind::zero_point};
        const nibble::mse least{nibble::offset_kind::minimum};
        const nibble::mse centre{nibble::offset_kind::float_zero};
        CHECK(squared_error(x, inspect::decoded(quantized(x, *f, zero, nibble::per_group{64}, 32))) <=
              squared_error(x, inspect::decoded(quantized(x, *f, nibble::zero_point{}, nibble::per_group{64}, 32))));
        CHECK(squared_error(x, inspect::decoded(quantized(x, *f, least, nibble::per_group{64}, 32))) <=
              squared_error(x, inspect::decoded(quantized(x, *f, nibble::min_offset{}, nibble::per_group{64}, 32))));
        CHECK(squared_error(x, inspect::decoded(quantized(x, *f, centre, nibble::per_group{64}, 32))) <=
              squared_error(x, inspect::decoded(quantized(x, *f, nibble::float_zero{}, nibble::per_group{64}, 32))) *
                  1.0001);
        cases += 3;
    }
    CHECK(cases == 10 + 3 * 6);
    // clipping pays where there are outliers
    CHECK(squared_error(
              x, inspect::decoded(quantized(x, nibble::int4::format, nibble::mse{}, nibble::per_channel{}, 32))) <
          0.8 * squared_error(x, inspect::decoded(
                                     quantized(x, nibble::int4::format, nibble::absmax{}, nibble::per_channel{}, 32))));
}

TEST_CASE("importance moves mse", "[mse]") {
    const std::vector<float> x = reference::normal_samples(64 * 64, 19);
    std::vector<float> importance(64, 0.01f);
    for (std::size_t i = 0; i < 64; i += 4) importance[i] = 10.0f;
    const nibble::qmatrix with =
        quantized(x, nibble::int3::format, nibble::mse{}, nibble::per_channel{}, 64, importance);
    const nibble::qmatrix without = quantized(x, nibble::int3::format, nibble::mse{}, nibble::per_channel{}, 64);
    CHECK(squared_error(x, inspect::decoded(with), importance) <
          squared_error(x, inspect::decoded(without), importance));
    // equal weights change nothing
    const nibble::qmatrix equal =
        quantized(x, nibble::int3::format, nibble::mse{}, nibble::per_channel{}, 64, std::vector<float>(64, 2.0f));
    CHECK(inspect::same(equal, without));
}

TEST_CASE("percentile is the nearest rank of |w|", "[percentile]") {
    std::vector<float> x;
    for (int i = 1; i <= 1000; ++i) x.push_back(static_cast<float>(i % 2 == 0 ? i : -i));
    int cases = 0;
    for (const auto& [percent, rank] : {std::pair<double, int>{100.0, 1000},
                                        {99.9, 999},
                                        {99.0, 990},
                                        {50.0, 500},
                                        {0.05, 1},
                                        {0.0, 1},
                                        {98.75, 988}}) {
        INFO(percent);
        const nibble::percentile rule{percent};
        const nibble::qmatrix m = quantized(x, nibble::int8::format, rule, nibble::per_tensor{});
        CHECK(m.scale(0, 0) == reference::over(static_cast<float>(rank), 127.0f));
        ++cases;
    }
    CHECK(cases == 7);
    // what lies beyond is clipped
    const nibble::qmatrix m = quantized(x, nibble::int8::format, nibble::percentile{50.0}, nibble::per_tensor{});
    CHECK(m(0, 999) == Approx(500.0));
    CHECK(m(0, 998) == Approx(-500.0));
    CHECK(quantized(std::vector<float>(9, 0.0f), nibble::int8::format, nibble::percentile{}, nibble::per_tensor{})
              .scale(0, 0) == 0.0f);
}
