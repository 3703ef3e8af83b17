// MXFP4 (and MXFP6, MXFP8): blocks of 32 along K with a power of two, E8M0; code FF is refused.
//
//   gpt-oss, one tensor of E experts
//     X_blocks  U8 [E, N, K / 32, 16]   low nibble first      (original names: X.blocks, X.scales)
//     X_scales  U8 [E, N, K / 32]
//     X_bias    BF16 [E, N], may be missing
//   compressed-tensors
//     mxfp4-pack-quantized   weight_packed U8 [N, K / 2]      low nibble first
//     mxfp6-pack-quantized   weight_packed U8 [N, 3 K / 4]    4 codes of E2M3 in 3 bytes, least significant first
//     mxfp8-quantized        weight F8_E4M3 (F8_E5M2) [N, K]
//     and                    weight_scale U8 [N, K / 32]
//
//   w = e2m1[code] * 2^(scale - 127)
//
// Sources: OCP Microscaling Formats 1.0; transformers integrations/mxfp4.py; compressed-tensors 0.20.
#pragma once

#include "codes.hpp"
#include "fp8.hpp"
#include "linear.hpp"

namespace nibble::inline NIBBLE_ABI::io::layouts::mxfp4 {

/// Number of experts in a tensor of blocks.
[[nodiscard]] NIBBLE_IO_API index experts(const tensor& blocks) noexcept;
/// One expert of a gpt-oss layer, exactly. bias may be null. Throws nothing; an expert that is not there is a failure.
[[nodiscard]] NIBBLE_IO_API result<linear> unpack(const tensor& blocks, const tensor& scales, const tensor* bias,
                                                  index expert, executor* threads = nullptr);
/// A layer of compressed-tensors, exactly: U8 with 4 or 6 bits a code, or bytes of FP8. bias may be null.
[[nodiscard]] NIBBLE_IO_API result<linear> unpack_matrix(const tensor& weight, const tensor& scales, const tensor* bias,
                                                         int bits, executor* threads = nullptr);
/// The tensors name_blocks and name_scales of gpt-oss: one matrix an expert, all of one shape. Takes e2m1 codes with
/// e8m0 scales in groups of 32, K a multiple of 32.
[[nodiscard]] NIBBLE_IO_API result<std::vector<tensor_data>> pack(const std::string& name, std::span<const qmatrix> experts);
/// The quantization_config that goes with pack(): JSON.
[[nodiscard]] inline std::string config_of() { return R"({"quant_method":"mxfp4","modules_to_not_convert":[]})"; }

#if NIBBLE_DEFINE_IO

namespace detail {

using namespace layouts::detail;

/// Rows of packed codes of b = 4, 6 or 8 bits, K a multiple of 32, and their exponents.
[[nodiscard]] inline qmatrix make(const std::byte* codes, const std::byte* exponents, const code_format& format,
                                  index rows, index cols, std::string name, executor* threads) {
    qmatrix_builder out(rows, cols, format, scales::e8m0, offset_kind::none, per_group{32}, std::move(name),
                        initial(format.bits != 6));
    set_groups(out, threads, [&](index n, index g) { return std::to_integer<std::uint32_t>(exponents[n * (cols / 32) + g]); });
    if (format.bits != 6)
        set_words<true>(out, threads, [&](index n, index i) { return word_at(codes + n * (cols * format.bits / 8), i); });
    else
        set_rows(out, threads, {}, [&](index first, index count, std::uint8_t* to) {
            for (index r = 0; r < count; ++r) {
                const std::byte* row = codes + (first + r) * (cols * format.bits / 8);
                for (index k = 0; k < cols; ++k)
                    to[r * cols + k] = static_cast<std::uint8_t>(get_field(row, 1, format.bits, k));
            }
        });
    return std::move(out).finish();
}

inline void check_exponents(checks& check, const tensor& t) {
    check.type(t, {dtype::u8, dtype::f8_e8m0});
    check.no_byte(t, 0xff, 0xff, "is the exponent FF, which is NaN");
}

}  // namespace detail

NIBBLE_IO_API index experts(const tensor& blocks) noexcept {
    return blocks.shape.size() == 4 && blocks.shape[0] <= 0x7fffffffu ? static_cast<index>(blocks.shape[0]) : 0;
}

NIBBLE_IO_API result<linear> unpack(const tensor& blocks, const tensor& scales, const tensor* bias,
                                    index expert, executor* threads) {
    detail::checks check("mxfp4");
    check.type(blocks, {dtype::u8});
    check.rank(blocks, 4);
    const index count = check.dim(blocks, 0);
    const index rows = check.dim(blocks, 1);
    const index groups = check.dim(blocks, 2);
    check.shape(blocks, {count, rows, groups, 16});
    check.shape(scales, {count, rows, groups});
    detail::check_exponents(check, scales);
    if (bias != nullptr) {
        check.type(*bias, detail::float_types);
        check.shape(*bias, {count, rows});
        check.finite(*bias);
    }
    if (check && (expert < 0 || expert >= count))
        check.fail(errc::out_of_range, blocks, "there is no expert " + std::to_string(expert));
    if (!check) return std::move(check).failure();
    linear layer;
    layer.weight =
        detail::make(blocks.bytes.data() + expert * rows * groups * 16, scales.bytes.data() + expert * rows * groups,
                     fp4_e2m1::format, rows, groups * 32, "mxfp4", threads);
    detail::read_bias(bias, expert * rows, rows, layer.bias);
    return layer;
}

NIBBLE_IO_API result<linear> unpack_matrix(const tensor& weight, const tensor& scales, const tensor* bias,
                                           int bits, executor* threads) {
    detail::checks check("mxfp4");
    check.type(weight, {dtype::u8, dtype::f8_e4m3, dtype::f8_e5m2});
    check.rank(weight, 2);
    check.rank(scales, 2);
    const index rows = check.dim(weight, 0);
    const index cols = check.dim(scales, 1) * 32;
    const code_format* format = bits == 4   ? &fp4_e2m1::format
                                : bits == 6 ? &fp6_e2m3::format
                                            : fp8::detail::format_of(weight.type);
    if (check && (format == nullptr || format->bits != bits || (weight.type == dtype::u8) != (bits < 8)))
        check.fail(
            errc::malformed, weight,
            "expected U8 for codes of 4 or 6 bits, F8_E4M3 or F8_E5M2 for 8, not " + std::to_string(bits) + " bits");
    check.shape(weight, {rows, cols * bits / 8});
    check.shape(scales, {rows, cols / 32});
    detail::check_exponents(check, scales);
    if (check && bits == 8) check.finite_codes(weight, *format);
    detail::check_bias(check, bias, rows);
    if (!check) return std::move(check).failure();
    linear layer;
    layer.weight = detail::make(weight.bytes.data(), scales.bytes.data(), *format, rows, cols,
                                bits == 4                     ? "mxfp4"
                                : bits == 6                   ? "mxfp6"
                                : format == &fp8_e4m3::format ? "mxfp8"
                                                              : "mxfp8_e5m2",
                                threads);
    detail::read_bias(bias, 0, rows, layer.bias);
    return layer;
}

NIBBLE_IO_API result<std::vector<tensor_data>> pack(const std::string& name, std::span<const qmatrix> experts) {
    if (experts.empty()) return failure{errc::invalid_argument, "mxfp4: no matrices", 0};
    const index rows = experts[0].rows(), cols = experts[0].cols();
    std::vector<tensor_data> out;
    out.push_back(
        detail::make_tensor(name + "_blocks", dtype::u8, {static_cast<index>(experts.size()), rows, cols / 32, 16}));
    out.push_back(
        detail::make_tensor(name + "_scales", dtype::u8, {static_cast<index>(experts.size()), rows, cols / 32}));
    for (std::size_t e = 0; e < experts.size(); ++e) {
        const qmatrix& m = experts[e];
        if (m.rows() != rows || m.cols() != cols)
            return failure{errc::shape_mismatch,
                           "mxfp4: expert 0 is " + nibble::detail::shape_text(rows, cols) + ", expert " +
                               std::to_string(e) + " is " + nibble::detail::shape_text(m.rows(), m.cols()),
                           0};
        if (&m.format() != &fp4_e2m1::format || m.scheme().storage != scale_storage::e8m0 || !detail::by_row(m) ||
            cols % 32 != 0 || (m.group_size() != 32 && cols != 0))
            return detail::misfit("mxfp4", m, "fp4_e2m1 codes, e8m0 scales, groups of 32 that divide the columns");
        const index base = static_cast<index>(e) * rows;
        for (index n = 0; n < rows; ++n) {
            for (index k = 0; k < cols; ++k) {
                std::byte& to = out[0].bytes[static_cast<std::size_t>(((base + n) * cols + k) / 2)];
                to |= static_cast<std::byte>(m.code(n, k) << (4 * (k % 2)));
            }
            for (index g = 0; g < m.groups(); ++g)
                detail::put(out[1], (base + n) * m.groups() + g, static_cast<std::uint8_t>(m.stored_scale(n, g)));
        }
    }
    return out;
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io::layouts::mxfp4
