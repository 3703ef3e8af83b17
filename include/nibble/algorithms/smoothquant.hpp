// SmoothQuant (Xiao et al. 2022, arXiv:2211.10438): outliers of activations are handed to the weights, so that both fit 8 bits.
//
//     nibble::channel_magnitudes seen(K);
//     for each batch: seen.add(X);
//     std::vector<float> s = nibble::smoothing_factors(seen, 0.5, Wq, Wk, Wv);          // all layers that read X
//     nibble::multiply_columns(Wq, s);  ...  nibble::divide_rows(norm_gain, s);         // fold: channel_scales.hpp
//
// alpha = 1/2 makes max|x_k| and max|w_k| equal, at the geometric mean of what they were. The authors take 0.5 for OPT and
// BLOOM, 0.75 for GLM-130B, 0.8 to 0.9 for Llama 2 and Mistral.
#pragma once

#include <cmath>

#include "../calibration/magnitudes.hpp"
#include "channel_scales.hpp"

namespace nibble::inline NIBBLE_ABI {
namespace detail {

/// largest[k] = max(largest[k], max|w(:, k)|). Throws errc::shape_mismatch, errc::non_finite.
inline void add_column_magnitudes(const const_view& w, std::span<float> largest, const char* who) {
    const auto channels = static_cast<index>(largest.size());
    if (w.cols != channels)
        fail(errc::shape_mismatch, std::string(who) + ": W is " + shape_text(w.rows, w.cols) + ", the calibration has " + std::to_string(channels) + " channels");
    std::vector<float> row(largest.size());
    std::vector<double> sums(largest.size());
    for (index n = 0; n < w.rows; ++n) {
        load_block(w, n, 1, 0, w.cols, row.data(), w.cols);
        const index bad = find_non_finite(row.data(), w.cols);
        if (bad >= 0)
            fail(errc::non_finite, std::string(who) + ": W(" + std::to_string(n) + ", " + std::to_string(bad) + ") is " + non_finite_name(row.data() + bad));
        add_magnitudes(row.data(), 1, channels, sums.data(), largest.data());
    }
}

}  // namespace detail

/// s_k = max(a_k^alpha / w_k^(1 - alpha), 1e-5), a_k = max|x_k| over the tokens seen, w_k = max|w_k| over all layers that read
/// X (N x K each), at least 1e-5; 1 for a channel that was always zero, which has nothing to hand over.
/// Throws errc::invalid_argument (no token, alpha outside [0, 1]), errc::shape_mismatch, errc::non_finite.
[[nodiscard]] inline std::vector<float> smoothing_factors(const channel_magnitudes& seen, double alpha, std::span<const const_view> weights) {
    const char* const who = "smoothing_factors";
    if (seen.tokens() == 0)
        detail::fail(errc::invalid_argument, std::string(who) + ": no token was seen by " + std::to_string(seen.channels()) + " channels");
    if (!(alpha >= 0.0 && alpha <= 1.0)) detail::fail(errc::invalid_argument, std::string(who) + ": alpha is " + std::to_string(alpha) + ", not in [0, 1]");
    const detail::fp_environment environment;
    std::vector<float> largest(static_cast<std::size_t>(seen.channels()));
    for (const const_view& w : weights) detail::add_column_magnitudes(w, largest, who);
    std::vector<float> s(largest.size(), 1.0f);
    for (std::size_t k = 0; k < s.size(); ++k) {
        const auto a = static_cast<double>(seen.largest()[k]);
        if (a == 0.0) continue;
        const double w = (std::max)(1e-5, static_cast<double>(largest[k]));
        s[k] = static_cast<float>((std::max)(1e-5, std::pow(a, alpha) / std::pow(w, 1.0 - alpha)));
    }
    return s;
}

/// The same of Eigen matrices.
template <eigen_expression... W>
[[nodiscard]] std::vector<float> smoothing_factors(const channel_magnitudes& seen, double alpha, const Eigen::DenseBase<W>&... weights) {
    const auto call = [&](const eigen_view<W>&... held) {
        const const_view views[] = {held.get()...};
        return smoothing_factors(seen, alpha, std::span<const const_view>(views));
    };
    return call(eigen_view<W>(weights)...);
}

}  // namespace nibble
