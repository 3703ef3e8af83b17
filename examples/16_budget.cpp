// What fits: a model of 8 billion weights in 24 GB of which 8 are taken; and which format each layer of a real model deserves when
// all of them together may have the bytes of q4_k.
#include <nibble/algorithms/footprint.hpp>
#include <nibble/algorithms/mixed_precision.hpp>
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

int main() {
    using namespace nibble;
    // Llama 3.1 8B: attention, feed-forward, embedding and output, norms.
    const model_shape llama{{{4096, 4096, 64}, {1024, 4096, 64}, {14336, 4096, 64}, {4096, 14336, 32}, {128256, 4096, 2}, {1, 266240, 1, false}}, 32, 8, 128};
    const std::uint64_t budget = budget_bytes(24, 8);
    const cache_shape plain{.tokens = 8192}, two_bits{.tokens = 8192, .format = "int2_min_g32", .residual = 128};
    std::printf("8 billion weights, 16 GB, a cache of %td tokens: GB of codes, scales, cache in fp16, in 2 bits\n", plain.tokens);
    int fit = 0;
    for (const char* name : {"fp16", "int8_per_channel", "int4_g64", "nf4"}) {
        const footprint f = model_footprint(llama, name, plain), g = model_footprint(llama, name, two_bits);
        const double gb = 1e9;
        std::printf("  %-17s %6.2f %6.2f %6.2f %6.2f   total %5.2f: %s\n", name, static_cast<double>(f.codes + f.plain) / gb, static_cast<double>(f.scales) / gb,
                    static_cast<double>(f.cache) / gb, static_cast<double>(g.cache) / gb, static_cast<double>(f.total()) / gb, f.total() <= budget ? "fits" : "does not fit");
        fit += f.total() <= budget ? 1 : 0;
    }

    const auto layer = io::safetensors::open(NIBBLE_EXAMPLE_DATA_DIR "/minilm_layer3.safetensors");
    const auto inputs = io::safetensors::open(NIBBLE_EXAMPLE_DATA_DIR "/minilm_layer3_ffn_down_input.safetensors");
    const std::vector<std::string> names = {"attn_q", "ffn_up", "ffn_down"}, formats = {"q2_k", "q3_k", "q4_k", "iq4_xs", "q5_k", "q6_k"};
    std::vector<layer_choice> layers;
    for (const std::string& name : names) {
        const MatrixXf W = read(layer.value(), name + ".weight");
        const MatrixXf X = read(name == "ffn_down" ? inputs.value() : layer.value(), name + ".calib_input").transpose();
        importance seen(W.cols());
        seen.add(X);
        std::vector<float> squares;
        for (nibble::index k = 0; k < W.cols(); ++k) squares.push_back(static_cast<float>(seen.mean_square(k)));
        layers.push_back(measure_formats(W, squares, formats));
        const double energy = static_cast<double>((W * X).squaredNorm()) / static_cast<double>(X.cols());  // what a layer loses counts against what it says
        for (format_option& o : layers.back().options) o.loss /= energy;
    }
    std::uint64_t bytes = 0;
    double uniform = 0.0;
    for (const layer_choice& l : layers) {
        bytes += l.options[2].bytes;
        uniform += l.options[2].loss;
    }
    const assignment exact = choose_formats(layers, bytes), greedy = choose_formats_greedy(layers, bytes);
    std::printf("a layer of MiniLM in %llu bytes: relative loss of q4_k everywhere %.4f, greedy %.4f, exact %.4f with", static_cast<unsigned long long>(bytes), uniform,
                greedy.loss, exact.loss);
    for (std::size_t i = 0; i < layers.size(); ++i) std::printf(" %s %s", names[i].c_str(), layers[i].options[exact.choice[i]].name.c_str());
    std::printf("\n");
    return fit == 3 && exact.bytes <= bytes && exact.loss <= greedy.loss && exact.loss <= uniform ? 0 : 1;
}
