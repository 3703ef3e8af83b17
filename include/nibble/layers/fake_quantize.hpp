// Quantization-aware training: weights and activations rounded in the forward pass, gradients straight through.
//
//     nibble::fake_quantize fq(nibble::lsq_grid(W, nibble::int4::format, nibble::per_channel{}));
//     Y = fq.forward(W) * X;                          // the values that the deployed matrix has, bit for bit
//     dW = fq.backward(dY * X.transpose());           // of W; those of scales and offsets are added up inside
//     fq.step(rate);
//     nibble::qmatrix Q = nibble::quantize(W, fq.grid());   // dequantize(Q) == fq.forward(W)
//
// A grid has 2^b codes u = 0 .. n and, for each tile of the matrix, a scale s and an offset:
//
//   zero_point  t = x / s           u = clamp(RNE(t) + z)    x^ = s (u - z)    z the offset, rounded and clamped to 0 .. n
//   minimum     t = (x - m) / s     u = clamp(RNE(t))        x^ = s u + m      m the offset: LSQ+ (Bhalgat et al. 2020,
//                                                                              arXiv:2004.09576), beta = m + s Qn
//
// Straight-through gradients, with q = u - z (zero_point) or u (minimum):
//
//              in range     clipped
//   d x^/dx    1            0
//   d x^/ds    q - t        q               LSQ (Esser et al. 2020, arXiv:1902.08153); torch.ao's (x^ - x) / s
//   d x^/dz    0            -s              torch.ao's _fake_quantize_learnable
//   d x^/dm    0            1
//
// Values and gradients are the same bits on every machine.
#pragma once

#include "../quantize.hpp"

namespace nibble::inline NIBBLE_ABI {

/// Where codes of a matrix lie. Tiles of rows x groups of columns have a scale and an offset of their own.
struct quantization_grid {
    format_handle format{int8::format};              ///< int2 .. int8: how many codes there are
    offset_kind kind = offset_kind::zero_point;      ///< or minimum
    granularity group = per_tensor{};
    Eigen::MatrixXf scale = Eigen::MatrixXf::Ones(1, 1);
    Eigen::MatrixXf offset = Eigen::MatrixXf::Zero(1, 1);

    /// The largest code.
    [[nodiscard]] int last_code() const noexcept { return static_cast<int>(format->code_count()) - 1; }
};

/// Which elements count as in range.
enum class straight_through : std::uint8_t {
    rounded,    ///< those whose rounded code exists (torch.ao)
    unrounded,  ///< those strictly between the lowest and the highest code before rounding (LSQ)
};

struct fake_quantize_gradients {
    Eigen::MatrixXf x, scale, offset;
};

/// A matrix of floats as functions for training take it: any expression of floats.
using training_matrix = Eigen::Ref<const Eigen::MatrixXf>;

namespace detail {

/// A grid laid over a matrix.
struct grid_tiles {
    index rows, cols, tile_rows, tile_cols, down, across;

    grid_tiles(index rows_, index cols_, granularity g)
        : rows(rows_), cols(cols_), tile_rows(std::max<index>(1, g.rows == 0 ? rows_ : g.rows)),
          tile_cols(std::max<index>(1, g.cols == 0 ? cols_ : g.cols)), down(ceil_div(rows_, tile_rows)), across(ceil_div(cols_, tile_cols)) {}
};

NIBBLE_FP_BEGIN

/// The offset as it is used: zero points are integers of the grid.
[[nodiscard]] NIBBLE_NOINLINE inline float used_offset(const quantization_grid& grid, float offset) noexcept {
    if (grid.kind == offset_kind::minimum) return offset;
    return round_even(clamp(offset, 0.0f, static_cast<float>(grid.last_code())));
}

NIBBLE_NOINLINE inline void fake_quantize_tile(const quantization_grid& grid, float scale, float offset, const float* x, index n, float* out,
                                               std::uint8_t* codes) noexcept {
    const float inv = inverse(scale);
    for (index i = 0; i < n; ++i) {
        const unsigned u = encode_weight(*grid.format, grid.kind, x[i], inv, offset);
        if (codes != nullptr) codes[i] = static_cast<std::uint8_t>(u);
        if (out != nullptr) out[i] = decode_weight(*grid.format, grid.kind, u, scale, offset);
    }
}

/// Of n elements in one tile; adds to the sums of the tile.
NIBBLE_NOINLINE inline void straight_through_tile(const quantization_grid& grid, straight_through rule, float scale, float offset, const float* x,
                                                  const float* dy, index n, float* dx, double& dscale, double& doffset) noexcept {
    const float inv = inverse(scale);
    const bool minimum = grid.kind == offset_kind::minimum;
    const int last = grid.last_code();
    const int zero = minimum ? 0 : static_cast<int>(offset);
    const double d_offset = minimum ? 1.0 : -static_cast<double>(scale);
    for (index i = 0; i < n; ++i) {
        const float above = minimum ? x[i] - offset : x[i];
        const float t = clamp(above * inv, -65536.0f, 65536.0f);
        const int code = static_cast<int>(round_even(t)) + zero;
        const int q = (code < 0 ? 0 : code > last ? last : code) - zero;
        const bool inside = rule == straight_through::rounded ? code >= 0 && code <= last
                                                              : t > static_cast<float>(-zero) && t < static_cast<float>(last - zero);
        const double d = static_cast<double>(dy[i]);
        const double exact = (static_cast<double>(x[i]) - (minimum ? static_cast<double>(offset) : 0.0)) / static_cast<double>(scale);
        dx[i] = inside ? dy[i] : 0.0f;
        dscale += d * (inside ? static_cast<double>(q) - exact : static_cast<double>(q));
        doffset += inside ? 0.0 : d * d_offset;
    }
}

/// s = 2 mean|x| / sqrt(largest code): where LSQ begins.
[[nodiscard]] NIBBLE_NOINLINE inline float lsq_scale(double magnitudes, index count, int largest) noexcept {
    const float s = count == 0 ? 0.0f : static_cast<float>(2.0 * magnitudes / static_cast<double>(count) / std::sqrt(static_cast<double>(largest)));
    return s < 0x1p-100f ? 0x1p-100f : s;
}

/// p - rate * g, and for scales at least half of p: a scale stays positive however large the step is.
[[nodiscard]] NIBBLE_NOINLINE inline float stepped(float p, float rate, float gradient, bool positive) noexcept {
    const float moved = p - rate * gradient;
    if (!positive) return moved;
    const float least = 0.5f * p < 0x1p-100f ? 0x1p-100f : 0.5f * p;
    return moved < least ? least : moved;
}

NIBBLE_FP_END

/// What is wrong with x of a grid.
[[nodiscard]] inline status check_quantization_grid(const quantization_grid& grid, index rows, index cols, const char* who) {
    const code_format& f = *grid.format;
    if (f.decode != decode_class::integer || f.bits < 2 || &f == &ternary::format)
        return status(errc::unsupported, std::string(who) + ": a grid of " + f.name + "; there are int2 to int8");
    if (grid.kind != offset_kind::zero_point && grid.kind != offset_kind::minimum)
        return status(errc::unsupported, std::string(who) + ": a grid with offset " + name_of(grid.kind) + "; there are zero_point and minimum");
    if (grid.group.rows < 0 || grid.group.cols < 0)
        return status(errc::invalid_argument, std::string(who) + ": tiles of " + shape_text(grid.group.rows, grid.group.cols));
    const grid_tiles tiles(rows, cols, grid.group);
    const auto fits = [&](const Eigen::MatrixXf& m) { return m.rows() == tiles.down && m.cols() == tiles.across; };
    if (!fits(grid.scale) || !fits(grid.offset))
        return status(errc::shape_mismatch, std::string(who) + ": X is " + shape_text(rows, cols) + ", so scales and offsets must be " +
                                                shape_text(tiles.down, tiles.across) + ", but they are " + shape_text(grid.scale.rows(), grid.scale.cols()) +
                                                " and " + shape_text(grid.offset.rows(), grid.offset.cols()));
    for (index i = 0; i < grid.scale.size(); ++i) {
        const float s = grid.scale.data()[i], o = grid.offset.data()[i];
        if (!finite_in_memory(&s) || !(s > 0.0f) || !(inverse(s) > 0.0f) || !finite_in_memory(&o))
            return status(errc::invalid_argument, std::string(who) + ": scale " + std::to_string(s) + " and offset " + std::to_string(o) + " of tile (" +
                                                      std::to_string(i % grid.scale.rows()) + ", " + std::to_string(i / grid.scale.rows()) +
                                                      "); both must be finite, and the scale and its inverse positive");
    }
    return {};
}

inline void check_finite(const training_matrix& x, const char* who) {
    for (index c = 0; c < x.cols(); ++c) {
        const index bad = find_non_finite(x.col(c).data(), x.rows());
        if (bad >= 0)
            fail(errc::non_finite, std::string(who) + ": X(" + std::to_string(bad) + ", " + std::to_string(c) + ") is " +
                                       non_finite_name(x.col(c).data() + bad));
    }
}

/// body(first row, rows, column, tile) for the pieces of columns that lie in one tile; tile counts down the columns of the scales.
template <class Body>
void for_tile_columns(const grid_tiles& t, Body body) {
    for (index c = 0; c < t.cols; ++c)
        for (index i = 0; i < t.down; ++i) body(i * t.tile_rows, (std::min)(t.tile_rows, t.rows - i * t.tile_rows), c, i + t.down * (c / t.tile_cols));
}

}  // namespace detail

/// x on the grid. Throws errc::shape_mismatch, errc::unsupported, errc::invalid_argument for a scale that is not positive,
/// errc::non_finite with the index.
[[nodiscard]] inline Eigen::MatrixXf fake_quantized(const training_matrix& x, const quantization_grid& grid) {
    const detail::fp_environment environment;
    detail::check_quantization_grid(grid, x.rows(), x.cols(), "fake_quantized").or_throw();
    detail::check_finite(x, "fake_quantized");
    Eigen::MatrixXf out(x.rows(), x.cols());
    detail::for_tile_columns({x.rows(), x.cols(), grid.group}, [&](index first, index n, index c, index tile) {
        detail::fake_quantize_tile(grid, grid.scale.data()[tile], detail::used_offset(grid, grid.offset.data()[tile]), x.col(c).data() + first, n,
                                   out.col(c).data() + first, nullptr);
    });
    return out;
}

/// The straight-through gradients of a loss whose gradient by fake_quantized(x, grid) is dy. Throws what that throws.
[[nodiscard]] inline fake_quantize_gradients fake_quantized_gradient(const training_matrix& x, const quantization_grid& grid, const training_matrix& dy,
                                                                     straight_through rule = straight_through::rounded) {
    const detail::fp_environment environment;
    detail::check_quantization_grid(grid, x.rows(), x.cols(), "fake_quantized_gradient").or_throw();
    if (dy.rows() != x.rows() || dy.cols() != x.cols())
        detail::fail(errc::shape_mismatch, "fake_quantized_gradient: X is " + detail::shape_text(x.rows(), x.cols()) + ", the gradient of the output is " +
                                               detail::shape_text(dy.rows(), dy.cols()));
    detail::check_finite(x, "fake_quantized_gradient");
    fake_quantize_gradients g{Eigen::MatrixXf(x.rows(), x.cols()), {}, {}};
    Eigen::MatrixXd scale = Eigen::MatrixXd::Zero(grid.scale.rows(), grid.scale.cols()), offset = scale;
    detail::for_tile_columns({x.rows(), x.cols(), grid.group}, [&](index first, index n, index c, index tile) {
        detail::straight_through_tile(grid, rule, grid.scale.data()[tile], detail::used_offset(grid, grid.offset.data()[tile]), x.col(c).data() + first,
                                      dy.col(c).data() + first, n, g.x.col(c).data() + first, scale.data()[tile], offset.data()[tile]);
    });
    g.scale = scale.cast<float>();
    g.offset = offset.cast<float>();
    return g;
}

/// The matrix that is deployed: dequantize(quantize(w, grid)) is fake_quantized(w, grid), bit for bit. Throws the same.
[[nodiscard]] inline qmatrix quantize(const training_matrix& w, const quantization_grid& grid) {
    const detail::fp_environment environment;
    detail::check_quantization_grid(grid, w.rows(), w.cols(), "quantize").or_throw();
    detail::check_finite(w, "quantize");
    qmatrix_builder b(w.rows(), w.cols(), grid.format, scales::f32, grid.kind, grid.group);
    const detail::grid_tiles tiles(w.rows(), w.cols(), grid.group);
    for (index g = 0; g < tiles.across; ++g)
        for (index n = 0; n < w.rows(); ++n) {
            const float offset = detail::used_offset(grid, grid.offset(n / tiles.tile_rows, g));
            b.set_scale(n, g, detail::bits_of(grid.scale(n / tiles.tile_rows, g)));
            b.set_offset(n, g, grid.kind == offset_kind::minimum ? detail::bits_of(offset) : static_cast<std::uint32_t>(offset));
        }
    std::vector<std::uint8_t> codes(static_cast<std::size_t>(w.rows()));
    detail::for_tile_columns(tiles, [&](index first, index n, index c, index tile) {
        detail::fake_quantize_tile(grid, grid.scale.data()[tile], detail::used_offset(grid, grid.offset.data()[tile]), w.col(c).data() + first, n, nullptr,
                                   codes.data());
        for (index i = 0; i < n; ++i) b.set_code(first + i, c, codes[static_cast<std::size_t>(i)]);
    });
    return std::move(b).finish();
}

/// The grid that LSQ begins with: s = 2 mean|x| / sqrt(Qp) of every tile. Signed: codes -2^(b-1) .. 2^(b-1) - 1 around the zero
/// point 2^(b-1); else 0 .. 2^b - 1, for activations that are not negative. A tile of zeros has the scale 2^-100.
[[nodiscard]] inline quantization_grid lsq_grid(const training_matrix& x, format_handle format, granularity group, bool is_signed = true) {
    const detail::fp_environment environment;
    quantization_grid grid;
    grid.format = std::move(format);
    grid.group = group;
    const detail::grid_tiles tiles(x.rows(), x.cols(), group);
    const int codes = grid.last_code() + 1;
    const int zero = is_signed ? codes / 2 : 0;
    grid.scale = Eigen::MatrixXf::Ones(tiles.down, tiles.across);
    grid.offset = Eigen::MatrixXf::Constant(tiles.down, tiles.across, static_cast<float>(zero));
    detail::check_quantization_grid(grid, x.rows(), x.cols(), "lsq_grid").or_throw();
    detail::check_finite(x, "lsq_grid");
    std::vector<double> sums(static_cast<std::size_t>(grid.scale.size()), 0.0);
    std::vector<index> counts(sums.size(), 0);
    detail::for_tile_columns(tiles, [&](index first, index n, index c, index tile) {
        double& sum = sums[static_cast<std::size_t>(tile)];
        for (index i = 0; i < n; ++i) sum += static_cast<double>(detail::magnitude(x(first + i, c)));
        counts[static_cast<std::size_t>(tile)] += n;
    });
    for (index i = 0; i < grid.scale.size(); ++i)
        grid.scale.data()[i] = detail::lsq_scale(sums[static_cast<std::size_t>(i)], counts[static_cast<std::size_t>(i)], codes - 1 - zero);
    return grid;
}

/// The grid of a matrix that was quantized after training, by any rule: where to begin quantization-aware training from.
/// Throws errc::unsupported unless it has integers, with a zero point, a minimum or no offset. (Without one, codes were
/// -n .. n; the grid has one more below.)
[[nodiscard]] inline quantization_grid grid_of(const qmatrix& w) {
    quantization_grid grid;
    grid.format = w.handle();
    grid.kind = w.offset_type() == offset_kind::none ? offset_kind::zero_point : w.offset_type();
    grid.group = w.grouping();
    const detail::grid_tiles tiles(w.rows(), w.cols(), grid.group);
    if (w.layout().tile_row() != 0) detail::fail(errc::unsupported, "grid_of: a row block that begins inside a tile of rows");
    grid.scale = Eigen::MatrixXf::Ones(tiles.down, tiles.across);
    grid.offset = Eigen::MatrixXf::Zero(tiles.down, tiles.across);
    detail::check_quantization_grid(grid, w.rows(), w.cols(), "grid_of").or_throw();
    for (index g = 0; g < tiles.across; ++g)
        for (index i = 0; i < tiles.down; ++i) {
            const float s = w.scale(i * tiles.tile_rows, g);
            grid.scale(i, g) = s > 0.0f ? s : 0x1p-100f;  // a tile of zeros
            grid.offset(i, g) = w.offset_type() == offset_kind::none ? static_cast<float>(w.format().zero_code) : w.offset(i * tiles.tile_rows, g);
        }
    return grid;
}

/// What LSQ multiplies the gradient of a scale with: 1 / sqrt(elements under the scale * largest code).
[[nodiscard]] inline double lsq_gradient_factor(index elements, int largest) noexcept {
    return elements <= 0 || largest <= 0 ? 1.0 : 1.0 / std::sqrt(static_cast<double>(elements) * static_cast<double>(largest));
}

/// PACT (Choi et al. 2018, arXiv:1805.06085): clamp(x, 0, alpha), a clip that is learned. Throws errc::invalid_argument unless
/// alpha is positive and finite.
[[nodiscard]] inline Eigen::MatrixXf pact(const training_matrix& x, float alpha) {
    if (!(alpha > 0.0f) || !detail::finite_in_memory(&alpha)) detail::fail(errc::invalid_argument, "pact: a clip of " + std::to_string(alpha));
    return x.cwiseMax(0.0f).cwiseMin(alpha);
}

struct pact_gradients {
    Eigen::MatrixXf x;     ///< dy where 0 < x < alpha
    double alpha = 0.0;    ///< sum of dy where x >= alpha
};
/// Throws errc::shape_mismatch.
[[nodiscard]] inline pact_gradients pact_gradient(const training_matrix& x, float alpha, const training_matrix& dy) {
    if (dy.rows() != x.rows() || dy.cols() != x.cols())
        detail::fail(errc::shape_mismatch, "pact_gradient: X is " + detail::shape_text(x.rows(), x.cols()) + ", the gradient of the output is " +
                                               detail::shape_text(dy.rows(), dy.cols()));
    pact_gradients g;
    g.x = (x.array() > 0.0f && x.array() < alpha).select(dy, 0.0f);
    g.alpha = (x.array() >= alpha).select(dy, 0.0f).template cast<double>().sum();
    return g;
}

/// dy where |x| <= limit, else 0: the straight-through gradient of signs and of ternary weights (Courbariaux et al. 2016,
/// arXiv:1602.02830), whose forward pass is dequantize(quantize<binary>(...)).
[[nodiscard]] inline Eigen::MatrixXf clipped_gradient(const training_matrix& x, const training_matrix& dy, float limit = 1.0f) {
    if (dy.rows() != x.rows() || dy.cols() != x.cols())
        detail::fail(errc::shape_mismatch, "clipped_gradient: X is " + detail::shape_text(x.rows(), x.cols()) + ", the gradient of the output is " +
                                               detail::shape_text(dy.rows(), dy.cols()));
    return (x.array().abs() <= limit).select(dy, 0.0f);
}

struct fake_quantize_options {
    straight_through rule = straight_through::rounded;
    bool learn_scale = true;
    bool learn_offset = false;
    /// Gradients of scales times lsq_gradient_factor, so that they move as fast as weights.
    bool lsq_factor = true;
};

/// A grid that learns, for one matrix or one place of activations.
class fake_quantize {
public:
    explicit fake_quantize(quantization_grid grid, const fake_quantize_options& options = {}) : grid_(std::move(grid)), options_(options) { forget(); }

    /// x on the grid; x is kept for backward(). Throws what fake_quantized throws.
    [[nodiscard]] Eigen::MatrixXf forward(const training_matrix& x) {
        x_ = x;
        return fake_quantized(x_, grid_);
    }
    /// The gradient by the last x of forward(); those by scales and offsets are added to what there is.
    [[nodiscard]] Eigen::MatrixXf backward(const training_matrix& dy) {
        fake_quantize_gradients g = fake_quantized_gradient(x_, grid_, dy, options_.rule);
        const index elements = x_.size() / std::max<index>(1, grid_.scale.size());
        for (index i = 0; i < grid_.scale.size(); ++i) {
            const int zero = grid_.kind == offset_kind::minimum ? 0 : static_cast<int>(detail::used_offset(grid_, grid_.offset.data()[i]));
            const double factor = options_.lsq_factor ? lsq_gradient_factor(elements, grid_.last_code() - zero) : 1.0;
            scale_gradient_.data()[i] += static_cast<float>(factor * static_cast<double>(g.scale.data()[i]));
        }
        offset_gradient_ += g.offset;
        return std::move(g.x);
    }
    /// Descends by the gradients since the last step and forgets them. A scale at most halves.
    void step(float rate) {
        const detail::fp_environment environment;
        for (index i = 0; i < grid_.scale.size(); ++i) {
            if (options_.learn_scale) grid_.scale.data()[i] = detail::stepped(grid_.scale.data()[i], rate, scale_gradient_.data()[i], true);
            if (options_.learn_offset) grid_.offset.data()[i] = detail::stepped(grid_.offset.data()[i], rate, offset_gradient_.data()[i], false);
        }
        forget();
    }

    /// For optimizers of your own.
    [[nodiscard]] quantization_grid& grid() noexcept { return grid_; }
    [[nodiscard]] const quantization_grid& grid() const noexcept { return grid_; }
    [[nodiscard]] const Eigen::MatrixXf& scale_gradient() const noexcept { return scale_gradient_; }
    [[nodiscard]] const Eigen::MatrixXf& offset_gradient() const noexcept { return offset_gradient_; }

private:
    void forget() {
        scale_gradient_.setZero(grid_.scale.rows(), grid_.scale.cols());
        offset_gradient_.setZero(grid_.scale.rows(), grid_.scale.cols());
    }

    quantization_grid grid_;
    fake_quantize_options options_;
    Eigen::MatrixXf x_, scale_gradient_, offset_gradient_;
};

}  // namespace nibble
