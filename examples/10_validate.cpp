// Is a model file sound? `10_validate FILE` reads a GGUF file, a safetensors file, a folder of shards or a packed file whole:
// its structure, the scales of quantized matrices, and every value, which must be finite. The table shows the smallest and
// the largest value of each tensor. --json writes a list of {name, type, shape, state, message, smallest, largest}.
//
// Exit code 0: all is well. 1: the file cannot be read or its structure is wrong. 2: wrong arguments. 3: a tensor has NaN, Inf
// or scales that are none. Types whose values are not decoded are listed, and are no error.
#include "model_file.hpp"

#include <cmath>

namespace {

struct verdict {
    const char* state = "ok";  // "bad", "not decoded"
    std::string message;
    std::optional<float> smallest, largest;
};

// An F64 may be beyond the range of a float, which is nothing wrong with it.
bool is_finite(const model_tensor& t, std::uint64_t element, float as_float) {
    if (std::isfinite(as_float) || t.type != "F64") return std::isfinite(as_float);
    double x;
    std::memcpy(&x, static_cast<const std::byte*>(t.view()->data) + 8 * element, 8);
    return std::isfinite(x);
}

verdict check(const model_file& file, const model_tensor& t) {
    verdict v;
    std::uint64_t bad = 0, first_bad = 0;
    if (const auto* m = std::get_if<const nibble::qmatrix*>(&t.data))
        if (const nibble::status s = io::packed::check_scales(**m); !s) v = {"bad", s.message(), {}, {}};
    const nibble::status s = for_each_piece(file, t, [&](std::uint64_t first, const std::vector<float>& values) -> nibble::status {
        for (std::size_t i = 0; i < values.size(); ++i) {
            const float x = values[i];
            if (!is_finite(t, first * t.cols() + i, x)) {
                if (bad++ == 0) first_bad = first * t.cols() + i;
                continue;
            }
            v.smallest = v.smallest ? std::min(*v.smallest, x) : x;
            v.largest = v.largest ? std::max(*v.largest, x) : x;
        }
        return {};
    });
    if (!s) return {s.code() == nibble::errc::unsupported ? "not decoded" : "bad", s.message(), {}, {}};
    if (bad != 0 && v.message.empty())
        v.message = std::to_string(bad) + " of " + std::to_string(t.elements()) + " values are NaN or Inf, the first is element " + std::to_string(first_bad);
    if (bad != 0) v.state = "bad";
    return v;
}

}  // namespace

int main(int argc, char** argv) {
    constexpr const char* usage =
        "usage: validate FILE [--json]\n"
        "Reads every value of a GGUF or safetensors file, a folder of shards or a packed file.\n"
        "  --json  a list of {name, type, shape, state, message, smallest, largest}\n";
    std::string path;
    bool json = false;
    for (int i = 1; i < argc; ++i) {
        const std::string_view argument = argv[i];
        if (argument == "--help") return std::fputs(usage, stdout) < 0 ? 1 : 0;
        if (argument == "--json") json = true;
        else if (path.empty() && !argument.starts_with("-")) path = argument;
        else return std::fputs(usage, stderr), 2;
    }
    if (path.empty()) return std::fputs(usage, stderr), 2;
    const auto file = model_file::open(path);
    if (!file) return complain("validate", file.failure());

    std::size_t name = 6, shape = 5, bad = 0, skipped = 0;
    for (const model_tensor& t : file.value().tensors) {
        name = std::max(name, shown(t.name).size());
        shape = std::max(shape, t.shape_text().size());
    }
    const auto width = [](std::size_t n) { return static_cast<int>(n); };
    if (!json) std::printf("%-*s  %-8s  %-*s  %13s  %13s  state\n", width(name), "tensor", "type", width(shape), "shape", "smallest", "largest");
    auto all = nlohmann::ordered_json::array();
    for (const model_tensor& t : file.value().tensors) {
        const verdict v = t.sized ? check(file.value(), t) : verdict{"not decoded", "the size of this type is not known", {}, {}};
        bad += std::string_view(v.state) == "bad" ? 1u : 0u;
        skipped += std::string_view(v.state) == "not decoded" ? 1u : 0u;
        const auto number = [](std::optional<float> x) {
            char digits[32] = "";
            if (x) std::snprintf(digits, sizeof digits, "%.6g", static_cast<double>(*x));
            return std::string(digits);
        };
        const auto json_number = [](std::optional<float> x) { return x ? nlohmann::ordered_json(*x) : nlohmann::ordered_json(); };
        if (json)
            all.push_back({{"name", t.name}, {"type", t.type}, {"shape", t.shape}, {"state", v.state}, {"message", v.message},
                           {"smallest", json_number(v.smallest)}, {"largest", json_number(v.largest)}});
        else
            std::printf("%-*s  %-8s  %-*s  %13s  %13s  %s%s%s\n", width(name), shown(t.name).c_str(), t.type.c_str(), width(shape), t.shape_text().c_str(),
                        number(v.smallest).c_str(), number(v.largest).c_str(), v.state, v.message.empty() ? "" : ": ", v.message.c_str());
    }
    if (json) std::printf("%s\n", all.dump(2, ' ', false, nlohmann::json::error_handler_t::replace).c_str());
    else std::printf("\n%zu tensors, %zu bad, %zu not decoded\n", file.value().tensors.size(), bad, skipped);
    return bad == 0 ? 0 : 3;
}
