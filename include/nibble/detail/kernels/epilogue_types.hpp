// What happens to the outputs of a product before they are stored: the kernels' side of activation_function.hpp.
#pragma once

#include <cstddef>
#include <cstdint>

namespace nibble::inline NIBBLE_ABI::detail {

/// The epilogues of one instruction-set level. They work on lines of 16 floats; `in` and `out` may be the same lines.
struct epilogue_table {
    using function = void (*)(const float* in, float* out, std::ptrdiff_t lines) noexcept;
    using narrowing = void (*)(const float* in, std::uint16_t* out, std::ptrdiff_t lines) noexcept;
    function relu, gelu_erf, gelu_tanh, silu;
    narrowing to_bf16, to_fp16;
};

}  // namespace nibble::detail
