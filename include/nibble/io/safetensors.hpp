// safetensors files, read strictly.
//
//   byte 0         8                    8 + H                                    size of the file
//        | H : u64 | { header, H bytes } | buffer: the tensors' elements          |
//                    {"__metadata__": {"key": "text", ...},                optional
//                     "name": {"dtype": "F16", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
//
// Everything is little-endian and row-major (last dimension fastest). The header is UTF-8 JSON, may end in spaces, and
// its offsets count from the start of the buffer. An empty shape is one element, a 0 in a shape is none.
// A tensor of sub-byte elements is a bit stream that fills whole bytes: an F6 shape of [4] takes 3 bytes.
//
// What holds for every file that parse() or open() returns:
//
//   header        8 <= size, H <= 100,000,000, H <= size - 8, first byte '{', one JSON object, then only spaces
//   an entry      exactly dtype, shape and data_offsets, each once; no name twice (compared after unescaping)
//   numbers       written as plain non-negative integers below 2^64; 1.0, 1e3 and -1 are refused, not rounded
//   shape         at most 64 dimensions; the product of the non-zero ones, times the bits of the dtype, below 2^64
//   data_offsets  begin <= end <= size of the buffer, and end - begin is exactly the size of the shape
//   tensors       share no byte
//   metadata      strings
//   counts        at most 1,000,000 tensors and as many metadata keys (read_limits)
//
// Stricter than the official reader (safetensors 0.8): it takes a repeated key, and a header that begins or goes on
// with other white space. Laxer in one thing: bytes of the buffer that belong to no tensor are accepted, between
// tensors and after the last one, because writers that align their tensors leave such gaps. unused_bytes() counts them;
// a program that wants the official rule refuses a file where it is not 0.
//
// Cost: one pass over the header, no recursion, O(n log n) in the number of tensors. Memory stays below 16 bytes per
// byte of header (the densest hostile case is a header of tiny metadata entries); the buffer is never copied by
// parse() or by a mapping open(), and not touched until a tensor is.
// Lifetime: bytes and views point into the file (open) or into the caller's memory (parse) and last no longer.
//
// Format: https://github.com/huggingface/safetensors
#pragma once

#include <algorithm>
#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "../error.hpp"
#include "../formats/half.hpp"
#include "../view.hpp"
#include "file.hpp"

namespace nibble::inline NIBBLE_ABI::io::safetensors {

/// Every element type of the format.
enum class dtype : std::uint8_t {
    boolean, f4, f6_e2m3, f6_e3m2, u8, i8, f8_e5m2, f8_e4m3, f8_e8m0, f8_e4m3fnuz, f8_e5m2fnuz,
    i16, u16, f16, bf16, i32, u32, f32, c64, f64, i64, u64,
};

namespace detail {

struct dtype_entry {
    dtype type;
    std::string_view name;  // as the header spells it
    unsigned bits;
};

inline constexpr std::array<dtype_entry, 22> dtypes = {{
    {dtype::boolean, "BOOL", 8},
    {dtype::f4, "F4", 4},
    {dtype::f6_e2m3, "F6_E2M3", 6},
    {dtype::f6_e3m2, "F6_E3M2", 6},
    {dtype::u8, "U8", 8},
    {dtype::i8, "I8", 8},
    {dtype::f8_e5m2, "F8_E5M2", 8},
    {dtype::f8_e4m3, "F8_E4M3", 8},
    {dtype::f8_e8m0, "F8_E8M0", 8},
    {dtype::f8_e4m3fnuz, "F8_E4M3FNUZ", 8},
    {dtype::f8_e5m2fnuz, "F8_E5M2FNUZ", 8},
    {dtype::i16, "I16", 16},
    {dtype::u16, "U16", 16},
    {dtype::f16, "F16", 16},
    {dtype::bf16, "BF16", 16},
    {dtype::i32, "I32", 32},
    {dtype::u32, "U32", 32},
    {dtype::f32, "F32", 32},
    {dtype::c64, "C64", 64},  // two F32: real, imaginary
    {dtype::f64, "F64", 64},
    {dtype::i64, "I64", 64},
    {dtype::u64, "U64", 64},
}};

static_assert(
    [] {
        for (std::size_t i = 0; i < dtypes.size(); ++i)
            if (static_cast<std::size_t>(dtypes[i].type) != i) return false;
        return true;
    }(),
    "the table is indexed by dtype");

[[nodiscard]] inline std::string shape_text(std::span<const std::uint64_t> shape) {
    std::string out = "[";
    for (std::size_t i = 0; i < shape.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
    return out + "]";
}

}  // namespace detail

/// How the format spells a dtype: "F16".
[[nodiscard]] constexpr std::string_view name_of(dtype t) noexcept {
    return detail::dtypes[static_cast<std::size_t>(t)].name;
}
/// Bits of one element: 4, 6, 8, 16, 32 or 64.
[[nodiscard]] constexpr unsigned bits_of(dtype t) noexcept {
    return detail::dtypes[static_cast<std::size_t>(t)].bits;
}
/// The dtype of that spelling, if there is one.
[[nodiscard]] constexpr std::optional<dtype> dtype_named(std::string_view name) noexcept {
    for (const auto& entry : detail::dtypes)
        if (entry.name == name) return entry.type;
    return std::nullopt;
}

/// C++ types that are the same thing as a dtype. BOOL is not among them (a byte other than 0 and 1 is no bool), nor are
/// the types C++ has no word for: read those through `bytes`.
template <class T>
concept element =
    std::same_as<T, std::int8_t> || std::same_as<T, std::uint8_t> || std::same_as<T, std::int16_t> ||
    std::same_as<T, std::uint16_t> || std::same_as<T, std::int32_t> || std::same_as<T, std::uint32_t> ||
    std::same_as<T, std::int64_t> || std::same_as<T, std::uint64_t> || std::same_as<T, float> ||
    std::same_as<T, double>;

template <element T>
[[nodiscard]] constexpr dtype dtype_of() noexcept {
    if constexpr (std::same_as<T, std::int8_t>) return dtype::i8;
    else if constexpr (std::same_as<T, std::uint8_t>) return dtype::u8;
    else if constexpr (std::same_as<T, std::int16_t>) return dtype::i16;
    else if constexpr (std::same_as<T, std::uint16_t>) return dtype::u16;
    else if constexpr (std::same_as<T, std::int32_t>) return dtype::i32;
    else if constexpr (std::same_as<T, std::uint32_t>) return dtype::u32;
    else if constexpr (std::same_as<T, std::int64_t>) return dtype::i64;
    else if constexpr (std::same_as<T, std::uint64_t>) return dtype::u64;
    else if constexpr (std::same_as<T, float>) return dtype::f32;
    else return dtype::f64;
}

/// One tensor of a file.
struct tensor {
    std::string name;
    dtype type = dtype::u8;
    std::vector<std::uint64_t> shape;  ///< outermost dimension first; empty for a scalar
    std::span<const std::byte> bytes;  ///< the elements; not necessarily aligned for their type
    std::uint64_t offset = 0;          ///< where in the file `bytes` begins

    /// Number of elements: 1 for a scalar, 0 when a dimension is 0.
    [[nodiscard]] std::uint64_t elements() const noexcept {
        std::uint64_t n = 1;
        for (const std::uint64_t d : shape) n *= d;
        return n;
    }

    /// "F16 [2, 3]"
    [[nodiscard]] std::string describe() const {
        return std::string(name_of(type)) + " " + detail::shape_text(shape);
    }

    /// A matrix of F32, F64, F16 or BF16, in place. The data of a view may be unaligned: a file decides.
    [[nodiscard]] result<const_view> view() const {
        std::optional<scalar_type> scalar;
        if (type == dtype::f32) scalar = scalar_type::f32;
        if (type == dtype::f64) scalar = scalar_type::f64;
        if (type == dtype::f16) scalar = scalar_type::f16;
        if (type == dtype::bf16) scalar = scalar_type::bf16;
        if (!scalar.has_value()) return refuse(errc::unsupported, "a view needs F32, F64, F16 or BF16");
        if (shape.size() != 2) return refuse(errc::shape_mismatch, "a view needs two dimensions");
        // Only a matrix without elements can get here with dimensions that an index cannot hold.
        constexpr auto most = static_cast<std::uint64_t>((std::numeric_limits<index>::max)());
        if (shape[0] > most || shape[1] > most) return refuse(errc::out_of_range, "a view needs dimensions below 2^63");
        const auto rows = static_cast<index>(shape[0]);
        const auto cols = static_cast<index>(shape[1]);
        return const_view{bytes.data(), *scalar, rows, cols, cols, 1};
    }

    /// The elements in place, as the C++ type that is exactly the dtype. Refuses data that is not aligned for T
    /// (copy_to does not).
    template <element T>
    [[nodiscard]] result<std::span<const T>> as() const {
        if (type != dtype_of<T>()) return refuse(errc::unsupported, needs<T>());
        if (bytes.empty()) return std::span<const T>{};
        const void* const first = bytes.data();
        if (reinterpret_cast<std::uintptr_t>(first) % alignof(T) != 0)
            return refuse(errc::unsupported, "the data is not aligned for its type (copy_to takes it)");
        return std::span<const T>{static_cast<const T*>(first), bytes.size() / sizeof(T)};
    }

    /// The elements copied out, wherever they lie.
    template <element T>
    [[nodiscard]] status copy_to(std::vector<T>& out) const {
        if (type != dtype_of<T>()) return wrong(errc::unsupported, needs<T>());
        out.resize(bytes.size() / sizeof(T));
        if (!out.empty()) std::memcpy(out.data(), bytes.data(), out.size() * sizeof(T));
        return {};
    }

    /// The elements as floats: exact for F32, F16 and BF16; F64 is rounded by the machine. Any shape.
    [[nodiscard]] status to_floats(std::vector<float>& out) const {
        if (type == dtype::f32) return copy_to(out);
        if (type == dtype::f16) return convert<std::uint16_t>(out, [](std::uint16_t h) { return fp16_to_float(h); });
        if (type == dtype::bf16) return convert<std::uint16_t>(out, [](std::uint16_t h) { return bf16_to_float(h); });
        if (type == dtype::f64) return convert<double>(out, [](double x) { return static_cast<float>(x); });
        return wrong(errc::unsupported, "to_floats needs F32, F64, F16 or BF16");
    }

private:
    template <element T>
    [[nodiscard]] static std::string needs() {
        return "this C++ type needs " + std::string(name_of(dtype_of<T>()));
    }

    [[nodiscard]] status wrong(errc code, std::string_view need) const {
        return {code, "tensor " + io::detail::quoted(name) + " is " + describe() + ": " + std::string(need)};
    }
    [[nodiscard]] failure refuse(errc code, std::string_view need) const {
        return {code, wrong(code, need).message(), offset};
    }

    template <class T, class Convert>
    [[nodiscard]] status convert(std::vector<float>& out, Convert to_float) const {
        out.resize(bytes.size() / sizeof(T));
        for (std::size_t i = 0; i < out.size(); ++i) {
            T value;
            std::memcpy(&value, bytes.data() + i * sizeof(T), sizeof(T));
            out[i] = to_float(value);
        }
        return {};
    }
};

/// How much a header may hold. The defaults fit every model there is; lower them for files of strangers.
struct read_limits {
    std::uint64_t header_bytes = 100'000'000;  ///< values above the format's own 100,000,000 mean that
    std::size_t tensors = 1'000'000;
    std::size_t metadata = 1'000'000;
    std::size_t rank = 64;  ///< no framework has more dimensions
};

using metadata_map = std::map<std::string, std::string, std::less<>>;

class file;

namespace detail {

class header_reader;

[[nodiscard]] constexpr bool mul_overflows(std::uint64_t a, std::uint64_t b) noexcept {
    return a != 0 && b > (std::numeric_limits<std::uint64_t>::max)() / a;
}

// How far two names are apart: what is left of the longer one without the common beginning and the common end. Unlike
// an edit distance it costs O(length), and it catches what people do to tensor names: one wrong part.
[[nodiscard]] constexpr std::size_t name_distance(std::string_view a, std::string_view b) noexcept {
    const std::size_t shorter = a.size() < b.size() ? a.size() : b.size();
    const std::size_t longer = a.size() < b.size() ? b.size() : a.size();
    std::size_t front = 0;
    while (front < shorter && a[front] == b[front]) ++front;
    std::size_t back = 0;
    while (back < shorter - front && a[a.size() - 1 - back] == b[b.size() - 1 - back]) ++back;
    return longer - front - back;
}

}  // namespace detail

[[nodiscard]] inline result<file> parse(std::span<const std::byte> bytes, const read_limits& limits = {});
[[nodiscard]] inline result<file> open(const std::filesystem::path& path, open_mode how = open_mode::map,
                                       const read_limits& limits = {});

/// A file that passed every check. Moving it moves no bytes; copying is not possible.
class file {
public:
    file(file&&) noexcept = default;
    file& operator=(file&&) noexcept = default;

    // Nothing may be taken out of a temporary file: it would dangle.
    [[nodiscard]] const std::vector<tensor>& tensors() const& noexcept { return tensors_; }  ///< in header order
    const std::vector<tensor>& tensors() const&& = delete;
    [[nodiscard]] const metadata_map& metadata() const& noexcept { return metadata_; }
    const metadata_map& metadata() const&& = delete;

    /// The tensor of that name, or null.
    [[nodiscard]] const tensor* find(std::string_view name) const& noexcept {
        const auto at = std::lower_bound(
            by_name_.begin(), by_name_.end(), name,
            [this](std::uint32_t i, std::string_view wanted) { return std::string_view(tensors_[i].name) < wanted; });
        return at != by_name_.end() && tensors_[*at].name == name ? &tensors_[*at] : nullptr;
    }
    const tensor* find(std::string_view name) const&& = delete;

    /// The tensor of that name, or a failure that says which names come near.
    [[nodiscard]] result<const tensor*> at(std::string_view name) const& {
        if (const tensor* found = find(name)) return found;
        return failure{errc::not_found, "no tensor " + io::detail::quoted(name) + nearest(name), 0};
    }
    result<const tensor*> at(std::string_view name) const&& = delete;

    /// Where the buffer begins in the file.
    [[nodiscard]] std::uint64_t buffer_offset() const noexcept { return buffer_offset_; }
    /// Bytes of the buffer that belong to no tensor. The official reader refuses a file where this is not 0.
    [[nodiscard]] std::uint64_t unused_bytes() const noexcept { return unused_; }
    /// Whether tensors point into a mapping of the file.
    [[nodiscard]] bool mapped() const noexcept { return storage_.mapped(); }
    /// Lets go of the memory of its bytes until they are touched again: file_bytes::release().
    void release(const tensor& t) const noexcept { storage_.release(t.bytes); }

private:
    friend class detail::header_reader;
    friend result<file> open(const std::filesystem::path& path, open_mode how, const read_limits& limits);
    file() = default;

    [[nodiscard]] std::string nearest(std::string_view name) const {
        if (tensors_.empty()) return "; the file has no tensors";
        constexpr auto furthest = (std::numeric_limits<std::size_t>::max)();
        struct candidate {
            const tensor* what = nullptr;
            std::size_t distance = furthest;
        };
        std::array<candidate, 3> best{};
        for (const tensor& t : tensors_) {
            candidate c{&t, detail::name_distance(name, t.name)};
            for (candidate& b : best)
                if (c.distance < b.distance) std::swap(b, c);
        }
        std::string out = "; nearest of " + std::to_string(tensors_.size()) + ": ";
        for (const candidate& c : best)
            if (c.what != nullptr) out += (&c == &best[0] ? "" : ", ") + io::detail::quoted(c.what->name);
        return out;
    }

    file_bytes storage_;
    std::vector<tensor> tensors_;
    std::vector<std::uint32_t> by_name_;  // indices into tensors_; 32 bits are enough below 100,000,000 bytes of header
    metadata_map metadata_;
    std::uint64_t buffer_offset_ = 0;
    std::uint64_t unused_ = 0;
};

namespace detail {

// An input iterator over the header that tells how far the JSON parser has come: its events carry no position.
struct tracked_iterator {
    using iterator_category = std::input_iterator_tag;
    using value_type = char;
    using difference_type = std::ptrdiff_t;
    using pointer = const char*;
    using reference = const char&;

    const char* at;
    const char** seen;

    reference operator*() const noexcept { return *at; }
    tracked_iterator& operator++() noexcept {
        *seen = ++at;
        return *this;
    }
    tracked_iterator operator++(int) noexcept {
        const tracked_iterator before = *this;
        ++*this;
        return before;
    }
    friend bool operator==(const tracked_iterator& a, const tracked_iterator& b) noexcept { return a.at == b.at; }
    friend bool operator!=(const tracked_iterator& a, const tracked_iterator& b) noexcept { return a.at != b.at; }
};

// The events of nlohmann's SAX parser become tensors. Depth is bounded by what may follow what, not by a counter: every
// bracket that does not belong stops the parser, which keeps no recursion of its own.
class header_reader {
public:
    header_reader(std::span<const std::byte> bytes, const read_limits& limits) noexcept
        : bytes_(bytes), limits_(limits) {}

    [[nodiscard]] result<file> read() {
        if (!read_length() || !read_header() || !index_names() || !check_overlap()) return std::move(failure_);
        return std::move(file_);
    }

    // --- the SAX interface -------------------------------------------------------------------------------------

    using number_integer_t = nlohmann::json::number_integer_t;
    using number_unsigned_t = nlohmann::json::number_unsigned_t;
    using number_float_t = nlohmann::json::number_float_t;
    using string_t = nlohmann::json::string_t;
    using binary_t = nlohmann::json::binary_t;

    bool null() { return unexpected("null"); }
    bool boolean(bool value) { return unexpected(value ? "true" : "false"); }
    bool number_integer(number_integer_t value) { return unexpected(std::to_string(value)); }  // negative ones only
    bool number_float(number_float_t, const string_t& text) { return unexpected(io::detail::printable(text, 40)); }
    bool binary(binary_t&) { return unexpected("binary data"); }

    bool number_unsigned(number_unsigned_t value) {
        if (place_ == place::shape) {
            if (entry_.shape.size() >= limits_.rank)
                return fail(token_start(), where() + ": more than " + std::to_string(limits_.rank) + " dimensions");
            entry_.shape.push_back(value);
        } else if (place_ == place::offsets) {
            if (entry_.offsets_seen < 2) entry_.offsets[entry_.offsets_seen] = value;
            if (++entry_.offsets_seen > 2) return fail(token_start(), where() + ": expected [begin, end], found more");
        } else {
            return unexpected(std::to_string(value));
        }
        cursor_ = token_start();
        while (cursor_ != end_ && *cursor_ >= '0' && *cursor_ <= '9') ++cursor_;  // the parser has read one further
        return true;
    }

    bool string(string_t& value) {
        if (place_ == place::metadata) {
            file_.metadata_.insert_or_assign(std::move(key_), std::move(value));
        } else if (place_ == place::entry && field_ == field::dtype) {
            const auto type = dtype_named(value);
            if (!type.has_value()) return fail(token_start(), where() + ": unknown dtype " + quoted(value));
            entry_.type = *type;
        } else {
            return unexpected("a string");
        }
        return advance();
    }

    bool start_object(std::size_t) {
        if (place_ == place::start) {
            place_ = place::root;
        } else if (place_ == place::root && in_metadata_) {
            place_ = place::metadata;
        } else if (place_ == place::root) {
            place_ = place::entry;
        } else {
            return unexpected("an object");
        }
        return advance();
    }

    bool key(string_t& value) {
        const char* const at = token_start();
        if (place_ == place::root) {
            in_metadata_ = value == "__metadata__";
            if (in_metadata_) {
                if (std::exchange(metadata_seen_, true)) return fail(at, "__metadata__ is given twice");
            } else {
                if (file_.tensors_.size() >= limits_.tensors)
                    return fail(at, "more than " + std::to_string(limits_.tensors) + " tensors");
                entry_ = {};
                entry_.name_at = at;
                entry_.name = std::move(value);
            }
        } else if (place_ == place::metadata) {
            if (file_.metadata_.contains(value)) return fail(at, "metadata key " + quoted(value) + " is given twice");
            if (file_.metadata_.size() >= limits_.metadata)
                return fail(at, "more than " + std::to_string(limits_.metadata) + " metadata keys");
            key_ = std::move(value);
        } else {  // an entry: shape and data_offsets are arrays and have no keys
            if (value == "dtype") field_ = field::dtype;
            else if (value == "shape") field_ = field::shape;
            else if (value == "data_offsets") field_ = field::offsets;
            else
                return fail(at, "tensor " + quoted(entry_.name) +
                                    ": expected dtype, shape or data_offsets, found the field " + quoted(value));
            bool& seen = entry_.seen[static_cast<std::size_t>(field_)];
            if (std::exchange(seen, true)) return fail(at, where() + " is given twice");
        }
        return advance();
    }

    bool end_object() {
        const char* const at = token_start();
        advance();
        if (place_ == place::root) {
            place_ = place::done;
            return true;
        }
        if (place_ == place::entry && !finish_entry(at)) return false;
        place_ = place::root;
        return true;
    }

    bool start_array(std::size_t) {
        if (place_ != place::entry || field_ == field::dtype) return unexpected("an array");
        place_ = field_ == field::shape ? place::shape : place::offsets;
        (field_ == field::shape ? entry_.shape_at : entry_.offsets_at) = token_start();
        return advance();
    }

    bool end_array() {
        if (place_ == place::offsets && entry_.offsets_seen != 2)
            return fail(token_start(), where() + ": expected [begin, end], found " +
                                           std::to_string(entry_.offsets_seen) + " numbers");
        place_ = place::entry;
        return advance();
    }

    bool parse_error(std::size_t position, const std::string&, const nlohmann::detail::exception& why) {
        // "[json.exception.parse_error.101] parse error at line 1, column 9: syntax error ...": the reason alone
        std::string_view text = why.what();
        for (const std::string_view before_reason : {"] ", ": "}) {
            const auto at = text.substr(0, 80).find(before_reason);
            if (at != std::string_view::npos) text.remove_prefix(at + before_reason.size());
        }
        const auto size = static_cast<std::size_t>(end_ - begin_);
        const std::size_t at = position == 0 ? 0 : position - 1;  // position counts the bytes read, the bad one too
        return fail(begin_ + (at < size ? at : size), "the header is not JSON: " + io::detail::printable(text, 200));
    }

private:
    enum class place { start, root, metadata, entry, shape, offsets, done };
    enum class field : std::size_t { dtype, shape, offsets };

    struct pending_entry {
        std::string name;
        dtype type = dtype::u8;
        std::vector<std::uint64_t> shape;
        std::array<std::uint64_t, 2> offsets{};
        std::size_t offsets_seen = 0;
        std::array<bool, 3> seen{};
        const char* name_at = nullptr;
        const char* shape_at = nullptr;
        const char* offsets_at = nullptr;
    };
    struct positions {  // of a tensor's name and data_offsets in the header, for the checks between tensors
        std::uint32_t name;
        std::uint32_t offsets;
    };

    [[nodiscard]] static std::string quoted(std::string_view text) { return io::detail::quoted(text); }

    // --- the steps ---------------------------------------------------------------------------------------------

    [[nodiscard]] bool read_length() {
        if (bytes_.size() < 8)
            return fail_at(bytes_.size(), "expected 8 bytes of header length, the file has " +
                                              std::to_string(bytes_.size()) + " bytes");
        std::uint64_t length = 0;
        for (std::size_t i = 0; i < 8; ++i) length |= std::to_integer<std::uint64_t>(bytes_[i]) << (8 * i);
        const std::uint64_t cap = limits_.header_bytes < 100'000'000 ? limits_.header_bytes : 100'000'000;
        const std::uint64_t remaining = bytes_.size() - 8;
        if (length > cap)
            return fail_at(0, "header length " + std::to_string(length) + " is above the limit of " +
                                  std::to_string(cap) + other_format());
        if (length > remaining)
            return fail_at(0, "header length " + std::to_string(length) + ", but only " + std::to_string(remaining) +
                                  " bytes follow" + other_format());
        begin_ = reinterpret_cast<const char*>(bytes_.data()) + 8;
        end_ = begin_ + length;
        buffer_ = {bytes_.data() + 8 + length, bytes_.data() + bytes_.size()};
        return true;
    }

    // A file of another kind has a nonsensical header length: say what it looks like.
    [[nodiscard]] std::string other_format() const {
        const std::string_view head(reinterpret_cast<const char*>(bytes_.data()), 8);
        if (head == "version ") return " (this looks like a Git LFS pointer, not the file itself)";
        if (head.starts_with("GGUF")) return " (this looks like a GGUF file)";
        if (head.starts_with("PK\x03\x04")) return " (this looks like a zip archive, such as a PyTorch .pt or .bin)";
        return "";
    }

    [[nodiscard]] bool read_header() {
        if (begin_ == end_) return fail(begin_, "expected '{' at the start of the header, the header is empty");
        if (*begin_ != '{')
            return fail(begin_, "expected '{' at the start of the header, found " +
                                    quoted(std::string_view(begin_, 1)));
        if (!check_blank_runs()) return false;

        cursor_ = begin_;
        seen_ = begin_;
        const tracked_iterator first{begin_, &seen_};
        const tracked_iterator last{end_, &seen_};
        // Not the parser's strict mode: it takes a NUL for the end of the text and would skip whatever follows one.
        if (!nlohmann::json::sax_parse(first, last, this, nlohmann::json::input_format_t::json, false)) return false;

        for (const char* at = cursor_; at != end_; ++at)
            if (*at != ' ')
                return fail(at, "expected only spaces after the header's object, found " +
                                    quoted(std::string_view(at, 1)));
        file_.buffer_offset_ = 8 + static_cast<std::uint64_t>(end_ - begin_);
        return true;
    }

    // The parser repeats the control characters before a bad token in its message, each as eight characters and more
    // than once. Without this check, 100 MB of line breaks would cost gigabytes.
    [[nodiscard]] bool check_blank_runs() {
        constexpr std::size_t most = 4096;
        std::size_t run = 0;
        for (const char* at = begin_; at != end_; ++at) {
            const auto c = static_cast<unsigned char>(*at);
            if (c > ' ') run = 0;
            else if (c < ' ' && ++run > most)
                return fail(at, "more than " + std::to_string(most) + " line breaks, tabs or controls in a row");
        }
        return true;
    }

    [[nodiscard]] bool finish_entry(const char* closing) {
        constexpr std::array<const char*, 3> names = {"dtype", "shape", "data_offsets"};
        for (std::size_t i = 0; i < names.size(); ++i)
            if (!entry_.seen[i])
                return fail(closing, "tensor " + quoted(entry_.name) + " has no " + std::string(names[i]));

        // Zeros are left out of the product, so that its parts (strides) fit 64 bits in every order.
        std::uint64_t bits = bits_of(entry_.type);
        bool empty = false;
        for (const std::uint64_t d : entry_.shape) {
            if (d == 0) {
                empty = true;
                continue;
            }
            if (mul_overflows(bits, d)) return fail(entry_.shape_at, describe() + ": its size overflows 64 bits");
            bits *= d;
        }
        if (empty) bits = 0;
        if (bits % 8 != 0)
            return fail(entry_.shape_at, describe() + ": " + std::to_string(bits) + " bits are not whole bytes");

        const auto [begin, end] = entry_.offsets;
        const std::string range = ": data_offsets [" + std::to_string(begin) + ", " + std::to_string(end) + "]";
        if (begin > end) return fail(entry_.offsets_at, describe() + range + " end before they begin");
        if (end > buffer_.size())
            return fail(entry_.offsets_at, describe() + range + " reach beyond the " + std::to_string(buffer_.size()) +
                                               " bytes of the buffer");
        if (end - begin != bits / 8)
            return fail(entry_.offsets_at, describe() + range + " hold " + std::to_string(end - begin) +
                                               " bytes, the shape needs " + std::to_string(bits / 8));

        positions_.push_back({static_cast<std::uint32_t>(entry_.name_at - begin_),
                              static_cast<std::uint32_t>(entry_.offsets_at - begin_)});
        tensor& t = file_.tensors_.emplace_back();
        t.name = std::move(entry_.name);
        t.type = entry_.type;
        t.shape.assign(entry_.shape.begin(), entry_.shape.end());  // not moved: this one has no spare capacity
        t.bytes = {buffer_.data() + begin, buffer_.data() + end};
        t.offset = static_cast<std::uint64_t>(buffer_.data() - bytes_.data()) + begin;
        return true;
    }

    // Sorted rather than hashed: a hostile header cannot make sorting slow.
    [[nodiscard]] bool index_names() {
        const auto& tensors = file_.tensors_;
        auto& order = file_.by_name_;
        order.resize(tensors.size());
        for (std::size_t i = 0; i < order.size(); ++i) order[i] = static_cast<std::uint32_t>(i);
        std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
            const int c = tensors[a].name.compare(tensors[b].name);
            return c != 0 ? c < 0 : a < b;
        });
        for (std::size_t i = 1; i < order.size(); ++i)
            if (tensors[order[i]].name == tensors[order[i - 1]].name)
                return fail(begin_ + positions_[order[i]].name,
                            "tensor " + quoted(tensors[order[i]].name) + " is given twice");
        return true;
    }

    [[nodiscard]] bool check_overlap() {
        const auto& tensors = file_.tensors_;
        std::vector<std::uint32_t> order;
        order.reserve(tensors.size());
        for (std::size_t i = 0; i < tensors.size(); ++i)
            if (!tensors[i].bytes.empty()) order.push_back(static_cast<std::uint32_t>(i));
        std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
            return tensors[a].offset != tensors[b].offset ? tensors[a].offset < tensors[b].offset : a < b;
        });
        std::uint64_t used = 0;
        for (std::size_t i = 0; i < order.size(); ++i) {
            const tensor& t = tensors[order[i]];
            used += t.bytes.size();
            if (i == 0) continue;
            const tensor& before = tensors[order[i - 1]];
            if (before.offset + before.bytes.size() > t.offset)
                return fail(begin_ + positions_[order[i]].offsets,
                            "tensors " + quoted(before.name) + " " + range_text(before) + " and " + quoted(t.name) +
                                " " + range_text(t) + " overlap");
        }
        file_.unused_ = buffer_.size() - used;
        return true;
    }

    // --- saying what is wrong ----------------------------------------------------------------------------------

    [[nodiscard]] std::string range_text(const tensor& t) const {
        const std::uint64_t begin = t.offset - file_.buffer_offset_;
        return "[" + std::to_string(begin) + ", " + std::to_string(begin + t.bytes.size()) + "]";
    }
    [[nodiscard]] std::string describe() const {
        return "tensor " + quoted(entry_.name) + " " + std::string(name_of(entry_.type)) + " " +
               shape_text(entry_.shape);
    }

    // "tensor "a", shape": the place that an event belongs to
    [[nodiscard]] std::string where() const {
        if (place_ == place::metadata) return "metadata " + quoted(key_);
        if (place_ == place::start) return "the header";
        if (place_ == place::root) return in_metadata_ ? "__metadata__" : "tensor " + quoted(entry_.name);
        constexpr std::array<const char*, 3> names = {"dtype", "shape", "data_offsets"};
        return "tensor " + quoted(entry_.name) + ", " + names[static_cast<std::size_t>(field_)];
    }

    [[nodiscard]] bool unexpected(const std::string& found) {
        const char* expected = "an object";
        if (place_ == place::root) expected = in_metadata_ ? "an object of strings" : "an object";
        else if (place_ == place::metadata) expected = "a string";
        else if (place_ == place::shape || place_ == place::offsets) expected = "an integer from 0 to 2^64 - 1";
        else if (place_ == place::entry) expected = field_ == field::dtype ? "a string" : "an array of integers";
        return fail(token_start(), where() + ": expected " + expected + ", found " + found);
    }

    // The first byte of the token that the current event is about.
    [[nodiscard]] const char* token_start() const noexcept {
        const char* at = cursor_;
        while (at != end_ && std::string_view(" \t\n\r,:").find(*at) != std::string_view::npos) ++at;
        return at;
    }
    bool advance() noexcept {
        cursor_ = seen_;
        return true;
    }

    [[nodiscard]] bool fail(const char* at, std::string message) {
        return fail_at(8 + static_cast<std::uint64_t>(at - begin_), std::move(message));
    }
    [[nodiscard]] bool fail_at(std::uint64_t offset, std::string message) {
        failure_ = {errc::malformed, "safetensors: " + std::move(message), offset};
        return false;
    }

    std::span<const std::byte> bytes_;
    std::span<const std::byte> buffer_;
    const read_limits& limits_;
    const char* begin_ = nullptr;   // of the header
    const char* end_ = nullptr;
    const char* seen_ = nullptr;    // how far the parser has read
    const char* cursor_ = nullptr;  // the end of the last token
    place place_ = place::start;
    field field_ = field::dtype;
    bool in_metadata_ = false;      // the last key of the root was __metadata__
    bool metadata_seen_ = false;
    std::string key_;               // the last key of the metadata
    pending_entry entry_;
    std::vector<positions> positions_;
    failure failure_;
    file file_;
};

}  // namespace detail

/// Reads a file that is in memory. Tensors point into `bytes`, which must outlive the result.
[[nodiscard]] inline result<file> parse(std::span<const std::byte> bytes, const read_limits& limits) {
    return detail::header_reader(bytes, limits).read();
}

/// Opens a file. The result owns it; tensors point into it.
[[nodiscard]] inline result<file> open(const std::filesystem::path& path, open_mode how, const read_limits& limits) {
    auto storage = file_bytes::open(path, how);
    if (!storage) return storage.failure();
    auto parsed = parse(storage.value().bytes(), limits);
    if (!parsed) {
        failure why = parsed.failure();
        why.message = io::detail::quoted_path(path) + ": " + why.message;
        return why;
    }
    parsed.value().storage_ = std::move(storage).value();
    return parsed;
}

}  // namespace nibble::io::safetensors
