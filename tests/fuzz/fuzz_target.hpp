// What every fuzz target does with its input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string>

/// Runs judge(bytes), which says what promise was broken, "" for none, on a copy in memory of exactly `size` bytes, so that
/// AddressSanitizer sees the first one read beyond. A broken promise ends the program. Returns 0, as libFuzzer wants it.
template <class Judge>
int run_judge(const std::uint8_t* data, std::size_t size, const Judge& judge) {
    const std::unique_ptr<std::byte[]> memory(new std::byte[size]);
    if (size != 0) std::memcpy(memory.get(), data, size);
    const std::string broken = judge(std::span<const std::byte>(memory.get(), size));
    if (!broken.empty()) {
        std::fprintf(stderr, "broken promise: %s\n", broken.c_str());
        std::abort();
    }
    return 0;
}
