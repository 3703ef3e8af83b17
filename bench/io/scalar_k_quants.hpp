// Q4_K and Q6_K as plain loops, one block after the other: what the library's searches are compared with.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bench::io {

inline constexpr std::size_t q4_k_bytes = 144, q6_k_bytes = 210;  // of a block of 256 weights

void quantize_q4_k(const float* x, std::uint8_t* block);
void quantize_q6_k(const float* x, std::uint8_t* block);

}  // namespace bench::io
