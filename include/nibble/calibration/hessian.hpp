// The Hessian of a layer's squared output error: H = 2 / T * sum over tokens of x x^T. What GPTQ compensates errors by.
//
//     nibble::hessian h(K);
//     for each batch: h.add(X);        // K x T, a column per token; merge() adds what another thread or machine has seen
#pragma once

#include "../detail/fp_environment.hpp"
#include "../executor.hpp"
#include "tokens.hpp"

namespace nibble::inline NIBBLE_ABI {

/// Sums of x x^T over the tokens seen, K x K numbers of type Scalar: float is what GPTQ needs, double halves the speed and
/// doubles the memory. Sums run over blocks of 512 tokens first, so rounding grows with their number, not with T.
template <class Scalar>
class basic_hessian {
    static_assert(std::is_same_v<Scalar, float> || std::is_same_v<Scalar, double>, "a Hessian of float or double");

public:
    using matrix_type = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;

    /// Throws errc::invalid_argument below 0.
    explicit basic_hessian(index channels) {
        if (channels < 0) detail::fail(errc::invalid_argument, "hessian: " + std::to_string(channels) + " channels");
        (void)detail::checked_product(channels, channels);
        sum_.setZero(channels, channels);
    }
    /// Of sums made elsewhere: the sum of x x^T over `tokens` tokens, of which only the lower triangle is read.
    /// Throws errc::shape_mismatch unless it is square, errc::invalid_argument for less than 0 tokens.
    basic_hessian(matrix_type sum, index tokens) : sum_(std::move(sum)), tokens_(tokens) {
        if (sum_.rows() != sum_.cols()) detail::fail(errc::shape_mismatch, "hessian: a sum of " + detail::shape_text(sum_.rows(), sum_.cols()));
        if (tokens < 0) detail::fail(errc::invalid_argument, "hessian: " + std::to_string(tokens) + " tokens");
    }

    /// Adds the tokens of x (K x T, any Eigen expression of float, double, half or bfloat16).
    /// Throws errc::shape_mismatch, or errc::non_finite with the index; nothing is added then.
    template <eigen_expression X>
    void add(const Eigen::DenseBase<X>& x, executor* threads = nullptr) {
        add(eigen_view<X>(x).get(), threads);
    }
    void add(const const_view& x, executor* threads = nullptr);
    /// Adds what another one has seen.
    void merge(const basic_hessian& other) {
        if (other.channels() != channels())
            detail::fail(errc::shape_mismatch, "hessian: merging " + std::to_string(other.channels()) + " channels into " + std::to_string(channels()));
        const detail::fp_environment environment;
        sum_ += other.sum_;
        tokens_ += other.tokens_;
    }

    [[nodiscard]] index channels() const noexcept { return sum_.rows(); }
    [[nodiscard]] index tokens() const noexcept { return tokens_; }
    /// H, symmetric; zero before the first token.
    [[nodiscard]] matrix_type matrix() const {
        matrix_type h = sum_.template selfadjointView<Eigen::Lower>();
        h *= tokens_ == 0 ? Scalar(0) : Scalar(2) / static_cast<Scalar>(tokens_);
        return h;
    }
    /// The sum of x_i x_j for i >= j.
    [[nodiscard]] Scalar sum(index i, index j) const noexcept { return sum_(i, j); }

private:
    static constexpr index strip_columns = 128;

    matrix_type sum_;  // the lower triangle counts
    index tokens_ = 0;
};

// Not inline: with nibble::compiled it is instantiated there.
template <class Scalar>
void basic_hessian<Scalar>::add(const const_view& x, executor* threads) {
    const detail::fp_environment environment;
    matrix_type block;
    detail::for_token_blocks(x, channels(), "hessian", [&](const float* values, index tokens) {
        block = Eigen::Map<const Eigen::MatrixXf>(values, channels(), tokens).template cast<Scalar>();
        // Below the diagonal, in strips of columns that are the same with any number of threads.
        const auto strip = [&](index i) {
            const detail::fp_environment inner;
            const index first = i * strip_columns, rows = channels() - first, cols = (std::min)(strip_columns, rows);
            sum_.block(first, first, rows, cols).noalias() += block.bottomRows(rows) * block.middleRows(first, cols).transpose();
        };
        const index strips = detail::ceil_div(channels(), strip_columns);
        if (threads != nullptr) threads->parallel_for(strips, strip);
        else for (index i = 0; i < strips; ++i) strip(i);
    });
    tokens_ += x.cols;
}

#if defined(NIBBLE_COMPILED)
#if NIBBLE_DEFINE_ALGORITHMS
template class basic_hessian<float>;
template class basic_hessian<double>;
#else
extern template class basic_hessian<float>;
extern template class basic_hessian<double>;
#endif
#endif

using hessian = basic_hessian<float>;

}  // namespace nibble
