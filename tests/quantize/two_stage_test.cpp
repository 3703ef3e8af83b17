// The two stages of quantize(): rules propose, schemes store, codes are chosen against what is stored; and
// column_quantizer, which runs the same steps one at a time.
#include <nibble/quantize.hpp>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/inspect.hpp"
#include "support/mistake.hpp"
#include "support/reference_quantizers.hpp"

using extent = nibble::index;  // index is a function of <strings.h>
using nibble::errc;
using reference::tally;

namespace {

using matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

matrix weights(extent rows, extent cols, std::uint64_t seed = 1) {
    const std::vector<float> x = reference::normal_samples(static_cast<std::size_t>(rows * cols), seed);
    return Eigen::Map<const matrix>(x.data(), rows, cols);
}

std::vector<float> as_vector(const matrix& w) { return {w.data(), w.data() + w.size()}; }

// Feeds all columns of w in some order.
void feed(nibble::column_quantizer& q, const matrix& w, std::uint32_t seed, std::vector<float>* decoded = nullptr,
          std::vector<std::uint8_t>* codes = nullptr) {
    std::vector<extent> order(static_cast<std::size_t>(w.cols()));
    std::iota(order.begin(), order.end(), extent{0});
    reference::random_bits bits(seed);
    for (std::size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[bits() % i]);
    const auto rows = static_cast<std::size_t>(w.rows());
    std::vector<float> column(rows);
    std::vector<std::uint8_t> code(rows);
    if (decoded != nullptr) decoded->resize(static_cast<std::size_t>(w.size()));
    if (codes != nullptr) codes->resize(static_cast<std::size_t>(w.size()));
    for (const extent k : order) {
        q.quantize(k, w.data() + k, w.cols(), decoded != nullptr ? column.data() : nullptr,
                   codes != nullptr ? code.data() : nullptr);
        for (std::size_t n = 0; n < rows; ++n) {
            const std::size_t at = n * static_cast<std::size_t>(w.cols()) + static_cast<std::size_t>(k);
            if (decoded != nullptr) (*decoded)[at] = column[n];
            if (codes != nullptr) (*codes)[at] = code[n];
        }
    }
}

bool has_row_groups(const nibble::recipe& r) { return r.group.rows == 1 && r.format->bits <= 8; }
bool looks_beyond_groups(const nibble::scale_scheme& s) {
    return s.storage == nibble::scale_storage::two_level || s.storage == nibble::scale_storage::double_quantized ||
           s.storage == nibble::scale_storage::e4m3_f32;
}

// Rules of a user's.
struct largest_over_four {
    nibble::group_scale operator()(const nibble::group_view& g) const {
        float largest = 0.0f;
        for (const float x : g.x) largest = std::max(largest, std::fabs(x));
        return {largest / 4.0f, 0.0f};
    }
};
struct sorts_its_group {
    static constexpr const char* name = "sorter";
    static constexpr bool whole_group = true;
    nibble::group_scale operator()(const nibble::group_view&) const { return {1.0f, 0.0f}; }
    void encode(const nibble::group_view& g, nibble::group_scale, std::uint8_t* codes) const {
        for (std::size_t i = 0; i < g.x.size(); ++i) codes[i] = static_cast<std::uint8_t>(i % 16);
    }
};
struct proposes {
    static constexpr nibble::offset_kind offset = nibble::offset_kind::zero_point;
    float scale;
    float zero;
    nibble::group_scale from_range(float, float, const nibble::code_format&) const { return {scale, zero}; }
};

}  // namespace

TEST_CASE("columns in any order give the bytes of quantize()", "[column]") {
    int cases = 0;
    for (const auto& [rows, cols] : {std::pair<extent, extent>{37, 512}, {16, 64}, {3, 300}, {1, 17}, {50, 5}}) {
        const matrix w = weights(rows, cols);
        for (const nibble::recipe& r : nibble::recipes()) {
            if (!has_row_groups(r) || std::string(r.name) == "iq4_nl")
                continue;  // its reference keeps codes of a first pass
            INFO(r.name << " " << rows << "x" << cols);
            const nibble::qmatrix whole = nibble::quantize(w, nibble::make_plan(r));
            nibble::column_quantizer q(rows, cols, nibble::make_plan(r));
            q.choose_scales(w);
            std::vector<float> decoded;
            std::vector<std::uint8_t> codes;
            feed(q, w, 5, &decoded, &codes);
            const nibble::qmatrix m = std::move(q).finish();
            CHECK(inspect::same(m, whole));
            CHECK(m.name() == whole.name());
            CHECK(inspect::difference(decoded, inspect::decoded(whole)) == "");
            CHECK(inspect::difference(codes, inspect::codes(whole)) == "");
            ++cases;
        }
    }
    CHECK(cases == 5 * 45);
}

TEST_CASE("the outputs of a column may be left out", "[column]") {
    const matrix w = weights(19, 128);
    nibble::column_quantizer q(19, 128, nibble::make_plan(nibble::int4_g32::get()));
    q.choose_scales(w);
    feed(q, w, 8);
    CHECK(inspect::same(std::move(q).finish(), nibble::quantize<nibble::int4_g32>(w)));
}

TEST_CASE("scales chosen group by group are the same scales", "[column]") {
    int cases = 0;
    for (const auto& [rows, cols] : {std::pair<extent, extent>{21, 300}, {16, 256}, {2, 7}}) {
        const matrix w = weights(rows, cols, 2);
        for (const nibble::recipe& r : nibble::recipes()) {
            if (!has_row_groups(r) || std::string(r.name) == "iq4_nl" || looks_beyond_groups(r.scale)) continue;
            INFO(r.name << " " << rows << "x" << cols);
            nibble::column_quantizer q(rows, cols, nibble::make_plan(r));
            for (extent g = q.groups() - 1; g >= 0; --g) {  // in any order, too
                const extent first = g * q.group_size();
                q.choose_scales(g, w.middleCols(first, std::min(q.group_size(), cols - first)));
            }
            feed(q, w, 9);
            CHECK(inspect::same(std::move(q).finish(), nibble::quantize(w, nibble::make_plan(r))));
            ++cases;
        }
    }
    CHECK(cases == 3 * 36);
}

TEST_CASE("columns that changed since the scales were chosen are clipped, not wrapped", "[column]") {
    const matrix w = weights(20, 256, 3);
    int cases = 0;
    for (const nibble::recipe& r : nibble::recipes()) {
        if (!has_row_groups(r)) continue;
        INFO(r.name);
        nibble::column_quantizer q(20, 256, nibble::make_plan(r));
        q.choose_scales(w);
        extent k = 0;
        for (const float size : {1e4f, 1e12f, 1e30f, 3.4e38f}) {  // what error feedback never does, but a caller may
            std::vector<float> column(20, size);
            for (std::size_t n = 0; n < 20; n += 2) column[n] = -size;
            std::vector<float> decoded(20);
            q.quantize(k, column.data(), 1, decoded.data(), nullptr);
            k += 50;
            tally good;
            for (std::size_t n = 0; n < 20; ++n) {
                const bool finite = (reference::bits_from_float(decoded[n]) & 0x7f800000u) != 0x7f800000u;
                const bool right_way = decoded[n] == 0.0f || (decoded[n] < 0.0f) == (column[n] < 0.0f) ||
                                       r.offset() != nibble::offset_kind::none;
                good.check(finite && right_way,
                           [&] { return std::to_string(column[n]) + " became " + std::to_string(decoded[n]); });
            }
            INFO(good.report());
            CHECK(good.failures() == 0);
        }
        ++cases;
    }
    CHECK(cases == 46);
}

TEST_CASE("importance reaches the scales of a column quantizer", "[column]") {
    const matrix w = weights(17, 512, 4);
    std::vector<float> importance(512);
    for (std::size_t k = 0; k < 512; ++k) importance[k] = 1.0f + static_cast<float>(k % 7) * 0.25f;
    nibble::quantize_options options;
    options.importance = importance;
    int cases = 0;
    for (const char* name : {"q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs", "q4_0", "q4_1"}) {
        INFO(name);
        const nibble::qmatrix whole = nibble::quantize(w, name, options);
        nibble::column_quantizer q(17, 512, nibble::make_plan(*nibble::find_recipe(name)), options);
        q.choose_scales(w);
        feed(q, w, 10);
        const nibble::qmatrix m = std::move(q).finish();
        CHECK(inspect::difference(inspect::scales(m), inspect::scales(whole)) == "");
        CHECK(inspect::difference(inspect::offsets(m), inspect::offsets(whole)) == "");
        ++cases;
    }
    CHECK(cases == 8);
}

TEST_CASE("every mistake with a column quantizer has its message", "[column]") {
    const matrix w = weights(4, 64);
    const std::vector<float> column(4, 0.5f);
    const auto plan = [] { return nibble::make_plan(nibble::int4_g32::get()); };
    const auto ready = [&] {
        nibble::column_quantizer q(4, 64, plan());
        q.choose_scales(w);
        return q;
    };

    mistake r = of([&] { static_cast<void>(nibble::column_quantizer(4, 64, plan(), {.non_finite = nibble::non_finite::saturate})); });
    CHECK(r.code == errc::unsupported);
    CHECK(contains(r.message, "saturate"));

    r = of([&] {
        nibble::column_quantizer q(4, 64, plan());
        q.quantize(40, column.data(), 1, nullptr, nullptr);
    });
    CHECK(r.code == errc::invalid_argument);
    CHECK(contains(r.message, "group 1"));
    CHECK(contains(r.message, "column 40"));
    CHECK(contains(r.message, "not chosen"));

    r = of([&] {
        nibble::column_quantizer q(4, 64, plan());
        q.choose_scales(0, w.leftCols(32));
        q.quantize(31, column.data(), 1, nullptr, nullptr);
        q.quantize(32, column.data(), 1, nullptr, nullptr);
    });
    CHECK(r.code == errc::invalid_argument);
    CHECK(contains(r.message, "column 32"));

    for (const extent k : {extent{-1}, extent{64}, extent{1000}}) {
        r = of([&] { ready().quantize(k, column.data(), 1, nullptr, nullptr); });
        CHECK(r.code == errc::out_of_range);
        CHECK(contains(r.message, "column " + std::to_string(k) + " of 64"));
    }

    r = of([&] {
        nibble::column_quantizer q = ready();
        q.quantize(7, column.data(), 1, nullptr, nullptr);
        q.quantize(7, column.data(), 1, nullptr, nullptr);
    });
    CHECK(r.code == errc::invalid_argument);
    CHECK(contains(r.message, "column 7 is quantized already"));

    r = of([&] {
        nibble::column_quantizer q = ready();
        for (extent k = 0; k < 64; ++k)
            if (k != 13) q.quantize(k, column.data(), 1, nullptr, nullptr);
        static_cast<void>(std::move(q).finish());
    });
    CHECK(r.code == errc::invalid_argument);
    CHECK(contains(r.message, "column 13 of 64 was never quantized"));

    r = of([&] { ready().choose_scales(w.leftCols(63)); });
    CHECK(r.code == errc::shape_mismatch);
    CHECK(contains(r.message, "4x63"));
    CHECK(contains(r.message, "4x64"));
    r = of([&] { ready().choose_scales(w.topRows(3)); });
    CHECK(r.code == errc::shape_mismatch);
    CHECK(contains(r.message, "3x64"));
    r = of([&] { ready().choose_scales(1, w.leftCols(16)); });
    CHECK(r.code == errc::shape_mismatch);
    CHECK(contains(r.message, "4x16"));
    CHECK(contains(r.message, "4x32"));
    for (const extent g : {extent{-1}, extent{2}}) {
        r = of([&] { ready().choose_scales(g, w.leftCols(32)); });
        CHECK(r.code == errc::out_of_range);
        CHECK(contains(r.message, "group " + std::to_string(g) + " of 2"));
    }

    for (const char* name : {"q4_k", "q6_k", "nf4_double", "nvfp4"}) {
        r = of([&] {
            nibble::column_quantizer q(4, 64, nibble::make_plan(*nibble::find_recipe(name)));
            q.choose_scales(0, w.leftCols(q.group_size()));
        });
        CHECK(r.code == errc::unsupported);
        CHECK(contains(r.message, "all groups at once"));
    }
    for (const char* name : {"fp8_per_tensor", "fp8_block128", "bf16", "bitnet_b158"}) {
        r = of([&] { nibble::column_quantizer(4, 64, nibble::make_plan(*nibble::find_recipe(name))); });
        CHECK(r.code == errc::unsupported);
        CHECK(contains(r.message, name));
    }

    r = of([&] {
        nibble::column_quantizer(4, 64,
                                 nibble::make_plan(nibble::int4::format, sorts_its_group{}, nibble::per_group{32}));
    });
    CHECK(r.code == errc::unsupported);
    CHECK(contains(r.message, "sorter"));

    const float nan = reference::float_from_bits(0x7fc00000);
    for (const auto& [bits, name] :
         {std::pair<std::uint32_t, const char*>{0x7fc00000, "nan"}, {0x7f800000, "inf"}, {0xff800000, "-inf"}}) {
        const float bad = reference::float_from_bits(bits);
        r = of([&] {
            matrix broken = w;
            broken(2, 33) = bad;
            nibble::column_quantizer(4, 64, plan()).choose_scales(broken);
        });
        CHECK(r.code == errc::non_finite);
        CHECK(contains(r.message, std::string("W(2, 33) is ") + name));
        r = of([&] {
            std::vector<float> broken = column;
            broken[3] = bad;
            ready().quantize(5, broken.data(), 1, nullptr, nullptr);
        });
        CHECK(r.code == errc::non_finite);
        CHECK(contains(r.message, std::string("W(3, 5) is ") + name));
    }

    nibble::quantize_options options;
    const std::vector<float> short_importance(63, 1.0f);
    options.importance = short_importance;
    r = of([&] { nibble::column_quantizer(4, 64, nibble::make_plan(nibble::q4_k::get()), options); });
    CHECK(r.code == errc::shape_mismatch);
    CHECK(contains(r.message, "63"));

    // A refused column is not a quantized one.
    nibble::column_quantizer q = ready();
    std::vector<float> broken = column;
    broken[0] = nan;
    CHECK(of([&] { q.quantize(0, broken.data(), 1, nullptr, nullptr); }).code == errc::non_finite);
    feed(q, w, 11);
    CHECK(inspect::same(std::move(q).finish(), nibble::quantize<nibble::int4_g32>(w)));
}

TEST_CASE("column quantizers of empty matrices", "[column]") {
    for (const auto& [rows, cols] : {std::pair<extent, extent>{0, 0}, {0, 64}, {5, 0}}) {
        const matrix w(rows, cols);
        nibble::column_quantizer q(rows, cols, nibble::make_plan(nibble::int4_g32::get()));
        q.choose_scales(w);
        for (extent k = 0; k < cols; ++k) q.quantize(k, nullptr, 1, nullptr, nullptr);
        const nibble::qmatrix m = std::move(q).finish();
        CHECK(m.rows() == rows);
        CHECK(m.cols() == cols);
    }
}

TEST_CASE("every rule with every scheme is right or refused", "[two_stage]") {
    matrix w = weights(33, 320, 6);
    w.row(3).array() += 2.0f;  // groups above zero
    w.row(4).array() -= 2.0f;  // and below
    w.row(5).setZero();
    w.row(6).setConstant(0.25f);
    const std::vector<float> original = as_vector(w);
    static const nibble::absmax absmax;
    static const nibble::zero_point zero_point;
    static const nibble::min_offset min_offset;
    static const nibble::float_zero float_zero;
    static const nibble::mse mse;
    static const nibble::mse mse_zero{nibble::offset_kind::zero_point};
    static const nibble::percentile percentile;
    struct named {
        const char* name;
        nibble::quantizer_ref rule;
    };
    const named rules[] = {{"absmax", nibble::erase(absmax)},
                           {"zero_point", nibble::erase(zero_point)},
                           {"min_offset", nibble::erase(min_offset)},
                           {"float_zero", nibble::erase(float_zero)},
                           {"mse", nibble::erase(mse)},
                           {"mse_zero", nibble::erase(mse_zero)},
                           {"percentile", nibble::erase(percentile)}};
    struct storage {
        nibble::scale_scheme scheme;
        double extra;  // error that a coarse scale may add, relative to the spread of the weights
    };
    const storage schemes[] = {{nibble::scales::f32, 0.0},
                               {nibble::scales::f16, 0.002},
                               {nibble::scales::bf16, 0.02},
                               {nibble::scales::e8m0, 0.30},
                               {nibble::scales::e4m3, 0.05},
                               {nibble::scales::e4m3_f32, 0.05},
                               {nibble::scales::double_quantized, 0.05},
                               {nibble::scales::two_level(6, false, 8), 0.05},
                               {nibble::scales::two_level(8, true, 16), 0.05},
                               {nibble::scales::two_level(4, false, 3), 0.20}};
    int good = 0;
    int unsupported = 0;
    for (const nibble::code_format* f : nibble::formats()) {
        if (f->bits == 16) continue;
        for (const named& rule : rules) {
            nibble::quantize_plan plan = nibble::make_plan(*f, absmax, nibble::per_group{32}, nibble::scales::f32);
            plan.rule = rule.rule;
            double base = 0.0;
            for (const storage& s : schemes) {
                INFO(f->name << ", " << rule.name << ", " << nibble::name_of(s.scheme.storage) << " of "
                             << s.scheme.bits << " bits");
                nibble::quantize_options options;
                options.scale = s.scheme;
                mistake why;
                nibble::qmatrix m;
                why = of([&] { m = nibble::quantize(w, plan, options); });
                if (why.code != errc::ok) {
                    CHECK(why.code == errc::unsupported);
                    ++unsupported;
                    continue;
                }
                const double error = inspect::rmse(inspect::decoded(m), original);
                if (s.scheme.storage == nibble::scale_storage::f32) base = error;
                ++good;
                // absmax / 57344 is below E4M3's smallest number: such scales become zero
                if (s.scheme == nibble::scales::e4m3 && f->max_value > 1000.0f) continue;
                CHECK(error <= base * 1.02 + s.extra);
            }
        }
    }
    CHECK(good == 6 * (10 * 5 + 2 * 5 - 2) + 13 * 3 * 10);
    CHECK(good + unsupported == 19 * 7 * 10);
}

TEST_CASE("groups above zero under a two-level minimum start at zero", "[two_stage]") {
    // A stored minimum is -dmin * code, never positive: the range 0 .. max is quantized instead of min .. max.
    matrix w = weights(20, 256, 13);
    w.array() = w.array().abs() + 2.0f;
    nibble::quantize_options options;
    options.scale = nibble::scales::two_level(6, false, 8);
    const nibble::qmatrix m = nibble::quantize<nibble::int4>(w, nibble::min_offset{}, nibble::per_group{32}, options);
    tally good;
    for (extent n = 0; n < 20; ++n) {
        for (extent k = 0; k < 256; ++k) {
            const float step = w.row(n).segment(k / 32 * 32, 32).maxCoeff() / 15.0f;
            good.check(std::fabs(m(n, k) - w(n, k)) <= 0.75f * step, [&] { return std::to_string(m(n, k) - w(n, k)); });
        }
    }
    CHECK(good.cases() == 20 * 256);
    INFO(good.report());
    CHECK(good.failures() == 0);
    CHECK(of([&] {
              options.scale = nibble::scales::two_level(6, true, 8);
              static_cast<void>(
                  nibble::quantize<nibble::int4>(w, nibble::min_offset{}, nibble::per_group{32}, options));
          }).code == errc::unsupported);
}

TEST_CASE("what codes are chosen against is what is stored", "[two_stage]") {
    // Every code is the nearest one to w / scale for the scale as it decodes, not as it was proposed. (Double
    // quantization follows bitsandbytes, which is the other way round.)
    const matrix w = weights(40, 256, 7);
    int cases = 0;
    tally nearest;
    for (const auto& scheme :
         {nibble::scales::f16, nibble::scales::bf16, nibble::scales::e4m3, nibble::scales::e4m3_f32,
          nibble::scales::two_level(6, false, 8), nibble::scales::two_level(5, true, 4)}) {
        nibble::quantize_options options;
        options.scale = scheme;
        const nibble::qmatrix m = nibble::quantize<nibble::int4>(w, nibble::absmax{}, nibble::per_group{32}, options);
        for (extent n = 0; n < 40; ++n) {
            for (extent k = 0; k < 256; ++k) {
                const double scale = static_cast<double>(m.scale(n, k / 32));
                const double t = scale == 0.0 ? 0.0 : static_cast<double>(w(n, k)) / scale;
                const double q = static_cast<double>(static_cast<int>(m.code(n, k)) - 8);
                nearest.check(std::fabs(std::clamp(t, -7.0, 7.0) - q) <= 0.5 + 1e-5,
                              [&] { return std::to_string(t) + " got " + std::to_string(q); });
            }
        }
        ++cases;
    }
    CHECK(cases == 6);
    CHECK(nearest.cases() == 6 * 40 * 256);
    INFO(nearest.report());
    CHECK(nearest.failures() == 0);
}

TEST_CASE("a rule of a program's own", "[two_stage]") {
    const matrix w = weights(18, 96, 8);
    const nibble::qmatrix m = nibble::quantize<nibble::int4>(w, largest_over_four{}, nibble::per_group{32});
    tally good;
    for (extent n = 0; n < 18; ++n)
        for (extent g = 0; g < 3; ++g)
            good.check(m.scale(n, g) == reference::stored(reference::storage::f16,
                                                          w.row(n).segment(32 * g, 32).cwiseAbs().maxCoeff() / 4.0f),
                       [&] { return std::to_string(n); });
    CHECK(good.cases() == 54);
    CHECK(good.failures() == 0);

    const float nan = reference::float_from_bits(0x7fc00000);
    const float inf = reference::float_from_bits(0x7f800000);
    int cases = 0;
    for (const auto& [scale, zero] : {std::pair<float, float>{nan, 0.0f},
                                      {inf, 0.0f},
                                      {1.0f, nan},
                                      {1.0f, 16.0f},
                                      {1.0f, -1.0f},
                                      {1.0f, 2.5f},
                                      {-inf, 3.0f}}) {
        const mistake r = of([&, s = scale, z = zero] {
            static_cast<void>(nibble::quantize<nibble::int4>(w, proposes{s, z}, nibble::per_group{32}));
        });
        CHECK(r.code == errc::out_of_range);
        CHECK(contains(r.message, "row 0, group 0"));
        CHECK(contains(r.message, "zero_point"));
        ++cases;
    }
    CHECK(cases == 7);
    // a negative scale is a scale
    const nibble::qmatrix negative = nibble::quantize<nibble::int4>(w, proposes{-0.5f, 8.0f}, nibble::per_group{32});
    CHECK(negative(0, 0) == Approx(w(0, 0)).margin(0.251));
}

TEST_CASE("scales that their scheme cannot hold are errors", "[two_stage]") {
    matrix w = weights(20, 64, 9);
    w(17, 40) = 1e9f;
    int cases = 0;
    for (const char* name : {"int4_g32", "int8_g32", "int4_min_g64", "q4_0", "q4_1", "q8_0", "q4_k", "q6_k", "q3_k",
                             "iq4_xs", "iq4_nl", "tq2_0"}) {
        const mistake r = of([&] { static_cast<void>(nibble::quantize(w, name)); });
        INFO(name << ": " << r.message);
        CHECK(r.code == errc::out_of_range);
        CHECK(contains(r.message, "row 17"));
        ++cases;
    }
    CHECK(cases == 12);
    nibble::quantize_options options;
    options.scale = nibble::scales::bf16;
    CHECK(nibble::quantize(w, "int4_g32", options)(17, 40) == Approx(1e9).epsilon(0.004));
}

TEST_CASE("every storage order and element type is read alike", "[two_stage]") {
    // values that all four types hold exactly
    matrix w(35, 70);
    for (extent n = 0; n < 35; ++n)
        for (extent k = 0; k < 70; ++k) w(n, k) = static_cast<float>((n * 37 + k * 11) % 101 - 50) / 32.0f;
    int cases = 0;
    for (const char* name : {"int4_g32", "q4_k", "nf4_double", "nvfp4", "fp8_block128", "int8_per_tensor", "bf16"}) {
        INFO(name);
        const nibble::qmatrix expected = nibble::quantize(w, name);
        const Eigen::MatrixXf column_major = w;
        const Eigen::MatrixXf transposed = w.transpose();
        const matrix larger = matrix::Constant(80, 90, 3.0f);
        matrix framed = larger;
        framed.block(7, 9, 35, 70) = w;
        const std::vector<float> x = as_vector(w);
        std::vector<float> strided(35 * 70 * 3, 9.0f);
        for (std::size_t i = 0; i < x.size(); ++i) strided[3 * i] = x[i];
        const std::vector<float> backwards(x.rbegin(), x.rend());
        const auto plan = nibble::make_plan(*nibble::find_recipe(name));
        CHECK(inspect::same(nibble::quantize(column_major, name), expected));
        CHECK(inspect::same(nibble::quantize(transposed.transpose(), name), expected));
        CHECK(inspect::same(nibble::quantize(framed.block(7, 9, 35, 70), name), expected));
        CHECK(inspect::same(nibble::quantize(w.cast<double>(), name), expected));
        CHECK(inspect::same(nibble::quantize(w.cast<Eigen::half>().eval(), name), expected));
        CHECK(inspect::same(nibble::quantize(w.cast<Eigen::bfloat16>().eval(), name), expected));
        CHECK(inspect::same(nibble::quantize(w * 1.0f, name), expected));
        CHECK(inspect::same(nibble::quantize({strided.data(), nibble::scalar_type::f32, 35, 70, 210, 3}, plan),
                            expected));
        CHECK(inspect::same(
            nibble::quantize({backwards.data() + backwards.size() - 1, nibble::scalar_type::f32, 35, 70, -70, -1},
                             plan),
            expected));
        cases += 9;
    }
    CHECK(cases == 63);
}

TEST_CASE("a searching rule over groups of several rows", "[two_stage]") {
    // No codes are kept from the search then: they are chosen anew from the stored scale.
    const matrix w = weights(24, 64, 10);
    const std::vector<float> importance(64, 2.0f);
    nibble::quantize_options options;
    options.importance = importance;
    int cases = 0;
    const auto check = [&](const nibble::qmatrix& m, double limit) {
        CHECK(inspect::rmse(inspect::decoded(m), as_vector(w)) < limit);
        ++cases;
    };
    check(nibble::quantize<nibble::int4>(w, nibble::ggml_affine{}, nibble::per_block{4, 32}), 0.13);
    check(nibble::quantize<nibble::int6>(w, nibble::ggml_symmetric{}, nibble::per_block{4, 32}), 0.04);
    check(nibble::quantize<nibble::iq4_nl>(w, nibble::ggml_iq4{}, nibble::per_block{4, 32}), 0.13);
    check(nibble::quantize<nibble::int4>(w, nibble::mse{}, nibble::per_block{4, 32}), 0.13);
    CHECK(cases == 4);
}
