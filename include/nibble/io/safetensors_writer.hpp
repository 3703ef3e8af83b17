// safetensors files, written.
//
//     nibble::io::safetensors::write("model.safetensors", tensors).or_throw();
//
// The file is as safetensors.hpp describes it, without gaps: elements of many bits first, then by name, so that every
// tensor is aligned for its type; the header ends in spaces where it must. The official reader takes it.
//
// Writing is atomic. Bytes go to a new file beside the destination, every write is checked, the file is flushed to the
// device and closed, and then renamed. Whatever fails, the destination is the old file or the whole new one, and nothing
// else is left behind.
#pragma once

#include <atomic>
#include <cstdio>

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

/// A file that takes its name when it is complete.
class replacement {
public:
    explicit replacement(std::filesystem::path path) : path_(std::move(path)) {}
    replacement(const replacement&) = delete;
    replacement& operator=(const replacement&) = delete;
    ~replacement() { drop(); }

    [[nodiscard]] status open() {
        static std::atomic<unsigned> counter{0};
        const std::string number = std::to_string(counter.fetch_add(1));
#if NIBBLE_HAS_MMAP
        const std::string tag = std::to_string(::getpid()) + "." + number;
#else
        const std::string tag = number;
#endif
        partial_ = path_;
        partial_ += ".partial." + tag;
#if NIBBLE_HAS_MMAP
        do {
            fd_ = ::open(partial_.c_str(), O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        } while (fd_ < 0 && errno == EINTR);
        exists_ = fd_ >= 0;
#else
        std::error_code ignored;
        if (!std::filesystem::exists(partial_, ignored)) stream_.open(partial_, std::ios::binary | std::ios::trunc);
        exists_ = stream_.is_open();
#endif
        return exists_ ? status() : failed("cannot create", io::detail::last_error());
    }

    [[nodiscard]] status write(std::span<const std::byte> bytes) {
#if NIBBLE_HAS_MMAP
        constexpr std::size_t most = std::size_t{1} << 30;
        while (!bytes.empty()) {
            const ::ssize_t n = ::write(fd_, bytes.data(), bytes.size() < most ? bytes.size() : most);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0)
                return failed("cannot write",
                              n < 0 ? io::detail::last_error() : std::make_error_code(std::errc::io_error));
            bytes = bytes.subspan(static_cast<std::size_t>(n));
        }
        return {};
#else
        stream_.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
        return stream_ ? status() : failed("cannot write", std::make_error_code(std::errc::io_error));
#endif
    }

    [[nodiscard]] status finish() {
#if NIBBLE_HAS_MMAP
        if (::fsync(fd_) != 0 && errno != EINVAL && errno != EROFS)
            return failed("cannot flush", io::detail::last_error());
        const int fd = std::exchange(fd_, -1);
        if (::close(fd) != 0) return failed("cannot close", io::detail::last_error());
#else
        stream_.close();
        if (!stream_) return failed("cannot close", std::make_error_code(std::errc::io_error));
#endif
        std::error_code why;
        std::filesystem::rename(partial_, path_, why);
        if (why) return failed("cannot rename to", why);
        exists_ = false;
        return {};
    }

private:
    [[nodiscard]] status failed(const char* what, std::error_code why) {
        drop();
        const nibble::failure f = io::detail::io_failure(path_, what, why);
        return {f.code, f.message};
    }
    void drop() noexcept {
#if NIBBLE_HAS_MMAP
        if (fd_ >= 0) ::close(std::exchange(fd_, -1));
#else
        if (stream_.is_open()) stream_.close();
#endif
        std::error_code ignored;
        if (std::exchange(exists_, false)) std::filesystem::remove(partial_, ignored);
    }

    std::filesystem::path path_;
    std::filesystem::path partial_;
    bool exists_ = false;
#if NIBBLE_HAS_MMAP
    int fd_ = -1;
#else
    std::ofstream stream_;
#endif
};

/// Text as JSON, or nothing if it is not UTF-8.
[[nodiscard]] inline std::optional<std::string> json_text(const std::string& text) {
    const std::string json = nlohmann::json(text).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    const nlohmann::json back = nlohmann::json::parse(json, nullptr, false);
    if (!back.is_string() || back.get_ref<const std::string&>() != text) return std::nullopt;
    return json;
}

[[nodiscard]] inline status check_to_write(const tensor& t) {
    const std::string which = "safetensors: tensor " + io::detail::quoted(t.name) + " " + t.describe() + ": ";
    if (t.name == "__metadata__") return {errc::invalid_argument, which + "the name is taken"};
    if (t.shape.size() > read_limits{}.rank) return {errc::invalid_argument, which + "more than 64 dimensions"};
    std::uint64_t bits = bits_of(t.type);
    bool empty = false;
    for (const std::uint64_t d : t.shape) {
        empty = empty || d == 0;
        if (mul_overflows(bits, d == 0 ? 1 : d)) return {errc::out_of_range, which + "its size does not fit 64 bits"};
        bits *= d == 0 ? 1 : d;
    }
    if (empty) bits = 0;
    if (bits % 8 != 0) return {errc::invalid_argument, which + "its elements do not fill whole bytes"};
    if (bits / 8 != t.bytes.size())
        return {errc::shape_mismatch, which + "the shape takes " + std::to_string(bits / 8) + " bytes, there are " +
                                          std::to_string(t.bytes.size())};
    return {};
}

/// The header with its length, and the order of the tensors.
[[nodiscard]] inline status make_header(std::span<const tensor> tensors, const metadata_map& metadata,
                                        std::string& header, std::vector<std::size_t>& order) {
    order.resize(tensors.size());
    for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
    std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
        const unsigned x = bits_of(tensors[a].type), y = bits_of(tensors[b].type);
        return x != y ? x > y : tensors[a].name < tensors[b].name;
    });
    header = "{";
    const auto not_text = [](const std::string& text) {
        return status(errc::invalid_argument, "safetensors: " + io::detail::quoted(text) + " is not UTF-8");
    };
    for (const auto& [key, value] : metadata) {
        header += header.size() == 1 ? "\"__metadata__\":{" : ",";
        for (const std::string* text : {&key, &value}) {
            const auto json = json_text(*text);
            if (!json.has_value()) return not_text(*text);
            header.append(*json).append(text == &key ? ":" : "");
        }
    }
    if (!metadata.empty()) header += "}";
    std::uint64_t begin = 0;
    for (const std::size_t i : order) {
        const tensor& t = tensors[i];
        if (status s = check_to_write(t); !s) return s;
        const auto name = json_text(t.name);
        if (!name.has_value()) return not_text(t.name);
        header += header.size() == 1 ? "" : ",";
        header.append(*name)
            .append(":{\"dtype\":\"")
            .append(name_of(t.type))
            .append("\",\"shape\":")
            .append(shape_text(t.shape));
        header.append(",\"data_offsets\":[").append(std::to_string(begin)).append(",");
        begin += t.bytes.size();
        header.append(std::to_string(begin)).append("]}");
    }
    header += "}";
    std::vector<std::string_view> names;
    for (const tensor& t : tensors) names.push_back(t.name);
    std::sort(names.begin(), names.end());
    if (const auto twice = std::adjacent_find(names.begin(), names.end()); twice != names.end())
        return {errc::invalid_argument, "safetensors: tensor " + io::detail::quoted(*twice) + " is given twice"};
    header.append((8 - header.size() % 8) % 8, ' ');
    if (header.size() > read_limits{}.header_bytes)
        return {errc::out_of_range,
                "safetensors: a header of " + std::to_string(header.size()) + " bytes; the format allows 100000000"};
    std::string length;
    for (unsigned shift = 0; shift < 64; shift += 8) length += static_cast<char>(header.size() >> shift & 255);
    header.insert(0, length);
    return {};
}

}  // namespace detail

/// Writes a file of these tensors, whole or not at all. Refuses names that are given twice or are not UTF-8, and bytes
/// that are not those of the shape.
[[nodiscard]] inline status write(const std::filesystem::path& path, std::span<const tensor> tensors,
                                  const metadata_map& metadata = {}) {
    std::string header;
    std::vector<std::size_t> order;
    if (status s = detail::make_header(tensors, metadata, header, order); !s) return s;
    detail::replacement file(path);
    if (status s = file.open(); !s) return s;
    if (status s = file.write(std::as_bytes(std::span(header))); !s) return s;
    for (const std::size_t i : order)
        if (status s = file.write(tensors[i].bytes); !s) return s;
    return file.finish();
}
[[nodiscard]] inline status write(const std::filesystem::path& path, std::span<const tensor_data> tensors,
                                  const metadata_map& metadata = {}) {
    std::vector<tensor> views;
    views.reserve(tensors.size());
    for (const tensor_data& t : tensors) views.push_back(t.view());
    return write(path, std::span<const tensor>(views), metadata);
}

}  // namespace nibble::io::safetensors
