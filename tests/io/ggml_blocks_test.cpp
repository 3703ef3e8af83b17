// ggml tensor types: bytes to values against gguf's own decoder, and back to the same bytes.
#include <nibble/io/ggml_blocks.hpp>
#include <nibble/quantize.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/for_each_isa.hpp"
#include "support/golden.hpp"
#include "support/guarded_buffer.hpp"
#include "support/inspect.hpp"
#include "support/reference_quantizers.hpp"
#include "support/spawning.hpp"

namespace ggml = nibble::io::ggml;
using ggml::type;
using extent = nibble::index;  // index is a function of <strings.h>
using reference::tally;

namespace {

struct known_type {
    type id;
    const char* name;
    extent elements;
    extent bytes;
};

// the format study 7.0, and for the codebooks of vectors the sizes of ggml's structures.
constexpr known_type known[] = {
    {type::f32, "F32", 1, 4},
    {type::f16, "F16", 1, 2},
    {type::bf16, "BF16", 1, 2},
    {type::f64, "F64", 1, 8},
    {type::i8, "I8", 1, 1},
    {type::i16, "I16", 1, 2},
    {type::i32, "I32", 1, 4},
    {type::i64, "I64", 1, 8},
    {type::q4_0, "Q4_0", 32, 18},
    {type::q4_1, "Q4_1", 32, 20},
    {type::q5_0, "Q5_0", 32, 22},
    {type::q5_1, "Q5_1", 32, 24},
    {type::q8_0, "Q8_0", 32, 34},
    {type::q8_1, "Q8_1", 32, 36},
    {type::q2_k, "Q2_K", 256, 84},
    {type::q3_k, "Q3_K", 256, 110},
    {type::q4_k, "Q4_K", 256, 144},
    {type::q5_k, "Q5_K", 256, 176},
    {type::q6_k, "Q6_K", 256, 210},
    {type::q8_k, "Q8_K", 256, 292},
    {type::iq4_nl, "IQ4_NL", 32, 18},
    {type::iq4_xs, "IQ4_XS", 256, 136},
    {type::tq1_0, "TQ1_0", 256, 54},
    {type::tq2_0, "TQ2_0", 256, 66},
    {type::mxfp4, "MXFP4", 32, 17},
    {type::nvfp4, "NVFP4", 64, 36},
    {type::q1_0, "Q1_0", 128, 18},
    {type::q2_0, "Q2_0", 64, 18},
    {type::iq2_xxs, "IQ2_XXS", 256, 66},
    {type::iq2_xs, "IQ2_XS", 256, 74},
    {type::iq3_xxs, "IQ3_XXS", 256, 98},
    {type::iq1_s, "IQ1_S", 256, 50},
    {type::iq3_s, "IQ3_S", 256, 110},
    {type::iq2_s, "IQ2_S", 256, 82},
    {type::iq1_m, "IQ1_M", 256, 56},
};

// The types of the reference file that this library reads.
constexpr type read_types[] = {type::q4_0, type::q4_1,  type::q5_0,  type::q5_1,  type::q8_0,   type::q2_k,
                               type::q3_k, type::q4_k,  type::q5_k,  type::q6_k,  type::iq4_nl, type::iq4_xs,
                               type::bf16, type::tq1_0, type::tq2_0, type::mxfp4, type::nvfp4};

// What pack writes for bytes that have a canonical twin.
std::vector<std::uint8_t> canonical(type t, std::vector<std::uint8_t> bytes) {
    if (t == type::nvfp4)
        for (std::size_t i = 0; i < bytes.size(); ++i)
            if (i % 36 < 4 && bytes[i] == 0x7f) bytes[i] = 0;
    if (t == type::tq1_0) {
        for (std::size_t i = 0; i < bytes.size(); ++i) {
            if (i % 54 >= 52) continue;
            unsigned digits = 0;
            unsigned b = bytes[i];
            for (int n = 0; n < 5; ++n) {
                // the last four bytes hold four trits, the fifth is zero
                digits = digits * 3 + (n == 4 && i % 54 >= 48 ? 0u : b * 3 / 256);
                b = b * 3 % 256;
            }
            bytes[i] = static_cast<std::uint8_t>((digits * 256 + 242) / 243);
        }
    }
    return bytes;
}

nibble::failure failure_of(type t, const std::vector<std::uint8_t>& bytes, extent rows, extent cols) {
    const auto m = ggml::unpack(t, bytes, rows, cols);
    REQUIRE_FALSE(m.has_value());
    return m.failure();
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

nibble::qmatrix quantized(const std::vector<float>& w, extent rows, extent cols, const char* recipe) {
    return nibble::quantize(nibble::row_major(w.data(), rows, cols), nibble::make_plan(*nibble::find_recipe(recipe)));
}

}  // namespace

TEST_CASE("every tensor type has its number, name and sizes", "[ggml]") {
    int cases = 0;
    for (const known_type& k : known) {
        INFO(k.name);
        CHECK(ggml::name(k.id) == std::string(k.name));
        CHECK(ggml::block_elements(k.id) == k.elements);
        CHECK(ggml::block_bytes(k.id) == k.bytes);
        CHECK(ggml::row_bytes(k.id, k.elements * 3) == k.bytes * 3);
        CHECK(ggml::row_bytes(k.id, k.elements * 2 + 1) == k.bytes * 3);
        CHECK(ggml::row_bytes(k.id, 0) == 0);
        ++cases;
    }
    CHECK(cases == 35);
    for (const unsigned number : {4u, 5u, 31u, 32u, 33u, 36u, 37u, 38u, 43u, 1000u}) {  // removed, or never given
        CHECK(ggml::block_elements(type{number}) == 0);
        CHECK(ggml::block_bytes(type{number}) == 0);
        CHECK(ggml::row_bytes(type{number}, 32) == -1);
        CHECK(ggml::name(type{number}) == std::string("?"));
        CHECK_FALSE(ggml::is_supported(type{number}));
    }
    CHECK(static_cast<unsigned>(type::q2_0) == 42);
    CHECK(static_cast<unsigned>(type::nvfp4) == 40);
    CHECK(static_cast<unsigned>(type::bf16) == 30);
    CHECK(static_cast<unsigned>(type::q6_k) == 14);
}

TEST_CASE("blocks decode to gguf's values bit by bit, and pack to the same bytes", "[ggml]") {
    const golden::file file("gguf/dequantize");
    int cases = 0;
    for (const type t : read_types) {
        const std::string name = ggml::name(t);
        INFO(name);
        const auto bytes = file.read<std::uint8_t>(name + ".bytes");
        const auto values = file.read<float>(name + ".values");
        const auto weights = static_cast<extent>(values.size());
        REQUIRE(bytes.size() == values.size() / static_cast<std::size_t>(ggml::block_elements(t)) *
                                    static_cast<std::size_t>(ggml::block_bytes(t)));
        for (const extent rows :
             {extent{1}, extent{8}, extent{64}}) {  // 64, 8 and 1 blocks to a row; 64 rows are 4 panels
            INFO(rows << " rows");
            for_each_isa([&](nibble::isa) {
                const nibble::qmatrix m = ggml::unpack(t, bytes, rows, weights / rows).value();
                CHECK(m.rows() == rows);
                CHECK(m.cols() == weights / rows);
                CHECK(inspect::difference(inspect::decoded(m), values) == "");
                CHECK(inspect::difference(ggml::pack(m, t).value(), canonical(t, bytes)) == "");
                REQUIRE(ggml::type_of(m).has_value());
                CHECK(*ggml::type_of(m) == (t == type::tq1_0 ? type::tq2_0 : t));
            });
            ++cases;
        }
    }
    CHECK(cases == 17 * 3);
}

TEST_CASE("every level makes the same cells of the same blocks, and reads nothing past them", "[ggml]") {
    int cases = 0;
    for (const known_type& k : known) {
        if (!ggml::is_supported(k.id)) continue;
        for (const extent cols : {k.elements, 3 * k.elements - 1, 2 * k.elements + 5}) {
            for (const extent rows : {1, 16, 21}) {
                const auto size = static_cast<std::size_t>(rows * ggml::row_bytes(k.id, cols));
                guarded_buffer<std::uint8_t> bytes(size);  // all of them below 40: no scale is Inf or NaN
                for (std::size_t i = 0; i < size; ++i) bytes[i] = static_cast<std::uint8_t>((i * 2654435761u >> 13) & 0x3f);
                INFO(k.name << ", " << rows << "x" << cols);
                nibble::qmatrix first;
                for_each_isa([&](nibble::isa level) {
                    const nibble::qmatrix m = ggml::unpack(k.id, {bytes.data(), size}, rows, cols).value();
                    if (level == nibble::isa::scalar) first = m;
                    CHECK(std::equal(m.data(), m.data() + m.memory_bytes(), first.data(), first.data() + first.memory_bytes()));
                });
                ++cases;
            }
        }
    }
    CHECK(cases == 22 * 9);
}

TEST_CASE("rows may end inside a block", "[ggml]") {
    const golden::file file("gguf/dequantize");
    int cases = 0;
    for (const type t : read_types) {
        const std::string name = ggml::name(t);
        const extent elements = ggml::block_elements(t);
        const auto bytes = file.read<std::uint8_t>(name + ".bytes");
        const auto values = file.read<float>(name + ".values");
        for (const extent missing :
             {extent{1}, extent{3}, extent{15}, extent{16}, extent{31}, extent{100}, extent{240}, elements - 1}) {
            if (missing >= elements || elements == 1) continue;
            const extent cols = 2 * elements - missing;  // two blocks to a row
            INFO(name << ", " << cols << " columns");
            const nibble::qmatrix m = ggml::unpack(t, bytes, 32, cols).value();
            tally decoded;
            const std::vector<float> w = inspect::decoded(m);
            for (extent n = 0; n < 32; ++n) {
                for (extent k = 0; k < cols; ++k) {
                    const float expected = values[static_cast<std::size_t>(n * 2 * elements + k)];
                    const float got = w[static_cast<std::size_t>(n * cols + k)];
                    decoded.check(got == expected, [&] { return std::to_string(n) + ", " + std::to_string(k); });
                }
            }
            CHECK(decoded.cases() == static_cast<std::uint64_t>(32 * cols));
            INFO(decoded.report());
            CHECK(decoded.failures() == 0);
            const auto packed = ggml::pack(m, t).value();
            REQUIRE(packed.size() == bytes.size());
            CHECK(inspect::same(ggml::unpack(t, packed, 32, cols).value(), m));
            CHECK(ggml::pack(ggml::unpack(t, packed, 32, cols).value(), t).value() == packed);
            ++cases;
        }
    }
    CHECK(cases == 112);
}

TEST_CASE("the padding of a partial block decodes to zero, or to the minimum", "[ggml]") {
    const std::vector<float> w = reference::generator_g2(3 * 300);
    int cases = 0;
    for (const char* recipe : {"q4_0", "q5_0", "q8_0", "q3_k", "q6_k", "tq2_0", "mxfp4_ggml", "nvfp4_ggml"}) {
        INFO(recipe);
        const nibble::qmatrix m = quantized(w, 3, 300, recipe);
        const type t = *ggml::type_of(m);
        const extent elements = ggml::block_elements(t);
        const extent whole = (300 + elements - 1) / elements * elements;
        const nibble::qmatrix padded = ggml::unpack(t, ggml::pack(m).value(), 3, whole).value();
        tally zero;
        for (extent n = 0; n < 3; ++n)
            for (extent k = 300; k < whole; ++k) zero.check(padded(n, k) == 0.0f, [&] { return std::to_string(k); });
        INFO(zero.report());
        CHECK(zero.cases() > 0);
        CHECK(zero.failures() == 0);
        ++cases;
    }
    CHECK(cases == 8);
}

TEST_CASE("types without a reference file: Q1_0, Q2_0 and F16", "[ggml]") {
    // G1, the format study 7.20: the first block and what it means
    const auto q1 = reference::from_hex("4a3ab4b4a5252d6d694b4b5adad29296b6b4");
    const auto q2 = reference::from_hex("403e24592449164916459245926491645924");
    const auto m1 = ggml::unpack(type::q1_0, q1, 1, 128).value();
    const auto m2 = ggml::unpack(type::q2_0, q2, 1, 64).value();
    std::vector<float> v1, v2;
    for (unsigned i = 0; i < 128; ++i)
        v1.push_back((q1[2 + i / 8] >> (i % 8) & 1) != 0 ? 0.7861328125f : -0.7861328125f);
    for (unsigned i = 0; i < 64; ++i)
        v2.push_back(1.5625f * (static_cast<float>(q2[2 + i / 4] >> (2 * (i % 4)) & 3) - 1.0f));
    CHECK(inspect::difference(inspect::decoded(m1), v1) == "");
    CHECK(inspect::difference(inspect::decoded(m2), v2) == "");
    CHECK(*ggml::type_of(m1) == type::q1_0);
    CHECK(*ggml::type_of(m2) == type::q2_0);
    CHECK(ggml::pack(m1).value() == q1);
    CHECK(ggml::pack(m2).value() == q2);
    const auto three = ggml::unpack(type::q2_0, std::vector<std::uint8_t>(18, 0xff), 1, 64);
    CHECK_FALSE(three.has_value());  // ff ff is a NaN

    std::vector<std::uint8_t> halves;
    std::vector<float> values;
    const reference::small_float& fp16 = *reference::find_small_float("fp16");
    for (unsigned h = 0; h < 65536; ++h) {
        if ((h & 0x7c00u) == 0x7c00u) continue;
        halves.push_back(static_cast<std::uint8_t>(h & 0xff));
        halves.push_back(static_cast<std::uint8_t>(h >> 8));
        values.push_back(static_cast<float>(fp16.plain_value(h)));
    }
    REQUIRE(values.size() == 63488);
    const auto m = ggml::unpack(type::f16, halves, 31, 2048).value();
    CHECK(inspect::difference(inspect::decoded(m), values) == "");
    CHECK(ggml::pack(m).value() == halves);
}

TEST_CASE("activations: Q8_1 and Q8_K are read, not written", "[ggml]") {
    const std::vector<float> x = reference::generator_g2(4096);
    // Q8_1 by the format study 7.3, made here: fp16 d, the sum, which decoding ignores, and 32 signed bytes.
    const reference::staircase fp16 = reference::find_small_float("fp16")->encoder(false);
    std::vector<std::uint8_t> one;
    std::vector<float> one_values;
    for (std::size_t b = 0; b < x.size(); b += 32) {
        float most = 0.0f;
        for (std::size_t i = 0; i < 32; ++i) most = std::max(most, std::abs(x[b + i]));
        const float d = most / 127.0f;
        int sum = 0;
        std::vector<int> q;
        for (std::size_t i = 0; i < 32; ++i) sum += q.emplace_back(static_cast<int>(std::round(x[b + i] * (1.0f / d))));
        const unsigned stored = fp16(d);
        const unsigned s = fp16(static_cast<float>(sum) * d);
        for (const unsigned h : {stored, s}) {
            one.push_back(static_cast<std::uint8_t>(h & 0xff));
            one.push_back(static_cast<std::uint8_t>(h >> 8));
        }
        for (const int v : q) {
            one.push_back(static_cast<std::uint8_t>(v & 0xff));
            one_values.push_back(static_cast<float>(reference::find_small_float("fp16")->plain_value(stored)) *
                                 static_cast<float>(v));
        }
    }
    REQUIRE(reference::fnv1a64(one) == 0xc10d16534a1ef881ull);  // these are ggml's bytes
    const nibble::qmatrix m1 = ggml::unpack(type::q8_1, one, 2, 2048).value();
    CHECK(inspect::difference(inspect::decoded(m1), one_values) == "");
    CHECK(*ggml::type_of(m1) == type::q8_0);
    CHECK_FALSE(ggml::pack(m1, type::q8_1).has_value());

    // Q8_K: fp32 d, 256 signed bytes, sums of 16.
    std::vector<std::uint8_t> k;
    std::vector<float> k_values;
    for (std::size_t b = 0; b < x.size(); b += 256) {
        float most = 0.0f;
        for (std::size_t i = 0; i < 256; ++i)
            if (std::abs(x[b + i]) > std::abs(most)) most = x[b + i];
        const float inverse = -127.0f / most;
        const float d = 1.0f / inverse;
        std::uint32_t u;
        std::memcpy(&u, &d, 4);
        for (int i = 0; i < 4; ++i) k.push_back(static_cast<std::uint8_t>(u >> (8 * i) & 0xff));
        std::vector<int> sums(16);
        for (std::size_t i = 0; i < 256; ++i) {
            const int v = std::min(127, static_cast<int>(std::nearbyint(inverse * x[b + i])));
            sums[i / 16] += v;
            k.push_back(static_cast<std::uint8_t>(v & 0xff));
            k_values.push_back(d * static_cast<float>(v));
        }
        for (const int v : sums) {
            k.push_back(static_cast<std::uint8_t>(v & 0xff));
            k.push_back(static_cast<std::uint8_t>(v >> 8 & 0xff));
        }
    }
    REQUIRE(reference::fnv1a64(k) == 0xff42fd7944495587ull);
    for (const extent rows : {extent{1}, extent{16}}) {
        const nibble::qmatrix m = ggml::unpack(type::q8_k, k, rows, 4096 / rows).value();
        CHECK(inspect::difference(inspect::decoded(m), k_values) == "");
        CHECK(inspect::rmse(inspect::decoded(m), x) == Approx(0.007154).margin(6e-7));
        CHECK_FALSE(ggml::type_of(m).has_value());
        CHECK_FALSE(ggml::pack(m, type::q8_k).has_value());
    }
    for (const std::uint32_t bad : {0x7f800000u, 0xff800000u, 0x7fc00001u}) {
        std::vector<std::uint8_t> broken = k;
        std::memcpy(broken.data() + 292, &bad, 4);
        const nibble::failure why = failure_of(type::q8_k, broken, 1, 4096);
        CHECK(why.code == nibble::errc::malformed);
        CHECK(why.offset == 292);
        CHECK(contains(why.message, "Q8_K block 1 of row 0"));
    }
    std::vector<std::uint8_t> broken = one;
    broken[37] = 0x7c;
    CHECK(failure_of(type::q8_1, broken, 1, 4096).offset == 36);
}

TEST_CASE("what a quantizer made survives a file", "[ggml]") {
    int cases = 0;
    for (const extent cols : {extent{256}, extent{77}, extent{7}, extent{513}}) {
        const extent rows = 19;
        const std::vector<float> w = reference::normal_samples(static_cast<std::size_t>(rows * cols), 5);
        for (const nibble::recipe& r : nibble::recipes()) {
            const nibble::qmatrix m = quantized(w, rows, cols, r.name);
            const std::optional<type> t = ggml::type_of(m);
            if (!t) continue;
            INFO(r.name << ", " << cols << " columns, as " << ggml::name(*t));
            const auto bytes = ggml::pack(m).value();
            CHECK(static_cast<extent>(bytes.size()) == rows * ggml::row_bytes(*t, cols));
            const nibble::qmatrix back = ggml::unpack(*t, bytes, rows, cols).value();
            CHECK(inspect::difference(inspect::decoded(back), inspect::decoded(m)) == "");
            if (back.group_size() == m.group_size()) CHECK(inspect::same(back, m));
            ++cases;
        }
    }
    CHECK(cases >= 4 * 19);
}

TEST_CASE("a scale that serves several blocks is written into each of them", "[ggml]") {
    const std::vector<float> w = reference::normal_samples(5 * 300, 9);
    const nibble::qmatrix m = quantized(w, 5, 300, "int4_g128");
    const nibble::qmatrix back = ggml::unpack(type::q4_0, ggml::pack(m).value(), 5, 300).value();
    CHECK(back.group_size() == 32);
    CHECK(inspect::difference(inspect::decoded(back), inspect::decoded(m)) == "");
    // but not one that ends inside a block
    const nibble::qmatrix odd =
        nibble::quantize(nibble::row_major(w.data(), 5, 300),
                         nibble::make_plan(nibble::int4::format, nibble::absmax{}, nibble::per_group{48}));
    CHECK_FALSE(ggml::type_of(odd).has_value());
    const auto refused = ggml::pack(odd);
    REQUIRE_FALSE(refused.has_value());
    CHECK(refused.failure().code == nibble::errc::unsupported);
    CHECK(contains(refused.failure().message, "groups of 48"));
}

TEST_CASE("matrices that no tensor type holds are refused", "[ggml]") {
    const std::vector<float> w = reference::normal_samples(512, 3);
    int cases = 0;
    for (const char* recipe : {"nf4", "nf4_double", "int4_zero_g128", "int4_hqq_g64", "int8_per_channel",
                               "fp8_per_channel", "nvfp4", "int3_zero_g64", "mxfp6", "bitnet_b158"}) {
        INFO(recipe);
        const nibble::qmatrix m = quantized(w, 2, 256, recipe);
        CHECK_FALSE(ggml::type_of(m).has_value());
        const auto packed = ggml::pack(m);
        REQUIRE_FALSE(packed.has_value());
        CHECK(packed.failure().code == nibble::errc::unsupported);
        CHECK(contains(packed.failure().message, recipe));
        CHECK_FALSE(ggml::pack(m, type::q4_0).has_value());
        ++cases;
    }
    CHECK(cases == 10);
    CHECK_FALSE(ggml::pack(quantized(w, 2, 256, "q4_k"), type::q5_k).has_value());
    CHECK_FALSE(ggml::pack(quantized(w, 2, 256, "q4_k"), type::f32).has_value());
    CHECK_FALSE(ggml::pack(quantized(w, 2, 256, "q4_0"), type::q4_1).has_value());
    CHECK_FALSE(ggml::pack(quantized(w, 2, 256, "fp16"), type::bf16).has_value());

    std::vector<std::uint8_t> three(66, 0xff);  // TQ2_0 with code 3, scale 1
    three[64] = 0x00;
    three[65] = 0x3c;
    const nibble::qmatrix m = ggml::unpack(type::tq2_0, three, 1, 256).value();
    CHECK(m(0, 17) == 2.0f);
    CHECK(ggml::pack(m).value() == three);
    const auto packed = ggml::pack(m, type::tq1_0);
    REQUIRE_FALSE(packed.has_value());
    CHECK(contains(packed.failure().message, "code 3"));
}

TEST_CASE("empty matrices", "[ggml]") {
    int cases = 0;
    for (const type t : read_types) {
        for (const auto& [rows, cols] : {std::pair<extent, extent>{0, 0}, {0, 300}, {5, 0}, {0, PTRDIFF_MAX / 1024}}) {
            INFO(ggml::name(t) << " " << rows << "x" << cols);
            const nibble::qmatrix m = ggml::unpack(t, {}, rows, cols).value();
            CHECK(m.rows() == rows);
            CHECK(m.cols() == cols);
            CHECK(ggml::pack(m, t).value().empty());
            ++cases;
        }
    }
    CHECK(cases == 17 * 4);
}

TEST_CASE("a wrong number of bytes is refused, with the numbers", "[ggml]") {
    int cases = 0;
    for (const type t : read_types) {
        const extent row = ggml::row_bytes(t, 300);
        const auto size = static_cast<std::size_t>(3 * row);
        for (const std::size_t wrong : {std::size_t{0}, std::size_t{1}, size - 1, size + 1,
                                        size - static_cast<std::size_t>(row), size + static_cast<std::size_t>(row)}) {
            const nibble::failure f = failure_of(t, std::vector<std::uint8_t>(wrong), 3, 300);
            INFO(f.message);
            CHECK(f.code == nibble::errc::malformed);
            CHECK(contains(f.message, "3x300"));
            CHECK(contains(f.message, ggml::name(t)));
            CHECK(contains(f.message, std::to_string(row)));
            CHECK(contains(f.message, std::to_string(wrong)));
            CHECK(f.offset == wrong);
            ++cases;
        }
    }
    CHECK(cases == 17 * 6);
    // sizes whose product wraps around
    const std::vector<std::uint8_t> bytes(1 << 10);
    CHECK(failure_of(type::q4_0, bytes, PTRDIFF_MAX, PTRDIFF_MAX / 2000).code == nibble::errc::malformed);
    CHECK(failure_of(type::q4_0, bytes, PTRDIFF_MAX, PTRDIFF_MAX).code == nibble::errc::malformed);
    CHECK(failure_of(type::q4_0, bytes, extent{1} << 62, 64).code == nibble::errc::malformed);
    CHECK(failure_of(type::q4_0, bytes, -1, 32).code == nibble::errc::malformed);
    CHECK(failure_of(type::q4_0, bytes, 1, -32).code == nibble::errc::malformed);
    CHECK(failure_of(type::q4_0, bytes, 5, 0).code == nibble::errc::malformed);
    CHECK(failure_of(type{99}, bytes, 1, 32).code == nibble::errc::unsupported);
    CHECK(contains(failure_of(type{99}, bytes, 1, 32).message, "99"));
    CHECK(failure_of(type::iq2_xxs, bytes, 1, 256).code == nibble::errc::unsupported);
    CHECK(contains(failure_of(type::f32, bytes, 16, 16).message, "F32"));
}

TEST_CASE("scales that are not finite are refused, naming the block and the byte", "[ggml]") {
    struct field {
        type t;
        int at;
        const char* what;
    };
    constexpr field fields[] = {
        {type::q4_0, 0, "scale"},    {type::q4_1, 0, "scale"},   {type::q4_1, 2, "minimum"}, {type::q5_0, 0, "scale"},
        {type::q5_1, 0, "scale"},    {type::q5_1, 2, "minimum"}, {type::q8_0, 0, "scale"},   {type::q2_k, 80, "scale"},
        {type::q2_k, 82, "minimum"}, {type::q3_k, 108, "scale"}, {type::q4_k, 0, "scale"},   {type::q4_k, 2, "minimum"},
        {type::q5_k, 0, "scale"},    {type::q5_k, 2, "minimum"}, {type::q6_k, 208, "scale"}, {type::iq4_nl, 0, "scale"},
        {type::iq4_xs, 0, "scale"},  {type::tq1_0, 52, "scale"}, {type::tq2_0, 64, "scale"}, {type::q1_0, 0, "scale"},
        {type::q2_0, 0, "scale"},    {type::f16, 0, "weight"}};
    int cases = 0;
    for (const field& f : fields) {
        const extent block = ggml::block_bytes(f.t);
        const extent cols = 2 * ggml::block_elements(f.t);
        for (const unsigned half : {0x7c00u, 0xfc00u, 0x7e00u, 0xfc01u}) {  // Inf, -Inf, two NaNs
            std::vector<std::uint8_t> bytes(static_cast<std::size_t>(6 * block));
            const extent at = 3 * block + f.at;  // row 1, block 1
            bytes[static_cast<std::size_t>(at)] = static_cast<std::uint8_t>(half & 0xff);
            bytes[static_cast<std::size_t>(at) + 1] = static_cast<std::uint8_t>(half >> 8);
            const nibble::failure why = failure_of(f.t, bytes, 3, cols);
            INFO(why.message);
            CHECK(why.code == nibble::errc::malformed);
            CHECK(why.offset == static_cast<std::uint64_t>(at));
            CHECK(contains(why.message, ggml::name(f.t)));
            CHECK(contains(why.message, f.what));
            CHECK(contains(why.message, f.t == type::f16 ? "(1, 1)" : "block 1 of row 1"));
            ++cases;
        }
    }
    CHECK(cases == 88);
    // the largest finite half is fine
    std::vector<std::uint8_t> largest(18);
    largest[0] = 0xff;
    largest[1] = 0x7b;
    CHECK(ggml::unpack(type::q4_0, largest, 1, 32).value()(0, 0) == -8.0f * 65504.0f);

    std::vector<std::uint8_t> mx(34);
    mx[17] = 0xff;
    CHECK(failure_of(type::mxfp4, mx, 2, 32).offset == 17);
    CHECK(contains(failure_of(type::mxfp4, mx, 2, 32).message, "FF"));
    std::vector<std::uint8_t> nv(72);
    nv[36 + 2] = 0x80;
    CHECK(failure_of(type::nvfp4, nv, 1, 128).offset == 38);
    CHECK(contains(failure_of(type::nvfp4, nv, 1, 128).message, "sign"));
    const std::vector<std::uint8_t> bf = {0x80, 0x3f, 0x80, 0x7f};  // 1, Inf
    CHECK(failure_of(type::bf16, bf, 1, 2).offset == 2);
    CHECK(contains(failure_of(type::bf16, bf, 1, 2).message, "(0, 1)"));
}

TEST_CASE("several threads unpack what one does, and name the first bad block", "[ggml][threads]") {
    auto threads = nibble::make_executor(4, spawning{4});
    for (const char* name : {"q4_0", "q6_k", "q4_k", "q8_0", "bf16"}) {
        const nibble::qmatrix q = nibble::quantize(Eigen::MatrixXf::Random(100, 512), name);
        const type t = *ggml::type_of(q);
        auto bytes = ggml::pack(q, t).value();
        CHECK(inspect::same(ggml::unpack(t, bytes, 100, 512, &threads).value(), q));
        const auto row = static_cast<std::size_t>(ggml::row_bytes(t, 512));
        for (const std::size_t n : {90u, 40u}) std::fill_n(bytes.begin() + static_cast<std::ptrdiff_t>(n * row), row, std::uint8_t{0xff});
        const auto one = ggml::unpack(t, bytes, 100, 512);
        const auto many = ggml::unpack(t, bytes, 100, 512, &threads);
        REQUIRE_FALSE(many.has_value());
        CHECK(many.failure().message == one.failure().message);
        CHECK(many.failure().offset == one.failure().offset);
        CHECK(many.failure().message.find("40") != std::string::npos);
    }
}

TEST_CASE("an executor changes neither the matrix nor the defect that is named", "[ggml]") {
    auto backwards = nibble::make_executor(4, [](extent n, auto body) {
        for (extent i = n; i-- > 0;) body(i);
    });
    for (const char* name : {"q4_0", "q5_1", "q8_0", "q3_k", "q4_k", "iq4_xs", "tq2_0", "mxfp4_ggml"}) {
        INFO(name);
        Eigen::MatrixXf w(53, 512);
        for (extent i = 0; i < w.size(); ++i) w.data()[i] = static_cast<float>((i * 7919) % 1009) / 512.0f - 1.0f;
        const nibble::qmatrix m = nibble::quantize(w, name);
        const type t = ggml::type_of(m).value();
        std::vector<std::uint8_t> bytes = ggml::pack(m, t).value();
        const auto back = ggml::unpack(t, bytes, 53, 512, &backwards);
        REQUIRE(back);
        CHECK(ggml::pack(back.value(), t).value() == bytes);
        if (t != type::q4_0) continue;
        const auto row = bytes.size() / 53;
        for (const std::size_t n : {20u, 37u, 50u}) bytes[n * row + 18 * 3 + 1] = 0x7c;  // Inf in block 3 of three panels
        for (nibble::executor* threads : {static_cast<nibble::executor*>(nullptr), static_cast<nibble::executor*>(&backwards)}) {
            const auto refused = ggml::unpack(t, bytes, 53, 512, threads);
            REQUIRE(!refused);
            CHECK(refused.failure().message.find("Q4_0 block 3 of row 20") != std::string::npos);
            CHECK(refused.failure().offset == 20 * row + 18 * 3);
        }
    }
}
