// Weights that are not quantized: F16 and BF16 as they are; F32 where one of the two holds every value.
#pragma once

#include "codes.hpp"
#include "linear.hpp"

namespace nibble::inline NIBBLE_ABI::io::layouts::plain {

/// The layer in these tensors, exactly. bias may be null. F32 values that neither bfloat16 nor fp16 holds are
/// errc::unsupported: quantize the view of the tensor.
[[nodiscard]] NIBBLE_IO_API result<linear> unpack(const tensor& weight, const tensor* bias, executor* threads = nullptr);

#if NIBBLE_DEFINE_IO

NIBBLE_IO_API result<linear> unpack(const tensor& weight, const tensor* bias, executor* threads) {
    detail::checks check("plain");
    check.type(weight, detail::float_types);
    check.rank(weight, 2);
    const index rows = check.dim(weight, 0);
    const index cols = check.dim(weight, 1);
    check.shape(weight, {rows, cols});
    check.finite(weight);
    detail::check_bias(check, bias, rows);
    if (!check) return std::move(check).failure();
    const index count = rows * cols;
    bool as_bf16 = weight.type != dtype::f16, as_fp16 = weight.type != dtype::bf16;
    for (index i = 0; weight.type == dtype::f32 && i < count && (as_bf16 || as_fp16); ++i) {
        const std::uint32_t u = detail::bits_at(weight, i);
        as_bf16 = as_bf16 && (u & 0xffffu) == 0;
        as_fp16 = as_fp16 && nibble::detail::bits_of(fp16_to_float(float_to_fp16(nibble::detail::float_of(u)))) == u;
    }
    if (!as_bf16 && !as_fp16)
        return check.fail(errc::unsupported, weight, "a matrix holds F16 and BF16; quantize the tensor's view()"),
               std::move(check).failure();
    qmatrix_builder out(rows, cols, as_bf16 ? bf16::format : fp16::format, scales::none, offset_kind::none,
                        per_channel{});
    const auto code = [&](std::uint32_t u) -> unsigned {
        if (weight.type != dtype::f32) return u;
        return as_bf16 ? u >> 16 : float_to_fp16(nibble::detail::float_of(u));
    };
    detail::for_panels(out, threads, [&](index begin, index end) {
        for (index n = begin * panel_rows; n < (std::min)(rows, end * panel_rows); ++n)
            for (index k = 0; k < cols; ++k) out.set_code(n, k, code(detail::bits_at(weight, n * cols + k)));
    });
    linear layer;
    layer.weight = std::move(out).finish();
    detail::read_bias(bias, 0, rows, layer.bias);
    return layer;
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io::layouts::plain
