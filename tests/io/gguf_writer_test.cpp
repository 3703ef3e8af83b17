// The GGUF writer: byte for byte what gguf's own writer makes, read back by the reader, and atomic.
#include "support/failing_system.hpp"

#include <nibble/io/gguf.hpp>
#include <nibble/io/gguf_writer.hpp>
#include <nibble/quantize.hpp>

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/gguf_bytes.hpp"
#include "support/inspect.hpp"
#include "support/reference_quantizers.hpp"
#include "support/scratch.hpp"

namespace fs = std::filesystem;
namespace gguf = nibble::io::gguf;
namespace ggml = nibble::io::ggml;
using gguf::value_type;
using nibble::errc;

namespace {

[[nodiscard]] bool contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}
[[nodiscard]] std::span<const std::byte> bytes_of(std::string_view text) {
    return std::as_bytes(std::span<const char>(text));
}
[[nodiscard]] fs::path golden_path(const std::string& stem) {
    return fs::path(NIBBLE_TEST_DATA_DIR) / "gguf" / (stem + ".gguf");
}

// Everything of a file, set and declared again.
void declare(gguf::writer& out, const gguf::file& file) {
    for (const gguf::metadata_entry& e : file.metadata()) out.set(e.key, e.value).or_throw();
    for (const gguf::tensor& t : file.tensors()) out.add_tensor(t.name, t.type, t.shape()).or_throw();
}

[[nodiscard]] nibble::qmatrix quantized(const std::vector<float>& w, nibble::index rows, const char* recipe) {
    return nibble::quantize(nibble::row_major(w.data(), rows, static_cast<nibble::index>(w.size()) / rows),
                            nibble::make_plan(*nibble::find_recipe(recipe)));
}

}  // namespace

TEST_CASE("gguf writer: copies of files are those files, byte for byte", "[io][gguf]") {
    const scratch_dir dir;
    const fs::path path = dir.path / "copy.gguf";
    for (const char* stem : {"default_alignment", "alignment_64"}) {
        INFO(stem);
        const auto opened = gguf::open(golden_path(stem));
        const gguf::file& file = opened.value();
        for (const std::size_t piece : {std::size_t{1} << 20, std::size_t{7}}) {  // whole tensors, and pieces of seven bytes
            gguf::writer out;
            declare(out, file);
            CHECK(out.create(path));
            for (const gguf::tensor& t : file.tensors())
                for (std::size_t at = 0; at < t.bytes.size(); at += piece)
                    CHECK(out.write(t.bytes.subspan(at, (std::min)(piece, t.bytes.size() - at))));
            CHECK(out.finish());
            CHECK(slurp(path) == slurp(golden_path(stem)));
        }
    }
}

TEST_CASE("gguf writer: metadata of every type comes back", "[io][gguf]") {
    const scratch_dir dir;
    const fs::path path = dir.path / "metadata.gguf";
    gguf::writer out;
    CHECK(out.set("u8", std::uint8_t{250}));
    CHECK(out.set("i8", std::int8_t{-100}));
    CHECK(out.set("u16", std::uint16_t{65000}));
    CHECK(out.set("i16", std::int16_t{-32000}));
    CHECK(out.set("u32", 4000000000u));
    CHECK(out.set("i32", -2000000000));
    CHECK(out.set("u64", 9223372036854775813ull));
    CHECK(out.set("i64", std::int64_t{-4611686018427387904}));
    CHECK(out.set("f32", 0.15625f));
    CHECK(out.set("f64", 0.1));
    CHECK(out.set("bool", true));
    CHECK(out.set("text", "literal"));
    CHECK(out.set("string", std::string("a\0b", 3)));
    CHECK(out.set("numbers", std::vector<std::int32_t>{1, -2, 3}));
    CHECK(out.set("texts", std::vector<std::string>{"a", "", "longer"}));
    CHECK(out.set("views", std::vector<std::string_view>{"x"}));
    const bool bools[] = {true, false};
    CHECK(out.set("bools", std::span<const bool>(bools)));
    const std::string nested = gguf_bytes::array(9, 1, gguf_bytes::array(8, 1, gguf_bytes::text("in")));
    CHECK(out.set("nested", gguf::value(value_type::array, bytes_of(nested))));
    CHECK(out.create(path));
    CHECK(out.finish());

    const auto read = gguf::open(path);
    const gguf::file& file = read.value();
    CHECK(file.metadata().size() == 18);
    CHECK(file.tensors().empty());
    const auto get = [&](const char* key) { return *file.find_metadata(key); };
    CHECK(get("u8").as_unsigned() == 250u);
    CHECK(get("i8").as_signed() == -100);
    CHECK(get("u16").as_unsigned() == 65000u);
    CHECK(get("i16").as_signed() == -32000);
    CHECK(get("u32").as_unsigned() == 4000000000u);
    CHECK(get("i32").as_signed() == -2000000000);
    CHECK(get("u64").as_unsigned() == 9223372036854775813u);
    CHECK(get("i64").as_signed() == -4611686018427387904);
    for (const char* key : {"u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64", "bool", "text"})
        CHECK(name_of(get(key).type()) == key);
    CHECK(get("f32").as_double() == 0.15625);
    CHECK(get("f64").as_double() == 0.1);
    CHECK(get("bool").as_bool() == true);
    CHECK(get("text").as_text() == "literal");
    CHECK(get("string").as_text() == std::string_view("a\0b", 3));
    CHECK(get("numbers").elements().at(1)->as_signed() == -2);
    CHECK(get("numbers").elements().size() == 3);
    CHECK(get("texts").elements().at(2)->as_text() == "longer");
    CHECK(get("views").elements().at(0)->as_text() == "x");
    CHECK(get("bools").elements().at(0)->as_bool() == true);
    CHECK(get("bools").elements().at(1)->as_bool() == false);
    CHECK(get("nested").elements().at(0)->elements().at(0)->as_text() == "in");
}

TEST_CASE("gguf writer: every type that is encoded, from quantize to matrix", "[io][gguf]") {
    const scratch_dir dir;
    const fs::path path = dir.path / "types.gguf";
    const std::vector<float> w = reference::normal_samples(35 * 256, 11);
    const char* recipes[] = {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k",
                             "iq4_nl", "iq4_xs", "tq2_0", "mxfp4_ggml", "nvfp4_ggml", "fp16", "bf16"};
    std::vector<nibble::qmatrix> matrices;
    gguf::writer out;
    for (const char* recipe : recipes) {
        matrices.push_back(quantized(w, 35, recipe));
        CHECK(out.add_tensor(recipe, *ggml::type_of(matrices.back()), {35, 256}));
    }
    const nibble::qmatrix ternary = quantized(w, 35, "tq2_0");
    matrices.push_back(ternary);
    CHECK(out.add_tensor("tq1_0", ggml::type::tq1_0, {5, 7, 256}));
    CHECK(out.add_tensor("empty", ggml::type::q4_0, {0, 32}));
    CHECK(out.add_tensor("floats", ggml::type::f32, {2}));
    CHECK(out.add_tensor("last", ggml::type::q4_k, {0, 256}));
    CHECK(out.create(path));
    for (const nibble::qmatrix& m : matrices) {  // in blocks of rows, as a file larger than memory is written
        CHECK(out.write(m.row_block(0, 16)));
        CHECK(out.write(m.row_block(16, 19)));
    }
    CHECK_FALSE(fs::exists(path));
    CHECK(out.write(bytes_of(gguf_bytes::raw(1.5f) + gguf_bytes::raw(-0.0f))));
    CHECK(out.write(std::span<const std::byte>()));
    CHECK(out.finish());

    const auto read = gguf::open(path);
    const gguf::file& file = read.value();
    CHECK(file.find_metadata("general.quantization_version")->as_unsigned() == 2u);
    CHECK(file.find_metadata("general.alignment") == nullptr);
    CHECK(file.tensors().size() == matrices.size() + 3);
    CHECK(fs::file_size(path) % 32 == 0);
    std::uint64_t end = file.data_offset();  // ggml wants every tensor right behind the padding of the one before
    for (const gguf::tensor& t : file.tensors()) {
        CHECK(t.offset == end);
        end += (t.bytes.size() + 31) / 32 * 32;
    }
    CHECK(end == fs::file_size(path));
    for (std::size_t i = 0; i < std::size(recipes); ++i) {
        INFO(recipes[i]);
        CHECK(inspect::same(file.matrix(recipes[i]).value(), matrices[i]));
        CHECK(inspect::difference(file.values(recipes[i]).value(), inspect::decoded(matrices[i])) == "");
    }
    CHECK(inspect::difference(file.values("tq1_0").value(), inspect::decoded(ternary)) == "");
    CHECK(file.at("tq1_0").value()->shape() == std::vector<std::uint64_t>{5, 7, 256});
    CHECK(file.values("empty").value().empty());
    CHECK(inspect::difference(file.values("floats").value(), std::vector<float>{1.5f, -0.0f}) == "");
}

TEST_CASE("gguf writer: the alignment is the file's", "[io][gguf]") {
    const scratch_dir dir;
    const fs::path path = dir.path / "aligned.gguf";
    for (const std::uint32_t a : {8u, 4096u}) {
        gguf::writer out;
        CHECK(out.set("general.alignment", a));
        CHECK(out.set("general.alignment", a).code() == errc::invalid_argument);
        CHECK(out.add_tensor("a", ggml::type::i8, {3}));
        CHECK(out.add_tensor("b", ggml::type::i8, {5}));
        CHECK(out.create(path));
        CHECK(out.write(bytes_of("abc")));
        CHECK(out.write(bytes_of("defgh")));
        CHECK(out.finish());
        const auto file = gguf::open(path);
        CHECK(file.value().alignment() == a);
        CHECK(file.value().tensors()[1].offset == file.value().data_offset() + a);
        CHECK(file.value().values("b").value() == std::vector<float>{'d', 'e', 'f', 'g', 'h'});
        CHECK(fs::file_size(path) == file.value().data_offset() + 2 * a);
    }
    for (const std::uint32_t a : {0u, 1u, 4u, 33u, 1u << 21})
        CHECK(contains(gguf::writer().set("general.alignment", a).message(), "power of two"));
    CHECK(contains(gguf::writer().set("general.alignment", 32).message(), "u32"));  // an i32
    CHECK(contains(gguf::writer().set("general.alignment", "32").message(), "u32"));
}

TEST_CASE("gguf writer: what no reader would take is refused", "[io][gguf]") {
    gguf::writer out;
    struct refusal {
        nibble::status s;
        const char* part;
    };
    constexpr std::uint64_t large = std::uint64_t{1} << 32;
    CHECK(out.set("key", 1));
    CHECK(out.add_tensor("w", ggml::type::f32, {2}));
    const std::string three("\3");
    const refusal refusals[] = {
        {out.set("", 1), "1 to 65,535"},
        {out.set(std::string(65'536, 'k'), 1), "1 to 65,535"},
        {out.set("k\n", 1), "printable ASCII"},
        {out.set("k\xc3\xa9", 1), "printable ASCII"},
        {out.set("key", 2), "given twice"},
        {out.set("v", gguf::value(value_type::u32, bytes_of(three))), "no value of type u32"},
        {out.set("v", gguf::value(static_cast<value_type>(13), bytes_of(three))), "no value of type ?"},
        {out.add_tensor("", ggml::type::f32, {2}), "1 to 63 bytes"},
        {out.add_tensor(std::string(64, 'n'), ggml::type::f32, {2}), "1 to 63 bytes"},
        {out.add_tensor(std::string_view("a\0b", 3), ggml::type::f32, {2}), "NUL"},
        {out.add_tensor("w", ggml::type::f32, {3}), "given twice"},
        {out.add_tensor("x", ggml::type::f32, {}), "0 dimensions"},
        {out.add_tensor("x", ggml::type::f32, {1, 1, 1, 1, 1}), "5 dimensions"},
        {out.add_tensor("x", ggml::type{99}, {2}), "no tensor type 99"},
        {out.add_tensor("x", ggml::type::q4_k, {2, 128}), "whole blocks of Q4_K, 256"},
        {out.add_tensor("x", ggml::type::f32, {large, large}), "overflows"},
        {out.add_tensor("x", ggml::type::f32, {0, large, large}), "overflows"},
        {out.add_tensor("x", ggml::type::f32, {~std::uint64_t{0}}), "overflows"},
        {out.add_tensor("x", ggml::type::f64, {std::uint64_t{1} << 61}), "overflows"},
        {out.write(bytes_of("x")), "before create()"},
        {out.finish(), "before create()"},
    };
    for (const refusal& r : refusals) {
        INFO(r.part);
        CHECK(r.s.code() == errc::invalid_argument);
        CHECK(contains(r.s.message(), r.part));
    }
    const scratch_dir dir;
    gguf::writer much;
    for (const char* name : {"a", "b", "c"}) CHECK(much.add_tensor(name, ggml::type::i8, {std::uint64_t{1} << 62}));
    CHECK(contains(much.create(dir.path / "much.gguf").message(), "together overflow"));
    CHECK(out.create(dir.path).code() == errc::io);
    CHECK(out.create(dir.path / "no" / "file.gguf").code() == errc::not_found);
    CHECK(dir.names().empty());

    // the same writer, now with a path that works
    CHECK(out.add_tensor("q", ggml::type::q8_0, {2, 32}));
    CHECK(out.create(dir.path / "file.gguf"));
    CHECK(contains(out.create(dir.path / "other.gguf").message(), "twice"));
    CHECK(contains(out.set("late", 1).message(), "after create()"));
    CHECK(contains(out.add_tensor("late", ggml::type::f32, {1}).message(), "after create()"));
    CHECK(contains(out.write(bytes_of("123456789")).message(), "\"w\" takes 8 more bytes, not 9"));
    CHECK(contains(out.finish().message(), "\"w\" lacks 8 of its 8 bytes"));
    CHECK(out.write(bytes_of("1234")));
    CHECK(contains(out.finish().message(), "\"w\" lacks 4 of its 8 bytes"));
    CHECK(out.write(bytes_of("5678")));
    const std::vector<float> w = reference::normal_samples(256, 1);
    CHECK(out.write(quantized(w, 4, "q8_0")).code() == errc::shape_mismatch);  // 64 columns
    CHECK(contains(out.write(quantized(w, 8, "q4_0")).message(), "\"q\""));    // another type
    CHECK(contains(out.write(quantized(w, 8, "q8_0")).message(), "68 more bytes, not 272"));
    CHECK(out.write(quantized(w, 8, "q8_0").row_block(0, 2)));
    CHECK(contains(out.write(bytes_of("x")).message(), "all tensors are written"));
    CHECK(contains(out.write(quantized(w, 8, "q8_0")).message(), "no tensor"));
    CHECK(out.finish());
    CHECK(out.finish().code() == errc::invalid_argument);
    CHECK(dir.names() == std::vector<std::string>{"file.gguf"});
    const auto read = gguf::open(dir.path / "file.gguf");
    CHECK(read.value().at("q").value()->bytes.size() == 68);
}

TEST_CASE("gguf writer: a program that stops half-way leaves the old file", "[io][gguf]") {
    const scratch_dir dir;
    const fs::path path = dir.write("file.gguf", "old");
    {
        gguf::writer out;
        CHECK(out.add_tensor("w", ggml::type::f32, {2}));
        CHECK(out.create(path));
        CHECK(out.write(bytes_of("1234")));
        CHECK(dir.names().size() == 2);
    }
    CHECK(slurp(path) == "old");
    CHECK(dir.names().size() == 1);
}

#if NIBBLE_TEST_FAILING_SYSTEM
TEST_CASE("gguf writer: the system fails at every byte and at every call", "[io][gguf]") {
    const scratch_dir dir;
    const fs::path path = dir.write("file.gguf", "old");
    const auto opened = gguf::open(golden_path("default_alignment"));
    const gguf::file& source = opened.value();
    const long size = static_cast<long>(fs::file_size(golden_path("default_alignment")));
    const auto write_all = [&] {
        gguf::writer out;
        declare(out, source);
        nibble::status s = out.create(path);
        for (const gguf::tensor& t : source.tensors())
            if (s) s = out.write(t.bytes);
        if (!s) CHECK(out.finish().code() == errc::io);  // what failed stays failed
        return s ? out.finish() : s;
    };
    int failures = 0;
    for (long room = 0; room < size; room += room < 2300 ? 23 : 97) {
        failing_system::write.fail_after = room;
        const nibble::status s = write_all();
        failing_system::reset();
        CHECK(s.code() == errc::io);
        CHECK(contains(s.message(), std::strerror(ENOSPC)));
        CHECK(slurp(path) == "old");
        CHECK(dir.names().size() == 1);
        ++failures;
    }
    CHECK(failures > 150);
    for (failing_system::call* call : {&failing_system::fsync, &failing_system::close, &failing_system::rename}) {
        call->error = EIO;
        const nibble::status s = write_all();
        failing_system::reset();
        CHECK(s.code() == errc::io);
        CHECK(slurp(path) == "old");
        CHECK(dir.names().size() == 1);
    }
    failing_system::write.at_once = 5;
    CHECK(write_all());
    failing_system::reset();
    CHECK(slurp(path) == slurp(golden_path("default_alignment")));
}
#endif
