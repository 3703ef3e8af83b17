// LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339): int8 weights and activations, but for the few input channels in which an
// activation of this batch is large; those are multiplied as floats.
//
//     nibble::llm_int8 layer(W);                 // int8, a scale for each row
//     Eigen::MatrixXf Y = layer * X;             // X is K x T, a column per token
//
// Channel k is an outlier if some |x(k, t)| >= threshold (6). With O the outlier channels, a_t the largest |x(k, t)| that is
// below the threshold, whichever channel it is in, and c_n = max|w(n, :)|:
//
//     y(n, t) = a_t / 127 c_n / 127 sum over k not in O of q(n, k) RNE(127 x(k, t) / a_t)   exact in int32
//             + bias(n) + sum over k in O of c_n / 127 q(n, k) x(k, t)                      floats, k ascending
//
// as bitsandbytes has it, but for its constant 1 / 127^2, which is 1.8e-5 too small on some devices.
#pragma once

#include "../integer_gemm.hpp"
#include "../quantize.hpp"

namespace nibble::inline NIBBLE_ABI {

struct llm_int8_options {
    bias_view bias{};
    nibble::workspace* workspace = nullptr;
    nibble::executor* executor = nullptr;
};

/// An int8 layer that finds outlier channels at run time. A value: copies share the weights.
class llm_int8 {
public:
    /// threshold 0: no channel is an outlier.
    /// Throws errc::unsupported unless w is int8 with one scale for each row (int8_per_channel), errc::invalid_argument for a threshold.
    explicit llm_int8(qmatrix w, float threshold = 6.0f) : weights_(std::move(w)), threshold_(threshold) {
        if (&weights_.format() != &int8::format || weights_.groups() > 1 || weights_.offset_type() != offset_kind::none)
            detail::fail(errc::unsupported, "llm_int8: W is " + weights_.name() + "; it must be int8 with one scale for each row (int8_per_channel)");
        if (!(threshold >= 0.0f) || !detail::finite_in_memory(&threshold))
            detail::fail(errc::invalid_argument, "llm_int8: a threshold of " + std::to_string(threshold));
        for (index n = 0; n < weights_.rows() && weights_.groups() > 0; ++n) row_scales_.push_back(weights_.scale(n, 0));
    }
    /// Quantizes W (N x K) by rows.
    template <eigen_expression W>
    explicit llm_int8(const Eigen::DenseBase<W>& w, float threshold = 6.0f) : llm_int8(quantize<int8_per_channel>(w), threshold) {}

    [[nodiscard]] const qmatrix& weights() const noexcept { return weights_; }
    [[nodiscard]] float threshold() const noexcept { return threshold_; }

    /// The outlier channels of X (K x T), ascending. Throws errc::shape_mismatch, errc::non_finite.
    template <eigen_expression X>
    [[nodiscard]] std::vector<index> outliers(const Eigen::DenseBase<X>& x) const {
        return prepare(eigen_view<X>(x).get()).channels;
    }

    /// y = W x (+ bias). x is K x T, y N x T. Throws errc::shape_mismatch, errc::overlap, errc::non_finite with the index.
    void multiply(const const_view& x, const float_view& y, const llm_int8_options& options = {}) const;
    template <eigen_expression X, class Y>
        requires eigen_expression<std::remove_cvref_t<Y>>
    void multiply(const Eigen::DenseBase<X>& x, Y&& y, const llm_int8_options& options = {}) const {
        multiply(eigen_view<X>(x).get(), writable_view(y), options);
    }
    template <eigen_expression X>
    [[nodiscard]] friend Eigen::MatrixXf operator*(const llm_int8& layer, const Eigen::DenseBase<X>& x) {
        Eigen::MatrixXf y(layer.weights_.rows(), x.cols());
        layer.multiply(x, y);
        return y;
    }

private:
    struct activations {
        std::vector<std::int8_t> codes;   // K x T, outlier channels zero
        std::vector<float> scales;        // a_t / 127
        std::vector<index> channels;      // outliers
        std::vector<float> values;        // theirs, channels x T
    };
    [[nodiscard]] activations prepare(const const_view& x) const;

    qmatrix weights_;
    float threshold_;
    std::vector<float> row_scales_;
};

namespace detail {

NIBBLE_FP_BEGIN

/// Marks values of at least `threshold` and returns the largest magnitude below it.
NIBBLE_NOINLINE inline float scan_outliers(const float* x, index n, float threshold, std::uint8_t* marks) noexcept {
    const std::uint32_t limit = threshold > 0.0f ? bits_of(threshold) : 0x7f800000u;  // magnitudes are ordered as their bits
    std::uint32_t largest = 0;
    for (index k = 0; k < n; ++k) {
        const std::uint32_t u = bits_of(x[k]) & 0x7fffffffu;
        const bool below = u < limit;
        marks[k] = static_cast<std::uint8_t>(marks[k] | (below ? 0 : 1));
        largest = below && u > largest ? u : largest;
    }
    return float_of(largest);
}
[[nodiscard]] NIBBLE_NOINLINE inline float token_scale(float amax) noexcept {
    constexpr float smallest = 1.1754943508222875e-38f;  // 2^-126, as in quantize_activations
    const float scale = amax / 127.0f;
    return scale < smallest ? smallest : scale;
}
[[nodiscard]] NIBBLE_NOINLINE inline float reciprocal(float scale) noexcept { return 1.0f / scale; }
NIBBLE_NOINLINE inline void decode_column(const qmatrix& w, const float* scale, index k, float* out) noexcept {
    const index position = w.layout().position(k), at = position / 4 * cell_bytes + position % 4;  // of 8-bit cells
    for (index p = 0; p * panel_rows < w.rows(); ++p) {
        const std::uint8_t* codes = w.panel(p) + at;
        const index first = p * panel_rows, live = (std::min)(panel_rows, w.rows() - first);
        for (index r = 0; r < live; ++r) out[first + r] = scale[first + r] * static_cast<float>(static_cast<int>(codes[4 * r]) - 128);
    }
}
/// y(:, t) += column * x(t) for all tokens.
NIBBLE_NOINLINE inline void add_outer(const float* column, const float* x, const float_view& y) noexcept {
    for (index t = 0; t < y.cols; ++t) {
        const float by = x[t];
        float* to = &y.at(0, t);
        if (y.row_stride == 1)
            for (index n = 0; n < y.rows; ++n) to[n] += column[n] * by;
        else
            for (index n = 0; n < y.rows; ++n) to[n * y.row_stride] += column[n] * by;
    }
}

NIBBLE_FP_END

}  // namespace detail

inline llm_int8::activations llm_int8::prepare(const const_view& x) const {
    const index channels = weights_.cols();
    if (x.rows != channels)
        detail::fail(errc::shape_mismatch, "llm_int8: W is " + detail::shape_text(weights_.rows(), channels) + ", X is " + detail::shape_text(x.rows, x.cols));
    const detail::fp_environment environment;
    activations a;
    a.codes.resize(static_cast<std::size_t>(detail::checked_product(channels, x.cols)));
    a.scales.resize(static_cast<std::size_t>(x.cols));
    std::vector<float> token(static_cast<std::size_t>(channels));
    std::vector<std::uint8_t> marks(token.size());
    const auto load = [&](index t) { detail::load_block({x.at(0, t), x.type, x.rows, 1, x.row_stride, x.col_stride}, 0, x.rows, 0, 1, token.data(), 1); };
    const detail::kernel_table& kernels = detail::active_kernels();
    for (index t = 0; t < x.cols; ++t) {
        load(t);
        const index bad = detail::find_non_finite(token.data(), channels);
        if (bad >= 0)
            detail::fail(errc::non_finite, "llm_int8: X(" + std::to_string(bad) + ", " + std::to_string(t) + ") is " + detail::non_finite_name(token.data() + bad));
        const float scale = detail::token_scale(detail::scan_outliers(token.data(), channels, threshold_, marks.data()));
        a.scales[static_cast<std::size_t>(t)] = scale;
        detail::encode_activations(kernels, token.data(), channels, detail::reciprocal(scale), 0, -128, 127,
                                   reinterpret_cast<std::uint8_t*>(a.codes.data()) + t * channels);
    }
    for (index k = 0; k < channels; ++k) {
        if (marks[static_cast<std::size_t>(k)] == 0) continue;
        a.channels.push_back(k);
        for (index t = 0; t < x.cols; ++t) {
            a.values.push_back(detail::load_scalar(x.at(k, t), x.type));
            a.codes[static_cast<std::size_t>(t * channels + k)] = 0;
        }
    }
    return a;
}

inline void llm_int8::multiply(const const_view& x, const float_view& y, const llm_int8_options& options) const {
    check_gemm(weights_, x, y, options.bias).or_throw();
    if (x.cols == 0 || weights_.rows() == 0) return;
    const activations a = prepare(x);
    const integer_view<const std::int8_t> codes{a.codes.data(), x.rows, x.cols, 1, x.rows};
    gemm_options product;
    product.bias = options.bias;
    product.workspace = options.workspace;
    product.executor = options.executor;
    integer_gemm(weights_, wrap_activations(codes, a.scales), output_view(y), product);
    const detail::fp_environment environment;
    std::vector<float> column(a.channels.empty() ? 0 : static_cast<std::size_t>(weights_.rows()));
    for (std::size_t i = 0; i < a.channels.size(); ++i) {
        detail::decode_column(weights_, row_scales_.data(), a.channels[i], column.data());
        detail::add_outer(column.data(), a.values.data() + i * static_cast<std::size_t>(x.cols), y);
    }
}

}  // namespace nibble
