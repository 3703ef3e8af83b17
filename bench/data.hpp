// The weights and activations that accuracy is measured on.
//
// A layer is a tensor NAME.weight [out, in] with a tensor NAME.eval_input [tokens, in]; both may lie in different files
// of one data set. A row of eval_input is one token, so the file's memory is a K x M matrix in Eigen's own order.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "types.hpp"

namespace bench {

struct layer {
    std::string name;             ///< "ffn_up"
    row_matrix weights;           ///< N x K
    Eigen::MatrixXf activations;  ///< K x M, one column per token
    Eigen::MatrixXf calibration{};  ///< K x T, of NAME.calib_input; empty where the files have none
};

struct dataset {
    std::string description;         ///< for the header of the report
    std::vector<std::string> files;  ///< where it came from
    std::vector<layer> layers;
    bool synthetic_activations = false;  ///< the file had none: normal random numbers instead

    [[nodiscard]] double weight_count() const;
    [[nodiscard]] Eigen::Index token_count() const;  ///< of the layer with the most
};

/// What the user asked for with --input, --weight and --activations.
struct input_request {
    std::filesystem::path file;
    std::string weight;       ///< empty: every NAME.weight with a NAME.eval_input
    std::string activations;  ///< empty: NAME.eval_input, else synthetic ones
    std::string pattern{};    ///< of the tensors' names, with * and ?; empty: all, or the one of `weight`
};

/// Every layer of the *.safetensors files of a directory. `name` goes into the description.
/// Throws bad_input naming the file, what was expected and what was found.
[[nodiscard]] dataset load_directory(const std::filesystem::path& directory, const std::string& name);

/// Cuts FILE:PATTERN where FILE is not a file by itself.
[[nodiscard]] input_request split_input(const std::string& text);
/// Whether a name matches a pattern: * stands for any characters, ? for one.
[[nodiscard]] bool matches(std::string_view name, std::string_view pattern);

/// Layers of one file of the user's, safetensors or GGUF. Quantized tensors of GGUF are dequantized, and their layers say so.
[[nodiscard]] dataset load_file(const input_request& request);

/// rows x cols independent normal numbers of standard deviation `sigma`; the same for the same seed.
[[nodiscard]] row_matrix normal_matrix(Eigen::Index rows, Eigen::Index cols, float sigma, unsigned seed);

}  // namespace bench
