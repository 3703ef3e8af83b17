// GGUF files made by hand, right and wrong: nothing of the library's writer is in here.
//
//   gguf_bytes::file f;
//   f.text("general.name", "x").number<std::uint32_t>("general.alignment", 4, 64).tensor("w", {256, 2}, 12, 0);
//   std::string bytes = f.bytes(288);    // the header, padded to the alignment, and 288 bytes of data
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <span>
#include <string>
#include <string_view>

namespace gguf_bytes {

template <class T>
[[nodiscard]] std::string raw(T x) {  // little-endian machines only, as all that the tests run on
    std::string out(sizeof x, '\0');
    std::memcpy(out.data(), &x, sizeof x);
    return out;
}
[[nodiscard]] inline std::string u32(std::uint32_t x) { return raw(x); }
[[nodiscard]] inline std::string u64(std::uint64_t x) { return raw(x); }
[[nodiscard]] inline std::string text(std::string_view s) { return u64(s.size()).append(s); }
[[nodiscard]] inline std::string array(std::uint32_t type, std::uint64_t count, std::string_view elements) {
    return (u32(type) + u64(count)).append(elements);
}

struct file {
    std::uint32_t version = 3;
    std::uint64_t alignment = 32;  // of the padding only; general.alignment is an entry like any other
    std::uint64_t entries = 0, tensors = 0;
    std::string metadata, infos;

    file& entry(std::string_view key, std::uint32_t type, std::string_view value) {
        metadata.append(gguf_bytes::text(key)).append(u32(type)).append(value);
        ++entries;
        return *this;
    }
    template <class T>
    file& number(std::string_view key, std::uint32_t type, T value) {
        return entry(key, type, raw(value));
    }
    file& text(std::string_view key, std::string_view value) { return entry(key, 8, gguf_bytes::text(value)); }
    file& tensor(std::string_view name, std::initializer_list<std::uint64_t> ne, std::uint32_t type, std::uint64_t offset) {
        infos.append(gguf_bytes::text(name)).append(u32(static_cast<std::uint32_t>(ne.size())));
        for (const std::uint64_t d : ne) infos.append(u64(d));
        infos.append(u32(type)).append(u64(offset));
        ++tensors;
        return *this;
    }
    /// Up to where the padding begins.
    [[nodiscard]] std::string header() const {
        return "GGUF" + u32(version) + u64(tensors) + u64(entries) + metadata + infos;
    }
    [[nodiscard]] std::string bytes(std::string_view data = {}) const {
        std::string out = header();
        while (out.size() % alignment != 0) out += '\0';
        return out.append(data);
    }
    [[nodiscard]] std::string bytes(std::size_t data) const { return bytes(std::string(data, '\0')); }
};

// Exactly as many bytes as the file has, on the heap, so that the address sanitizer sees one byte too many.
struct exact {
    explicit exact(std::string_view text) : memory(new std::byte[text.size()]), size(text.size()) {
        if (size != 0) std::memcpy(memory.get(), text.data(), size);
    }
    [[nodiscard]] std::span<const std::byte> span() const { return {memory.get(), size}; }

    std::unique_ptr<std::byte[]> memory;
    std::size_t size;
};

}  // namespace gguf_bytes
