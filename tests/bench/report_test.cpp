// What the report says about results that are made up here.
#include "support/catch.hpp"

#include <algorithm>
#include <iterator>
#include <limits>
#include <set>
#include <sstream>

#include <nlohmann/json.hpp>

#include "../../bench/report.hpp"

namespace {

constexpr double exact = std::numeric_limits<double>::infinity();

struct made_up {
    bench::environment where;
    bench::dataset data;
    bench::settings options;
    bench::results measured;

    made_up() {
        where.cpu = "Test CPU";
        where.cpu_flags = {"avx2"};
        data.description = "a model";
        data.files = {"a.safetensors"};
        data.layers.resize(2);
        for (bench::layer& l : data.layers) {
            l.weights.resize(4, 8);
            l.activations.resize(8, 3);
        }
        options.batches = {1, 16};
        add("f32 (Eigen, AVX2)", 32.0, exact, 1.0).baseline = true;
        add("int8", 8.0, 40.0, 2.0);
        add("q6_k", 6.5, 36.0, 4.0);
        add("q4_k", 4.5, 24.0, 8.0);
        add("nf4", 4.5, 23.0, 8.0);
        add("fp16", 16.0, exact, 1.0);
        measured.rounds = 3;
        bench::rank(measured.rows);
    }
    bench::row& add(const char* name, double bits, double db, double speed) {
        bench::row r;
        r.name = name;
        r.bits_per_weight = bits;
        r.bytes = bits * 100.0;
        r.weight_sqnr_db = r.output_sqnr_db = db;
        r.products.resize(2);
        for (bench::samples& time : r.products) time.cpu_ms = time.wall_ms = {10.0 / speed, 10.0 / speed, 10.0 / speed};
        r.quantize.cpu_ms = r.quantize.wall_ms = {2.0};
        r.quantize_bytes = 1e6;
        measured.rows.push_back(std::move(r));
        return measured.rows.back();
    }
    [[nodiscard]] bench::row& operator[](const std::string& name) {
        for (bench::row& r : measured.rows)
            if (r.name == name) return r;
        FAIL("no row " << name);
        return measured.rows.front();
    }
    [[nodiscard]] bench::report report() const { return {where, data, options, measured}; }
};

std::string line_with(const std::string& text, const std::string& start) {
    const std::size_t at = text.find(std::string("\n").append(start).append(" "));
    return at == std::string::npos ? "" : text.substr(at + 1, text.find('\n', at + 1) - at - 1);
}

std::vector<std::string> lines_of(const std::string& text) {
    std::vector<std::string> lines;
    for (std::size_t at = 0; at < text.size();) {
        const std::size_t end = text.find('\n', at);
        lines.push_back(text.substr(at, end - at));
        at = end + 1;
    }
    return lines;
}

}  // namespace

TEST_CASE("the table has a line for each row, names what beats it, and ends with the advice") {
    const made_up m;
    const std::string text = bench::table_text(m.report());
    CHECK(line_with(text, "q4_k").find("x8.00") != std::string::npos);
    CHECK(line_with(text, "nf4").find("q4_k") != std::string::npos);
    CHECK(line_with(text, "fp16").find("exact") != std::string::npos);
    CHECK(text.find("WRONG") == std::string::npos);
    CHECK(text.find("\nTake q6_k ") != std::string::npos);
    CHECK(lines_of(text).back().ends_with("."));
    for (const std::string& line : lines_of(text)) CHECK(line.size() <= 140);
    CHECK(text.find('\x1b') == std::string::npos);  // no colors
}

TEST_CASE("a wrong product is printed in place of its times") {
    made_up m;
    m["q4_k"].wrong = "attn_q: relative error 1";
    m["q4_k"].products.clear();
    m["q4_k"].quantize = {};
    bench::rank(m.measured.rows);
    CHECK(m.measured.any_wrong());
    const std::string text = bench::table_text(m.report());
    CHECK(line_with(text, "q4_k").find("WRONG") != std::string::npos);
    CHECK(text.find("WRONG: q4_k disagrees with the reference in double: attn_q: relative error 1") !=
          std::string::npos);
    CHECK(bench::advice(m.report()).find("q4_k") == std::string::npos);
    CHECK(bench::csv_text(m.report()).find("q4_k,wrong,") != std::string::npos);
    const auto json = nlohmann::json::parse(bench::json_text(m.report()));
    for (const auto& row : json["rows"])
        if (row["format"] == "q4_k") {
            CHECK(row["status"] == "wrong");
            CHECK_FALSE(row.contains("products"));
        }
}

TEST_CASE("the advice takes the smallest that is nearly lossless and the most exact small one") {
    made_up m;
    const std::string text = bench::advice(m.report());
    CHECK(text.find("Take q6_k ") == 0);
    CHECK(text.find("take q4_k ") != std::string::npos);
    CHECK(text.find("a model") != std::string::npos);
    CHECK(text.find("Test CPU") != std::string::npos);
    CHECK(text.find("real activations") != std::string::npos);

    m.data.synthetic_activations = true;
    CHECK(bench::advice(m.report()).find("synthetic") != std::string::npos);

    m["q4_k"].output_sqnr_db = 31.0;  // one format for both
    bench::rank(m.measured.rows);
    CHECK(bench::advice(m.report()).find("Take q4_k ") == 0);
    CHECK(bench::advice(m.report()).find("take ") == std::string::npos);

    for (bench::row& r : m.measured.rows) r.output_sqnr_db = 3.0;
    for (bench::row& r : m.measured.rows) r.bits_per_weight = 5.0;
    CHECK(bench::advice(m.report()).find("No format compared can be recommended") == 0);
}

TEST_CASE("CSV has one line for each row and the same number of fields in each") {
    made_up m;
    m["nf4"].failed = "too large, sadly";
    bench::rank(m.measured.rows);
    const auto lines = lines_of(bench::csv_text(m.report()));
    REQUIRE(lines.size() == 1 + m.measured.rows.size());
    CHECK(lines[0] ==
          "format,status,bits_per_weight,bytes,weight_sqnr_db,output_sqnr_db,max_weight_error,max_output_error,strict_"
          "columns,"
          "m1_ms,m1_times_eigen,m16_ms,m16_times_eigen,quantize_mb_per_s,beaten_by");
    CHECK(lines[1].starts_with("\"f32 (Eigen, AVX2)\",ok,32,3200,inf,inf,0,0,0,10,1,10,1,,"));
    const auto fields = [](const std::string& line) { return std::count(line.begin(), line.end(), ','); };
    for (std::size_t i = 2; i < lines.size(); ++i) CHECK(fields(lines[i]) == fields(lines[0]));
    CHECK(lines.back() == "nf4,failed,,,,,,,,,,,,,");
}

TEST_CASE("JSON has a schema with a version, every sample and every option") {
    const made_up m;
    const auto json = nlohmann::json::parse(bench::json_text(m.report()));
    CHECK(json["schema"] == "nibble_bench");
    CHECK(json["schema_version"] == bench::json_schema_version);
    CHECK(json["complete"] == true);
    CHECK(json["cpu"]["model"] == "Test CPU");
    CHECK(json["cpu"]["flags"] == nlohmann::json({"avx2"}));
    for (const char* key : {"nibble", "compiler", "eigen", "data", "options", "timing", "rows", "advice"})
        CHECK(json.contains(key));
    CHECK(json["options"]["batches"] == nlohmann::json({1, 16}));
    CHECK(json["data"]["activations"] == "real");
    CHECK(json["data"]["layers"].size() == 2);
    REQUIRE(json["rows"].size() == m.measured.rows.size());
    const auto& q6 = json["rows"][3];
    CHECK(q6["format"] == "q6_k");
    CHECK(q6["status"] == "ok");
    CHECK(q6["beaten_by"] == nullptr);
    CHECK(q6["output_sqnr_db"] == 36.0);
    CHECK(q6["products"][1]["batch"] == 16);
    CHECK(q6["products"][1]["times_eigen"] == 4.0);
    CHECK(q6["products"][1]["cpu_ms"].size() == 3);
    CHECK(q6["products"][1]["wall_ms"].size() == 3);
    CHECK(q6["quantize"]["mb_per_s"] == Approx(500.0));
    CHECK(json["rows"][1]["format"] == "fp16");
    CHECK(json["rows"][1]["output_sqnr_db"] == nullptr);  // exact: JSON has no infinity
}

TEST_CASE("columns that went to strict_f32 are reported, an interruption is, too") {
    made_up m;
    CHECK(bench::table_text(m.report()).find("strict_f32") == std::string::npos);
    m["q4_k"].strict_columns = 5;
    m["q4_k"].columns = 384;
    m.measured.complete = false;
    const std::string text = bench::table_text(m.report());
    CHECK(text.find("q4_k 5 of 384") != std::string::npos);
    CHECK(text.find("interrupted after 3 rounds") != std::string::npos);
}

TEST_CASE("the list has every recipe and every code format") {
    const std::string text = bench::list_text();
    const auto has_line = [&text](const char* name) { return !line_with(text, name).empty(); };
    std::istringstream words(bench::known_formats());
    const std::set<std::string> known{std::istream_iterator<std::string>(words), {}};
    for (const nibble::recipe& r : nibble::recipes()) {
        CAPTURE(r.name);
        CHECK(has_line(r.name));
        CHECK(text.find(r.use_when) != std::string::npos);
        CHECK(known.count(r.name) == 1);
    }
    for (const nibble::code_format* f : nibble::formats()) {
        CAPTURE(f->name);
        CHECK(has_line(f->name));
        CHECK(text.find(f->use_when) != std::string::npos);
        CHECK(known.count(f->name) == 1);
    }
}
