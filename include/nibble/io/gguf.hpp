// GGUF files, read strictly: versions 2 and 3, little-endian.
//
//   "GGUF"  version: u32  tensors: u64  metadata: u64
//   metadata x { key: text, type: u32, value }                     text = length: u64, bytes
//   tensors x { name: text, n: u32, ne: u64[n], type: u32, offset: u64 }
//   zeros up to a multiple of general.alignment (32 where it is not given): here the data begins
//   the tensors' blocks, each at `offset` bytes from there
//
// Dimensions, rows and columns: gguf_tensor.hpp.
//
// What holds for every file that read() or open() returns:
//
//   counts        no more than fit into the bytes that follow, and at most 1,000,000 each (read_limits)
//   keys          1 to 65,535 printable ASCII characters, none twice
//   values        a known type; bools are 0 or 1; texts and arrays end within the file; arrays are at most 4 deep
//   alignment     a u32, a power of two from 8 to 1,048,576
//   names         1 to 65,535 bytes without NUL, none twice; ggml itself takes at most 63 bytes
//   dimensions    1 to 4, each and their product below 2^63; ne[0] is whole blocks
//   offsets       multiples of the alignment; offset and size of a tensor within the file; no byte in two tensors
//
// Laxer than ggml in three things: tensors may lie in any order and with gaps between them, the last one needs no padding
// after it, and a type id that is not known only makes the size of that tensor unknown. unused_bytes() counts the gaps.
//
// Cost: one pass over the header and two sorts; the data is not touched until a tensor is. Memory stays below 8 bytes
// per byte of header. Sizes are compared with what is left of the file before anything is done with them.
// Lifetime: names, values, bytes and views point into the file (open) or into the caller's memory (read).
//
// Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <limits>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "file.hpp"
#include "gguf_metadata.hpp"
#include "gguf_tensor.hpp"

namespace nibble::inline NIBBLE_ABI::io::gguf {

/// How much a header may hold. The defaults fit every model there is; lower them for files of strangers.
struct read_limits {
    std::uint64_t header_bytes = 100'000'000;
    std::uint64_t tensors = 1'000'000;
    std::uint64_t metadata = 1'000'000;
    std::uint64_t name_bytes = 65'535;  ///< of a key or of a tensor's name
    std::uint64_t alignment = 1'048'576;
    unsigned array_depth = 4;           ///< 1: no arrays of arrays. Values above 16 mean 16.
};

namespace detail {
class header_reader;
}

class file;

/// Reads a file that is in memory. Everything in the result points into `bytes`.
[[nodiscard]] NIBBLE_IO_API result<file> read(std::span<const std::byte> bytes, const read_limits& limits = {});
/// Opens a file. The result owns it.
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
    [[nodiscard]] const std::vector<metadata_entry>& metadata() const& noexcept { return metadata_; }  ///< in header order
    const std::vector<metadata_entry>& metadata() const&& = delete;

    /// The tensor of that name, or null.
    [[nodiscard]] const tensor* find(std::string_view name) const& noexcept {
        return nibble::detail::find_named(tensors_, tensors_by_name_, name, name_of_tensor);
    }
    const tensor* find(std::string_view name) const&& = delete;
    /// The value of that key, or null.
    [[nodiscard]] const gguf::value* find_metadata(std::string_view key) const& noexcept {
        const auto* entry = nibble::detail::find_named(metadata_, metadata_by_key_, key, key_of);
        return entry != nullptr ? &entry->value : nullptr;
    }
    const gguf::value* find_metadata(std::string_view key) const&& = delete;

    /// The tensor of that name, or a failure that says which names come near.
    [[nodiscard]] result<const tensor*> at(std::string_view name) const& {
        if (const tensor* t = find(name)) return t;
        return failure{errc::not_found, "gguf: no tensor " + io::detail::quoted(name) + nibble::detail::nearest_names(name, tensors_, name_of_tensor), 0};
    }
    result<const tensor*> at(std::string_view name) const&& = delete;
    /// tensor::matrix() and tensor::values() of that name.
    [[nodiscard]] result<qmatrix> matrix(std::string_view name, executor* threads = nullptr) const {
        const auto t = at(name);
        return t ? t.value()->matrix(threads) : result<qmatrix>(t.failure());
    }
    [[nodiscard]] result<std::vector<float>> values(std::string_view name) const {
        const auto t = at(name);
        return t ? t.value()->values() : result<std::vector<float>>(t.failure());
    }

    [[nodiscard]] std::uint32_t version() const noexcept { return version_; }        ///< 2 or 3
    [[nodiscard]] std::uint64_t alignment() const noexcept { return alignment_; }    ///< bytes
    [[nodiscard]] std::uint64_t data_offset() const noexcept { return data_offset_; }  ///< where the data begins
    /// Bytes of the data that belong to no tensor of known size: gaps, paddings and what follows the last one.
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
    [[nodiscard]] static std::string_view key_of(const metadata_entry& e) noexcept { return e.key; }

    file_bytes storage_;
    std::vector<metadata_entry> metadata_;
    std::vector<tensor> tensors_;
    std::vector<std::uint32_t> metadata_by_key_, tensors_by_name_;  // indices; the limits keep them below 2^32
    std::uint32_t version_ = 0;
    std::uint64_t alignment_ = 32, data_offset_ = 0, unused_ = 0;
};

#if NIBBLE_DEFINE_IO

namespace detail {

class header_reader {
public:
    header_reader(std::span<const std::byte> bytes, const read_limits& limits) noexcept : bytes_(bytes), limits_(limits) {}

    [[nodiscard]] result<file> read() {
        if (!read_counts() || !read_metadata() || !read_alignment() || !read_tensors() || !place_tensors() ||
            !index(file_.tensors_, file_.tensors_by_name_, "tensor ", file::name_of_tensor) ||
            !check_overlap())
            return std::move(failure_);
        return std::move(file_);
    }

private:
    [[nodiscard]] static std::string quoted(std::string_view text) { return io::detail::quoted(text); }
    [[nodiscard]] static std::string text(std::uint64_t u) { return std::to_string(u); }

    [[nodiscard]] std::uint64_t left() const noexcept { return bytes_.size() - at_; }

    // `what` in these four is a function that says what is being read: messages are made when something is wrong.

    // Whether n more bytes of header exist and are allowed.
    template <class What>
    [[nodiscard]] bool need(std::uint64_t n, What what) {
        if (n > left()) return fail(at_, what() + ": expected " + text(n) + " bytes, the file has " + text(left()) + " more");
        if (at_ > limits_.header_bytes || n > limits_.header_bytes - at_)
            return fail(at_, what() + ": the header is longer than the limit of " + text(limits_.header_bytes) + " bytes");
        return true;
    }
    template <class What>
    [[nodiscard]] bool skip(std::uint64_t n, What what) {
        if (!need(n, what)) return false;
        at_ += n;
        return true;
    }
    template <class U, class What>
    [[nodiscard]] bool get(U& out, What what) {
        if (!need(sizeof(U), what)) return false;
        out = load<U>(bytes_.data() + at_);
        at_ += sizeof(U);
        return true;
    }
    template <class What>
    [[nodiscard]] bool get_text(std::string_view& out, What what) {
        std::uint64_t length = 0;
        if (!get(length, what)) return false;
        if (length > left())
            return fail(at_ - 8, what() + ": a length of " + text(length) + ", the file has " + text(left()) + " more bytes");
        out = {reinterpret_cast<const char*>(bytes_.data()) + at_, length};
        return skip(length, what);
    }

    // A key or a tensor's name.
    template <class What>
    [[nodiscard]] bool get_name(std::string_view& out, What what) {
        const std::size_t at = at_;
        if (!get_text(out, what)) return false;
        if (out.empty()) return fail(at, what() + " is empty");
        if (out.size() > limits_.name_bytes)
            return fail(at, what() + " has " + text(out.size()) + " bytes, the limit is " + text(limits_.name_bytes));
        return true;
    }
    [[nodiscard]] std::uint64_t place_of(std::string_view name) const noexcept {
        return static_cast<std::uint64_t>(reinterpret_cast<const std::byte*>(name.data()) - bytes_.data());
    }

    // --- the steps ---------------------------------------------------------------------------------------------

    [[nodiscard]] bool read_counts() {
        const std::string_view head(reinterpret_cast<const char*>(bytes_.data()), (std::min)(bytes_.size(), std::size_t{4}));
        if (head != "GGUF") {
            std::string found = head.empty() ? "the file is empty" : "found " + quoted(head);
            if (head == "vers") found += " (this looks like a Git LFS pointer, not the file itself)";
            if (head == "lmgg" || head == "tjgg" || head == "fmgg") found += " (a file of ggml before GGUF)";
            if (head == "PK\x03\x04") found += " (this looks like a zip archive, such as a PyTorch .pt or .bin)";
            return fail(0, "expected \"GGUF\" at the start, " + found);
        }
        at_ = 4;
        if (!get(file_.version_, [] { return std::string("the version"); })) return false;
        const std::uint32_t v = file_.version_;
        if (v != 0 && (v & 0xffff) == 0)
            return fail(4, "a big-endian file (version " + text(v >> 24 | (v >> 8 & 0xff00)) +
                               "): only little-endian files are read", errc::unsupported);
        if (v == 1) return fail(4, "version 1, whose lengths have 32 bits: convert it to version 2 or 3", errc::unsupported);
        if (v != 2 && v != 3) return fail(4, "version " + text(v) + ", expected 2 or 3", errc::unsupported);
        return get_count(tensors_, "tensors", limits_.tensors, 8 + 1 + 4 + 8 + 4 + 8) &&
               get_count(entries_, "metadata entries", limits_.metadata, 8 + 1 + 4 + 1);
    }

    [[nodiscard]] bool get_count(std::uint64_t& count, const char* what, std::uint64_t limit, std::uint64_t each) {
        if (!get(count, [&] { return std::string("the number of ") + what; })) return false;
        if (count > limit) return fail(at_ - 8, text(count) + " " + what + ", the limit is " + text(limit));
        if (count > left() / each)
            return fail(at_ - 8, text(count) + " " + what + " do not fit into the " + text(left()) + " bytes that follow");
        return true;
    }

    [[nodiscard]] bool read_metadata() {
        file_.metadata_.reserve(entries_);
        for (std::uint64_t i = 0; i < entries_; ++i) {
            metadata_entry e;
            if (!get_name(e.key, [&] { return "the key of metadata entry " + text(i); })) return false;
            for (const char c : e.key)
                if (c < 0x20 || c > 0x7e)
                    return fail(place_of(e.key), "metadata key " + quoted(e.key) + " is not printable ASCII");
            std::uint32_t type = 0;
            if (!get(type, [&] { return "the type of metadata " + quoted(e.key); })) return false;
            const std::size_t begin = at_;
            if (!skip_value(e.key, type, 0, begin - 4)) return false;
            e.value = {static_cast<value_type>(type), bytes_.subspan(begin, at_ - begin)};
            file_.metadata_.push_back(e);
        }
        return index(file_.metadata_, file_.metadata_by_key_, "metadata ", file::key_of);
    }

    // Moves behind a value inside `depth` arrays, whose type stands at byte type_at.
    [[nodiscard]] bool skip_value(std::string_view key, std::uint32_t number, unsigned depth, std::size_t type_at) {
        const auto what = [&] { return "metadata " + quoted(key); };
        const auto type = static_cast<value_type>(number);
        if (least_size(type) == 0) return fail(type_at, what() + ": there is no value type " + text(number));
        std::string_view ignored;
        if (type == value_type::text) return get_text(ignored, what);
        if (type == value_type::array) return skip_array(key, depth);
        return skip_numbers(key, type, 1);
    }
    [[nodiscard]] bool skip_array(std::string_view key, unsigned depth) {
        const auto what = [&] { return "metadata " + quoted(key); };
        const std::size_t at = at_;
        if (depth >= (std::min)(limits_.array_depth, deepest_array))
            return fail(at, what() + ": arrays more than " + text(depth) + " deep");
        std::uint32_t number = 0;
        std::uint64_t count = 0;
        if (!get(number, what) || !get(count, what)) return false;
        const auto inner = static_cast<value_type>(number);
        if (least_size(inner) == 0) return fail(at, what() + ": there is no value type " + text(number));
        if (count > left() / least_size(inner))  // which bounds count * size, too
            return fail(at + 4, what() + ": an array of " + text(count) + " values of type " + std::string(name_of(inner)) +
                                    ", the file has " + text(left()) + " more bytes");
        if (fixed_size(inner) != 0) return skip_numbers(key, inner, count);
        for (std::uint64_t i = 0; i < count; ++i)
            if (!skip_value(key, number, depth + 1, at)) return false;
        return true;
    }
    [[nodiscard]] bool skip_numbers(std::string_view key, value_type type, std::uint64_t count) {
        const auto what = [&] { return "metadata " + quoted(key); };
        const std::size_t begin = at_;
        if (!skip(count * fixed_size(type), what)) return false;
        if (type == value_type::boolean)
            for (std::size_t i = begin; i < at_; ++i)
                if (std::to_integer<unsigned>(bytes_[i]) > 1)
                    return fail(i, what() + ": a bool of " + text(std::to_integer<unsigned>(bytes_[i])));
        return true;
    }

    [[nodiscard]] bool read_alignment() {
        const gguf::value* v = file_.find_metadata("general.alignment");
        if (v == nullptr) return true;
        const std::uint64_t at = static_cast<std::uint64_t>(v->bytes().data() - bytes_.data());
        if (v->type() != value_type::u32)
            return fail(at, "general.alignment is of type " + std::string(name_of(v->type())) + ", expected u32");
        const std::uint64_t a = *v->as_unsigned();
        if (a < 8 || (a & (a - 1)) != 0 || a > limits_.alignment)
            return fail(at, "general.alignment is " + text(a) + ", expected a power of two from 8 to " + text(limits_.alignment));
        file_.alignment_ = a;
        return true;
    }

    [[nodiscard]] bool read_tensors() {
        if (tensors_ > left() / 33)  // the metadata has taken its part since the first look
            return fail(at_, text(tensors_) + " tensors do not fit into the " + text(left()) + " bytes that follow");
        file_.tensors_.reserve(tensors_);
        for (std::uint64_t i = 0; i < tensors_; ++i)
            if (!read_tensor(i)) return false;
        return true;
    }

    [[nodiscard]] bool read_tensor(std::uint64_t i) {
        tensor& t = file_.tensors_.emplace_back();
        if (!get_name(t.name, [&] { return "the name of tensor " + text(i); })) return false;
        const auto what = [&] { return "tensor " + quoted(t.name); };
        if (t.name.find('\0') != std::string_view::npos) return fail(place_of(t.name), what() + " has a NUL in its name");
        std::uint32_t dimensions = 0;
        if (!get(dimensions, what)) return false;
        if (dimensions < 1 || dimensions > 4)
            return fail(at_ - 4, what() + " has " + text(dimensions) + " dimensions, expected 1 to 4");
        t.dimensions = dimensions;
        const std::size_t dims_at = at_;
        for (unsigned d = 0; d < dimensions; ++d)
            if (!get(t.ne[d], what)) return false;
        std::uint32_t type = 0;
        if (!get(type, what) || !get(t.offset, what)) return false;
        t.type = static_cast<ggml::type>(type);
        return check_size(t, dims_at);
    }

    // Zeros are left out of the product, so that its parts (rows) fit 63 bits, too. A tensor is empty only if one is there.
    [[nodiscard]] bool check_size(const tensor& t, std::size_t at) {
        constexpr std::uint64_t most = static_cast<std::uint64_t>((std::numeric_limits<std::int64_t>::max)());
        std::uint64_t product = 1;
        for (unsigned d = 0; d < t.dimensions; ++d) {
            if (t.ne[d] > most)
                return fail(at + 8 * d, "tensor " + quoted(t.name) + ": dimension " + text(d) + " is " + text(t.ne[d]) +
                                            ", which is negative");
            if (t.ne[d] == 0) continue;
            if (io::detail::mul_overflows(product, t.ne[d]) || product * t.ne[d] > most)
                return fail(at, "tensor " + quoted(t.name) + " " + t.describe() + ": its size overflows 63 bits");
            product *= t.ne[d];
        }
        if (!t.size_known()) return true;
        const auto elements = static_cast<std::uint64_t>(ggml::block_elements(t.type));
        if (t.ne[0] % elements != 0)
            return fail(at, "tensor " + quoted(t.name) + " " + t.describe() + ": rows are not whole blocks of " + text(elements));
        // An overflow of the empty ones, too: then t.elements() / elements * bytes is safe.
        if (io::detail::mul_overflows((product + elements - 1) / elements, static_cast<std::uint64_t>(ggml::block_bytes(t.type))))
            return fail(at, "tensor " + quoted(t.name) + " " + t.describe() + ": its size overflows 64 bits");
        return true;
    }

    [[nodiscard]] bool place_tensors() {
        const std::uint64_t mask = file_.alignment_ - 1;
        const std::uint64_t end = at_;  // below 2^63: no file is larger, so that the sum cannot overflow
        file_.data_offset_ = (end + mask) & ~mask;
        const std::uint64_t size = bytes_.size() > file_.data_offset_ ? bytes_.size() - file_.data_offset_ : 0;
        std::uint64_t used = 0;
        for (tensor& t : file_.tensors_) {
            const auto what = [&] { return "tensor " + quoted(t.name) + " " + t.describe() + ": "; };
            const std::uint64_t at = place_of(t.name) + t.name.size() + 8 + 8 * t.dimensions;  // of the offset
            std::uint64_t needed = 0;
            if (t.size_known())
                needed = t.elements() / static_cast<std::uint64_t>(ggml::block_elements(t.type)) *
                         static_cast<std::uint64_t>(ggml::block_bytes(t.type));
            if ((t.offset & mask) != 0)
                return fail(at, what() + "an offset of " + text(t.offset) + ", which is no multiple of " + text(file_.alignment_));
            if (t.offset > size || needed > size - t.offset)
                return fail(at, what() + text(needed) + " bytes at offset " + text(t.offset) + " reach beyond the " + text(size) +
                                    " bytes of data");
            if (needed != 0)
                t.bytes = bytes_.subspan(file_.data_offset_ + t.offset, needed);
            t.offset += file_.data_offset_;
            used += needed;
        }
        file_.unused_ = size - used;  // if tensors overlap, nobody will see it
        return true;
    }

    template <class T, class Name>
    [[nodiscard]] bool index(const std::vector<T>& all, std::vector<std::uint32_t>& order, const char* what, Name name) {
        order = nibble::detail::sorted_by_name(all, name);
        const std::size_t i = nibble::detail::first_repeated(all, order, name);
        if (i == order.size()) return true;
        const std::string_view repeated = name(all[order[i]]);
        return fail(place_of(repeated), what + quoted(repeated) + " is given twice");
    }

    [[nodiscard]] bool check_overlap() {
        const auto& tensors = file_.tensors_;
        std::vector<std::uint32_t> order;
        order.reserve(tensors.size());
        for (std::size_t i = 0; i < tensors.size(); ++i)
            if (extent_of(tensors[i]) != 0) order.push_back(static_cast<std::uint32_t>(i));
        std::sort(order.begin(), order.end(), [&](std::uint32_t a, std::uint32_t b) {
            return tensors[a].offset != tensors[b].offset ? tensors[a].offset < tensors[b].offset : a < b;
        });
        for (std::size_t i = 1; i < order.size(); ++i) {
            const tensor& before = tensors[order[i - 1]];
            const tensor& t = tensors[order[i]];
            if (extent_of(before) > t.offset - before.offset)
                return fail(place_of(t.name), "tensors " + quoted(before.name) + " at byte " + text(before.offset) + " and " +
                                                  quoted(t.name) + " at byte " + text(t.offset) + " overlap");
        }
        return true;
    }
    // One byte at least belongs to a tensor of a type that is not known.
    [[nodiscard]] static std::uint64_t extent_of(const tensor& t) noexcept {
        return t.size_known() ? t.bytes.size() : t.elements() != 0 ? 1 : 0;
    }

    [[nodiscard]] bool fail(std::uint64_t at, const std::string& message, errc code = errc::malformed) {
        failure_ = {code, "gguf: " + message, at};
        return false;
    }

    std::span<const std::byte> bytes_;
    const read_limits& limits_;
    std::size_t at_ = 0;
    std::uint64_t tensors_ = 0, entries_ = 0;
    failure failure_;
    file file_;
};

}  // namespace detail

NIBBLE_IO_API result<file> read(std::span<const std::byte> bytes, const read_limits& limits) {
    return detail::header_reader(bytes, limits).read();
}

NIBBLE_IO_API result<file> open(const std::filesystem::path& path, open_mode how, const read_limits& limits) {
    auto storage = file_bytes::open(path, how);
    if (!storage) return storage.failure();
    auto parsed = read(storage.value().bytes(), limits);
    if (!parsed) return io::detail::in_file(path, parsed.failure());
    parsed.value().storage_ = std::move(storage).value();
    return parsed;
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io::gguf
