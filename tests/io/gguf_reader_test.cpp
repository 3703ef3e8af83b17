// The GGUF reader: files of gguf's own writer exactly, every rule of the header with its offset and message, and what a
// tensor yields.
#include <nibble/gemm.hpp>
#include <nibble/io/gguf.hpp>

#include <algorithm>
#include <array>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/gguf_bytes.hpp"
#include "support/golden.hpp"
#include "support/inspect.hpp"

namespace fs = std::filesystem;
namespace gguf = nibble::io::gguf;
namespace ggml = nibble::io::ggml;
using gguf::value_type;
using gguf_bytes::array;
using gguf_bytes::exact;
using gguf_bytes::raw;
using gguf_bytes::u32;
using gguf_bytes::u64;
using nibble::errc;
using nibble::io::open_mode;
using std::to_string;

namespace {

[[nodiscard]] fs::path golden_path(const std::string& stem) {
    return fs::path(NIBBLE_TEST_DATA_DIR) / "gguf" / (stem + ".gguf");
}
[[nodiscard]] bool contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

struct expected_tensor {
    const char* name;
    const char* type;
    std::vector<std::uint64_t> ne;
    std::uint64_t bytes;
};
// In the order of both files, which hold the same tensors.
const std::vector<expected_tensor> expected = {
    {"blk.0.f32.weight", "F32", {7, 3}, 84},        {"blk.0.f16.weight", "F16", {7, 3}, 42},
    {"blk.0.bf16.weight", "BF16", {7, 3}, 42},      {"blk.0.q4_0.weight", "Q4_0", {256, 3}, 432},
    {"blk.0.q4_1.weight", "Q4_1", {256, 3}, 480},   {"blk.0.q5_0.weight", "Q5_0", {256, 3}, 528},
    {"blk.0.q5_1.weight", "Q5_1", {256, 3}, 576},   {"blk.0.q8_0.weight", "Q8_0", {256, 3}, 816},
    {"blk.0.tq1_0.weight", "TQ1_0", {256, 3}, 162}, {"blk.0.tq2_0.weight", "TQ2_0", {256, 3}, 198},
    {"blk.0.mxfp4.weight", "MXFP4", {256, 3}, 408}, {"blk.0.q4_k.weight", "Q4_K", {256, 3}, 432},
    {"blk.0.q6_k.weight", "Q6_K", {256, 3}, 630},   {"blk.0.iq4_nl.weight", "IQ4_NL", {256, 3}, 432},
    {"blk.0.iq4_xs.weight", "IQ4_XS", {256, 3}, 408}, {"blk.0.q2_k.weight", "Q2_K", {256, 3}, 252},
    {"blk.0.q3_k.weight", "Q3_K", {256, 3}, 330},   {"blk.0.q5_k.weight", "Q5_K", {256, 3}, 528},
    {"ints.i8", "I8", {3}, 3},                      {"ints.i16", "I16", {2, 2}, 8},
    {"ints.i32", "I32", {2}, 8},                    {"ints.i64", "I64", {2}, 16},
    {"doubles.f64", "F64", {2}, 16},                {"blk.1.three_dims", "F32", {4, 3, 2}, 96},
};
struct expected_file {
    const char* stem;
    std::uint64_t alignment, data, size;
    std::vector<std::uint64_t> offsets;
};
const std::vector<expected_file> files = {
    {"default_alignment", 32, 2016, 9312,
     {2016, 2112, 2176, 2240, 2688, 3168, 3712, 4288, 5120, 5312, 5536, 5952,
      6400, 7040, 7488, 7904, 8160, 8512, 9056, 9088, 9120, 9152, 9184, 9216}},
    {"alignment_64", 64, 2048, 9792,
     {2048, 2176, 2240, 2304, 2752, 3264, 3840, 4416, 5248, 5440, 5696, 6144,
      6592, 7232, 7680, 8128, 8384, 8768, 9344, 9408, 9472, 9536, 9600, 9664}},
};

// The values of a tensor of any dtype as floats.
[[nodiscard]] std::vector<float> wanted_values(const golden::file& answers, const std::string& name, std::string_view type) {
    std::vector<float> out;
    const auto take = [&](const auto& all) {
        for (const auto x : all) out.push_back(static_cast<float>(x));
    };
    if (type == "I8") take(answers.read<std::int8_t>(name));
    else if (type == "I16") take(answers.read<std::int16_t>(name));
    else if (type == "I32") take(answers.read<std::int32_t>(name));
    else if (type == "I64") take(answers.read<std::int64_t>(name));
    else if (type == "F64") take(answers.read<double>(name));
    else take(answers.read<float>(name));
    return out;
}

[[nodiscard]] nibble::failure failure_of(std::string_view bytes, const gguf::read_limits& limits = {}) {
    const exact memory(bytes);
    const auto file = gguf::read(memory.span(), limits);
    REQUIRE_FALSE(file.has_value());
    return file.failure();
}

}  // namespace

TEST_CASE("gguf: files of gguf's own writer, both ways of opening", "[io][gguf]") {
    const golden::file answers("gguf/files_expected");
    int cases = 0;
    for (const expected_file& f : files) {
        for (const open_mode how : {open_mode::map, open_mode::copy}) {
            INFO(f.stem);
            const auto opened = gguf::open(golden_path(f.stem), how);
            const gguf::file& file = opened.value();
            CHECK(file.mapped() == (how == open_mode::map && NIBBLE_HAS_MMAP));
            CHECK(file.version() == 3);
            CHECK(file.alignment() == f.alignment);
            CHECK(file.data_offset() == f.data);
            REQUIRE(file.tensors().size() == expected.size());
            std::uint64_t used = 0;
            for (std::size_t i = 0; i < expected.size(); ++i) {
                const expected_tensor& want = expected[i];
                const gguf::tensor& t = file.tensors()[i];
                INFO(want.name);
                CHECK(t.name == want.name);
                CHECK(t.type_name() == want.type);
                CHECK(t.size_known());
                CHECK(t.offset == f.offsets[i]);
                CHECK(t.bytes.size() == want.bytes);
                CHECK(std::vector<std::uint64_t>(t.ne.begin(), t.ne.begin() + t.dimensions) == want.ne);
                CHECK(t.cols() == want.ne[0]);
                CHECK(t.rows() * t.cols() == t.elements());
                const std::string name = std::string(f.stem) + "/" + want.name;
                CHECK(t.shape() == answers.shape(name));
                CHECK(file.find(want.name) == &t);
                const std::vector<float> values = wanted_values(answers, name, want.type);
                CHECK(values.size() == t.elements());
                CHECK(inspect::difference(t.values().value(), values) == "");
                CHECK(inspect::difference(file.values(want.name).value(), values) == "");
                used += want.bytes;
                if (ggml::is_supported(t.type)) {
                    const nibble::qmatrix m = file.matrix(want.name).value();
                    CHECK(m.rows() == static_cast<nibble::index>(t.rows()));
                    CHECK(m.cols() == static_cast<nibble::index>(t.cols()));
                    CHECK(inspect::difference(inspect::decoded(m), values) == "");
                } else {
                    const auto m = t.matrix();
                    REQUIRE_FALSE(m.has_value());
                    CHECK(m.failure().code == errc::unsupported);
                    CHECK(m.failure().offset == t.offset);
                    CHECK(contains(m.failure().message, want.name));
                    CHECK(contains(m.failure().message, want.type));
                }
                ++cases;
            }
            CHECK(file.unused_bytes() == f.size - f.data - used);
        }
    }
    CHECK(cases == 4 * 24);
}

TEST_CASE("gguf: a matrix of a file is ready to multiply", "[io][gguf]") {
    const auto file = gguf::open(golden_path("default_alignment"));
    const nibble::qmatrix w = file.value().matrix("blk.0.q4_k.weight").value();
    const Eigen::VectorXf x = Eigen::VectorXf::LinSpaced(256, -1.0f, 1.0f);
    const Eigen::VectorXf y = w * x;
    const Eigen::VectorXf exact_y = nibble::dequantize(w) * x;
    CHECK((y - exact_y).norm() <= 1e-4f * exact_y.norm());
}

TEST_CASE("gguf: metadata of every type", "[io][gguf]") {
    for (const expected_file& f : files) {
        INFO(f.stem);
        const auto opened = gguf::open(golden_path(f.stem));
        const gguf::file& file = opened.value();
        const auto get = [&](const char* key) {
            const gguf::value* v = file.find_metadata(key);
            REQUIRE(v != nullptr);
            return *v;
        };
        CHECK(file.metadata().size() == (f.alignment == 64 ? 20u : 19u));
        CHECK(get("general.architecture").as_text() == "testarch");
        CHECK(get("general.quantization_version").as_unsigned() == 2u);
        CHECK(get("test.u8").as_unsigned() == 250u);
        CHECK(get("test.i8").as_signed() == -100);
        CHECK(get("test.u16").as_unsigned() == 65000u);
        CHECK(get("test.i16").as_signed() == -32000);
        CHECK(get("test.u32").as_unsigned() == 4000000000u);
        CHECK(get("test.i32").as_signed() == -2000000000);
        CHECK(get("test.u64").as_unsigned() == 9223372036854775813u);
        CHECK(get("test.i64").as_signed() == -4611686018427387904);
        CHECK(get("test.f32").as_double() == 0.15625);
        CHECK(get("test.f64").as_double() == 0.1);
        CHECK(get("test.true").as_bool() == true);
        CHECK(get("test.false").as_bool() == false);
        CHECK(get("test.string").as_text() == "gr\xc3\xbc\xc3\x9f" "e, \xe4\xb8\x96\xe7\x95\x8c \"quoted\"\n");
        const value_type types[] = {value_type::u8, value_type::i8, value_type::u16, value_type::i16, value_type::u32,
                                    value_type::i32, value_type::u64, value_type::i64, value_type::f32, value_type::f64};
        const char* keys[] = {"test.u8", "test.i8", "test.u16", "test.i16", "test.u32",
                              "test.i32", "test.u64", "test.i64", "test.f32", "test.f64"};
        for (std::size_t i = 0; i < std::size(keys); ++i) {
            CHECK(get(keys[i]).type() == types[i]);
            CHECK("test." + std::string(name_of(types[i])) == keys[i]);
        }
        // what a value is not
        CHECK_FALSE(get("test.i8").as_unsigned());
        CHECK_FALSE(get("test.u64").as_signed());
        CHECK_FALSE(get("test.f32").as_signed());
        CHECK_FALSE(get("test.u8").as_double());
        CHECK_FALSE(get("test.u8").as_bool());
        CHECK_FALSE(get("test.u8").as_text());
        CHECK(get("test.u8").elements().size() == 0);
        CHECK(get("test.u8").elements().begin() == get("test.u8").elements().end());
        CHECK_FALSE(get("test.true").as_unsigned());
        CHECK(get("test.u8").as_signed() == 250);

        const auto ints = get("test.array_i32").elements();
                CHECK(ints.element_type() == value_type::i32);
        CHECK(ints.size() == 3);
        std::vector<std::int64_t> numbers;
        for (const gguf::value v : ints) numbers.push_back(v.as_signed().value());
        CHECK(numbers == std::vector<std::int64_t>{1, -2, 3});
        CHECK(ints.at(1)->as_signed() == -2);
        CHECK_FALSE(ints.at(3));
        std::vector<std::string> texts;
        for (const gguf::value v : get("test.array_str").elements()) texts.emplace_back(v.as_text().value());
        CHECK(texts == std::vector<std::string>{"a", "", "longer string", "\xc3\xa9"});
        CHECK(get("test.array_str").elements().at(2)->as_text() == "longer string");
        CHECK_FALSE(get("test.array_str").elements().at(4));
        CHECK(get("test.array_f32").elements().at(2)->as_double() == static_cast<double>(0.001f));
        std::vector<bool> bools;
        for (const gguf::value v : get("test.array_bool").elements()) bools.push_back(v.as_bool().value());
        CHECK(bools == std::vector<bool>{true, false, true});
        CHECK(file.find_metadata("test.u9") == nullptr);
        CHECK(file.find_metadata("") == nullptr);
    }
}

TEST_CASE("gguf: arrays of arrays, and texts of any bytes", "[io][gguf]") {
    // {{1, 2}, {}, {3}} and {{{"a"}, {}}}
    const std::string numbers = array(4, 2, u32(1) + u32(2)) + array(4, 0, "") + array(4, 1, u32(3));
    const std::string texts = array(9, 2, array(8, 1, gguf_bytes::text("a")) + array(8, 0, ""));
    gguf_bytes::file f;
    f.version = 2;
    f.entry("numbers", 9, array(9, 3, numbers)).entry("texts", 9, array(9, 1, texts));
    f.text("bytes", std::string_view("\0\xff\n", 3)).entry("empty", 9, array(12, 0, ""));
    const exact memory(f.bytes());
    const auto read = gguf::read(memory.span());
    const gguf::file& file = read.value();
    CHECK(file.version() == 2);
    CHECK(file.tensors().empty());
    std::vector<std::vector<std::uint64_t>> found;
    for (const gguf::value row : file.find_metadata("numbers")->elements()) {
        found.emplace_back();
        for (const gguf::value v : row.elements()) found.back().push_back(v.as_unsigned().value());
    }
    CHECK(found == std::vector<std::vector<std::uint64_t>>{{1, 2}, {}, {3}});
    CHECK(file.find_metadata("numbers")->elements().at(2)->elements().at(0)->as_unsigned() == 3u);
    CHECK(file.find_metadata("texts")->elements().at(0)->elements().at(0)->elements().at(0)->as_text() == "a");
    CHECK(file.find_metadata("bytes")->as_text() == std::string_view("\0\xff\n", 3));
    CHECK(file.find_metadata("empty")->elements().size() == 0);
    CHECK(file.find_metadata("empty")->elements().begin() == file.find_metadata("empty")->elements().end());

    std::string deep = array(0, 0, "");
    for (int level = 1; level <= 4; ++level) {
        const exact nested(gguf_bytes::file().entry("k", 9, deep).bytes());
        CHECK(gguf::read(nested.span()).has_value());
        deep = array(9, 1, deep);
    }
    const nibble::failure why = failure_of(gguf_bytes::file().entry("k", 9, deep).bytes());
    CHECK(contains(why.message, "\"k\": arrays more than 4 deep"));
    gguf::read_limits limits;
    limits.array_depth = 1;
    CHECK(contains(failure_of(f.bytes(), limits).message, "more than 1 deep"));
    limits.array_depth = 1000;  // means 16
    for (int level = 0; level < 11; ++level) deep = array(9, 1, deep);
    const exact sixteen(gguf_bytes::file().entry("k", 9, deep).bytes());
    CHECK(gguf::read(sixteen.span(), limits).has_value());
    deep = array(9, 1, deep);
    CHECK(contains(failure_of(gguf_bytes::file().entry("k", 9, deep).bytes(), limits).message, "more than 16 deep"));
}

TEST_CASE("gguf: values made by hand never reach beyond their bytes", "[io][gguf]") {
    // What a reader refuses can still be in a value that a program makes: walking it ends where the bytes do.
    struct wrong {
        std::string bytes;
        std::size_t elements;  // that can be walked
    };
    const std::vector<wrong> arrays = {
        {"", 0},
        {u32(4), 0},
        {array(4, 3, u32(1) + u32(2) + "abc"), 2},
        {array(4, ~std::uint64_t{0}, u32(1)), 1},
        {array(8, 2, gguf_bytes::text("ok") + u64(1)), 1},
        {array(8, 2, gguf_bytes::text("ok") + u64(~std::uint64_t{0} - 7)), 1},
        {array(8, 1, "1234567"), 0},
        {array(9, 2, array(0, 1, "x") + array(0, 2, "x")), 1},
        {array(9, 1, array(8, 1, u64(9) + "12345678")), 0},
        {array(9, 1, array(13, 1, "x")), 0},
        {array(13, 1, "x"), 0},
    };
    nibble::io::gguf::value none;
    CHECK_FALSE(none.as_text());
    CHECK_FALSE(none.as_unsigned());
    CHECK_FALSE(none.as_signed());
    for (const wrong& w : arrays) {
        INFO(w.bytes.size() << " bytes");
        const exact memory(w.bytes);
        const gguf::value v(value_type::array, memory.span());
        std::size_t walked = 0;
        for (const gguf::value e : v.elements()) walked += e.bytes().empty() ? 100u : 1u;
        CHECK(walked == w.elements);
        CHECK_FALSE(gguf::detail::extent(value_type::array, memory.span(), gguf::detail::deepest_array).has_value());
        CHECK_FALSE(v.elements().at(w.elements).has_value());
    }
    const exact text(u64(4) + "abc");
    CHECK_FALSE(gguf::detail::extent(value_type::text, text.span(), 1).has_value());
    const exact whole(u64(3) + "abc");
    CHECK(gguf::detail::extent(value_type::text, whole.span(), 1) == std::optional<std::size_t>(11));
}

TEST_CASE("gguf: the smallest file with a tensor, and files without", "[io][gguf]") {
    gguf_bytes::file f;
    f.number<std::uint32_t>("general.alignment", 4, 32).tensor("t", {2}, 0, 0);
    const std::string bytes = f.bytes(raw(1.0f) + raw(-2.0f));
    CHECK(bytes.size() == 0x60 + 8);  // the last tensor needs no padding
    const exact memory(bytes);
    const auto file = gguf::read(memory.span());
    CHECK(file.value().values("t").value() == std::vector<float>{1.0f, -2.0f});
    CHECK(file.value().tensors()[0].offset == 0x60);
    CHECK(file.value().unused_bytes() == 0);
    CHECK_FALSE(file.value().mapped());

    const exact full(gguf_bytes::file().tensor("8 bytes!", {1}, 0, 0).bytes(raw(5.0f)));  // a header without padding
    const auto unpadded = gguf::read(full.span());
    CHECK(unpadded.value().data_offset() == 64);
    CHECK(unpadded.value().values("8 bytes!").value() == std::vector<float>{5.0f});

    const exact empty(gguf_bytes::file().header());  // no padding either, where there is no data
    const auto bare = gguf::read(empty.span());
    CHECK(bare.value().tensors().empty());
    const exact hollow(gguf_bytes::file().tensor("h", {0, 5}, 0, 0).header());
    const auto none = gguf::read(hollow.span());
    CHECK(none.value().values("h").value().empty());
    CHECK(none.value().tensors()[0].elements() == 0);
}

TEST_CASE("gguf: every rule of the header, with the byte and the message", "[io][gguf]") {
    struct rule {
        std::string bytes;
        std::uint64_t offset;
        std::vector<const char*> message;
        errc code = errc::malformed;
    };
    using file = gguf_bytes::file;
    const auto with = [](file f, auto change) {
        change(f);
        return f.bytes();
    };
    const auto value = [](std::uint32_t type, std::string_view bytes) { return file().entry("k", type, bytes).bytes(); };
    const auto alignment = [](std::uint32_t a) { return file().number<std::uint32_t>("general.alignment", 4, a).bytes(); };
    const auto tensor = [](std::string_view name, std::initializer_list<std::uint64_t> ne, std::uint32_t type,
                           std::uint64_t offset, std::size_t data) {
        return file().tensor(name, ne, type, offset).bytes(data);
    };
    constexpr std::uint64_t huge = 0xffffffffffffffffull;
    const std::vector<rule> rules = {
        {"", 0, {"\"GGUF\"", "empty"}},
        {"GGU", 0, {"\"GGUF\"", "\"GGU\""}},
        {"GGUF", 4, {"version"}},
        {"version https://git-lfs", 0, {"LFS"}},
        {"PK\x03\x04.........", 0, {"zip"}},
        {"tjgg........", 0, {"before GGUF"}},
        {with({}, [](file& f) { f.version = 0; }), 4, {"version 0", "2 or 3"}, errc::unsupported},
        {with({}, [](file& f) { f.version = 1; }), 4, {"version 1", "32 bits"}, errc::unsupported},
        {with({}, [](file& f) { f.version = 4; }), 4, {"version 4", "2 or 3"}, errc::unsupported},
        {with({}, [](file& f) { f.version = 0x03000000; }), 4, {"big-endian", "version 3"}, errc::unsupported},
        {with({}, [](file& f) { f.tensors = huge; }), 8, {"18446744073709551615 tensors", "1000000"}},
        {with({}, [](file& f) { f.tensors = 1u << 19; }), 8, {"524288 tensors do not fit"}},
        {with({}, [](file& f) { f.tensors = 1; }), 8, {"1 tensors do not fit"}},
        {with({}, [](file& f) { f.entries = huge; }), 16, {"18446744073709551615 metadata", "1000000"}},
        {with({}, [](file& f) { f.entries = 1; }), 16, {"1 metadata entries do not fit into the 8 bytes"}},
        {with(file().text("k", "a text that leaves room for one tensor"), [](file& f) { f.tensors = 1; }), 83, {"1 tensors do not fit"}},
        // keys
        {file().text("", "v").bytes(), 24, {"key of metadata entry 0 is empty"}},
        {file().text(std::string(65'536, 'k'), "v").bytes(), 24, {"65536 bytes", "65535"}},
        {file().text("k\n", "v").bytes(), 32, {"\"k\\x0a\"", "ASCII"}},
        {file().text(std::string_view("k\0", 2), "v").bytes(), 32, {"ASCII"}},
        {file().text("k\x7f", "v").bytes(), 32, {"ASCII"}},
        {file().text("k\xc3\xa9", "v").bytes(), 32, {"ASCII"}},
        {file().text("k", "v").text("j", "v").text("k", "w").bytes(), 24 + 3 * 22 - 22 + 8, {"metadata \"k\" is given twice"}},
        // values
        {value(13, u64(0)), 33, {"\"k\"", "no value type 13"}},
        {value(0xffffffff, u64(0)), 33, {"no value type 4294967295"}},
        {value(7, "\2"), 37, {"\"k\": a bool of 2"}},
        {value(9, array(7, 3, std::string_view("\0\1\xff", 3))), 51, {"a bool of 255"}},
        {value(9, array(13, 1, u64(0))), 37, {"no value type 13"}},
        {value(9, array(4, huge, "")), 41, {"18446744073709551615 values of type u32"}},
        {value(9, array(4, (huge >> 2) + 1, "")), 41, {"an array of 4611686018427387904 values"}},  // times 4 is 0
        {value(9, array(8, 1000, "")), 41, {"1000 values of type text"}},
        {value(9, array(9, 1000, "")), 41, {"1000 values of type array"}},
        {value(8, u64(huge)), 37, {"a length of 18446744073709551615"}},
        {value(8, u64(100)), 37, {"a length of 100"}},
        {value(9, array(8, 2, gguf_bytes::text("a") + u64(huge - 7))), 58, {"a length of 18446744073709551608"}},
        {file().entry("k", 12, u32(0)).header() , 37, {"\"k\": expected 8 bytes, the file has 4"}},
        // alignment
        {file().number<std::uint64_t>("general.alignment", 10, 32).bytes(), 24 + 8 + 17 + 4, {"u64", "expected u32"}},
        {alignment(0), 53, {"general.alignment is 0"}},
        {alignment(4), 53, {"general.alignment is 4"}},
        {alignment(48), 53, {"general.alignment is 48"}},
        {alignment(1u << 21), 53, {"general.alignment is 2097152"}},
        {alignment(0x80000000), 53, {"2147483648"}},
        // tensors
        {tensor("", {1}, 0, 0, 4), 24, {"name of tensor 0 is empty"}},
        {tensor(std::string_view("a\0b", 3), {1}, 0, 0, 4), 32, {"NUL"}},
        {tensor(std::string(70'000, 'n'), {1}, 0, 0, 4), 24, {"70000 bytes", "65535"}},
        {tensor("w", {}, 0, 0, 64), 33, {"0 dimensions"}},
        {tensor("w", {1, 1, 1, 1, 1}, 0, 0, 4), 33, {"5 dimensions"}},
        {tensor("w", {32, huge}, 2, 0, 18), 45, {"\"w\"", "dimension 1", "negative"}},
        {tensor("w", {std::uint64_t{1} << 32, std::uint64_t{1} << 32}, 0, 0, 4), 37, {"\"w\"", "overflows"}},
        {tensor("w", {std::uint64_t{1} << 32, std::uint64_t{1} << 32, 0}, 0, 0, 4), 37, {"overflows"}},
        {tensor("w", {0, std::uint64_t{1} << 32, std::uint64_t{1} << 32}, 0, 0, 4), 37, {"overflows"}},
        {tensor("w", {std::uint64_t{1} << 21, std::uint64_t{1} << 21, std::uint64_t{1} << 21, 1}, 0, 0, 4), 37, {"overflows 63"}},
        {tensor("w", {std::uint64_t{1} << 62}, 0, 0, 4), 37, {"overflows 64 bits"}},
        {tensor("w", {std::uint64_t{1} << 61}, 0, 0, 4), 49, {"9223372036854775808 bytes at offset 0 reach beyond the 4 bytes"}},
        {tensor("w", {48, 1}, 2, 0, 32), 37, {"\"w\"", "Q4_0", "blocks of 32"}},
        {tensor("w", {128, 2}, 12, 0, 288), 37, {"Q4_K", "blocks of 256"}},
        {tensor("w", {1}, 0, 16, 64), 49, {"offset of 16", "multiple of 32"}},
        {tensor("w", {1}, 0, 64, 32), 49, {"offset 64 reach beyond the 32"}},
        {tensor("w", {9}, 0, 0, 32), 49, {"36 bytes at offset 0 reach beyond the 32"}},
        {tensor("w", {1}, 0, huge - 31, 32), 49, {"reach beyond"}},
        {tensor("w", {16}, 0, huge - 31, 64), 49, {"reach beyond the 64"}},  // the end wraps to 32
        {tensor("w", {1}, 99, 64, 32), 49, {"type 99", "reach beyond"}},
        {file().tensor("w", {1}, 0, 0).header(), 49, {"4 bytes at offset 0 reach beyond the 0"}},
        {file().tensor("a", {1}, 0, 0).tensor("b", {1}, 0, 32).tensor("a", {1}, 0, 64).bytes(68),
         24 + 2 * 33 + 8, {"tensor \"a\" is given twice"}},
        {file().tensor("a", {9}, 0, 0).tensor("b", {1}, 0, 32).bytes(36), 24 + 33 + 8, {"\"a\" at byte 96", "\"b\" at byte 128", "overlap"}},
        {file().tensor("a", {33}, 24, 0).tensor("b", {1}, 0, 32).bytes(36), 24 + 33 + 8, {"overlap"}},  // in one byte
        {file().tensor("b", {1}, 0, 32).tensor("a", {9}, 0, 0).bytes(36), 24 + 8, {"\"a\"", "\"b\"", "overlap"}},
        {file().tensor("a", {1}, 0, 0).tensor("b", {1}, 0, 0).bytes(36), 24 + 33 + 8, {"overlap"}},
        {file().tensor("a", {9}, 0, 0).tensor("b", {1}, 99, 32).bytes(36), 24 + 33 + 8, {"overlap"}},
        {file().tensor("a", {1}, 99, 0).tensor("b", {1}, 98, 0).bytes(36), 24 + 33 + 8, {"overlap"}},
    };
    int cases = 0;
    for (const rule& r : rules) {
        INFO("rule " << cases << ": " << r.message[0]);
        const nibble::failure why = failure_of(r.bytes);
        INFO(why.message);
        CHECK(why.code == r.code);
        CHECK(why.offset == r.offset);
        CHECK(why.message.starts_with("gguf: "));
        for (const char* part : r.message) CHECK(contains(why.message, part));
        ++cases;
    }
    CHECK(cases == static_cast<int>(rules.size()));

    const auto big = gguf::open(golden_path("big_endian"));
    REQUIRE_FALSE(big.has_value());
    CHECK(contains(big.failure().message, "big_endian.gguf"));
    CHECK(contains(big.failure().message, "a big-endian file (version 3)"));
    CHECK(gguf::open(golden_path("no_such")).failure().code == errc::not_found);
}

TEST_CASE("gguf: limits can be set", "[io][gguf]") {
    gguf_bytes::file f;
    f.text("key", "value").text("other", "value").tensor("a", {1}, 0, 0).tensor("b", {1}, 0, 32);
    const std::string bytes = f.bytes(36);
    const exact memory(bytes);
    gguf::read_limits limits;
    limits.header_bytes = f.header().size();
    limits.tensors = 2;
    limits.metadata = 2;
    limits.name_bytes = 5;
    limits.alignment = 32;
    CHECK(gguf::read(memory.span(), limits).has_value());
    const auto refused = [&](auto change) {
        gguf::read_limits lower = limits;
        change(lower);
        return failure_of(bytes, lower).message;
    };
    CHECK(contains(refused([](auto& l) { l.header_bytes -= 1; }), "longer than the limit"));
    CHECK(contains(refused([](auto& l) { l.header_bytes = 0; }), "longer than the limit of 0"));
    CHECK(contains(refused([](auto& l) { l.header_bytes = 50; }), "metadata \"key\""));
    CHECK(contains(refused([](auto& l) { l.tensors = 1; }), "the limit is 1"));
    CHECK(contains(refused([](auto& l) { l.metadata = 1; }), "the limit is 1"));
    CHECK(contains(refused([](auto& l) { l.name_bytes = 4; }), "the limit is 4"));
    limits.alignment = 16;
    CHECK(gguf::read(memory.span(), limits).has_value());  // only where the file asks for one
    const auto wide = gguf_bytes::file().number<std::uint32_t>("general.alignment", 4, 32).bytes();
    gguf::read_limits narrow;
    narrow.alignment = 16;
    CHECK(contains(failure_of(wide, narrow).message, "8 to 16"));
}

TEST_CASE("gguf: tensors in any order, with gaps, and of types that nobody knows", "[io][gguf]") {
    gguf_bytes::file f;
    f.tensor("late", {2}, 0, 128).tensor("strange", {1000, 1000}, 99, 64).tensor("early", {2}, 0, 0).tensor("grid", {256}, 16, 192);
    f.tensor("removed", {32}, 4, 96);
    std::string data(192 + 66 + 5, '\0');
    const std::string floats = raw(3.0f) + raw(4.0f);
    std::copy(floats.begin(), floats.end(), data.begin() + 128);
    const exact memory(f.bytes(data));
    const auto read = gguf::read(memory.span());
    const gguf::file& file = read.value();
    CHECK(file.values("late").value() == std::vector<float>{3.0f, 4.0f});
    CHECK(file.values("early").value() == std::vector<float>{0.0f, 0.0f});
    CHECK(file.unused_bytes() == data.size() - 8 - 8 - 66);
    const gguf::tensor& strange = *file.at("strange").value();
    CHECK_FALSE(strange.size_known());
    CHECK(strange.bytes.empty());
    CHECK(strange.describe() == "type 99 [1000, 1000]");
    CHECK(file.at("removed").value()->type_name() == "type 4");
    const gguf::tensor& grid = *file.at("grid").value();  // sized, but not decoded
    CHECK(grid.bytes.size() == 66);
    CHECK(grid.type_name() == "IQ2_XXS");
    for (const gguf::tensor* t : {&strange, &grid}) {
        for (const nibble::failure& why : {t->values().failure(), t->matrix().failure(), t->view().failure()}) {
            CHECK(why.code == errc::unsupported);
            CHECK(contains(why.message, std::string(t->name)));
            CHECK(contains(why.message, t->type_name()));
            CHECK(why.offset == t->offset);
        }
    }
    CHECK_FALSE(strange.row_block(0, 1).has_value());
    CHECK(grid.row_block(0, 1).value().bytes.size() == 66);
    for (const auto& why : {file.at("missing").failure(), file.values("missing").failure(), file.matrix("missing").failure()}) {
        CHECK(why.code == errc::not_found);
    CHECK(contains(why.message, "\"missing\"; nearest of 5: \""));
    }
}

TEST_CASE("gguf: rows of a tensor, experts among them", "[io][gguf]") {
    const auto opened = gguf::open(golden_path("default_alignment"));
    const gguf::file& file = opened.value();
    const gguf::tensor& three = *file.at("blk.1.three_dims").value();  // ne = {4, 3, 2}
    CHECK(three.rows() == 6);
    const std::vector<float> all = three.values().value();
    const gguf::tensor second = three.row_block(3, 3).value();
    CHECK(second.shape() == std::vector<std::uint64_t>{3, 4});
    CHECK(second.offset == three.offset + 48);
    CHECK(second.values().value() == std::vector<float>(all.begin() + 12, all.end()));
    const gguf::tensor& q = *file.at("blk.0.q6_k.weight").value();
    const std::vector<float> values = q.values().value();
    for (std::uint64_t n = 0; n < 3; ++n) {
        const auto row = q.row_block(n, 1).value().values().value();
        CHECK(inspect::difference(row, std::vector<float>(values.begin() + static_cast<std::ptrdiff_t>(256 * n),
                                                          values.begin() + static_cast<std::ptrdiff_t>(256 * n + 256))) == "");
    }
    CHECK(q.row_block(3, 0).value().bytes.empty());
    CHECK(q.row_block(0, 4).failure().code == errc::out_of_range);
    CHECK(q.row_block(4, 0).failure().code == errc::out_of_range);
    CHECK(q.row_block(1, ~std::uint64_t{0}).failure().code == errc::out_of_range);
}

TEST_CASE("gguf: views, and blocks that cannot be decoded", "[io][gguf]") {
    const auto opened = gguf::open(golden_path("default_alignment"));
    const auto view = opened.value().at("blk.0.f32.weight").value()->view().value();
    CHECK(view.rows == 3);
    CHECK(view.cols == 7);
    CHECK(view.row_stride == 7);
    CHECK(view.col_stride == 1);
    CHECK(view.type == nibble::scalar_type::f32);
    const std::vector<float> values = opened.value().values("blk.0.f32.weight").value();
    float x;
    std::memcpy(&x, view.at(2, 5), 4);
    CHECK(x == values[19]);
    CHECK(opened.value().at("doubles.f64").value()->view().value().type == nibble::scalar_type::f64);
    CHECK(opened.value().at("doubles.f64").value()->view().value().rows == 1);

    gguf_bytes::file f;
    f.tensor("good", {32}, 2, 0).tensor("nan", {32, 2}, 2, 32).tensor("inf", {2}, 1, 96);
    std::string data(100, '\0');
    data[32 + 18 + 1] = 0x7e;  // the scale of row 1
    data[97] = 0x7c;
    const exact memory(f.bytes(data));
    const auto read = gguf::read(memory.span());
    const gguf::file& file = read.value();
    CHECK(file.values("good").has_value());
    for (const nibble::failure& why : {file.values("nan").failure(), file.matrix("nan").failure()}) {
        CHECK(why.code == errc::malformed);
        CHECK(contains(why.message, "\"nan\" is Q4_0 [2, 32]"));
        CHECK(contains(why.message, "block 0 of row 1"));
        CHECK(why.offset == file.data_offset() + 32 + 18);
    }
    CHECK(file.values("inf").value()[0] == std::numeric_limits<float>::infinity());  // floats are what they are
    CHECK(file.matrix("inf").failure().code == errc::malformed);

    // matrices without elements that no program wants
    gguf_bytes::file hollow;
    hollow.tensor("a", {0, std::uint64_t{1} << 62}, 2, 0).tensor("b", {1024, 0}, 2, 0).tensor("c", {std::uint64_t{1} << 40, 0}, 2, 0);
    const exact nothing(hollow.bytes());
    const auto empty = gguf::read(nothing.span());
    CHECK(empty.value().matrix("a").failure().code == errc::out_of_range);
    CHECK(empty.value().matrix("c").failure().code == errc::out_of_range);
    CHECK(empty.value().matrix("b").value().cols() == 1024);
    CHECK(empty.value().values("a").value().empty());
}

TEST_CASE("gguf: 10,000 tensors open in less than 10 ms of CPU", "[io][gguf][speed]") {
    gguf_bytes::file f;
    for (int i = 0; i < 10'000; ++i)
        f.tensor("blk." + to_string(i) + ".ffn_up.weight", {256, 1}, 12, static_cast<std::uint64_t>(i) * 160);
    const fs::path path = fs::temp_directory_path() / ("nibble_gguf_10000_" + to_string(std::clock()) + ".gguf");
    std::ofstream(path, std::ios::binary) << f.bytes(10'000 * 160);
    double best = 1e9;
    std::size_t tensors = 0;
    for (int repeat = 0; repeat < 7; ++repeat) {
        const std::clock_t before = std::clock();
        const auto file = gguf::open(path);
        const std::clock_t after = std::clock();
        tensors = file.value().tensors().size();
        best = std::min(best, 1e3 * static_cast<double>(after - before) / CLOCKS_PER_SEC);
    }
    fs::remove(path);
    CHECK(tensors == 10'000);
    std::printf("gguf: opening a file of 10,000 tensors took %.2f ms of CPU\n", best);
#if defined(NDEBUG) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
    CHECK(best < 10.0);
#else
    CHECK(best < 1000.0);  // nothing quadratic
#endif
}
