// Fuzz target: any bytes as a safetensors file. The reader accepts what the second reader accepts, keeps its promises, and
// what it accepts can be looked at as every type.
#include <nibble/io/safetensors.hpp>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "support/safetensors_promises.hpp"

#include "fuzz_target.hpp"

namespace {

std::string judge(std::span<const std::byte> bytes) {
    namespace st = nibble::io::safetensors;
    const auto file = st::parse(bytes);
    std::string broken;
    if (file) {
        broken = safetensors_promises::broken_promise(file.value(), bytes);
        std::vector<float> floats;
        for (const st::tensor& t : file.value().tensors()) {
            const auto view = t.view();
            if (view && view.value().rows * view.value().cols * nibble::size_of(view.value().type) != static_cast<nibble::index>(t.bytes.size()))
                broken = "a view";
            if (t.to_floats(floats) && floats.size() != t.elements()) broken = "to_floats";
        }
        static_cast<void>(file.value().at("no such name"));
    } else if (file.failure().message.empty() || file.failure().offset > bytes.size()) {
        broken = "a failure without message or place";
    }
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (broken.empty() && static_cast<bool>(file) != safetensors_promises::acceptable(text))
        broken = file ? "accepted, which the second reader does not" : file.failure().message + ", which the second reader accepts";
    return broken;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) { return run_judge(data, size, judge); }
