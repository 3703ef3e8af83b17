// compressed-tensors (vLLM, llm-compressor): integers and FP8. (nvfp4-pack-quantized is in nvfp4.hpp, mxfp4-, mxfp6- and
// mxfp8- in mxfp4.hpp.)
//
//   pack-quantized    weight_packed I32 [N, ceil(K b / 32)]      a row is a stream of b-bit codes, b = 1 .. 8, the signed
//                                                                value plus 2^(b - 1), least significant first
//                     weight_shape I64 (I32) [2]                 N, K
//                     weight_zero_point I32 [ceil(R b / 32), C]  packed along N; may be missing
//                     weight_g_idx I32 [K]                       act-order, in older files; may be missing
//   int-quantized     weight I8 [N, K], weight_zero_point I8 like the scales, may be missing
//   float-quantized   weight F8_E4M3 [N, K]
//   and               weight_scale F32, F16, BF16 [R, C]: [1] for the tensor, [N, 1] for rows, [N, K / g] for groups,
//                     [ceil(N / rows), ceil(K / cols)] for tiles
//
//   w = weight_scale * (q - z)
//
// 3, 5, 6 and 7 bits: fields straddle words; the way of older files, 32 / b fields a word, is refused. Codes of 1
// and 7 bits are kept as 2 and 8 bits. Zero points that are all 0 become codes without a zero point: the same weights.
//
// Source: compressed-tensors 0.20, compressors/.
#pragma once

#include "codes.hpp"
#include "fp8.hpp"
#include "linear.hpp"

namespace nibble::inline NIBBLE_ABI::io::layouts::compressed_tensors {

/// What the config says of the weights of a layer.
struct config {
    int bits = 4;
    granularity tile = {1, 128};  ///< 0 x 0: tensor, 1 x 0: channel, 1 x g: group, r x c: block
    bool symmetric = true;        ///< false: there must be zero points
};

/// The tensors of an integer layer. packed: with weight_shape.
struct integer_tensors {
    const tensor* weight = nullptr;
    const tensor* scale = nullptr;
    const tensor* shape = nullptr;       ///< pack-quantized only
    const tensor* zero_point = nullptr;  ///< may be null
    const tensor* g_idx = nullptr;       ///< may be null
    const tensor* bias = nullptr;        ///< may be null
};

/// A layer of pack-quantized (weight I32) or int-quantized (weight I8), exactly.
[[nodiscard]] NIBBLE_IO_API result<linear> unpack_integers(const integer_tensors& t, const config& c, executor* threads = nullptr);
/// The tensors of a layer of pack-quantized or float-quantized. Takes int2, int3, int4, int5, int6 or int8 with f32, f16
/// or bf16 scales, symmetric or with zero points, in groups of one row that divide the columns; or fp8_e4m3 with such
/// scales for the tensor, rows, groups or tiles.
[[nodiscard]] NIBBLE_IO_API result<std::vector<tensor_data>> pack(const std::string& name, const qmatrix& m);
/// The quantization_config that goes with pack(): JSON.
[[nodiscard]] NIBBLE_IO_API std::string config_of(const qmatrix& m);

#if NIBBLE_DEFINE_IO

namespace detail {

using namespace layouts::detail;

/// The two numbers of a weight_shape tensor, if they are what they should be.
[[nodiscard]] inline std::pair<index, index> read_shape(const tensor& t, checks& check) {
    check.type(t, {dtype::i64, dtype::i32});
    check.shape(t, {2});
    if (!check) return {0, 0};
    index d[2];
    for (int i = 0; i < 2; ++i) {
        d[i] = t.type == dtype::i64 ? index{at<std::int64_t>(t, i)} : index{at<std::int32_t>(t, i)};
        if (d[i] < 0 || d[i] > 0x7fffffff)
            check.fail_at(t, i, "is " + std::to_string(d[i]) + "; expected 0 to 2^31 - 1");
    }
    return check ? std::pair<index, index>{d[0], d[1]} : std::pair<index, index>{0, 0};
}

}  // namespace detail

NIBBLE_IO_API result<linear> unpack_integers(const integer_tensors& t, const config& c, executor* threads) {
    detail::checks check("compressed-tensors");
    if (t.weight == nullptr || t.scale == nullptr)
        return failure{errc::not_found, "compressed-tensors: a layer has a weight and a scale", 0};
    const bool packed = t.weight->type == dtype::i32;
    check.type(*t.weight, {dtype::i32, dtype::i8});
    check.type(*t.scale, detail::float_types);
    check.rank(*t.weight, 2);
    if (packed && t.shape == nullptr) check.fail(errc::not_found, *t.weight, "there is no weight_shape");
    if (c.bits < 1 || c.bits > 8)
        check.fail(errc::unsupported, "codes of " + std::to_string(c.bits) + " bits; there are 1 to 8");
    if (!c.symmetric && t.zero_point == nullptr)
        check.fail(errc::not_found, *t.weight, "the config is not symmetric, but there is no weight_zero_point");
    const granularity tile = c.tile;
    if (tile.rows < 0 || tile.cols < 0 || tile.rows > 0x7fffffff || tile.cols > 0x7fffffff)
        check.fail(errc::malformed, "a tile of " + nibble::detail::shape_text(tile.rows, tile.cols));
    index rows = check.dim(*t.weight, 0), cols = check.dim(*t.weight, 1);
    if (packed && check) std::tie(rows, cols) = detail::read_shape(*t.shape, check);
    check.matrix(rows, cols);
    if (!check) return std::move(check).failure();
    const int bits = packed ? c.bits : 8;
    check.shape(*t.weight, {rows, packed ? detail::ceil_div(cols * bits, 32) : cols});
    const index scale_rows = tile.rows == 0 ? 1 : detail::ceil_div(rows, tile.rows);
    const index scale_cols = tile.cols == 0 ? 1 : detail::ceil_div(cols, tile.cols);
    fp8::detail::check_tiles(check, *t.scale, rows, cols, tile);
    check.finite(*t.scale);
    if (t.zero_point != nullptr) {
        check.type(*t.zero_point, {packed ? dtype::i32 : dtype::i8, dtype::i8});
        if (check && t.zero_point->type == dtype::i32)
            check.shape(*t.zero_point, {detail::ceil_div(scale_rows * bits, 32), scale_cols});
        else
            fp8::detail::check_tiles(check, *t.zero_point, rows, cols, tile);
    }
    if (t.g_idx != nullptr) {
        check.type(*t.g_idx, {dtype::i32});
        check.shape(*t.g_idx, {cols});
    }
    detail::check_bias(check, t.bias, rows);
    if (!check) return std::move(check).failure();
    detail::column_runs runs = t.g_idx != nullptr ? detail::indexed_runs(*t.g_idx, cols, scale_cols, check)
                                                  : detail::plain_runs(cols, tile.cols == 0 ? cols : tile.cols);
    if (!check) return std::move(check).failure();

    const detail::integer_codes codes = detail::codes_of(bits);
    const unsigned middle = 1u << (bits - 1);
    const auto zero = [&](index r, index g) -> unsigned {  // as a code of the format
        if (t.zero_point == nullptr) return codes.format->zero_code;
        if (t.zero_point->type == dtype::i32)
            return codes.shift + detail::get_field(t.zero_point->bytes.data() + 4 * g, scale_cols, bits, r);
        return codes.shift +
               ((detail::at<std::uint8_t>(*t.zero_point, r * scale_cols + g) + middle) & (2 * middle - 1));
    };
    bool symmetric = true;
    for (index r = 0; r < scale_rows && symmetric; ++r)
        for (index g = 0; g < scale_cols && symmetric; ++g) symmetric = zero(r, g) == codes.format->zero_code;
    const bool words_fit = runs.permutation.empty() && detail::by_words(bits, cols, runs.size);
    qmatrix_builder out(rows, cols, *codes.format, detail::scheme_of(t.scale->type),
                        symmetric ? offset_kind::none : offset_kind::zero_point, {tile.rows, runs.size}, {},
                        detail::initial(words_fit));
    const auto tile_row = [&](index n) { return tile.rows == 0 ? 0 : n / tile.rows; };
    const auto group = [&](index j) { return runs.group[static_cast<std::size_t>(j)]; };
    detail::set_groups(
        out, threads, [&](index n, index j) { return detail::bits_at(*t.scale, tile_row(n) * scale_cols + group(j)); },
        [&](index n, index j) { return zero(tile_row(n), group(j)); });
    const index words = detail::ceil_div(cols * bits, 32);
    const auto word = [&](index n, index i) {
        return detail::word_at(t.weight->bytes.data() + n * (packed ? 4 * words : cols), i) ^
               (packed ? 0u : 0x80808080u);
    };
    if (words_fit)
        detail::set_words<true>(out, threads, word);
    else
        detail::set_rows(out, threads, runs.permutation, [&](index first, index count, std::uint8_t* to) {
            for (index r = 0; r < count; ++r)
                for (index k = 0; k < cols; ++k)
                    to[r * cols + k] = static_cast<std::uint8_t>(
                        packed ? codes.shift +
                                     detail::get_field(t.weight->bytes.data() + 4 * (first + r) * words, 1, bits, k)
                               : detail::at<std::uint8_t>(*t.weight, (first + r) * cols + k) ^ 0x80u);
        });
    linear layer;
    layer.weight = std::move(out).finish();
    layer.permutation = std::move(runs.permutation);
    detail::read_bias(t.bias, 0, rows, layer.bias);
    return layer;
}

NIBBLE_IO_API result<std::vector<tensor_data>> pack(const std::string& name, const qmatrix& m) {
    const code_format& f = m.format();
    const index rows = m.rows(), cols = m.cols(), groups = m.groups();
    const bool floats = &f == &fp8_e4m3::format;
    const bool integers = f.decode == decode_class::integer && detail::codes_of(f.bits).format == &f &&
                          detail::by_row(m) && (cols == 0 || cols % m.group_size() == 0) &&
                          (m.offset_type() == offset_kind::none || m.offset_type() == offset_kind::zero_point);
    if (!(floats || integers) || !detail::is_direct(m.scheme().storage) || !detail::whole_tiles(m))
        return detail::misfit("compressed-tensors", m,
                              "int2 to int8 codes in groups of one row that divide the columns, with no offset or zero "
                              "points, or fp8_e4m3 "
                              "codes, both with f32, f16 or bf16 scales");
    const index tile_rows = m.grouping().rows;
    const index tiles = detail::ceil_div(rows, tile_rows);
    const dtype scale = detail::dtype_of(m.scheme().storage);
    std::vector<tensor_data> out;
    if (floats) {
        out.push_back(detail::make_tensor(name + ".weight", dtype::f8_e4m3, {rows, cols}));
        for (index n = 0; n < rows; ++n)
            for (index k = 0; k < cols; ++k) detail::put(out[0], n * cols + k, static_cast<std::uint8_t>(m.code(n, k)));
    } else {
        const index words = detail::ceil_div(cols * f.bits, 32);
        out.push_back(detail::make_tensor(name + ".weight_packed", dtype::i32, {rows, words}));
        for (index n = 0; n < rows; ++n)
            for (index k = 0; k < cols; ++k)
                detail::put_field(out[0].bytes.data() + 4 * n * words, 1, f.bits, k, m.code(n, k));
    }
    const index scale_cols = (std::max)(groups, index{1});
    if (floats && tiles == 1 && scale_cols == 1)
        out.push_back(detail::make_tensor(name + ".weight_scale", scale, {1}));
    else
        out.push_back(detail::make_tensor(name + ".weight_scale", scale, {tiles, scale_cols}));
    for (index t = 0; t < tiles; ++t)
        for (index g = 0; g < groups; ++g)
            detail::put_bits(out[1], t * scale_cols + g, m.stored_scale(t * tile_rows, g));
    if (floats) return out;
    out.push_back(detail::make_tensor(name + ".weight_shape", dtype::i64, {2}));
    detail::put(out[2], 0, static_cast<std::int64_t>(rows));
    detail::put(out[2], 1, static_cast<std::int64_t>(cols));
    if (m.offset_type() == offset_kind::none) return out;
    out.push_back(detail::make_tensor(name + ".weight_zero_point", dtype::i32,
                                      {detail::ceil_div(rows * f.bits, 32), scale_cols}));
    for (index n = 0; n < rows; ++n)
        for (index g = 0; g < groups; ++g)
            detail::put_field(out[3].bytes.data() + 4 * g, scale_cols, f.bits, n, m.stored_offset(n, g));
    return out;
}

NIBBLE_IO_API std::string config_of(const qmatrix& m) {
    const bool floats = m.format().decode != decode_class::integer;
    const granularity tile = m.grouping();
    const bool one_group = m.groups() <= 1;
    const char* strategy = floats && one_group && tile.rows >= m.rows() ? "tensor"
                           : one_group && tile.rows == 1                ? "channel"
                           : tile.rows == 1                             ? "group"
                                                                        : "block";
    nlohmann::json weights = {{"num_bits", m.format().bits},
                              {"type", floats ? "float" : "int"},
                              {"strategy", strategy},
                              {"dynamic", false},
                              {"symmetric", m.offset_type() == offset_kind::none},
                              {"group_size", nullptr}};
    if (std::string_view(strategy) == "group") weights["group_size"] = m.group_size();
    if (std::string_view(strategy) == "block") weights["block_structure"] = {tile.rows, tile.cols};
    const char* format = floats ? "float-quantized" : "pack-quantized";
    const nlohmann::json group = {{"targets", {"Linear"}},
                                  {"weights", weights},
                                  {"input_activations", nullptr},
                                  {"output_activations", nullptr},
                                  {"format", format}};
    const nlohmann::json j = {{"quant_method", "compressed-tensors"},
                              {"format", format},
                              {"quantization_status", "compressed"},
                              {"ignore", nlohmann::json::array()},
                              {"config_groups", {{"group_0", group}}}};
    return j.dump();
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io::layouts::compressed_tensors
