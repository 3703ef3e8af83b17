// bitsandbytes, 4 bits: NF4 and FP4, with and without double quantization. (LLM.int8 is in llm_int8.hpp.)
//
//   4 bits, n = N K weights, blocks of B along the flattened matrix
//   X                           U8 [(n + 1) / 2, 1] or the same bytes as BF16, F16 or F32: high nibble first
//   X.absmax                    F32 [ceil(n / B)], or U8: codes of the nested map
//   X.quant_map                 F32 [16]
//   X.nested_absmax             F32 [ceil(blocks / nested B)]       double quantization
//   X.nested_quant_map          F32 [256]                           double quantization
//   X.quant_state.bitsandbytes__nf4 (__fp4)   U8: JSON {quant_type, blocksize, dtype, shape, nested_blocksize, nested_offset}
//
//   w = quant_map[code] * absmax,  absmax = f32(f32(nested_quant_map[u] * nested_absmax) + nested_offset)
//
// Maps that are not the library's own tables become a codebook of the matrix (16 entries), or scales that are computed
// here and stored as floats (nested). Blocks that cross rows, where B does not divide K, are cut at their common divisor,
// each piece with the scale of its block; then nested scales are floats, too. All of it is exact.
//
// Source: bitsandbytes 0.50, functional.py (QuantState).
#pragma once

#include <nlohmann/json.hpp>

#include "codes.hpp"
#include "linear.hpp"

namespace nibble::inline NIBBLE_ABI::io::layouts::bitsandbytes {

/// The tensors of a layer of 4 bits. The nested ones are null without double quantization.
struct four_bit_tensors {
    const tensor* weight = nullptr;
    const tensor* absmax = nullptr;
    const tensor* quant_map = nullptr;
    const tensor* quant_state = nullptr;
    const tensor* nested_absmax = nullptr;
    const tensor* nested_quant_map = nullptr;
    const tensor* bias = nullptr;
};

/// A layer of 4 bits, exactly.
[[nodiscard]] NIBBLE_IO_API result<linear> unpack_four_bit(const four_bit_tensors& t, executor* threads = nullptr);
/// The tensors of a layer of 4 bits, named name.weight, name.weight.absmax and so on. Takes nf4 and fp4 with scales f32,
/// f16, bf16 or double_quantized whose groups do not cross rows: K a multiple of the group, or one row. `dtype_name` is
/// the type that bitsandbytes decodes to: "float32" gives it the values of this library.
[[nodiscard]] NIBBLE_IO_API result<std::vector<tensor_data>> pack(const std::string& name, const qmatrix& m,
                                                                  const std::string& dtype_name = "bfloat16");
/// The quantization_config that goes with pack(): JSON.
[[nodiscard]] NIBBLE_IO_API std::string config_of(const qmatrix& m);

#if NIBBLE_DEFINE_IO

namespace detail {

using namespace layouts::detail;

struct state {
    index rows = 0, cols = 0, block = 0, nested_block = 0;
    float nested_offset = 0.0f;
    bool nf4 = false;
};

[[nodiscard]] inline state read_state(const tensor& t, checks& check) {
    state s;
    check.type(t, {dtype::u8});
    check.rank(t, 1);
    check.shape(t, {check.dim(t, 0)});
    if (!check) return s;
    const auto* text = reinterpret_cast<const char*>(t.bytes.data());
    const nlohmann::json j =
        t.bytes.size() > 65536 ? nlohmann::json() : nlohmann::json::parse(text, text + t.bytes.size(), nullptr, false);
    if (!j.is_object()) return check.fail(errc::malformed, t, "expected a JSON object of at most 65536 bytes"), s;
    const auto whole = [&](const nlohmann::json& v) {
        return v.is_number_integer() && v >= 1 && v <= 0x7fffffff ? v.get<index>() : index{-1};
    };
    const auto number = [&](const char* key) {
        const auto at = j.find(key);
        const index v = at == j.end() ? index{-1} : whole(*at);
        if (v < 0) check.fail(errc::malformed, t, std::string("expected \"") + key + "\" from 1 to 2^31 - 1");
        return v;
    };
    s.block = number("blocksize");
    const auto shape = j.find("shape");
    if (shape == j.end() || !shape->is_array() || shape->size() != 2 ||
        !std::all_of(shape->begin(), shape->end(),
                     [](const nlohmann::json& v) { return v.is_number_integer() && v >= 0 && v <= 0x7fffffff; }))
        return check.fail(errc::malformed, t, "expected \"shape\" of two integers below 2^31"), s;
    s.rows = (*shape)[0].get<index>();
    s.cols = (*shape)[1].get<index>();
    const auto type = j.find("quant_type");
    s.nf4 = type != j.end() && *type == "nf4";
    if (!s.nf4 && !(type != j.end() && *type == "fp4"))
        check.fail(errc::unsupported, t, "expected \"quant_type\" nf4 or fp4");
    if (!j.contains("nested_blocksize")) return s;
    s.nested_block = number("nested_blocksize");
    const auto offset = j.find("nested_offset");
    s.nested_offset = offset != j.end() && offset->is_number() ? static_cast<float>(offset->get<double>()) : 0.0f;
    if (offset == j.end() || !offset->is_number() || !nibble::detail::finite_in_memory(&s.nested_offset))
        check.fail(errc::malformed, t, "expected a finite \"nested_offset\"");
    return s;
}

NIBBLE_FP_BEGIN

/// f32(f32(value * absmax) + offset).
[[nodiscard]] NIBBLE_NOINLINE inline float nested_scale(float value, float absmax, float offset) noexcept {
    const float product = value * absmax;
    return product + offset;
}

NIBBLE_FP_END

/// The built-in table that a map is, bit for bit, or a codebook of its own.
[[nodiscard]] inline format_handle format_of(const tensor& map, bool& builtin) {
    std::array<float, 16> values;
    std::memcpy(values.data(), map.bytes.data(), sizeof values);
    for (const code_format* f : {&nf4::format, &fp4::format, &af4::format}) {
        builtin = std::memcmp(values.data(), f->values, sizeof values) == 0;
        if (builtin) return *f;
    }
    return make_codebook(std::string("map of ").append(map.name), values);
}

}  // namespace detail

NIBBLE_IO_API result<linear> unpack_four_bit(const four_bit_tensors& t, executor* threads) {
    detail::checks check("bitsandbytes");
    if (t.weight == nullptr || t.absmax == nullptr || t.quant_map == nullptr || t.quant_state == nullptr)
        return failure{errc::not_found,
                       "bitsandbytes: a layer of 4 bits has a weight, an absmax, a quant_map and a quant_state", 0};
    const detail::state s = detail::read_state(*t.quant_state, check);
    const bool nested = s.nested_block != 0;
    check.matrix(s.rows, s.cols);
    check.type(*t.weight, {dtype::u8, dtype::bf16, dtype::f16, dtype::f32});
    check.type(*t.absmax, {nested ? dtype::u8 : dtype::f32});
    check.type(*t.quant_map, {dtype::f32});
    check.shape(*t.quant_map, {16});
    check.finite(*t.quant_map);
    if (!check) return std::move(check).failure();
    const index count = s.rows * s.cols;
    const index blocks = detail::ceil_div(count, s.block);
    const auto whole = static_cast<std::uint64_t>((count + 1) / 2);
    if (t.weight->bytes.size() != whole || t.weight->elements() * (safetensors::bits_of(t.weight->type) / 8) != whole)
        check.fail(
            errc::shape_mismatch, *t.weight,
            "expected " + std::to_string(whole) + " bytes for " + detail::numbers({s.rows, s.cols}) + " weights");
    check.shape(*t.absmax, {blocks});
    if (nested && (t.nested_absmax == nullptr || t.nested_quant_map == nullptr))
        check.fail(errc::not_found, *t.quant_state,
                   "it has a nested_blocksize, but there is no nested_absmax and nested_quant_map");
    if (nested && check) {
        check.type(*t.nested_absmax, {dtype::f32});
        check.shape(*t.nested_absmax, {detail::ceil_div(blocks, s.nested_block)});
        check.finite(*t.nested_absmax);
        check.type(*t.nested_quant_map, {dtype::f32});
        check.shape(*t.nested_quant_map, {256});
        check.finite(*t.nested_quant_map);
    } else {
        check.finite(*t.absmax);
    }
    detail::check_bias(check, t.bias, s.rows);
    if (!check) return std::move(check).failure();
    bool zeros = true;
    for (index i = 0; i < 16; ++i) zeros = zeros && (detail::bits_at(*t.quant_map, i) & 0x7fffffffu) == 0;
    if (zeros) return check.fail(errc::malformed, *t.quant_map, "all entries are zero"), std::move(check).failure();

    // Pieces of blocks that lie in one row and are equally long.
    const bool crossing = s.cols % s.block != 0 && s.rows > 1;
    const index piece = crossing ? std::gcd(s.cols, s.block) : s.block;
    const bool keep_nested =
        nested && !crossing &&
        std::memcmp(t.nested_quant_map->bytes.data(), nibble::detail::signed_dynamic_map.values.data(), 1024) == 0;
    scale_scheme scheme = keep_nested ? scales::double_quantized : scales::f32;
    if (keep_nested) scheme.span = s.nested_block;
    const bool words_fit = detail::by_words(4, s.cols, piece);
    bool builtin = false;
    const format_handle format = detail::format_of(*t.quant_map, builtin);
    const std::string name = builtin ? std::string(format->name).append(keep_nested ? "_double" : "") : std::string();
    qmatrix_builder out(s.rows, s.cols, format, scheme, offset_kind::none, per_group{piece}, name,
                        detail::initial(words_fit));
    const nibble::detail::fp_environment environment;
    for (index n = 0; n < s.rows; ++n) {
        for (index g = 0; g < out.layout().groups; ++g) {
            const index b = (n * s.cols + g * piece) / s.block;
            std::uint32_t stored = nested ? std::to_integer<std::uint32_t>(t.absmax->bytes[static_cast<std::size_t>(b)])
                                          : detail::bits_at(*t.absmax, b);
            if (nested && !keep_nested) {
                const float scale =
                    detail::nested_scale(detail::float_at(*t.nested_quant_map, static_cast<index>(stored)),
                                         detail::float_at(*t.nested_absmax, b / s.nested_block), s.nested_offset);
                stored = nibble::detail::bits_of(scale);
                if (!nibble::detail::is_finite_bits(stored))
                    return check.fail_at(*t.absmax, b, "makes a scale of NaN or Inf"), std::move(check).failure();
            }
            out.set_scale(n, g, stored);
        }
    }
    if (keep_nested) {
        for (index i = 0; i < static_cast<index>(t.nested_absmax->elements()); ++i)
            out.set_nested_absmax(i, detail::float_at(*t.nested_absmax, i));
        out.set_tensor_scale(s.nested_offset);
    }
    const auto word = [&](index n, index i) {
        const std::uint32_t u = detail::word_at(t.weight->bytes.data() + n * s.cols / 2, i);
        return (u & 0x0f0f0f0fu) << 4 | (u >> 4 & 0x0f0f0f0fu);  // the high nibble comes first
    };
    if (words_fit)
        detail::set_words<true>(out, threads, word);
    else
        detail::set_rows(out, threads, {}, [&](index first, index rows, std::uint8_t* codes) {
            for (index i = 0; i < rows * s.cols; ++i) {
                const index at = first * s.cols + i;
                const auto byte = std::to_integer<unsigned>(t.weight->bytes[static_cast<std::size_t>(at / 2)]);
                codes[i] = static_cast<std::uint8_t>(at % 2 == 0 ? byte >> 4 : byte & 15u);
            }
        });
    linear layer;
    layer.weight = std::move(out).finish();
    detail::read_bias(t.bias, 0, s.rows, layer.bias);
    return layer;
}

NIBBLE_IO_API result<std::vector<tensor_data>> pack(const std::string& name, const qmatrix& m,
                                                    const std::string& dtype_name) {
    const bool nested = m.scheme().storage == scale_storage::double_quantized;
    const bool named = &m.format() == &nf4::format || &m.format() == &fp4::format;
    const index block = m.group_size();
    const bool takes = named && (nested || detail::is_direct(m.scheme().storage)) && detail::by_row(m) &&
                       (m.rows() <= 1 || m.cols() % block == 0) &&
                       !(nested && m.layout().first_row * m.groups() % m.scheme().span != 0);
    if (!takes)
        return detail::misfit(
            "bitsandbytes", m,
            "nf4 or fp4 codes, f32, f16, bf16 or double_quantized scales, groups that divide the columns");
    const index count = m.rows() * m.cols(), blocks = m.rows() * m.groups();
    const std::string weight = name + ".weight";
    std::vector<tensor_data> out;
    out.push_back(detail::make_tensor(weight, dtype::u8, {(count + 1) / 2, 1}));
    out.push_back(detail::make_tensor(weight + ".absmax", nested ? dtype::u8 : dtype::f32, {blocks}));
    out.push_back(detail::make_tensor(weight + ".quant_map", dtype::f32, {16}));
    for (index i = 0; i < count; ++i) {
        std::byte& to = out[0].bytes[static_cast<std::size_t>(i / 2)];
        to |= static_cast<std::byte>(m.code(i / m.cols(), i % m.cols()) << (i % 2 == 0 ? 4 : 0));
    }
    for (index b = 0; b < blocks; ++b) {
        const index n = b / m.groups(), g = b % m.groups();
        detail::put_bits(out[1], b, nested ? m.stored_scale(n, g) : nibble::detail::bits_of(m.scale(n, g)));
    }
    std::memcpy(out[2].bytes.data(), m.format().values, 64);
    nlohmann::json state = {
        {"quant_type", m.format().name}, {"blocksize", block}, {"dtype", dtype_name}, {"shape", {m.rows(), m.cols()}}};
    if (nested) {
        const index supers = detail::ceil_div(blocks, m.scheme().span);
        out.push_back(detail::make_tensor(weight + ".nested_absmax", dtype::f32, {supers}));
        out.push_back(detail::make_tensor(weight + ".nested_quant_map", dtype::f32, {256}));
        for (index s = 0; s < supers; ++s) detail::put(out[3], s, m.nested_absmax(s));
        std::memcpy(out[4].bytes.data(), nibble::detail::signed_dynamic_map.values.data(), 1024);
        state["nested_blocksize"] = m.scheme().span;
        state["nested_dtype"] = "float32";
        state["nested_offset"] = static_cast<double>(m.tensor_scale());
    }
    const std::string text = state.dump();
    out.push_back(detail::make_tensor(weight + ".quant_state.bitsandbytes__" + m.format().name, dtype::u8,
                                      {static_cast<index>(text.size())}));
    std::memcpy(out.back().bytes.data(), text.data(), text.size());
    return out;
}

NIBBLE_IO_API std::string config_of(const qmatrix& m) {
    const nlohmann::json j = {{"quant_method", "bitsandbytes"},
                              {"load_in_4bit", true},
                              {"bnb_4bit_quant_type", m.format().name},
                              {"bnb_4bit_use_double_quant", m.scheme().storage == scale_storage::double_quantized},
                              {"bnb_4bit_compute_dtype", "bfloat16"}};
    return j.dump();
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io::layouts::bitsandbytes
