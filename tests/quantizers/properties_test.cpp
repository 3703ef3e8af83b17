// What every recipe promises, whatever its bytes are.
#include <nibble/quantize.hpp>

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "support/catch.hpp"
#include "support/inspect.hpp"
#include "support/reference_quantizers.hpp"

using extent = nibble::index;  // index is a function of <strings.h>
using nibble::recipe;
using reference::tally;

namespace {

constexpr int recipe_count = 52;

nibble::qmatrix quantized(const std::vector<float>& w, extent rows, const recipe& r,
                          nibble::non_finite policy = nibble::non_finite::error) {
    nibble::quantize_options options;
    options.non_finite = policy;
    return nibble::quantize(nibble::row_major(w.data(), rows, static_cast<extent>(w.size()) / rows),
                            nibble::make_plan(r), options);
}

bool is_one_of(const recipe& r, std::initializer_list<std::string_view> names) {
    return std::find(names.begin(), names.end(), std::string_view(r.name)) != names.end();
}

bool is_finite(float x) { return (reference::bits_from_float(x) & 0x7f800000u) != 0x7f800000u; }

// Scales that are means of |w| say nothing about the largest weight.
bool averages(const recipe& r) { return is_one_of(r, {"bitnet_b158", "ternary_twn", "binary_g128"}); }

}  // namespace

TEST_CASE("recipes are many and their names are their own", "[recipes]") {
    CHECK(nibble::recipes().size() == recipe_count);
    int cases = 0;
    for (const recipe& r : nibble::recipes()) {
        CHECK(nibble::find_recipe(r.name) == &r);
        CHECK(std::string(r.use_when).size() > 3);
        ++cases;
    }
    CHECK(cases == recipe_count);
}

TEST_CASE("a power of two goes into the scale and nowhere else", "[properties]") {
    const std::vector<float> w = reference::normal_samples(19 * 512, 41);
    int cases = 0;
    for (const recipe& r : nibble::recipes()) {
        if (is_one_of(r, {"bitnet_b158"})) continue;  // adds 1e-5 to its scale
        INFO(r.name);
        const nibble::qmatrix base = quantized(w, 19, r);
        const std::vector<float> values = inspect::decoded(base);
        for (const float factor : {2.0f, 8.0f, 0.25f}) {
            std::vector<float> scaled = w;
            for (float& v : scaled) v *= factor;
            const nibble::qmatrix m = quantized(scaled, 19, r);
            if (r.format->bits <= 8) CHECK(inspect::difference(inspect::codes(m), inspect::codes(base)) == "");
            std::vector<float> expected = values;
            for (float& v : expected) v *= factor;
            CHECK(inspect::difference(inspect::decoded(m), expected) == "");
            ++cases;
        }
    }
    CHECK(cases == 3 * (recipe_count - 1));
}

TEST_CASE("the opposite matrix has the opposite values", "[properties]") {
    const std::vector<float> w = reference::normal_samples(19 * 512, 42);
    std::vector<float> opposite = w;
    for (float& v : opposite) v = -v;
    int cases = 0;
    for (const recipe& r : nibble::recipes()) {
        // Not promised where zero is no centre: offsets, and tables that reach farther on one side. (The signed-max
        // rules of ggml give the opposite scale and the same codes; but q3_k refines its codes for negative maxima
        // only.)
        if (r.offset() != nibble::offset_kind::none || is_one_of(r, {"nf4", "nf4_double", "af4", "q3_k"})) continue;
        INFO(r.name);
        std::vector<float> expected = inspect::decoded(quantized(w, 19, r));
        for (float& v : expected) v = -v;
        CHECK(inspect::difference(inspect::decoded(quantized(opposite, 19, r)), expected) == "");
        ++cases;
    }
    CHECK(cases == 36);
}

TEST_CASE("the order of the weights in a group does not matter to rules that look at the range", "[properties]") {
    const extent rows = 18;
    const extent cols = 256;
    const std::vector<float> w = reference::normal_samples(static_cast<std::size_t>(rows * cols), 43);
    int cases = 0;
    for (const recipe& r : nibble::recipes()) {
        if (r.rule.from_range == nullptr && !is_one_of(r, {"q4_0", "q5_0", "q4_1", "q5_1"})) continue;
        INFO(r.name);
        const extent group = r.group.cols == 0 ? cols : std::min(cols, r.group.cols);
        std::vector<extent> from(static_cast<std::size_t>(cols));  // reverses every group
        for (extent k = 0; k < cols; ++k)
            from[static_cast<std::size_t>(k)] = k / group * group + (group - 1 - k % group);
        const auto permuted = [&](const std::vector<float>& x) {
            std::vector<float> y(x.size());
            for (extent n = 0; n < rows; ++n)
                for (extent k = 0; k < cols; ++k)
                    y[static_cast<std::size_t>(n * cols + k)] =
                        x[static_cast<std::size_t>(n * cols + from[static_cast<std::size_t>(k)])];
            return y;
        };
        CHECK(inspect::difference(inspect::decoded(quantized(permuted(w), rows, r)),
                                  permuted(inspect::decoded(quantized(w, rows, r)))) == "");
        ++cases;
    }
    CHECK(cases == 42);
}

TEST_CASE("zeros decode to zeros, alone or beside other weights", "[properties]") {
    int cases = 0;
    for (const recipe& r : nibble::recipes()) {
        for (const float zero : {0.0f, -0.0f}) {
            INFO(r.name);
            const std::vector<float> all(21 * 300, zero);
            CHECK(inspect::difference(inspect::decoded(quantized(all, 21, r)), std::vector<float>(all.size(), 0.0f)) ==
                  "");
            if (is_one_of(r, {"nf4_double", "fp4_double"})) {
                // The scale of a zero group is rounded with the others; its codes are zero codes, so it decodes to
                // zeros.
                CHECK(r.format->value(r.format->zero_code) == 0.0f);
            }
            // two zero rows and a zero group among others
            std::vector<float> some = reference::normal_samples(21 * 512, 44);
            for (std::size_t k = 0; k < 512; ++k) some[3 * 512 + k] = some[17 * 512 + k] = zero;
            for (std::size_t k = 256; k < 512; ++k) some[5 * 512 + k] = zero;
            const std::vector<float> back = inspect::decoded(quantized(some, 21, r));
            if (r.group.rows != 1 && r.format->bits == 1) continue;
            tally good;
            for (std::size_t i = 0; i < some.size(); ++i)
                if (some[i] == 0.0f && (i / 512 == 3 || i / 512 == 17))
                    good.check(back[i] == 0.0f, [&] { return std::to_string(i) + ": " + std::to_string(back[i]); });
            INFO(good.report());
            CHECK(good.cases() >= 1024);
            CHECK(good.failures() == 0);
            ++cases;
        }
    }
    CHECK(cases == 2 * recipe_count);
}

TEST_CASE("a zero group of nibble's own rules has scale zero", "[properties]") {
    const std::vector<float> zeros(16 * 128, 0.0f);
    int cases = 0;
    for (const recipe& r : nibble::recipes()) {
        const bool direct = r.scale == nibble::scales::f32 || r.scale == nibble::scales::f16;
        if (!direct || r.offset() == nibble::offset_kind::zero_point) continue;  // PyTorch's smallest scale is 2^-23
        INFO(r.name);
        CHECK(quantized(zeros, 16, r).scale(3, 0) == 0.0f);
        ++cases;
    }
    CHECK(cases >= 25);
}

TEST_CASE("constant groups", "[properties]") {
    int cases = 0;
    for (const recipe& r : nibble::recipes()) {
        // How far off may a weight that is the largest of its group be, relative to it?
        double limit = 1e-6;  // two roundings
        switch (r.scale.storage) {
            case nibble::scale_storage::f16: limit = 1e-3; break;
            case nibble::scale_storage::two_level: limit = 1e-2; break;  // the scale's code may be one of 127 steps
            case nibble::scale_storage::e8m0: limit = 0.25; break;       // a clamped largest weight, OCP 6.3
            case nibble::scale_storage::e4m3: limit = 0.0625; break;
            case nibble::scale_storage::none: limit = 1.0 / 256; break;
            default: break;
        }
        for (const float value : {0.7f, -0.7f, 3.0f, -1.0f / 3.0f}) {
            INFO(r.name << " of " << value);
            const std::vector<float> w(17 * 256, value);
            const std::vector<float> back = inspect::decoded(quantized(w, 17, r));
            tally good;
            for (const float v : back)
                good.check(
                    std::fabs(static_cast<double>(v) / static_cast<double>(value) - 1.0) <= limit && v == back[0],
                    [&] { return std::to_string(v); });
            INFO(good.report());
            CHECK(good.failures() == 0);
            ++cases;
        }
    }
    CHECK(cases == 4 * recipe_count);
}

TEST_CASE("one outlier is kept and the rest stays finite", "[properties]") {
    int cases = 0;
    for (const recipe& r : nibble::recipes()) {
        for (const float outlier : {300.0f, -300.0f}) {
            INFO(r.name);
            std::vector<float> w = reference::normal_samples(16 * 256, 45);
            w[5 * 256 + 77] = outlier;
            const std::vector<float> back = inspect::decoded(quantized(w, 16, r));
            tally good;
            for (std::size_t i = 0; i < w.size(); ++i)
                good.check(is_finite(back[i]) && std::fabs(static_cast<double>(back[i])) <= 1.13 * 300.0,
                           [&] { return std::to_string(back[i]); });
            INFO(good.report());
            CHECK(good.failures() == 0);
            // mxfp4 clamps 300 to 6 * 32; a mean of |w| does not know the largest weight
            if (!averages(r))
                CHECK(back[5 * 256 + 77] == Approx(outlier).epsilon(r.scale == nibble::scales::e8m0 ? 0.37 : 0.13));
            ++cases;
        }
    }
    CHECK(cases == 2 * recipe_count);
}

TEST_CASE("subnormal weights give no Inf, no NaN, and nothing larger than they are", "[properties]") {
    const std::vector<float> shape = reference::normal_samples(16 * 256, 46);
    int cases = 0;
    for (const recipe& r : nibble::recipes()) {
        for (const int exponent : {-149, -145, -140, -130, -126, -120}) {
            INFO(r.name << " at 2^" << exponent);
            std::vector<float> w;
            for (const float v : shape) w.push_back(static_cast<float>(std::ldexp(static_cast<double>(v), exponent)));
            w[0] = reference::float_from_bits(1);
            double largest = 0.0;
            for (const float v : w) largest = std::max(largest, std::fabs(static_cast<double>(v)));
            // zero_point has a smallest scale, 2^-23, and rounds everything to zero then
            const std::vector<float> back = inspect::decoded(quantized(w, 16, r));
            tally good;
            for (const float v : back)
                good.check(
                    is_finite(v) && std::fabs(static_cast<double>(v)) <= std::max(1.5 * largest, std::ldexp(1.0, -127)),
                    [&] { return std::to_string(static_cast<double>(v) / largest); });
            INFO(good.report());
            CHECK(good.failures() == 0);
            ++cases;
        }
    }
    CHECK(cases == 6 * recipe_count);
}

TEST_CASE("weights at the end of the float range are right or refused", "[properties]") {
    const float largest = reference::float_from_bits(0x7f7fffff);
    const std::vector<std::vector<float>> patterns = {
        {largest, -largest, 0.0f, 1.0f},
        {largest, largest / 2, largest / 4, 0.0f},
        {-largest, -largest / 2, -largest / 4, -largest},
        {largest, 0.0f, 0.0f, 0.0f},
        {1.9e38f, -1.1e38f, 0.3e38f, 0.0f},
        {reference::float_from_bits(0x7f7ffffe), reference::float_from_bits(0xff7fffff), largest / 3, -largest / 3},
    };
    int right = 0;
    int refusals = 0;
    for (const recipe& r : nibble::recipes()) {
        if (is_one_of(r, {"fp16"})) continue;  // saturates: a finite weight never becomes Inf
        for (std::size_t p = 0; p < patterns.size(); ++p) {
            INFO(r.name << ", pattern " << p);
            std::vector<float> w;
            for (std::size_t i = 0; i < 16 * 256; ++i) w.push_back(patterns[p][i % 4]);
            std::vector<float> back;
            try {
                back = inspect::decoded(quantized(w, 16, r));
            } catch (const nibble::error& e) {
                CHECK(e.code() == nibble::errc::out_of_range);
                ++refusals;
                continue;
            }
            tally good;
            for (std::size_t i = 0; i < w.size(); ++i) {
                const double distance = std::fabs(static_cast<double>(back[i]) - static_cast<double>(w[i]));
                const double limit = is_one_of(r, {"nvfp4_ggml"}) ? 1.0
                                     : averages(r)                ? 0.76
                                                                  : 0.26;  // e4m3 ends at 448 * 6
                good.check(is_finite(back[i]) && distance <= limit * static_cast<double>(largest),
                           [&] { return std::to_string(back[i]) + " for " + std::to_string(w[i]); });
            }
            INFO(good.report());
            CHECK(good.failures() == 0);
            ++right;
        }
    }
    CHECK(right + refusals == 6 * (recipe_count - 1));
    CHECK(right > 80);
    CHECK(refusals > 80);
}

TEST_CASE("a group is quantized as if it were alone", "[properties]") {
    int cases = 0;
    for (const extent cols :
         {extent{1}, extent{3}, extent{31}, extent{33}, extent{65}, extent{129}, extent{257}, extent{300}}) {
        const extent rows = 19;
        const std::vector<float> w = reference::normal_samples(static_cast<std::size_t>(rows * cols), 47);
        for (const recipe& r : nibble::recipes()) {
            if (r.group.rows != 1 || r.group.cols == 0) continue;
            extent width = r.group.cols;
            if (r.scale.storage == nibble::scale_storage::two_level)
                width *= r.scale.span;
            else if (r.scale.storage == nibble::scale_storage::double_quantized ||
                     r.scale.storage == nibble::scale_storage::e4m3_f32)
                continue;
            INFO(r.name << ", " << cols << " columns");
            const std::vector<float> whole = inspect::decoded(quantized(w, rows, r));
            tally good;
            for (extent first = 0; first < cols; first += width) {
                const extent count = std::min(width, cols - first);
                std::vector<float> part;
                for (extent n = 0; n < rows; ++n)
                    part.insert(part.end(), w.begin() + n * cols + first, w.begin() + n * cols + first + count);
                const std::vector<float> alone = inspect::decoded(quantized(part, rows, r));
                for (extent n = 0; n < rows; ++n)
                    for (extent k = 0; k < count; ++k)
                        good.check(alone[static_cast<std::size_t>(n * count + k)] ==
                                       whole[static_cast<std::size_t>(n * cols + first + k)],
                                   [&] { return std::to_string(n) + ", " + std::to_string(first + k); });
            }
            CHECK(good.cases() == static_cast<std::uint64_t>(rows * cols));
            INFO(good.report());
            CHECK(good.failures() == 0);
            ++cases;
        }
    }
    CHECK(cases == 8 * 36);
}

TEST_CASE("NaN and Inf are errors that name the element", "[non_finite]") {
    const std::vector<float> w = reference::normal_samples(19 * 130, 48);
    struct bad {
        std::uint32_t bits;
        const char* name;
    };
    int cases = 0;
    for (const recipe& r : nibble::recipes()) {
        for (const bad& b : {bad{0x7fc00000, "nan"}, {0xff800001, "nan"}, {0x7f800000, "inf"}, {0xff800000, "-inf"}}) {
            for (const auto& [n, k] : {std::pair<extent, extent>{0, 0}, {18, 129}, {16, 64}}) {
                std::vector<float> broken = w;
                broken[static_cast<std::size_t>(n * 130 + k)] = reference::float_from_bits(b.bits);
                std::string message;
                try {
                    static_cast<void>(quantized(broken, 19, r));
                } catch (const nibble::error& e) {
                    CHECK(e.code() == nibble::errc::non_finite);
                    message = e.what();
                }
                INFO(r.name << ": " << message);
                CHECK(message.find("W(" + std::to_string(n) + ", " + std::to_string(k) + ") is " + b.name) !=
                      std::string::npos);
                ++cases;
            }
        }
    }
    CHECK(cases == 12 * recipe_count);
}

TEST_CASE("saturate: NaN becomes 0, Inf the largest finite magnitude of the tensor", "[non_finite]") {
    std::vector<float> w = reference::normal_samples(35 * 130, 49);
    w[34 * 130 + 3] = 9.0f;  // the largest, in the last panel
    std::vector<float> broken = w;
    struct spot {
        std::size_t at;
        std::uint32_t bits;
        float becomes;
    };
    for (const spot& s : {spot{0, 0x7fc00000, 0.0f},
                          {131, 0xffc00000, 0.0f},
                          {1000, 0x7f800000, 9.0f},
                          {2000, 0xff800000, -9.0f},
                          {16 * 130, 0x7f800001, 0.0f},
                          {35 * 130 - 1, 0x7f800000, 9.0f},
                          {33, 0xff800000, -9.0f}}) {
        broken[s.at] = reference::float_from_bits(s.bits);
        w[s.at] = s.becomes;
    }
    int cases = 0;
    for (const recipe& r : nibble::recipes()) {
        INFO(r.name);
        CHECK(inspect::same(quantized(broken, 35, r, nibble::non_finite::saturate), quantized(w, 35, r)));
        CHECK(inspect::same(quantized(w, 35, r, nibble::non_finite::saturate), quantized(w, 35, r)));
        ++cases;
    }
    CHECK(cases == recipe_count);
    // nothing finite at all
    const std::vector<float> hopeless(40, reference::float_from_bits(0xff800000));
    for (const char* name : {"int8_per_channel", "q4_k", "nf4", "bf16"})
        CHECK(inspect::difference(
                  inspect::decoded(quantized(hopeless, 1, *nibble::find_recipe(name), nibble::non_finite::saturate)),
                  std::vector<float>(40, 0.0f)) == "");
}

TEST_CASE("importance weights are checked", "[importance]") {
    const std::vector<float> w = reference::normal_samples(4 * 64, 50);
    int taken = 0;
    int refused = 0;
    for (const recipe& r : nibble::recipes()) {
        std::vector<float> importance(64, 1.0f);
        nibble::quantize_options options;
        options.importance = importance;
        const auto run = [&] {
            return nibble::quantize(nibble::row_major(w.data(), 4, 64), nibble::make_plan(r), options);
        };
        INFO(r.name);
        if (!r.rule.searches) {
            CHECK_THROWS_AS(run(), nibble::error);
            ++refused;
            continue;
        }
        CHECK(run().rows() == 4);
        for (const std::uint32_t bits : {0x7fc00000u, 0x7f800000u, 0xbf800000u, 0x80000001u}) {
            importance[17] = reference::float_from_bits(bits);
            std::string message;
            try {
                static_cast<void>(run());
            } catch (const nibble::error& e) {
                CHECK(e.code() == nibble::errc::invalid_argument);
                message = e.what();
            }
            INFO(message);
            CHECK(message.find("importance weight 17") != std::string::npos);
        }
        ++taken;
    }
    CHECK(taken == 11);
    CHECK(refused == recipe_count - 11);
}
