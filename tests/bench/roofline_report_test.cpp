// The JSON and the text of a run that is made up here.
#include "support/catch.hpp"

#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "../../bench/roofline/roofline_report.hpp"

namespace {

namespace rl = bench::roofline;

struct made_up {
    bench::environment where;
    rl::settings options;
    rl::results measured;

    made_up() {
        where.cpu = "Test CPU";
        where.isa = "avx2";
        where.commit = "abc";
        options.classes = {nibble::compute::a8};
        options.batches = {1, 512};
        options.threads = {1};
        options.residencies = {rl::residency::dram};
        options.shapes = {{4096, 4096}};
        measured.limits.read_gbytes_per_s = {{1, 10.0}, {2, 16.0}};
        measured.limits.cache_read_gbytes_per_s = {{1, 40.0}, {2, 60.0}};
        measured.limits.fill_gbytes_per_s = {{1, 8.0}, {2, 12.0}};
        measured.limits.f32_gflops = {{1, 100.0}, {2, 190.0}};
        measured.limits.int8_gops = {{1, 400.0}, {2, 760.0}};

        rl::row r;
        r.format = "q4_k";
        r.group = 32;
        r.scale = "two_level";
        r.offset = "minimum";
        r.compute = "a8";
        r.isa = "avx2";
        r.n = r.shape_n = r.k = 4096;
        r.m = 1;
        r.code = "int4";
        r.bits = 4;
        r.integer_sums = true;
        r.operations = 40e9;
        r.bytes = 5e9;
        r.seconds = {1.0, 0.5, 2.0};
        r.rel_l2_error = 0.004;
        measured.rows.push_back(r);
        r.kernel = rl::kernel::dequantize;
        r.compute = "none";
        r.m = 0;
        r.operations = 0.0;
        r.bytes = 4e9;
        r.seconds = {1.0};
        r.rel_l2_error = 0.0;
        measured.rows.push_back(r);
    }
    [[nodiscard]] nlohmann::ordered_json json() const {
        return nlohmann::ordered_json::parse(rl::json_text(where, options, measured));
    }
    [[nodiscard]] std::string text() const { return rl::table_text(where, options, measured); }
};

bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

}  // namespace

TEST_CASE("the JSON has a header and rows, and rows have exactly these keys") {
    const made_up m;
    const auto json = m.json();
    CHECK(json.size() == 2);
    const auto& header = json["header"];
    CHECK(header["schema"] == "nibble_roofline");
    CHECK(header["complete"] == true);
    CHECK(header["read_gbytes_per_s"]["2"] == 16.0);
    CHECK(header["cache_read_gbytes_per_s"]["1"] == 40.0);
    CHECK(header["f32_gflops"] == 100.0);
    CHECK(header["int8_gops"] == 400.0);
    CHECK(header["int8_gops_by_threads"]["2"] == 760.0);
    CHECK(header["cpu"]["model"] == "Test CPU");
    CHECK(header["commit"] == "abc");
    CHECK(header.contains("compiler"));

    const std::vector<std::string> expected = {"kernel", "format", "group", "scale", "offset", "compute", "isa", "n", "k", "m",
                                               "threads", "residency", "median_s", "min_s", "gflops", "gbytes_per_s",
                                               "fraction_of_bandwidth", "fraction_of_peak", "rel_l2_error"};
    REQUIRE(json["rows"].size() == 2);
    for (const auto& row : json["rows"]) {
        std::vector<std::string> keys;
        for (const auto& item : row.items()) keys.push_back(item.key());
        CHECK(keys == expected);
    }
    const auto& product = json["rows"][0];
    CHECK(product["kernel"] == "product");
    CHECK(product["residency"] == "dram");
    CHECK(product["median_s"] == 1.0);
    CHECK(product["min_s"] == 0.5);
    CHECK(product["gflops"] == 40.0);
    CHECK(product["gbytes_per_s"] == 5.0);
    CHECK(product["fraction_of_bandwidth"] == 0.5);
    CHECK(product["fraction_of_peak"] == Approx(0.1));  // of int8
    CHECK(product["rel_l2_error"] == 0.004);
    const auto& dequantize = json["rows"][1];
    CHECK(dequantize["gflops"] == nullptr);
    CHECK(dequantize["fraction_of_peak"] == nullptr);
    CHECK(dequantize["fraction_of_bandwidth"] == 0.5);  // of a fill
}

TEST_CASE("fractions are of the limit that fits the row") {
    made_up m;
    rl::row& r = m.measured.rows[0];
    r.integer_sums = false;
    r.residency = rl::residency::cache;
    CHECK(r.fraction_of_peak(m.measured.limits) == Approx(0.4));
    CHECK(r.fraction_of_bandwidth(m.measured.limits) == Approx(0.125));
    r.threads = 2;
    CHECK(r.fraction_of_peak(m.measured.limits) == Approx(40.0 / 190.0));
    r.threads = 3;
    CHECK(m.json()["rows"][0]["fraction_of_peak"] == nullptr);
}

TEST_CASE("a wrong answer shows no times anywhere") {
    made_up m;
    m.measured.rows[0].wrong = "relative error 1.00e+00, at most 1.00e-02 is allowed";
    m.measured.rows[0].rel_l2_error = 1.0;
    CHECK(m.measured.any_wrong());
    const auto row = m.json()["rows"][0];
    for (const char* key : {"median_s", "min_s", "gflops", "gbytes_per_s", "fraction_of_bandwidth", "fraction_of_peak"})
        CHECK(row[key] == nullptr);
    CHECK(row["rel_l2_error"] == 1.0);
    const std::string text = m.text();
    CHECK(has(text, "WRONG: product q4_k a8 4096x4096 M = 1, 1 threads, dram: relative error 1.00e+00"));
    CHECK(has(text, "  WRONG"));
}

TEST_CASE("the text has the limits, the products and the misses") {
    made_up m;
    std::string text = m.text();
    CHECK(has(text, "10.0 (1 thread), 16.0 (2 threads) GB/s read"));
    CHECK(has(text, "int8 peak   400 (1 thread), 760 (2 threads) GOP/s"));
    CHECK(has(text, "products 4096x4096, weights from memory, 1 thread"));
    CHECK(has(text, "50 % b"));
    CHECK(has(text, "0 of 2 targets are met; these rows miss one:"));
    CHECK(has(text, "M = 1, memory: integers of 2 to 8 bits"));
    CHECK(has(text, ">= 90.0 %"));
    CHECK_FALSE(has(text, "interrupted"));
    CHECK_FALSE(has(text, "beyond a limit"));

    m.measured.complete = false;
    m.measured.notes = {"no native Eigen"};
    m.measured.rows[0].seconds = {0.5};
    m.measured.rows[1].seconds = {0.5};
    text = m.text();
    CHECK(has(text, "interrupted"));
    CHECK(has(text, "note: no native Eigen"));
    CHECK(has(text, "\n2 of 2 targets are met\n"));
    CHECK(m.json()["header"]["complete"] == false);
}

TEST_CASE("rows beyond a limit say that the limits cannot be trusted") {
    made_up m;
    m.measured.rows[0].seconds = {0.4};  // 12.5 GB/s, and memory gave 10
    CHECK(has(m.text(), "note: 1 rows are beyond a limit"));
}
