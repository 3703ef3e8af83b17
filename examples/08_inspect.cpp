// What is in a model file? `08_inspect FILE` lists the tensors of a GGUF or safetensors file with their types, shapes, sizes
// and bits per weight, and the metadata. --checksum adds the FNV-1a-64 of each tensor's values as float32, row by row: the
// same weights have the same checksum in whatever file they are. --json writes a list of
// {name, type, shape, bytes, bits_per_weight, checksum}.
//
// Exit code 0: all is well. 1: the file cannot be read. 2: wrong arguments. 3: the values of a tensor cannot be decoded,
// and its checksum is missing (null).
#include <nibble/io/gguf.hpp>
#include <nibble/io/safetensors.hpp>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace {

namespace io = nibble::io;

struct row {
    std::string name, type;
    std::vector<std::uint64_t> shape;  // outermost dimension first
    std::uint64_t elements = 0, bytes = 0;
    bool sized = true;
    std::optional<std::uint64_t> checksum;
};
struct listing {
    std::string format;
    std::vector<row> tensors;
    std::vector<std::pair<std::string, std::string>> metadata;
};
struct checksum {
    std::uint64_t value = 0xcbf29ce484222325u;
    void add(const std::vector<float>& values) {
        for (const float x : values) {
            std::uint32_t u;
            std::memcpy(&u, &x, 4);
            for (int i = 0; i < 32; i += 8) value = (value ^ (u >> i & 0xff)) * 0x100000001b3u;
        }
    }
};
constexpr std::uint64_t piece = 1 << 20;  // elements decoded at once: a tensor need not fit into memory as floats

std::optional<std::uint64_t> checksum_of(const io::gguf::tensor& t) {
    checksum sum;
    const std::uint64_t rows = std::max<std::uint64_t>(1, piece / std::max<std::uint64_t>(1, t.cols()));
    for (std::uint64_t n = 0; n < t.rows() || n == 0; n += rows) {
        const auto part = t.row_block(n, std::min(rows, t.rows() - n));
        if (!part) return std::nullopt;
        const auto values = part.value().values();
        if (!values) return std::nullopt;
        sum.add(values.value());
        if (t.elements() == 0) break;
    }
    return sum.value;
}

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
nibble::status to_floats(const io::safetensors::tensor& t, std::vector<float>& out) {
    using io::safetensors::dtype;
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
std::optional<std::uint64_t> checksum_of(const io::safetensors::tensor& t) {
    checksum sum;
    io::safetensors::tensor part = t;
    const std::uint64_t size = bits_of(t.type) / 8;
    if (size == 0) return std::nullopt;
    for (std::uint64_t at = 0; at < t.bytes.size(); at += piece * size) {
        part.bytes = t.bytes.subspan(at, std::min<std::size_t>(piece * size, t.bytes.size() - at));
        std::vector<float> values;
        if (!to_floats(part, values)) return std::nullopt;
        sum.add(values);
    }
    return sum.value;
}

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
    std::uint64_t shown = 0;
    for (const io::gguf::value e : v.elements()) {
        if (shown != 0) out += ", ";
        if (shown++ == 6) {
            out += "... " + std::to_string(v.elements().size()) + " values";
            break;
        }
        out += text_of(e);
    }
    return out + "]";
}

nibble::result<listing> list(const std::string& path, bool checksums) {
    listing out;
    const auto gguf = io::gguf::open(path);
    if (gguf) {
        out.format = "GGUF version " + std::to_string(gguf.value().version());
        for (const auto& e : gguf.value().metadata()) out.metadata.emplace_back(e.key, text_of(e.value));
        for (const auto& t : gguf.value().tensors())
            out.tensors.push_back({std::string(t.name), t.type_name(), t.shape(), t.elements(), t.bytes.size(), t.size_known(),
                                   checksums ? checksum_of(t) : std::nullopt});
        return out;
    }
    // Whether it was meant to be one is in its first four bytes.
    const auto bytes = io::file_bytes::open(path);
    if (!bytes) return bytes.failure();
    if (bytes.value().bytes().size() >= 4 && std::memcmp(bytes.value().bytes().data(), "GGUF", 4) == 0) return gguf.failure();
    const auto file = io::safetensors::open(path);
    if (!file) return file.failure();
    out.format = "safetensors";
    for (const auto& [key, text] : file.value().metadata()) out.metadata.emplace_back(key, io::detail::quoted(text));
    for (const auto& t : file.value().tensors())
        out.tensors.push_back({t.name, std::string(name_of(t.type)), t.shape, t.elements(), t.bytes.size(), true,
                               checksums ? checksum_of(t) : std::nullopt});
    return out;
}

double bits_per_weight(const row& r) {
    return r.elements == 0 ? 0.0 : 8.0 * static_cast<double>(r.bytes) / static_cast<double>(r.elements);
}
std::string hex(std::uint64_t u) {
    char digits[17];
    std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(u));
    return digits;
}

void print_json(const listing& l) {
    auto all = nlohmann::ordered_json::array();
    for (const row& r : l.tensors) {
        nlohmann::ordered_json one = {{"name", r.name}, {"type", r.type}, {"shape", r.shape}, {"bytes", r.bytes}};
        if (!r.sized) one["bytes"] = nullptr;
        one["bits_per_weight"] = r.sized ? nlohmann::ordered_json(bits_per_weight(r)) : nlohmann::ordered_json();
        one["checksum"] = r.checksum ? nlohmann::ordered_json(hex(*r.checksum)) : nlohmann::ordered_json();
        all.push_back(std::move(one));
    }
    std::printf("%s\n", all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

void print_table(const listing& l, bool checksums) {
    const auto shape_text = [](const row& r) {
        std::string out;
        for (const std::uint64_t d : r.shape) out += (out.empty() ? "" : " x ") + std::to_string(d);
        return out.empty() ? std::string("scalar") : out;
    };
    std::size_t name = 6, shape = 5;
    std::uint64_t bytes = 0, elements = 0;
    for (const row& r : l.tensors) {
        name = std::max(name, io::detail::printable(r.name, 120).size());
        shape = std::max(shape, shape_text(r).size());
        bytes += r.bytes;
        if (r.sized) elements += r.elements;
    }
    const auto width = [](std::size_t n) { return static_cast<int>(n); };
    std::printf("%s, %zu tensors, %llu bytes, %.4f bits per weight\n\n", l.format.c_str(), l.tensors.size(),
                static_cast<unsigned long long>(bytes), bits_per_weight({"", "", {}, elements, bytes, true, {}}));
    std::printf("%-*s  %-8s  %-*s  %14s  %8s%s\n", width(name), "tensor", "type", width(shape), "shape", "bytes", "bits",
                checksums ? "  checksum" : "");
    for (const row& r : l.tensors) {
        std::printf("%-*s  %-8s  %-*s  ", width(name), io::detail::printable(r.name, 120).c_str(), r.type.c_str(), width(shape),
                    shape_text(r).c_str());
        if (r.sized) std::printf("%14llu  %8.4f", static_cast<unsigned long long>(r.bytes), bits_per_weight(r));
        else std::printf("%14s  %8s", "?", "?");
        std::printf("%s%s\n", checksums ? "  " : "", !checksums ? "" : r.checksum ? hex(*r.checksum).c_str() : "not decoded");
    }
    if (!l.metadata.empty()) std::printf("\nmetadata\n");
    for (const auto& [key, value] : l.metadata) std::printf("  %s = %s\n", io::detail::printable(key, 120).c_str(), value.c_str());
}

}  // namespace

int main(int argc, char** argv) {
    constexpr const char* usage =
        "usage: inspect FILE [--checksum] [--json]\n"
        "Lists what is in a GGUF or safetensors file.\n"
        "  --checksum  decode every tensor: FNV-1a-64 of its float32 values in row-major order\n"
        "  --json      a list of {name, type, shape, bytes, bits_per_weight, checksum}\n";
    std::string path;
    bool json = false, checksums = false;
    for (int i = 1; i < argc; ++i) {
        const std::string_view argument = argv[i];
        if (argument == "--help") return std::fputs(usage, stdout) < 0 ? 1 : 0;
        if (argument == "--json") json = true;
        else if (argument == "--checksum") checksums = true;
        else if (path.empty() && !argument.starts_with("-")) path = argument;
        else return std::fputs(usage, stderr), 2;
    }
    if (path.empty()) return std::fputs(usage, stderr), 2;
    const auto l = list(path, checksums || json);
    if (!l) {
        std::fprintf(stderr, "inspect: %s (at byte %llu)\n", l.failure().message.c_str(),
                     static_cast<unsigned long long>(l.failure().offset));
        return 1;
    }
    json ? print_json(l.value()) : print_table(l.value(), checksums);
    if (!checksums && !json) return 0;
    for (const row& r : l.value().tensors)
        if (!r.checksum) return 3;
    return 0;
}
