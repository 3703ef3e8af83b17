// Checkpoints of other programs: one call finds out how they are quantized and yields their layers.
//
//     auto model = nibble::io::open_checkpoint("Qwen3-8B-AWQ").value();         // a folder, or one .safetensors file
//     for (const auto& layer : model.layers()) ...                               // name, layout, N, K
//     nibble::io::linear q = model.load("model.layers.0.self_attn.q_proj").value();
//     Eigen::MatrixXf Y = nibble::io::multiply(q, X);
//
// A folder holds config.json (or quantize_config.json, quant_config.json, hf_quant_config.json) and model.safetensors, or
// an index *.safetensors.index.json and the shards it names, or one file of any name. Configs that stand beside a single
// file are read as well.
//
// What a layer is, by the names of its tensors (X is its name) and, where names are shared, the config:
//
//   layout                        tensors                                                config
//   gptq                          X.qweight, X.qzeros, X.scales, X.g_idx                 quant_method gptq, or bits
//   awq                           X.qweight, X.qzeros, X.scales                          quant_method awq, or w_bit
//   bitsandbytes-4bit             X.weight, X.weight.absmax, X.weight.quant_state...     -
//   bitsandbytes-int8             X.weight, X.SCB                                        -
//   compressed-tensors            X.weight_packed (I32), X.weight_shape; X.weight (I8)   config_groups
//   fp8                           X.weight (F8), X.weight_scale or _scale_inv            weight_block_size, config_groups
//   nvfp4                         X.weight_packed, X.weight_global_scale; X.weight_scale_2      -
//   mxfp4 mxfp6 mxfp8             X.weight_packed (U8) or X.weight (F8), X.weight_scale (U8)   -
//   mxfp4 (gpt-oss)               X_blocks, X_scales; one layer an expert: X[0], X[1]    -
//   hqq                           X.W_q, X.scale, X.zero, X.shape                        nbits, group_size, axis
//   plain                         X.weight of two dimensions, F32, F16 or BF16           -
//
// Opening reads headers and the configs, and of the tensors only the few bytes that hold a shape. Layers are read when
// they are asked for, one at a time. Everything in layouts/common.hpp about what is checked holds; nothing is thrown but
// std::bad_alloc.
#pragma once

#include <algorithm>
#include <filesystem>
#include <unordered_map>

#include "layouts/awq.hpp"
#include "layouts/bitsandbytes.hpp"
#include "layouts/compressed_tensors.hpp"
#include "layouts/fp8.hpp"
#include "layouts/gptq.hpp"
#include "layouts/hqq.hpp"
#include "layouts/llm_int8.hpp"
#include "layouts/mxfp4.hpp"
#include "layouts/nvfp4.hpp"
#include "layouts/plain.hpp"
#include "layouts/quantization_config.hpp"

namespace nibble::inline NIBBLE_ABI::io {

/// One linear layer of a checkpoint.
struct layer_info {
    std::string name;  ///< without ".weight"; an expert of gpt-oss has its number behind it: "...gate_up_proj[3]"
    const char* layout = "";  ///< "gptq", "fp8", "plain", ...: the table above
    index rows = 0;           ///< N
    index cols = 0;           ///< K
};

struct checkpoint_options {
    open_mode how = open_mode::map;
    safetensors::read_limits limits{};
    /// JSON of the quantization config, in place of the one in the folder.
    std::string config{};
    std::size_t config_bytes = 64'000'000;  ///< the largest config or index that is read
    std::size_t shards = 10'000;
};

namespace detail {

/// What load() needs to know of a layer.
struct layer_source {
    enum class kind : std::uint8_t { plain, gptq, awq, four_bit, int8, integers, fp8, nvfp4, mx, experts, hqq };
    kind what = kind::plain;
    std::string base;  // of the names of its tensors
    index expert = 0;
};

}  // namespace detail

class checkpoint;
/// Opens a folder or a .safetensors file. A failure says which file, which tensor and what was expected.
[[nodiscard]] NIBBLE_IO_API result<checkpoint> open_checkpoint(const std::filesystem::path& path,
                                                               const checkpoint_options& options = {});
/// The same of a file that is open already, or in memory: no other file is looked at, the config is that of the options.
[[nodiscard]] NIBBLE_IO_API result<checkpoint> open_checkpoint(safetensors::file file, const checkpoint_options& options);

/// An open checkpoint. Moving it moves no bytes.
class checkpoint {
public:
    [[nodiscard]] const std::vector<layer_info>& layers() const& noexcept { return layers_; }  ///< by name
    const std::vector<layer_info>& layers() const&& = delete;
    /// What the config says; empty when there is none.
    [[nodiscard]] const layouts::quantization_config& config() const& noexcept { return config_; }
    const layouts::quantization_config& config() const&& = delete;
    /// Any tensor of any shard, or null.
    [[nodiscard]] const safetensors::tensor* find(std::string_view name) const& noexcept {
        const auto at = tensors_.find(name);
        return at == tensors_.end() ? nullptr : at->second;
    }
    const safetensors::tensor* find(std::string_view name) const&& = delete;
    /// All tensors of all shards, by name.
    [[nodiscard]] std::vector<const safetensors::tensor*> tensors() const& {
        std::vector<const safetensors::tensor*> out;
        for (const auto& [name, t] : tensors_) out.push_back(t);
        std::sort(out.begin(), out.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
        return out;
    }
    std::vector<const safetensors::tensor*> tensors() const&& = delete;
    /// Lets go of the memory of one of them until it is touched again: file_bytes::release().
    void release(const safetensors::tensor& t) const noexcept {
        for (const safetensors::file& shard : shards_) shard.release(t);
    }

    /// Layer i of layers(), with threads or without. Exact, but for the exceptions that the layouts name. A plain layer of F32 is a matrix where
    /// bfloat16 or fp16 holds all its values, else errc::unsupported: find() and tensor::view() give the floats.
    [[nodiscard]] result<linear> load(std::size_t i, executor* threads = nullptr) const;
    /// The layer of that name.
    [[nodiscard]] result<linear> load(std::string_view name, executor* threads = nullptr) const {
        const auto at = std::lower_bound(layers_.begin(), layers_.end(), name,
                                         [](const layer_info& l, std::string_view n) { return l.name < n; });
        if (at == layers_.end() || at->name != name)
            return failure{errc::not_found, "checkpoint: no layer " + detail::quoted(name) + nibble::detail::nearest_names(name, layers_, [](const layer_info& l) -> std::string_view { return l.name; }), 0};
        return load(static_cast<std::size_t>(at - layers_.begin()), threads);
    }

private:
    friend class checkpoint_reader;
    using kind = detail::layer_source::kind;

    [[nodiscard]] const safetensors::tensor* part(const std::string& base, const char* suffix) const {
        return find(base + suffix);
    }
    [[nodiscard]] result<linear> load_tensors(const detail::layer_source& source, executor* threads) const;
    [[nodiscard]] result<linear> load_integers(const std::string& base, executor* threads) const;
    [[nodiscard]] result<linear> load_fp8(const std::string& base, executor* threads) const;
    [[nodiscard]] static failure missing(const std::string& name) {
        return {errc::not_found, "checkpoint: no tensor " + detail::quoted(name), 0};
    }

    std::vector<safetensors::file> shards_;
    std::unordered_map<std::string_view, const safetensors::tensor*> tensors_;
    layouts::quantization_config config_;
    std::vector<layer_info> layers_;
    std::vector<detail::layer_source> sources_;
};

#if NIBBLE_DEFINE_IO

NIBBLE_IO_API result<linear> checkpoint::load(std::size_t i, executor* threads) const {
    if (i >= layers_.size())
        return failure{errc::out_of_range,
                       "checkpoint: layer " + std::to_string(i) + " of " + std::to_string(layers_.size()), 0};
    auto layer = load_tensors(sources_[i], threads);
    if (layer) return layer;
    failure why = layer.failure();
    why.message = "layer " + detail::quoted(layers_[i].name) + ": " + why.message;
    return why;
}

NIBBLE_IO_API result<linear> checkpoint::load_tensors(const detail::layer_source& source, executor* threads) const {
    const std::string& x = source.base;
    const auto need = [&](std::initializer_list<const char*> suffixes) {
        for (const char* s : suffixes)
            if (part(x, s) == nullptr) return x + s;
        return std::string();
    };
    const auto bias = part(x, ".bias");
    switch (source.what) {
        case kind::plain: return layouts::plain::unpack(*part(x, ".weight"), bias, threads);
        case kind::gptq:
        case kind::awq: {
            if (const std::string name = need({".qweight", ".qzeros", ".scales"}); !name.empty()) return missing(name);
            const index group = config_.group_size == 0 ? index{-1} : config_.group_size;
            if (source.what == kind::awq)
                return layouts::awq::unpack(*part(x, ".qweight"), *part(x, ".qzeros"), *part(x, ".scales"), bias,
                                            {group, config_.format == "gemv"}, threads);
            return layouts::gptq::unpack(
                *part(x, ".qweight"), *part(x, ".qzeros"), *part(x, ".scales"), part(x, ".g_idx"), bias,
                {config_.bits == 0 ? 4 : config_.bits, group, config_.format == "gptq_v2", config_.act_order,
                 config_.gptqmodel}, threads);
        }
        case kind::four_bit: {
            const auto* nf4 = part(x, ".weight.quant_state.bitsandbytes__nf4");
            return layouts::bitsandbytes::unpack_four_bit(
                {part(x, ".weight"), part(x, ".weight.absmax"), part(x, ".weight.quant_map"),
                 nf4 != nullptr ? nf4 : part(x, ".weight.quant_state.bitsandbytes__fp4"),
                 part(x, ".weight.nested_absmax"), part(x, ".weight.nested_quant_map"), bias}, threads);
        }
        case kind::int8:
            return layouts::bitsandbytes::unpack_int8(*part(x, ".weight"), *part(x, ".SCB"), part(x, ".weight_format"),
                                                      bias, threads);
        case kind::integers: return load_integers(x, threads);
        case kind::fp8: return load_fp8(x, threads);
        case kind::nvfp4: {
            const bool divide = part(x, ".weight_packed") != nullptr;
            if (const std::string name =
                    divide ? need({".weight_scale", ".weight_global_scale"}) : need({".weight", ".weight_scale"});
                !name.empty())
                return missing(name);
            return layouts::nvfp4::unpack(*part(x, divide ? ".weight_packed" : ".weight"), *part(x, ".weight_scale"),
                                          *part(x, divide ? ".weight_global_scale" : ".weight_scale_2"), bias, divide, threads);
        }
        case kind::mx: {
            const auto* packed = part(x, ".weight_packed");
            const auto* scale = part(x, ".weight_scale");
            int bits = 8;  // 4 and 6 bits a code: 16 and 24 bytes to a scale
            if (packed != nullptr)
                bits = packed->shape.size() == 2 && scale->shape.size() == 2 &&
                               packed->shape[1] / 24 == scale->shape[1] && packed->shape[1] % 24 == 0
                           ? 6
                           : 4;
            return layouts::mxfp4::unpack_matrix(packed != nullptr ? *packed : *part(x, ".weight"), *scale, bias, bits, threads);
        }
        case kind::experts: {
            const bool original = part(x, "_blocks") == nullptr;
            return layouts::mxfp4::unpack(*part(x, original ? ".blocks" : "_blocks"),
                                          *part(x, original ? ".scales" : "_scales"),
                                          part(x, original ? ".bias" : "_bias"), source.expert, threads);
        }
        case kind::hqq: {
            if (const std::string name = need({".W_q", ".scale", ".zero", ".shape"}); !name.empty())
                return missing(name);
            layouts::detail::checks check("hqq");
            const auto [rows, cols] = layouts::compressed_tensors::detail::read_shape(*part(x, ".shape"), check);
            if (!check) return std::move(check).failure();
            return layouts::hqq::unpack(
                *part(x, ".W_q"), *part(x, ".scale"), *part(x, ".zero"), bias,
                {config_.bits == 0 ? 4 : config_.bits, config_.group_size, config_.axis, rows, cols}, threads);
        }
    }
    return missing(x);
}

/// The scheme of the config that fits the shapes. Several groups of a config may aim at different layers; the shapes of
/// a layer's tensors tell which is its own, or that two would do with different results.
NIBBLE_IO_API result<linear> checkpoint::load_integers(const std::string& x, executor* threads) const {
    namespace ct = layouts::compressed_tensors;
    const auto* packed = part(x, ".weight_packed");
    const ct::integer_tensors t{packed != nullptr ? packed : part(x, ".weight"),
                                part(x, ".weight_scale"),
                                part(x, ".weight_shape"),
                                part(x, ".weight_zero_point"),
                                part(x, ".weight_g_idx"),
                                part(x, ".bias")};
    if (t.scale == nullptr) return missing(x + ".weight_scale");
    std::vector<ct::config> candidates;
    for (const layouts::weight_scheme& s : config_.schemes)
        if (!s.floats) candidates.push_back({s.bits, s.tile, s.symmetric});
    if (candidates.empty())
        return failure{errc::not_found, "checkpoint: no config_groups say how many bits and which groups it has", 0};
    std::optional<result<linear>> found;
    const ct::config* chosen = nullptr;
    for (const ct::config& c : candidates) {
        auto layer = ct::unpack_integers(t, c, threads);
        if (layer && chosen != nullptr && (c.bits != chosen->bits || c.tile != chosen->tile))
            return failure{errc::malformed, "checkpoint: two config_groups fit its tensors", 0};
        if (layer) chosen = &c;
        if (layer || !found.has_value()) found.emplace(std::move(layer));
    }
    return *std::move(found);
}

NIBBLE_IO_API result<linear> checkpoint::load_fp8(const std::string& x, executor* threads) const {
    const auto* weight = part(x, ".weight");
    const auto* inverse = part(x, ".weight_scale_inv");
    const auto* scale = inverse != nullptr ? inverse : part(x, ".weight_scale");
    std::optional<result<linear>> found;
    if (inverse != nullptr || (config_.tile.has_value() && scale->elements() != 1))
        return layouts::fp8::unpack(*weight, *scale, part(x, ".bias"), config_.tile.value_or(granularity{128, 128}), threads);
    for (const layouts::weight_scheme& s : config_.schemes) {
        if (!s.floats) continue;
        auto layer = layouts::fp8::unpack(*weight, *scale, part(x, ".bias"), s.tile, threads);
        if (layer) return layer;
        if (!found.has_value()) found.emplace(std::move(layer));
    }
    if (found.has_value()) return *std::move(found);
    return layouts::fp8::unpack(*weight, *scale, part(x, ".bias"), {}, threads);
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io

#if NIBBLE_DEFINE_IO
#include "layouts/checkpoint_reader.hpp"
#endif
