// Writing GGUF files, version 3, little-endian, as ggml reads them: tensors in order, each padded to the alignment.
//
//   gguf::writer out;
//   out.set("general.architecture", "llama").or_throw();
//   out.add_tensor("blk.0.ffn_up.weight", ggml::type::q4_k, {11008, 4096}).or_throw();   // rows, columns
//   out.create("model.gguf").or_throw();      // the header is written, into a file beside it
//   out.write(matrix).or_throw();             // for every tensor, in order; or its bytes, in pieces of any size
//   out.finish().or_throw();                  // and only now is there a new model.gguf
//
// A header comes before the data, so all tensors are named before the first one is written; only one of them need be in
// memory. What is refused: keys and names that a reader would refuse, names of more than 63 bytes (ggml's limit), types
// without a known size, rows that end inside a block.
//
// "general.alignment" is a u32, as every reader wants it: set() checks it and the file is padded accordingly.
// "general.quantization_version" is written as 2 if a tensor has blocks and nobody has set it.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <limits>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "ggml_blocks.hpp"
#include "gguf_metadata.hpp"
#include "output_file.hpp"

namespace nibble::inline NIBBLE_ABI::io::gguf {

/// C++ types of metadata numbers: bool, the integers of 8 to 64 bits (but no characters), float and double.
template <class T>
concept metadata_number =
    std::same_as<T, float> || std::same_as<T, double> ||
    (std::integral<T> && sizeof(T) <= 8 && !std::same_as<T, char> && !std::same_as<T, wchar_t> &&
     !std::same_as<T, char8_t> && !std::same_as<T, char16_t> && !std::same_as<T, char32_t>);

/// The value type that a number of the C++ type is written as.
template <metadata_number T>
[[nodiscard]] constexpr value_type value_type_of() noexcept {
    if constexpr (std::same_as<T, bool>) return value_type::boolean;
    else if constexpr (std::same_as<T, float>) return value_type::f32;
    else if constexpr (std::same_as<T, double>) return value_type::f64;
    else if constexpr (sizeof(T) == 1) return std::is_signed_v<T> ? value_type::i8 : value_type::u8;
    else if constexpr (sizeof(T) == 2) return std::is_signed_v<T> ? value_type::i16 : value_type::u16;
    else if constexpr (sizeof(T) == 4) return std::is_signed_v<T> ? value_type::i32 : value_type::u32;
    else return std::is_signed_v<T> ? value_type::i64 : value_type::u64;
}

/// One file. Every call says what is wrong in its status; after a failure of the system all further calls report it.
class writer {
public:
    /// --- before create() ---

    template <metadata_number T>
    [[nodiscard]] status set(std::string_view key, T number) {
        std::string bytes;
        put(bytes, number);
        return add_entry(key, value_type_of<T>(), std::move(bytes));
    }
    [[nodiscard]] status set(std::string_view key, std::string_view text) {
        std::string bytes;
        put_text(bytes, text);
        return add_entry(key, value_type::text, std::move(bytes));
    }
    /// Arrays of numbers and of texts: anything contiguous of metadata_number, std::string or std::string_view.
    template <class T>
        requires metadata_number<T> || std::convertible_to<const T&, std::string_view>
    [[nodiscard]] status set(std::string_view key, std::span<const T> values) {
        std::string bytes;
        if constexpr (metadata_number<T>) {
            put(bytes, static_cast<std::uint32_t>(value_type_of<T>()));
            put(bytes, std::uint64_t{values.size()});
            for (const T v : values) put(bytes, v);
        } else {
            put(bytes, static_cast<std::uint32_t>(value_type::text));
            put(bytes, std::uint64_t{values.size()});
            for (const T& v : values) put_text(bytes, v);
        }
        return add_entry(key, value_type::array, std::move(bytes));
    }
    template <class T>
    [[nodiscard]] status set(std::string_view key, const std::vector<T>& values) {
        return set(key, std::span<const T>(values));
    }
    /// A value of another file, whatever its type.
    [[nodiscard]] status set(std::string_view key, const gguf::value& v) {
        const auto size = detail::extent(v.type(), v.bytes(), detail::deepest_array);
        if (!size || *size != v.bytes().size())
            return bad("metadata " + io::detail::quoted(key) + ": this is no value of type " + std::string(name_of(v.type())));
        return add_entry(key, v.type(), std::string(reinterpret_cast<const char*>(v.bytes().data()), v.bytes().size()));
    }

    /// The next tensor of the file. `shape` has the outermost dimension first, 1 to 4 of them: {rows, columns}.
    [[nodiscard]] status add_tensor(std::string_view name, ggml::type type, const std::vector<std::uint64_t>& shape) {
        const auto what = [&] { return "tensor " + io::detail::quoted(name); };
        if (file_) return bad(what() + " comes after create()");
        if (name.empty() || name.size() > 63 || name.find('\0') != std::string_view::npos)
            return bad(what() + ": names have 1 to 63 bytes and no NUL");
        if (shape.empty() || shape.size() > 4) return bad(what() + " has " + std::to_string(shape.size()) + " dimensions, expected 1 to 4");
        const auto elements = static_cast<std::uint64_t>(ggml::block_elements(type));
        if (elements == 0) return bad(what() + ": there is no tensor type " + std::to_string(static_cast<std::uint32_t>(type)));
        if (shape.back() % elements != 0)
            return bad(what() + ": rows of " + std::to_string(shape.back()) + " are not whole blocks of " + ggml::name(type) + ", " +
                       std::to_string(elements) + " elements each");
        // Zeros are left out, as readers do: every part of the product must fit 63 bits.
        std::uint64_t product = 1;
        bool empty = false;
        for (const std::uint64_t d : shape) {
            if (d > most) return bad(what() + ": its size overflows 63 bits");
            if (d == 0) empty = true;
            else if (product > most / d) return bad(what() + ": its size overflows 63 bits");
            else product *= d;
        }
        const std::uint64_t blocks = (product + elements - 1) / elements;
        if (blocks > most / static_cast<std::uint64_t>(ggml::block_bytes(type))) return bad(what() + ": its size overflows 63 bits");
        if (!names_.emplace(name).second) return bad(what() + " is given twice");
        tensors_.push_back({std::string(name), type, shape, empty ? 0 : blocks * static_cast<std::uint64_t>(ggml::block_bytes(type))});
        return {};
    }

    /// Begins the file: writes the header. `path` itself is untouched until finish().
    [[nodiscard]] status create(const std::filesystem::path& path) {
        if (file_) return bad("create() is called twice");
        std::string header;
        if (const status s = make_header(header); !s) return s;
        auto file = output_file::create(path);
        if (!file) return {file.failure().code, file.failure().message};
        file_.emplace(std::move(file).value());
        if (const status s = put_file(header); !s) return s;
        current_ = 0;
        left_ = tensors_.empty() ? 0 : tensors_[0].bytes;
        return next_tensor();
    }

    /// --- after create() ---

    /// The next bytes of the current tensor; when it has all its bytes, the next one is current.
    [[nodiscard]] status write(std::span<const std::byte> bytes) {
        if (!file_) return bad("write() comes before create()");
        if (current_ == tensors_.size()) {
            if (bytes.empty()) return {};
            return bad("all tensors are written, and here are " + std::to_string(bytes.size()) + " bytes more");
        }
        if (bytes.size() > left_)
            return bad("tensor " + io::detail::quoted(tensors_[current_].name) + " takes " + std::to_string(left_) +
                       " more bytes, not " + std::to_string(bytes.size()));
        if (const status s = file_->write(bytes); !s) return s;
        left_ -= bytes.size();
        return next_tensor();
    }
    /// The matrix as the next rows of the current tensor, in its type. Fails if the type cannot hold it exactly.
    [[nodiscard]] status write(const qmatrix& m) {
        if (!file_ || current_ == tensors_.size()) return bad("there is no tensor to write a matrix to");
        const entry& t = tensors_[current_];
        if (static_cast<std::uint64_t>(m.cols()) != t.shape.back())
            return {errc::shape_mismatch, "gguf: tensor " + io::detail::quoted(t.name) + " has " + std::to_string(t.shape.back()) +
                                              " columns, the matrix is " + nibble::detail::shape_text(m.rows(), m.cols())};
        const auto packed = ggml::pack(m, t.type);
        if (!packed) return {packed.failure().code, "gguf: tensor " + io::detail::quoted(t.name) + ": " + packed.failure().message};
        return write(std::as_bytes(std::span<const std::uint8_t>(packed.value())));
    }

    /// Puts the file in its place. Refused while tensors lack bytes.
    [[nodiscard]] status finish() {
        if (!file_) return bad("finish() comes before create()");
        if (const status s = file_->write({}); !s) return s;  // what went wrong before says more than what is missing
        if (current_ != tensors_.size())
            return bad("tensor " + io::detail::quoted(tensors_[current_].name) + " lacks " + std::to_string(left_) + " of its " +
                       std::to_string(tensors_[current_].bytes) + " bytes");
        return file_->commit();
    }

private:
    struct entry {
        std::string name;
        ggml::type type;
        std::vector<std::uint64_t> shape;
        std::uint64_t bytes;
    };
    static constexpr std::uint64_t most = static_cast<std::uint64_t>((std::numeric_limits<std::int64_t>::max)());

    [[nodiscard]] static status bad(std::string text) { return {errc::invalid_argument, "gguf: " + std::move(text)}; }

    template <class T>
    static void put(std::string& out, T number) {
        std::uint64_t u = 0;
        if constexpr (std::same_as<T, float>) {
            std::uint32_t bits;
            std::memcpy(&bits, &number, 4);
            u = bits;
        } else if constexpr (std::same_as<T, double>) {
            std::memcpy(&u, &number, 8);
        } else {
            u = static_cast<std::uint64_t>(number);
        }
        for (std::size_t i = 0; i < sizeof(T); ++i) out += static_cast<char>(static_cast<unsigned char>(u >> (8 * i) & 0xff));
    }
    static void put_text(std::string& out, std::string_view text) {
        put(out, std::uint64_t{text.size()});
        out.append(text);
    }

    [[nodiscard]] status add_entry(std::string_view key, value_type type, std::string bytes) {
        const auto what = [&] { return "metadata " + io::detail::quoted(key); };
        if (file_) return bad(what() + " comes after create()");
        if (key.empty() || key.size() > 65'535) return bad(what() + ": keys have 1 to 65,535 characters");
        for (const char c : key)
            if (c < 0x20 || c > 0x7e) return bad(what() + ": keys are printable ASCII");
        if (key == "general.alignment") {
            const gguf::value v(type, std::as_bytes(std::span<const char>(bytes)));
            const std::uint64_t a = v.as_unsigned().value_or(0);
            if (type != value_type::u32 || a < 8 || (a & (a - 1)) != 0 || a > 1'048'576)
                return bad("general.alignment must be a u32, a power of two from 8 to 1048576");
            if (!keys_.emplace(key).second) return bad(what() + " is given twice");
            alignment_ = a;
        } else if (!keys_.emplace(key).second) {
            return bad(what() + " is given twice");
        }
        put_text(metadata_, key);
        put(metadata_, static_cast<std::uint32_t>(type));
        metadata_ += bytes;
        return {};
    }

    [[nodiscard]] status make_header(std::string& out) {
        bool blocks = false;
        for (const entry& t : tensors_) blocks = blocks || ggml::block_elements(t.type) > 1;
        if (blocks && keys_.find("general.quantization_version") == keys_.end())
            if (const status s = set("general.quantization_version", std::uint32_t{2}); !s) return s;
        out = "GGUF";
        put(out, std::uint32_t{3});
        put(out, std::uint64_t{tensors_.size()});
        put(out, std::uint64_t{keys_.size()});
        out += metadata_;
        std::uint64_t offset = 0;
        for (const entry& t : tensors_) {
            put_text(out, t.name);
            put(out, static_cast<std::uint32_t>(t.shape.size()));
            for (std::size_t d = t.shape.size(); d-- > 0;) put(out, t.shape[d]);
            put(out, static_cast<std::uint32_t>(t.type));
            put(out, offset);
            if (t.bytes > most - alignment_ || padded(t.bytes) > most - offset) return bad("the tensors together overflow 63 bits");
            offset += padded(t.bytes);
        }
        out.resize(padded(out.size()), '\0');
        return {};
    }
    [[nodiscard]] std::uint64_t padded(std::uint64_t n) const noexcept { return (n + alignment_ - 1) & ~(alignment_ - 1); }

    [[nodiscard]] status put_file(std::string_view text) { return file_->write(std::as_bytes(std::span<const char>(text))); }

    // While the current tensor is full: pads it and goes on to the next one.
    [[nodiscard]] status next_tensor() {
        while (current_ < tensors_.size() && left_ == 0) {
            const std::uint64_t bytes = tensors_[current_].bytes;
            if (const status s = put_file(std::string(padded(bytes) - bytes, '\0')); !s) return s;
            ++current_;
            left_ = current_ < tensors_.size() ? tensors_[current_].bytes : 0;
        }
        return {};
    }

    std::string metadata_;
    std::set<std::string, std::less<>> keys_, names_;
    std::vector<entry> tensors_;
    std::uint64_t alignment_ = 32;
    std::optional<output_file> file_;
    std::size_t current_ = 0;   // the tensor that is being written
    std::uint64_t left_ = 0;    // bytes it lacks
};

}  // namespace nibble::io::gguf
