// AutoGPTQ and GPTQModel: checkpoint_format "gptq" (v1) and "gptq_v2".
//
//   tensor    dtype, shape                    content
//   qweight   I32 [K bits / 32, N]            column n is a stream of codes along K, least significant first
//   qzeros    I32 [groups, N bits / 32]       row g is a stream of zero points along N: z in v2, z - 1 in v1
//   scales    F16 (F32, BF16) [groups, N]
//   g_idx     I32 [K], may be missing         the group of every input feature; k / group_size without act-order
//   bias      F16 (F32, BF16) [N], may be missing
//
//   w[n, k] = scales[g, n] * (q - z),  g = g_idx[k],  bits = 2, 3, 4 or 8
//
// v1 stores z - 1 by one subtraction from the whole 32-bit word (2, 4 and 8 bits): a zero point of 0 borrows from its
// neighbours, and adding the constant to the word gives all of them back. 3 bits: field by field, modulo 8 (AutoGPTQ), or
// by GPTQModel, which takes a constant off each of three words that follow each other; those of the first and the third
// word are not 1 in every field, so that the two read each other's files wrong. The config says who wrote a file.
// Zero points that are all in the middle (sym) become codes without a zero point: the same weights.
//
// Sources: AutoGPTQ auto_gptq/nn_modules/qlinear, GPTQModel gptqmodel/nn_modules/qlinear.
#pragma once

#include "codes.hpp"
#include "linear.hpp"

namespace nibble::inline NIBBLE_ABI::io::layouts::gptq {

/// What quantize_config.json says of the layers.
struct config {
    int bits = 4;            ///< 2, 3, 4 or 8
    index group_size = 128;  ///< -1: one group
    bool v2 = false;         ///< qzeros holds z, not z - 1
    bool act_order = false;  ///< desc_act: g_idx must be there
    bool gptqmodel = false;  ///< written by GPTQModel: matters to v1 of 3 bits
};

/// The layer in these tensors, exactly. g_idx and bias may be null.
[[nodiscard]] NIBBLE_IO_API result<linear> unpack(const tensor& qweight, const tensor& qzeros, const tensor& scales,
                                                  const tensor* g_idx, const tensor* bias, const config& c, executor* threads = nullptr);
/// The tensors of a layer in v1, named name.qweight and so on: what every loader of GPTQ files reads. Takes codes int2,
/// int3, int4 or int8 with fp16 scales, symmetric or with zero points, in groups of one row; N and K must fill whole
/// words (multiples of 32 always do). A permutation becomes g_idx. A bias is rounded to fp16.
[[nodiscard]] NIBBLE_IO_API result<std::vector<tensor_data>> pack(const std::string& name, const linear& layer);
/// The quantization_config that goes with pack(): JSON.
[[nodiscard]] NIBBLE_IO_API std::string config_of(const linear& layer);

#if NIBBLE_DEFINE_IO

namespace detail {

using namespace layouts::detail;

/// What v1 takes off a word of zero points.
[[nodiscard]] constexpr std::uint32_t ones(int bits) noexcept {
    return bits == 2 ? 0x55555555u : bits == 4 ? 0x11111111u : 0x01010101u;
}

/// What GPTQModel takes off word w of zero points of 3 bits.
[[nodiscard]] constexpr std::uint32_t three_bit_words(index w) noexcept {
    return w % 3 == 0 ? 0x24924924u : w % 3 == 1 ? 0x92492492u : 0x49249249u;
}
[[nodiscard]] inline unsigned gptqmodel_zero(const std::byte* row, index n) noexcept {
    const auto word = [&](index w) { return word_at(row, w) + three_bit_words(w); };
    const index w = 3 * n / 32;
    std::uint64_t u = word(w);
    if (3 * n % 32 > 29) u |= std::uint64_t{word(w + 1)} << 32;
    return static_cast<unsigned>(u >> (3 * n % 32)) & 7u;
}

[[nodiscard]] inline unsigned zero_at(const tensor& qzeros, const config& c, index groups_row, index n,
                                      index cols) noexcept {
    const std::byte* row = qzeros.bytes.data() + 4 * groups_row * cols;
    if (c.v2) return get_field(row, 1, c.bits, n);
    if (c.bits == 3 && c.gptqmodel) return gptqmodel_zero(row, n);
    if (c.bits == 3) return (get_field(row, 1, 3, n) + 1) & 7u;
    std::uint32_t word;
    std::memcpy(&word, row + 4 * (n * c.bits / 32), 4);
    return ((word + ones(c.bits)) >> (n * c.bits % 32)) & ((1u << c.bits) - 1);
}

/// The codes of rows [first, first + count): every word holds 32 / bits of one column, but for 3 bits.
inline void read_codes(const tensor& qweight, int bits, index rows, index cols, index first, index count,
                       std::uint8_t* codes) noexcept {
    if (bits == 3) {
        for (index r = 0; r < count; ++r)
            for (index k = 0; k < cols; ++k)
                codes[r * cols + k] =
                    static_cast<std::uint8_t>(get_field(qweight.bytes.data() + 4 * (first + r), rows, 3, k));
        return;
    }
    const index per_word = 32 / bits;
    const std::uint32_t mask = (1u << bits) - 1;
    for (index k = 0; k < cols; k += per_word) {
        const std::byte* words = qweight.bytes.data() + 4 * (k / per_word * rows + first);
        const index here = (std::min)(per_word, cols - k);
        for (index r = 0; r < count; ++r) {
            std::uint32_t word;
            std::memcpy(&word, words + 4 * r, 4);
            std::uint8_t* to = codes + r * cols + k;
            for (index i = 0; i < here; ++i, word >>= bits) to[i] = static_cast<std::uint8_t>(word & mask);
        }
    }
}

}  // namespace detail

NIBBLE_IO_API result<linear> unpack(const tensor& qweight, const tensor& qzeros, const tensor& scales,
                                    const tensor* g_idx, const tensor* bias, const config& c, executor* threads) {
    detail::checks check("gptq");
    if (c.bits != 2 && c.bits != 3 && c.bits != 4 && c.bits != 8)
        check.fail(errc::unsupported, "layers of " + std::to_string(c.bits) + " bits; there are 2, 3, 4 and 8");
    if (c.group_size < -1 || c.group_size == 0 || c.group_size > 0x7fffffff)
        check.fail(errc::malformed,
                   "a group_size of " + std::to_string(c.group_size) + "; expected -1 or 1 to 2^31 - 1");
    if (c.act_order && g_idx == nullptr)
        check.fail(errc::not_found, qweight, "the config says desc_act, but there is no g_idx");
    check.type(qweight, {dtype::i32});
    check.type(qzeros, {dtype::i32});
    check.type(scales, detail::float_types);
    check.rank(qweight, 2);
    check.rank(scales, 2);
    const index words = check.dim(qweight, 0);
    const index rows = check.dim(qweight, 1);
    const index groups = check.dim(scales, 0);
    if (g_idx != nullptr) {
        check.type(*g_idx, {dtype::i32});
        check.rank(*g_idx, 1);
    }
    if (!check) return std::move(check).failure();
    index cols = words * 32 / c.bits;
    if (g_idx != nullptr) {
        const index listed = check.dim(*g_idx, 0);
        check.shape(*g_idx, {listed});
        if (detail::ceil_div(listed * c.bits, 32) != words)
            check.fail(errc::shape_mismatch, qweight,
                       "expected " + std::to_string(detail::ceil_div(listed * c.bits, 32)) + " rows for the " +
                           std::to_string(listed) + " columns of g_idx");
        cols = listed;
    } else if (words * 32 % c.bits != 0) {
        check.fail(errc::shape_mismatch, qweight, "expected a multiple of 3 rows");
    }
    const index size = c.group_size == -1 ? (std::max)(index{1}, cols) : c.group_size;
    const index zero_words = detail::ceil_div(rows * c.bits, 32);
    check.shape(qweight, {words, rows});
    if (check && detail::ceil_div(cols, size) != groups)
        check.fail(errc::shape_mismatch, scales,
                   "expected " + std::to_string(detail::ceil_div(cols, size)) + " rows for " + std::to_string(cols) +
                       " columns in groups of " + std::to_string(size));
    check.shape(scales, {groups, rows});
    check.shape(qzeros, {groups, zero_words});
    check.finite(scales);
    detail::check_bias(check, bias, rows);
    if (!check) return std::move(check).failure();
    detail::column_runs runs =
        g_idx != nullptr ? detail::indexed_runs(*g_idx, cols, groups, check) : detail::plain_runs(cols, size);
    if (!check) return std::move(check).failure();

    const code_format& format = *detail::codes_of(c.bits).format;
    bool symmetric = true;
    for (index g = 0; g < groups && symmetric; ++g)
        for (index n = 0; n < rows && symmetric; ++n)
            symmetric = detail::zero_at(qzeros, c, g, n, zero_words) == format.zero_code;
    const bool words_fit = runs.permutation.empty() && detail::by_words(c.bits, cols, runs.size);
    qmatrix_builder out(rows, cols, format, detail::scheme_of(scales.type),
                        symmetric ? offset_kind::none : offset_kind::zero_point, per_group{runs.size}, {},
                        detail::initial(words_fit));
    const auto group = [&](index j) { return runs.group[static_cast<std::size_t>(j)]; };
    detail::set_groups(
        out, threads, [&](index n, index j) { return detail::bits_at(scales, group(j) * rows + n); },
        [&](index n, index j) { return detail::zero_at(qzeros, c, group(j), n, zero_words); });
    if (words_fit)
        detail::set_words<false>(out, threads, [&](index n, index i) { return detail::word_at(qweight.bytes.data(), i * rows + n); });
    else
        detail::set_rows(out, threads, runs.permutation, [&](index first, index count, std::uint8_t* codes) {
            detail::read_codes(qweight, c.bits, rows, cols, first, count, codes);
        });
    linear layer;
    layer.weight = std::move(out).finish();
    layer.permutation = std::move(runs.permutation);
    detail::read_bias(bias, 0, rows, layer.bias);
    return layer;
}

NIBBLE_IO_API result<std::vector<tensor_data>> pack(const std::string& name, const linear& layer) {
    const qmatrix& m = layer.weight;
    if (status s = check_linear(layer); !s) return failure{s.code(), s.message(), 0};
    const int bits = m.format().bits;
    const bool takes = m.format().decode == decode_class::integer && detail::codes_of(bits).format == &m.format() &&
                       (bits == 2 || bits == 3 || bits == 4 || bits == 8) && m.scheme().storage == scale_storage::f16 &&
                       (m.offset_type() == offset_kind::none || m.offset_type() == offset_kind::zero_point) &&
                       detail::by_row(m);
    if (!takes || m.rows() * bits % 32 != 0 || m.cols() * bits % 32 != 0)
        return detail::misfit(
            "gptq", m,
            "int2, int3, int4 or int8 codes, f16 scales, groups of one row, no offset or zero points, and "
            "rows and columns that fill 32-bit words");
    const index rows = m.rows(), cols = m.cols(), groups = m.groups();
    const auto input = [&](index j) {
        return layer.permutation.empty() ? j : layer.permutation[static_cast<std::size_t>(j)];
    };
    std::vector<tensor_data> out;
    out.push_back(detail::make_tensor(name + ".qweight", dtype::i32, {cols * bits / 32, rows}));
    out.push_back(detail::make_tensor(name + ".qzeros", dtype::i32, {groups, rows * bits / 32}));
    out.push_back(detail::make_tensor(name + ".scales", dtype::f16, {groups, rows}));
    out.push_back(detail::make_tensor(name + ".g_idx", dtype::i32, {cols}));
    for (index j = 0; j < cols; ++j) {
        for (index n = 0; n < rows; ++n)
            detail::put_field(out[0].bytes.data() + 4 * n, rows, bits, input(j), m.code(n, j));
        detail::put(out[3], input(j), static_cast<std::int32_t>(j / m.group_size()));
    }
    for (index g = 0; g < groups; ++g) {
        std::byte* zeros = out[1].bytes.data() + g * rows * bits / 8;
        for (index n = 0; n < rows; ++n) {
            const unsigned z = detail::zero_of(m, n, g);
            detail::put_bits(out[2], g * rows + n, m.stored_scale(n, g));
            detail::put_field(zeros, 1, bits, n, bits == 3 ? (z - 1) & 7u : z);
        }
        for (index w = 0; bits != 3 && w < rows * bits / 32; ++w) {
            std::uint32_t word;
            std::memcpy(&word, zeros + 4 * w, 4);
            word -= detail::ones(bits);
            std::memcpy(zeros + 4 * w, &word, 4);
        }
    }
    if (!layer.bias.empty()) {
        out.push_back(detail::make_tensor(name + ".bias", dtype::f16, {rows}));
        for (index n = 0; n < rows; ++n) detail::put(out[4], n, float_to_fp16(layer.bias[static_cast<std::size_t>(n)]));
    }
    return out;
}

NIBBLE_IO_API std::string config_of(const linear& layer) {
    const qmatrix& m = layer.weight;
    const nlohmann::json j = {{"quant_method", "gptq"},
                              {"checkpoint_format", "gptq"},
                              {"bits", m.format().bits},
                              {"group_size", m.groups() == 1 ? index{-1} : m.group_size()},
                              {"desc_act", !layer.permutation.empty()},
                              {"sym", m.offset_type() == offset_kind::none},
                              {"static_groups", false},
                              {"lm_head", false}};
    return j.dump();
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io::layouts::gptq
