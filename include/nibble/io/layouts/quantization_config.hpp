// What a checkpoint says of its quantization: config.json ("quantization_config"), quantize_config.json (AutoGPTQ),
// quant_config.json (AWQ), hf_quant_config.json (ModelOpt).
#pragma once

#include <nlohmann/json.hpp>

#include "compressed_tensors.hpp"
#include "gptq.hpp"

namespace nibble::inline NIBBLE_ABI::io::layouts {

/// One set of weights of compressed-tensors.
struct weight_scheme {
    int bits = 0;
    bool floats = false;
    granularity tile;
    bool symmetric = true;
};

/// The parts of a quantization config that say how tensors are read.
struct quantization_config {
    std::string method;                  ///< quant_method; empty if there is none
    std::string format;                  ///< of all weights: pack-quantized, gptq_v2, gemm, ...
    int bits = 0;                        ///< 0: not said
    index group_size = 0;                ///< 0: not said
    int axis = 1;                        ///< HQQ
    bool act_order = false;              ///< desc_act
    bool gptqmodel = false;              ///< meta.quantizer is a version of GPTQModel
    std::optional<granularity> tile;     ///< weight_block_size
    std::vector<weight_scheme> schemes;  ///< config_groups
};

/// Reads the JSON of a quantization config. A failure names the field.
[[nodiscard]] NIBBLE_IO_API result<quantization_config> parse_quantization_config(std::string_view text);

#if NIBBLE_DEFINE_IO

namespace detail {

/// Reads fields of a JSON object, and remembers the first that is not what it should be.
class fields {
public:
    fields(const nlohmann::json& object, std::string& wrong) : object_(object), wrong_(wrong) {}

    [[nodiscard]] const nlohmann::json* find(const char* key) const {
        if (!object_.is_object()) return nullptr;
        const auto at = object_.find(key);
        return at == object_.end() || at->is_null() ? nullptr : &*at;
    }
    [[nodiscard]] std::string text(const char* key) const {
        const nlohmann::json* at = find(key);
        if (at == nullptr) return {};
        if (at->is_string()) return at->get_ref<const std::string&>();
        complain(key, "a string");
        return {};
    }
    [[nodiscard]] index number(const char* key, index least, index absent) const {
        const nlohmann::json* at = find(key);
        return at == nullptr ? absent : number_in(*at, key, least, absent);
    }
    [[nodiscard]] bool flag(const char* key, bool absent) const {
        const nlohmann::json* at = find(key);
        if (at == nullptr) return absent;
        if (at->is_boolean()) return at->get<bool>();
        complain(key, "true or false");
        return absent;
    }
    /// [rows, cols], both at least 1.
    [[nodiscard]] std::optional<granularity> tile(const char* key) const {
        const nlohmann::json* at = find(key);
        if (at == nullptr) return std::nullopt;
        if (!at->is_array() || at->size() != 2) return complain(key, "two integers"), std::nullopt;
        return granularity{number_in((*at)[0], key, 1, 1), number_in((*at)[1], key, 1, 1)};
    }

private:
    [[nodiscard]] index number_in(const nlohmann::json& v, const char* key, index least, index absent) const {
        const bool fits = v.is_number_unsigned() ? v.get<std::uint64_t>() <= 0x7fffffffu : v.is_number_integer();
        if (fits && v.get<std::int64_t>() >= least) return v.get<index>();
        complain(key, "an integer from " + std::to_string(least) + " to 2^31 - 1");
        return absent;
    }
    void complain(const char* key, const std::string& expected) const {
        if (wrong_.empty()) wrong_ = std::string("\"").append(key).append("\": expected ").append(expected);
    }

    const nlohmann::json& object_;
    std::string& wrong_;
};

[[nodiscard]] inline weight_scheme read_scheme(const nlohmann::json& group, std::string& wrong) {
    weight_scheme s;
    const nlohmann::json* weights = fields(group, wrong).find("weights");
    if (weights == nullptr) return s;  // activations only
    const fields f(*weights, wrong);
    s.bits = static_cast<int>(f.number("num_bits", 1, 0));
    s.floats = f.text("type") == "float";
    s.symmetric = f.flag("symmetric", true);
    const std::string strategy = f.text("strategy");
    if (strategy == "tensor")
        s.tile = {0, 0};
    else if (strategy == "channel")
        s.tile = {1, 0};
    else if (strategy == "block")
        s.tile = f.tile("block_structure").value_or(granularity{128, 128});
    else
        s.tile = {1, f.number("group_size", 1, 0)};  // group, tensor_group
    return s;
}

}  // namespace detail

NIBBLE_IO_API result<quantization_config> parse_quantization_config(std::string_view text) {
    const nlohmann::json j = nlohmann::json::parse(text.begin(), text.end(), nullptr, false);
    if (!j.is_object()) return failure{errc::malformed, "quantization config: expected a JSON object", 0};
    std::string wrong;
    const detail::fields f(j, wrong);
    quantization_config c;
    c.method = f.text("quant_method");
    c.format = f.text("checkpoint_format");
    if (c.format.empty()) c.format = f.text("format");
    if (c.format.empty()) c.format = f.text("version");
    if (c.method.empty())
        c.method = f.find("w_bit") != nullptr           ? "awq"
                   : f.find("config_groups") != nullptr ? "compressed-tensors"
                   : f.find("bits") != nullptr          ? "gptq"
                                                        : "";
    for (const char* key : {"bits", "w_bit", "nbits"})
        if (f.find(key) != nullptr) c.bits = static_cast<int>(f.number(key, 1, 0));
    for (const char* key : {"group_size", "q_group_size"})
        if (f.find(key) != nullptr) c.group_size = f.number(key, -1, 0);
    c.axis = static_cast<int>(f.number("axis", 0, 1));
    c.act_order = f.flag("desc_act", false);
    if (const nlohmann::json* meta = f.find("meta"); meta != nullptr)
        if (const nlohmann::json* by = detail::fields(*meta, wrong).find("quantizer"); by != nullptr)
            c.gptqmodel = by->dump(-1, ' ', true, nlohmann::json::error_handler_t::replace).find("gptqmodel") != std::string::npos;
    c.tile = f.tile("weight_block_size");
    if (const nlohmann::json* nested = f.find("quant_config"); nested != nullptr) {  // HQQ of transformers
        if (const nlohmann::json* weights = detail::fields(*nested, wrong).find("weight_quant_params");
            weights != nullptr) {
            const detail::fields w(*weights, wrong);
            c.bits = static_cast<int>(w.number("nbits", 1, c.bits));
            c.group_size = w.number("group_size", 1, c.group_size);
            c.axis = static_cast<int>(w.number("axis", 0, c.axis));
        }
    }
    if (const nlohmann::json* groups = f.find("config_groups"); groups != nullptr && groups->is_object())
        for (const nlohmann::json& group : *groups)
            if (const weight_scheme s = detail::read_scheme(group, wrong); s.bits != 0) c.schemes.push_back(s);
    if (c.bits > 16 || c.bits < 0) wrong = "bits: expected at most 16";
    if (!wrong.empty()) return failure{errc::malformed, "quantization config: " + wrong, 0};
    return c;
}

#endif  // NIBBLE_DEFINE_IO

}  // namespace nibble::io::layouts
