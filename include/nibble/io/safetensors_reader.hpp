// The header of a safetensors file: JSON events become tensors. Part of safetensors.hpp, which says what is checked.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

#include "safetensors.hpp"

namespace nibble::inline NIBBLE_ABI::io::safetensors {

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
            if (io::detail::mul_overflows(bits, d)) return fail(entry_.shape_at, describe() + ": its size overflows 64 bits");
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

    [[nodiscard]] bool index_names() {
        const auto& tensors = file_.tensors_;
        auto& order = file_.by_name_;
        order = nibble::detail::sorted_by_name(tensors, file::name_of_tensor);
        const std::size_t i = nibble::detail::first_repeated(tensors, order, file::name_of_tensor);
        if (i == order.size()) return true;
        return fail(begin_ + positions_[order[i]].name, "tensor " + quoted(tensors[order[i]].name) + " is given twice");
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

NIBBLE_IO_API result<file> parse(std::span<const std::byte> bytes, const read_limits& limits) {
    return detail::header_reader(bytes, limits).read();
}

NIBBLE_IO_API result<file> open(const std::filesystem::path& path, open_mode how, const read_limits& limits) {
    auto storage = file_bytes::open(path, how);
    if (!storage) return storage.failure();
    auto parsed = parse(storage.value().bytes(), limits);
    if (!parsed) return io::detail::in_file(path, parsed.failure());
    parsed.value().storage_ = std::move(storage).value();
    return parsed;
}

}  // namespace nibble::io::safetensors
