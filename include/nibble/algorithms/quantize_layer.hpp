// One layer by any combination of the methods here, and what its activations must go through then.
//
//     nibble::layer_calibration seen(K);
//     for each batch: seen.add(X);
//     nibble::quantized_layer q = nibble::quantize_layer(W, seen, nibble::int4_zero_g128::get(),
//                                                        {.scaling = nibble::layer_scaling::awq, .rotate = true});
//     q.weights * q.activations(X)         // is about W X;  q.scales, q.rotation, q.order say what activations() does
//     q.report.losses                      // step by step
//
// Steps, in the only order in which each can see what it must: channel scales (they need channels as they are), a rotation
// (it mixes channels), rounding against the second moments of the activations as they are then.
#pragma once

#include <optional>

#include "awq.hpp"
#include "gptq.hpp"
#include "hadamard.hpp"
#include "hqq.hpp"
#include "smoothquant.hpp"

namespace nibble::inline NIBBLE_ABI {

/// What is to be known of a layer's activations: second moments and magnitudes.
struct layer_calibration {
    explicit layer_calibration(index channels) : moments(channels), magnitudes(channels) {}
    /// Adds the tokens of x (K x T). Throws errc::shape_mismatch, or errc::non_finite with the index; nothing is added then.
    template <eigen_expression X>
    void add(const Eigen::DenseBase<X>& x, executor* threads = nullptr) {
        const eigen_view<X> view(x);
        moments.add(view.get(), threads);
        magnitudes.add(view.get());
    }
    /// Adds what another one has seen.
    void merge(const layer_calibration& other) {
        moments.merge(other.moments);
        magnitudes.merge(other.magnitudes);
    }

    hessian moments;
    channel_magnitudes magnitudes;
};

enum class layer_scaling : std::uint8_t { none, smooth, awq };
enum class layer_rounding : std::uint8_t { nearest, hqq, gptq };

struct layer_options {
    layer_scaling scaling = layer_scaling::none;
    bool rotate = false;                ///< by a hadamard_rotation with random signs
    layer_rounding rounding = layer_rounding::gptq;
    double alpha = 0.5;                 ///< of smoothing_factors
    std::uint64_t seed = 0;             ///< of the rotation's signs
    awq_options awq{};                  ///< its ranges are clipped where codes are rounded to nearest
    hqq_options hqq{};
    gptq_options gptq{};
    nibble::executor* executor = nullptr;  ///< for all steps; those of the options above do not count
};

/// The loss after a step, if codes were rounded to nearest then; that of the last step is the matrix's own.
struct layer_loss {
    const char* step = "";
    double loss = 0.0;  ///< mean over the calibration tokens of |(W - Q) x|^2
};

struct layer_report {
    std::vector<layer_loss> losses{};  ///< "nearest" first: the recipe alone
    double awq_power = 0.0;
    std::optional<gptq_report> gptq{};
    std::optional<hqq_report> hqq{};
    index tokens = 0;
};

struct quantized_layer {
    qmatrix weights;
    std::vector<float> scales{};                    ///< activations are divided by; empty: they are not
    std::optional<hadamard_rotation> rotation{};    ///< then rotated by
    std::vector<index> order{};                     ///< then their rows are taken in this order; empty: as they are
    layer_report report{};

    /// X (K x T) as `weights` wants it. Throws errc::shape_mismatch.
    template <eigen_expression X>
    [[nodiscard]] Eigen::MatrixXf activations(const Eigen::DenseBase<X>& x) const {
        if (x.rows() != weights.cols())
            detail::fail(errc::shape_mismatch, "quantized_layer: W is " + detail::shape_text(weights.rows(), weights.cols()) + ", X is " + detail::shape_text(x.rows(), x.cols()));
        Eigen::MatrixXf out(x.rows(), x.cols());
        const eigen_view<X> view(x);
        const const_view v = view.get();
        detail::load_block({v.data, v.type, v.cols, v.rows, v.col_stride, v.row_stride}, 0, v.cols, 0, v.rows, out.data(), v.rows);
        if (!scales.empty()) divide_rows(out, scales);
        if (rotation) rotation->rotate_columns(out);
        if (order.empty()) return out;
        return out(order, Eigen::all);
    }
    /// W X, about.
    template <eigen_expression X>
    [[nodiscard]] friend Eigen::MatrixXf operator*(const quantized_layer& layer, const Eigen::DenseBase<X>& x) {
        return layer.weights * layer.activations(x);
    }
};

namespace detail {

/// The second moments of activations that were divided by s, or rotated.
[[nodiscard]] inline hessian scaled_moments(const hessian& h, std::span<const float> s) {
    hessian::matrix_type sum(h.channels(), h.channels());
    for (index j = 0; j < h.channels(); ++j)
        for (index i = j; i < h.channels(); ++i)
            sum(i, j) = static_cast<float>(static_cast<double>(h.sum(i, j)) / (static_cast<double>(s[static_cast<std::size_t>(i)]) * static_cast<double>(s[static_cast<std::size_t>(j)])));
    return {std::move(sum), h.tokens()};
}
[[nodiscard]] inline hessian rotated_moments(const hessian& h, const hadamard_rotation& r) {
    hessian::matrix_type sum = 0.5f * static_cast<float>(h.tokens()) * h.matrix();
    r.rotate_columns(sum);
    r.rotate_rows(sum);
    return {std::move(sum), h.tokens()};
}

/// Rounded to nearest; rules that search get the weights of the diagonal.
[[nodiscard]] inline qmatrix round_layer(const Eigen::MatrixXf& w, const hessian& h, const quantize_plan& plan, executor* threads) {
    std::vector<float> weights;
    quantize_options o;
    o.executor = threads;
    if (plan.rule.searches) {
        std::vector<double> diagonal(static_cast<std::size_t>(h.channels()));
        for (index k = 0; k < h.channels(); ++k) diagonal[static_cast<std::size_t>(k)] = static_cast<double>(h.sum(k, k));
        weights.resize(diagonal.size());
        relative_weights(diagonal.data(), h.channels(), weights.data());
        o.importance = weights;
    }
    return quantize(w, plan, o);
}

}  // namespace detail

/// Quantizes W (N x K) with a plan or a recipe. Throws what the steps throw: errc::shape_mismatch, errc::invalid_argument (no
/// tokens, options that cannot be), errc::unsupported (no Hadamard matrix of order K; hqq without a float zero),
/// errc::non_finite for weights, errc::cancelled.
[[nodiscard]] inline quantized_layer quantize_layer(const const_view& w, const layer_calibration& seen, const quantize_plan& plan, const layer_options& options = {}) {
    detail::check_calibration("quantize_layer", w, seen.moments);
    check_quantize(w, plan).or_throw();
    if (options.rotate) hadamard_rotation::check(w.cols).or_throw();
    const detail::fp_environment environment;
    quantized_layer r;
    r.report.tokens = seen.moments.tokens();
    Eigen::MatrixXf now(w.rows, w.cols);
    detail::load_block({w.data, w.type, w.cols, w.rows, w.col_stride, w.row_stride}, 0, w.cols, 0, w.rows, now.data(), w.rows);
    hessian h = seen.moments;
    const auto measure = [&](const char* step, const qmatrix& q) { r.report.losses.push_back({step, output_loss(now, q, h, options.executor)}); };
    const auto measure_rounded = [&](const char* step) { measure(step, detail::round_layer(now, h, plan, options.executor)); };
    measure_rounded("nearest");

    if (options.scaling == layer_scaling::smooth) {
        r.scales = smoothing_factors(seen.magnitudes, options.alpha, now);
    } else if (options.scaling == layer_scaling::awq) {
        awq_options o = options.awq;
        o.executor = options.executor;
        awq_scales found = awq_search_scales(w, seen.moments, seen.magnitudes, plan, o);
        r.scales = std::move(found.scales);
        r.report.awq_power = found.power;
    }
    if (!r.scales.empty()) {
        multiply_columns(now, r.scales);
        h = detail::scaled_moments(h, r.scales);
        measure_rounded(options.scaling == layer_scaling::awq ? "awq" : "smooth");
    }
    if (options.rotate) {
        r.rotation.emplace(w.cols, options.seed);
        r.rotation->rotate_rows(now);
        h = detail::rotated_moments(h, *r.rotation);
        measure_rounded("rotate");
    }
    switch (options.rounding) {
        case layer_rounding::nearest: {
            r.weights = detail::round_layer(now, h, plan, options.executor);
            if (options.scaling != layer_scaling::awq || options.awq.most_clipped == 0.0 || now.size() == 0) break;
            awq_options o = options.awq;
            o.executor = options.executor;
            const Eigen::MatrixXf limits = awq_search_clip(column_major(static_cast<const float*>(now.data()), w.rows, w.cols), h, plan, o);
            Eigen::MatrixXf clamped = now;
            detail::clamp_groups(clamped, limits, r.weights.group_size());
            const qmatrix clipped = detail::round_layer(clamped, h, plan, options.executor);
            const double loss = output_loss(now, clipped, h, options.executor);
            if (!(loss < r.report.losses.back().loss)) break;
            r.weights = clipped;
            r.report.losses.push_back({"clip", loss});
            break;
        }
        case layer_rounding::hqq: {
            hqq_options o = options.hqq;
            o.executor = options.executor;
            hqq_result found = hqq(now, plan, o);
            r.weights = std::move(found.weights);
            r.report.hqq = std::move(found.report);
            measure("hqq", r.weights);
            break;
        }
        case layer_rounding::gptq: {
            gptq_options o = options.gptq;
            o.executor = options.executor;
            o.measure_before = false;
            gptq_result found = gptq(now, h, plan, o);
            r.weights = std::move(found.weights);
            r.order = std::move(found.order);
            r.report.losses.push_back({"gptq", found.report.loss_after});
            r.report.gptq = std::move(found.report);
            break;
        }
    }
    return r;
}
template <eigen_expression W>
[[nodiscard]] quantized_layer quantize_layer(const Eigen::DenseBase<W>& w, const layer_calibration& seen, const quantize_plan& plan, const layer_options& options = {}) {
    return quantize_layer(eigen_view<W>(w).get(), seen, plan, options);
}
template <eigen_expression W>
[[nodiscard]] quantized_layer quantize_layer(const Eigen::DenseBase<W>& w, const layer_calibration& seen, const recipe& r, const layer_options& options = {}) {
    return quantize_layer(eigen_view<W>(w).get(), seen, make_plan(r), options);
}

}  // namespace nibble
