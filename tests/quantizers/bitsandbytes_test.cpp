// NF4 and FP4 with plain and with quantized scales, against bitsandbytes.
#include <nibble/quantize.hpp>

#include <cmath>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/golden.hpp"
#include "support/inspect.hpp"
#include "support/reference_quantizers.hpp"

using extent = nibble::index;  // index is a function of <strings.h>
using reference::tally;

namespace {

nibble::qmatrix quantized(const std::vector<float>& x, extent rows, const std::string& format, extent group,
                          bool nested = false) {
    static const nibble::absmax rule;
    return nibble::quantize(nibble::row_major(x.data(), rows, static_cast<extent>(x.size()) / rows),
                            nibble::make_plan(*nibble::find_format(format), rule, nibble::per_group{group},
                                              nested ? nibble::scales::double_quantized : nibble::scales::f32));
}

// Two codes to a byte, the first in the high half.
std::vector<unsigned> nibbles(const std::vector<std::uint8_t>& bytes, std::size_t count) {
    std::vector<unsigned> codes;
    for (const unsigned b : bytes) {
        codes.push_back(b >> 4);
        codes.push_back(b & 15u);
    }
    codes.resize(count);
    return codes;
}

std::vector<unsigned> stored_scales(const nibble::qmatrix& m) {
    std::vector<unsigned> s;
    for (extent n = 0; n < m.rows(); ++n)
        for (extent g = 0; g < m.groups(); ++g) s.push_back(m.stored_scale(n, g));
    return s;
}

const std::vector<float> five = {0.3f, -0.5f, 0.1f, 0.8f, -0.2f};

}  // namespace

TEST_CASE("NF4 and FP4 of five values and of G1", "[nf4][fp4]") {
    const nibble::qmatrix n = quantized(five, 1, "nf4", 64);
    CHECK(n.scale(0, 0) == 0.8f);
    CHECK(inspect::codes(n) == std::vector<unsigned>{11, 1, 9, 15, 4});
    CHECK(inspect::difference(inspect::decoded(n), std::vector<float>{.270332187f, -.556954265f, .12874417f,
                                                                      .800000012f, -.227553114f}) == "");
    const nibble::qmatrix f = quantized(five, 1, "fp4", 64);
    CHECK(inspect::codes(f) == std::vector<unsigned>{4, 10, 6, 3, 15});
    CHECK(inspect::difference(inspect::decoded(f), std::vector<float>{.266666681f, -.533333361f, .13333334f,
                                                                      .800000012f, -.200000003f}) == "");

    const std::vector<float> g1 = reference::generator_g1(64);
    const nibble::qmatrix n1 = quantized(g1, 1, "nf4", 64);
    CHECK(n1.scale(0, 0) == 1.5625f);
    CHECK(inspect::codes(n1) ==
          nibbles(reference::from_hex("17e29f3b05d17e2af4c06d18e2a04c16e29f3b05d17e29f3c05d18e2af4c16e1"), 64));
    CHECK(inspect::rmse(inspect::decoded(n1), g1) == Approx(.0829774).epsilon(1e-5));
    const std::vector<float> first = {-1.08780122f, 0,       1.12962008f,  -.820426643f,
                                      .251453429f,  1.5625f, -.617058575f, .527992547f};
    for (extent k = 0; k < 8; ++k) CHECK(n1(0, k) == first[static_cast<std::size_t>(k)]);
    const nibble::qmatrix f1 = quantized(g1, 1, "fp4", 64);
    CHECK(inspect::codes(f1) ==
          nibbles(reference::from_hex("a92d63c4be5a12d73c5be2a12d7bf5a92a63c4be5a02d63c4be2a12d73f5a92a"), 64));
    CHECK(inspect::rmse(inspect::decoded(f1), g1) == Approx(.1014391).epsilon(1e-5));
}

TEST_CASE("NF4 and FP4 give the codes and scales of bitsandbytes", "[nf4][fp4]") {
    const golden::file file("bitsandbytes/four_bit");
    const auto w = file.read<float>("w.x");
    const auto g2 = file.read<float>("g2.x");
    const auto odd = file.read<float>("odd.x");
    int cases = 0;
    for (const std::string format : {"nf4", "fp4"}) {
        for (const extent group : {extent{64}, extent{128}}) {
            const std::string name = "w." + format + ".bs" + std::to_string(group);
            INFO(name);
            const nibble::qmatrix m = quantized(w, 96, format, group);
            CHECK(inspect::difference(inspect::scales(m), file.read<float>(name + ".absmax")) == "");
            CHECK(inspect::difference(inspect::codes(m),
                                      nibbles(file.read<std::uint8_t>(name + ".packed"), w.size())) == "");
            ++cases;
        }
        for (const extent rows : {extent{1}, extent{16}, extent{64}}) {  // blocks of 64 do not see the shape
            INFO(format << " of g2, " << rows << " rows");
            const nibble::qmatrix m = quantized(g2, rows, format, 64);
            const std::string name = "g2." + format + ".bs64";
            CHECK(inspect::difference(inspect::scales(m), file.read<float>(name + ".absmax")) == "");
            CHECK(inspect::difference(inspect::codes(m), nibbles(file.read<std::uint8_t>(name + ".packed"), 4096)) ==
                  "");
            CHECK(inspect::difference(inspect::decoded(m), file.read<float>(name + ".dequant")) == "");
            ++cases;
        }
        // 333 values: five blocks and a short one
        INFO(format << " of odd");
        const nibble::qmatrix m = quantized(odd, 1, format, 64);
        CHECK(inspect::difference(inspect::scales(m), file.read<float>("odd." + format + ".bs64.absmax")) == "");
        CHECK(inspect::difference(inspect::codes(m),
                                  nibbles(file.read<std::uint8_t>("odd." + format + ".bs64.packed"), 333)) == "");
        CHECK(inspect::difference(inspect::decoded(m), file.read<float>("odd." + format + ".bs64.dequant")) == "");
        ++cases;
    }
    CHECK(cases == 12);
}

TEST_CASE("double quantization gives bitsandbytes' codes, nested absmax and offset", "[double]") {
    const golden::file file("bitsandbytes/four_bit");
    struct set {
        const char* name;
        extent rows, group;
        float offset;
    };
    int cases = 0;
    for (const set& s : {set{"g2", 1, 64, 2.853743076324463f},
                         {"g2", 16, 64, 2.853743076324463f},
                         {"w", 96, 64, 0.1019936203956604f},
                         {"w", 96, 128, 0.12821972370147705f}}) {
        const auto x = file.read<float>(std::string(s.name) + ".x");
        for (const std::string format : {"nf4", "fp4"}) {
            const std::string name = std::string(s.name) + "." + format + ".bs" + std::to_string(s.group) + ".nested";
            INFO(name << ", " << s.rows << " rows");
            const nibble::qmatrix m = quantized(x, s.rows, format, s.group, true);
            CHECK(m.tensor_scale() == s.offset);
            CHECK(inspect::difference(stored_scales(m), file.read<std::uint8_t>(name + ".absmax_codes_nearest")) == "");
            const auto nested = file.read<float>(name + ".nested_absmax");
            REQUIRE(m.layout().supers == static_cast<extent>(nested.size()));
            for (std::size_t i = 0; i < nested.size(); ++i) CHECK(m.nested_absmax(static_cast<extent>(i)) == nested[i]);
            CHECK(inspect::difference(inspect::codes(m),
                                      nibbles(file.read<std::uint8_t>(name + ".packed"), x.size())) == "");
            // The restored scales of the file belong to codes of the compiled search, which are nearly always the
            // nearest.
            const auto compiled = file.read<std::uint8_t>(name + ".absmax_codes");
            const auto restored = file.read<float>(name + ".absmax_restored");
            const std::vector<float> scales = inspect::scales(m);
            const std::vector<unsigned> nearest = stored_scales(m);
            tally same;
            for (std::size_t i = 0; i < scales.size(); ++i)
                if (compiled[i] == nearest[i]) same.check(scales[i] == restored[i], [&] { return std::to_string(i); });
            INFO(same.report());
            CHECK(same.failures() == 0);
            CHECK(same.cases() > scales.size() * 9 / 10);
            ++cases;
        }
    }
    CHECK(cases == 8);
    CHECK(nibble::nf4_double::get().scale == nibble::scales::double_quantized);
}

TEST_CASE("double quantization of 300 groups", "[double]") {
    const golden::file file("algorithms/nf4_double_quant");
    const auto w = file.read<float>("w");
    for (const extent rows : {extent{1}, extent{20}, extent{300}}) {
        INFO(rows << " rows");
        const nibble::qmatrix m =
            nibble::quantize(nibble::row_major(w.data(), rows, static_cast<extent>(w.size()) / rows),
                             nibble::make_plan(nibble::nf4_double::get()));
        CHECK(m.tensor_scale() == file.read<float>("offset").at(0));
        CHECK(m.nested_absmax(0) == file.read<float>("nested_absmax").at(0));
        CHECK(m.nested_absmax(1) == file.read<float>("nested_absmax").at(1));
        CHECK(inspect::difference(stored_scales(m), file.read<std::uint8_t>("absmax_codes")) == "");
        CHECK(inspect::difference(inspect::scales(m), file.read<float>("absmax_restored")) == "");
        CHECK(inspect::difference(inspect::codes(m), file.read<std::uint8_t>("codes")) == "");
        CHECK(m.bits_per_weight() == Approx(4.0 + 8.0 / 64 + (2 * 32 + 32) / 19200.0));
    }
}

TEST_CASE("four scales, quantized by hand", "[double]") {
    std::vector<float> w(4 * 64, 0.0f);
    w[3] = .020f;
    w[64] = -.025f;
    w[130] = .018f;
    w[255] = -.040f;
    const nibble::qmatrix m = quantized(w, 2, "nf4", 64, true);
    CHECK(m.tensor_scale() == Approx(.02575000003).epsilon(1e-7));
    CHECK(m.nested_absmax(0) == Approx(.0142499991).epsilon(1e-7));
    CHECK(stored_scales(m) == std::vector<unsigned>{42, 80, 32, 255});
    const std::vector<float> restored = {.0200166013f, .0249862894f, .018012695f, .0399999991f};
    for (std::size_t i = 0; i < 4; ++i) CHECK(inspect::scales(m)[i] == Approx(restored[i]).epsilon(1e-7));
    // equal scales: nothing is left to quantize
    const nibble::qmatrix e = quantized(std::vector<float>(256, -0.5f), 2, "nf4", 64, true);
    CHECK(stored_scales(e) == std::vector<unsigned>(4, 127));
    CHECK(e.nested_absmax(0) == 0.0f);
    CHECK(inspect::difference(inspect::decoded(e), std::vector<float>(256, -0.5f)) == "");
    const nibble::qmatrix z = quantized(std::vector<float>(256, 0.0f), 2, "nf4", 64, true);
    CHECK(inspect::difference(inspect::decoded(z), std::vector<float>(256, 0.0f)) == "");
}

TEST_CASE("double quantization is its definition at every shape", "[double]") {
    int cases = 0;
    tally good;
    for (const auto& [rows, cols, group] : {std::tuple<extent, extent, extent>{1, 64, 64},
                                            {40, 640, 64},
                                            {17, 1000, 32},
                                            {257, 3, 1},
                                            {3, 20, 7},
                                            {16, 16 * 64, 64}}) {
        std::vector<float> w = reference::normal_samples(static_cast<std::size_t>(rows * cols), 31);
        for (std::size_t i = 0; i < w.size(); i += 97) w[i] *= 9.0f;
        for (const std::string format : {"nf4", "int4", "fp8_e4m3"}) {
            const nibble::qmatrix m = quantized(w, rows, format, group, true);
            std::vector<float> scale;
            std::vector<unsigned> codes;
            const reference::staircase encoder = reference::encoder_of(format);
            for (extent n = 0; n < rows; ++n) {
                for (extent k = 0; k < cols; k += group) {
                    const std::vector<float> x(w.begin() + n * cols + k,
                                               w.begin() + n * cols + std::min(cols, k + group));
                    scale.push_back(
                        reference::over(reference::extremes_of(x).magnitude(), reference::absmax_target(format)));
                    for (const unsigned c : reference::encoded(x, reference::reciprocal(scale.back()), encoder))
                        codes.push_back(c);
                }
            }
            const reference::nested_scales n = reference::nest(scale);
            INFO(format << " " << rows << "x" << cols << " in groups of " << group);
            CHECK(m.tensor_scale() == n.mean);
            CHECK(inspect::difference(stored_scales(m), n.codes) == "");
            CHECK(inspect::difference(inspect::scales(m), n.restored) == "");
            CHECK(inspect::difference(inspect::codes(m), codes) == "");
            REQUIRE(m.layout().supers == static_cast<extent>(n.absmax.size()));
            for (std::size_t i = 0; i < n.absmax.size(); ++i)
                good.check(m.nested_absmax(static_cast<extent>(i)) == n.absmax[i], [&] { return std::to_string(i); });
            ++cases;
        }
    }
    CHECK(cases == 18);
    INFO(good.report());
    CHECK(good.failures() == 0);
}
