// What is in a model file? `08_inspect FILE` lists the tensors of a GGUF or safetensors file, a folder of shards
// or a packed file with their types, shapes, sizes
// and bits per weight, and the metadata. --checksum adds the FNV-1a-64 of each tensor's values as float32, row by row: the
// same weights have the same checksum in whatever file they are. --json writes a list of
// {name, type, shape, bytes, bits_per_weight, checksum}.
//
// Exit code 0: all is well. 1: the file cannot be read. 2: wrong arguments. 3: the values of a tensor cannot be decoded,
// and its checksum is missing (null).
#include "model_file.hpp"

#include <algorithm>
#include <cstdio>
#include <cstring>

namespace {

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
std::optional<std::uint64_t> checksum_of(const model_file& file, const model_tensor& t) {
    checksum sum;
    const auto ok = for_each_piece(file, t, [&](std::uint64_t, const std::vector<float>& values) {
        sum.add(values);
        return nibble::status();
    });
    return ok ? std::optional(sum.value) : std::nullopt;
}

double bits_per_weight(std::uint64_t bytes, std::uint64_t elements) {
    return elements == 0 ? 0.0 : 8.0 * static_cast<double>(bytes) / static_cast<double>(elements);
}
double bits_per_weight(const model_tensor& t) { return bits_per_weight(t.bytes, t.elements()); }
std::string hex(std::uint64_t u) {
    char digits[17];
    std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(u));
    return digits;
}

using checksums = std::vector<std::optional<std::uint64_t>>;

void print_json(const model_file& file, const checksums& sums) {
    auto all = nlohmann::ordered_json::array();
    for (std::size_t i = 0; i < file.tensors.size(); ++i) {
        const model_tensor& r = file.tensors[i];
        nlohmann::ordered_json one = {{"name", r.name}, {"type", r.type}, {"shape", r.shape}, {"bytes", r.bytes}};
        if (!r.sized) one["bytes"] = nullptr;
        one["bits_per_weight"] = r.sized ? nlohmann::ordered_json(bits_per_weight(r)) : nlohmann::ordered_json();
        one["checksum"] = sums[i] ? nlohmann::ordered_json(hex(*sums[i])) : nlohmann::ordered_json();
        all.push_back(std::move(one));
    }
    std::printf("%s\n", all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
}

void print_table(const model_file& file, const checksums& sums) {
    std::size_t name = 6, shape = 5;
    std::uint64_t bytes = 0, elements = 0;
    for (const model_tensor& r : file.tensors) {
        name = std::max(name, shown(r.name).size());
        shape = std::max(shape, r.shape_text().size());
        bytes += r.bytes;
        if (r.sized) elements += r.elements();
    }
    const auto width = [](std::size_t n) { return static_cast<int>(n); };
    std::printf("%s, %zu tensors, %llu bytes, %.4f bits per weight\n\n", file.format.c_str(), file.tensors.size(),
                static_cast<unsigned long long>(bytes), bits_per_weight(bytes, elements));
    std::printf("%-*s  %-8s  %-*s  %14s  %8s%s\n", width(name), "tensor", "type", width(shape), "shape", "bytes", "bits",
                sums.empty() ? "" : "  checksum");
    for (std::size_t i = 0; i < file.tensors.size(); ++i) {
        const model_tensor& r = file.tensors[i];
        std::printf("%-*s  %-8s  %-*s  ", width(name), shown(r.name).c_str(), r.type.c_str(), width(shape), r.shape_text().c_str());
        if (r.sized) std::printf("%14llu  %8.4f", static_cast<unsigned long long>(r.bytes), bits_per_weight(r));
        else std::printf("%14s  %8s", "?", "?");
        std::printf("%s%s\n", sums.empty() ? "" : "  ", sums.empty() ? "" : sums[i] ? hex(*sums[i]).c_str() : "not decoded");
    }
    if (!file.metadata.empty()) std::printf("\nmetadata\n");
    for (const auto& [key, value] : file.metadata) std::printf("  %s = %s\n", shown(key).c_str(), value.c_str());
}

}  // namespace

int main(int argc, char** argv) {
    constexpr const char* usage =
        "usage: inspect FILE [--checksum] [--json]\n"
        "Lists what is in a GGUF or safetensors file, a folder of shards or a packed file.\n"
        "  --checksum  decode every tensor: FNV-1a-64 of its float32 values in row-major order\n"
        "  --json      a list of {name, type, shape, bytes, bits_per_weight, checksum}\n";
    std::string path;
    bool json = false, decode = false;
    for (int i = 1; i < argc; ++i) {
        const std::string_view argument = argv[i];
        if (argument == "--help") return std::fputs(usage, stdout) < 0 ? 1 : 0;
        if (argument == "--json") json = true;
        else if (argument == "--checksum") decode = true;
        else if (path.empty() && !argument.starts_with("-")) path = argument;
        else return std::fputs(usage, stderr), 2;
    }
    if (path.empty()) return std::fputs(usage, stderr), 2;
    const auto file = model_file::open(path);
    if (!file) return complain("inspect", file.failure());
    checksums sums;
    if (decode || json)
        for (const model_tensor& t : file.value().tensors) sums.push_back(checksum_of(file.value(), t));
    json ? print_json(file.value(), sums) : print_table(file.value(), sums);
    return std::find(sums.begin(), sums.end(), std::nullopt) == sums.end() ? 0 : 3;
}
