// Importance of the columns of W: the mean square of each input channel over calibration tokens (llama.cpp's imatrix).
//
//     nibble::importance seen(K);
//     for each batch: seen.add(X);                                       // K x T, a column per token
//     std::vector<float> h = seen.weights();
//     auto Wq = nibble::quantize<nibble::q4_k>(W, {.importance = h});
//
// Why: E |(W - Q) x|^2 is about the sum over k of (w_k - q_k)^2 E[x_k^2], the Hessian's diagonal alone.
#pragma once

#include "../detail/fp_environment.hpp"
#include "tokens.hpp"

namespace nibble::inline NIBBLE_ABI {
namespace detail {

NIBBLE_FP_BEGIN

/// sums[k] += x[t * channels + k]^2. A float's square is exact in double.
NIBBLE_NOINLINE inline void add_squares(const float* x, index tokens, index channels, double* sums) noexcept {
    for (index t = 0; t < tokens; ++t)
        for (index k = 0; k < channels; ++k) {
            const double v = static_cast<double>(x[t * channels + k]);
            sums[k] += v * v;
        }
}
NIBBLE_NOINLINE inline void add_doubles(const double* from, index n, double* to) noexcept {
    for (index i = 0; i < n; ++i) to[i] += from[i];
}
/// The sums times the power of two that puts the largest in [1, 2), and at least 2^-40.
NIBBLE_NOINLINE inline void relative_weights(const double* sums, index n, float* out) noexcept {
    std::uint64_t top = 0;
    for (index i = 0; i < n; ++i) top = (std::max)(top, std::bit_cast<std::uint64_t>(sums[i]));  // not negative: bits are ordered
    const int exponent = static_cast<int>(top >> 52) - 1023;
    // In two steps: 2^-exponent alone may be beyond double. Sums of squares of floats are 0 or at least 2^-298.
    const double half = std::bit_cast<double>(static_cast<std::uint64_t>(1023 - exponent / 2) << 52);
    const double rest = std::bit_cast<double>(static_cast<std::uint64_t>(1023 - (exponent - exponent / 2)) << 52);
    for (index i = 0; i < n; ++i) {
        const double w = top == 0 ? 1.0 : sums[i] * half * rest;
        out[i] = static_cast<float>(w < 0x1p-40 ? 0x1p-40 : w);
    }
}

NIBBLE_FP_END

}  // namespace detail

/// The mean square of each of K channels over the tokens seen. Sums are in double, token by token: they do not depend on
/// how the tokens were split into batches.
class importance {
public:
    /// Throws errc::invalid_argument below 0.
    explicit importance(index channels) : sums_(count_of(channels), 0.0) {}

    /// Adds the tokens of x (K x T, any Eigen expression of float, double, half or bfloat16).
    /// Throws errc::shape_mismatch, or errc::non_finite with the index; nothing is added then.
    template <eigen_expression X>
    void add(const Eigen::DenseBase<X>& x) {
        add(eigen_view<X>(x).get());
    }
    void add(const const_view& x) {
        const detail::fp_environment environment;
        detail::for_token_blocks(x, channels(), "importance", [&](const float* values, index tokens) {
            detail::add_squares(values, tokens, channels(), sums_.data());
        });
        tokens_ += x.cols;
    }
    /// Adds what another one has seen (another thread, another machine).
    void merge(const importance& other) {
        if (other.channels() != channels())
            detail::fail(errc::shape_mismatch, "importance: merging " + std::to_string(other.channels()) + " channels into " +
                                                   std::to_string(channels()));
        const detail::fp_environment environment;
        detail::add_doubles(other.sums_.data(), channels(), sums_.data());
        tokens_ += other.tokens_;
    }

    [[nodiscard]] index channels() const noexcept { return static_cast<index>(sums_.size()); }
    [[nodiscard]] index tokens() const noexcept { return tokens_; }
    /// The mean square of channel k; 0 before the first token. Throws errc::out_of_range.
    [[nodiscard]] double mean_square(index k) const {
        if (k < 0 || k >= channels())
            detail::fail(errc::out_of_range, "importance: channel " + std::to_string(k) + " of " + std::to_string(channels()));
        return tokens_ == 0 ? 0.0 : sums_[static_cast<std::size_t>(k)] / static_cast<double>(tokens_);
    }
    /// For quantize_options::importance, where only ratios matter: the mean squares times the power of two that puts the
    /// largest sum of squares in [1, 2), and at least 2^-40, so that a search never sees a group of nothing but zeros.
    /// Throws errc::invalid_argument before the first token.
    [[nodiscard]] std::vector<float> weights() const {
        if (tokens_ == 0) detail::fail(errc::invalid_argument, "importance: no token was seen by " + std::to_string(channels()) + " channels");
        std::vector<float> out(sums_.size());
        const detail::fp_environment environment;
        detail::relative_weights(sums_.data(), channels(), out.data());
        return out;
    }

private:
    static std::size_t count_of(index channels) {
        if (channels < 0) detail::fail(errc::invalid_argument, "importance: " + std::to_string(channels) + " channels");
        return static_cast<std::size_t>(channels);
    }

    std::vector<double> sums_;
    index tokens_ = 0;
};

}  // namespace nibble
