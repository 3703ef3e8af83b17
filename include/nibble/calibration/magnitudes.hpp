// Magnitudes of the channels of activations: their mean is what AWQ scales by, their largest what SmoothQuant does.
//
//     nibble::channel_magnitudes seen(K);
//     for each batch: seen.add(X);                 // K x T, a column per token
#pragma once

#include "../detail/fp_environment.hpp"
#include "importance.hpp"

namespace nibble::inline NIBBLE_ABI {
namespace detail {

NIBBLE_FP_BEGIN

NIBBLE_NOINLINE inline void add_magnitudes(const float* x, index tokens, index channels, double* sums, float* largest) noexcept {
    for (index t = 0; t < tokens; ++t)
        for (index k = 0; k < channels; ++k) {
            const float v = magnitude(x[t * channels + k]);
            sums[k] += static_cast<double>(v);
            largest[k] = v > largest[k] ? v : largest[k];
        }
}
NIBBLE_NOINLINE inline void mean_magnitudes(const double* sums, index channels, index tokens, float* out) noexcept {
    for (index k = 0; k < channels; ++k) out[k] = static_cast<float>(sums[k] / static_cast<double>(tokens));
}

NIBBLE_FP_END

}  // namespace detail

/// Mean and largest |x| of each of K channels over the tokens seen. Sums are in double, token by token: they do not depend
/// on how the tokens were split into batches.
class channel_magnitudes {
public:
    /// Throws errc::invalid_argument below 0.
    explicit channel_magnitudes(index channels) {
        if (channels < 0) detail::fail(errc::invalid_argument, "channel_magnitudes: " + std::to_string(channels) + " channels");
        sums_.resize(static_cast<std::size_t>(channels));
        largest_.resize(sums_.size());
    }

    /// Adds the tokens of x (K x T, any Eigen expression of float, double, half or bfloat16).
    /// Throws errc::shape_mismatch, or errc::non_finite with the index; nothing is added then.
    template <eigen_expression X>
    void add(const Eigen::DenseBase<X>& x) {
        add(eigen_view<X>(x).get());
    }
    void add(const const_view& x) {
        const detail::fp_environment environment;
        detail::for_token_blocks(x, channels(), "channel_magnitudes", [&](const float* values, index tokens) {
            detail::add_magnitudes(values, tokens, channels(), sums_.data(), largest_.data());
        });
        tokens_ += x.cols;
    }
    /// Adds what another one has seen.
    void merge(const channel_magnitudes& other) {
        if (other.channels() != channels())
            detail::fail(errc::shape_mismatch, "channel_magnitudes: merging " + std::to_string(other.channels()) + " channels into " +
                                                   std::to_string(channels()));
        const detail::fp_environment environment;
        detail::add_doubles(other.sums_.data(), channels(), sums_.data());
        for (std::size_t k = 0; k < largest_.size(); ++k) largest_[k] = (std::max)(largest_[k], other.largest_[k]);
        tokens_ += other.tokens_;
    }

    [[nodiscard]] index channels() const noexcept { return static_cast<index>(sums_.size()); }
    [[nodiscard]] index tokens() const noexcept { return tokens_; }
    /// The largest |x| of each channel; 0 before the first token.
    [[nodiscard]] std::span<const float> largest() const noexcept { return largest_; }
    /// The mean |x| of each channel. Throws errc::invalid_argument before the first token.
    [[nodiscard]] std::vector<float> mean() const {
        if (tokens_ == 0)
            detail::fail(errc::invalid_argument, "channel_magnitudes: no token was seen by " + std::to_string(channels()) + " channels");
        std::vector<float> out(sums_.size());
        const detail::fp_environment environment;
        detail::mean_magnitudes(sums_.data(), channels(), tokens_, out.data());
        return out;
    }

private:
    std::vector<double> sums_;
    std::vector<float> largest_;
    index tokens_ = 0;
};

}  // namespace nibble
