// exchange write ROOT: files of every kind that nibble writes, for other libraries to read.
// exchange dump ROOT: what nibble finds in all files below ROOT, whoever wrote them:
//
//   ROOT/gguf/NAME.gguf                  NAME.gguf.dump/TENSOR.f32, and metadata.json
//   ROOT/safetensors/NAME.safetensors    NAME.safetensors.dump/TENSOR.raw, and tensors.json
//   ROOT/checkpoints/NAME/               NAME.dump/LAYER.f32, and layers.json
//
// .f32: float32, row-major. A file that nibble refuses leaves NAME.dump/refused.txt.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>

#include <nibble/io/checkpoint.hpp>
#include <nibble/io/gguf.hpp>
#include <nibble/io/gguf_writer.hpp>
#include <nibble/io/safetensors_writer.hpp>
#include <nibble/quantize.hpp>

namespace {

namespace fs = std::filesystem;
namespace io = nibble::io;
namespace st = nibble::io::safetensors;
namespace ggml = nibble::io::ggml;
namespace layouts = nibble::io::layouts;
using nibble::index;
using nlohmann::json;

/// Weights with outliers, a row of zeros, a row of one value and rows of very different sizes.
Eigen::MatrixXf weights(index rows, index cols, unsigned seed) {
    std::mt19937 random(seed);
    Eigen::MatrixXf w(rows, cols);
    for (index n = 0; n < rows; ++n)
        for (index k = 0; k < cols; ++k) {
            float x = 0.0f;
            for (int i = 0; i < 4; ++i) x += static_cast<float>(random() >> 8) * 0x1p-24f - 0.5f;
            w(n, k) = x * (n % 5 == 4 ? 40.0f : 0.04f) * (random() % 97 == 0 ? 8.0f : 1.0f);
        }
    if (rows > 3) {
        w.row(2).setZero();
        w.row(3).setConstant(-0.75f);
    }
    return w;
}

void write_text(const fs::path& p, const std::string& text) {
    std::ofstream out(p, std::ios::binary);
    out << text;
    out.close();
    if (!out) throw std::runtime_error("cannot write " + p.string());
}
void write_bytes(const fs::path& p, const void* data, std::size_t size) {
    write_text(p, std::string(static_cast<const char*>(data), size));
}

// --- write -----------------------------------------------------------------------------------------------------

void write_gguf(const fs::path& folder) {
    const auto one = [&](ggml::type t, const nibble::qmatrix& m) {
        io::gguf::writer out;
        out.set("general.architecture", "interop").or_throw();
        out.add_tensor("w", t, {static_cast<std::uint64_t>(m.rows()), static_cast<std::uint64_t>(m.cols())}).or_throw();
        out.create(folder / (std::string("nibble_") + ggml::name(t) + ".gguf")).or_throw();
        const auto bytes = ggml::pack(m, t).value();
        out.write(std::as_bytes(std::span(bytes))).or_throw();
        out.finish().or_throw();
    };
    const Eigen::MatrixXf w = weights(40, 512, 1);
    for (const char* name : {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "tq2_0",
                             "mxfp4_ggml", "nvfp4_ggml", "fp16", "bf16", "binary_g128"}) {
        const nibble::qmatrix m = nibble::quantize(w, name);
        one(ggml::type_of(m).value(), m);
        if (std::string_view(name) == "tq2_0") one(ggml::type::tq1_0, m);
    }

    // Every other type of elements, every type of metadata, another alignment, an empty tensor and four dimensions.
    io::gguf::writer out;
    out.set("general.alignment", std::uint32_t{64}).or_throw();
    out.set("general.architecture", "interop").or_throw();
    out.set("interop.u8", std::uint8_t{200}).or_throw();
    out.set("interop.i8", std::int8_t{-100}).or_throw();
    out.set("interop.u16", std::uint16_t{60000}).or_throw();
    out.set("interop.i16", std::int16_t{-30000}).or_throw();
    out.set("interop.u32", std::uint32_t{4000000000}).or_throw();
    out.set("interop.i32", std::int32_t{-2000000000}).or_throw();
    out.set("interop.u64", std::uint64_t{18000000000000000000u}).or_throw();
    out.set("interop.i64", std::int64_t{-9000000000000000000}).or_throw();
    out.set("interop.f32", 0.1f).or_throw();
    out.set("interop.f64", 0.1).or_throw();
    out.set("interop.yes", true).or_throw();
    out.set("interop.text", "\xc3\xa9 \"\\\n").or_throw();
    out.set("interop.ints", std::vector<std::int32_t>{1, -2, 3}).or_throw();
    out.set("interop.floats", std::vector<float>{0.5f, -0.1f}).or_throw();
    out.set("interop.texts", std::vector<std::string>{"a", "", "\xe2\x82\xac"}).or_throw();
    const std::pair<const char*, ggml::type> types[] = {{"i8", ggml::type::i8}, {"i16", ggml::type::i16}, {"i32", ggml::type::i32},
                                                        {"i64", ggml::type::i64}, {"f64", ggml::type::f64}, {"f32", ggml::type::f32}};
    for (const auto& [name, t] : types) out.add_tensor(name, t, {2, 3, 1, 5}).or_throw();
    out.create(folder / "nibble_plain.gguf").or_throw();
    for (const auto& [name, t] : types) {
        std::vector<std::uint8_t> bytes;
        for (int i = 0; i < 30; ++i) {
            const double d = i * 1.25 - 17.0;
            const float f = static_cast<float>(d);
            const std::int64_t n = i - 15;
            const void* from = t == ggml::type::f64 ? static_cast<const void*>(&d) : t == ggml::type::f32 ? static_cast<const void*>(&f) : &n;
            const auto* b = static_cast<const std::uint8_t*>(from);  // little-endian: a narrow integer is the beginning of a wide one
            bytes.insert(bytes.end(), b, b + ggml::block_bytes(t));
        }
        out.write(std::as_bytes(std::span(bytes))).or_throw();
    }
    out.finish().or_throw();
}

void write_safetensors(const fs::path& folder) {
    std::vector<st::tensor_data> tensors;
    for (const auto& entry : st::detail::dtypes) {
        st::tensor_data t{std::string("t.").append(entry.name), entry.type, {4, 8}, {}};
        t.bytes.resize(4 * entry.bits);
        for (std::size_t i = 0; i < t.bytes.size(); ++i)  // no bool but 0 and 1, no signalling NaN
            t.bytes[i] = static_cast<std::byte>(entry.type == st::dtype::boolean ? i % 2 : 7 * i % 100);
        tensors.push_back(std::move(t));
    }
    tensors.push_back({"scalar", st::dtype::f32, {}, std::vector<std::byte>(4, std::byte{0x3e})});
    tensors.push_back({"empty", st::dtype::i64, {3, 0}, {}});
    tensors.push_back({"\xc3\xa9 \"\\\n", st::dtype::u8, {1}, {std::byte{1}}});
    st::write(folder / "nibble_all.safetensors", tensors, {{"format", "pt"}, {"\xe2\x82\xac", "\"\\\n"}}).or_throw();
}

void write_checkpoint(const fs::path& folder, const nibble::result<std::vector<st::tensor_data>>& tensors, const std::string& config) {
    fs::create_directories(folder);
    st::write(folder / "model.safetensors", tensors.value(), {{"format", "pt"}}).or_throw();
    write_text(folder / "config.json", R"({"model_type":"interop","quantization_config":)" + config + "}");
}

void write_checkpoints(const fs::path& root) {
    const Eigen::MatrixXf w = weights(64, 256, 2);
    const auto at = [&](const std::string& kind, const char* recipe) { return root / ("nibble_" + kind + "_" + recipe); };
    for (const char* r : {"int2_zero_g32", "int3_zero_g64", "int4_zero_g128", "int4_g32", "int4_g128", "q8_0"}) {
        io::linear layer{nibble::quantize(w, r), {}, {}};
        write_checkpoint(at("gptq", r), layouts::gptq::pack("a.b", layer), layouts::gptq::config_of(layer));
        for (index k = 0; k < 256; ++k) layer.permutation.push_back((k * 37 + 11) % 256);
        write_checkpoint(at("gptq_order", r), layouts::gptq::pack("a.b", layer), layouts::gptq::config_of(layer));
    }
    for (const char* r : {"int4_zero_g128", "int4_g32"}) {
        const auto m = nibble::quantize(w, r);
        write_checkpoint(at("awq", r), layouts::awq::pack("a.b", m), layouts::awq::config_of(m));
    }
    for (const char* r : {"nf4", "fp4", "nf4_double", "fp4_double"}) {
        const auto m = nibble::quantize(w, r);
        write_checkpoint(at("bnb", r), layouts::bitsandbytes::pack("a.b", m, "float32"), layouts::bitsandbytes::config_of(m));
    }
    for (const char* r : {"int2_zero_g32", "int3_zero_g64", "int4_zero_g128", "int4_g32", "int5_g64", "int6_g64", "int8_g32", "int8_per_channel",
                          "int8_zero_point", "fp8_per_tensor", "fp8_per_channel", "fp8_block128"}) {
        const auto m = nibble::quantize(weights(128, 256, 3), r);
        write_checkpoint(at("ct", r), layouts::compressed_tensors::pack("a.b", m), layouts::compressed_tensors::config_of(m));
    }
    for (const char* r : {"fp8_per_tensor", "fp8_per_channel", "fp8_block128"}) {
        const auto m = nibble::quantize(weights(128, 256, 4), r);
        write_checkpoint(at("fp8", r), layouts::fp8::pack("a.b", m), layouts::fp8::config_of(m));
    }
    const auto nv = nibble::quantize(w, "nvfp4");
    for (const auto kind : {layouts::nvfp4::flavor::modelopt, layouts::nvfp4::flavor::compressed_tensors})
        write_checkpoint(at(kind == layouts::nvfp4::flavor::modelopt ? "modelopt" : "ct", "nvfp4"), layouts::nvfp4::pack("a.b", nv, kind),
                         layouts::nvfp4::config_of(kind));
    const nibble::qmatrix experts[] = {nibble::quantize(w, "mxfp4"), nibble::quantize(weights(64, 256, 5), "mxfp4")};
    write_checkpoint(at("gptoss", "mxfp4"), layouts::mxfp4::pack("a.b", experts), layouts::mxfp4::config_of());
}

// --- dump ------------------------------------------------------------------------------------------------------

json value_of(const io::gguf::value& v) {
    using io::gguf::value_type;
    if (v.type() == value_type::text) return std::string(v.as_text().value());
    if (v.type() == value_type::boolean) return v.as_bool().value();
    if (v.type() == value_type::array) {
        json out = json::array();
        for (const io::gguf::value e : v.elements()) out.push_back(value_of(e));
        return out;
    }
    if (const auto d = v.as_double()) return *d;
    if (const auto u = v.as_unsigned()) return *u;
    return v.as_signed().value();
}

nibble::status dump_gguf(const fs::path& p, const fs::path& to) {
    const auto file = io::gguf::open(p);
    if (!file) return {file.failure().code, file.failure().message};
    json metadata = json::object();
    for (const auto& e : file.value().metadata())
        metadata[std::string(e.key)] = {{"type", io::gguf::name_of(e.value.type())}, {"value", value_of(e.value)}};
    write_text(to / "metadata.json", metadata.dump());
    for (const auto& t : file.value().tensors()) {
        const auto values = t.values();
        if (!values) return {values.failure().code, values.failure().message};
        write_bytes(to / (std::string(t.name) + ".f32"), values.value().data(), values.value().size() * 4);
    }
    return {};
}

nibble::status dump_safetensors(const fs::path& p, const fs::path& to) {
    const auto file = st::open(p);
    if (!file) return {file.failure().code, file.failure().message};
    json tensors = json::array();
    for (const auto& t : file.value().tensors()) {
        const std::string raw = std::to_string(tensors.size()) + ".raw";
        tensors.push_back({{"name", t.name}, {"dtype", st::name_of(t.type)}, {"shape", t.shape}, {"raw", raw}});
        write_bytes(to / raw, t.bytes.data(), t.bytes.size());
    }
    write_text(to / "tensors.json", json({{"tensors", tensors}, {"metadata", file.value().metadata()}}).dump());
    return {};
}

nibble::status dump_checkpoint(const fs::path& p, const fs::path& to) {
    const auto model = io::open_checkpoint(p);
    if (!model) return {model.failure().code, model.failure().message};
    json layers = json::array();
    for (const auto& l : model.value().layers()) {
        const auto layer = model.value().load(l.name);
        if (!layer) return {layer.failure().code, layer.failure().message};
        const std::string file = std::to_string(layers.size()) + ".f32";
        layers.push_back({{"name", l.name}, {"layout", l.layout}, {"rows", l.rows}, {"cols", l.cols}, {"f32", file}});
        const Eigen::MatrixXf transposed = io::dequantize(layer.value()).transpose();
        write_bytes(to / file, transposed.data(), static_cast<std::size_t>(transposed.size()) * 4);
    }
    write_text(to / "layers.json", layers.dump());
    return {};
}

template <class Dump>
void dump_all(const fs::path& folder, const std::string& extension, Dump dump) {
    std::vector<fs::path> paths;
    for (const auto& e : fs::directory_iterator(folder))
        if (e.path().extension() == extension && e.is_directory() == extension.empty()) paths.push_back(e.path());
    for (const fs::path& p : paths) {
        const fs::path to = p.string() + ".dump";
        fs::remove_all(to);
        fs::create_directories(to);
        if (const nibble::status s = dump(p, to); !s) write_text(to / "refused.txt", s.message());
    }
}

}  // namespace

int main(int argc, char** argv) try {
    const std::string verb = argc == 3 ? argv[1] : "";
    const fs::path root = argc == 3 ? argv[2] : "";
    if (verb == "write") {
        for (const char* kind : {"gguf", "safetensors", "checkpoints"}) fs::create_directories(root / kind);
        write_gguf(root / "gguf");
        write_safetensors(root / "safetensors");
        write_checkpoints(root / "checkpoints");
    } else if (verb == "dump") {
        dump_all(root / "gguf", ".gguf", dump_gguf);
        dump_all(root / "safetensors", ".safetensors", dump_safetensors);
        dump_all(root / "checkpoints", "", dump_checkpoint);
    } else {
        std::fprintf(stderr, "usage: exchange write|dump ROOT\n");
        return 2;
    }
    return 0;
} catch (const std::exception& e) {
    std::fprintf(stderr, "exchange: %s\n", e.what());
    return 1;
}
