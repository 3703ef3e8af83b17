// The functions that follow a product in a network: relu, gelu in its two forms, silu.
//
//     nibble::apply(nibble::activation::silu, y, y, n);
//
// Every level and compiler gives the same bits. Each result is within 0.503 units in the last place of the exact function
// of the exact x, also where it is subnormal (docs/numerics.md, section 7).
#pragma once

#include <cstring>

#include "detail/dispatch.hpp"
#include "detail/fp_environment.hpp"
#include "view.hpp"

namespace nibble::inline NIBBLE_ABI {

/// A function of one number.
enum class activation : std::uint8_t {
    none,       ///< x itself
    relu,       ///< x > 0 ? x : +0
    gelu_erf,   ///< x Phi(x) = x / 2 (1 + erf(x / sqrt 2)): PyTorch's default
    gelu_tanh,  ///< x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))): PyTorch's approximate="tanh", ggml's gelu
    silu,       ///< x / (1 + exp(-x)), also called swish
};

[[nodiscard]] constexpr const char* name_of(activation f) noexcept {
    switch (f) {
        case activation::none: return "none";
        case activation::relu: return "relu";
        case activation::gelu_erf: return "gelu_erf";
        case activation::gelu_tanh: return "gelu_tanh";
        case activation::silu: return "silu";
    }
    return "?";
}

/// out[i] = f(in[i]) for n numbers; out may be in. NaN gives the NaN 7fc00000 (none: itself), +Inf gives +Inf; -Inf and
/// -0 give -0, but +0 with relu. Throws errc::invalid_argument for a negative n, a null pointer or a value that is no
/// activation, errc::overlap when the arrays overlap without being the same.
NIBBLE_API void apply(activation f, const float* in, float* out, index n);

namespace detail {

/// The kernel of f; null for none.
[[nodiscard]] inline epilogue_table::function kernel_of(const epilogue_table& t, activation f) noexcept {
    switch (f) {
        case activation::relu: return t.relu;
        case activation::gelu_erf: return t.gelu_erf;
        case activation::gelu_tanh: return t.gelu_tanh;
        case activation::silu: return t.silu;
        default: return nullptr;
    }
}

}  // namespace detail

#if NIBBLE_DEFINE_API
NIBBLE_API void apply(activation f, const float* in, float* out, index n) {
    if (n < 0) detail::fail(errc::invalid_argument, "apply: " + std::to_string(n) + " numbers");
    if (f > activation::silu)
        detail::fail(errc::invalid_argument, "apply: there is no activation " + std::to_string(static_cast<int>(f)));
    if (n == 0) return;
    if (in == nullptr || out == nullptr)
        detail::fail(errc::invalid_argument, std::string("apply: ") + name_of(f) + " of " + std::to_string(n) + " numbers at a null pointer");
    const auto bytes = static_cast<std::size_t>(n) * sizeof(float);
    if (in != out && detail::overlaps(detail::bytes_of(row_major(in, 1, n)), detail::bytes_of(row_major(static_cast<const float*>(out), 1, n))))
        detail::fail(errc::overlap, std::string("apply: input and output of ") + name_of(f) + " overlap and are not the same");
    const detail::epilogue_table::function kernel = detail::kernel_of(detail::active_epilogues(), f);
    if (kernel == nullptr) {
        if (in != out) std::memcpy(out, in, bytes);
        return;
    }
    const detail::fp_environment environment;
    kernel(in, out, n / 16);
    if (n % 16 == 0) return;
    float line[16] = {};
    const auto rest = static_cast<std::size_t>(n % 16) * sizeof(float);
    std::memcpy(line, in + n / 16 * 16, rest);
    kernel(line, line, 1);
    std::memcpy(out + n / 16 * 16, line, rest);
}
#endif

}  // namespace nibble
