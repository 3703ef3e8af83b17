// bitsandbytes, 8 bits: LLM.int8.
//
//   weight          I8 [N, K]
//   SCB             F32 [N]        the largest magnitude of each row
//   weight_format   U8 [], 0       rows; other orders are refused
//
//   w = code * f32(SCB / 127)
//
// Exact but for the rounding of the quotient (2^-24 relative): bitsandbytes multiplies twice, by SCB and by 1 / 127.
//
// Source: bitsandbytes 0.50, functional.py (int8_vectorwise_dequant).
#pragma once

#include "codes.hpp"
#include "linear.hpp"

namespace nibble::inline NIBBLE_ABI::io::layouts::bitsandbytes {

/// A layer of LLM.int8. weight_format and bias may be null.
[[nodiscard]] NIBBLE_IO_API result<linear> unpack_int8(const tensor& weight, const tensor& scb, const tensor* weight_format,
                                                       const tensor* bias, executor* threads = nullptr);

#if NIBBLE_DEFINE_IO

namespace detail {

using namespace layouts::detail;

NIBBLE_FP_BEGIN

[[nodiscard]] NIBBLE_NOINLINE inline float over_127(float scb) noexcept { return scb / 127.0f; }

NIBBLE_FP_END

}  // namespace detail

NIBBLE_IO_API result<linear> unpack_int8(const tensor& weight, const tensor& scb, const tensor* weight_format,
                                         const tensor* bias, executor* threads) {
    detail::checks check("bitsandbytes");
    check.type(weight, {dtype::i8});
    check.rank(weight, 2);
    const index rows = check.dim(weight, 0);
    const index cols = check.dim(weight, 1);
    check.shape(weight, {rows, cols});
    check.type(scb, {dtype::f32});
    check.shape(scb, {rows});
    check.finite(scb);
    if (weight_format != nullptr) {
        check.type(*weight_format, {dtype::u8});
        if (check && weight_format->bytes.size() != 1)
            check.fail(errc::malformed, *weight_format, "expected one element");
        if (check && weight_format->bytes[0] != std::byte{0})
            check.fail(
                errc::unsupported, *weight_format,
                "expected format 0 (rows), found " + std::to_string(std::to_integer<int>(weight_format->bytes[0])));
    }
    detail::check_bias(check, bias, rows);
    if (!check) return std::move(check).failure();
    qmatrix_builder out(rows, cols, int8::format, scales::f32, offset_kind::none, per_channel{}, "llm_int8",
                        detail::initial(detail::by_words(8, cols, 0)));
    const nibble::detail::fp_environment environment;
    for (index n = 0; n < rows; ++n)
        for (index g = 0; g < out.layout().groups; ++g)
            out.set_scale(n, g, nibble::detail::bits_of(detail::over_127(detail::float_at(scb, n))));
    const auto word = [&](index n, index i) {
        return detail::word_at(weight.bytes.data() + n * cols, i) ^ 0x80808080u;
    };
    if (detail::by_words(8, cols, 0))
        detail::set_words<true>(out, threads, word);
    else
        detail::set_rows(out, threads, {}, [&](index first, index count, std::uint8_t* codes) {
            for (index i = 0; i < count * cols; ++i)
                codes[i] = static_cast<std::uint8_t>(detail::at<std::uint8_t>(weight, first * cols + i) ^ 0x80u);
        });
    linear layer;
    layer.weight = std::move(out).finish();
    detail::read_bias(bias, 0, rows, layer.bias);
    return layer;
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io::layouts::bitsandbytes
