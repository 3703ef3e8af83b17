// How much each format loses on Gaussian weights, against numerical integration (floating-point scales) and against
// ggml: an error of a rule that leaves its bytes plausible shows here.
#include <nibble/quantize.hpp>

#include <cmath>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/inspect.hpp"
#include "support/reference_quantizers.hpp"

using extent = nibble::index;  // index is a function of <strings.h>

namespace {

constexpr std::size_t samples = std::size_t{1} << 17;

const std::vector<float>& normal() {
    static const std::vector<float> x = reference::normal_samples(samples, 2024);
    return x;
}

// Within 2 % of the table, 5 % for formats of at most 2 bits.
bool close(double got, double expected, int bits) {
    return std::fabs(got / expected - 1.0) <= (bits <= 2 ? 0.05 : 0.02);
}

double loss(const nibble::quantize_plan& plan, const std::vector<float>& importance = {}) {
    nibble::quantize_options options;
    options.importance = importance;
    const extent cols = 4096;
    return inspect::rmse(
        inspect::decoded(nibble::quantize(nibble::row_major(normal().data(), static_cast<extent>(samples) / cols, cols),
                                          plan, options)),
        normal());
}

}  // namespace

TEST_CASE("the samples are Gaussian", "[rmse]") {
    double sum = 0.0;
    double squares = 0.0;
    for (const float v : normal()) {
        sum += static_cast<double>(v);
        squares += static_cast<double>(v) * static_cast<double>(v);
    }
    CHECK(std::fabs(sum / static_cast<double>(samples)) < 0.01);
    CHECK(squares / static_cast<double>(samples) == Approx(1.0).epsilon(0.01));
}

TEST_CASE("absmax with floating-point scales", "[rmse]") {
    struct line {
        const nibble::code_format* f;
        extent group;
        double rmse;
    };
    constexpr line lines[] = {{&nibble::int8::format, 32, .00535},       {&nibble::int8::format, 64, .00593},
                              {&nibble::int8::format, 128, .00646},      {&nibble::int8::format, 256, .00696},
                              {&nibble::int8::format, 1024, .00786},     {&nibble::int8::format, 4096, .00867},
                              {&nibble::int6::format, 32, .02190},       {&nibble::int6::format, 128, .02648},
                              {&nibble::int5::format, 32, .04526},       {&nibble::int5::format, 128, .05472},
                              {&nibble::int4::format, 16, .08519},       {&nibble::int4::format, 32, .09700},
                              {&nibble::int4::format, 64, .10760},       {&nibble::int4::format, 128, .11727},
                              {&nibble::int4::format, 256, .12622},      {&nibble::int4::format, 4096, .15730},
                              {&nibble::int3::format, 16, .19894},       {&nibble::int3::format, 32, .22650},
                              {&nibble::int3::format, 64, .25120},       {&nibble::int3::format, 128, .27373},
                              {&nibble::int2::format, 32, .65776},       {&nibble::int2::format, 64, .71748},
                              {&nibble::int2::format, 128, .76662},      {&nibble::nf4::format, 16, .08083},
                              {&nibble::nf4::format, 32, .08731},        {&nibble::nf4::format, 64, .09198},
                              {&nibble::nf4::format, 128, .09558},       {&nibble::nf4::format, 256, .09863},
                              {&nibble::nf4::format, 4096, .10991},      {&nibble::af4::format, 64, .09566},
                              {&nibble::fp4::format, 32, .11413},        {&nibble::fp4::format, 64, .12194},
                              {&nibble::fp4::format, 128, .12858},       {&nibble::fp4_e2m1::format, 16, .09414},
                              {&nibble::fp4_e2m1::format, 32, .10110},   {&nibble::fp4_e2m1::format, 64, .10571},
                              {&nibble::fp4_e2m1::format, 128, .10887},  {&nibble::fp8_e4m3::format, 128, .02572},
                              {&nibble::fp8_e4m3::format, 4096, .02647}, {&nibble::fp8_e5m2::format, 128, .05129},
                              {&nibble::fp8_e5m2::format, 4096, .05268}};
    int cases = 0;
    for (const line& l : lines) {
        const double got =
            loss(nibble::make_plan(*l.f, nibble::absmax{}, nibble::per_group{l.group}, nibble::scales::f32));
        INFO(l.f->name << " in groups of " << l.group << ": " << got << ", expected " << l.rmse);
        CHECK(close(got, l.rmse, l.f->bits));
        ++cases;
    }
    CHECK(cases == 41);
}

TEST_CASE("microscaling, signed-max, binary and ternary", "[rmse]") {
    const auto mx = [](const nibble::code_format& f, nibble::mx_rounding r) {
        const nibble::mx rule{r};
        return loss(nibble::make_plan(f, rule, nibble::per_group{32}, nibble::scales::e8m0));
    };
    struct line {
        const char* name;
        double got, expected;
        int bits;
    };
    const nibble::ggml_signed_max signed_max;
    const nibble::absmean absmean;
    const nibble::twn twn;
    const auto plan = [](const nibble::code_format& f, const auto& rule, nibble::granularity g) {
        return nibble::make_plan(f, rule, g, nibble::scales::f32);
    };
    const line lines[] = {
        {"mxfp4 floor", mx(nibble::fp4_e2m1::format, nibble::mx_rounding::floor), .11510, 4},
        // the sheet's "CEIL" is the smallest exponent that does not clamp; ceil of log2 max|w| loses more
        {"mxfp4 rceil", mx(nibble::fp4_e2m1::format, nibble::mx_rounding::rceil), .11540, 4},
        {"mxfp6 e2m3", mx(nibble::fp6_e2m3::format, nibble::mx_rounding::floor), .02840, 6},
        {"mxfp6 e3m2", mx(nibble::fp6_e3m2::format, nibble::mx_rounding::floor), .05401, 6},
        {"mxfp8 floor", mx(nibble::fp8_e4m3::format, nibble::mx_rounding::floor), .02961, 8},
        {"mxfp8 rceil", mx(nibble::fp8_e4m3::format, nibble::mx_rounding::rceil), .02654, 8},
        {"mxfp8 e5m2", mx(nibble::fp8_e5m2::format, nibble::mx_rounding::floor), .05408, 8},
        {"int4 / -8, g32", loss(plan(nibble::int4::format, signed_max, nibble::per_group{32})), .08589, 4},
        {"int4 / -8, g64", loss(plan(nibble::int4::format, signed_max, nibble::per_group{64})), .09489, 4},
        {"int4 / -8, g128", loss(plan(nibble::int4::format, signed_max, nibble::per_group{128})), .10312, 4},
        {"int5 / -16", loss(plan(nibble::int5::format, signed_max, nibble::per_group{32})), .04268, 5},
        {"int3 / -4", loss(plan(nibble::int3::format, signed_max, nibble::per_group{32})), .17430, 3},
        {"int8 / -128", loss(plan(nibble::int8::format, signed_max, nibble::per_group{32})), .00531, 8},
        {"binary g32", loss(plan(nibble::binary::format, absmean, nibble::per_group{32})), .59332, 1},
        {"binary g64", loss(plan(nibble::binary::format, absmean, nibble::per_group{64})), .59808, 1},
        {"binary g128", loss(plan(nibble::binary::format, absmean, nibble::per_group{128})), .60045, 1},
        {"BitNet", loss(plan(nibble::ternary::format, absmean, nibble::per_tensor{})), .51321, 2},
        {"TWN", loss(plan(nibble::ternary::format, twn, nibble::per_tensor{})), .43775, 2},
    };
    int cases = 0;
    for (const line& l : lines) {
        INFO(l.name << ": " << l.got << ", expected " << l.expected);
        CHECK(close(l.got, l.expected, l.bits));
        ++cases;
    }
    CHECK(cases == 18);
}

TEST_CASE("the formats of ggml, plain and with equal importance", "[rmse]") {
    struct line {
        const char* recipe;
        double rmse;
        double importance_rmse;  // 0: takes none
        int bits;
    };
    constexpr line lines[] = {{"q4_0", .08612, .08174, 4},  {"q4_1", .07851, .07001, 4},  {"q5_0", .04293, .04067, 5},
                              {"q5_1", .03791, .03385, 5},  {"q8_0", .00536, 0, 8},       {"iq4_nl", .07887, .07508, 4},
                              {"q2_k", .29752, .26832, 2},  {"q3_k", .15108, .14473, 3},  {"q4_k", .07147, .07085, 4},
                              {"q5_k", .03615, .03544, 5},  {"q6_k", .01785, .01740, 6},  {"iq4_xs", .07694, .07577, 4},
                              {"mxfp4_ggml", .11513, 0, 4}, {"nvfp4_ggml", .09440, 0, 4}, {"tq2_0", .80983, 0, 2}};
    const std::vector<float> ones(4096, 1.0f);
    int cases = 0;
    for (const line& l : lines) {
        const auto plan = nibble::make_plan(*nibble::find_recipe(l.recipe));
        const double got = loss(plan);
        INFO(l.recipe << ": " << got << ", expected " << l.rmse);
        CHECK(close(got, l.rmse, l.bits));
        ++cases;
        if (l.importance_rmse == 0.0) continue;
        const double weighted = loss(plan, ones);
        INFO("with importance: " << weighted << ", expected " << l.importance_rmse);
        CHECK(close(weighted, l.importance_rmse, l.bits));
        ++cases;
    }
    CHECK(cases == 15 + 11);
}

TEST_CASE("which format is better on Gaussian weights", "[rmse]") {
    const auto of = [](const char* recipe) { return loss(nibble::make_plan(*nibble::find_recipe(recipe))); };
    CHECK(of("q6_k") < of("q5_k"));
    CHECK(of("q5_k") < of("q4_k"));
    CHECK(of("q4_k") < of("q3_k"));
    CHECK(of("q3_k") < of("q2_k"));
    CHECK(of("q4_k") < of("iq4_xs"));
    CHECK(of("iq4_nl") < of("q4_0"));
    CHECK(of("q4_0") < of("nf4"));
    CHECK(of("nf4") < of("int4_g64"));
    CHECK(of("nf4") < of("af4"));  // af4 is best in absolute error
    CHECK(of("nf4") < of("fp4"));
    CHECK(of("nvfp4") < of("mxfp4"));
    CHECK(of("int4_g32") < of("int4_g64"));
    CHECK(of("int4_g64") < of("int4_g128"));
    CHECK(of("mxfp6") < of("mxfp6_e3m2"));
    CHECK(of("fp8_per_channel") < of("fp8_e5m2_per_channel"));
    CHECK(of("int8_per_channel") < of("fp8_per_channel"));
    CHECK(of("ternary_twn") < of("bitnet_b158"));
    CHECK(of("bitnet_b158") < of("tq2_0"));
    CHECK(of("nf4_double") < of("nf4") * 1.01);
    CHECK(of("nf4_double") > of("nf4") * 0.999);
    CHECK(of("fp4_double") < of("fp4") * 1.01);
    CHECK(of("fp16") < of("bf16"));
}
