// Fuzz target: a checkpoint of one file. The input is the quantization config (JSON), a byte of 0, and a safetensors file.
// Opening and loading fail with a message or give layers of the shape that was listed, which decode and multiply.
#include <nibble/io/checkpoint.hpp>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "fuzz_target.hpp"

namespace {

[[nodiscard]] std::string judge(std::span<const std::byte> bytes, std::string config) {
    namespace io = nibble::io;
    auto file = io::safetensors::parse(bytes);
    if (!file) return "";  // the target safetensors_read looks at those
    io::checkpoint_options options;
    options.config = std::move(config);
    const auto model = io::open_checkpoint(std::move(file).value(), options);
    if (!model) return model.failure().message.empty() || model.failure().offset > bytes.size() ? "a failure to open without message or place" : "";
    const auto& layers = model.value().layers();
    for (std::size_t i = 0; i < layers.size() && i < 64; ++i) {
        if (i > 0 && !(layers[i - 1].name < layers[i].name)) return "layers are not in the order of their names";
        const auto layer = model.value().load(i);
        if (!layer) {
            if (layer.failure().message.find("layer ") != 0 || layer.failure().offset > bytes.size()) return "a failure to load without message or place";
            continue;
        }
        const nibble::qmatrix& w = layer.value().weight;
        if (!io::check_linear(layer.value())) return "a layer that is put together wrong";
        if (w.rows() != layers[i].rows || w.cols() != layers[i].cols) return "a shape other than the one listed";
        if (w.rows() > 4096 || w.cols() > 4096 || w.rows() * w.cols() > 1 << 16) continue;
        const Eigen::MatrixXf decoded = io::dequantize(layer.value());
        if (w.rows() * w.cols() > 1 << 12) continue;
        const Eigen::MatrixXf y = io::multiply(layer.value(), Eigen::MatrixXf(Eigen::MatrixXf::Ones(w.cols(), 1)));
        if (y.rows() != decoded.rows()) return "a product of another shape";
    }
    return "";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    const std::uint8_t* const end = std::find(data, data + size, std::uint8_t{0});
    const auto config = static_cast<std::size_t>(end - data);
    const std::size_t rest = size - config - (config < size ? 1 : 0);
    return run_judge(end + (config < size ? 1 : 0), rest, [&](std::span<const std::byte> bytes) { return judge(bytes, std::string(data, end)); });
}
