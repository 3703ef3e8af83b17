// How a checkpoint is opened: its files, its config, and which tensors make a layer. Part of checkpoint.hpp.
#pragma once

#include "../checkpoint.hpp"

namespace nibble::inline NIBBLE_ABI::io {

class checkpoint_reader {
public:
    explicit checkpoint_reader(const checkpoint_options& options) : options_(options) {}

    [[nodiscard]] result<checkpoint> read(const std::filesystem::path& given) {
        std::error_code why;
        folder_ = std::filesystem::is_directory(given, why) ? given
                  : given.has_parent_path()                 ? given.parent_path()
                                                            : path(".");
        if (!read_config() || !open_files(given) || !list_layers()) return std::move(failure_);
        return std::move(out_);
    }
    [[nodiscard]] result<checkpoint> read(safetensors::file file) {
        out_.shards_.push_back(std::move(file));
        if (!read_config() || !add_all() || !list_layers()) return std::move(failure_);
        return std::move(out_);
    }

private:
    using kind = detail::layer_source::kind;
    using path = std::filesystem::path;

    bool fail(failure why) {
        failure_ = std::move(why);
        return false;
    }
    bool fail(errc code, std::string text) { return fail({code, "checkpoint: " + std::move(text), 0}); }

    // --- files -------------------------------------------------------------------------------------------------

    [[nodiscard]] bool exists(const path& p) const {
        std::error_code why;
        return std::filesystem::exists(p, why);
    }
    [[nodiscard]] bool read_json(const path& p, nlohmann::json& out) {
        auto file = file_bytes::open(p, open_mode::copy);
        if (!file) return fail(file.failure());
        const auto bytes = file.value().bytes();
        if (bytes.size() > options_.config_bytes)
            return fail(errc::malformed, detail::quoted_path(p) + " has " + std::to_string(bytes.size()) +
                                             " bytes, more than " + std::to_string(options_.config_bytes));
        const auto* text = reinterpret_cast<const char*>(bytes.data());
        out = nlohmann::json::parse(text, text + bytes.size(), nullptr, false);
        return out.is_object() || fail(errc::malformed, detail::quoted_path(p) + ": expected a JSON object");
    }

    [[nodiscard]] bool read_config() {
        std::string text = options_.config;
        nlohmann::json j;
        for (const char* name : {"config.json", "quantize_config.json", "quant_config.json", "hf_quant_config.json"}) {
            if (!text.empty() || folder_.empty()) break;
            if (!exists(folder_ / name)) continue;
            if (!read_json(folder_ / name, j)) return false;
            if (std::string_view(name) == "config.json") {
                if (j.contains("quantization_config") && j["quantization_config"].is_object())
                    text = dump(j["quantization_config"]);
            } else {
                text = dump(j);
            }
        }
        if (text.empty()) return true;
        auto parsed = layouts::parse_quantization_config(text);
        if (!parsed) return fail(parsed.failure());
        out_.config_ = std::move(parsed).value();
        return true;
    }
    [[nodiscard]] static std::string dump(const nlohmann::json& j) {
        return j.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    }

    /// A name that stays in the folder.
    [[nodiscard]] static bool is_plain(std::string_view name) noexcept {
        if (name.empty() || name == "." || name == ".." || name.size() > 255) return false;
        for (const char c : name)
            if (c == '/' || c == '\\' || c == ':' || static_cast<unsigned char>(c) < 0x20) return false;
        return true;
    }

    [[nodiscard]] bool open_files(const path& given) {
        std::error_code why;
        if (!std::filesystem::is_directory(given, why)) return open_shard(given) && add_all();
        if (exists(given / "model.safetensors")) return open_shard(given / "model.safetensors") && add_all();
        std::vector<path> files, indices;
        for (std::filesystem::directory_iterator at(given, why), end; !why && at != end; at.increment(why)) {
            const std::string name = at->path().filename().string();
            if (name.ends_with(".safetensors.index.json"))
                indices.push_back(at->path());
            else if (name.ends_with(".safetensors"))
                files.push_back(at->path());
            if (files.size() > options_.shards)
                return fail(errc::malformed, "more than " + std::to_string(options_.shards) + " files");
        }
        if (why) return fail(errc::io, "cannot list " + detail::quoted_path(given) + ": " + why.message());
        if (indices.size() == 1) return open_index(indices[0]);
        if (indices.empty() && files.size() == 1) return open_shard(files[0]) && add_all();
        return fail(errc::not_found, detail::quoted_path(given) + " has " + std::to_string(files.size()) +
                                         " .safetensors files and " + std::to_string(indices.size()) +
                                         " indices; expected model.safetensors, one index, or one file");
    }
    [[nodiscard]] bool open_shard(const path& p) {
        auto file = safetensors::open(p, options_.how, options_.limits);
        if (!file) return fail(file.failure());
        out_.shards_.push_back(std::move(file).value());
        return true;
    }
    [[nodiscard]] bool add_all() {
        const std::vector<safetensors::tensor>& tensors = out_.shards_[0].tensors();
        out_.tensors_.reserve(tensors.size());
        for (const safetensors::tensor& t : tensors) out_.tensors_.emplace(t.name, &t);
        return true;
    }
    [[nodiscard]] bool open_index(const path& p) {
        nlohmann::json j;
        if (!read_json(p, j)) return false;
        const auto map = j.find("weight_map");
        if (map == j.end() || !map->is_object())
            return fail(errc::malformed, detail::quoted_path(p) + ": expected an object \"weight_map\"");
        std::map<std::string, std::size_t, std::less<>> number;
        for (const auto& [tensor, file] : map->items()) {
            if (!file.is_string() || !is_plain(file.get_ref<const std::string&>()))
                return fail(errc::malformed, detail::quoted_path(p) + ": tensor " + detail::quoted(tensor) +
                                                 ": expected the name of a file in the same folder");
            number.emplace(file.get_ref<const std::string&>(), 0);
        }
        if (number.size() > options_.shards)
            return fail(errc::malformed, "an index of more than " + std::to_string(options_.shards) + " files");
        for (auto& [name, i] : number) {
            i = out_.shards_.size();
            if (!open_shard(folder_ / path(std::u8string(name.begin(), name.end())))) return false;
        }
        for (const auto& [tensor, file] : map->items()) {
            auto found = out_.shards_[number.find(file.get_ref<const std::string&>())->second].at(tensor);
            if (!found)
                return fail(errc::not_found, detail::quoted_path(p) + ": " + file.get_ref<const std::string&>() + ": " +
                                                 found.failure().message);
            out_.tensors_.emplace(found.value()->name, found.value());
        }
        return true;
    }

    // --- layers ------------------------------------------------------------------------------------------------

    [[nodiscard]] const safetensors::tensor* part(std::string_view base, const char* suffix) const {
        return out_.find(std::string(base) + suffix);
    }
    [[nodiscard]] static index dim(const safetensors::tensor& t, std::size_t d) noexcept {
        return d < t.shape.size() && t.shape[d] <= 0x7fffffffu ? static_cast<index>(t.shape[d]) : index{0};
    }
    void add(kind what, const char* layout, std::string_view base, index rows, index cols) {
        found_.push_back({{std::string(base), layout, rows, cols}, {what, std::string(base), 0}});
    }

    [[nodiscard]] bool list_layers() {
        for (const auto& [name, t] : out_.tensors_) {
            const auto base = [&, n = name](std::string_view suffix) {
                return n.ends_with(suffix) ? n.substr(0, n.size() - suffix.size()) : std::string_view();
            };
            bool good = true;
            if (const auto x = base(".qweight"); !x.empty())
                good = add_qweight(x, *t);
            else if (const auto q = base(".W_q"); !q.empty())
                good = add_shaped(kind::hqq, "hqq", q, ".shape");
            else if (const auto p = base(".weight_packed"); !p.empty())
                good = add_packed(p, *t);
            else if (const auto b = base("_blocks"); !b.empty())
                add_experts(b, *t, "_scales");
            else if (const auto o = base(".blocks"); !o.empty())
                add_experts(o, *t, ".scales");
            else if (const auto w = base(".weight"); !w.empty())
                good = add_weight(w, *t);
            if (!good) return false;
        }
        std::sort(found_.begin(), found_.end(),
                  [](const entry& a, const entry& b) { return a.info.name < b.info.name; });
        for (entry& e : found_) {
            out_.layers_.push_back(std::move(e.info));
            out_.sources_.push_back(std::move(e.source));
        }
        return true;
    }

    [[nodiscard]] bool add_qweight(std::string_view x, const safetensors::tensor& t) {
        const layouts::quantization_config& c = out_.config_;
        if (c.method == "awq") {
            if (!c.format.empty() && c.format != "gemm" && c.format != "GEMM" && c.format != "gemv" &&
                c.format != "GEMV")
                return fail(errc::unsupported,
                            "AWQ of version " + detail::quoted(c.format) + "; there are gemm and gemv");
            if (c.bits != 0 && c.bits != 4)
                return fail(errc::unsupported, "AWQ of " + std::to_string(c.bits) + " bits; there are 4");
            if (c.format == "GEMV") out_.config_.format = "gemv";
            const bool gemv = out_.config_.format == "gemv";
            add(kind::awq, "awq", x, gemv ? dim(t, 0) : 8 * dim(t, 1), gemv ? 8 * dim(t, 1) : dim(t, 0));
            return true;
        }
        if (c.method != "gptq")
            return fail(errc::not_found, "tensor " + detail::quoted(t.name) + " may be of GPTQ or AWQ, and " +
                                             (c.method.empty() ? "there is no quantization config"
                                                               : "the config says " + detail::quoted(c.method)));
        if (!c.format.empty() && c.format != "gptq" && c.format != "gptq_v2")
            return fail(errc::unsupported,
                        "GPTQ in format " + detail::quoted(c.format) + "; there are gptq and gptq_v2");
        const auto* g_idx = part(x, ".g_idx");
        const int bits = c.bits == 0 ? 4 : c.bits;
        add(kind::gptq, "gptq", x, dim(t, 1), g_idx != nullptr ? dim(*g_idx, 0) : dim(t, 0) * 32 / bits);
        return true;
    }
    [[nodiscard]] bool add_shaped(kind what, const char* layout, std::string_view x, const char* suffix) {
        const auto* shape = part(x, suffix);
        if (shape == nullptr) return fail(errc::not_found, "no tensor " + detail::quoted(std::string(x) + suffix));
        layouts::detail::checks check(layout);
        const auto [rows, cols] = layouts::compressed_tensors::detail::read_shape(*shape, check);
        if (!check) return fail(std::move(check).failure());
        add(what, layout, x, rows, cols);
        return true;
    }
    [[nodiscard]] bool add_packed(std::string_view x, const safetensors::tensor& t) {
        const auto* scale = part(x, ".weight_scale");
        if (scale == nullptr)
            return fail(errc::not_found, "no tensor " + detail::quoted(std::string(x) + ".weight_scale"));
        if (t.type == safetensors::dtype::i32)
            return add_shaped(kind::integers, "compressed-tensors", x, ".weight_shape");
        if (part(x, ".weight_global_scale") != nullptr) {
            add(kind::nvfp4, "nvfp4", x, dim(t, 0), 2 * dim(t, 1));
        } else {
            const bool six = dim(t, 1) == 24 * dim(*scale, 1) && dim(t, 1) != 0;
            add(kind::mx, six ? "mxfp6" : "mxfp4", x, dim(t, 0), 32 * dim(*scale, 1));
        }
        return true;
    }
    void add_experts(std::string_view x, const safetensors::tensor& t, const char* scales) {
        if (part(x, scales) == nullptr || t.type != safetensors::dtype::u8 || t.shape.size() != 4) return;
        if (t.elements() == 0) return;  // else a few bytes could declare any number of experts
        for (index e = 0; e < layouts::mxfp4::experts(t); ++e) {
            add(kind::experts, "mxfp4", x, dim(t, 1), 32 * dim(t, 2));
            found_.back().info.name.append("[").append(std::to_string(e)).append("]");
            found_.back().source.expert = e;
        }
    }
    [[nodiscard]] bool add_weight(std::string_view x, const safetensors::tensor& t) {
        using safetensors::dtype;
        const bool four = part(x, ".weight.quant_state.bitsandbytes__nf4") != nullptr ||
                          part(x, ".weight.quant_state.bitsandbytes__fp4") != nullptr;
        if (four) {
            const auto* state = part(x, ".weight.quant_state.bitsandbytes__nf4");
            layouts::detail::checks check("bitsandbytes");
            const auto s = layouts::bitsandbytes::detail::read_state(
                state != nullptr ? *state : *part(x, ".weight.quant_state.bitsandbytes__fp4"), check);
            if (!check) return fail(std::move(check).failure());
            add(kind::four_bit, "bitsandbytes-4bit", x, s.rows, s.cols);
            return true;
        }
        const index rows = dim(t, 0), cols = dim(t, 1);
        const auto* scale = part(x, ".weight_scale");
        if (part(x, ".SCB") != nullptr)
            add(kind::int8, "bitsandbytes-int8", x, rows, cols);
        else if (t.type == dtype::u8 && part(x, ".weight_scale_2") != nullptr)
            add(kind::nvfp4, "nvfp4", x, rows, 2 * cols);
        else if (t.type == dtype::i8 && scale != nullptr)
            add(kind::integers, "compressed-tensors", x, rows, cols);
        else if (layouts::fp8::detail::format_of(t.type) != nullptr && scale != nullptr &&
                 (scale->type == dtype::u8 || scale->type == dtype::f8_e8m0))
            add(kind::mx, "mxfp8", x, rows, cols);
        else if (scale != nullptr || part(x, ".weight_scale_inv") != nullptr)  // of another type: loading it says so
            add(kind::fp8, "fp8", x, rows, cols);
        else if (t.shape.size() == 2 && (t.type == dtype::f32 || t.type == dtype::f16 || t.type == dtype::bf16))
            add(kind::plain, "plain", x, rows, cols);
        return true;
    }

    struct entry {
        layer_info info;
        detail::layer_source source;
    };

    const checkpoint_options& options_;
    path folder_;
    checkpoint out_;
    std::vector<entry> found_;
    failure failure_;
};

NIBBLE_IO_API result<checkpoint> open_checkpoint(const std::filesystem::path& path, const checkpoint_options& options) {
    return checkpoint_reader(options).read(path);
}
NIBBLE_IO_API result<checkpoint> open_checkpoint(safetensors::file file, const checkpoint_options& options) {
    return checkpoint_reader(options).read(std::move(file));
}

}  // namespace nibble::io
