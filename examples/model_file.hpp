// What the tools among the examples read: a GGUF file, a safetensors file, a folder of safetensors shards, or a packed file,
// as one list of tensors with their values as floats.
#pragma once

#include <nibble/io/checkpoint.hpp>
#include <nibble/io/gguf.hpp>
#include <nibble/io/packed.hpp>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace io = nibble::io;
namespace st = nibble::io::safetensors;

struct model_tensor {
    std::string name, type;            // "F16", "Q4_K", "nf4"
    std::vector<std::uint64_t> shape;  // outermost dimension first
    std::uint64_t bytes = 0;
    bool sized = true;                 // whether the bytes are known
    std::variant<const io::gguf::tensor*, const st::tensor*, const nibble::qmatrix*> data;

    std::uint64_t elements() const {
        std::uint64_t n = 1;
        for (const std::uint64_t d : shape) n *= d;
        return n;
    }
    std::uint64_t cols() const { return shape.size() < 2 ? 1 : shape.back(); }
    std::uint64_t rows() const { return cols() == 0 ? 0 : elements() / cols(); }  // all dimensions but the last, as one
    std::string shape_text() const {
        std::string out;
        for (const std::uint64_t d : shape) out += (out.empty() ? "" : " x ") + std::to_string(d);
        return out.empty() ? std::string("scalar") : out;
    }
    // F32, F64, F16 and BF16 in place.
    std::optional<nibble::const_view> view() const {
        const auto k = static_cast<nibble::index>(cols());
        nibble::result<nibble::const_view> v = nibble::failure{};
        if (const auto* g = std::get_if<const io::gguf::tensor*>(&data)) v = (*g)->view();
        if (const auto* s = std::get_if<const st::tensor*>(&data)) {
            st::tensor flat = **s;
            flat.shape = {rows(), cols()};
            v = flat.view();
        }
        if (!v) return std::nullopt;
        return nibble::const_view{v.value().data, v.value().type, static_cast<nibble::index>(rows()), k, k, 1};
    }
};

inline std::string shown(std::string_view name) { return io::detail::printable(name, 120); }

inline std::string text_of(const io::gguf::value& v) {
    if (const auto text = v.as_text()) return io::detail::quoted(*text);
    if (const auto u = v.as_unsigned()) return std::to_string(*u);
    if (const auto i = v.as_signed()) return std::to_string(*i);
    if (const auto b = v.as_bool()) return *b ? "true" : "false";
    if (const auto d = v.as_double()) {
        char digits[40];
        std::snprintf(digits, sizeof digits, "%.9g", *d);
        return digits;
    }
    std::string out = "[";
    std::uint64_t count = 0;
    for (const io::gguf::value e : v.elements()) {
        if (count != 0) out += ", ";
        if (count++ == 6) {
            out += "... " + std::to_string(v.elements().size()) + " values";
            break;
        }
        out += text_of(e);
    }
    return out + "]";
}

struct model_file {
    std::string format;  // "GGUF version 3"
    std::vector<model_tensor> tensors;
    std::vector<std::pair<std::string, std::string>> metadata;  // as it may be shown
    // One of these; tensors point into it.
    std::optional<io::gguf::file> gguf;
    std::optional<st::file> plain;
    std::optional<io::checkpoint> shards;
    std::optional<io::packed::file> packed;

    static nibble::result<model_file> open(const std::string& path) {
        model_file out;
        std::error_code ignored;
        if (std::filesystem::is_directory(path, ignored)) {
            auto folder = io::open_checkpoint(path);
            if (!folder) return folder.failure();
            out.format = "safetensors";
            out.shards = std::move(folder).value();
            for (const st::tensor* t : out.shards->tensors()) out.add(*t);
            return out;
        }
        {
            const auto bytes = io::file_bytes::open(path);
            if (!bytes) return bytes.failure();
            const auto head = bytes.value().bytes();
            if (head.size() >= 4 && std::memcmp(head.data(), "GGUF", 4) == 0) {
                auto file = io::gguf::open(path);
                if (!file) return file.failure();
                out.gguf = std::move(file).value();
            }
        }
        if (out.gguf) {
            out.format = "GGUF version " + std::to_string(out.gguf->version());
            for (const auto& e : out.gguf->metadata()) out.metadata.emplace_back(e.key, text_of(e.value));
            for (const auto& t : out.gguf->tensors())
                out.tensors.push_back({std::string(t.name), t.type_name(), t.shape(), t.bytes.size(), t.size_known(), &t});
            return out;
        }
        auto file = st::open(path);
        if (!file) return file.failure();
        out.format = "safetensors";
        for (const auto& [key, text] : file.value().metadata())
            if (!key.starts_with(io::packed::matrix_key)) out.metadata.emplace_back(key, io::detail::quoted(text));
        if (file.value().metadata().count(io::packed::version_key) == 0) {
            out.plain = std::move(file).value();
            for (const st::tensor& t : out.plain->tensors()) out.add(t);
            return out;
        }
        auto packed = io::packed::open(path);
        if (!packed) return packed.failure();
        out.format = "packed";
        out.packed = std::move(packed).value();
        for (const auto& [name, m] : out.packed->matrices())
            out.tensors.push_back({name, m.name(), {static_cast<std::uint64_t>(m.rows()), static_cast<std::uint64_t>(m.cols())}, m.bytes(), true, &m});
        for (const st::tensor& t : out.packed->tensors()) out.add(t);
        return out;
    }

    // The tensor's bytes are done with: they need not stay in memory.
    void release(const model_tensor& t) const {
        if (const auto* g = std::get_if<const io::gguf::tensor*>(&t.data)) gguf->release(**g);
        if (const auto* s = std::get_if<const st::tensor*>(&t.data)) {
            if (plain) plain->release(**s);
            if (shards) shards->release(**s);
        }
    }

private:
    void add(const st::tensor& t) { tensors.push_back({t.name, std::string(name_of(t.type)), t.shape, t.bytes.size(), true, &t}); }
};

// Integers and 8-bit floats, which a safetensors tensor does not decode itself.
template <class T, class Decode>
std::vector<float> decoded(std::span<const std::byte> bytes, Decode decode) {
    std::vector<float> out(bytes.size() / sizeof(T));
    for (std::size_t i = 0; i < out.size(); ++i) {
        T x;
        std::memcpy(&x, bytes.data() + i * sizeof(T), sizeof(T));
        out[i] = decode(x);
    }
    return out;
}
inline nibble::status to_floats(const st::tensor& t, std::vector<float>& out) {
    using st::dtype;
    const auto cast = [](auto x) { return static_cast<float>(x); };
    switch (t.type) {
        case dtype::boolean:
        case dtype::u8: out = decoded<std::uint8_t>(t.bytes, cast); return {};
        case dtype::i8: out = decoded<std::int8_t>(t.bytes, cast); return {};
        case dtype::u16: out = decoded<std::uint16_t>(t.bytes, cast); return {};
        case dtype::i16: out = decoded<std::int16_t>(t.bytes, cast); return {};
        case dtype::u32: out = decoded<std::uint32_t>(t.bytes, cast); return {};
        case dtype::i32: out = decoded<std::int32_t>(t.bytes, cast); return {};
        case dtype::u64: out = decoded<std::uint64_t>(t.bytes, cast); return {};
        case dtype::i64: out = decoded<std::int64_t>(t.bytes, cast); return {};
        case dtype::f8_e4m3: out = decoded<std::uint8_t>(t.bytes, [](unsigned u) { return nibble::fp8_e4m3::decode(u); }); return {};
        case dtype::f8_e5m2: out = decoded<std::uint8_t>(t.bytes, [](unsigned u) { return nibble::fp8_e5m2::decode(u); }); return {};
        default: return t.to_floats(out);
    }
}

// The values of rows first .. first + count - 1.
inline nibble::result<std::vector<float>> values_of(const model_tensor& t, std::uint64_t first, std::uint64_t count) {
    if (const auto* g = std::get_if<const io::gguf::tensor*>(&t.data)) {
        if ((*g)->dimensions < 2) return (*g)->values();
        const auto part = (*g)->row_block(first, count);
        return part ? part.value().values() : part.failure();
    }
    std::vector<float> out;
    if (const auto* s = std::get_if<const st::tensor*>(&t.data)) {
        st::tensor part = **s;
        const std::uint64_t bits = bits_of(part.type);
        if (bits % 8 != 0) return nibble::failure{nibble::errc::unsupported, "the values of " + t.type + " are not decoded", part.offset};
        part.bytes = part.bytes.subspan(first * t.cols() * bits / 8, count * t.cols() * bits / 8);
        if (const nibble::status ok = to_floats(part, out); !ok) return nibble::failure{ok.code(), ok.message(), part.offset};
        return out;
    }
    // A block of rows begins at a multiple of 16; what is asked for may begin later.
    const nibble::qmatrix& m = *std::get<const nibble::qmatrix*>(t.data);
    const std::uint64_t skipped = first % nibble::panel_rows;
    const auto rows = static_cast<nibble::index>(skipped + count);
    out.resize(static_cast<std::size_t>(rows * m.cols()));
    nibble::dequantize(m.row_block(static_cast<nibble::index>(first - skipped), rows), nibble::row_major(out.data(), rows, m.cols()));
    out.erase(out.begin(), out.begin() + static_cast<std::ptrdiff_t>(skipped * t.cols()));
    return out;
}

// Calls use(first row, values) for the tensor in pieces of whole rows, so that it need not fit into memory as floats.
template <class Use>
nibble::status for_each_piece(const model_file& file, const model_tensor& t, Use use) {
    const bool whole = std::holds_alternative<const io::gguf::tensor*>(t.data) && t.shape.size() < 2;
    const std::uint64_t rows = whole ? std::max<std::uint64_t>(1, t.rows())
                                     : std::max<std::uint64_t>(16, (std::uint64_t{1} << 20) / std::max<std::uint64_t>(1, t.cols()) / 16 * 16);
    for (std::uint64_t n = 0; n < t.rows() || n == 0; n += rows) {
        const auto values = values_of(t, n, std::min(rows, t.rows() - n));
        if (!values) return {values.failure().code, values.failure().message};
        if (nibble::status s = use(n, values.value()); !s) return s;
    }
    file.release(t);
    return {};
}

// A message on stderr, and the exit code of a tool that failed.
inline int complain(const char* tool, const nibble::failure& why) {
    std::fprintf(stderr, "%s: %s (at byte %llu)\n", tool, why.message.c_str(), static_cast<unsigned long long>(why.offset));
    return 1;
}
