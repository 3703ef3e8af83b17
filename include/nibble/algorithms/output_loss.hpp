// What quantizing costs a layer: the squared error of its outputs, |(W - Q) x|^2, as a mean over the tokens of a calibration.
// With the second moments of X no token is needed for it: the mean is the sum over rows d of W - Q of d (X X^T / T) d^T.
#pragma once

#include <functional>
#include <numeric>

#include "../calibration/hessian.hpp"
#include "../dequantize.hpp"
#include "../quantize.hpp"

namespace nibble::inline NIBBLE_ABI {
namespace detail {

/// Throws unless W (N x K) and the calibration fit, and there was a token whose squares did not overflow.
template <class Scalar>
void check_calibration(const char* who, const const_view& w, const basic_hessian<Scalar>& h) {
    if (w.cols != h.channels())
        fail(errc::shape_mismatch, std::string(who) + ": W is " + shape_text(w.rows, w.cols) + ", the Hessian has " + std::to_string(h.channels()) + " channels");
    if (h.tokens() == 0) fail(errc::invalid_argument, std::string(who) + ": the Hessian of " + std::to_string(h.channels()) + " channels has seen no token");
    for (index k = 0; k < w.cols; ++k) {
        const auto d = static_cast<double>(h.sum(k, k));
        if ((std::bit_cast<std::uint64_t>(d) & 0x7ff0000000000000u) == 0x7ff0000000000000u)
            fail(errc::out_of_range, std::string(who) + ": the squares of channel " + std::to_string(k) + " overflowed; scale the activations down");
    }
}

/// body(tile, first row, count) for tiles of rows, on the executor if there is one. With `progress`, tiles go in batches, and
/// it is called after each; when it returns false, errc::cancelled.
template <class Body>
void for_row_tiles(index rows, index tile, executor* threads, const std::function<bool(index, index)>& progress, const char* who, const Body& body) {
    const index tiles = ceil_div(rows, tile);
    const index batch = progress ? (threads != nullptr ? 4 * index{threads->concurrency()} : 1) : tiles;
    for (index begin = 0; begin < tiles; begin += batch) {
        const index count = (std::min)(batch, tiles - begin);
        const auto task = [&](index i) {
            const fp_environment environment;
            const index t = begin + i;
            body(t, t * tile, (std::min)(tile, rows - t * tile));
        };
        if (threads != nullptr) threads->parallel_for(count, task);
        else for (index i = 0; i < count; ++i) task(i);
        const index done = (std::min)(rows, (begin + count) * tile);
        if (progress && !progress(done, rows)) fail(errc::cancelled, std::string(who) + ": cancelled after " + std::to_string(done) + " of " + std::to_string(rows) + " rows");
    }
}

/// Rows that can be quantized apart from all others: a tile, or all of them where a scale looks beyond.
[[nodiscard]] inline index tile_of(const quantize_plan& plan, index rows) noexcept {
    constexpr index tile = 64;
    const bool apart = plan.group.rows > 0 && tile % plan.group.rows == 0 && plan.scale.storage != scale_storage::double_quantized &&
                       plan.scale.storage != scale_storage::e4m3_f32;
    return apart ? tile : (std::max)(index{1}, rows);
}

}  // namespace detail

/// The mean over the calibration tokens of |(W - Q) x|^2, W and Q N x K.
/// Throws errc::shape_mismatch, errc::invalid_argument (no token), errc::out_of_range (squares overflowed).
template <class Scalar>
[[nodiscard]] double output_loss(const const_view& w, const const_view& q, const basic_hessian<Scalar>& h, executor* threads = nullptr);

template <class Scalar>
double output_loss(const const_view& w, const const_view& q, const basic_hessian<Scalar>& h, executor* threads) {
    detail::check_calibration("output_loss", w, h);
    if (q.rows != w.rows || q.cols != w.cols)
        detail::fail(errc::shape_mismatch, "output_loss: W is " + detail::shape_text(w.rows, w.cols) + ", Q is " + detail::shape_text(q.rows, q.cols));
    using matrix = Eigen::Matrix<Scalar, Eigen::Dynamic, Eigen::Dynamic>;
    const detail::fp_environment environment;
    const matrix moments = h.matrix();
    constexpr index tile = 64;
    std::vector<double> losses(static_cast<std::size_t>(detail::ceil_div(w.rows, tile)));
    detail::for_row_tiles(w.rows, tile, threads, {}, "output_loss", [&](index t, index first, index rows) {
        Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> a(rows, w.cols), b(rows, w.cols);
        detail::load_block(w, first, rows, 0, w.cols, a.data(), w.cols);
        detail::load_block(q, first, rows, 0, w.cols, b.data(), w.cols);
        const matrix d = a.template cast<Scalar>() - b.template cast<Scalar>();
        const matrix dh = d * moments;
        losses[static_cast<std::size_t>(t)] = dh.cwiseProduct(d).template cast<double>().sum();
    });
    return 0.5 * std::accumulate(losses.begin(), losses.end(), 0.0);  // H is twice the mean of x x^T
}

#if defined(NIBBLE_COMPILED)
#if NIBBLE_DEFINE_ALGORITHMS
template double output_loss<float>(const const_view&, const const_view&, const basic_hessian<float>&, executor*);
template double output_loss<double>(const const_view&, const const_view&, const basic_hessian<double>&, executor*);
#else
extern template double output_loss<float>(const const_view&, const const_view&, const basic_hessian<float>&, executor*);
extern template double output_loss<double>(const const_view&, const const_view&, const basic_hessian<double>&, executor*);
#endif
#endif

/// The same of Eigen expressions, and of a quantized matrix, which is decoded.
template <eigen_expression W, eigen_expression Q, class Scalar>
[[nodiscard]] double output_loss(const Eigen::DenseBase<W>& w, const Eigen::DenseBase<Q>& q, const basic_hessian<Scalar>& h, executor* threads = nullptr) {
    return output_loss(eigen_view<W>(w).get(), eigen_view<Q>(q).get(), h, threads);
}
template <eigen_expression W, class Scalar>
[[nodiscard]] double output_loss(const Eigen::DenseBase<W>& w, const qmatrix& q, const basic_hessian<Scalar>& h, executor* threads = nullptr) {
    return output_loss(w, dequantize(q, {.executor = threads}), h, threads);
}

}  // namespace nibble
