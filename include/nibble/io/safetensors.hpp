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

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "../error.hpp"
#include "file.hpp"
#include "safetensors_tensor.hpp"

namespace nibble::inline NIBBLE_ABI::io::safetensors {

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

}  // namespace detail

/// Reads a file that is in memory. Tensors point into `bytes`, which must outlive the result.
[[nodiscard]] NIBBLE_IO_API result<file> parse(std::span<const std::byte> bytes, const read_limits& limits = {});
/// Opens a file. The result owns it; tensors point into it.
[[nodiscard]] NIBBLE_IO_API result<file> open(const std::filesystem::path& path, open_mode how = open_mode::map,
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
        return nibble::detail::find_named(tensors_, by_name_, name, name_of_tensor);
    }
    const tensor* find(std::string_view name) const&& = delete;

    /// The tensor of that name, or a failure that says which names come near.
    [[nodiscard]] result<const tensor*> at(std::string_view name) const& {
        if (const tensor* found = find(name)) return found;
        return failure{errc::not_found, "no tensor " + io::detail::quoted(name) + nibble::detail::nearest_names(name, tensors_, name_of_tensor), 0};
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

    [[nodiscard]] static std::string_view name_of_tensor(const tensor& t) noexcept { return t.name; }

    file_bytes storage_;
    std::vector<tensor> tensors_;
    std::vector<std::uint32_t> by_name_;  // indices into tensors_; 32 bits are enough below 100,000,000 bytes of header
    metadata_map metadata_;
    std::uint64_t buffer_offset_ = 0;
    std::uint64_t unused_ = 0;
};

}  // namespace nibble::io::safetensors

#if NIBBLE_DEFINE_IO
#include "safetensors_reader.hpp"
#endif
