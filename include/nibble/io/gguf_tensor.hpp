// One tensor of a GGUF file: its bytes in the file, and what they mean.
//
// ne[0] is the dimension that lies contiguous, which a product sums over: a weight of N outputs and K inputs is
// ne = {K, N}, and is N rows x K columns here. More dimensions are more rows: ne = {K, N, E} (E experts) is E * N rows.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "../dequantize.hpp"
#include "file.hpp"
#include "ggml_blocks.hpp"

namespace nibble::inline NIBBLE_ABI::io::gguf {

/// One tensor of a file.
struct tensor {
    std::string_view name;
    ggml::type type = ggml::type::f32;          ///< may be a number that is no type known here: size_known()
    unsigned dimensions = 1;                    ///< 1 to 4
    std::array<std::uint64_t, 4> ne{1, 1, 1, 1};  ///< contiguous dimension first; 1 beyond `dimensions`
    std::span<const std::byte> bytes;           ///< its blocks; empty if the size is not known
    std::uint64_t offset = 0;                   ///< where in the file they begin

    /// Whether this library knows how many bytes the type takes.
    [[nodiscard]] bool size_known() const noexcept { return ggml::block_bytes(type) != 0; }
    /// "Q4_K", or "type 99".
    [[nodiscard]] std::string type_name() const {
        return size_known() ? std::string(ggml::name(type)) : "type " + std::to_string(static_cast<std::uint32_t>(type));
    }
    /// Outermost dimension first, as other containers write it: {N, K}.
    [[nodiscard]] std::vector<std::uint64_t> shape() const {
        std::vector<std::uint64_t> out(ne.begin(), ne.begin() + dimensions);
        std::reverse(out.begin(), out.end());
        return out;
    }
    [[nodiscard]] std::uint64_t elements() const noexcept { return ne[0] * ne[1] * ne[2] * ne[3]; }
    [[nodiscard]] std::uint64_t rows() const noexcept { return ne[1] * ne[2] * ne[3]; }
    [[nodiscard]] std::uint64_t cols() const noexcept { return ne[0]; }
    /// "Q4_K [4096, 11008]"
    [[nodiscard]] std::string describe() const {
        std::string out = type_name() + " [";
        const auto dims = shape();
        for (std::size_t i = 0; i < dims.size(); ++i) out += (i == 0 ? "" : ", ") + std::to_string(dims[i]);
        return out + "]";
    }

    /// Rows first .. first + count - 1 as a tensor of two dimensions: how to read one expert, or a tensor piece by piece.
    [[nodiscard]] result<tensor> row_block(std::uint64_t first, std::uint64_t count) const;
    /// rows() x cols(), ready to multiply, without any rounding. Takes the types of ggml::is_supported(). A matrix keeps
    /// its rows in panels of 16: fewer rows take the memory of 16. `threads`, if given, share the work.
    [[nodiscard]] result<qmatrix> matrix(executor* threads = nullptr) const;
    /// The elements as floats, ne[0] fastest: exact, but I32, I64 and F64 are rounded to the nearest float.
    [[nodiscard]] result<std::vector<float>> values() const;
    /// F32, F64, F16 and BF16 in place, rows() x cols(). The data of a view may be unaligned.
    [[nodiscard]] result<const_view> view() const;

private:
    [[nodiscard]] failure refuse(errc code, std::string_view need) const {
        return {code, "gguf: tensor " + io::detail::quoted(name) + " is " + describe() + ": " + std::string(need), offset};
    }
    // The most rows of a matrix without elements: the file bounds all others.
    static constexpr std::uint64_t most_empty_rows = 1'000'000;
};

#if NIBBLE_DEFINE_IO

NIBBLE_IO_API result<tensor> tensor::row_block(std::uint64_t first, std::uint64_t count) const {
    if (!size_known()) return refuse(errc::unsupported, "the size of this type is not known");
    if (first > rows() || count > rows() - first)
        return refuse(errc::out_of_range, "rows " + std::to_string(first) + " to " + std::to_string(first) + " + " +
                                              std::to_string(count) + " of " + std::to_string(rows()));
    const std::uint64_t row = rows() == 0 ? 0 : bytes.size() / rows();
    tensor part = *this;
    part.dimensions = 2;
    part.ne = {ne[0], count, 1, 1};
    part.bytes = bytes.subspan(first * row, count * row);
    part.offset += first * row;
    return part;
}

NIBBLE_IO_API result<qmatrix> tensor::matrix(executor* threads) const {
    if (!ggml::is_supported(type)) return refuse(errc::unsupported, "this type cannot be a quantized matrix");
    if (bytes.empty() && (rows() > most_empty_rows || cols() > most_empty_rows))
        return refuse(errc::out_of_range, "too large for a matrix without elements");
    auto m = ggml::unpack(type, {reinterpret_cast<const std::uint8_t*>(bytes.data()), bytes.size()},
                          static_cast<nibble::index>(rows()), static_cast<nibble::index>(cols()), threads);
    if (m) return m;
    failure why = refuse(m.failure().code, m.failure().message);
    why.offset = offset + m.failure().offset;
    return why;
}

NIBBLE_IO_API result<const_view> tensor::view() const {
    std::optional<scalar_type> scalar;
    if (type == ggml::type::f32) scalar = scalar_type::f32;
    if (type == ggml::type::f64) scalar = scalar_type::f64;
    if (type == ggml::type::f16) scalar = scalar_type::f16;
    if (type == ggml::type::bf16) scalar = scalar_type::bf16;
    if (!scalar.has_value()) return refuse(errc::unsupported, "a view needs F32, F64, F16 or BF16");
    const auto k = static_cast<nibble::index>(cols());
    return const_view{bytes.data(), *scalar, static_cast<nibble::index>(rows()), k, k, 1};
}

namespace detail {

template <class T, class Convert>
[[nodiscard]] NIBBLE_NOINLINE std::vector<float> converted(std::span<const std::byte> bytes, Convert to_float) {
    std::vector<float> out(bytes.size() / sizeof(T));
    const nibble::detail::fp_environment environment;  // the rounding is to nearest whatever the program has set
    for (std::size_t i = 0; i < out.size(); ++i) {
        T x;
        std::memcpy(&x, bytes.data() + i * sizeof(T), sizeof(T));
        out[i] = to_float(x);
    }
    return out;
}

}  // namespace detail

NIBBLE_IO_API result<std::vector<float>> tensor::values() const {
    const auto cast = [](auto x) { return static_cast<float>(x); };
    switch (type) {
        case ggml::type::f32: return detail::converted<float>(bytes, cast);
        case ggml::type::f16: return detail::converted<std::uint16_t>(bytes, [](std::uint16_t h) { return fp16_to_float(h); });
        case ggml::type::bf16: return detail::converted<std::uint16_t>(bytes, [](std::uint16_t h) { return bf16_to_float(h); });
        case ggml::type::i8: return detail::converted<std::int8_t>(bytes, cast);
        case ggml::type::i16: return detail::converted<std::int16_t>(bytes, cast);
        case ggml::type::i32: return detail::converted<std::int32_t>(bytes, cast);
        case ggml::type::i64: return detail::converted<std::int64_t>(bytes, cast);
        case ggml::type::f64: return detail::converted<double>(bytes, cast);
        default: break;
    }
    if (bytes.empty() && size_known() && elements() == 0) return std::vector<float>{};
    if (!ggml::is_supported(type)) return refuse(errc::unsupported, "the values of this type are not decoded");
    const auto m = matrix();
    if (!m) return m.failure();
    std::vector<float> out(elements());
    dequantize(m.value(), row_major(out.data(), m.value().rows(), m.value().cols()));
    return out;
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io::gguf
