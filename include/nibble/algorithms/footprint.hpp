// How much memory a model takes in a format, before there is one: weights with their scales, and the cache of keys and values.
//
//     const nibble::model_shape llama{.weights = ..., .layers = 32, .kv_heads = 8, .head_channels = 128};
//     nibble::footprint f = nibble::model_footprint(llama, "nf4", {.tokens = 8192});
//     bool fits = f.total() <= nibble::budget_bytes(24, 8);
//
// Bytes are those of the formats themselves, as files have them: qmatrix::bytes() of the same shapes.
#pragma once

#include <span>

#include "../quantize.hpp"

namespace nibble::inline NIBBLE_ABI {

/// Matrices of one shape.
struct weight_shape {
    index rows = 0, cols = 0;
    index count = 1;
    bool quantized = true;  ///< false: stays 16 bits (embeddings, norms, biases)
};

struct model_shape {
    std::vector<weight_shape> weights;
    index layers = 0;         ///< with attention
    index kv_heads = 0;       ///< of keys and values, per layer
    index head_channels = 0;
};

/// What the cache holds, in 16 bits unless a recipe is named.
struct cache_shape {
    index tokens = 0;
    index sequences = 1;
    std::string format{};   ///< of keys and values, groups along the channels of a token or along tokens of a channel
    index residual = 0;     ///< recent tokens of each sequence that stay in 16 bits
};

/// In bytes.
struct footprint {
    std::uint64_t codes = 0;   ///< of quantized weights
    std::uint64_t scales = 0;  ///< with offsets and second-level scales
    std::uint64_t plain = 0;   ///< weights that stay in 16 bits
    std::uint64_t cache = 0;

    [[nodiscard]] std::uint64_t total() const noexcept { return codes + scales + plain + cache; }
};

/// Bytes of `total` GB that are left after `reserved` GB, both of 10^9 bytes; pass `unit` = 2^30 for GiB.
[[nodiscard]] constexpr std::uint64_t budget_bytes(double total, double reserved, double unit = 1e9) noexcept {
    return total <= reserved ? 0 : static_cast<std::uint64_t>((total - reserved) * unit);
}

namespace detail {

struct format_bytes {
    std::uint64_t codes, scales;
};
/// What qmatrix::bytes() of rows x cols weights would be, without making one.
[[nodiscard]] inline format_bytes matrix_bytes(index rows, index cols, const quantize_plan& plan) {
    if (rows == 0 || cols == 0) return {0, 0};
    const layout l = make_layout(rows, cols, plan.format->bits, plan.scale, plan.rule.offset, plan.group);
    const double codes = static_cast<double>(rows) * static_cast<double>(cols) * l.bits;
    const auto whole = [](double bits) { return static_cast<std::uint64_t>((bits + 7.0) / 8.0); };
    return {whole(codes), whole(codes + scale_bits(l, plan.scale, plan.rule.offset)) - whole(codes)};
}

}  // namespace detail

/// The memory of a model in a recipe or a code format ("fp16", "int8_per_channel", "q4_k", "nf4", ...), with a cache.
/// Throws errc::not_found for a name that is neither, errc::invalid_argument for a shape below 0.
[[nodiscard]] inline footprint model_footprint(const model_shape& model, std::string_view format, const cache_shape& cache = {}) {
    const quantize_plan plan = detail::plan_of_name(format);
    footprint f;
    for (const weight_shape& w : model.weights) {
        if (w.rows < 0 || w.cols < 0 || w.count < 0)
            detail::fail(errc::invalid_argument, "model_footprint: " + std::to_string(w.count) + " matrices of " + detail::shape_text(w.rows, w.cols));
        const auto count = static_cast<std::uint64_t>(w.count);
        if (!w.quantized) {
            f.plain += count * 2 * static_cast<std::uint64_t>(w.rows) * static_cast<std::uint64_t>(w.cols);
            continue;
        }
        const detail::format_bytes bytes = detail::matrix_bytes(w.rows, w.cols, plan);
        f.codes += count * bytes.codes;
        f.scales += count * bytes.scales;
    }
    if (model.layers < 0 || model.kv_heads < 0 || model.head_channels < 0 || cache.tokens < 0 || cache.sequences < 0 || cache.residual < 0)
        detail::fail(errc::invalid_argument, "model_footprint: a cache of " + std::to_string(cache.sequences) + " x " + std::to_string(cache.tokens) + " tokens, " +
                                                 std::to_string(model.layers) + " x " + std::to_string(model.kv_heads) + " heads of " + std::to_string(model.head_channels));
    const auto heads = static_cast<std::uint64_t>(2 * model.layers * model.kv_heads) * static_cast<std::uint64_t>(cache.sequences);
    const index recent = cache.format.empty() ? cache.tokens : (std::min)(cache.residual, cache.tokens);
    std::uint64_t bytes = 2 * static_cast<std::uint64_t>(recent) * static_cast<std::uint64_t>(model.head_channels);
    if (recent < cache.tokens) {
        const detail::format_bytes old = detail::matrix_bytes(cache.tokens - recent, model.head_channels, detail::plan_of_name(cache.format));
        bytes += old.codes + old.scales;
    }
    f.cache = heads * bytes;
    return f;
}

}  // namespace nibble
