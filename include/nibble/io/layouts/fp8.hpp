// FP8 checkpoints: one scale for the tensor, one a row, or one a tile (DeepSeek-V3, Qwen: 128 x 128).
//
//   tensor              dtype, shape                                      content
//   weight              F8_E4M3, F8_E5M2 (or FNUZ) [N, K]
//   weight_scale        F32, F16, BF16: [] or [1], [N] or [N, 1], or [ceil(N / rows), ceil(K / cols)]
//   weight_scale_inv    the same under the name that block checkpoints give it: it is multiplied, too
//   input_scale, k_scale, v_scale: of activations; not read
//
//   w[n, k] = weight[n, k] * scale of its tensor, row or tile;  tiles at the edges are smaller
//
// Sources: DeepSeek-V3 inference/kernel.py; vLLM fp8, ModelOpt and AutoFP8 write the others.
#pragma once

#include "codes.hpp"
#include "linear.hpp"

namespace nibble::inline NIBBLE_ABI::io::layouts::fp8 {

/// The layer in these tensors, exactly. `tile`: rows and columns that share a scale, 0 x 0 for one of all, 1 x 0 for one
/// a row; without one, the shape of the scales says which of these two it is. bias may be null.
[[nodiscard]] NIBBLE_IO_API result<linear> unpack(const tensor& weight, const tensor& scales, const tensor* bias,
                                                  std::optional<granularity> tile = {}, executor* threads = nullptr);
/// The tensors of a layer: name.weight, and name.weight_scale_inv for tiles ([R, C]), else name.weight_scale ([] or
/// [N, 1]). Takes fp8 codes with f32, f16 or bf16 scales. Scales are written as F32, which is what loaders expect.
[[nodiscard]] NIBBLE_IO_API result<std::vector<tensor_data>> pack(const std::string& name, const qmatrix& m);
/// The quantization_config that goes with pack(): JSON.
[[nodiscard]] NIBBLE_IO_API std::string config_of(const qmatrix& m);

#if NIBBLE_DEFINE_IO

namespace detail {

using namespace layouts::detail;

/// The format of the bytes of an 8-bit floating-point dtype, or null.
[[nodiscard]] constexpr const code_format* format_of(dtype t) noexcept {
    switch (t) {
        case dtype::f8_e4m3: return &fp8_e4m3::format;
        case dtype::f8_e5m2: return &fp8_e5m2::format;
        case dtype::f8_e4m3fnuz: return &fp8_e4m3fnuz::format;
        case dtype::f8_e5m2fnuz: return &fp8_e5m2fnuz::format;
        default: return nullptr;
    }
}

/// Scales for tiles: [R, C], [R] where C is 1, [] or [1] where both are. `scales` is checked; the tile of 0 x 0 is all.
inline void check_tiles(checks& check, const tensor& scales, index rows, index cols, granularity tile) {
    const index r = tile.rows == 0 ? 1 : ceil_div(rows, tile.rows);
    const index c = tile.cols == 0 ? 1 : ceil_div(cols, tile.cols);
    const bool one = r == 1 && c == 1;
    if (one && scales.shape.empty())
        check.shape(scales, {});
    else if (c == 1 && scales.shape.size() == 1)
        check.shape(scales, {r});
    else
        check.shape(scales, {r, c});
}

/// Bytes [N, K] with scales of tiles, any code format of 8 bits; `flip` is what turns a byte into a code. Checked before.
[[nodiscard]] inline qmatrix make_tiled(const tensor& weight, const code_format& format, unsigned flip,
                                        const tensor& scales, const scale_scheme& scheme, index rows, index cols,
                                        granularity tile, executor* threads) {
    const bool words_fit = by_words(8, cols, tile.cols);
    qmatrix_builder out(rows, cols, format, scheme, offset_kind::none, tile, {}, initial(words_fit));
    const index columns = tile.cols == 0 ? 1 : ceil_div(cols, tile.cols);
    const auto stored = [&](index i) { return scheme.bits == 8 ? at<std::uint8_t>(scales, i) : bits_at(scales, i); };
    set_groups(out, threads, [&](index n, index g) { return stored((tile.rows == 0 ? 0 : n / tile.rows) * columns + g); });
    const auto word = [&](index n, index i) { return word_at(weight.bytes.data() + n * cols, i) ^ flip * 0x01010101u; };
    if (words_fit)
        set_words<true>(out, threads, word);
    else
        set_rows(out, threads, {}, [&](index first, index count, std::uint8_t* codes) {
            for (index i = 0; i < count * cols; ++i)
                codes[i] = static_cast<std::uint8_t>(at<std::uint8_t>(weight, first * cols + i) ^ flip);
        });
    return std::move(out).finish();
}

}  // namespace detail

NIBBLE_IO_API result<linear> unpack(const tensor& weight, const tensor& scales, const tensor* bias,
                                    std::optional<granularity> tile, executor* threads) {
    detail::checks check("fp8");
    check.type(weight, {dtype::f8_e4m3, dtype::f8_e5m2, dtype::f8_e4m3fnuz, dtype::f8_e5m2fnuz});
    check.type(scales, detail::float_types);
    check.rank(weight, 2);
    const index rows = check.dim(weight, 0);
    const index cols = check.dim(weight, 1);
    check.shape(weight, {rows, cols});
    if (tile.has_value() && (tile->rows < 0 || tile->cols < 0 || tile->rows > 0x7fffffff || tile->cols > 0x7fffffff))
        check.fail(errc::malformed, "a tile of " + nibble::detail::shape_text(tile->rows, tile->cols));
    if (!check) return std::move(check).failure();
    if (!tile.has_value()) tile = scales.elements() == 1 ? granularity{0, 0} : granularity{1, 0};
    detail::check_tiles(check, scales, rows, cols, *tile);
    check.finite(scales);
    const code_format& format = *detail::format_of(weight.type);
    check.finite_codes(weight, format);
    detail::check_bias(check, bias, rows);
    if (!check) return std::move(check).failure();
    linear layer;
    layer.weight = detail::make_tiled(weight, format, 0, scales, detail::scheme_of(scales.type), rows, cols, *tile, threads);
    detail::read_bias(bias, 0, rows, layer.bias);
    return layer;
}

NIBBLE_IO_API result<std::vector<tensor_data>> pack(const std::string& name, const qmatrix& m) {
    dtype type = dtype::u8;
    for (const dtype t : {dtype::f8_e4m3, dtype::f8_e5m2, dtype::f8_e4m3fnuz, dtype::f8_e5m2fnuz})
        if (detail::format_of(t) == &m.format()) type = t;
    if (type == dtype::u8 || !detail::is_direct(m.scheme().storage) || !detail::whole_tiles(m))
        return detail::misfit("fp8", m, "fp8 codes with f32, f16 or bf16 scales");
    const granularity tile = m.grouping();
    const bool tensor_wide = tile.rows >= m.rows() && m.groups() <= 1;
    const bool row_wide = !tensor_wide && tile.rows == 1 && m.groups() <= 1;
    const index tiles = detail::ceil_div(m.rows(), tile.rows);
    std::vector<tensor_data> out;
    out.push_back(detail::make_tensor(name + ".weight", type, {m.rows(), m.cols()}));
    if (tensor_wide)
        out.push_back(detail::make_tensor(name + ".weight_scale", dtype::f32, {}));
    else
        out.push_back(detail::make_tensor(name + (row_wide ? ".weight_scale" : ".weight_scale_inv"), dtype::f32,
                                          {tiles, row_wide ? 1 : m.groups()}));
    for (index n = 0; n < m.rows(); ++n)
        for (index k = 0; k < m.cols(); ++k)
            detail::put(out[0], n * m.cols() + k, static_cast<std::uint8_t>(m.code(n, k)));
    for (index t = 0; t < tiles; ++t)
        for (index g = 0; g < m.groups(); ++g) detail::put(out[1], t * m.groups() + g, m.scale(t * tile.rows, g));
    return out;
}

NIBBLE_IO_API std::string config_of(const qmatrix& m) {
    nlohmann::json j = {{"quant_method", "fp8"}, {"activation_scheme", "dynamic"}};
    j["fmt"] = m.format().mantissa_bits == 3 ? "e4m3" : "e5m2";
    const granularity tile = m.grouping();
    if (!(m.groups() <= 1 && (tile.rows == 1 || tile.rows >= m.rows())))
        j["weight_block_size"] = {tile.rows, tile.cols};
    return j.dump();
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io::layouts::fp8
