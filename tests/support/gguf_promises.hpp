// What the GGUF reader promises of any bytes, checked; shared by the hostile tests and the fuzz target.
#pragma once

#include <nibble/io/gguf.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace gguf_promises {

namespace gguf = nibble::io::gguf;
namespace ggml = nibble::io::ggml;

inline volatile unsigned sink = 0;

// Looks at every element of a value. Returns the bytes that the elements take.
inline std::size_t walk(const gguf::value& v) {
    unsigned touched = 0;
    for (const std::byte b : v.bytes()) touched += std::to_integer<unsigned>(b);
    sink = sink + touched;
    std::size_t used = 0;
    for (const gguf::value e : v.elements()) used += walk(e);
    if (v.type() == gguf::value_type::array && used != v.bytes().size() - 12) return ~std::size_t{0};
    static_cast<void>(v.as_double());
    static_cast<void>(v.as_text());
    static_cast<void>(v.as_bool());
    if (v.as_unsigned() && v.as_signed() && *v.as_unsigned() != static_cast<std::uint64_t>(*v.as_signed())) return ~std::size_t{0};
    return v.bytes().size();
}

/// Everything the reader promises of a file it accepts, found out again from its answer; also touches every value and the
/// ends of every tensor.
[[nodiscard]] inline std::string broken(const gguf::file& file, std::span<const std::byte> all) {
    const auto within = [&](const void* begin, std::size_t n) {
        const auto* p = static_cast<const std::byte*>(begin);
        return n == 0 || (p >= all.data() && p + n <= all.data() + all.size());
    };
    unsigned touched = 0;
    for (const gguf::metadata_entry& e : file.metadata()) {
        if (!within(e.key.data(), e.key.size()) || e.key.empty()) return "a key";
        if (!within(e.value.bytes().data(), e.value.bytes().size())) return "a value";
        if (file.find_metadata(e.key) != &e.value) return "find_metadata";
        if (walk(e.value) != e.value.bytes().size()) return "the elements of a value";
    }
    const std::uint64_t a = file.alignment();
    if (a < 8 || (a & (a - 1)) != 0 || file.data_offset() % a != 0) return "the alignment";
    std::uint64_t used = 0;
    std::vector<std::pair<std::uint64_t, std::uint64_t>> ranges;
    for (const gguf::tensor& t : file.tensors()) {
        if (!within(t.name.data(), t.name.size()) || t.name.empty()) return "a name";
        if (file.find(t.name) != &t) return "find";
        if (t.dimensions < 1 || t.dimensions > 4 || t.offset % a != 0 || t.offset < file.data_offset()) return "a tensor";
        std::uint64_t n = 1;
        for (const std::uint64_t d : t.ne) n *= d;
        if (n != t.elements() || n != t.rows() * t.cols() || t.shape().size() != t.dimensions) return "a shape";
        static_cast<void>(t.describe());
        if (!t.size_known()) {
            if (!t.bytes.empty()) return "bytes of no size";
            continue;
        }
        if (!within(t.bytes.data(), t.bytes.size())) return "bytes";
        if (!t.bytes.empty() && t.bytes.data() != all.data() + t.offset) return "an offset";
        const auto block = static_cast<std::uint64_t>(ggml::block_elements(t.type));
        if (t.cols() % block != 0 || n / block * static_cast<std::uint64_t>(ggml::block_bytes(t.type)) != t.bytes.size()) return "a size";
        if (!t.bytes.empty()) touched += std::to_integer<unsigned>(t.bytes.front()) + std::to_integer<unsigned>(t.bytes.back());
        used += t.bytes.size();
        if (!t.bytes.empty()) ranges.emplace_back(t.offset, t.offset + t.bytes.size());
    }
    sink = sink + touched;
    std::sort(ranges.begin(), ranges.end());
    for (std::size_t i = 1; i < ranges.size(); ++i)
        if (ranges[i - 1].second > ranges[i].first) return "an overlap";
    const std::uint64_t data = all.size() > file.data_offset() ? all.size() - file.data_offset() : 0;
    if (file.unused_bytes() != data - used) return "unused_bytes";
    return "";
}

/// Decodes a tensor in both ways, whatever its bytes are; they agree, or both say why not.
[[nodiscard]] inline std::string decode(const gguf::tensor& t) {
    const auto values = t.values();
    const auto matrix = t.matrix();
    if (values && values.value().size() != t.elements()) return "the number of values";
    if (!values && (values.failure().message.find(t.type_name()) == std::string::npos || matrix)) return "a message";
    if (matrix && static_cast<std::uint64_t>(matrix.value().rows()) * static_cast<std::uint64_t>(matrix.value().cols()) != t.elements())
        return "the shape of a matrix";
    const auto view = t.view();
    if (view && static_cast<std::uint64_t>(view.value().rows * view.value().cols) != t.elements()) return "a view";
    return "";
}

/// A second reader, written another way: true if the file is acceptable.
class second_reader {
public:
    explicit second_reader(std::string_view bytes) : bytes_(bytes) {}

    [[nodiscard]] bool accepts() {
        if (take(4) != "GGUF") return false;
        const std::uint64_t version = number(4);
        const std::uint64_t tensors = number(8);
        const std::uint64_t entries = number(8);
        if (!good_ || version < 2 || version > 3 || tensors > 1'000'000 || entries > 1'000'000) return false;
        std::set<std::string> keys;
        std::uint64_t alignment = 32;
        for (std::uint64_t i = 0; i < entries && good_; ++i) {
            const std::string key(text());
            if (!good_ || key.empty() || key.size() > 65'535 || !keys.insert(key).second) return false;
            for (const char c : key)
                if (c < ' ' || c > '~') return false;
            const std::uint64_t type = number(4);
            const std::size_t at = at_;
            skip(type, 0);
            if (key != "general.alignment" || !good_) continue;
            at_ = at;
            alignment = number(4);
            bool power = false;
            for (std::uint64_t a = 8; a <= 1'048'576; a *= 2) power = power || a == alignment;
            if (type != 4 || !power) return false;
        }
        std::set<std::string> names;
        struct range {
            long double begin, end;
        };
        std::vector<range> all;
        for (std::uint64_t i = 0; i < tensors && good_; ++i) {
            const std::string name(text());
            if (!good_ || name.empty() || name.size() > 65'535 || name.find('\0') != std::string::npos) return false;
            if (!names.insert(name).second) return false;
            const std::uint64_t dims = number(4);
            if (dims < 1 || dims > 4) return false;
            long double nonzero = 1.0L;  // 64 bits of it are exact
            long double elements = 1.0L;
            std::uint64_t k = 0;
            for (std::uint64_t d = 0; d < dims; ++d) {
                const std::uint64_t n = number(8);
                if (d == 0) k = n;
                if (n >> 63 != 0) return false;
                elements *= static_cast<long double>(n);
                nonzero *= n == 0 ? 1.0L : static_cast<long double>(n);
            }
            const auto type = static_cast<ggml::type>(number(4));
            const std::uint64_t offset = number(8);
            if (!good_ || nonzero >= 9223372036854775808.0L || offset % alignment != 0) return false;
            const auto block = static_cast<std::uint64_t>(ggml::block_elements(type));
            long double size = elements == 0.0L ? 0.0L : 1.0L;
            if (block != 0) {
                const long double bytes = static_cast<long double>(ggml::block_bytes(type)) / static_cast<long double>(block);
                if (k % block != 0 || nonzero * bytes >= 18446744073709551616.0L) return false;
                size = elements * bytes;
            }
            all.push_back({static_cast<long double>(offset), static_cast<long double>(offset) + size});
            known_.push_back(block != 0);
        }
        if (!good_) return false;
        const std::size_t start = (at_ + alignment - 1) / alignment * alignment;
        const long double room = bytes_.size() > start ? static_cast<long double>(bytes_.size() - start) : 0.0L;
        for (std::size_t i = 0; i < all.size(); ++i) {
            if (all[i].begin > room || (known_[i] && all[i].end > room)) return false;
            for (std::size_t j = 0; j < i; ++j)
                if (all[i].begin < all[j].end && all[j].begin < all[i].end) return false;
        }
        return true;
    }

private:
    [[nodiscard]] std::string_view take(std::uint64_t n) {
        if (!good_ || n > bytes_.size() - at_) {
            good_ = false;
            return {};
        }
        at_ += n;
        return bytes_.substr(at_ - n, n);
    }
    [[nodiscard]] std::uint64_t number(std::size_t n) {
        std::uint64_t u = 0;
        const std::string_view b = take(n);
        for (std::size_t i = b.size(); i-- > 0;) u = u << 8 | static_cast<unsigned char>(b[i]);
        return u;
    }
    [[nodiscard]] std::string_view text() { return take(number(8)); }
    void skip(std::uint64_t type, int depth) {
        static const std::map<std::uint64_t, std::uint64_t> sizes = {{0, 1}, {1, 1}, {2, 2}, {3, 2},  {4, 4}, {5, 4},
                                                                     {6, 4}, {7, 1}, {10, 8}, {11, 8}, {12, 8}};
        if (const auto size = sizes.find(type); size != sizes.end()) {
            const std::string_view b = take(size->second);
            if (type == 7 && good_ && b[0] != 0 && b[0] != 1) good_ = false;
        } else if (type == 8) {
            static_cast<void>(text());
        } else if (type == 9 && depth < 4) {
            const std::uint64_t inner = number(4);
            const std::uint64_t count = number(8);
            if (inner > 12 || count > bytes_.size()) good_ = false;
            for (std::uint64_t i = 0; i < count && good_; ++i) skip(inner, depth + 1);
        } else {
            good_ = false;
        }
    }

    std::string_view bytes_;
    std::size_t at_ = 0;
    bool good_ = true;
    std::vector<bool> known_;
};

}  // namespace gguf_promises
