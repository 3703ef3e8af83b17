// What the tools among the examples read: a GGUF file, a safetensors file, a folder of safetensors shards, or a packed file,
// as one list of tensors with their values as floats.
#pragma once

#include <nibble/io/gguf.hpp>
#include <nibble/io/packed.hpp>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <memory>
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

std::string text_of(const io::gguf::value& v);

struct model_file {
    std::string format;  // "GGUF version 3"
    std::vector<model_tensor> tensors;
    std::vector<std::pair<std::string, std::string>> metadata;  // as it may be shown
    // One of these; tensors point into it.
    std::optional<io::gguf::file> gguf;
    std::optional<st::file> plain;
    std::shared_ptr<const struct model_folder> shards;
    std::optional<io::packed::file> packed;

    static nibble::result<model_file> open(const std::string& path);
    // The tensor's bytes are done with: they need not stay in memory.
    void release(const model_tensor& t) const;

private:
    void add(const st::tensor& t) { tensors.push_back({t.name, std::string(name_of(t.type)), t.shape, t.bytes.size(), true, &t}); }
};

// The values of rows first .. first + count - 1.
nibble::result<std::vector<float>> values_of(const model_tensor& t, std::uint64_t first, std::uint64_t count);

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
int complain(const char* tool, const nibble::failure& why);
