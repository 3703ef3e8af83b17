// Fuzz target: an importance matrix, of either form. Reading fails with a message and a place in the file, or gives entries
// in the order of their names, whose weights are finite and not negative.
#include <nibble/io/imatrix.hpp>

#include <cmath>
#include <string>

#include "fuzz_target.hpp"

namespace {

[[nodiscard]] std::string judge(std::span<const std::byte> bytes) {
    namespace imatrix = nibble::io::imatrix;
    const auto file = imatrix::read(bytes);
    if (!file) return file.failure().message.empty() || file.failure().offset > bytes.size() ? "a failure without message or place" : "";
    const imatrix::entry* before = nullptr;
    for (const imatrix::entry& e : file.value().entries) {
        if (before != nullptr && !(before->name < e.name)) return "entries are not in the order of their names";
        before = &e;
        if (file.value().find(e.name) != &e) return "an entry that is listed and not found";
        if (e.sums.size() > bytes.size()) return "more sums than bytes";
        const auto all = imatrix::weights(e, static_cast<nibble::index>(e.sums.size()));
        if (!all) continue;
        for (const float w : all.value())
            if (!std::isfinite(w) || w < 0) return "a weight that is not finite or is negative";
    }
    return "";
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) { return run_judge(data, size, judge); }
