// One factor for each input channel of a layer, taken from the activations and given to the weights:
//
//     W X = (W diag(s)) (diag(1 / s) X)
//
// AWQ and SmoothQuant choose such factors. To fold them, multiply the columns of every layer that reads X, and divide the
// rows of what makes X: the weights and the bias of a linear layer, or the gain and the bias of a norm.
//
//     nibble::multiply_columns(W, s);
//     nibble::divide_rows(gain, s);  nibble::divide_rows(bias, s);     // vectors
//     nibble::divide_rows(V, s);                                       // or the linear layer before
//
// What stands between may only be what commutes with positive factors by channel: nothing, relu, a product with another
// branch that is not scaled (up in a gated MLP). A residual that reads the same X must not be there.
#pragma once

#include "../detail/fp_environment.hpp"
#include "../detail/load.hpp"
#include "../eigen.hpp"

namespace nibble::inline NIBBLE_ABI {
namespace detail {

/// Throws unless there is a positive, finite factor for each channel.
inline void check_factors(const char* who, std::span<const float> s, index channels) {
    if (static_cast<index>(s.size()) != channels)
        fail(errc::shape_mismatch, std::string(who) + ": " + std::to_string(s.size()) + " factors for " + std::to_string(channels) + " channels");
    for (std::size_t k = 0; k < s.size(); ++k)
        if (!finite_in_memory(&s[k]) || bits_of(s[k]) == 0 || bits_of(s[k]) >= 0x80000000u)
            fail(errc::invalid_argument, std::string(who) + ": factor " + std::to_string(k) + " is " + std::to_string(s[k]) + "; it must be finite and positive");
}

NIBBLE_FP_BEGIN

NIBBLE_NOINLINE inline void multiply_columns_of(const float_view& m, const float* s) noexcept {
    for (index c = 0; c < m.cols; ++c)
        for (index r = 0; r < m.rows; ++r) m.at(r, c) *= s[c];
}
NIBBLE_NOINLINE inline void divide_rows_of(const float_view& m, const float* s) noexcept {
    for (index c = 0; c < m.cols; ++c)
        for (index r = 0; r < m.rows; ++r) m.at(r, c) /= s[r];
}

NIBBLE_FP_END

}  // namespace detail

/// m(n, k) *= s[k], rounded once. Throws errc::shape_mismatch, errc::invalid_argument for a factor that is not positive and finite.
template <class M>
    requires eigen_expression<std::remove_cvref_t<M>>
void multiply_columns(M&& m, std::span<const float> s) {
    detail::check_factors("multiply_columns", s, m.cols());
    const detail::fp_environment environment;
    detail::multiply_columns_of(writable_view(m), s.data());
}

/// m(k, j) /= s[k], rounded once; of activations, the weights of the layer before, or a vector of biases or gains. Throws likewise.
template <class M>
    requires eigen_expression<std::remove_cvref_t<M>>
void divide_rows(M&& m, std::span<const float> s) {
    detail::check_factors("divide_rows", s, m.rows());
    const detail::fp_environment environment;
    detail::divide_rows_of(writable_view(m), s.data());
}

}  // namespace nibble
