// The safetensors reader: official files, every malformed file we could think of, and every byte of a header changed
// to every value, judged by a second reader written another way.
#include "nibble/io/safetensors.hpp"

#include <cstdio>
#include <fstream>
#include <memory>
#include <random>
#include <set>
#include <sstream>

#include "support/catch.hpp"
#include "support/safetensors_promises.hpp"

#if NIBBLE_HAS_MMAP
#include <sys/stat.h>
#endif

#ifndef NIBBLE_TEST_DATA_DIR
#error "NIBBLE_TEST_DATA_DIR must name tests/golden"
#endif

namespace {

namespace fs = std::filesystem;
namespace st = nibble::io::safetensors;
using nibble::errc;
using nibble::io::open_mode;
using std::to_string;

// Exactly as many bytes as the file has, on the heap, so that the address sanitizer sees one byte too many.
struct exact_bytes {
    explicit exact_bytes(std::string_view text) : memory(new std::byte[text.size()]), size(text.size()) {
        if (size != 0) std::memcpy(memory.get(), text.data(), size);
    }
    [[nodiscard]] std::span<const std::byte> span() const { return {memory.get(), size}; }

    std::unique_ptr<std::byte[]> memory;
    std::size_t size;
};

[[nodiscard]] std::string file_of(std::string_view header, std::string_view buffer = {}) {
    std::string out;
    for (std::size_t i = 0; i < 8; ++i) out += static_cast<char>(header.size() >> (8 * i) & 255);
    return out.append(header).append(buffer);
}

// An entry of a header, and a header of entries: header_of(entry("a", "U8", "2,3", "0,6"), ...)
[[nodiscard]] std::string entry(const std::string& name, const std::string& type, const std::string& shape,
                                const std::string& offsets) {
    return '"' + name + R"(":{"dtype":")" + type + R"(","shape":[)" + shape + R"(],"data_offsets":[)" + offsets + "]}";
}
template <class... Entries>
[[nodiscard]] std::string header_of(const Entries&... entries) {
    std::string out;
    ((out += (out.empty() ? "{" : ",") + std::string(entries)), ...);
    return out + "}";
}

[[nodiscard]] std::string slurp(const fs::path& path) {
    std::ifstream in(path, std::ios::binary);
    std::ostringstream out;
    out << in.rdbuf();
    return std::move(out).str();
}

[[nodiscard]] bool contains(std::string_view text, std::string_view part) {
    return text.find(part) != std::string_view::npos;
}

[[nodiscard]] std::string hex_of(std::span<const std::byte> bytes) {
    std::string out;
    for (const std::byte b : bytes) {
        char two[3];
        std::snprintf(two, sizeof two, "%02x", std::to_integer<unsigned>(b));
        out += two;
    }
    return out;
}

[[nodiscard]] fs::path golden() { return fs::path(NIBBLE_TEST_DATA_DIR) / "safetensors_files"; }

// A directory of its own for each test that writes, removed at the end.
struct scratch_dir {
    scratch_dir() {
        std::random_device seed;
        path = fs::temp_directory_path() / ("nibble_safetensors_" + to_string(seed()) + to_string(seed()));
        fs::create_directory(path);
    }
    scratch_dir(const scratch_dir&) = delete;
    scratch_dir& operator=(const scratch_dir&) = delete;
    ~scratch_dir() {
        std::error_code ignored;
        fs::remove_all(path, ignored);
    }
    [[nodiscard]] fs::path write(const char* name, std::string_view content) const {
        std::ofstream(path / name, std::ios::binary) << content;
        return path / name;
    }
    fs::path path;
};

using safetensors_promises::acceptable;
using safetensors_promises::broken_promise;

// Parses a changed file and compares the verdicts. Returns what is wrong, or nothing.
struct verdicts {
    std::size_t cases = 0;
    std::size_t accepted = 0;
};
[[nodiscard]] std::string judge(std::string_view bytes, verdicts& count) {
    ++count.cases;
    const exact_bytes memory(bytes);
    const auto file = st::parse(memory.span());
    const bool expected = acceptable(bytes);
    if (file.has_value() != expected)
        return expected ? "refused: " + file.failure().message : "accepted what the second reader refuses";
    if (!file) {
        if (file.failure().offset > bytes.size()) return "offset beyond the file";
        if (file.failure().code != errc::malformed) return "not errc::malformed";
        if (!file.failure().message.starts_with("safetensors: ")) return "message: " + file.failure().message;
        return "";
    }
    ++count.accepted;
    return broken_promise(file.value(), memory.span());
}

const std::string small_header =
    R"({"__metadata__":{"k":"v"},"w":{"dtype":"F16","shape":[2,3],"data_offsets":[4,16]},)"
    R"("b":{"dtype":"F4","shape":[8],"data_offsets":[0,4]},"s":{"shape":[],"data_offsets":[16,24],"dtype":"I64"}} )";
const std::string small_buffer(24, '\x3c');

template <class File>
concept lets_a_view_dangle = requires { std::declval<File>().find("x"); } ||
                             requires { std::declval<File>().at("x"); } ||
                             requires { std::declval<File>().tensors(); } ||
                             requires { std::declval<File>().metadata(); };
static_assert(!lets_a_view_dangle<st::file> && lets_a_view_dangle<const st::file&>);
static_assert(!std::is_copy_constructible_v<st::file> && std::is_nothrow_move_constructible_v<st::file>);
static_assert(!st::element<bool> && !st::element<char> && st::element<float> && st::element<std::uint8_t>);

}  // namespace

TEST_CASE("safetensors: the official files, field by field, both ways of opening", "[io][safetensors]") {
    const auto expected = nlohmann::json::parse(slurp(golden() / "expected.json"));
    std::size_t files = 0;
    std::size_t tensors = 0;
    std::set<std::string> dtypes_seen;
    for (const auto& [name, want] : expected["files"].items()) {
        for (const open_mode how : {open_mode::map, open_mode::copy}) {
            CAPTURE(name, how == open_mode::map);
            auto opened = st::open(golden() / name, how);
            INFO((opened ? "" : opened.failure().message));
            REQUIRE(opened);
            const st::file file = std::move(opened).value();
            ++files;
            CHECK(file.mapped() == (NIBBLE_HAS_MMAP && how == open_mode::map));
            CHECK(file.buffer_offset() == want["data_start"].get<std::uint64_t>());
            CHECK(file.buffer_offset() == want["header_len"].get<std::uint64_t>() + 8);
            CHECK(file.unused_bytes() == 0);

            nlohmann::json metadata;  // null when there is none, as in expected.json
            for (const auto& [key, value] : file.metadata()) metadata[key] = value;
            CHECK(metadata == want["metadata"]);

            std::vector<std::string> names;
            for (const st::tensor& t : file.tensors()) names.push_back(t.name);
            CHECK(names == want["order_in_buffer"].get<std::vector<std::string>>());
            REQUIRE(file.tensors().size() == want["tensors"].size());
            for (const auto& [tensor_name, w] : want["tensors"].items()) {
                CAPTURE(tensor_name);
                const st::tensor* t = file.find(tensor_name);
                REQUIRE(t != nullptr);
                ++tensors;
                dtypes_seen.insert(std::string(st::name_of(t->type)));
                CHECK(st::name_of(t->type) == w["dtype"].get<std::string>());
                CHECK(t->shape == w["shape"].get<std::vector<std::uint64_t>>());
                const auto begin = w["data_offsets"][0].get<std::uint64_t>();
                CHECK(t->offset == file.buffer_offset() + begin);
                CHECK(begin + t->bytes.size() == w["data_offsets"][1].get<std::uint64_t>());
                const auto first = t->bytes.first((std::min)(t->bytes.size(), std::size_t{64}));
                CHECK(hex_of(first) == w["hex"].get<std::string>());
            }
        }
    }
    CHECK(files == 12);
    CHECK(tensors == 2 * 48);
    CHECK(dtypes_seen.size() == st::detail::dtypes.size());  // every dtype of the format was met
}

TEST_CASE("safetensors: the bad files, with the offset and the message of each", "[io][safetensors]") {
    struct verdict {
        const char* file;
        std::uint64_t offset;
        const char* message;  // null: accepted
        std::uint64_t unused = 0;
    };
    const verdict verdicts[] = {
        {"begin_after_end", 8 + 47, R"(tensor "a" F32 [0]: data_offsets [4, 0] end before they begin)"},
        {"duplicate_key", 8 + 54, R"(tensor "a" is given twice)"},
        {"header_over_limit", 0, "header length 100000001 is above the limit of 100000000"},
        {"hole", 0, nullptr, 4},
        {"huge_header_len", 0, "header length 9223372036854775808 is above the limit of 100000000"},
        {"leading_space", 8, R"(expected '{' at the start of the header, found " ")"},
        {"metadata_not_string", 8 + 21, R"(metadata "a": expected a string, found 1)"},
        {"negative_shape", 8 + 29, R"(tensor "a", shape: expected an integer from 0 to 2^64 - 1, found -1)"},
        {"not_json", 8 + 52, "the header is not JSON: syntax error while parsing object - unexpected end of input"},
        {"overlap", 8 + 100, R"(tensors "a" [0, 8] and "b" [4, 12] overlap)"},
        {"shape_overflow", 8 + 28,
         R"(tensor "a" F32 [4611686018427387904, 4611686018427387904]: its size overflows 64 bits)"},
        {"short_buffer", 8 + 47, R"(tensor "a" F32 [4]: data_offsets [0, 16] reach beyond the 12 bytes of the buffer)"},
        {"size_mismatch", 8 + 47, R"(tensor "a" F32 [3]: data_offsets [0, 16] hold 16 bytes, the shape needs 12)"},
        {"sub_byte_odd", 8 + 27, R"(tensor "a" F4 [3]: 12 bits are not whole bytes)"},
        {"tiny", 3, "expected 8 bytes of header length, the file has 3 bytes"},
        {"trailing_data", 0, nullptr, 5},
        {"unknown_dtype", 8 + 14, R"(tensor "a", dtype: unknown dtype "F33")"},
    };
    const auto expected = nlohmann::json::parse(slurp(golden() / "expected.json"));
    std::size_t cases = 0;
    for (const verdict& v : verdicts) {
        const std::string name = v.file + std::string(".safetensors");
        CAPTURE(name);
        REQUIRE(expected["bad"].contains(name));
        ++cases;
        const exact_bytes memory(slurp(golden() / "bad" / name));
        const auto parsed = st::parse(memory.span());
        const auto opened = st::open(golden() / "bad" / name);
        REQUIRE(parsed.has_value() == (v.message == nullptr));
        REQUIRE(opened.has_value() == parsed.has_value());
        if (parsed) {
            CHECK(parsed.value().unused_bytes() == v.unused);
            CHECK(broken_promise(parsed.value(), memory.span()) == "");
            continue;
        }
        CHECK(parsed.failure().code == errc::malformed);
        CHECK(parsed.failure().offset == v.offset);
        CHECK(opened.failure().offset == v.offset);
        const std::string& message = parsed.failure().message;
        CAPTURE(message);
        CHECK(message.starts_with(std::string("safetensors: ") + v.message));
        CHECK(contains(opened.failure().message, name));  // the path comes first
        CHECK(opened.failure().message.ends_with(message));
    }
    CHECK(cases == 17);
    CHECK(cases == expected["bad"].size());
}

TEST_CASE("safetensors: malformed headers built here, with the offset and the message of each", "[io][safetensors]") {
    struct bad_header {
        std::string header;  // '@' marks the byte that the failure must point at, and is taken out
        std::string message;
    };
    // The buffer has 16 bytes in all of these.
    const std::string ok = R"("dtype":"F32","shape":[4],"data_offsets":[0,16])";
    const std::string number = "expected an integer from 0 to 2^64 - 1, found ";
    const bad_header cases[] = {
        // the header as a whole
        {"@", "the header is empty"},
        {"@[]", "expected '{' at the start of the header, found \"[\""},
        {"@\"x\"", "expected '{'"},
        {"@\xef\xbb\xbf{}", "expected '{' at the start of the header, found \"\\xef\""},
        {"@\n{}", "expected '{' at the start of the header, found \"\\x0a\""},
        {"{}@{}", "expected only spaces after the header's object, found \"{\""},
        {"{}  @x", "expected only spaces"},
        {"{} @\n", "expected only spaces after the header's object, found \"\\x0a\""},
        {std::string("{}@\0{\"a\":1}", 11), "expected only spaces after the header's object, found \"\\x00\""},
        {std::string("{@\0}", 4), "the header is not JSON: syntax error"},
        {"{@", "the header is not JSON"},
        {"{\"a\":{" + ok + "},@}", "the header is not JSON"},
        {"{@/*c*/}", "the header is not JSON"},
        {"{@a:1}", "the header is not JSON"},
        {"{\"a@\xff\":1}", "the header is not JSON"},
        {"{\"\\ud800@\":1}", "the header is not JSON"},
        {"{\"a@\x01\":1}", "the header is not JSON"},
        {"{\"a\" @1}", "the header is not JSON"},
        // what a name stands for
        {R"({"a":@1})", R"(tensor "a": expected an object, found 1)"},
        {R"({"a":@-1})", R"(tensor "a": expected an object, found -1)"},
        {R"({"a":@"x"})", R"(tensor "a": expected an object, found a string)"},
        {R"({"a":@[]})", R"(tensor "a": expected an object, found an array)"},
        {R"({"a" : @null})", R"(tensor "a": expected an object, found null)"},
        {R"({"a":@true})", R"(tensor "a": expected an object, found true)"},
        {R"({"a":@0.5})", R"(tensor "a": expected an object, found 0.5)"},
        {R"({"\u001b[31mred":@1})", R"(tensor "\x1b[31mred": expected)"},  // no terminal obeys this message
        {R"({"a":{@}})", R"(tensor "a" has no dtype)"},
        {R"({"a":{"shape":[4],"data_offsets":[0,16]@}})", R"(tensor "a" has no dtype)"},
        {R"({"a":{"dtype":"F32","data_offsets":[0,16]@}})", R"(tensor "a" has no shape)"},
        {R"({"a":{"dtype":"F32","shape":[4]@}})", R"(tensor "a" has no data_offsets)"},
        {"{\"a\":{" + ok + R"(,@"extra":1}})", R"(expected dtype, shape or data_offsets, found the field "extra")"},
        {"{\"a\":{" + ok + R"(,@"Shape":[4]}})", R"(found the field "Shape")"},
        // twice
        {"{\"a\":{" + ok + R"(,@"dtype":"F32"}})", R"(tensor "a", dtype is given twice)"},
        {"{\"a\":{" + ok + R"(,@"shape":[4]}})", R"(tensor "a", shape is given twice)"},
        {"{\"a\":{" + ok + R"(,@"data_offsets":[0,16]}})", R"(tensor "a", data_offsets is given twice)"},
        {"{\"a\":{" + ok + R"(,@"\u0073hape":[4]}})", R"(tensor "a", shape is given twice)"},
        {R"({"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"b":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},)"
         R"(@"\u0061":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}})",
         R"(tensor "a" is given twice)"},
        {R"({"__metadata__":{"k":"1",@"k":"2"}})", R"(metadata key "k" is given twice)"},
        {R"({"__metadata__":{},@"__metadata__":{}})", "__metadata__ is given twice"},
        // metadata
        {R"({"__metadata__":@1})", "__metadata__: expected an object of strings, found 1"},
        {R"({"__metadata__":@null})", "__metadata__: expected an object of strings, found null"},
        {R"({"__metadata__":@"x"})", "__metadata__: expected an object of strings, found a string"},
        {R"({"__metadata__":@["x"]})", "__metadata__: expected an object of strings, found an array"},
        {R"({"__metadata__":{"k":@null}})", R"(metadata "k": expected a string, found null)"},
        {R"({"__metadata__":{"k":@{}}})", R"(metadata "k": expected a string, found an object)"},
        {R"({"__metadata__":{"k":@[]}})", R"(metadata "k": expected a string, found an array)"},
        {R"({"__metadata__":{"j":"1" , "k": @2.5}})", R"(metadata "k": expected a string, found 2.5)"},
        // dtype
        {R"({"a":{"dtype":@1}})", R"(tensor "a", dtype: expected a string, found 1)"},
        {R"({"a":{"dtype":@[]}})", R"(tensor "a", dtype: expected a string, found an array)"},
        {R"({"a":{"dtype":@{}}})", R"(tensor "a", dtype: expected a string, found an object)"},
        {R"({"a":{"dtype":@"f32"}})", R"(unknown dtype "f32")"},
        {R"({"a":{"dtype":@""}})", R"(unknown dtype "")"},
        // shape
        {R"({"a":{"shape":@4}})", R"(tensor "a", shape: expected an array of integers, found 4)"},
        {R"({"a":{"shape":@"4"}})", R"(tensor "a", shape: expected an array of integers, found a string)"},
        {R"({"a":{"shape":@{}}})", R"(tensor "a", shape: expected an array of integers, found an object)"},
        {R"({"a":{"shape":[@[4]]}})", R"(tensor "a", shape: )" + number + "an array"},
        {R"({"a":{"shape":[1,@"4"]}})", R"(tensor "a", shape: )" + number + "a string"},
        {R"({"a":{"shape":[@4.0]}})", number + "4.0"},
        {R"({"a":{"shape":[@4e0]}})", number + "4e0"},
        {R"({"a":{"shape":[2, 2 ,@-0]}})", number + "0"},
        {R"({"a":{"shape":[@null]}})", number + "null"},
        {R"({"a":{"shape":[@18446744073709551616]}})", number + "18446744073709551616"},
        {R"({"a":{"shape":[0@4]}})", "the header is not JSON"},
        {R"({"a":{"dtype":"F32","shape":@[4294967296,4294967296],"data_offsets":[0,0]}})", "overflows 64 bits"},
        {R"({"a":{"dtype":"U8","shape":@[18446744073709551615],"data_offsets":[0,0]}})", "overflows 64 bits"},
        {R"({"a":{"dtype":"F4","shape":@[4611686018427387904],"data_offsets":[0,0]}})", "overflows 64 bits"},
        {R"({"a":{"dtype":"U8","shape":@[0,2305843009213693952],"data_offsets":[0,0]}})", "overflows 64 bits"},
        {R"({"a":{"dtype":"U8","shape":@[0,4294967296,4294967296],"data_offsets":[0,0]}})", "overflows 64 bits"},
        {R"({"a":{"dtype":"F6_E2M3","shape":@[3],"data_offsets":[0,3]}})", "18 bits are not whole bytes"},
        {R"({"a":{"dtype":"F4","shape":@[],"data_offsets":[0,1]}})", "4 bits are not whole bytes"},
        // data_offsets
        {R"({"a":{"data_offsets":@0}})", R"(tensor "a", data_offsets: expected an array of integers, found 0)"},
        {R"({"a":{"data_offsets":[@]}})", R"(tensor "a", data_offsets: expected [begin, end], found 0 numbers)"},
        {R"({"a":{"data_offsets":[1 @]}})", "found 1 numbers"},
        {R"({"a":{"data_offsets":[0,1,@2,3]}})", "expected [begin, end], found more"},
        {R"({"a":{"data_offsets":[0,@-4]}})", number + "-4"},
        {R"({"a":{"data_offsets":[0,@16.0]}})", number + "16.0"},
        {R"({"a":{"data_offsets":[0,@1e1]}})", number + "1e1"},
        {R"({"a":{"data_offsets":[0,@[]]}})", number + "an array"},
        {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":@[0,17]}})", "reach beyond the 16 bytes"},
        {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":@[1,17]}})", "reach beyond the 16 bytes"},
        {R"({"a":{"dtype":"F32","shape":[0],"data_offsets":@[17,17]}})", "reach beyond the 16 bytes"},
        {R"({"a":{"dtype":"F32","shape":[0],"data_offsets":@[18446744073709551615,18446744073709551615]}})",
         "reach beyond"},
        {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":@[18446744073709551612,12]}})", "end before they begin"},
        {R"({"a":{"dtype":"F32","shape":[0],"data_offsets":@[0,16]}})", "hold 16 bytes, the shape needs 0"},
        {R"({"a":{"dtype":"F32","shape":[],"data_offsets":@[0,16]}})", "hold 16 bytes, the shape needs 4"},
        {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":@[0,15]}})", "hold 15 bytes, the shape needs 16"},
        {R"({"a":{"dtype":"F32","shape":[4],"data_offsets":@[0,0]}})", "hold 0 bytes, the shape needs 16"},
        // overlap: by one byte, inside, equal; the one that begins later is pointed at, whatever the order
        {header_of(entry("a", "U8", "8", "0,8"), R"("b":{"dtype":"U8","shape":[8],"data_offsets":@[7,15]})"),
         R"(tensors "a" [0, 8] and "b" [7, 15] overlap)"},
        {header_of(R"("b":{"dtype":"U8","shape":[8],"data_offsets":@[7,15]})", entry("a", "U8", "8", "0,8")),
         R"(tensors "a" [0, 8] and "b" [7, 15] overlap)"},
        {header_of(entry("a", "U8", "16", "0,16"), R"("b":{"dtype":"U8","shape":[1],"data_offsets":@[3,4]})"),
         R"(tensors "a" [0, 16] and "b" [3, 4] overlap)"},
        {header_of(entry("a", "U8", "16", "0,16"), R"("b":{"dtype":"F32","shape":[4],"data_offsets":@[0,16]})"),
         R"(tensors "a" [0, 16] and "b" [0, 16] overlap)"},
    };
    std::size_t count = 0;
    for (const bad_header& c : cases) {
        CAPTURE(c.header);
        const auto mark = c.header.find('@');
        REQUIRE(mark != std::string::npos);
        std::string header = c.header;
        header.erase(mark, 1);
        const std::string bytes = file_of(header, std::string(16, 'x'));
        const exact_bytes memory(bytes);
        const auto parsed = st::parse(memory.span());
        REQUIRE_FALSE(parsed);
        CAPTURE(parsed.failure().message);
        CHECK(parsed.failure().code == errc::malformed);
        CHECK(parsed.failure().offset == 8 + mark);
        CHECK(contains(parsed.failure().message, c.message));
        CHECK_FALSE(acceptable(bytes));
        ++count;
    }
    CHECK(count == 91);
}

TEST_CASE("safetensors: header lengths", "[io][safetensors]") {
    const auto length_field = [](std::uint64_t n) {
        std::string out(8, '\0');
        std::memcpy(out.data(), &n, 8);
        return out;
    };
    std::size_t cases = 0;
    const auto refuses = [&](std::string_view bytes, std::uint64_t offset, std::string_view part,
                             const st::read_limits& limits = {}) {
        ++cases;
        const exact_bytes memory(bytes);
        const auto parsed = st::parse(memory.span(), limits);
        REQUIRE_FALSE(parsed);
        CAPTURE(parsed.failure().message);
        CHECK(parsed.failure().offset == offset);
        CHECK(contains(parsed.failure().message, part));
    };
    for (std::size_t n = 0; n < 8; ++n)
        refuses(std::string(n, '\1'), n, "expected 8 bytes of header length, the file has " + to_string(n));
    refuses(length_field(0), 8, "the header is empty");
    refuses(length_field(3) + "{}", 0, "header length 3, but only 2 bytes follow");
    refuses(length_field(1), 0, "header length 1, but only 0 bytes follow");
    refuses(length_field(100'000'000) + "{}", 0, "header length 100000000, but only 2 bytes follow");
    refuses(length_field(100'000'001) + "{}", 0, "above the limit of 100000000");
    for (const std::uint64_t n : {UINT64_MAX, UINT64_MAX - 7, UINT64_MAX - 8, std::uint64_t{1} << 63})  // 8 + n wraps
        refuses(length_field(n) + "{}", 0, "header length " + to_string(n) + " is above the limit");
    refuses(file_of("{}"), 0, "header length 2 is above the limit of 1", {.header_bytes = 1});
    refuses(length_field(100'000'001) + "{}", 0, "limit of 100000000", {.header_bytes = UINT64_MAX});
    // Other kinds of file have a nonsensical length: the message says what they are.
    refuses("version https://git-lfs.github.com/spec/v1\n", 0, "Git LFS pointer");
    refuses(std::string("GGUF\3\0\0\0\1\0\0\0\0\0\0\0", 16), 0, "GGUF");
    refuses(std::string("PK\3\4\0\0\x08\x08\0\0\0\0", 12), 0, "zip archive");
    CHECK(cases == 22);
}

TEST_CASE("safetensors: acceptable files built here", "[io][safetensors]") {
    std::size_t cases = 0;
    const auto accepts = [&](std::string_view header, std::size_t buffer, auto check) {
        ++cases;
        CAPTURE(header);
        const std::string bytes = file_of(header, std::string(buffer, '\x11'));
        const exact_bytes memory(bytes);
        const auto parsed = st::parse(memory.span());
        INFO((parsed ? "" : parsed.failure().message));
        REQUIRE(parsed);
        CHECK(broken_promise(parsed.value(), memory.span()) == "");
        CHECK(acceptable(bytes));
        check(parsed.value());
    };
    const auto unused = [](std::uint64_t n) { return [n](const st::file& f) { CHECK(f.unused_bytes() == n); }; };

    accepts("{}", 0, unused(0));
    accepts("{}        ", 7, unused(7));
    accepts("{\n\t\"a\" :\r\n {\"shape\" : [ 2 , 2 ] , \"data_offsets\":[0, 16],\"dtype\": \"F32\"} } ", 16, unused(0));
    accepts(R"({"__metadata__":{}})", 0, [](const st::file& f) { CHECK(f.metadata().empty()); });
    accepts(R"({"__metadata__":{"":"","\u00e9":"\ud83d\ude00"}})", 0, [](const st::file& f) {
        CHECK(f.metadata().size() == 2);
        CHECK(f.metadata().at("\xc3\xa9") == "\xf0\x9f\x98\x80");
    });
    // Scalars and empty tensors, at both ends of the buffer and inside another tensor.
    accepts(header_of(entry("s", "F64", "", "0,8"), entry("e", "F32", "0", "0,0"), entry("i", "F4", "3,0,5", "4,4"),
                      entry("z", "U8", "0,2305843009213693951", "8,8")),
            8, [](const st::file& f) {
                CHECK(f.find("s")->elements() == 1);
                CHECK(f.find("s")->bytes.size() == 8);
                for (const char* name : {"e", "i", "z"}) {
                    CHECK(f.find(name)->elements() == 0);
                    CHECK(f.find(name)->bytes.empty());
                }
                CHECK(f.unused_bytes() == 0);
            });
    // The header's order is kept, whatever the order of the data.
    accepts(header_of(entry("z", "U8", "2", "6,8"), entry("a", "U8", "3", "0,3"), entry("m", "U8", "3", "3,6")),
            8, [](const st::file& f) {
                REQUIRE(f.tensors().size() == 3);
                CHECK(f.tensors()[0].name == "z");
                CHECK(f.tensors()[1].name == "a");
                CHECK(f.tensors()[2].name == "m");
                CHECK(f.tensors()[0].offset == f.buffer_offset() + 6);
            });
    // Gaps: at the start, between, at the end.
    accepts(header_of(entry("a", "U8", "2", "3,5"), entry("b", "U8", "1", "9,10")), 16, unused(13));
    // Names that differ only a little, and the metadata key inside an entry's name.
    accepts(header_of(entry("", "U8", "0", "0,0"), entry("\\u0000", "U8", "0", "0,0"),
                      entry("__metadata", "U8", "0", "0,0")),
            0, [](const st::file& f) {
                CHECK(f.find("") != nullptr);
                CHECK(f.find(std::string_view("\0", 1)) != nullptr);
                CHECK(f.find("__metadata__") == nullptr);
            });
    // Sub-byte shapes that fill bytes.
    accepts(header_of(entry("a", "F6_E3M2", "2,2", "0,3"), entry("b", "F4", "2,3", "3,6")), 6, unused(0));
    std::string ones = "1";
    for (int i = 1; i < 64; ++i) ones += ",1";
    accepts(R"({"a":{"dtype":"U8","shape":[)" + ones + R"(],"data_offsets":[0,1]}})", 1, unused(0));
    accepts(small_header, 24, unused(0));
    CHECK(cases == 12);

    SECTION("the minimal vector of the format's description") {
        const exact_bytes memory(file_of(R"({"t":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}  )",
                                         std::string("\0\0\x80\x3f\0\0\0\xc0", 8)));
        REQUIRE(memory.size == 72);
        const auto file = st::parse(memory.span());
        REQUIRE(file);
        const auto values = file.value().find("t")->as<float>();
        REQUIRE(values);
        CHECK(values.value()[0] == 1.0f);
        CHECK(values.value()[1] == -2.0f);
    }
}

TEST_CASE("safetensors: a file cut at any byte is refused", "[io][safetensors]") {
    const std::string whole = file_of(small_header, small_buffer);
    verdicts count;
    for (std::size_t n = 0; n <= whole.size(); ++n) {
        CAPTURE(n);
        REQUIRE(judge(std::string_view(whole).substr(0, n), count) == "");
    }
    CHECK(count.cases == whole.size() + 1);
    CHECK(count.accepted == 1);  // the whole one

    // The header cut at any byte, with its length adjusted: the JSON ends early.
    verdicts cut;
    for (std::size_t n = 0; n <= small_header.size(); ++n) {
        CAPTURE(n);
        REQUIRE(judge(file_of(std::string_view(small_header).substr(0, n), small_buffer), cut) == "");
    }
    CHECK(cut.cases == small_header.size() + 1);
    CHECK(cut.accepted == 2);  // with and without the last space
}

TEST_CASE("safetensors: every byte of a header with every value, and every bit of it flipped", "[io][safetensors]") {
    const std::string whole = file_of(small_header, small_buffer);
    const std::size_t head = 8 + small_header.size();
    verdicts count;
    for (std::size_t at = 0; at < head; ++at) {
        for (unsigned value = 0; value < 256; ++value) {  // the eight flipped bits are among them
            std::string changed = whole;
            changed[at] = static_cast<char>(value);
            const std::string wrong = judge(changed, count);
            if (wrong.empty()) continue;
            CAPTURE(at, value);
            REQUIRE(wrong == "");
        }
    }
    CHECK(count.cases == head * 256);
    CHECK(count.accepted > head);       // at least each byte with its own value
    CHECK(count.accepted < head * 64);  // and the test is not blind

    // A byte taken out, and a byte of every kind that JSON knows put in.
    verdicts moved;
    const std::string_view kinds = "{}[]:,\" \n019-.eE+\\xtfn/\x7f";
    for (std::size_t at = 0; at < small_header.size(); ++at) {
        std::string changed = small_header;
        changed.erase(at, 1);
        CAPTURE(at);
        REQUIRE(judge(file_of(changed, small_buffer), moved) == "");
        for (const char c : kinds) {
            changed = small_header;
            changed.insert(at, 1, c);
            REQUIRE(judge(file_of(changed, small_buffer), moved) == "");
        }
    }
    CHECK(moved.cases == small_header.size() * (1 + kinds.size()));
    CHECK(moved.accepted > 100);
}

TEST_CASE("safetensors: shuffled headers get the verdict of the second reader", "[io][safetensors]") {
    // Entries of small random numbers: most fail for one reason only, and a good part is acceptable.
    std::mt19937 random(20240229);
    const auto pick = [&](unsigned below) { return static_cast<unsigned>(random()) % below; };
    const char* const types[] = {"U8", "F4", "F16", "F32", "F6_E2M3", "BOOL"};
    const char* const dims[] = {"0", "1", "2", "3", "4", "8", "4294967296", "9223372036854775808"};
    verdicts count;
    for (int i = 0; i < 20000; ++i) {
        std::string header = "{";
        const unsigned tensors = pick(4);
        std::uint64_t next = 0;
        for (unsigned t = 0; t < tensors; ++t) {
            const char* type = types[pick(6)];
            std::string shape;
            std::uint64_t bits = st::bits_of(*st::dtype_named(type));
            for (unsigned d = pick(4); d > 0; --d) {
                const char* dim = dims[pick(10) == 0 ? pick(8) : 1 + pick(5)];
                shape += (shape.empty() ? "" : ",") + std::string(dim);
                bits *= std::stoull(dim);  // may wrap; that is the test
            }
            const std::uint64_t begin = pick(8) == 0 ? pick(64) : next;
            const std::uint64_t end = begin + bits / 8 + (pick(12) == 0 ? 1 : 0);
            next = end;
            header += (t == 0 ? "" : ",") + entry(std::string(1, "abcdefgh"[pick(10) == 0 ? pick(8) : t]), type, shape,
                                                  to_string(begin) + "," + to_string(end));
        }
        header += "}";
        const std::string wrong = judge(file_of(header, std::string(192, 'd')), count);
        if (wrong.empty()) continue;
        CAPTURE(header);
        REQUIRE(wrong == "");
    }
    CHECK(count.cases == 20000);
    CHECK(count.accepted > 5000);
    CHECK(count.accepted < 15000);
}

TEST_CASE("safetensors: nesting and counts do not hurt", "[io][safetensors]") {
    std::size_t cases = 0;
    const auto refuses = [&](const std::string& header, std::uint64_t offset, std::string_view part,
                             const st::read_limits& limits = {}) {
        ++cases;
        const exact_bytes memory(file_of(header));
        const auto parsed = st::parse(memory.span(), limits);
        REQUIRE_FALSE(parsed);
        CAPTURE(parsed.failure().message.substr(0, 300));
        CHECK(parsed.failure().offset == offset);
        CHECK(contains(parsed.failure().message, part));
        CHECK(parsed.failure().message.size() < 600);  // however long what it speaks of
    };
    const std::size_t deep = 2'000'000;
    std::string objects;
    while (objects.size() < deep) objects += "{\"a\":";
    refuses(objects, 8 + 6, "found the field \"a\"");
    refuses("{\"a\":" + std::string(deep, '['), 8 + 5, "expected an object, found an array");
    refuses(R"({"a":{"shape":[)" + std::string(deep, '['), 8 + 15, "found an array");
    refuses(R"({"a":{"dtype":)" + std::string(deep, '['), 8 + 14, "expected a string, found an array");
    refuses(R"({"__metadata__":{"k":)" + std::string(deep, '['), 8 + 21, "expected a string, found an array");
    refuses("{" + std::string(deep, '{'), 8 + 1, "the header is not JSON");

    // Long things are shortened in messages.
    const std::string longest(deep, 'n');
    refuses("{\"" + longest + "\":1}", 8 + 4 + deep, "(2000000 bytes)");
    refuses("{\"a\":" + std::string(deep, '1') + "}", 8 + 5 + deep - 1, "number overflow");
    refuses("{\"a\":{\"dtype\":\"" + longest + "\"}}", 8 + 14, "unknown dtype \"nnn");
    refuses("{\"" + longest, 8 + 2 + deep, "the header is not JSON");
    refuses("{" + std::string(deep, '\n') + "x", 8 + 1 + 4096, "line breaks, tabs or controls in a row");
    refuses("{" + std::string(4096, '\t') + "x", 8 + 1 + 4096, "the header is not JSON");

    // One more than the limits.
    std::string many = "{";
    std::string keys = R"({"__metadata__":{)";
    std::size_t last = 0;
    std::size_t last_key = 0;
    for (int i = 0; i < 1000; ++i) {
        last = many.size();
        many += entry(to_string(i), "U8", "0", "0,0") + (i == 999 ? "}" : ",");
        last_key = keys.size();
        keys += "\"" + to_string(i) + R"(":"")" + (i == 999 ? "}}" : ",");
    }
    refuses(many, 8 + last, "more than 999 tensors", {.tensors = 999});
    refuses(keys, 8 + last_key, "more than 999 metadata keys", {.metadata = 999});
    refuses(R"({"a":{"shape":[1,1,1,1]}})", 8 + 21, "more than 3 dimensions", {.rank = 3});
    std::string ones = "1";
    for (int i = 1; i < 64; ++i) ones += ",1";
    refuses(R"({"a":{"shape":[)" + ones + ",1]}}", 8 + 15 + 128, "more than 64 dimensions");
    CHECK(cases == 16);

    // Exactly the limits.
    const exact_bytes tensors(file_of(many));
    const auto at_limit = st::parse(tensors.span(), {.tensors = 1000});
    REQUIRE(at_limit);
    CHECK(at_limit.value().tensors().size() == 1000);
    CHECK(broken_promise(at_limit.value(), tensors.span()) == "");
    const exact_bytes metadata(file_of(keys));
    const auto keys_at_limit = st::parse(metadata.span(), {.metadata = 1000});
    REQUIRE(keys_at_limit);
    CHECK(keys_at_limit.value().metadata().size() == 1000);
}

TEST_CASE("safetensors: find, and names that come near", "[io][safetensors]") {
    std::string header = "{";
    for (const char* name : {"model.layers.10.mlp.up.weight", "model.layers.1.mlp.up.weight",
                             "model.layers.1.mlp.up.bias", "embed", "lm_head.weight"})
        header += (header.size() == 1 ? "" : ",") + entry(name, "U8", "0", "0,0");
    const exact_bytes memory(file_of(header + "}"));
    auto parsed = st::parse(memory.span());
    REQUIRE(parsed);
    const st::file file = std::move(parsed).value();  // moving keeps pointers into the file
    CHECK(file.find("embed") == &file.tensors()[3]);
    CHECK(file.find("embe") == nullptr);
    CHECK(file.find("embedd") == nullptr);
    CHECK(file.find("") == nullptr);
    REQUIRE(file.at("lm_head.weight"));
    CHECK(file.at("lm_head.weight").value()->name == "lm_head.weight");

    const auto missing = file.at("model.layers.1.mlp.gate.weight");
    REQUIRE_FALSE(missing);
    CHECK(missing.failure().code == errc::not_found);
    CAPTURE(missing.failure().message);
    CHECK(missing.failure().message ==
          R"(no tensor "model.layers.1.mlp.gate.weight"; nearest of 5: "model.layers.1.mlp.up.weight", )"
          R"("model.layers.10.mlp.up.weight", "model.layers.1.mlp.up.bias")");

    const exact_bytes nothing(file_of("{}"));
    const auto empty = st::parse(nothing.span());
    REQUIRE(empty);
    CHECK(empty.value().at("x").failure().message == R"(no tensor "x"; there are none)");
    CHECK(contains(file.at("\x1b[2J").failure().message, R"("\x1b[2J")"));

    CHECK(nibble::detail::name_distance("abc", "abc") == 0);
    CHECK(nibble::detail::name_distance("abc", "abXc") == 1);
    CHECK(nibble::detail::name_distance("aa", "aaa") == 1);  // the common end stops where the common beginning did
    CHECK(nibble::detail::name_distance("", "xyz") == 3);
}

TEST_CASE("safetensors: typed access, aligned or not", "[io][safetensors]") {
    const std::string header =
        header_of(entry("f32", "F32", "2,3", "0,24"), entry("f64", "F64", "1,2", "24,40"),
                  entry("f16", "F16", "2,2", "40,48"), entry("bf16", "BF16", "4,1", "48,56"),
                  entry("i32", "I32", "1,2", "56,64"), entry("bool", "BOOL", "2", "64,66"),
                  entry("cube", "F32", "1,1,1", "66,70"), entry("none", "F32", "0,7", "70,70"));
    const float f32[] = {1.0f, -2.5f, 3.0f, 4.0f, 5.0f, 6.25f};
    const double f64[] = {0.1, -1e300};
    const std::uint16_t f16[] = {0x3c00, 0x0001, 0xfbff, 0x7c00};  // 1, 2^-24, -65504, Inf
    const std::uint16_t bf16[] = {0x3f80, 0xbf00, 0x0001, 0x7f7f};
    const std::int32_t i32[] = {-7, 1 << 30};
    std::string buffer;
    const auto add = [&](const auto& values) { buffer.append(reinterpret_cast<const char*>(values), sizeof values); };
    add(f32);
    add(f64);
    add(f16);
    add(bf16);
    add(i32);
    buffer += "\x01\x02";
    buffer.append("\0\0\x80\x3f", 4);

    std::size_t layouts = 0;
    for (std::size_t shift = 0; shift < 8; ++shift) {  // where the buffer begins, modulo 8
        CAPTURE(shift);
        std::string padded = header;
        while ((8 + padded.size()) % 8 != shift) padded += ' ';
        const exact_bytes memory(file_of(padded, buffer));
        const auto parsed = st::parse(memory.span());
        INFO((parsed ? "" : parsed.failure().message));
        REQUIRE(parsed);
        const st::file& file = parsed.value();
        ++layouts;

        std::vector<float> floats(99);
        REQUIRE(file.find("f32")->copy_to(floats));
        CHECK(floats == std::vector<float>(f32, f32 + 6));
        std::vector<std::int32_t> ints;
        REQUIRE(file.find("i32")->copy_to(ints));
        CHECK(ints == std::vector<std::int32_t>(i32, i32 + 2));

        const auto in_place = file.find("f32")->as<float>();
        REQUIRE(in_place.has_value() == (shift % 4 == 0));
        if (in_place) {
            CHECK(std::vector<float>(in_place.value().begin(), in_place.value().end()) == floats);
            CHECK(in_place.value().data() == static_cast<const void*>(file.find("f32")->bytes.data()));
        } else {
            CHECK(in_place.failure().code == errc::unsupported);
            CHECK(in_place.failure().offset == file.find("f32")->offset);
            CHECK(in_place.failure().message ==
                  "tensor \"f32\" is F32 [2, 3]: the data is not aligned for its type (copy_to takes it)");
        }
        CHECK(file.find("f64")->as<double>().has_value() == (shift == 0));
        CHECK(file.find("none")->as<float>().value().empty());  // nothing to align

        REQUIRE(file.find("f16")->to_floats(floats));
        CHECK(floats == std::vector<float>{1.0f, 0x1p-24f, -65504.0f, std::numeric_limits<float>::infinity()});
        REQUIRE(file.find("bf16")->to_floats(floats));
        CHECK(floats == std::vector<float>{1.0f, -0.5f, 0x1p-133f, 0x1.fep127f});
        REQUIRE(file.find("f64")->to_floats(floats));
        CHECK(floats == std::vector<float>{0.1f, -std::numeric_limits<float>::infinity()});
        REQUIRE(file.find("cube")->to_floats(floats));
        CHECK(floats == std::vector<float>{1.0f});

        const auto view = file.find("f32")->view();
        REQUIRE(view);
        CHECK(view.value().data == file.find("f32")->bytes.data());
        CHECK(view.value().type == nibble::scalar_type::f32);
        CHECK(view.value().rows == 2);
        CHECK(view.value().cols == 3);
        float last = 0.0f;
        std::memcpy(&last, view.value().at(1, 2), 4);
        CHECK(last == 6.25f);
        CHECK(file.find("f64")->view().value().type == nibble::scalar_type::f64);
        CHECK(file.find("f16")->view().value().type == nibble::scalar_type::f16);
        CHECK(file.find("bf16")->view().value().type == nibble::scalar_type::bf16);
        std::uint16_t third = 0;
        std::memcpy(&third, file.find("f16")->view().value().at(1, 0), 2);
        CHECK(third == 0xfbff);
        CHECK(file.find("none")->view().value().cols == 7);
    }
    CHECK(layouts == 8);

    const exact_bytes memory(file_of(header, buffer));
    const auto parsed = st::parse(memory.span());
    REQUIRE(parsed);
    const st::file& file = parsed.value();
    const auto says = [](const auto& outcome, errc code, std::string_view message) {
        REQUIRE_FALSE(outcome);
        CHECK(outcome.failure().code == code);
        CHECK(outcome.failure().message == message);
    };
    says(file.find("i32")->view(), errc::unsupported,
         R"(tensor "i32" is I32 [1, 2]: a view needs F32, F64, F16 or BF16)");
    says(file.find("cube")->view(), errc::shape_mismatch,
         R"(tensor "cube" is F32 [1, 1, 1]: a view needs two dimensions)");
    const st::tensor wide{"wide", st::dtype::f32, {0, std::uint64_t{1} << 63}, {}, 0};  // no file can hold it
    says(wide.view(), errc::out_of_range,
         R"(tensor "wide" is F32 [0, 9223372036854775808]: a view needs dimensions below 2^63)");
    says(file.find("f32")->as<double>(), errc::unsupported, R"(tensor "f32" is F32 [2, 3]: this C++ type needs F64)");
    says(file.find("bool")->as<std::uint8_t>(), errc::unsupported,
         R"(tensor "bool" is BOOL [2]: this C++ type needs U8)");
    std::vector<std::uint32_t> wrong;
    CHECK(file.find("i32")->copy_to(wrong).message() == R"(tensor "i32" is I32 [1, 2]: this C++ type needs U32)");
    std::vector<float> floats;
    CHECK(file.find("i32")->to_floats(floats).message() ==
          R"(tensor "i32" is I32 [1, 2]: to_floats needs F32, F64, F16 or BF16)");
}

TEST_CASE("safetensors: every C++ element type reads its own dtype and no other", "[io][safetensors]") {
    std::size_t matches = 0;
    std::size_t cases = 0;
    const auto try_all = [&](const st::tensor& t, auto... zero) {
        const auto try_one = [&]<class T>(T) {
            std::vector<T> out;
            const bool copied = static_cast<bool>(t.copy_to(out));
            CHECK(copied == t.as<T>().has_value());
            CHECK(copied == (st::dtype_of<T>() == t.type));
            if (copied) CHECK(out == std::vector<T>(64 / sizeof(T), T{0}));
            matches += copied ? 1 : 0;
            ++cases;
        };
        (try_one(zero), ...);
    };
    for (const auto& d : st::detail::dtypes) {
        CAPTURE(d.name);
        CHECK(st::dtype_named(d.name) == d.type);
        const auto count = d.bits == 6 ? 84u : 512 / d.bits;  // what fits 64 bytes and fills whole ones
        std::string header = header_of(entry("t", std::string(d.name), to_string(count),
                                             "0," + to_string(count * d.bits / 8)));
        while (header.size() % 8 != 0) header += ' ';
        const exact_bytes memory(file_of(header, std::string(64, '\0')));
        const auto file = st::parse(memory.span());
        INFO((file ? "" : file.failure().message));
        REQUIRE(file);
        try_all(*file.value().find("t"), std::int8_t{}, std::uint8_t{}, std::int16_t{}, std::uint16_t{}, std::int32_t{},
                std::uint32_t{}, std::int64_t{}, std::uint64_t{}, float{}, double{});
    }
    CHECK(cases == 22 * 10);
    CHECK(matches == 10);
    CHECK_FALSE(st::dtype_named("F33").has_value());
}

TEST_CASE("safetensors: opening files", "[io][safetensors]") {
    const scratch_dir dir;
    const std::string content = file_of(small_header, small_buffer);
    const fs::path good = dir.write("good.safetensors", content);
    const fs::path empty = dir.write("empty.safetensors", "");
    std::size_t cases = 0;
    for (const open_mode how : {open_mode::map, open_mode::copy}) {
        CAPTURE(how == open_mode::map);
        const auto refuses = [&](const fs::path& path, errc code, std::string_view part) {
            ++cases;
            const auto opened = st::open(path, how);
            REQUIRE_FALSE(opened);
            CAPTURE(opened.failure().message);
            CHECK(opened.failure().code == code);
            CHECK(opened.failure().offset == 0);
            CHECK(contains(opened.failure().message, part));
        };
        refuses(dir.path / "missing.safetensors", errc::not_found, "missing.safetensors\": No such file");
        refuses(good / "below_a_file", errc::io, "Not a directory");
        refuses(dir.path, errc::io, "Is a directory");
        refuses("", errc::not_found, "No such file");
        refuses(empty, errc::malformed, "the file has 0 bytes");
        refuses(fs::path(good.string() + std::string("\0x", 2)), errc::invalid_argument, "NUL in the name");
#if NIBBLE_HAS_MMAP
        const fs::path pipe = dir.path / (how == open_mode::map ? "pipe1" : "pipe2");
        REQUIRE(::mkfifo(pipe.c_str(), 0600) == 0);
        refuses(pipe, errc::io, "not a regular file");  // and does not wait for a writer
        refuses("/dev/null", errc::io, "not a regular file");
#endif

        auto opened = st::open(good, how);
        REQUIRE(opened);
        st::file first = std::move(opened).value();
        const std::byte* const data = first.find("w")->bytes.data();
        st::file second = std::move(first);
        first = st::open(golden() / "nothing.safetensors", how).value();  // a moved-from file can be assigned to
        CHECK(first.tensors().empty());
        CHECK(second.find("w")->bytes.data() == data);
        CHECK(hex_of(second.find("w")->bytes) == "3c3c3c3c3c3c3c3c3c3c3c3c");
        first = std::move(second);  // and the memory of `nothing` is freed
        CHECK(first.find("w")->bytes.data() == data);
        CHECK(hex_of(first.find("s")->bytes) == "3c3c3c3c3c3c3c3c");
    }
    CHECK(cases == 2 * (6 + 2 * NIBBLE_HAS_MMAP));

    SECTION("a copy does not follow the file") {
        const auto copied = st::open(good, open_mode::copy);
        REQUIRE(copied);
        static_cast<void>(dir.write("good.safetensors", std::string(content.size(), 'y')));
        CHECK(hex_of(copied.value().find("s")->bytes) == "3c3c3c3c3c3c3c3c");
    }
    SECTION("limits reach the reader") {
        const auto limited = st::open(good, open_mode::map, {.tensors = 2});
        REQUIRE_FALSE(limited);
        CHECK(contains(limited.failure().message, "more than 2 tensors"));
    }
    SECTION("value() throws with the message and the offset") {
        std::string said;
        try {
            static_cast<void>(st::open(golden() / "bad" / "unknown_dtype.safetensors").value());
        } catch (const nibble::error& e) {
            said = e.what();
        }
        CHECK(said.ends_with(
            R"(unknown_dtype.safetensors": safetensors: tensor "a", dtype: unknown dtype "F33" (at byte 22))"));
    }
    SECTION("no descriptor is left open") {
#if defined(__linux__)
        const auto open_files = [] {
            return std::distance(fs::directory_iterator("/proc/self/fd"), fs::directory_iterator());
        };
        const auto before = open_files();
        std::vector<st::file> kept;
        for (int i = 0; i < 20; ++i) {
            kept.push_back(st::open(good).value());
            kept.push_back(st::open(good, open_mode::copy).value());
            CHECK_FALSE(st::open(dir.path));
        }
        CHECK(open_files() == before);
#endif
    }
}
