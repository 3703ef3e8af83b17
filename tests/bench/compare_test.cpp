// Order and dominance of the rows, and one small comparison from end to end.
#include "support/catch.hpp"

#include <cmath>
#include <limits>

#include "../../bench/compare.hpp"

namespace {

bench::row row_of(const char* name, double bits, double output_sqnr_db) {
    bench::row r;
    r.name = name;
    r.bits_per_weight = bits;
    r.bytes = bits * 1000.0;
    r.output_sqnr_db = output_sqnr_db;
    return r;
}

const bench::row& named(const std::vector<bench::row>& rows, const std::string& name) {
    for (const bench::row& r : rows)
        if (r.name == name) return r;
    FAIL("no row " << name);
    return rows.front();
}

}  // namespace

TEST_CASE("a format that another one beats on size and error is marked with its name") {
    bench::row eigen = row_of("f32 (Eigen)", 32.0, std::numeric_limits<double>::infinity());
    eigen.baseline = true;
    std::vector<bench::row> rows = {row_of("small", 4.0, 20.0),
                                    row_of("larger, worse", 4.5, 19.0),
                                    row_of("same size, worse", 4.0, 19.9),
                                    row_of("large", 8.0, 40.0),
                                    row_of("same error, larger", 8.5, 40.0),
                                    eigen,
                                    row_of("twin", 4.0, 20.0),
                                    row_of("worst", 9.0, 10.0)};
    bench::rank(rows);
    CHECK(named(rows, "small").beaten_by.empty());
    CHECK(named(rows, "twin").beaten_by.empty());  // equals do not beat each other
    CHECK(named(rows, "large").beaten_by.empty());
    CHECK(named(rows, "f32 (Eigen)").beaten_by.empty());
    CHECK_FALSE(named(rows, "larger, worse").beaten_by.empty());
    CHECK_FALSE(named(rows, "same size, worse").beaten_by.empty());
    CHECK(named(rows, "same error, larger").beaten_by == "large");
    CHECK(named(rows, "worst").beaten_by == "large");  // the most exact of those that beat it

    CHECK(rows.front().name == "f32 (Eigen)");
    for (std::size_t i = 2; i < rows.size(); ++i) CHECK(rows[i - 1].bits_per_weight >= rows[i].bits_per_weight);
}

TEST_CASE("an exact format beats a larger exact one") {
    constexpr double exact = std::numeric_limits<double>::infinity();
    std::vector<bench::row> rows = {row_of("fp16", 16.0, exact), row_of("wide", 24.0, exact)};
    bench::rank(rows);
    CHECK(named(rows, "wide").beaten_by == "fp16");
    CHECK(named(rows, "fp16").beaten_by.empty());
}

TEST_CASE("wrong and failed formats neither beat nor are beaten") {
    bench::row wrong = row_of("wrong", 2.0, 90.0);
    wrong.wrong = "attn_q";
    bench::row failed = row_of("failed", 2.0, 90.0);
    failed.failed = "scale too large";
    bench::row bad = row_of("bad", 8.0, 1.0);
    bad.wrong = "attn_q";
    std::vector<bench::row> rows = {wrong, failed, bad, row_of("good", 4.0, 20.0)};
    bench::rank(rows);
    for (const bench::row& r : rows) CHECK(r.beaten_by.empty());
    CHECK(rows.back().name == "failed");
}

TEST_CASE("a comparison measures what it says") {
    bench::dataset data;
    data.description = "test";
    for (const unsigned seed : {1u, 2u}) {
        bench::layer l;
        l.name = "layer" + std::to_string(seed);
        l.weights = bench::normal_matrix(48, 128, seed == 1 ? 1.0f : 0.1f, seed);
        l.activations = bench::normal_matrix(9, 128, 1.0f, seed + 10).transpose();
        data.layers.push_back(l);
    }
    bench::settings s;
    s.formats = {nibble::find_recipe("q4_0"), nibble::find_recipe("fp16")};
    s.rows = 64;
    s.cols = 96;
    s.batches = {1, 5};
    s.quick = true;
    bench::progress shown;
    const bench::results out = bench::compare_formats(data, s, shown);

    CHECK(out.complete);
    CHECK(out.rounds == 2);
    CHECK_FALSE(out.any_wrong());
    const bench::row* r = out.find("q4_0");
    REQUIRE(r != nullptr);
    CHECK(r->bits_per_weight == 4.5);
    CHECK(r->bytes == 2 * 48 * 128 * 4.5 / 8.0);
    CHECK(r->columns == 18);
    CHECK(r->strict_columns == 0);
    REQUIRE(r->products.size() == 2);
    for (const bench::samples& time : r->products) {
        REQUIRE(time.cpu_ms.size() == 2);
        REQUIRE(time.wall_ms.size() == 2);
        CHECK(time.median() > 0.0);
    }
    CHECK(r->quantize.cpu_ms.size() == 2);
    CHECK(r->quantize_mb_per_s() > 0.0);
    CHECK(out.eigen().products.size() == 2);
    CHECK(out.find("nope") == nullptr);

    // Sums of squares over both layers, recomputed.
    double signal = 0.0, noise = 0.0, output_signal = 0.0, output_noise = 0.0, largest = 0.0;
    for (const bench::layer& l : data.layers) {
        const nibble::qmatrix q = nibble::quantize(l.weights, nibble::make_plan(*nibble::find_recipe("q4_0")));
        const Eigen::MatrixXd w = l.weights.cast<double>();
        const Eigen::MatrixXd got = nibble::dequantize(q).cast<double>();
        const Eigen::MatrixXd x = l.activations.cast<double>();
        signal += w.squaredNorm();
        noise += (got - w).squaredNorm();
        largest = (std::max)(largest, (got - w).cwiseAbs().maxCoeff());
        output_signal += (w * x).squaredNorm();
        output_noise += ((got - w) * x).squaredNorm();
    }
    CHECK(r->weight_sqnr_db == Approx(10.0 * std::log10(signal / noise)).epsilon(1e-9));
    CHECK(r->output_sqnr_db == Approx(10.0 * std::log10(output_signal / output_noise)).epsilon(1e-4));
    CHECK(r->max_weight_error == largest);
}

TEST_CASE("weights that a format cannot hold cost that format only") {
    bench::dataset data;
    bench::layer l;
    l.name = "huge";
    l.weights = bench::row_matrix::Constant(16, 32, 1e30f);  // no fp16 scale reaches that
    l.activations = Eigen::MatrixXf::Ones(32, 2);
    data.layers.push_back(l);
    bench::settings s;
    s.formats = {nibble::find_recipe("q4_0"), nibble::find_recipe("int8_per_channel")};
    s.rows = s.cols = 32;
    s.batches = {1};
    s.quick = true;
    bench::progress shown;
    const bench::results out = bench::compare_formats(data, s, shown);
    REQUIRE(out.find("q4_0") != nullptr);
    CHECK(out.find("q4_0")->failed.find("huge") != std::string::npos);
    CHECK(out.find("int8_per_channel")->failed.empty());
    CHECK_FALSE(out.any_wrong());
}

TEST_CASE("memory is known before it is used") {
    bench::settings s;
    s.formats = {nibble::find_recipe("int8_per_channel")};
    const double bytes = bench::timing_memory(s);
    CHECK(bytes > 4096.0 * 4096.0 * 9.0);
    CHECK(bytes < 4096.0 * 4096.0 * 11.0);
}
