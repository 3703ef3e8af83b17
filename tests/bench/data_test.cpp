// Loading weights: the data that come with the program, and files that are wrong in every way.
#include "support/catch.hpp"

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <random>

#include "../../bench/data.hpp"

namespace {

namespace fs = std::filesystem;

// A directory that goes away.
struct temporary_directory {
    fs::path path = fs::temp_directory_path() / (std::string("nibble_bench_") + std::to_string(std::random_device{}()));
    temporary_directory() { fs::create_directory(path); }
    ~temporary_directory() { fs::remove_all(path); }
    temporary_directory(const temporary_directory&) = delete;
    temporary_directory& operator=(const temporary_directory&) = delete;
};

void write(const fs::path& path, const std::string& json, const std::vector<float>& values) {
    std::ofstream file(path, std::ios::binary);
    const std::uint64_t length = json.size();
    file.write(reinterpret_cast<const char*>(&length), sizeof length);
    file << json;
    file.write(reinterpret_cast<const char*>(values.data()),
               static_cast<std::streamsize>(values.size() * sizeof(float)));
}

// "name":{...}, of floats first to last.
std::string entry(const std::string& name, const std::string& shape, int first, int last) {
    std::string out = "\"";
    out.append(name).append("\":{\"dtype\":\"F32\",\"shape\":").append(shape).append(",\"data_offsets\":[");
    out.append(std::to_string(4 * first)).append(",").append(std::to_string(4 * last)).append("]}");
    return out;
}

std::string header(std::initializer_list<std::string> entries) {
    std::string out = "{";
    for (const std::string& e : entries) out.append(out.size() == 1 ? "" : ",").append(e);
    return out.append("}");
}

template <class Function>
std::string message_of(Function f) {
    try {
        f();
    } catch (const bench::bad_input& e) {
        return e.what();
    }
    return "(no error)";
}

bool contains(const std::string& text, const std::string& part) {
    INFO(text);
    CHECK(text.find(part) != std::string::npos);
    return text.find(part) != std::string::npos;
}

}  // namespace

TEST_CASE("the data of the comparison are whole") {
    const bench::dataset data = bench::load_directory(NIBBLE_BENCH_DATA_DIR, "mini");
    CHECK(data.description == "mini");
    CHECK_FALSE(data.synthetic_activations);
    REQUIRE(data.layers.size() == 3);
    CHECK(data.weight_count() == 384.0 * 384.0 + 2.0 * 384.0 * 1536.0);
    CHECK(data.token_count() == 128);
    for (const bench::layer& l : data.layers) {
        CAPTURE(l.name);
        CHECK((l.name == "attn_q" || l.name == "ffn_up" || l.name == "ffn_down"));
        CHECK(l.activations.rows() == l.weights.cols());
        CHECK(l.activations.cols() == 128);
    }
    // Numbers of bench/data/README.md's source: the outliers are where they should be.
    for (const bench::layer& l : data.layers) {
        if (l.name != "ffn_down") continue;
        CHECK(l.weights.rows() == 384);
        CHECK(l.weights.cwiseAbs().maxCoeff() == Approx(3.4766).epsilon(1e-4));
        CHECK(l.activations.cwiseAbs().maxCoeff() == Approx(13.711).epsilon(1e-4));
        Eigen::Index channel = 0;
        l.activations.cwiseAbs().rowwise().maxCoeff().maxCoeff(&channel);
        CHECK(channel == 358);
    }
}

TEST_CASE("a weight and its activations, in the layout of the file") {
    const temporary_directory d;
    const fs::path path = d.path / "a.safetensors";
    write(path,
          header(
              {entry("l.weight", "[2,3]", 0, 6), entry("l.eval_input", "[1,3]", 6, 9), entry("other", "[4,3]", 9, 21)}),
          {1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1});
    const bench::dataset data = bench::load_file({path, "", ""});
    REQUIRE(data.layers.size() == 1);
    CHECK(data.layers[0].name == "l");
    CHECK(data.layers[0].weights(0, 2) == 3.0f);
    CHECK(data.layers[0].weights(1, 0) == 4.0f);
    CHECK(data.layers[0].activations.rows() == 3);
    CHECK(data.layers[0].activations(2, 0) == 9.0f);

    const bench::dataset chosen = bench::load_file({path, "l.weight", "other"});
    CHECK(chosen.layers[0].activations.cols() == 4);
    CHECK(chosen.layers[0].activations(2, 3) == 1.0f);
    CHECK_FALSE(chosen.synthetic_activations);

    const bench::dataset alone = bench::load_file({path, "other", ""});
    CHECK(alone.synthetic_activations);
    CHECK(alone.layers[0].activations.rows() == 3);

    contains(message_of([&] {
                 static_cast<void>(bench::load_file({path, "l.wait", ""}));
             }),
             "no tensor \"l.wait\"; nearest");
    contains(message_of([&] {
                 static_cast<void>(bench::load_file({path, "l.weight", "nope"}));
             }),
             "no tensor \"nope\"");
}

TEST_CASE("files that are missing, damaged or of the wrong shape are named, with what was expected and found") {
    const temporary_directory d;
    const fs::path path = d.path / "a.safetensors";
    const auto load = [&] { return message_of([&] { static_cast<void>(bench::load_directory(d.path, "")); }); };
    SECTION("no directory") {
        const std::string text = message_of([&] { static_cast<void>(bench::load_directory(d.path / "none", "")); });
        contains(text, (d.path / "none").string());
        contains(text, "expected a directory");
    }
    SECTION("no files") { contains(load(), "expected *.safetensors files, found none"); }
    SECTION("no file") {
        contains(message_of([&] {
                     static_cast<void>(bench::load_file({path, "", ""}));
                 }),
                 "expected a safetensors file: cannot open \"" + path.string() + "\"");
    }
    SECTION("cut off") {
        write(path, header({entry("l.weight", "[2,3]", 0, 6)}), {1, 2, 3});
        contains(load(), "expected a safetensors file: \"" + path.string() + "\"");
        contains(load(), "(at byte ");
    }
    SECTION("not safetensors") {
        std::ofstream(path) << "hello";
        contains(load(), "the file has 5 bytes (at byte 5)");
    }
    SECTION("no pair") {
        write(path, header({entry("l.weight", "[2,3]", 0, 6)}), {1, 2, 3, 4, 5, 6});
        contains(load(),
                 "expected tensors NAME.weight [out, in] with NAME.eval_input [tokens, in], found no such pair");
        contains(message_of([&] {
                     static_cast<void>(bench::load_file({path, "", ""}));
                 }),
                 "found no such pair in 1 tensors");
    }
    SECTION("activations of another width") {
        write(path, header({entry("l.weight", "[2,3]", 0, 6), entry("l.eval_input", "[1,2]", 6, 8)}),
              {1, 2, 3, 4, 5, 6, 7, 8});
        contains(
            load(),
            "activations \"l.eval_input\" must be [tokens, 3] to go with \"l.weight\" F32 [2, 3], found F32 [1, 2]");
    }
    SECTION("one dimension") {
        write(path, header({entry("l.weight", "[6]", 0, 6), entry("l.eval_input", "[1,2]", 6, 8)}),
              {1, 2, 3, 4, 5, 6, 7, 8});
        contains(load(), "must have two dimensions [out, in], found F32 [6]");
    }
    SECTION("empty") {
        write(path, header({entry("l.weight", "[0,2]", 0, 0), entry("l.eval_input", "[1,2]", 0, 2)}), {1, 2});
        contains(load(), "is empty: F32 [0, 2]");
    }
    SECTION("not finite") {
        write(path, header({entry("l.weight", "[1,2]", 0, 2), entry("l.eval_input", "[1,2]", 2, 4)}),
              {1, std::numeric_limits<float>::infinity(), 3, 4});
        contains(load(), "must be finite, element 1 is inf");
    }
}

TEST_CASE("random matrices are the same each time, and normal") {
    const bench::row_matrix a = bench::normal_matrix(64, 64, 2.0f, 5);
    CHECK(a == bench::normal_matrix(64, 64, 2.0f, 5));
    CHECK(a != bench::normal_matrix(64, 64, 2.0f, 6));
    CHECK(std::abs(a.mean()) < 0.2f);
    CHECK(a.norm() / 64.0f == Approx(2.0f).epsilon(0.1));
}
