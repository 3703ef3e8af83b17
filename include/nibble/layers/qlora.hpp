// QLoRA (Dettmers et al. 2023, arXiv:2305.14314): frozen quantized weights and a low-rank correction that learns.
//
//     nibble::qlora layer(nibble::quantize<nibble::nf4_double>(W), 16, 32.0f);   // rank 16, alpha 32
//     Y = layer.forward(X);                                                       // W^ X + s B (A X),  s = alpha / rank
//     auto g = layer.backward(X, dY);  layer.a() -= rate * g.a;  layer.b() -= rate * g.b;
//     nibble::qmatrix Q = layer.merged(plan);                                     // W^ + s B A, quantized again
//
// W^ is N x K, A is rank x K, B is N x rank, X is K x M with a column per token. W^ is multiplied in its quantized form and never
// written out but by merged(). The base product has the bits of gemm; the low-rank ones are Eigen's and may differ by machine.
#pragma once

#include "../dequantize.hpp"
#include "../gemm.hpp"
#include "../quantize.hpp"

namespace nibble::inline NIBBLE_ABI {

struct qlora_gradients {
    Eigen::MatrixXf a, b, x;
};

class qlora {
    using matrix = Eigen::Ref<const Eigen::MatrixXf>;

public:
    /// A is uniform in +-1 / sqrt(K), B is zero: the layer begins as its base. Throws errc::invalid_argument for a rank below 1
    /// or an alpha that is not finite.
    qlora(qmatrix base, index rank, float alpha, std::uint64_t seed = 1) : base_(std::move(base)) {
        set_scale(rank, alpha);
        a_.resize(rank, base_.cols());
        const float most = base_.cols() == 0 ? 0.0f : 1.0f / std::sqrt(static_cast<float>(base_.cols()));
        for (index i = 0; i < a_.size(); ++i) {  // splitmix64: the same everywhere
            std::uint64_t z = seed += 0x9e3779b97f4a7c15u;
            z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
            z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
            a_.data()[i] = most * (static_cast<float>((z ^ (z >> 31)) >> 40) * 0x1p-23f - 1.0f);
        }
        b_.setZero(base_.rows(), rank);
    }
    /// Factors that were trained before. Throws errc::shape_mismatch with the shapes.
    qlora(qmatrix base, Eigen::MatrixXf a, Eigen::MatrixXf b, float alpha) : base_(std::move(base)), a_(std::move(a)), b_(std::move(b)) {
        if (a_.cols() != base_.cols() || b_.rows() != base_.rows() || a_.rows() != b_.cols())
            detail::fail(errc::shape_mismatch, "qlora: W is " + detail::shape_text(base_.rows(), base_.cols()) + ", A is " + detail::shape_text(a_.rows(), a_.cols()) +
                                                   ", B is " + detail::shape_text(b_.rows(), b_.cols()));
        set_scale(a_.rows(), alpha);
    }

    /// Y = f(W^ X + bias + s B (A X)), with the bias and the activation f of the options. Throws what gemm throws.
    [[nodiscard]] Eigen::MatrixXf forward(const matrix& x, gemm_options options = {}) const {
        Eigen::MatrixXf y(base_.rows(), x.cols());
        check_gemm(base_, eigen_view<matrix>(x).get(), output_of(y), options.bias).or_throw();
        y.noalias() = (scale_ * b_) * (a_ * x);
        options.accumulate = true;
        gemm(base_, x, y, options);
        return y;
    }
    /// The gradients of a loss whose gradient by forward(x) is dy: of A, B and X. The base is frozen. Throws errc::shape_mismatch.
    [[nodiscard]] qlora_gradients backward(const matrix& x, const matrix& dy) const {
        if (x.rows() != base_.cols() || dy.rows() != base_.rows() || x.cols() != dy.cols())
            detail::fail(errc::shape_mismatch, "qlora: W is " + detail::shape_text(base_.rows(), base_.cols()) + ", X is " + detail::shape_text(x.rows(), x.cols()) +
                                                   ", the gradient of the output is " + detail::shape_text(dy.rows(), dy.cols()));
        qlora_gradients g;
        const Eigen::MatrixXf through = scale_ * (b_.transpose() * dy);  // rank x M
        g.b.noalias() = dy * (scale_ * (a_ * x)).transpose();
        g.a.noalias() = through * x.transpose();
        g.x = base_.transpose() * dy;
        g.x.noalias() += a_.transpose() * through;
        return g;
    }

    /// W^ + s B A.
    [[nodiscard]] Eigen::MatrixXf merged() const {
        Eigen::MatrixXf w = dequantize(base_);
        w.noalias() += (scale_ * b_) * a_;
        return w;
    }
    /// The same, quantized again: one matrix, a new rounding error.
    [[nodiscard]] qmatrix merged(const quantize_plan& plan) const { return quantize(merged(), plan); }

    [[nodiscard]] const qmatrix& base() const noexcept { return base_; }
    /// What learns. Their shapes must stay.
    [[nodiscard]] Eigen::MatrixXf& a() noexcept { return a_; }
    [[nodiscard]] Eigen::MatrixXf& b() noexcept { return b_; }
    [[nodiscard]] const Eigen::MatrixXf& a() const noexcept { return a_; }
    [[nodiscard]] const Eigen::MatrixXf& b() const noexcept { return b_; }
    /// alpha / rank.
    [[nodiscard]] float scale() const noexcept { return scale_; }

private:
    void set_scale(index rank, float alpha) {
        if (rank < 1 || !detail::finite_in_memory(&alpha))
            detail::fail(errc::invalid_argument, "qlora: a rank of " + std::to_string(rank) + " and an alpha of " + std::to_string(alpha));
        scale_ = alpha / static_cast<float>(rank);
    }

    qmatrix base_;
    Eigen::MatrixXf a_, b_;
    float scale_ = 1.0f;
};

}  // namespace nibble
