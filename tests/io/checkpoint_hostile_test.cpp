// Checkpoints that are wrong: every tensor missing, of another type, of another shape; NaN, Inf and indices out of range
// in every tensor that can hold them; every bit of headers flipped; configs and indices of all kinds. Nothing may crash,
// throw, or come out as other weights than those of the file.
#include "nibble/io/checkpoint.hpp"

#include <fstream>

#include "support/catch.hpp"
#include "support/scratch.hpp"

namespace {

namespace fs = std::filesystem;
namespace st = nibble::io::safetensors;
using extent = nibble::index;  // index is a function of <strings.h>
using nibble::errc;
using nibble::io::open_checkpoint;
using st::dtype;
using tensor_list = std::vector<st::tensor_data>;

[[nodiscard]] fs::path golden() { return fs::path(NIBBLE_TEST_DATA_DIR) / "checkpoints"; }

struct sample {
    std::string name, config;
    tensor_list tensors;
};

const std::vector<sample>& samples() {
    static const std::vector<sample> all = [] {
        std::vector<sample> list;
        std::vector<fs::path> folders;
        for (const auto& entry : fs::directory_iterator(golden()))
            if (entry.is_directory()) folders.push_back(entry.path());
        std::sort(folders.begin(), folders.end());
        for (const fs::path& folder : folders) {
            sample s{folder.filename().string(), {}, {}};
            if (fs::exists(folder / "quantize_config.json"))
                s.config = slurp(folder / "quantize_config.json");
            else
                s.config = nlohmann::json::parse(slurp(folder / "config.json"))["quantization_config"].dump();
            const auto file = st::open(folder / "model.safetensors");
            for (const st::tensor& t : file.value().tensors())
                s.tensors.push_back({t.name, t.type, t.shape, {t.bytes.begin(), t.bytes.end()}});
            list.push_back(std::move(s));
        }
        return list;
    }();
    return all;
}

/// What becomes of a file: the failure of opening it or of the first layer that cannot be read, or all weights.
struct outcome {
    std::string failure;
    std::uint64_t offset = 0;
    std::vector<Eigen::MatrixXf> weights;
};

[[nodiscard]] outcome attempt_bytes(std::string_view bytes, const std::string& config) {
    auto file = st::parse(std::as_bytes(std::span(bytes)));
    if (!file) return {file.failure().message, file.failure().offset, {}};
    nibble::io::checkpoint_options options;
    options.config = config;
    const auto model = open_checkpoint(std::move(file).value(), options);
    if (!model) return {model.failure().message, model.failure().offset, {}};
    outcome o;
    for (std::size_t i = 0; i < model.value().layers().size(); ++i) {
        const auto layer = model.value().load(i);
        if (!layer) return {layer.failure().message, layer.failure().offset, {}};
        CHECK(nibble::io::check_linear(layer.value()));
        CHECK(layer.value().weight.rows() == model.value().layers()[i].rows);
        CHECK(layer.value().weight.cols() == model.value().layers()[i].cols);
        if (layer.value().weight.rows() * layer.value().weight.cols() < 1'000'000)
            o.weights.push_back(nibble::io::dequantize(layer.value()));
    }
    return o;
}

[[nodiscard]] std::string serialize(const tensor_list& tensors) {
    std::vector<st::tensor> views;
    for (const auto& t : tensors) views.push_back(t.view());
    st::writer out;
    std::vector<std::size_t> order;
    st::detail::add_all(out, views, {}, order).or_throw();
    std::string bytes = out.header().value();
    for (const std::size_t i : order) bytes.append(reinterpret_cast<const char*>(tensors[i].bytes.data()), tensors[i].bytes.size());
    return bytes;
}
[[nodiscard]] outcome attempt(const tensor_list& tensors, const std::string& config) {
    return attempt_bytes(serialize(tensors), config);
}

[[nodiscard]] bool same(const outcome& a, const outcome& b) {
    if (a.weights.size() != b.weights.size()) return false;
    for (std::size_t i = 0; i < a.weights.size(); ++i) {
        const auto &x = a.weights[i], &y = b.weights[i];
        if (x.rows() != y.rows() || x.cols() != y.cols() ||
            std::memcmp(x.data(), y.data(), static_cast<std::size_t>(x.size()) * 4) != 0)
            return false;
    }
    return true;
}

/// Refused, or nothing there to read, or the weights that the file held before.
[[nodiscard]] bool harmless(const outcome& now, const outcome& before) {
    return !now.failure.empty() || now.weights.empty() || same(now, before);
}

[[nodiscard]] std::size_t bytes_of(const st::tensor_data& t) {
    std::uint64_t bits = st::bits_of(t.type);
    for (const std::uint64_t d : t.shape) bits *= d;
    return bits / 8;
}
[[nodiscard]] bool is_float8(dtype t) {
    return t == dtype::f8_e4m3 || t == dtype::f8_e5m2 || t == dtype::f8_e4m3fnuz || t == dtype::f8_e5m2fnuz;
}

/// Types that may stand in for type a: files with either are right, though they mean other numbers. (FP8 with float
/// scales in groups of 32 is no MXFP8, but right.)
[[nodiscard]] bool interchangeable(dtype a, dtype b, bool mx_scale) {
    const auto floats = [](dtype t) { return t == dtype::f32 || t == dtype::f16 || t == dtype::bf16; };
    return (floats(b) && (floats(a) || (mx_scale && a == dtype::u8))) || (is_float8(a) && is_float8(b));
}

}  // namespace

TEST_CASE("a tensor that is missing") {
    for (const sample& s : samples()) {
        const outcome before = attempt(s.tensors, s.config);
        REQUIRE(before.failure.empty());
        REQUIRE(!before.weights.empty());
        for (std::size_t i = 0; i < s.tensors.size(); ++i) {
            tensor_list tensors = s.tensors;
            tensors.erase(tensors.begin() + static_cast<std::ptrdiff_t>(i));
            INFO(s.name << " without " << s.tensors[i].name);
            CHECK(harmless(attempt(tensors, s.config), before));
        }
    }
}

TEST_CASE("a tensor of another type") {
    for (const sample& s : samples()) {
        const outcome before = attempt(s.tensors, s.config);
        for (std::size_t i = 0; i < s.tensors.size(); ++i)
            for (const auto& d : st::detail::dtypes) {
                if (d.type == s.tensors[i].type || interchangeable(s.tensors[i].type, d.type, s.name == "ct_mxfp8"))
                    continue;
                for (const bool resized : {false, true}) {
                    tensor_list tensors = s.tensors;
                    tensors[i].type = d.type;
                    if (!resized && bytes_of(tensors[i]) != tensors[i].bytes.size()) continue;
                    if (resized) tensors[i].bytes.resize(bytes_of(tensors[i]));
                    if (d.bits < 8 && tensors[i].view().elements() * d.bits % 8 != 0) continue;
                    INFO(s.name << ", " << s.tensors[i].name << " as " << d.name);
                    CHECK(harmless(attempt(tensors, s.config), before));
                }
            }
    }
}

TEST_CASE("a tensor of another shape") {
    std::size_t tried = 0, others = 0;
    for (const sample& s : samples()) {
        const outcome before = attempt(s.tensors, s.config);
        for (std::size_t i = 0; i < s.tensors.size(); ++i) {
            std::vector<std::vector<std::uint64_t>> shapes;
            const std::vector<std::uint64_t>& shape = s.tensors[i].shape;
            for (std::size_t d = 0; d < shape.size(); ++d)
                for (const int change : {-1, 1, 2, 3}) {  // 2: twice, 3: none
                    shapes.push_back(shape);
                    std::uint64_t& to = shapes.back()[d];
                    to = change == 2   ? 2 * to
                         : change == 3 ? 0
                                       : to + static_cast<std::uint64_t>(static_cast<std::int64_t>(change));
                }
            shapes.emplace_back(shape.rbegin(), shape.rend());
            shapes.push_back(shape);
            shapes.back().push_back(1);
            shapes.push_back(shape);
            shapes.back().insert(shapes.back().begin(), 1);
            for (const auto& other : shapes) {
                if (other == shape) continue;
                tensor_list tensors = s.tensors;
                tensors[i].shape = other;
                tensors[i].bytes.resize(bytes_of(tensors[i]));
                INFO(s.name << ", " << s.tensors[i].name << " as " << tensors[i].view().describe());
                const outcome now = attempt(tensors, s.config);
                // Tensors that agree may be of another matrix: one with a longer row, say, whose last group is not full.
                const bool another = !now.weights.empty() && (now.weights[0].rows() != before.weights[0].rows() ||
                                                              now.weights[0].cols() != before.weights[0].cols() ||
                                                              now.weights.size() != before.weights.size());
                CHECK((another || harmless(now, before)));
                others += another ? 1u : 0u;
                // Of a tensor that is read, the message says which it is.
                if (!now.failure.empty()) CHECK(now.failure.find("tensor \"") != std::string::npos);
                ++tried;
            }
        }
    }
    CHECK(others * 10 < tried);
}

TEST_CASE("NaN and Inf in scales, zeros, maps, biases and weights") {
    std::size_t tried = 0;
    for (const sample& s : samples())
        for (std::size_t i = 0; i < s.tensors.size(); ++i) {
            const st::tensor_data& t = s.tensors[i];
            if (t.name.ends_with("input_scale")) continue;
            std::vector<std::uint32_t> bad;
            if (t.type == dtype::f32) bad = {0x7fc00000u, 0x7f800000u, 0xff800000u, 0x7f800001u};
            if (t.type == dtype::f16) bad = {0x7c00u, 0xfc00u, 0x7e00u};
            if (t.type == dtype::bf16) bad = {0x7f80u, 0xff80u, 0x7fc0u};
            if (t.type == dtype::f8_e4m3) bad = {0x7fu, 0xffu};
            const bool exponents =
                t.name.ends_with("_scales") || (t.name.ends_with("weight_scale") && t.type == dtype::u8);
            if (exponents) bad = {0xffu};
            const std::size_t size = st::bits_of(t.type) / 8, count = t.bytes.size() / size;
            for (const std::uint32_t bits : bad)
                for (const std::size_t at : {std::size_t{0}, count / 2, count - 1}) {
                    tensor_list tensors = s.tensors;
                    std::memcpy(tensors[i].bytes.data() + at * size, &bits, size);
                    const std::string file = serialize(tensors);
                    const outcome now = attempt_bytes(file, s.config);
                    INFO(s.name << ", " << t.name << " " << at << ": " << now.failure);
                    CHECK(now.failure.find("NaN") != std::string::npos);
                    CHECK(now.failure.find("element [") != std::string::npos);
                    CHECK(now.failure.find(t.name) != std::string::npos);
                    CHECK(std::memcmp(file.data() + now.offset, &bits, size) == 0);  // the offset is the element's
                    ++tried;
                }
        }
    CHECK(tried > 400);
}

TEST_CASE("indices of act-order out of range") {
    for (const sample& s : samples())
        for (std::size_t i = 0; i < s.tensors.size(); ++i) {
            if (!s.tensors[i].name.ends_with(".g_idx")) continue;
            const auto cols = s.tensors[i].shape[0];
            for (const std::int32_t bad : {-1, INT32_MIN, INT32_MAX, static_cast<std::int32_t>(cols)})
                for (const std::size_t at : {std::size_t{0}, std::size_t{17}, std::size_t{cols - 1}}) {
                    tensor_list tensors = s.tensors;
                    std::memcpy(tensors[i].bytes.data() + 4 * at, &bad, 4);
                    const outcome now = attempt(tensors, s.config);
                    INFO(s.name << ": " << now.failure);
                    CHECK(now.failure.find("element [" + std::to_string(at) + "] is " + std::to_string(bad) +
                                           ", but there are ") != std::string::npos);
                }
        }
}

TEST_CASE("shapes and states that stand in tensors") {
    for (const sample& s : samples())
        for (std::size_t i = 0; i < s.tensors.size(); ++i) {
            if (s.tensors[i].type != dtype::i64) continue;
            const outcome before = attempt(s.tensors, s.config);
            for (const std::int64_t bad :
                 {std::int64_t{-1}, INT64_MIN, INT64_MAX, std::int64_t{1} << 31, std::int64_t{1} << 32,
                  std::int64_t{0x7fffffff}, std::int64_t{0}, std::int64_t{1}, std::int64_t{63}})
                for (const std::size_t at : {std::size_t{0}, std::size_t{1}}) {
                    tensor_list tensors = s.tensors;
                    std::memcpy(tensors[i].bytes.data() + 8 * at, &bad, 8);
                    INFO(s.name << ": " << bad);
                    CHECK(!attempt(tensors, s.config).failure.empty());
                }
        }
    const sample& bnb = *std::find_if(samples().begin(), samples().end(),
                                      [](const sample& s) { return s.name == "bnb_nf4_double_quant"; });
    const auto at = static_cast<std::size_t>(
        std::find_if(bnb.tensors.begin(), bnb.tensors.end(),
                     [](const auto& t) { return t.name.find("quant_state") != std::string::npos; }) -
        bnb.tensors.begin());
    const auto* first = reinterpret_cast<const char*>(bnb.tensors[at].bytes.data());
    const nlohmann::json good = nlohmann::json::parse(first, first + bnb.tensors[at].bytes.size());
    const auto refused = [&](const std::string& text) {
        tensor_list tensors = bnb.tensors;
        tensors[at].bytes.resize(text.size());
        if (!text.empty()) std::memcpy(tensors[at].bytes.data(), text.data(), text.size());
        tensors[at].shape = {text.size()};
        const outcome now = attempt(tensors, bnb.config);
        INFO(text.substr(0, 200));
        CHECK(!now.failure.empty());
    };
    for (const char* key : {"quant_type", "blocksize", "shape", "nested_blocksize", "nested_offset"}) {
        nlohmann::json j = good;
        j.erase(key);
        if (std::string_view(key) != "nested_blocksize") refused(j.dump());  // without it the u8 absmax is at fault
        for (const nlohmann::json& bad :
             {nlohmann::json(), nlohmann::json("x"), nlohmann::json(-1), nlohmann::json(0),
              nlohmann::json(0xffffffffffffffffu), nlohmann::json(1e300), nlohmann::json({1, 2, 3}),
              nlohmann::json({48, -384}), nlohmann::json({0x7fffffff, 0x7fffffff}), nlohmann::json({0x7fffffff, 0}),
              nlohmann::json(63)}) {
            j = good;
            j[key] = bad;
            if (std::string_view(key) == "nested_offset" && bad.is_number() && bad != 1e300) continue;
            refused(j.dump());
        }
    }
    for (const std::string& text :
         {std::string(), std::string("{"), std::string("[]"), std::string("null"),
          std::string(70000, ' ') + good.dump(), std::string(60000, '['), good.dump() + "x", std::string("\xff\xfe")})
        refused(text);
}

TEST_CASE("every bit of a header flipped, and every length of a file") {
    std::size_t tried = 0;
    for (const sample& s : samples()) {
        if (s.name.find("odd") == std::string::npos && s.name != "gptoss_mxfp4" &&
            s.name != "gptq_2bit_g32_sym_actorder" && s.name != "ct_nvfp4" && s.name != "hqq_1bit_g32_axis0")
            continue;
        std::string file = serialize(s.tensors);
        std::uint64_t header = 0;
        std::memcpy(&header, file.data(), 8);
        for (std::size_t i = 0; i < 8 + header; ++i)
            for (int bit = 0; bit < 8; ++bit) {
                file[i] = static_cast<char>(file[i] ^ (1 << bit));
                static_cast<void>(attempt_bytes(file, s.config));
                file[i] = static_cast<char>(file[i] ^ (1 << bit));
                ++tried;
            }
        for (std::size_t size = 0; size < file.size(); ++size) {
            const std::unique_ptr<char[]> exact(
                new char[size]);  // so that the address sanitizer sees one byte too many
            std::memcpy(exact.get(), file.data(), size);
            const outcome now = attempt_bytes({exact.get(), size}, s.config);
            if (now.failure.empty()) FAIL(s.name << " of " << size << " bytes is read");
        }
    }
    CHECK(tried > 10000);
}

TEST_CASE("quantization configs") {
    const auto parse = [](const std::string& text) { return nibble::io::layouts::parse_quantization_config(text); };
    for (const char* text :
         {"", "[]", "null", "{", R"({"bits": "4"})", R"({"bits": 4.0})", R"({"bits": 0})", R"({"bits": 17})",
          R"({"bits": 4, "group_size": -2})", R"({"bits": 4, "group_size": 4294967296})",
          R"({"bits": 4, "group_size": 18446744073709551615})", R"({"quant_method": 3})",
          R"({"quant_method": "fp8", "weight_block_size": 128})",
          R"({"quant_method": "fp8", "weight_block_size": [128]})",
          R"({"quant_method": "fp8", "weight_block_size": [0, 128]})", R"({"desc_act": "yes"})", R"({"axis": -1})",
          R"({"config_groups": {"group_0": {"weights": {"num_bits": "x"}}}})"}) {
        INFO(text);
        const auto c = parse(text);
        CHECK(!c);
    }
    CHECK(parse("{}"));
    CHECK(parse(R"({"config_groups": [1, 2]})"));
    CHECK(parse(R"({"config_groups": {"a": 1, "b": {"weights": []}}})"));
    CHECK(!parse(std::string(100000, '[')));
    const auto config_of = [](const char* name) {
        return std::find_if(samples().begin(), samples().end(), [&](const sample& s) { return s.name == name; });
    };
    const sample& gptq = *config_of("gptq_4bit_g128_sym");
    const auto message = [&](const sample& s, const std::string& config) { return attempt(s.tensors, config).failure; };
    CHECK(message(gptq, "{}").find("GPTQ or AWQ") != std::string::npos);
    CHECK(message(gptq, R"({"quant_method": "fancy"})").find("fancy") != std::string::npos);
    CHECK(message(gptq, R"({"bits": 4, "group_size": 128, "checkpoint_format": "marlin"})").find("marlin") !=
          std::string::npos);
    for (const char* config :
         {R"({"bits": 8, "group_size": 128})", R"({"bits": 3, "group_size": 128})", R"({"bits": 5, "group_size": 128})",
          R"({"bits": 4, "group_size": 64})", R"({"bits": 4, "group_size": 0})", R"({"bits": 4, "group_size": -1})",
          R"({"w_bit": 4, "q_group_size": 128})", R"({"quant_method": "awq", "version": "exotic"})",
          R"({"quant_method": "awq", "bits": 8})"}) {
        INFO(config);
        CHECK(message(gptq, config) != "");
    }
    const sample& ct = *config_of("ct_pack_int4_g32_asym");
    CHECK(message(ct, "{}").find("config_groups") != std::string::npos);
    const auto two = [](const char* a, const char* b) {
        return std::string(R"({"config_groups":{"a":{"weights":)") + a + R"(},"b":{"weights":)" + b + "}}}";
    };
    const char *right = R"({"num_bits":4,"type":"int","strategy":"group","group_size":32,"symmetric":false})",
               *other = R"({"num_bits":8,"type":"int","strategy":"channel"})";
    CHECK(message(ct, two(right, other)) == "");
    CHECK(message(ct, two(other, right)) == "");
    CHECK(message(ct, two(right, right)) == "");
    CHECK(message(ct, two(other, other)) != "");
    CHECK(message(*config_of("deepseek_fp8_block"), R"({"quant_method":"fp8","weight_block_size":[64,128]})") != "");
    CHECK(message(*config_of("hqq_4bit_g64_axis1"), R"({"quant_method":"hqq","nbits":4,"group_size":32,"axis":1})") !=
          "");
    CHECK(message(*config_of("hqq_4bit_g64_axis1"), R"({"quant_method":"hqq","nbits":8,"group_size":64,"axis":1})") !=
          "");
    CHECK(
        message(
            *config_of("hqq_4bit_g64_axis1"),
            R"({"quant_method":"hqq","quant_config":{"weight_quant_params":{"nbits":4,"group_size":64,"axis":1}}})") ==
        "");
}

TEST_CASE("folders, shards and indices") {
    const scratch_dir scratch;
    const fs::path folder = scratch.path / "model";
    fs::create_directory(folder);
    const auto write = [&](const std::string& name, const std::string& text) {
        std::ofstream(folder / name, std::ios::binary) << text;
    };
    const auto refused = [&](const std::string& part) {
        const auto model = open_checkpoint(folder);
        REQUIRE(!model);
        INFO(model.failure().message);
        CHECK(model.failure().message.find(part) != std::string::npos);
    };
    refused("0 .safetensors files");
    CHECK(!open_checkpoint(scratch.path / "missing"));
    CHECK(!open_checkpoint(scratch.path / "missing.safetensors"));
    const sample& s = *std::find_if(samples().begin(), samples().end(), [](const sample& x) { return x.name == "gptq_4bit_g128_sym"; });
    const outcome before = attempt(s.tensors, s.config);
    tensor_list a, b;
    nlohmann::json map;
    for (std::size_t i = 0; i < s.tensors.size(); ++i) {
        (i % 2 == 0 ? a : b).push_back(s.tensors[i]);
        map[s.tensors[i].name] = i % 2 == 0 ? "a.safetensors" : "b.safetensors";
    }
    write("a.safetensors", serialize(a));
    write("b.safetensors", serialize(b));
    write("quantize_config.json", s.config);
    refused("2 .safetensors files");
    const auto index_of = [](const nlohmann::json& m) {
        return nlohmann::json{{"metadata", {{"total_size", 1}}}, {"weight_map", m}}.dump();
    };
    const std::string index_name = "model.safetensors.index.json";
    write(index_name, index_of(map));
    {
        const auto model = open_checkpoint(folder);
        if (!model) FAIL(model.failure().message);
        const auto layer = model.value().load(s.tensors[0].name.substr(0, s.tensors[0].name.rfind('.')));
        if (!layer) FAIL(layer.failure().message);
        CHECK(nibble::io::dequantize(layer.value()) == before.weights[0]);
        CHECK(!model.value().load("model.layers.0"));
        CHECK(!model.value().load(99));
    }
    for (const char* name :
         {"../a.safetensors", "/etc/passwd", "..", ".", "", "x/../a.safetensors", "c:a.safetensors", "a\\b", "a\nb"}) {
        nlohmann::json bad = map;
        bad[s.tensors[0].name] = name;
        write(index_name, index_of(bad));
        refused("the name of a file in the same folder");
    }
    nlohmann::json bad = map;
    bad[s.tensors[0].name] = 3;
    write(index_name, index_of(bad));
    refused("the name of a file in the same folder");
    bad[s.tensors[0].name] = "missing.safetensors";
    write(index_name, index_of(bad));
    refused("missing.safetensors");
    bad = map;
    bad["no.such.tensor"] = "a.safetensors";
    write(index_name, index_of(bad));
    refused("no.such.tensor");
    for (const char* text : {"", "[]", "{}", R"({"weight_map": 3})", "{"}) {
        write(index_name, text);
        CHECK(!open_checkpoint(folder));
    }
    write(index_name, index_of(map));
    write("b.safetensors", serialize(b).substr(0, 100));
    refused("b.safetensors");
    write("b.safetensors", serialize(b));
    write("other.safetensors.index.json", index_of(map));
    refused("2 indices");
    fs::remove(folder / "other.safetensors.index.json");
    write("quantize_config.json", "{");
    refused("quantize_config.json");
    fs::remove(folder / "quantize_config.json");
    refused("GPTQ or AWQ");
    write("config.json", R"({"quantization_config": )" + s.config + "}");
    CHECK(open_checkpoint(folder));
    nibble::io::checkpoint_options small;
    small.config_bytes = 10;
    CHECK(!open_checkpoint(folder, small));
    // One file, with the config beside it.
    write("model.safetensors", serialize(s.tensors));
    CHECK(open_checkpoint(folder / "model.safetensors"));
    CHECK(open_checkpoint(folder));
}
