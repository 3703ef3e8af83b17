// A layer of a real model, calibrated, quantized by AWQ and by GPTQ, saved as checkpoints of those formats, read back by the
// checkpoint reader, and multiplied with tokens that the calibration has not seen.
#include <nibble/algorithms/quantize_layer.hpp>
#include <nibble/io/checkpoint.hpp>
#include <nibble/io/safetensors_writer.hpp>
#include <nibble/nibble.hpp>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>

using Eigen::MatrixXf;
using Eigen::VectorXf;
namespace io = nibble::io;

namespace {

MatrixXf read(const io::safetensors::file& file, const std::string& name) {
    const io::safetensors::tensor& t = *file.at(name).value();
    std::vector<float> values;
    t.to_floats(values).or_throw();
    using rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const auto cols = static_cast<nibble::index>(t.shape.size() > 1 ? t.shape[1] : 1);
    return Eigen::Map<const rows>(values.data(), static_cast<nibble::index>(t.shape[0]), cols);
}

/// Writes a checkpoint of one layer and loads the layer from it.
io::linear through_file(const std::string& name, const std::vector<io::safetensors::tensor_data>& tensors, const std::string& config) {
    const auto folder = std::filesystem::temp_directory_path() / ("nibble_example_" + name);
    std::filesystem::create_directories(folder);
    io::safetensors::write(folder / "model.safetensors", tensors).or_throw();
    std::ofstream(folder / "config.json") << "{\"quantization_config\": " << config << "}";
    const auto model = io::open_checkpoint(folder).value();
    std::printf("%s: %s, %td x %td\n", name.c_str(), model.layers()[0].layout, model.layers()[0].rows, model.layers()[0].cols);
    io::linear layer = model.load("attn_q").value();
    std::filesystem::remove_all(folder);
    return layer;
}

}  // namespace

int main() {
    using namespace nibble;
    const auto file = io::safetensors::open(NIBBLE_EXAMPLE_DATA_DIR "/minilm_layer3.safetensors").value();
    const MatrixXf W = read(file, "attn_q.weight");
    const MatrixXf calibration = read(file, "attn_q.calib_input").transpose();  // a column per token
    const MatrixXf X = read(file, "attn_q.eval_input").transpose();
    const VectorXf bias = read(file, "attn_q.bias");
    const std::vector<float> b(bias.data(), bias.data() + bias.size());
    const recipe& format = int4_zero_g128::get();

    layer_calibration seen(W.cols());
    for (nibble::index t = 0; t < calibration.cols(); t += 64) seen.add(calibration.middleCols(t, 64));  // batches, as they come
    const quantized_layer awq = quantize_layer(W, seen, format, {.scaling = layer_scaling::awq, .rounding = layer_rounding::nearest});
    const quantized_layer gptq = quantize_layer(W, seen, format, {.gptq = {.static_groups = false}});  // columns by activation
    for (const quantized_layer* q : {&awq, &gptq})
        for (const layer_loss& l : q->report.losses) std::printf("  %-8s loss %.4g\n", l.step, l.loss);

    const io::linear from_awq = through_file("awq", io::layouts::awq::pack("attn_q", awq.weights).value(), io::layouts::awq::config_of(awq.weights));
    const io::linear layer{gptq.weights, gptq.order, b};
    const io::linear from_gptq = through_file("gptq", io::layouts::gptq::pack("attn_q", layer).value(), io::layouts::gptq::config_of(layer));

    // In this model a residual reads the same activations, so AWQ's scales are not folded into the norm but divided by here.
    MatrixXf scaled = X;
    divide_rows(scaled, awq.scales);
    const MatrixXf Y = W * X;
    const MatrixXf Y_awq = io::multiply(from_awq, scaled);
    const MatrixXf Y_gptq = io::multiply(from_gptq, X).colwise() - bias;
    const double nearest = sqnr_db(Y, quantize(W, format.name) * X);
    std::printf("SQNR of outputs in dB: nearest %.2f, AWQ %.2f, GPTQ %.2f\n", nearest, sqnr_db(Y, Y_awq), sqnr_db(Y, Y_gptq));
    const bool same = (Y_awq - awq * X).norm() < 1e-4f * Y.norm() && (Y_gptq - gptq * X).norm() < 1e-4f * Y.norm();
    return same && sqnr_db(Y, Y_awq) > nearest && sqnr_db(Y, Y_gptq) > nearest ? 0 : 1;
}
