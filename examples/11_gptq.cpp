// 3 bits for layers of a real model, with and without the activations that they will meet: rounding to nearest, importance
// weights, GPTQ. Measured on tokens that the calibration has not seen.
#include <nibble/algorithms/gptq.hpp>
#include <nibble/calibration/importance.hpp>
#include <nibble/io/safetensors.hpp>
#include <nibble/nibble.hpp>

#include <cstdio>
#include <string>

using Eigen::MatrixXf;

namespace {

MatrixXf read(const nibble::io::safetensors::file& file, const std::string& name) {
    const nibble::io::safetensors::tensor& t = *file.at(name).value();
    std::vector<float> values;
    t.to_floats(values).or_throw();
    using rows = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    return Eigen::Map<const rows>(values.data(), static_cast<nibble::index>(t.shape[0]), static_cast<nibble::index>(t.shape[1]));
}

}  // namespace

int main(int argc, char** argv) {
    using namespace nibble;
    const recipe* format = find_recipe(argc > 1 ? argv[1] : "int3_zero_g64");
    if (format == nullptr) return std::fprintf(stderr, "%s is not a recipe\n", argv[1]), 2;
    const auto layer = io::safetensors::open(NIBBLE_EXAMPLE_DATA_DIR "/minilm_layer3.safetensors");
    const auto inputs = io::safetensors::open(NIBBLE_EXAMPLE_DATA_DIR "/minilm_layer3_ffn_down_input.safetensors");
    std::printf("SQNR of outputs in dB, %s\n%-10s %8s %10s %8s %11s\n", format->name, "", "nearest", "importance", "GPTQ", "not static");

    bool better = true;
    for (const std::string name : {"attn_q", "ffn_up", "ffn_down"}) {
        const auto& from = name == "ffn_down" ? inputs.value() : layer.value();
        const MatrixXf W = read(layer.value(), name + ".weight");
        const MatrixXf calibration = read(from, name + ".calib_input").transpose();  // a column per token
        const MatrixXf unseen = read(from, name + ".eval_input").transpose();

        importance squares(W.cols());
        hessian h(W.cols());
        for (nibble::index t = 0; t < calibration.cols(); t += 64) {  // batches, as they come
            squares.add(calibration.middleCols(t, 64));
            h.add(calibration.middleCols(t, 64));
        }
        const std::vector<float> weights = squares.weights();
        const mse grid{.offset = format->offset()};
        quantize_plan search = make_plan(*format);
        if (!search.rule.searches) search.rule = erase(grid);

        const MatrixXf Y = W * unseen;
        const double nearest = sqnr_db(Y, quantize(W, format->name) * unseen);
        const double weighted = sqnr_db(Y, quantize(W, search, {.importance = weights}) * unseen);
        const gptq_result r = gptq(W, h, *format);
        const double compensated = sqnr_db(Y, r.weights * unseen);
        std::printf("%-10s %8.2f %10.2f %8.2f", name.c_str(), nearest, weighted, compensated);
        if (format->scale.storage == scale_storage::f16 || format->scale.storage == scale_storage::f32) {  // scales one by one
            const gptq_result late = gptq(W, h, *format, {.static_groups = false});
            const MatrixXf moved = unseen(late.order, Eigen::all);
            std::printf(" %11.2f", sqnr_db(Y, late.weights * moved));
        }
        std::printf("   %s%td tokens, damping %.2f, calibration loss %.3g -> %.3g\n", r.report.few_tokens ? "only " : "", r.report.tokens,
                    r.report.damping, r.report.loss_before, r.report.loss_after);
        better = better && nearest < compensated && weighted < compensated;
    }
    return better ? 0 : 1;
}
