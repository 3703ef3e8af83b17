// Formats under a budget against brute force, and memory footprints against matrices that exist.
#include <nibble/algorithms/footprint.hpp>
#include <nibble/algorithms/mixed_precision.hpp>
#include <nibble/calibration/importance.hpp>
#include <nibble/nibble.hpp>

#include <cmath>
#include <limits>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/mistake.hpp"

using Eigen::MatrixXf;
using extent = nibble::index;
using nibble::assignment;
using nibble::choose_formats;
using nibble::choose_formats_greedy;
using nibble::errc;
using nibble::layer_choice;

namespace {

/// Layers with options of more bytes and less loss, and a few that no one should take.
std::vector<layer_choice> some_layers(std::size_t count, std::uint64_t stream) {
    data::random r(stream);
    std::vector<layer_choice> layers(count);
    for (layer_choice& l : layers) {
        double loss = 10.0 + 90.0 * r.unit();
        std::uint64_t bytes = 50 + r.below(200);
        const std::uint64_t options = 1 + r.below(5);
        for (std::uint64_t o = 0; o < options; ++o) {
            l.options.push_back({"f" + std::to_string(o), bytes, r.below(6) == 0 ? 2.0 * loss : loss});
            loss *= 0.2 + 0.6 * r.unit();
            bytes += 1 + r.below(150);
        }
        if (r.below(2) == 0) std::swap(l.options.front(), l.options.back());
    }
    return layers;
}

/// The least loss of all assignments within the budget; Inf if there is none.
double brute_force(const std::vector<layer_choice>& layers, std::uint64_t budget, std::size_t i = 0) {
    if (i == layers.size()) return 0.0;
    double best = std::numeric_limits<double>::infinity();
    for (const nibble::format_option& o : layers[i].options)
        if (o.bytes <= budget) best = std::min(best, o.loss + brute_force(layers, budget - o.bytes, i + 1));
    return best;
}

/// Whether an assignment is what it says.
bool honest(const std::vector<layer_choice>& layers, const assignment& a, std::uint64_t budget) {
    double loss = 0.0;
    std::uint64_t bytes = 0;
    for (std::size_t i = 0; i < layers.size(); ++i) {
        loss += layers[i].options.at(a.choice.at(i)).loss;
        bytes += layers[i].options.at(a.choice.at(i)).bytes;
    }
    return a.choice.size() == layers.size() && bytes == a.bytes && std::abs(loss - a.loss) <= 1e-12 * loss && bytes <= budget;
}

}  // namespace

TEST_CASE("the exact choice is that of brute force", "[mixed_precision]") {
    int greedy_worse = 0, greedy_equal = 0;
    for (std::uint64_t stream = 1; stream <= 60; ++stream) {
        const std::vector<layer_choice> layers = some_layers(1 + stream % 6, stream);
        std::uint64_t least = 0, most = 0;
        for (const layer_choice& l : layers) {
            std::uint64_t low = l.options[0].bytes, high = low;
            for (const auto& o : l.options) low = std::min(low, o.bytes), high = std::max(high, o.bytes);
            least += low;
            most += high;
        }
        double before = std::numeric_limits<double>::infinity();
        for (std::uint64_t budget = least; budget <= most + 20; budget += 1 + (most - least) / 23) {
            CAPTURE(stream, budget);
            const assignment a = choose_formats(layers, budget), g = choose_formats_greedy(layers, budget);
            CHECK(honest(layers, a, budget));
            CHECK(honest(layers, g, budget));
            CHECK(a.loss == Approx(brute_force(layers, budget)).epsilon(1e-12));
            CHECK(a.loss <= before * (1 + 1e-12));  // more bytes never hurt
            CHECK(g.loss >= a.loss * (1 - 1e-12));
            before = a.loss;
            (g.loss > a.loss * (1 + 1e-12) ? greedy_worse : greedy_equal) += 1;
            const assignment coarse = choose_formats(layers, budget, 7);
            CHECK(honest(layers, coarse, budget));
            CHECK(coarse.loss <= g.loss * (1 + 1e-12));
        }
        CHECK(of([&] { static_cast<void>(choose_formats(layers, least - 1)); }).code == errc::out_of_range);
    }
    CHECK(greedy_worse > 20);
    CHECK(greedy_equal > 200);
    CHECK(choose_formats({}, 0).loss == 0.0);
}

TEST_CASE("greedy is exact at its own stops", "[mixed_precision]") {
    // Convex layers: every prefix of the steepest upgrades is a point of the hull.
    std::vector<layer_choice> layers(4);
    for (std::size_t i = 0; i < 4; ++i)
        for (std::size_t b = 2; b < 9; ++b) layers[i].options.push_back({std::to_string(b), 100 * b, static_cast<double>(i + 1) * std::pow(4.0, -static_cast<double>(b))});
    for (std::uint64_t budget = 800; budget <= 3200; budget += 100) CHECK(choose_formats_greedy(layers, budget).loss == Approx(choose_formats(layers, budget).loss).epsilon(1e-12));
    // b_i = b + log2(weight / geometric mean) / 2: four times the weight, one bit more.
    layers.resize(2);
    for (auto& o : layers[1].options) o.loss = 16.0 * layers[0].options[static_cast<std::size_t>(&o - layers[1].options.data())].loss;
    const assignment a = choose_formats(layers, 1000);
    CHECK(a.choice == std::vector<std::size_t>{2, 4});
}

TEST_CASE("greedy looks past options above the hull", "[mixed_precision]") {
    const std::vector<layer_choice> layers = {{{{"a0", 0, 10.0}, {"a1", 1, 9.9}, {"a2", 2, 0.0}, {"a3", 2, 1.0}, {"a4", 3, 0.5}}}, {{{"b0", 0, 5.0}, {"b1", 1, 4.0}}}};
    const assignment a = choose_formats_greedy(layers, 2);
    CHECK(a.choice == std::vector<std::size_t>{2, 0});
    CHECK(a.loss == 5.0);
    CHECK(choose_formats_greedy(layers, 100).choice == std::vector<std::size_t>{2, 1});
}

TEST_CASE("bad layers are refused", "[mixed_precision]") {
    std::vector<layer_choice> layers = some_layers(2, 5);
    layers[1].options.clear();
    CHECK(of([&] { static_cast<void>(choose_formats(layers, 10000)); }).code == errc::invalid_argument);
    layers[1].options.push_back({"x", 5, -1.0});
    CHECK(contains(of([&] { static_cast<void>(choose_formats_greedy(layers, 10000)); }).message, "x of layer 1"));
    layers[1].options[0].loss = std::numeric_limits<double>::quiet_NaN();
    CHECK(of([&] { static_cast<void>(choose_formats(layers, 10000)); }).code == errc::invalid_argument);
    layers[1].options[0].loss = 1.0;
    CHECK(of([&] { static_cast<void>(choose_formats(layers, 10000, 0)); }).code == errc::invalid_argument);
}

TEST_CASE("measured layers", "[mixed_precision]") {
    const MatrixXf w = data::matrix(32, 256, 7), x = data::matrix(256, 40, 8);
    nibble::importance seen(256);
    seen.add(x);
    const std::vector<float> h = seen.weights();
    const layer_choice l = nibble::measure_formats(w, h, {"q2_k", "int4_g32", "q8_0"});
    for (const nibble::format_option& o : l.options) {
        const nibble::recipe& r = *nibble::find_recipe(o.name);
        nibble::quantize_options options;
        if (r.rule.searches) options.importance = h;
        const nibble::qmatrix q = nibble::quantize(w, o.name, options);
        CHECK(o.bytes == q.bytes());
        double loss = 0.0;
        for (extent n = 0; n < 32; ++n)
            for (extent k = 0; k < 256; ++k) {
                const double e = static_cast<double>(q(n, k)) - static_cast<double>(w(n, k));
                loss += static_cast<double>(h[static_cast<std::size_t>(k)]) * e * e;
            }
        CHECK(o.loss == Approx(loss).epsilon(1e-5));
    }
    CHECK(l.options[0].loss > l.options[1].loss);
    CHECK(l.options[1].loss > l.options[2].loss);
    CHECK(nibble::measure_formats(w, {}, {"q8_0"}).options[0].loss == Approx((nibble::dequantize(nibble::quantize(w, "q8_0")) - w).squaredNorm()).epsilon(1e-4));
    CHECK(of([&] { static_cast<void>(nibble::measure_formats(w, std::span(h).first(3), {"q8_0"})); }).code == errc::shape_mismatch);
    CHECK(of([&] { static_cast<void>(nibble::measure_formats(w, {}, {"q9"})); }).code == errc::not_found);
}

TEST_CASE("footprints are the bytes of matrices", "[footprint]") {
    for (const nibble::recipe& r : nibble::recipes())
        for (const auto& [n, k] : {std::pair<extent, extent>{7, 300}, {40, 512}, {0, 8}}) {
            CAPTURE(r.name, n, k);
            const nibble::qmatrix q = nibble::quantize(data::matrix(n, k, 9), r.name);
            const nibble::footprint f = nibble::model_footprint({.weights = {{n, k, 3}, {n, k, 2, false}}}, r.name);
            CHECK(f.codes + f.scales == 3 * q.bytes());
            CHECK(f.plain == static_cast<std::uint64_t>(4 * n * k));
            CHECK(f.cache == 0);
            CHECK(f.total() == f.codes + f.scales + f.plain);
        }
    CHECK(of([] { static_cast<void>(nibble::model_footprint({}, "q9")); }).code == errc::not_found);
    CHECK(of([] { static_cast<void>(nibble::model_footprint({.weights = {{-1, 2}}}, "q4_k")); }).code == errc::invalid_argument);
    CHECK(of([] { static_cast<void>(nibble::model_footprint({}, "q4_k", {.tokens = -1})); }).code == errc::invalid_argument);
}

TEST_CASE("which formats of a model of 8 billion weights leave 8 of 24 GB", "[footprint]") {
    // Llama 3.1 8B: 8,030,261,248 weights, 266,240 of them in norms.
    const nibble::model_shape llama{{{4096, 4096, 64}, {1024, 4096, 64}, {14336, 4096, 64}, {4096, 14336, 32}, {128256, 4096, 2}, {1, 266240, 1, false}}, 32, 8, 128};
    const std::uint64_t budget = nibble::budget_bytes(24, 8);
    CHECK(budget == 16000000000u);
    const auto total = [&](const char* name, const nibble::cache_shape& cache = {}) { return nibble::model_footprint(llama, name, cache).total(); };
    CHECK(total("fp16") == 2 * 8030261248u);
    CHECK(total("fp16") > budget);
    CHECK(total("int8_per_channel") < budget);
    CHECK(total("int4_g64") < budget);
    CHECK(total("nf4") < budget);
    CHECK(total("nf4") == 8029995008u / 2 + 8029995008u / 64 * 4 + 532480);
    // 131,072 bytes a token in fp16; 2 bits and a 16-bit scale and minimum for 32: 3/16 of that, and 128 tokens that stay.
    CHECK(total("nf4", {.tokens = 8192}) - total("nf4") == 8192u * 131072);
    CHECK(total("nf4", {.tokens = 8192, .sequences = 4, .format = "int2_min_g32", .residual = 128}) - total("nf4") == 4u * (8064u * 24576 + 128u * 131072));
    CHECK(total("nf4", {.tokens = 100, .format = "int2_min_g32", .residual = 128}) - total("nf4") == 100u * 131072);
    CHECK(nibble::budget_bytes(8, 24) == 0);
    CHECK(nibble::budget_bytes(1, 0, 1073741824.0) == 1073741824u);
}
