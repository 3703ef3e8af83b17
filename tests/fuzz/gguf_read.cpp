// Fuzz target: any bytes as a GGUF file. The reader accepts what the second reader accepts, keeps its promises, and decodes
// or refuses every tensor.
#include <nibble/io/gguf.hpp>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "support/gguf_promises.hpp"

#include "fuzz_target.hpp"

namespace {

std::string judge(std::span<const std::byte> bytes) {
    const auto file = nibble::io::gguf::read(bytes);
    std::string broken;
    if (file) {
        broken = gguf_promises::broken(file.value(), bytes);
        for (const auto& t : file.value().tensors())
            if (broken.empty()) broken = gguf_promises::decode(t);
    } else if (file.failure().message.empty() || file.failure().offset > bytes.size()) {
        broken = "a failure without message or place";
    }
    const std::string_view text(reinterpret_cast<const char*>(bytes.data()), bytes.size());
    if (broken.empty() && static_cast<bool>(file) != gguf_promises::second_reader(text).accepts())
        broken = file ? "accepted, which the second reader does not" : file.failure().message + ", which the second reader accepts";
    return broken;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) { return run_judge(data, size, judge); }
