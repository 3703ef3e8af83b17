// The safetensors writer: what it writes the strict reader takes, and a file is whole or not there.
#include "nibble/io/safetensors_writer.hpp"

#include "nibble/io/checkpoint.hpp"
#include "nibble/io/safetensors_shards.hpp"

#include <fstream>
#include <random>

#include "support/catch.hpp"
#include "support/scratch.hpp"

#if NIBBLE_HAS_MMAP
#include <sys/resource.h>

#include <csignal>
#endif

namespace {

namespace fs = std::filesystem;
namespace st = nibble::io::safetensors;
using nibble::errc;

[[nodiscard]] st::tensor_data make(const std::string& name, st::dtype type, std::vector<std::uint64_t> shape,
                                   unsigned seed = 1) {
    st::tensor_data t{name, type, std::move(shape), {}};
    std::uint64_t bits = st::bits_of(type);
    for (const std::uint64_t d : t.shape) bits *= d;
    t.bytes.resize(bits / 8);
    std::mt19937 random(seed);
    for (std::byte& b : t.bytes) b = static_cast<std::byte>(random() & 255u);
    return t;
}

[[nodiscard]] std::size_t entries(const fs::path& folder) {
    return static_cast<std::size_t>(std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

}  // namespace

TEST_CASE("the smallest file is the one of the format's description") {
    const scratch_dir folder;
    st::tensor_data t{"t", st::dtype::f32, {2}, {}};
    const float values[2] = {1.0f, -2.0f};
    t.bytes.resize(8);
    std::memcpy(t.bytes.data(), values, 8);
    REQUIRE(st::write(folder.path / "t", std::span(&t, 1)));
    const std::string text = R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
    std::string right = std::string(1, static_cast<char>(0x38)).append(7, '\0').append(text).append("  ");
    right.append(std::string("\x00\x00\x80\x3f\x00\x00\x00\xc0", 8));
    CHECK(slurp(folder.path / "t") == right);
}

TEST_CASE("every dtype, odd names and metadata come back as they were") {
    const scratch_dir folder;
    const fs::path path = folder.path / "all.safetensors";
    std::vector<st::tensor_data> tensors;
    unsigned seed = 0;
    for (const auto& d : st::detail::dtypes)
        tensors.push_back(make(std::string("x.").append(d.name), d.type, {3, 4, 2}, ++seed));
    tensors.push_back(make("scalar", st::dtype::f64, {}));
    tensors.push_back(make("empty", st::dtype::f32, {0, 5}));
    tensors.push_back(make("quote\" back\\slash \n tab\t \xc3\xa4", st::dtype::u8, {7}));
    tensors.push_back(make("", st::dtype::u8, {1}));
    const st::metadata_map metadata = {{"format", "pt"}, {"a \"b\"", "c\n\xe2\x82\xac"}};
    REQUIRE(st::write(path, tensors, metadata));
    const auto file = st::open(path);
    if (!file) FAIL(file.failure().message);
    CHECK(file.value().metadata() == metadata);
    CHECK(file.value().tensors().size() == tensors.size());
    CHECK(file.value().unused_bytes() == 0);
    CHECK(file.value().buffer_offset() % 8 == 0);
    for (const st::tensor_data& t : tensors) {
        INFO(t.name);
        const st::tensor* back = file.value().find(t.name);
        REQUIRE(back != nullptr);
        CHECK(back->type == t.type);
        CHECK(back->shape == t.shape);
        CHECK(std::equal(back->bytes.begin(), back->bytes.end(), t.bytes.begin(), t.bytes.end()));
    }
    // Written again from the views of the file: the same bytes.
    REQUIRE(st::write(folder.path / "again", std::span(file.value().tensors()), metadata));
    CHECK(slurp(folder.path / "again") == slurp(path));
    CHECK(entries(folder.path) == 2);
}

TEST_CASE("tensors are aligned for their type") {
    const scratch_dir folder;
    std::vector<st::tensor_data> tensors = {make("a", st::dtype::u8, {3}), make("b", st::dtype::f64, {1}), make("c", st::dtype::f16, {3}),
                                            make("d", st::dtype::f32, {5})};
    REQUIRE(st::write(folder.path / "f", tensors));
    const auto file = st::open(folder.path / "f");
    for (const st::tensor& t : file.value().tensors()) CHECK(t.offset % (st::bits_of(t.type) / 8) == 0);
}

TEST_CASE("what cannot be written is refused, and nothing is touched") {
    const scratch_dir folder;
    const fs::path path = folder.path / "f";
    const auto refused = [&](std::vector<st::tensor_data> tensors, errc code, const st::metadata_map& metadata = {}) {
        const nibble::status s = st::write(path, tensors, metadata);
        INFO(s.message());
        CHECK(s.code() == code);
        CHECK(entries(folder.path) == 0);
    };
    refused({make("a", st::dtype::u8, {1}), make("b", st::dtype::u8, {1}), make("a", st::dtype::f32, {1})},
            errc::invalid_argument);
    refused({make("__metadata__", st::dtype::u8, {1})}, errc::invalid_argument);
    refused({make("\xff\xfe", st::dtype::u8, {1})}, errc::invalid_argument);
    refused({make("a", st::dtype::u8, {1})}, errc::invalid_argument, {{"k", "\xc3"}});
    st::tensor_data t = make("a", st::dtype::f32, {2, 3});
    t.bytes.pop_back();
    refused({t}, errc::shape_mismatch);
    t = make("a", st::dtype::f32, {2, 3});
    t.shape = {std::uint64_t{1} << 62, 8};  // bytes wrap to 0
    t.bytes.clear();
    refused({t}, errc::out_of_range);
    t = make("a", st::dtype::f4, {2});
    t.shape = {1};
    refused({t}, errc::invalid_argument);
    t = make("a", st::dtype::u8, {1});
    t.shape.assign(65, 1);
    refused({t}, errc::invalid_argument);
}

TEST_CASE("a failure leaves the old file and nothing else") {
    const scratch_dir folder;
    const fs::path path = folder.path / "f";
    const std::vector<st::tensor_data> first = {make("a", st::dtype::u8, {100})};
    const std::vector<st::tensor_data> second = {make("b", st::dtype::u8, {100000})};
    REQUIRE(st::write(path, first));
    const std::string before = slurp(path);

    SECTION("a folder in the way of the rename") {
        fs::create_directory(folder.path / "folder");
        std::ofstream(folder.path / "folder" / "x") << "x";
        CHECK(st::write(folder.path / "folder", second).code() == errc::io);
        CHECK(entries(folder.path) == 2);
    }
    SECTION("no such folder") {
        CHECK(!st::write(folder.path / "missing" / "f", second));
        CHECK(entries(folder.path) == 1);
    }
#if NIBBLE_HAS_MMAP
    SECTION("no room for all of it") {
        rlimit old{};
        REQUIRE(getrlimit(RLIMIT_FSIZE, &old) == 0);
        const auto handler = std::signal(SIGXFSZ, SIG_IGN);
        rlimit small = old;
        small.rlim_cur = 5000;
        REQUIRE(setrlimit(RLIMIT_FSIZE, &small) == 0);
        const nibble::status s = st::write(path, second);
        REQUIRE(setrlimit(RLIMIT_FSIZE, &old) == 0);
        std::signal(SIGXFSZ, handler);
        CHECK(s.code() == errc::io);
        CHECK(s.message().find("cannot write") != std::string::npos);
        CHECK(entries(folder.path) == 1);
    }
#endif
    CHECK(slurp(path) == before);
    REQUIRE(st::write(path, second));
    CHECK(slurp(path) != before);
    CHECK(entries(folder.path) >= 1);
}

TEST_CASE("a set of shards") {
    const scratch_dir folder;
    const std::vector<st::tensor_data> owned = {make("b", st::dtype::f32, {10}, 1), make("a", st::dtype::u8, {60}, 2),
                                                make("large", st::dtype::f64, {50}, 3), make("c \"quoted\"", st::dtype::u8, {7}, 4)};
    std::vector<st::tensor> tensors;
    for (const auto& t : owned) tensors.push_back(t.view());
    REQUIRE(st::write_shards(folder.path, tensors, {.shard_bytes = 100}));
    CHECK(entries(folder.path) == 4);
    const auto first = st::open(folder.path / "model-00001-of-00003.safetensors");
    CHECK(first.value().tensors().size() == 2);
    const auto index = nlohmann::json::parse(slurp(folder.path / "model.safetensors.index.json"));
    CHECK(index["metadata"]["total_size"] == 40 + 60 + 400 + 7);
    CHECK(index["weight_map"].size() == 4);
    CHECK(index["weight_map"]["large"] == "model-00002-of-00003.safetensors");
    const auto check = [&] {
        const auto model = nibble::io::open_checkpoint(folder.path);
        if (!model) FAIL(model.failure().message);
        for (const auto& t : owned) {
            const st::tensor* back = model.value().find(t.name);
            REQUIRE(back != nullptr);
            CHECK(std::equal(back->bytes.begin(), back->bytes.end(), t.bytes.begin(), t.bytes.end()));
        }
    };
    check();

    // A new set beside the old one: its shards have names of their own until the index names them.
    const std::string before = slurp(folder.path / "model-00001-of-00003.safetensors");
    SECTION("it takes the place of the old one") {
        std::swap(tensors[0], tensors[3]);
        REQUIRE(st::write_shards(folder.path, tensors, {.shard_bytes = 100}));
        CHECK(slurp(folder.path / "model-00001-of-00003.safetensors") == before);
        CHECK(fs::exists(folder.path / "model-1-00003-of-00003.safetensors"));
    }
    SECTION("or fails in the last shard, or in the index, and leaves nothing") {
        std::vector<st::tensor> bad = tensors;
        bad.back().shape = {8};
        CHECK(st::write_shards(folder.path, bad, {.shard_bytes = 100}).code() == errc::shape_mismatch);
        bad = tensors;
        bad.back().name = "a";
        CHECK(st::write_shards(folder.path, bad, {.shard_bytes = 100}).message().find("\"a\" is given twice") != std::string::npos);
        fs::create_directory(folder.path / "other.safetensors.index.json");
        CHECK(st::write_shards(folder.path, tensors, {.shard_bytes = 100, .stem = "other"}).code() == errc::io);
        fs::remove(folder.path / "other.safetensors.index.json");
        CHECK(st::write_shards(folder.path, tensors, {.stem = "../x"}).code() == errc::invalid_argument);
        CHECK(st::write_shards(folder.path / "missing", tensors).code() == errc::not_found);
        CHECK(entries(folder.path) == 4);
        CHECK(slurp(folder.path / "model-00001-of-00003.safetensors") == before);
    }
    SECTION("a file that would be loaded in its place") {
        std::ofstream(folder.path / "model.safetensors") << "x";
        CHECK(st::write_shards(folder.path, tensors).code() == errc::invalid_argument);
        fs::remove(folder.path / "model.safetensors");
    }
    check();
}

TEST_CASE("a set without tensors is one shard") {
    const scratch_dir folder;
    REQUIRE(st::write_shards(folder.path, {}));
    const auto model = nibble::io::open_checkpoint(folder.path);
    CHECK(model.value().tensors().empty());
}
