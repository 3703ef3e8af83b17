// safetensors files, written.
//
//     safetensors::write("model.safetensors", tensors).or_throw();                 // tensors that are in memory
//
//     safetensors::writer out;                                                    // one tensor at a time
//     out.add_tensor("a", dtype::f16, {4096, 4096}).or_throw();
//     out.create("model.safetensors").or_throw();    // the header is written, into a file beside it
//     out.write(bytes).or_throw();                   // for every tensor, in order, in pieces of any size
//     out.finish().or_throw();                       // and only now is there a new model.safetensors
//
// The file is as safetensors.hpp describes it, without gaps, and the official reader takes it. write() puts elements of
// many bits first, then sorts by name, so that every tensor is aligned for its type; a writer keeps the order of its
// calls, and whoever adds wide elements first has the same. The header ends in spaces where it must.
//
// Writing is atomic (output_file.hpp): the destination is the old file or the whole new one, and nothing else is left.
#pragma once

#include <algorithm>
#include <filesystem>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <vector>

#include <nlohmann/json.hpp>

#include "output_file.hpp"
#include "safetensors.hpp"

namespace nibble::inline NIBBLE_ABI::io::safetensors {

/// A tensor that owns its elements.
struct tensor_data {
    std::string name;
    dtype type = dtype::u8;
    std::vector<std::uint64_t> shape;  ///< outermost dimension first; empty for a scalar
    std::vector<std::byte> bytes;      ///< the elements, little-endian, row-major

    /// The same as a tensor that points here.
    [[nodiscard]] tensor view() const { return {name, type, shape, bytes, 0}; }
};

namespace detail {

/// Text as JSON, or nothing if it is not UTF-8.
[[nodiscard]] NIBBLE_IO_API std::optional<std::string> json_text(const std::string& text);
#if NIBBLE_DEFINE_IO
NIBBLE_IO_API std::optional<std::string> json_text(const std::string& text) {
    const std::string json = nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    const nlohmann::json back = nlohmann::json::parse(json, nullptr, false);
    if (!back.is_string() || back.get_ref<const std::string&>() != text) return std::nullopt;
    return json;
}
#endif

}  // namespace detail

/// One file, tensor by tensor: only one of them need be in memory. After a failure of the system all calls report it.
class writer {
public:
    // --- before create() ---

    /// Text of the metadata.
    [[nodiscard]] status set(const std::string& key, const std::string& text) {
        if (file_) return bad("metadata " + io::detail::quoted(key) + " comes after create()");
        const auto k = detail::json_text(key);
        const auto v = detail::json_text(text);
        if (!k || !v) return bad(io::detail::quoted(k ? text : key) + " is not UTF-8");
        if (!keys_.insert(key).second) return bad("metadata " + io::detail::quoted(key) + " is given twice");
        metadata_.append(metadata_.empty() ? "" : ",").append(*k).append(":").append(*v);
        return {};
    }
    /// The next tensor of the file; its shape outermost dimension first.
    [[nodiscard]] status add_tensor(const std::string& name, dtype type, const std::vector<std::uint64_t>& shape) {
        const auto which = [&] {
            return "tensor " + io::detail::quoted(name) + " " + std::string(name_of(type)) + " " + detail::shape_text(shape) + ": ";
        };
        if (file_) return bad(which() + "it comes after create()");
        const auto json = detail::json_text(name);
        if (!json) return bad(io::detail::quoted(name) + " is not UTF-8");
        if (name == "__metadata__") return bad(which() + "the name is taken");
        if (shape.size() > read_limits{}.rank) return bad(which() + "more than 64 dimensions");
        std::uint64_t bits = bits_of(type);
        bool empty = false;
        for (const std::uint64_t d : shape) {
            empty = empty || d == 0;
            if (io::detail::mul_overflows(bits, d == 0 ? 1 : d))
                return {errc::out_of_range, "safetensors: " + which() + "its size does not fit 64 bits"};
            bits *= d == 0 ? 1 : d;
        }
        if (empty) bits = 0;
        if (bits % 8 != 0) return bad(which() + "its elements do not fill whole bytes");
        if (bits / 8 > ~end_) return {errc::out_of_range, "safetensors: " + which() + "the file would pass 2^64 bytes"};
        if (!names_.insert(name).second) return bad("tensor " + io::detail::quoted(name) + " is given twice");
        sizes_.push_back(bits / 8);
        tensors_.append(tensors_.empty() ? "" : ",").append(*json).append(":{\"dtype\":\"").append(name_of(type));
        tensors_.append("\",\"shape\":").append(detail::shape_text(shape)).append(",\"data_offsets\":[");
        tensors_.append(std::to_string(end_)).append(",");
        end_ += bits / 8;
        tensors_.append(std::to_string(end_)).append("]}");
        return {};
    }
    /// The first tensor will begin at a multiple of so many bytes of the file: a power of two, at least 8.
    void align_buffer(std::uint64_t alignment) noexcept { alignment_ = alignment; }

    /// The header with its length: what create() puts in front of the tensors.
    [[nodiscard]] result<std::string> header() const {
        std::string out(8, '\0');
        out += "{";
        if (!metadata_.empty()) out.append("\"__metadata__\":{").append(metadata_).append(tensors_.empty() ? "}" : "},");
        out.append(tensors_).append("}");
        out.append((alignment_ - out.size() % alignment_) % alignment_, ' ');
        const std::uint64_t length = out.size() - 8;
        if (length > read_limits{}.header_bytes)
            return failure{errc::out_of_range,
                           "safetensors: a header of " + std::to_string(length) + " bytes; the format allows 100000000", 0};
        for (std::size_t i = 0; i < 8; ++i) out[i] = static_cast<char>(length >> (8 * i) & 255);
        return out;
    }

    /// Begins the file: writes the header. `path` itself is untouched until finish().
    [[nodiscard]] status create(const std::filesystem::path& path) {
        if (file_) return bad("create() is called twice");
        const auto text = header();
        if (!text) return {text.failure().code, text.failure().message};
        auto file = output_file::create(path);
        if (!file) return {file.failure().code, file.failure().message};
        file_.emplace(std::move(file).value());
        skip_full();
        return file_->write(std::as_bytes(std::span<const char>(text.value())));
    }

    // --- after create() ---

    /// The next bytes of the current tensor; when it has all its bytes, the next one is current.
    [[nodiscard]] status write(std::span<const std::byte> bytes) {
        if (!file_) return bad("write() comes before create()");
        if (bytes.size() > (current_ < sizes_.size() ? sizes_[current_] - done_ : 0))
            return {errc::shape_mismatch, "safetensors: tensor " + std::to_string(current_) + " of " + std::to_string(sizes_.size()) +
                                              " takes " + std::to_string(current_ < sizes_.size() ? sizes_[current_] - done_ : 0) +
                                              " more bytes, not " + std::to_string(bytes.size())};
        if (status s = file_->write(bytes); !s) return s;
        done_ += bytes.size();
        skip_full();
        return {};
    }
    /// Puts the file in its place. Refused while tensors lack bytes.
    [[nodiscard]] status finish() {
        if (!file_) return bad("finish() comes before create()");
        if (status s = file_->write({}); !s) return s;  // what went wrong before says more than what is missing
        if (current_ < sizes_.size())
            return bad("tensor " + std::to_string(current_) + " of " + std::to_string(sizes_.size()) + " lacks " +
                       std::to_string(sizes_[current_] - done_) + " of its " + std::to_string(sizes_[current_]) + " bytes");
        return file_->commit();
    }

private:
    [[nodiscard]] static status bad(std::string text) { return {errc::invalid_argument, "safetensors: " + std::move(text)}; }
    void skip_full() noexcept {
        for (; current_ < sizes_.size() && done_ == sizes_[current_]; ++current_) done_ = 0;
    }

    std::string metadata_, tensors_;  // as JSON
    std::set<std::string, std::less<>> keys_, names_;
    std::vector<std::uint64_t> sizes_;
    std::uint64_t end_ = 0, alignment_ = 8;
    std::optional<output_file> file_;
    std::size_t current_ = 0;  // the tensor that is being written
    std::uint64_t done_ = 0;   // bytes it has
};

namespace detail {

/// Names the tensors to a writer, in the order of the file.
[[nodiscard]] inline status add_all(writer& out, std::span<const tensor> tensors, const metadata_map& metadata,
                                    std::vector<std::size_t>& order) {
    order.resize(tensors.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        const unsigned x = bits_of(tensors[a].type), y = bits_of(tensors[b].type);
        return x != y ? x > y : tensors[a].name < tensors[b].name;
    });
    for (const auto& [key, value] : metadata)
        if (status s = out.set(key, value); !s) return s;
    for (const std::size_t i : order) {
        const tensor& t = tensors[i];
        if (status s = out.add_tensor(t.name, t.type, t.shape); !s) return s;
        const std::uint64_t bytes = t.elements() * bits_of(t.type) / 8;  // which does not overflow: it was added
        if (bytes != t.bytes.size())
            return {errc::shape_mismatch, "safetensors: tensor " + io::detail::quoted(t.name) + " " + t.describe() +
                                              ": the shape takes " + std::to_string(bytes) + " bytes, there are " +
                                              std::to_string(t.bytes.size())};
    }
    return {};
}

}  // namespace detail

/// Writes a file of these tensors, whole or not at all. Refuses names that are given twice or are not UTF-8, and bytes
/// that are not those of the shape.
[[nodiscard]] inline status write(const std::filesystem::path& path, std::span<const tensor> tensors,
                                  const metadata_map& metadata = {}) {
    writer out;
    std::vector<std::size_t> order;
    if (status s = detail::add_all(out, tensors, metadata, order); !s) return s;
    if (status s = out.create(path); !s) return s;
    for (const std::size_t i : order)
        if (status s = out.write(tensors[i].bytes); !s) return s;
    return out.finish();
}
[[nodiscard]] inline status write(const std::filesystem::path& path, std::span<const tensor_data> tensors,
                                  const metadata_map& metadata = {}) {
    std::vector<tensor> views;
    views.reserve(tensors.size());
    for (const tensor_data& t : tensors) views.push_back(t.view());
    return write(path, std::span<const tensor>(views), metadata);
}

}  // namespace nibble::io::safetensors
