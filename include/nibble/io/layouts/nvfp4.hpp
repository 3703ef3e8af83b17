// NVFP4: E2M1 in blocks of 16 along K, an E4M3 scale for each and one float for the tensor.
//
//   ModelOpt             weight U8 [N, K / 2], weight_scale F8_E4M3 [N, K / 16], weight_scale_2 F32 [] or [1]
//                        w = e2m1 * f32(weight_scale * weight_scale_2)
//   compressed-tensors   weight_packed, weight_scale, weight_global_scale F32 [1]
//                        w = e2m1 * f32(weight_scale / weight_global_scale)
//   Both: low nibble first; input_scale, input_global_scale belong to activations and are not read.
//
// The first is the library's own scheme e4m3_f32. The second divides. Where a float exists by which the scales of the
// matrix can be multiplied with the same results, it takes the place of the divisor: the same weights in the same
// space. Where there is none, the quotients are stored, as f32 scales: 6 bits a weight for 4.5, and still exact.
//
// Sources: TensorRT Model Optimizer; compressed-tensors 0.20.
#pragma once

#include "codes.hpp"
#include "linear.hpp"

namespace nibble::inline NIBBLE_ABI::io::layouts::nvfp4 {

/// The layer in these tensors, exactly. `divide`: the global scale is a divisor (compressed-tensors). bias may be null.
[[nodiscard]] NIBBLE_IO_API result<linear> unpack(const tensor& weight, const tensor& scales, const tensor& global,
                                                  const tensor* bias, bool divide, executor* threads = nullptr);
enum class flavor { modelopt, compressed_tensors };
/// The tensors of a layer. Takes e2m1 codes with e4m3_f32 scales in groups of 16, K a multiple of 16.
/// modelopt: exact. compressed_tensors: its divisor is the float near 1 / scale that gives every group the same scale; if
/// there is none, the nearest, and scales differ by at most 2 units in the last place of a float (bfloat16, which these
/// checkpoints decode to, has 2^16 of them in one of its own). `exact`, if given, says which it was.
[[nodiscard]] NIBBLE_IO_API result<std::vector<tensor_data>> pack(const std::string& name, const qmatrix& m, flavor kind,
                                                                  bool* exact = nullptr);
/// The quantization_config that goes with pack(): JSON.
[[nodiscard]] NIBBLE_IO_API std::string config_of(flavor kind);

#if NIBBLE_DEFINE_IO

namespace detail {

using namespace layouts::detail;

NIBBLE_FP_BEGIN

[[nodiscard]] NIBBLE_NOINLINE inline float quotient(float a, float b) noexcept { return a / b; }
[[nodiscard]] NIBBLE_NOINLINE inline float product(float a, float b) noexcept { return a * b; }

NIBBLE_FP_END

/// Which of the 256 scale bytes occur.
using byte_set = std::array<bool, 256>;

/// A factor t with f32(s * t) == f32(s / divisor) for all scales s that occur, if there is one near 1 / divisor.
/// With `inverse`, a divisor for a factor.
[[nodiscard]] inline std::optional<float> replacement(const byte_set& used, float given, bool inverse) noexcept {
    const float middle = quotient(1.0f, given);
    const std::uint32_t bits = nibble::detail::bits_of(middle);
    for (const std::uint32_t step : {0u, 1u, ~0u, 2u, ~1u}) {
        const float t = nibble::detail::float_of(bits + step);
        if (!nibble::detail::is_finite_bits(bits + step) || (nibble::detail::bits_of(t) & 0x7fffffffu) == 0) continue;
        bool same = true;
        for (unsigned u = 0; u < 256 && same; ++u) {
            if (!used[u]) continue;
            const float s = fp8_e4m3::decode(u);
            const float divided = quotient(s, inverse ? t : given);
            const float multiplied = product(s, inverse ? given : t);
            same = nibble::detail::bits_of(divided) == nibble::detail::bits_of(multiplied);
        }
        if (same) return t;
    }
    return std::nullopt;
}

}  // namespace detail

NIBBLE_IO_API result<linear> unpack(const tensor& weight, const tensor& scales, const tensor& global,
                                    const tensor* bias, bool divide, executor* threads) {
    detail::checks check("nvfp4");
    check.type(weight, {dtype::u8});
    check.type(scales, {dtype::f8_e4m3});
    check.type(global, {dtype::f32});
    check.rank(weight, 2);
    check.rank(scales, 2);
    const index rows = check.dim(weight, 0);
    const index groups = check.dim(scales, 1);
    const index cols = groups * 16;
    check.shape(weight, {rows, cols / 2});
    check.shape(scales, {rows, groups});
    if (global.shape.empty())
        check.shape(global, {});
    else
        check.shape(global, {1});
    check.finite(global);
    check.finite_codes(scales, fp8_e4m3::format);
    detail::check_bias(check, bias, rows);
    if (check && divide && (detail::bits_at(global, 0) & 0x7fffffffu) == 0)
        check.fail_at(global, 0, "is 0, and a divisor");
    if (!check) return std::move(check).failure();

    const nibble::detail::fp_environment environment;
    const float given = detail::float_at(global, 0);
    detail::byte_set used{};
    for (const std::byte b : scales.bytes) used[std::to_integer<unsigned>(b)] = true;
    const std::optional<float> factor = divide ? detail::replacement(used, given, false) : given;
    qmatrix_builder out(rows, cols, fp4_e2m1::format, factor.has_value() ? scales::e4m3_f32 : scales::f32,
                        offset_kind::none, per_group{16}, factor.has_value() ? "nvfp4" : "", detail::initial(true));
    if (factor.has_value()) out.set_tensor_scale(*factor);
    std::uint32_t scale[256];
    for (unsigned u = 0; u < 256; ++u)
        scale[u] = nibble::detail::bits_of(divide ? detail::quotient(fp8_e4m3::decode(u), given)
                                                  : detail::product(fp8_e4m3::decode(u), given));
    for (index n = 0; n < rows; ++n)
        for (index g = 0; g < groups; ++g) {
            const auto u = detail::at<std::uint8_t>(scales, n * groups + g);
            if (!nibble::detail::is_finite_bits(scale[u]))
                return check.fail_at(scales, n * groups + g, "makes a scale of Inf with the global one"),
                       std::move(check).failure();
            out.set_scale(n, g, factor.has_value() ? u : scale[u]);
        }
    detail::set_words<true>(out, threads, [&](index n, index i) { return detail::word_at(weight.bytes.data() + n * cols / 2, i); });
    linear layer;
    layer.weight = std::move(out).finish();
    detail::read_bias(bias, 0, rows, layer.bias);
    return layer;
}

NIBBLE_IO_API result<std::vector<tensor_data>> pack(const std::string& name, const qmatrix& m, flavor kind,
                                                    bool* exact) {
    const bool takes = &m.format() == &fp4_e2m1::format && m.scheme().storage == scale_storage::e4m3_f32 &&
                       detail::by_row(m) && m.cols() % 16 == 0 && (m.group_size() == 16 || m.cols() == 0);
    if (!takes)
        return detail::misfit("nvfp4", m, "fp4_e2m1 codes, e4m3_f32 scales, groups of 16 that divide the columns");
    const bool divide = kind == flavor::compressed_tensors;
    const index rows = m.rows(), cols = m.cols(), groups = m.groups();
    std::vector<tensor_data> out;
    out.push_back(detail::make_tensor(name + (divide ? ".weight_packed" : ".weight"), dtype::u8, {rows, cols / 2}));
    out.push_back(detail::make_tensor(name + ".weight_scale", dtype::f8_e4m3, {rows, groups}));
    if (divide)
        out.push_back(detail::make_tensor(name + ".weight_global_scale", dtype::f32, {1}));
    else
        out.push_back(detail::make_tensor(name + ".weight_scale_2", dtype::f32, {}));
    detail::byte_set used{};
    for (index n = 0; n < rows; ++n) {
        for (index k = 0; k < cols; ++k)
            out[0].bytes[static_cast<std::size_t>((n * cols + k) / 2)] |=
                static_cast<std::byte>(m.code(n, k) << (4 * (k % 2)));
        for (index g = 0; g < groups; ++g) {
            const auto u = static_cast<std::uint8_t>(m.stored_scale(n, g));
            used[u] = true;
            detail::put(out[1], n * groups + g, u);
        }
    }
    float global = m.tensor_scale();
    bool same = true;
    if (divide) {
        const nibble::detail::fp_environment environment;
        const std::optional<float> divisor = detail::replacement(used, global, true);
        same = divisor.has_value();
        global = same ? *divisor : detail::quotient(1.0f, global);
        if (!nibble::detail::is_finite_bits(nibble::detail::bits_of(global)) ||
            (nibble::detail::bits_of(global) & 0x7fffffffu) == 0)
            return failure{errc::out_of_range,
                           "nvfp4: the tensor scale has no finite inverse; the ModelOpt layout takes it", 0};
    }
    detail::put(out[2], 0, global);
    if (exact != nullptr) *exact = same;
    return out;
}

NIBBLE_IO_API std::string config_of(flavor kind) {
    if (kind == flavor::modelopt)
        return R"({"quant_method":"modelopt","quant_algo":"NVFP4","group_size":16,"exclude_modules":[]})";
    return R"({"quant_method":"compressed-tensors","format":"nvfp4-pack-quantized","quantization_status":"compressed","ignore":[],)"
           R"("config_groups":{"group_0":{"targets":["Linear"],"input_activations":null,"output_activations":null,)"
           R"("weights":{"num_bits":4,"type":"float","strategy":"tensor_group","group_size":16,"symmetric":true,"dynamic":false,)"
           R"("scale_dtype":"torch.float8_e4m3fn"}}}})";
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io::layouts::nvfp4
