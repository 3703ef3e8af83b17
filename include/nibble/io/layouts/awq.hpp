// AutoAWQ, versions "gemm" and "gemv"; 4 bits.
//
//   gemm     qweight  I32 [K, N / 8]        8 columns n a word, nibble i is column 8c + {0 2 4 6 1 3 5 7}[i]
//            qzeros   I32 [K / g, N / 8]    the zero points in the same order
//            scales   F16 [K / g, N]
//   gemv     qweight  I32 [N, K / 8]        nibble i is k = 8c + i
//            qzeros   I32 [N, Z]            Z = ceil(groups / 8), rounded up to 2 for g = 64 and to 4 for g = 32
//            scales   F16 [N, 8 Z]          those past the last group are padding
//   bias     F16 [N], may be missing
//
//   w[n, k] = scales * (q - z)
//
// Zero points that are all 8 become codes without a zero point: the same weights. Source: AutoAWQ 0.2.9, awq/modules/linear.
#pragma once

#include "codes.hpp"
#include "linear.hpp"

namespace nibble::inline NIBBLE_ABI::io::layouts::awq {

struct config {
    index group_size = 128;  ///< -1: one group
    bool gemv = false;
};

/// The layer in these tensors, exactly. bias may be null.
[[nodiscard]] NIBBLE_IO_API result<linear> unpack(const tensor& qweight, const tensor& qzeros, const tensor& scales,
                                                  const tensor* bias, const config& c, executor* threads = nullptr);
/// The tensors of a layer in version gemm, named name.qweight and so on. Takes int4 with fp16 scales, symmetric or with
/// zero points, in groups of one row that divide the columns; N a multiple of 8.
[[nodiscard]] NIBBLE_IO_API result<std::vector<tensor_data>> pack(const std::string& name, const qmatrix& m);
/// The quantization_config that goes with pack(): JSON.
[[nodiscard]] NIBBLE_IO_API std::string config_of(const qmatrix& m);

#if NIBBLE_DEFINE_IO

namespace detail {

using namespace layouts::detail;

inline constexpr int nibble_of[8] = {0, 4, 1, 5, 2, 6, 3, 7};  // of column 8c + i

[[nodiscard]] inline unsigned interleaved(const tensor& t, index words, index row, index n) noexcept {
    const auto word = at<std::uint32_t>(t, row * words + n / 8);
    return (word >> (4 * nibble_of[n % 8])) & 15u;
}

/// Element j of word i to element i of word j: 4-bit elements of 8 words.
inline void transpose(std::uint32_t (&w)[8]) noexcept {
    constexpr std::uint32_t mask[3] = {0x0000ffffu, 0x00ff00ffu, 0x0f0f0f0fu};
    for (int step = 0, apart = 4; step < 3; ++step, apart /= 2)
        for (int i = 0; i < 8; ++i) {
            if ((i & apart) != 0) continue;
            const std::uint32_t swap = ((w[i] >> (4 * apart)) ^ w[i + apart]) & mask[step];
            w[i + apart] ^= swap;
            w[i] ^= swap << (4 * apart);
        }
}

/// Version gemm, K a multiple of 8: 8 rows of 8 columns at a time, down all panels that share a line of the file.
inline void set_interleaved(qmatrix_builder& out, executor* threads, const tensor& qweight, index words) {
    const index blocks = out.layout().cols / 8;
    const auto set_cell = [&](index p, index b) {
        std::uint32_t cell[panel_rows] = {};
        for (index half = 0; half < 2 && 2 * p + half < words; ++half) {
            std::uint32_t w[8];
            for (index k = 0; k < 8; ++k) w[k] = word_at(qweight.bytes.data(), (8 * b + k) * words + 2 * p + half);
            transpose(w);
            for (int i = 0; i < 8; ++i) cell[8 * half + i] = cell_word(w[nibble_of[i]]);
        }
        std::memcpy(out.panel(p) + b * cell_bytes, cell, sizeof cell);
    };
    for_panels(out, threads, [&](index first, index last) {
        for (index begin = first; begin < last; begin += 8)
            for (index b = 0; b < blocks; ++b)
                for (index p = begin; p < (std::min)(begin + 8, last); ++p) set_cell(p, b);
    });
}

}  // namespace detail

NIBBLE_IO_API result<linear> unpack(const tensor& qweight, const tensor& qzeros, const tensor& scales,
                                    const tensor* bias, const config& c, executor* threads) {
    detail::checks check("awq");
    check.type(qweight, {dtype::i32});
    check.type(qzeros, {dtype::i32});
    check.type(scales, detail::float_types);
    check.rank(qweight, 2);
    const index words = check.dim(qweight, 1);
    const index cols = c.gemv ? words * 8 : check.dim(qweight, 0);
    const index rows = c.gemv ? check.dim(qweight, 0) : words * 8;
    if (c.group_size < -1 || c.group_size == 0 || c.group_size > 0x7fffffff)
        check.fail(errc::malformed,
                   "a group_size of " + std::to_string(c.group_size) + "; expected -1 or 1 to 2^31 - 1");
    if (!check) return std::move(check).failure();
    const index size = c.group_size == -1 ? (std::max)(index{1}, cols) : c.group_size;
    const index groups = detail::ceil_div(cols, size);
    const index multiple = size >= 128 ? 1 : size >= 64 ? 2 : 4;
    const index zero_words = c.gemv ? detail::ceil_div(detail::ceil_div(groups, 8), multiple) * multiple : words;
    check.shape(qweight, {c.gemv ? rows : cols, words});
    check.shape(qzeros, {c.gemv ? rows : groups, zero_words});
    check.shape(scales, {c.gemv ? rows : groups, c.gemv ? 8 * zero_words : rows});
    check.finite(scales);
    detail::check_bias(check, bias, rows);
    if (!check) return std::move(check).failure();

    const auto zero = [&](index n, index g) {
        return c.gemv ? detail::get_field(qzeros.bytes.data() + 4 * n * zero_words, 1, 4, g)
                      : detail::interleaved(qzeros, zero_words, g, n);
    };
    bool symmetric = true;
    for (index g = 0; g < groups && symmetric; ++g)
        for (index n = 0; n < rows && symmetric; ++n) symmetric = zero(n, g) == int4::format.zero_code;
    const bool words_fit = detail::by_words(4, cols, size);
    qmatrix_builder out(rows, cols, int4::format, detail::scheme_of(scales.type),
                        symmetric ? offset_kind::none : offset_kind::zero_point, per_group{size}, {},
                        detail::initial(words_fit));
    detail::set_groups(
        out, threads,
        [&](index n, index g) { return detail::bits_at(scales, c.gemv ? n * 8 * zero_words + g : g * rows + n); }, zero);
    if (words_fit && c.gemv)
        detail::set_words<true>(out, threads, [&](index n, index i) { return detail::word_at(qweight.bytes.data(), n * words + i); });
    else if (words_fit)
        detail::set_interleaved(out, threads, qweight, words);
    else
        detail::set_rows(out, threads, {}, [&](index first, index count, std::uint8_t* codes) {
            for (index k = 0; k < cols; ++k)
                for (index r = 0; r < count; ++r)
                    codes[r * cols + k] = static_cast<std::uint8_t>(
                        c.gemv ? detail::get_field(qweight.bytes.data() + 4 * (first + r) * words, 1, 4, k)
                               : detail::interleaved(qweight, words, k, first + r));
        });
    linear layer;
    layer.weight = std::move(out).finish();
    detail::read_bias(bias, 0, rows, layer.bias);
    return layer;
}

NIBBLE_IO_API result<std::vector<tensor_data>> pack(const std::string& name, const qmatrix& m) {
    const bool takes = &m.format() == &int4::format && m.scheme().storage == scale_storage::f16 && detail::by_row(m) &&
                       (m.offset_type() == offset_kind::none || m.offset_type() == offset_kind::zero_point);
    if (!takes || m.rows() % 8 != 0 || m.cols() % m.group_size() != 0)
        return detail::misfit("awq", m,
                              "int4 codes, f16 scales, no offset or zero points, groups that divide the columns, and a "
                              "multiple of 8 rows");
    const index rows = m.rows(), cols = m.cols(), groups = m.groups();
    std::vector<tensor_data> out;
    out.push_back(detail::make_tensor(name + ".qweight", dtype::i32, {cols, rows / 8}));
    out.push_back(detail::make_tensor(name + ".qzeros", dtype::i32, {groups, rows / 8}));
    out.push_back(detail::make_tensor(name + ".scales", dtype::f16, {groups, rows}));
    const auto put = [&](tensor_data& t, index row, index n, unsigned value) {
        detail::put_field(t.bytes.data() + row * rows / 2 + 4 * (n / 8), 1, 4, detail::nibble_of[n % 8], value);
    };
    for (index n = 0; n < rows; ++n) {
        for (index k = 0; k < cols; ++k) put(out[0], k, n, m.code(n, k));
        for (index g = 0; g < groups; ++g) {
            put(out[1], g, n, detail::zero_of(m, n, g));
            detail::put_bits(out[2], g * rows + n, m.stored_scale(n, g));
        }
    }
    return out;
}

NIBBLE_IO_API std::string config_of(const qmatrix& m) {
    const nlohmann::json j = {{"quant_method", "awq"},
                              {"version", "gemm"},
                              {"bits", 4},
                              {"zero_point", true},
                              {"group_size", m.groups() == 1 ? index{-1} : m.group_size()}};
    return j.dump();
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io::layouts::awq
