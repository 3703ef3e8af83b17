// What the tools among the examples share, compiled once.
#include "model_file.hpp"

#include <nibble/io/checkpoint.hpp>

struct model_folder {
    explicit model_folder(io::checkpoint c) : checkpoint(std::move(c)) {}
    io::checkpoint checkpoint;
};

std::string text_of(const io::gguf::value& v) {
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

nibble::result<model_file> model_file::open(const std::string& path) {
    model_file out;
    std::error_code ignored;
    if (std::filesystem::is_directory(path, ignored)) {
        auto folder = io::open_checkpoint(path);
        if (!folder) return folder.failure();
        out.format = "safetensors";
        out.shards = std::make_shared<const model_folder>(std::move(folder).value());
        for (const st::tensor* t : out.shards->checkpoint.tensors()) out.add(*t);
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

void model_file::release(const model_tensor& t) const {
    if (const auto* g = std::get_if<const io::gguf::tensor*>(&t.data)) gguf->release(**g);
    if (const auto* s = std::get_if<const st::tensor*>(&t.data)) {
        if (plain) plain->release(**s);
        if (shards) shards->checkpoint.release(**s);
    }
}

namespace {

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
nibble::status to_floats(const st::tensor& t, std::vector<float>& out) {
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

}  // namespace

nibble::result<std::vector<float>> values_of(const model_tensor& t, std::uint64_t first, std::uint64_t count) {
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

int complain(const char* tool, const nibble::failure& why) {
    std::fprintf(stderr, "%s: %s (at byte %llu)\n", tool, why.message.c_str(), static_cast<unsigned long long>(why.offset));
    return 1;
}
