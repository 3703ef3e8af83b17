#include "data.hpp"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <random>
#include <utility>

#include <nibble/io/gguf.hpp>
#include <nibble/io/safetensors.hpp>

namespace bench {
namespace {

namespace fs = std::filesystem;
namespace safetensors = nibble::io::safetensors;

constexpr Eigen::Index synthetic_tokens = 128;
constexpr std::string_view weight_suffix = ".weight";
constexpr std::string_view input_suffix = ".eval_input";
constexpr std::string_view calibration_suffix = ".calib_input";

bool ends_with(const std::string& text, std::string_view suffix) { return std::string_view(text).ends_with(suffix); }

std::string without_suffix(const std::string& text, std::string_view suffix) {
    return ends_with(text, suffix) ? text.substr(0, text.size() - suffix.size()) : text;
}

[[noreturn]] void refuse(const fs::path& file, const std::string& why) { throw bad_input(file.string() + ": " + why); }

safetensors::file open_file(const fs::path& path) {
    auto file = safetensors::open(path);
    if (!file) {
        const nibble::failure& why = file.failure();  // names the file
        const bool damaged = why.code == nibble::errc::malformed;
        throw bad_input("expected a safetensors file: " + why.message +
                        (damaged ? " (at byte " + std::to_string(why.offset) + ")" : ""));
    }
    return std::move(file).value();
}

// A [rows, cols] tensor of floats, copied. `meaning` says what the two dimensions are.
row_matrix read_matrix(const fs::path& file, const safetensors::tensor& t, const std::string& meaning) {
    if (t.shape.size() != 2)
        refuse(file, "tensor \"" + t.name + "\" must have two dimensions " + meaning + ", found " + t.describe());
    std::vector<float> values;
    if (const nibble::status read = t.to_floats(values); !read) refuse(file, read.message());
    if (values.empty()) refuse(file, "tensor \"" + t.name + "\" is empty: " + t.describe());
    const auto bad = std::find_if_not(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
    if (bad != values.end())
        refuse(file, "tensor \"" + t.name + "\" must be finite, element " + std::to_string(bad - values.begin()) +
                         " is " + std::to_string(*bad));
    return Eigen::Map<const row_matrix>(values.data(), static_cast<Eigen::Index>(t.shape[0]),
                                        static_cast<Eigen::Index>(t.shape[1]));
}

struct located {
    const safetensors::tensor* tensor = nullptr;
    const fs::path* file = nullptr;
};

// K x tokens, to go with the weights.
Eigen::MatrixXf read_input(const located& weight, const located& input, Eigen::Index channels) {
    const row_matrix tokens = read_matrix(*input.file, *input.tensor, "[tokens, in]");
    if (tokens.cols() != channels)
        refuse(*input.file, "activations \"" + input.tensor->name + "\" must be [tokens, " + std::to_string(channels) + "] to go with \"" +
                                weight.tensor->name + "\" " + weight.tensor->describe() + ", found " + input.tensor->describe());
    return tokens.transpose();
}

layer read_layer(const std::string& name, const located& weight, const located& input) {
    layer l;
    l.name = name;
    l.weights = read_matrix(*weight.file, *weight.tensor, "[out, in]");
    l.activations = read_input(weight, input, l.weights.cols());
    return l;
}

using located_tensors = std::map<std::string, located>;

// Tensors NAME + suffix, by NAME.
located_tensors tensors_with(std::string_view suffix, const std::vector<fs::path>& paths, const std::vector<safetensors::file>& files) {
    located_tensors found;
    for (std::size_t i = 0; i < files.size(); ++i)
        for (const safetensors::tensor& t : files[i].tensors())
            if (ends_with(t.name, suffix)) found[without_suffix(t.name, suffix)] = {&t, &paths[i]};
    return found;
}

// Layers in the order of their weights in the files, which are sorted by name.
std::vector<layer> paired_layers(const std::vector<fs::path>& paths, const std::vector<safetensors::file>& files) {
    const located_tensors inputs = tensors_with(input_suffix, paths, files);
    const located_tensors calibrations = tensors_with(calibration_suffix, paths, files);
    std::vector<layer> layers;
    for (std::size_t i = 0; i < files.size(); ++i) {
        for (const safetensors::tensor& t : files[i].tensors()) {
            const std::string name = without_suffix(t.name, weight_suffix);
            const auto input = inputs.find(name);
            if (!ends_with(t.name, weight_suffix) || input == inputs.end()) continue;
            const located weight{&t, &paths[i]};
            layer l = read_layer(name, weight, input->second);
            if (const auto calibration = calibrations.find(name); calibration != calibrations.end())
                l.calibration = read_input(weight, calibration->second, l.weights.cols());
            layers.push_back(std::move(l));
        }
    }
    return layers;
}

// A layer without activations in the file.
layer synthetic_layer(std::string name, row_matrix weights) {
    layer l;
    l.name = std::move(name);
    l.weights = std::move(weights);
    l.activations = normal_matrix(synthetic_tokens, l.weights.cols(), 1.0f, 7).transpose();
    return l;
}

bool is_gguf(const fs::path& path) {
    char magic[4] = {};
    std::ifstream(path, std::ios::binary).read(magic, sizeof magic);
    return std::string_view(magic, sizeof magic) == "GGUF";
}

dataset load_gguf(const input_request& request) {
    namespace gguf = nibble::io::gguf;
    namespace ggml = nibble::io::ggml;
    const auto file = gguf::open(request.file);
    if (!file) throw bad_input("expected a GGUF file: " + file.failure().message + " (at byte " + std::to_string(file.failure().offset) + ")");
    if (!request.activations.empty()) refuse(request.file, "--activations needs a safetensors file");
    dataset data;
    data.description = request.file.string();
    data.files = {request.file.string()};
    data.synthetic_activations = true;
    if (!request.weight.empty())
        if (const auto found = file.value().at(request.weight); !found) refuse(request.file, found.failure().message);
    bool decoded = false;
    for (const gguf::tensor& t : file.value().tensors()) {
        if (!request.weight.empty() ? t.name != request.weight : !matches(t.name, request.pattern.empty() ? "*.weight" : request.pattern)) continue;
        const bool whole = t.type == ggml::type::f32 || t.type == ggml::type::f16 || t.type == ggml::type::bf16;
        const bool usable = (whole || ggml::is_supported(t.type)) && t.dimensions == 2 && t.elements() != 0;
        if (!usable && request.weight.empty()) continue;
        if (!usable) refuse(request.file, "tensor \"" + request.weight + "\" must be a matrix of a type that is decoded, found " + t.describe());
        const auto values = t.values();
        if (!values) refuse(request.file, values.failure().message);
        if (!std::all_of(values.value().begin(), values.value().end(), [](float x) { return std::isfinite(x); }))
            refuse(request.file, "tensor \"" + std::string(t.name) + "\" must be finite");
        const std::string name = without_suffix(std::string(t.name), weight_suffix);
        data.layers.push_back(synthetic_layer(whole ? name : name + " (dequantized from " + t.type_name() + ")",
                                              Eigen::Map<const row_matrix>(values.value().data(), static_cast<Eigen::Index>(t.rows()), static_cast<Eigen::Index>(t.cols()))));
        decoded = decoded || !whole;
    }
    if (data.layers.empty())
        refuse(request.file, "no tensor of two dimensions matches \"" + (request.pattern.empty() ? "*.weight" : request.pattern) + "\" among " +
                                 std::to_string(file.value().tensors().size()));
    if (decoded) data.description += " (quantized tensors, dequantized)";
    return data;
}

const safetensors::tensor& find_tensor(const fs::path& path, const safetensors::file& file, const std::string& name) {
    auto found = file.at(name);
    if (!found) refuse(path, found.failure().message);
    return *found.value();
}

}  // namespace

double dataset::weight_count() const {
    double count = 0.0;
    for (const layer& l : layers) count += static_cast<double>(l.weights.size());
    return count;
}

Eigen::Index dataset::token_count() const {
    Eigen::Index most = 0;
    for (const layer& l : layers) most = (std::max)(most, l.activations.cols());
    return most;
}

dataset load_directory(const fs::path& directory, const std::string& name) {
    std::error_code why;
    std::vector<fs::path> paths;
    for (fs::directory_iterator at(directory, why), end; !why && at != end; at.increment(why))
        if (at->path().extension() == ".safetensors") paths.push_back(at->path());
    if (why) throw bad_input(directory.string() + ": expected a directory with *.safetensors files: " + why.message());
    if (paths.empty()) throw bad_input(directory.string() + ": expected *.safetensors files, found none");
    std::sort(paths.begin(), paths.end());

    std::vector<safetensors::file> files;
    dataset data;
    for (const fs::path& path : paths) {
        files.push_back(open_file(path));
        data.files.push_back(path.string());
    }
    data.layers = paired_layers(paths, files);
    if (data.layers.empty())
        throw bad_input(
            directory.string() +
            ": expected tensors NAME.weight [out, in] with NAME.eval_input [tokens, in], found no such pair");
    data.description = name;
    return data;
}

input_request split_input(const std::string& text) {
    const std::size_t colon = text.rfind(':');
    std::error_code ignored;
    if (colon == std::string::npos || fs::exists(text, ignored)) return {text, {}, {}};
    input_request cut{text.substr(0, colon), {}, {}};
    cut.pattern = text.substr(colon + 1);
    return cut;
}

bool matches(std::string_view name, std::string_view pattern) {
    std::size_t n = 0, p = 0, star = std::string_view::npos, kept = 0;
    while (n < name.size()) {
        if (p < pattern.size() && pattern[p] == '*') {
            star = p++;
            kept = n;
        } else if (p < pattern.size() && (pattern[p] == '?' || pattern[p] == name[n])) {
            ++n;
            ++p;
        } else if (star != std::string_view::npos) {  // the last star takes one more
            p = star + 1;
            n = ++kept;
        } else {
            return false;
        }
    }
    return pattern.find_first_not_of('*', p) == std::string_view::npos;
}

dataset load_file(const input_request& request) {
    if (is_gguf(request.file)) return load_gguf(request);
    std::vector<safetensors::file> files;
    files.push_back(open_file(request.file));
    const safetensors::file& file = files.front();
    dataset data;
    data.description = request.file.string();
    data.files = {request.file.string()};
    if (!request.pattern.empty()) {
        for (const safetensors::tensor& t : file.tensors()) {
            if (!matches(t.name, request.pattern) || ends_with(t.name, input_suffix) || t.shape.size() != 2) continue;
            const std::string name = without_suffix(t.name, weight_suffix);
            const safetensors::tensor* input = file.find(name + std::string(input_suffix));
            data.synthetic_activations = data.synthetic_activations || input == nullptr;
            data.layers.push_back(input != nullptr ? read_layer(name, {&t, &request.file}, {input, &request.file})
                                                   : synthetic_layer(name, read_matrix(request.file, t, "[out, in]")));
        }
        if (data.layers.empty())
            refuse(request.file, "no tensor of two dimensions matches \"" + request.pattern + "\" among " + std::to_string(file.tensors().size()));
        return data;
    }
    if (request.weight.empty()) {
        data.layers = paired_layers({request.file}, files);
        if (data.layers.empty())
            refuse(request.file,
                   "expected tensors NAME.weight [out, in] with NAME.eval_input [tokens, in], found no such pair in " +
                       std::to_string(file.tensors().size()) +
                       " tensors; name your own with --weight and --activations");
        return data;
    }

    const safetensors::tensor& weight = find_tensor(request.file, file, request.weight);
    const std::string name = without_suffix(request.weight, weight_suffix);
    const safetensors::tensor* input = request.activations.empty()
                                           ? file.find(name + std::string(input_suffix))
                                           : &find_tensor(request.file, file, request.activations);
    if (input != nullptr) {
        data.layers.push_back(read_layer(name, {&weight, &request.file}, {input, &request.file}));
    } else {
        data.layers.push_back(synthetic_layer(name, read_matrix(request.file, weight, "[out, in]")));
        data.synthetic_activations = true;
    }
    return data;
}

row_matrix normal_matrix(Eigen::Index rows, Eigen::Index cols, float sigma, unsigned seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(0.0f, sigma);
    row_matrix m(rows, cols);
    for (Eigen::Index i = 0; i < m.size(); ++i) m.data()[i] = normal(generator);
    return m;
}

}  // namespace bench
