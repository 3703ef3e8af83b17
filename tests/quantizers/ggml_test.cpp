// The ggml rules against the bytes of ggml's own quantizers.
#include <nibble/io/ggml_blocks.hpp>
#include <nibble/quantize.hpp>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/for_each_isa.hpp"
#include "support/golden.hpp"
#include "support/inspect.hpp"
#include "support/reference_quantizers.hpp"

namespace ggml = nibble::io::ggml;
using ggml::type;
using extent = nibble::index;  // index is a function of <strings.h>
using reference::from_hex;
using reference::tally;
using reference::to_hex;

namespace {

struct expected {
    type id;
    std::uint64_t hash;             // FNV-1a-64 of the bytes of 4096 values of G2
    double rmse;                    // of those values
    std::uint64_t importance_hash;  // the same with importance 1 + (i mod 7) / 4; 0: the rule takes none
    double importance_rmse;
    std::vector<float> first;  // decoded weights 0 .. 3 of the first block of G1
    const char* block;         // its bytes
};

// the format study 7.20, made with ggml (commit d99724f).
const std::vector<expected> table = {
    {type::q4_0,
     0x1e8a4eb5f48c78fcull,
     0.095762,
     0x3d62a6b14eeaf080ull,
     0.091007,
     {-1.171875f, 0.0f, 1.171875f, -0.9765625f},
     "4032f258be1379df359bf147ac0268ce248a"},
    {type::q4_1,
     0x6f5689b82afc98fbull,
     0.088090,
     0xd8472c11921b7821ull,
     0.079700,
     {-1.154053f, -0.1329346f, 1.092407f, -0.9498291f},
     "893240bef257bd1379cf358ae146ac0268bd2479"},
    {type::q5_0,
     0xd8c71c0abaf43c6aull,
     0.047957,
     0xf79ee7d85ee9f15dull,
     0.045207,
     {-1.171875f, -0.09765625f, 1.074219f, -0.8789062f},
     "402eb4b4a525f4bf7b27e3ae5a16d19d4904c08c38f4"},
    {type::q5_1,
     0xe1d83b19ee6c8131ull,
     0.043202,
     0xc2ccda1fc4f267e9ull,
     0.038230,
     {-1.266052f, -0.08026123f, 1.10553f, -0.8707886f},
     "532e40beb4b4a525f3bf6b27e2ae5a16d19d4904c07c38f3"},
    {type::q8_0,
     0x7c4434a958a332d9ull,
     0.005939,
     0,
     0,
     {-1.218315f, -0.06153107f, 1.095253f, -0.9106598f},
     "4d229dfb59b61472d02e8be947a50361be1c7ad73593f14fac0a68c62481df3d9af8"},
    {type::q2_k,
     0x2faf1f92e6ef24abull,
     0.332390,
     0xab0e186300c526e0ull,
     0.306102,
     {-1.136658f, -0.3859253f, 1.11554f, -1.136658f},
     "bcdfeebeefaceeacdedecddffedeffce6cb51b6cc61ba1c66cb1db6cb61b6cc61b71c618b1c66cb21b6dc618b1c628b1"
     "68b1d66cb11b6c861bb1c66cb1d66cb21b6d861b71c628b1d76cb61b6d861bb1012c9d2e"},
    {type::q3_k,
     0xb6c8cdd67c7d9d35ull,
     0.170107,
     0xe447b5261e7f4230ull,
     0.162657,
     {-1.199112f, 0.0f, 1.199112f, -0.799408f},
     "66cdb366d9336c9936cc9b66cdb366d94d1ae74cb3e758b3ed18b74c9ae74cb3897833de9d7727ed886be2d97837de9d"
     "db2f7589dc227688df2275c91f7285d84827e28d7823de897722dd8877e29d785df2b79c2db68b5de2f7485d22b7882d"
     "66a260aa50aa660900fc003fdfa3"},
    {type::q4_k,
     0x73faab896ee0a601ull,
     0.080943,
     0x1e5fc4e47b6e2763ull,
     0.080521,
     {-1.177116f, -0.1208839f, 1.146595f, -0.9658699f},
     "de1a8026fffffffafff8fafaceafbfbcc2278dd3499e055ab1167cc2388de449af056bb1277cd3389ee45aa0166bc227"
     "48ad0469c0157bd1379cf358ae046ac0268be2379df359be157ad1268ce248ada0156bc1278cd3489e045ab0167bc237"
     "8de349ae056ab1267cd2389de459af15268ce248ad0459b0157bd1379ce348ae046ac0267bd2379df359be156ac1268c"},
    {type::q5_k,
     0xcde7d34afcb839ccull,
     0.040754,
     0x50f47803e453d82eull,
     0.039755,
     {-1.240194f, -0.07438469f, 1.091425f, -0.9487419f},
     "86165326fdfdfdfdfefbfdfeffcdedfd26cc9366c9336499324c9926cd9366d9336c9936cc9b66cdb366d9326c9936cc"
     "a35f1bd6924e0ac6813df9b4602ce7a35f1bd7924e0ac5713df8a4602ce7a35f915d09c5803cf8b36f2be7a26e1ad691"
     "4d09c4703cf7b37f2be7a25e1ad5814d702be7a35f1ad6924d09c5813cf8b4602be7935e1ad6924d09c5703cf8a46f2b"
     "5e1ad5915d09c5803cf8b36f2be6a25e1ad6914d09c4703cf7b36f2be7a25e1a"},
    {type::q6_k,
     0xb624a3cb25c2bec8ull,
     0.020189,
     0x5d765e71715e67cbull,
     0.019682,
     {-1.223699f, -0.04532218f, 1.087732f, -0.9064436f},
     "45df28bc069f137cf08ad367f14ade285ed67df57c038b02aa22b931b85fd75e26ac058d037bf179d258d048ce27af25"
     "83fc741d960eb62fd840b961da53fb74d158bf37be25ad048b047bf37ad159d0c941ea63eb74fb741d951ea72fc841c9"
     "bf35ad169b048df26be069d147cf38bd1a922c840d85ed77ff57d038b04aa22b6cb11b6cc61b71c61cb1cb6cb21b6cc6"
     "e74d3ad04d37904ae7913ae44d3a904d18b1c66cb11b6c861b71c61cb1c76cb22453f9248ef9138ef4538d2452f9248e"
     "8d81877c897a8677807f897a867a8487758e"},
    {type::iq4_nl,
     0xde13bfc2f8fca436ull,
     0.088829,
     0x6b55a8339fd7d293ull,
     0.084883,
     {-1.2854f, -0.1235962f, 1.100006f, -0.8033752f},
     "5422f157ce137adf249cf036bd0258ce137a"},
    {type::iq4_xs,
     0xd666d3185f0caa42ull,
     0.086379,
     0x67467670b838f6fdull,
     0.085618,
     {-1.354431f, -0.1302338f, 1.159081f, -0.8465195f},
     "ab8e3c0ce00ee021f157ce137adf249be146bd0258ce137a42fd9621ec741fda530eb831fd9620eba721ec751fda530e"
     "b842fd9620ec741f248be035acf157ce137adf249be146bde035acf157ce1369df249be136adf258630fc942fea721ec"
     "751fda530eb842fd47be1269df248be035adf157ce137adf0269df138be035adf147ce1269df249b"},
    {type::mxfp4,
     0x40668d009aca6705ull,
     0.129622,
     0,
     0,
     {-1.0f, 0.0f, 1.0f, -1.0f},
     "7d7ec056fe9267ec147fda35feb056ed93"},
    {type::nvfp4,
     0x1eb1f5ab2bc642d3ull,
     0.113212,
     0,
     0,
     {-1.40625f, -0.1171875f, 0.9375f, -0.9375f},
     "27282828ffa966ee0277dd3477dc35ffb956ee9156ee0267dc247fca347fba56fe9166ed"},
    {type::tq1_0,
     0x90a7ae140dbd01dcull,
     0.898268,
     0,
     0,
     {-1.5625f, 0.0f, 1.5625f, -1.5625f},
     "466dd2467ad36c7a456dcf466dd3467ad36c7a456dcf4689d39b7a296d7a486d7f5174d51b7cf25d7c515ed45174d51b"
     "339fb520403e"},
    {type::tq2_0,
     0xb37a8b7565afc53full,
     0.898268,
     0,
     0,
     {-1.5625f, 0.0f, 1.5625f, -1.5625f},
     "586116588516618518618658611658851661851861865865165985146185586114618558611658451661851861865861"
     "16588516618518618658611659851661403e"},
    {type::q1_0,
     0xba4c6eb832f4c762ull,
     0.688892,
     0,
     0,
     {-0.7861328f, -0.7861328f, 0.7861328f, -0.7861328f},
     "4a3ab4b4a5252d6d694b4b5adad29296b6b4"},
    {type::q2_0,
     0x78899dcac6012f1eull,
     0.814113,
     0,
     0,
     {-1.5625f, 0.0f, 1.5625f, -1.5625f},
     "403e24592449164916459245926491645924"},
};

nibble::quantize_plan plan_of(type t) {
    static const nibble::ggml_ternary ternary;
    static const nibble::absmean signs;
    switch (t) {
        case type::q4_0: return make_plan(nibble::q4_0::get());
        case type::q4_1: return make_plan(nibble::q4_1::get());
        case type::q5_0: return make_plan(nibble::q5_0::get());
        case type::q5_1: return make_plan(nibble::q5_1::get());
        case type::q8_0: return make_plan(nibble::q8_0::get());
        case type::q2_k: return make_plan(nibble::q2_k::get());
        case type::q3_k: return make_plan(nibble::q3_k::get());
        case type::q4_k: return make_plan(nibble::q4_k::get());
        case type::q5_k: return make_plan(nibble::q5_k::get());
        case type::q6_k: return make_plan(nibble::q6_k::get());
        case type::iq4_nl: return make_plan(*nibble::find_recipe("iq4_nl"));
        case type::iq4_xs: return make_plan(nibble::iq4_xs::get());
        case type::mxfp4: return make_plan(nibble::mxfp4_ggml::get());
        case type::nvfp4: return make_plan(nibble::nvfp4_ggml::get());
        case type::tq1_0:
        case type::tq2_0: return make_plan(nibble::tq2_0::get());
        case type::q1_0: return make_plan(nibble::binary::format, signs, nibble::per_group{128});
        case type::q2_0: return make_plan(nibble::ternary::format, ternary, nibble::per_group{64});
        default: return make_plan(nibble::bf16::format, nibble::absmax{}, nibble::per_channel{});
    }
}

nibble::qmatrix quantized(type t, const std::vector<float>& x, extent rows = 1,
                          const std::vector<float>& importance = {}) {
    nibble::quantize_options options;
    options.importance = importance;
    const extent cols = static_cast<extent>(x.size()) / rows;
    return nibble::quantize(nibble::row_major(x.data(), rows, cols), plan_of(t), options);
}

std::vector<std::uint8_t> bytes_of(type t, const std::vector<float>& x, extent rows = 1,
                                   const std::vector<float>& importance = {}) {
    return ggml::pack(quantized(t, x, rows, importance), t).value();
}

std::vector<float> seven_weights(std::size_t count) {
    std::vector<float> w;
    for (std::size_t i = 0; i < count; ++i) w.push_back(1.0f + static_cast<float>(i % 7) * 0.25f);
    return w;
}

std::vector<float> repeated(std::vector<float> x, std::size_t count) {
    std::vector<float> out;
    for (std::size_t i = 0; i < count; ++i) out.push_back(x[i % x.size()]);
    return out;
}
std::vector<float> followed_by_zeros(std::vector<float> x, std::size_t count) {
    x.resize(count, 0.0f);
    return x;
}

}  // namespace

TEST_CASE("4096 pseudo-Gaussian values give the bytes of ggml", "[ggml]") {
    const std::vector<float> x = reference::generator_g2(4096);
    int cases = 0;
    for (const expected& e : table) {
        INFO(ggml::name(e.id));
        for_each_isa([&](nibble::isa) {
            const nibble::qmatrix m = quantized(e.id, x);
            CHECK(reference::fnv1a64(ggml::pack(m, e.id).value()) == e.hash);
            CHECK(inspect::rmse(inspect::decoded(m), x) == Approx(e.rmse).margin(6e-7));
        });
        ++cases;
    }
    CHECK(cases == 18);
}

TEST_CASE("with importance weights the bytes are those of ggml with an importance matrix", "[ggml]") {
    const std::vector<float> x = reference::generator_g2(4096);
    const std::vector<float> w = seven_weights(4096);
    int searched = 0;
    int refused = 0;
    for (const expected& e : table) {
        INFO(ggml::name(e.id));
        if (e.importance_hash == 0) {
            CHECK_THROWS_AS(quantized(e.id, x, 1, w), nibble::error);
            ++refused;
            continue;
        }
        for_each_isa([&](nibble::isa) {
            const nibble::qmatrix m = quantized(e.id, x, 1, w);
            CHECK(reference::fnv1a64(ggml::pack(m, e.id).value()) == e.importance_hash);
            CHECK(inspect::rmse(inspect::decoded(m), x) == Approx(e.importance_rmse).margin(6e-7));
        });
        ++searched;
    }
    CHECK(searched == 11);
    CHECK(refused == 7);
}

TEST_CASE("the first block of G1, byte by byte", "[ggml]") {
    int cases = 0;
    for (const expected& e : table) {
        INFO(ggml::name(e.id));
        const auto count = static_cast<std::size_t>(ggml::block_elements(e.id));
        const nibble::qmatrix m = quantized(e.id, reference::generator_g1(count));
        CHECK(to_hex(ggml::pack(m, e.id).value()) == e.block);
        for (extent k = 0; k < static_cast<extent>(e.first.size()); ++k)
            CHECK(m(0, k) == Approx(e.first[static_cast<std::size_t>(k)]).epsilon(1e-6).margin(1e-9));
        ++cases;
    }
    CHECK(cases == 18);
}

TEST_CASE("blocks do not depend on the rows around them", "[ggml]") {
    // Row n of 37 is the n-th piece of G2: three panels, the last one partial.
    const std::vector<float> x = reference::generator_g2(37 * 512);
    int cases = 0;
    for (const expected& e : table) {
        INFO(ggml::name(e.id));
        std::vector<std::uint8_t> one_by_one;
        for (std::size_t n = 0; n < 37; ++n) {
            const std::vector<float> row(x.begin() + static_cast<std::ptrdiff_t>(n * 512),
                                         x.begin() + static_cast<std::ptrdiff_t>((n + 1) * 512));
            const auto bytes = bytes_of(e.id, row);
            one_by_one.insert(one_by_one.end(), bytes.begin(), bytes.end());
        }
        CHECK(bytes_of(e.id, x, 37) == one_by_one);
        if (e.importance_hash != 0) {
            const std::vector<float> w = seven_weights(512);
            one_by_one.clear();
            for (std::size_t n = 0; n < 37; ++n) {
                const std::vector<float> row(x.begin() + static_cast<std::ptrdiff_t>(n * 512),
                                             x.begin() + static_cast<std::ptrdiff_t>((n + 1) * 512));
                const auto bytes = bytes_of(e.id, row, 1, w);
                one_by_one.insert(one_by_one.end(), bytes.begin(), bytes.end());
            }
            CHECK(bytes_of(e.id, x, 37, w) == one_by_one);
        }
        ++cases;
    }
    CHECK(cases == 18);
}

TEST_CASE("five sets of 1024 values give the bytes of gguf", "[ggml]") {
    const golden::file file("gguf/quantize");
    int cases = 0;
    for (const char* set : {"g1", "g2", "normal", "wide", "special"}) {
        const auto x = file.read<float>(std::string(set) + ".x");
        REQUIRE(x.size() == 1024);
        for (const type t : {type::q4_0, type::q4_1, type::q5_0, type::q5_1, type::q8_0, type::tq1_0, type::tq2_0,
                             type::mxfp4, type::bf16}) {
            INFO(ggml::name(t) << " of " << set);
            const auto expected_bytes = file.read<std::uint8_t>(std::string(ggml::name(t)) + "." + set + ".bytes");
            CHECK(inspect::difference(bytes_of(t, x), expected_bytes) == "");
            CHECK(inspect::difference(bytes_of(t, x, 2), expected_bytes) == "");
            ++cases;
        }
    }
    CHECK(cases == 45);
}

TEST_CASE("zero blocks have the bytes of ggml", "[ggml]") {
    struct zero {
        type t;
        std::string hex;
    };
    const auto bytes = [](const char* two, int count) {
        std::string s;
        for (int i = 0; i < count; ++i) s += two;
        return s;
    };
    const std::vector<zero> zeros = {
        {type::q4_0, "0080" + bytes("88", 16)},
        {type::q5_0, "0080ffffffff" + bytes("00", 16)},
        {type::q4_1, bytes("00", 20)},
        {type::q5_1, bytes("00", 24)},
        {type::q8_0, bytes("00", 34)},
        {type::q2_k, bytes("00", 84)},
        {type::q3_k, bytes("00", 110)},
        {type::q4_k, bytes("00", 144)},
        {type::q5_k, bytes("00", 176)},
        {type::q6_k, bytes("00", 210)},
        {type::mxfp4, bytes("00", 17)},
        {type::nvfp4, bytes("00", 36)},
        {type::iq4_nl, "0000" + bytes("88", 16)},
        {type::iq4_xs, "0080aaaa00000000" + bytes("88", 128)},
        {type::tq1_0, bytes("80", 48) + bytes("7f", 4) + "0000"},
        {type::tq2_0, bytes("55", 64) + "0000"},
        {type::q1_0, "0000" + bytes("ff", 16)},
        {type::q2_0, "0000" + bytes("55", 16)},
    };
    for (const zero& z : zeros) {
        INFO(ggml::name(z.t));
        const std::vector<float> x(static_cast<std::size_t>(ggml::block_elements(z.t)), 0.0f);
        const nibble::qmatrix m = quantized(z.t, x);
        CHECK(to_hex(ggml::pack(m, z.t).value()) == z.hex);
        CHECK(inspect::difference(inspect::decoded(m), x) == "");
    }
    CHECK(zeros.size() == table.size());
}

TEST_CASE("the vectors of the format sheet", "[ggml]") {
    const std::vector<float> five = {0.3f, -0.5f, 0.1f, 0.8f, -0.2f};
    std::vector<float> up, down, to16, to32, table_values;
    for (int i = 0; i < 32; ++i) {
        up.push_back(static_cast<float>(i % 16 - 8));
        down.push_back(static_cast<float>(8 - i % 16));
        to16.push_back(static_cast<float>(i - 16));
        to32.push_back(static_cast<float>(i));
    }
    for (const int v : {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113})
        table_values.push_back(static_cast<float>(v) / 64.0f);
    struct vector {
        type t;
        std::vector<float> x;
        const char* hex;
    };
    const std::string zeros_27(54, '0');
    const std::vector<float> e2m1 = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, 0, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    std::vector<float> ties = {0.25f, 0.75f, 1.25f, 1.75f, 2.5f, 3.5f, 5, 6};
    for (std::size_t i = 0; i < 8; ++i) ties.push_back(-ties[i]);
    std::vector<float> trits;
    for (int i = 0; i < 256; ++i) trits.push_back(static_cast<float>(i % 3 - 1));
    std::string tq1;
    for (int i = 0; i < 10; ++i) tq1 += "456ccf";
    tq1 += "456c";
    for (int i = 0; i < 5; ++i) tq1 += "94bb31";
    tq1 += "943092bb30003c";
    std::string tq2;
    for (int i = 0; i < 21; ++i) tq2 += "186186";
    tq2 += "18003c";
    const std::vector<vector> vectors = {
        {type::q4_0, up, "003c00112233445566778899aabbccddeeff"},
        {type::q4_0, down, "00bc00112233445566778899aabbccddeeff"},
        {type::q4_0, followed_by_zeros(five, 32), "66ae858d87808a8888888888888888888888"},
        {type::q5_0, to16, "003c0000ffff00112233445566778899aabbccddeeff"},
        {type::q4_1, repeated({0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}, 32),
         "003c000000112233445566778899aabbccddeeff"},
        {type::q4_1, followed_by_zeros(five, 32), "8c2d00b86960676f636666666666666666666666"},
        {type::q5_1, to32, "003c00000000ffff00112233445566778899aabbccddeeff"},
        {type::q8_0, followed_by_zeros({127, 0.5f, -0.5f, 1.5f, -1.5f, 2.5f}, 32),
         "003c7f01ff02fe030000000000000000000000000000000000000000000000000000"},
        {type::q8_0, followed_by_zeros(five, 32),
         "731e30b1107fe0000000000000000000000000000000000000000000000000000000"},
        {type::iq4_nl, repeated(table_values, 32), "002400112233445566778899aabbccddeeff"},
        {type::mxfp4, repeated(e2m1, 32), "7f00112233445566770099aabbccddeeff"},
        {type::mxfp4, repeated(ties, 32), "7f00112233445566770099aabbccddeeff"},
        {type::mxfp4, followed_by_zeros({7.99f}, 32), "7f07000000000000000000000000000000"},
        {type::nvfp4, repeated(e2m1, 64), "383838380091a2b3c4d5e6f70091a2b3c4d5e6f70091a2b3c4d5e6f70091a2b3c4d5e6f7"},
        {type::tq1_0, trits, tq1.c_str()},
        {type::tq2_0, trits, tq2.c_str()},
        {type::q2_0, repeated({-1, 0, 1}, 64), "003c24499224499224499224499224499224"},
        {type::q2_0,
         [] {
             std::vector<float> x(64, 0.5f);
             x[0] = 1.0f;
             x[1] = -0.5f;
             return x;
         }(),
         "003ca2aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"},
    };
    for (const vector& v : vectors) {
        INFO(ggml::name(v.t) << " " << v.hex);
        CHECK(to_hex(bytes_of(v.t, v.x)) == v.hex);
    }
    CHECK(vectors.size() == 18);
}

TEST_CASE("a constant block of the minimum types is the fp16 value", "[ggml]") {
    int cases = 0;
    for (const type t : {type::q4_1, type::q5_1}) {
        for (const float x : {3.25f, -7.0f, 0.1f, 65504.0f}) {
            const nibble::qmatrix m = quantized(t, std::vector<float>(32, x));
            CHECK(m.scale(0, 0) == 0.0f);
            CHECK(m(0, 5) == reference::stored(reference::storage::f16, x));
            ++cases;
        }
    }
    CHECK(cases == 8);
}

// Where ggml's own arithmetic runs into 1 / 0, Inf * 0 and conversions of NaN, the bytes are not defined; the values
// are.
TEST_CASE("blocks too small for their scale decode to zeros, blocks too large are refused", "[ggml]") {
    std::vector<float> shape = reference::generator_g1(256);
    for (float& v : shape) v /= 1.5625f;  // largest magnitude 1
    int zeros = 0;
    int refusals = 0;
    for (const expected& e : table) {
        const auto count = static_cast<std::size_t>(ggml::block_elements(e.id));
        for (const int exponent : {-149, -148, -140, -130, -127, -126, -100, -60}) {
            INFO(ggml::name(e.id) << " at 2^" << exponent);
            std::vector<float> x;
            for (std::size_t i = 0; i < count; ++i)
                x.push_back(static_cast<float>(std::ldexp(static_cast<double>(shape[i]), exponent)));
            const nibble::qmatrix m = quantized(e.id, x);
            tally small;
            const std::vector<float> w = inspect::decoded(m);
            for (std::size_t i = 0; i < count; ++i) {
                // e8m0 reaches down to 2^-127; everything else ends with fp16
                const double limit = e.id == type::mxfp4 ? std::ldexp(1.5, std::max(exponent, -128)) : 0.0;
                small.check(std::fabs(static_cast<double>(w[i])) <= limit, [&] { return std::to_string(w[i]); });
            }
            INFO(small.report());
            CHECK(small.failures() == 0);
            ++zeros;
        }
        if (e.id == type::mxfp4 || e.id == type::nvfp4) continue;
        for (const float largest : {3.0e38f, 3.4028234663852886e38f, 1e30f, 1e19f}) {
            INFO(ggml::name(e.id) << " at " << largest);
            std::vector<float> x;
            for (std::size_t i = 0; i < count; ++i) x.push_back(shape[i] * largest);
            try {
                static_cast<void>(quantized(e.id, x));
                CHECK(false);
            } catch (const nibble::error& why) {
                CHECK(why.code() == nibble::errc::out_of_range);
            }
            ++refusals;
        }
    }
    CHECK(zeros == 18 * 8);
    CHECK(refusals == 16 * 4);
}

TEST_CASE("mxfp4 and nvfp4 at the ends of their range", "[ggml]") {
    // mxfp4: the exponent comes from the bits, where ggml's log2f is one too high just below a power of two
    const auto block = [](float x) { return followed_by_zeros({x}, 32); };
    CHECK(bytes_of(type::mxfp4, block(7.9999995f))[0] == 0x7f);
    CHECK(bytes_of(type::mxfp4, block(0.24999999f))[0] == 122);
    CHECK(bytes_of(type::mxfp4, block(3.4028235e38f))[0] == 127 + 125);
    CHECK(quantized(type::mxfp4, block(3.4028235e38f))(0, 0) == 6.0f * std::ldexp(1.0f, 125));
    CHECK(bytes_of(type::mxfp4, block(std::ldexp(1.0f, -126)))[0] == 0);
    // nvfp4: E4M3 of max|w| / 6, rounded half up; 256 and more become 448
    const auto scale = [](float largest) {
        return unsigned{bytes_of(type::nvfp4, followed_by_zeros({largest}, 64))[0]};
    };
    CHECK(scale(6.0f) == 0x38);
    CHECK(scale(6.0f * 1.0625f) == 0x39);  // a tie: up, to an odd mantissa
    CHECK(scale(6.0f * 1.1875f) == 0x3a);
    CHECK(scale(6.0f * 1.9375f) == 0x40);  // carries into the exponent
    CHECK(scale(6.0f * 255.0f) == 0x7e);
    CHECK(scale(6.0f * 247.0f) == 0x77);
    CHECK(scale(6.0f * 256.0f) == 0x7e);
    CHECK(scale(6.0f * 448.0f) == 0x7e);
    CHECK(scale(1e30f) == 0x7e);
    CHECK(scale(6.0f * 0.001953125f) == 0x01);   // 2^-9
    CHECK(scale(6.0f * 0.0009765625f) == 0x01);  // half of it: up
    CHECK(scale(6.0f * 0.00097f) == 0x00);
    CHECK(scale(6.0f * 0.015f) == 0x07);  // subnormal scales end at 7
    CHECK(scale(6.0f * 0.015625f) == 0x08);
}

TEST_CASE("rows that are no multiple of a block are searched group by group", "[ggml]") {
    const std::vector<float> x = reference::normal_samples(5 * 700, 21);
    int cases = 0;
    for (const expected& e : table) {
        for (const std::size_t cols :
             {std::size_t{1}, std::size_t{15}, std::size_t{33}, std::size_t{255}, std::size_t{257}, std::size_t{700}}) {
            INFO(ggml::name(e.id) << ", " << cols << " columns");
            const std::vector<float> w(x.begin(), x.begin() + static_cast<std::ptrdiff_t>(5 * cols));
            const nibble::qmatrix m = quantized(e.id, w, 5);
            CHECK(inspect::rmse(inspect::decoded(m), w) < (e.rmse > 0.5 ? 1.2 : 2.0 * e.rmse));
            ++cases;
        }
    }
    CHECK(cases == 18 * 6);
}

TEST_CASE("groups of more than 256 weights are refused by the searches", "[ggml]") {
    const std::vector<float> x = reference::generator_g2(512);
    const nibble::ggml_affine affine;
    const nibble::quantize_plan plan = make_plan(nibble::int4::format, affine, nibble::per_group{512});
    try {
        static_cast<void>(nibble::quantize(nibble::row_major(x.data(), 1, 512), plan));
        CHECK(false);
    } catch (const nibble::error& why) {
        CHECK(why.code() == nibble::errc::unsupported);
        CHECK(std::string(why.what()).find("512") != std::string::npos);
    }
    // the rules that do not search take any group
    const nibble::ggml_signed_max simple;
    const nibble::qmatrix m = nibble::quantize(nibble::row_major(x.data(), 1, 512),
                                               make_plan(nibble::int4::format, simple, nibble::per_group{512}));
    CHECK(inspect::rmse(inspect::decoded(m), x) < 0.15);
}

TEST_CASE("importance steers the searches", "[ggml]") {
    // Columns of importance 100 must come out better than without, and no block worse than 3 times.
    const std::vector<float> x = reference::normal_samples(64 * 256, 4);
    std::vector<float> w(256, 1.0f);
    for (std::size_t k = 0; k < 256; k += 8) w[k] = 100.0f;
    int cases = 0;
    for (const expected& e : table) {
        if (e.importance_hash == 0) continue;
        INFO(ggml::name(e.id));
        const auto error = [&](const nibble::qmatrix& m) {
            const std::vector<float> back = inspect::decoded(m);
            double sum = 0.0;
            for (std::size_t i = 0; i < x.size(); ++i)
                sum += static_cast<double>(w[i % 256]) *
                       std::pow(static_cast<double>(back[i]) - static_cast<double>(x[i]), 2);
            return sum;
        };
        CHECK(error(quantized(e.id, x, 64, w)) < 0.9 * error(quantized(e.id, x, 64)));
        ++cases;
    }
    CHECK(cases == 11);
    // importance 0 everywhere is allowed: nothing matters, everything is finite
    const std::vector<float> none(256, 0.0f);
    for (const expected& e : table) {
        if (e.importance_hash == 0) continue;
        INFO(ggml::name(e.id));
        tally finite;
        for (const float v : inspect::decoded(quantized(e.id, x, 64, none)))
            finite.check((reference::bits_from_float(v) & 0x7f800000u) != 0x7f800000u,
                         [] { return std::string("not finite"); });
        CHECK(finite.failures() == 0);
        ++cases;
    }
    CHECK(cases == 22);
}

TEST_CASE("the searches are their definitions on all kinds of groups", "[ggml]") {
    // Proposals are looked at through fp32 scales, group by group.
    const extent rows = 400;
    const extent cols = 64;
    std::vector<float> x = reference::normal_samples(static_cast<std::size_t>(rows * cols), 99);
    for (std::size_t i = 0; i < x.size(); ++i) {
        const std::size_t row = i / 64;
        if (row % 5 == 1) x[i] = x[i] * x[i] * x[i];      // heavy tails
        if (row % 5 == 2) x[i] = std::fabs(x[i]) + 0.5f;  // one-sided
        if (row % 5 == 3) x[i] = -std::fabs(x[i]) * 1e-3f;
        if (row % 5 == 4 && i % 3 != 0) x[i] = 0.0f;  // sparse
    }
    struct search {
        const nibble::code_format* format;
        extent group;
        bool minimum;
    };
    const nibble::ggml_affine affine;
    const nibble::ggml_symmetric symmetric;
    int cases = 0;
    tally good;
    for (const search& s : {search{&nibble::int6::format, 16, false},
                            {&nibble::int4::format, 16, false},
                            {&nibble::int2::format, 16, false},
                            {&nibble::int2::format, 16, true},
                            {&nibble::int4::format, 32, true},
                            {&nibble::int5::format, 32, true}}) {
        nibble::quantize_plan plan =
            nibble::make_plan(*s.format, affine, nibble::per_group{s.group}, nibble::scales::f32);
        if (!s.minimum) plan.rule = nibble::erase(symmetric);
        const nibble::qmatrix m = nibble::quantize(nibble::row_major(x.data(), rows, cols), plan);
        for (extent n = 0; n < rows; ++n) {
            for (extent g = 0; g * s.group < cols; ++g) {
                const std::vector<float> v(x.begin() + n * cols + g * s.group,
                                           x.begin() + n * cols + (g + 1) * s.group);
                std::vector<float> w;
                float squares = 0.0f;
                for (const float t : v) squares = reference::plus(squares, reference::times(t, t));
                const float mean = static_cast<float>(std::sqrt(static_cast<double>(reference::over(squares, 32.0f))));
                for (const float t : v)
                    w.push_back(!s.minimum            ? reference::times(t, t)
                                : s.format->bits == 2 ? std::fabs(t)
                                                      : reference::plus(mean, std::fabs(t)));
                const reference::group expected =
                    !s.minimum ? reference::group{reference::search_scale(v, w, 1 << (s.format->bits - 1)), 0.0f, {}}
                    : s.format->bits == 2 ? reference::search_minimum(v, w, 3, -0.5f, 0.1f, 15, true)
                    : s.format->bits == 4 ? reference::search_minimum(v, w, 15, -1.0f, 0.1f, 20, false)
                                          : reference::search_minimum(v, w, 31, -0.5f, 0.1f, 15, false);
                good.check(m.scale(n, g) == expected.scale && m.offset(n, g) == expected.offset, [&] {
                    return std::string(s.format->name) + " row " + std::to_string(n) + ": " +
                           std::to_string(m.scale(n, g)) + " != " + std::to_string(expected.scale);
                });
            }
        }
        ++cases;
    }
    CHECK(cases == 6);
    CHECK(good.cases() == 400 * (4 * 4 + 2 * 2));
    INFO(good.report());
    CHECK(good.failures() == 0);
}

TEST_CASE("every level writes the same codes and scales for weights of all magnitudes", "[ggml]") {
    // Up to where products of sums overflow, down to where inverses do; more groups than lanes, and fewer; a last group
    // that is smaller.
    const float magnitudes[] = {1.0f, 1e-38f, 1e-43f, 1e5f, 1e10f, 1e-20f};
    int cases = 0;
    for (const char* name : {"q4_0", "q4_1", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "tq2_0"}) {
        for (const extent cols : {17, 100, 768}) {
            for (const bool weighed : {false, true}) {
                const nibble::recipe& recipe = *nibble::find_recipe(name);
                if (weighed && !recipe.rule.searches) continue;
                std::vector<float> x = reference::normal_samples(static_cast<std::size_t>(12 * cols), 7);
                for (std::size_t i = 0; i < x.size(); ++i) {
                    const std::size_t row = i / static_cast<std::size_t>(cols);
                    x[i] *= magnitudes[row / 2];
                    if (row % 2 == 1 && i % 3 == 0) x[i] = i % 2 == 0 ? 0.0f : -0.0f;
                }
                nibble::quantize_plan plan = nibble::make_plan(recipe);
                plan.scale = nibble::scales::f32;  // which holds them all
                const std::vector<float> weights = seven_weights(static_cast<std::size_t>(cols));
                nibble::quantize_options options;
                if (weighed) options.importance = weights;
                INFO(name << ", " << cols << " columns" << (weighed ? ", with importance" : ""));
                nibble::qmatrix first;
                for_each_isa([&](nibble::isa level) {
                    const nibble::qmatrix m = nibble::quantize(nibble::row_major(x.data(), 12, cols), plan, options);
                    if (level == nibble::isa::scalar) first = m;
                    CHECK(std::equal(m.data(), m.data() + m.memory_bytes(), first.data(), first.data() + first.memory_bytes()));
                });
                ++cases;
            }
        }
    }
    CHECK(cases == 3 * (12 + 10));
}

TEST_CASE("with importance q6_k searches for the weights that matter", "[ggml]") {
    // Columns without importance hold the largest weights, so that scales beyond the range win, too.
    const extent rows = 600;
    std::vector<float> x = reference::normal_samples(static_cast<std::size_t>(rows * 16), 98);
    std::vector<float> importance(16, 1.0f);
    for (std::size_t k = 0; k < 16; k += 5) importance[k] = 0.0f;
    for (std::size_t i = 0; i < x.size(); ++i)
        if (i % 16 % 5 == 0) x[i] *= 1.5f;
    nibble::quantize_options options;
    options.importance = importance;
    const nibble::ggml_symmetric rule;
    const nibble::qmatrix m = nibble::quantize(
        nibble::row_major(x.data(), rows, 16),
        nibble::make_plan(nibble::int6::format, rule, nibble::per_group{16}, nibble::scales::f32), options);
    tally good;
    for (extent n = 0; n < rows; ++n) {
        const std::vector<float> v(x.begin() + n * 16, x.begin() + n * 16 + 16);
        const float expected = reference::search_scale(v, importance, 32);
        good.check(m.scale(n, 0) == expected,
                   [&] { return std::to_string(m.scale(n, 0)) + " != " + std::to_string(expected); });
    }
    CHECK(good.cases() == 600);
    INFO(good.report());
    CHECK(good.failures() == 0);
}
