// Fuzz target: a packed file. Opening fails with a message and a place in the file, or gives matrices that decode and
// multiply, whatever their bytes are.
#include <nibble/io/packed.hpp>

#include <memory>
#include <string>

#include <nibble/dequantize.hpp>
#include <nibble/gemm.hpp>

#include "fuzz_target.hpp"

namespace {

[[nodiscard]] std::string judge(std::span<const std::byte> bytes) {
    namespace io = nibble::io;
    auto parsed = io::safetensors::parse(bytes);
    if (!parsed) return "";  // the target safetensors_read looks at those
    const auto file = io::packed::read(std::make_shared<const io::safetensors::file>(std::move(parsed).value()));
    if (!file) return file.failure().message.empty() || file.failure().offset > bytes.size() ? "a failure without message or place" : "";
    for (const io::packed::named_matrix& m : file.value().matrices()) {
        const nibble::qmatrix& w = m.matrix;
        if (!file.value().matrix(m.name)) return "a matrix that is listed and not found";
        if (w.memory_bytes() > bytes.size()) return "a matrix larger than its file";
        static_cast<void>(io::packed::check_scales(w));
        if (w.rows() > 4096 || w.cols() > 4096 || w.rows() * w.cols() > 1 << 14) continue;
        const Eigen::MatrixXf decoded = nibble::dequantize(w);
        const Eigen::MatrixXf y = w * Eigen::MatrixXf(Eigen::MatrixXf::Ones(w.cols(), 1));
        if (y.rows() != decoded.rows()) return "a product of another shape";
    }
    return "";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) { return run_judge(data, size, judge); }
