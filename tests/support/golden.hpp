// Reference data of other libraries: tests/golden/<library>/<name>.safetensors; each folder has a README.md.
//
//   golden::file cases("minifloat/float8_e4m3fn");
//   std::vector<std::uint32_t> inputs = cases.read<std::uint32_t>("encode_input_f32_bits");
//
// A missing file, a missing tensor or another dtype throws: a test never runs on nothing.
#pragma once

#include <nibble/io/safetensors.hpp>

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#ifndef NIBBLE_TEST_DATA_DIR
#error "compile the tests with NIBBLE_TEST_DATA_DIR=\"<source>/tests/golden\""
#endif

namespace golden {

/// One file of reference tensors.
class file {
public:
    /// `name` is relative to tests/golden, without the extension.
    explicit file(const std::string& name)
        : content_(nibble::io::safetensors::open(std::filesystem::path(NIBBLE_TEST_DATA_DIR) / (name + ".safetensors"))
                       .value()) {}

    /// The elements of a tensor, which must have exactly the dtype of T.
    template <class T>
    [[nodiscard]] std::vector<T> read(std::string_view tensor) const {
        std::vector<T> out;
        find(tensor).copy_to(out).or_throw();
        return out;
    }

    /// The elements of an F32, F16 or BF16 tensor as floats.
    [[nodiscard]] std::vector<float> read_floats(std::string_view tensor) const {
        std::vector<float> out;
        find(tensor).to_floats(out).or_throw();
        return out;
    }

    [[nodiscard]] bool contains(std::string_view tensor) const { return content_.find(tensor) != nullptr; }
    [[nodiscard]] std::vector<std::uint64_t> shape(std::string_view tensor) const { return find(tensor).shape; }

private:
    [[nodiscard]] const nibble::io::safetensors::tensor& find(std::string_view tensor) const {
        return *content_.at(tensor).value();
    }

    nibble::io::safetensors::file content_;
};

}  // namespace golden
