// The writers of layouts: matrices of other libraries become those libraries' bytes again, matrices quantized here come
// back bit for bit through a file and open_checkpoint, and what does not fit is refused.
#include "nibble/io/checkpoint.hpp"

#include <bit>
#include <fstream>
#include <random>

#include <nibble/quantize.hpp>

#include "support/catch.hpp"
#include "support/scratch.hpp"

namespace {

namespace fs = std::filesystem;
namespace st = nibble::io::safetensors;
namespace layouts = nibble::io::layouts;
using extent = nibble::index;  // index is a function of <strings.h>
using nibble::errc;
using nibble::offset_kind;
using nibble::per_group;
using nibble::qmatrix;
using nibble::io::linear;
using nibble::io::open_checkpoint;
using tensors = nibble::result<std::vector<st::tensor_data>>;

[[nodiscard]] fs::path golden(const std::string& name) { return fs::path(NIBBLE_TEST_DATA_DIR) / "checkpoints" / name; }

/// Every written tensor is that of the checkpoint, byte for byte, and none of the checkpoint's is missing but `but`.
void check_bytes(const std::string& name, const tensors& written, const std::vector<std::string>& but = {}) {
    INFO(name);
    if (!written) FAIL(written.failure().message);
    const auto file = st::open(golden(name) / "model.safetensors");
    std::size_t left_out = 0;
    for (const st::tensor& t : file.value().tensors())
        for (const std::string& suffix : but) left_out += t.name.ends_with(suffix) ? 1u : 0u;
    CHECK(written.value().size() == file.value().tensors().size() - left_out);
    for (const st::tensor_data& t : written.value()) {
        INFO(t.name);
        const st::tensor* right = file.value().find(t.name);
        REQUIRE(right != nullptr);
        if (t.name.find("quant_state") != std::string::npos) {  // JSON: the order of its keys is free
            const auto parse = [](std::span<const std::byte> b) {
                const auto* text = reinterpret_cast<const char*>(b.data());
                return nlohmann::json::parse(text, text + b.size());
            };
            CHECK(parse(t.bytes) == parse(right->bytes));
            continue;
        }
        CHECK(t.type == right->type);
        CHECK(t.shape == right->shape);
        CHECK(std::equal(t.bytes.begin(), t.bytes.end(), right->bytes.begin(), right->bytes.end()));
    }
}

[[nodiscard]] linear load(const std::string& name, std::size_t i = 0) {
    return open_checkpoint(golden(name)).value().load(i).value();
}
[[nodiscard]] std::string first_layer(const std::string& name) {
    const auto model = open_checkpoint(golden(name));
    return model.value().layers()[0].name;
}

/// Weights with outliers and, in row 2, zeros.
[[nodiscard]] Eigen::MatrixXf weights(extent rows, extent cols, unsigned seed = 7) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    Eigen::MatrixXf w(rows, cols);
    for (extent i = 0; i < w.size(); ++i) w.data()[i] = normal(random) * (i % 97 == 0 ? 8.0f : 0.05f);
    if (rows > 2) w.row(2).setZero();
    return w;
}

[[nodiscard]] bool same_bits(const Eigen::MatrixXf& a, const Eigen::MatrixXf& b) {
    return a.rows() == b.rows() && a.cols() == b.cols() &&
           std::memcmp(a.data(), b.data(), static_cast<std::size_t>(a.size()) * 4) == 0;
}

/// Written to a folder with a config, opened and decoded again: the same weights, in the same structure.
void check_round_trip(const linear& layer, const tensors& written, const std::string& config, const std::string& layout,
                      bool same_structure = true) {
    if (!written) FAIL(written.failure().message);
    const scratch_dir folder;
    REQUIRE(st::write(folder.path / "model.safetensors", written.value(), {{"format", "pt"}}));
    std::ofstream(folder.path / "config.json") << R"({"model_type":"x","quantization_config":)" << config << "}";
    const auto model = open_checkpoint(folder.path);
    if (!model) FAIL(model.failure().message);
    REQUIRE(model.value().layers().size() == 1);
    CHECK(model.value().layers()[0].layout == layout);
    CHECK(model.value().layers()[0].rows == layer.weight.rows());
    CHECK(model.value().layers()[0].cols == layer.weight.cols());
    const auto back = model.value().load(0);
    if (!back) FAIL(back.failure().message);
    CHECK(same_bits(nibble::io::dequantize(back.value()), nibble::io::dequantize(layer)));
    CHECK(back.value().permutation == layer.permutation);
    if (!same_structure) return;
    const qmatrix& a = layer.weight;
    const qmatrix& b = back.value().weight;
    CHECK(&a.format() == &b.format());
    CHECK(a.grouping() == b.grouping());
    CHECK(a.offset_type() == b.offset_type());
    CHECK(a.scheme() == b.scheme());
}

}  // namespace

TEST_CASE("matrices of other libraries become their bytes again") {
    for (const char* name :
         {"gptq_2bit_g32_sym_actorder", "gptq_3bit_g32_sym", "gptq_4bit_channel_sym", "gptq_4bit_g128_sym",
          "gptq_4bit_g32_asym_actorder", "gptq_4bit_g32_asym_zero0", "gptq_8bit_g128_asym"})
        check_bytes(name, layouts::gptq::pack(first_layer(name), load(name)));
    for (const char* name : {"awq_gemm_g128", "awq_gemm_g32"})
        check_bytes(name, layouts::awq::pack(first_layer(name), load(name).weight), {".bias"});
    check_bytes("bnb_nf4", layouts::bitsandbytes::pack(first_layer("bnb_nf4"), load("bnb_nf4").weight, "float16"));
    check_bytes("bnb_nf4_double_quant",
                layouts::bitsandbytes::pack(first_layer("bnb_nf4_double_quant"), load("bnb_nf4_double_quant").weight));
    check_bytes("bnb_fp4", layouts::bitsandbytes::pack(first_layer("bnb_fp4"), load("bnb_fp4").weight, "float32"));
    for (const char* name : {"ct_pack_int2_g64_asym", "ct_pack_int3_g32_sym", "ct_pack_int4_channel_asym",
                             "ct_pack_int4_g128_sym", "ct_pack_int4_g32_asym", "ct_pack_int6_channel_asym_odd",
                             "ct_pack_int8_channel_sym", "ct_fp8_block", "ct_fp8_channel", "ct_fp8_tensor"})
        check_bytes(name, layouts::compressed_tensors::pack(first_layer(name), load(name).weight));
    for (const char* name : {"deepseek_fp8_block", "deepseek_fp8_block_ue8m0", "fp8_per_tensor"})
        check_bytes(name, layouts::fp8::pack(first_layer(name), load(name).weight), {"input_scale"});
    const qmatrix experts[] = {load("gptoss_mxfp4", 0).weight, load("gptoss_mxfp4", 1).weight};
    check_bytes("gptoss_mxfp4", layouts::mxfp4::pack("model.layers.0.mlp.experts.gate_up_proj", experts), {"bias"});
}

TEST_CASE("GPTQ: matrices quantized here") {
    const Eigen::MatrixXf w = weights(64, 160);
    for (const char* name :
         {"int4_zero_g128", "int4_g128", "int4_g32", "q4_0", "q8_0", "int2_zero_g32", "int3_zero_g64"}) {
        INFO(name);
        const linear layer{nibble::quantize(w, name), {}, {}};
        check_round_trip(layer, layouts::gptq::pack("a.b", layer), layouts::gptq::config_of(layer), "gptq");
    }
    // A bias, and an order of columns.
    linear layer{nibble::quantize(w, "int4_zero_g128"), {}, {}};
    for (extent k = 0; k < 160; ++k) layer.permutation.push_back((k * 7 + 3) % 160);
    // Inside a group the file keeps no order: sort it there, as a reader finds it.
    std::sort(layer.permutation.begin(), layer.permutation.begin() + 128);
    std::sort(layer.permutation.begin() + 128, layer.permutation.end());
    layer.bias.assign(64, 0.5f);
    layer.bias[3] = -2.0f;
    check_round_trip(layer, layouts::gptq::pack("a.b", layer), layouts::gptq::config_of(layer), "gptq");
    const auto written = layouts::gptq::pack("a.b", layer);
    CHECK(written.value().size() == 5);
    // Columns of a group in another order: the same weights, in the order of the file.
    linear shuffled = layer;
    std::swap(shuffled.permutation[0], shuffled.permutation[5]);
    const auto tensors_of = layouts::gptq::pack("a.b", shuffled);
    const scratch_dir folder;
    REQUIRE(st::write(folder.path / "model.safetensors", tensors_of.value()));
    nibble::io::checkpoint_options options;
    options.config = layouts::gptq::config_of(shuffled);
    const auto back = open_checkpoint(folder.path, options).value().load("a.b");
    CHECK(same_bits(nibble::io::dequantize(back.value()), nibble::io::dequantize(shuffled)));
    CHECK(back.value().bias == layer.bias);
    CHECK(back.value().permutation == layer.permutation);
}

TEST_CASE("AWQ, compressed-tensors and FP8: matrices quantized here") {
    const Eigen::MatrixXf w = weights(48, 256);
    for (const char* name : {"int4_zero_g128", "int4_g128", "int4_g32", "q4_0"}) {
        INFO(name);
        const linear layer{nibble::quantize(w, name), {}, {}};
        check_round_trip(layer, layouts::awq::pack("x", layer.weight), layouts::awq::config_of(layer.weight), "awq");
    }
    for (const char* name : {"int4_zero_g128", "int8_g32", "int6_g64", "int5_g64", "int3_zero_g64", "int2_zero_g32",
                             "int8_per_channel", "int8_zero_point", "q5_0"}) {
        INFO(name);
        const linear layer{nibble::quantize(w, name), {}, {}};
        check_round_trip(layer, layouts::compressed_tensors::pack("x", layer.weight),
                         layouts::compressed_tensors::config_of(layer.weight), "compressed-tensors");
    }
    for (const char* name : {"fp8_per_channel", "fp8_per_tensor", "fp8_block128"}) {
        INFO(name);
        const linear layer{nibble::quantize(weights(144, 160), name), {}, {}};
        check_round_trip(layer, layouts::compressed_tensors::pack("x", layer.weight),
                         layouts::compressed_tensors::config_of(layer.weight), "fp8");
        check_round_trip(layer, layouts::fp8::pack("x", layer.weight), layouts::fp8::config_of(layer.weight), "fp8");
    }
    const linear e5m2{nibble::quantize(w, "fp8_e5m2_per_channel"), {}, {}};
    check_round_trip(e5m2, layouts::fp8::pack("x", e5m2.weight), layouts::fp8::config_of(e5m2.weight), "fp8");
}

TEST_CASE("bitsandbytes: matrices quantized here") {
    for (const char* name : {"nf4", "fp4", "nf4_double", "fp4_double"}) {
        INFO(name);
        for (const auto& [rows, cols] : {std::pair<extent, extent>{40, 192}, {1, 100}, {3, 64}}) {
            const linear layer{nibble::quantize(weights(rows, cols), name), {}, {}};
            check_round_trip(layer, layouts::bitsandbytes::pack("x", layer.weight),
                             layouts::bitsandbytes::config_of(layer.weight), "bitsandbytes-4bit");
        }
    }
}

TEST_CASE("NVFP4 and MXFP4: matrices quantized here") {
    using layouts::nvfp4::flavor;
    int exact_ones = 0;
    for (unsigned seed = 0; seed < 12; ++seed) {
        const linear layer{nibble::quantize(weights(32, 96, seed), "nvfp4"), {}, {}};
        check_round_trip(layer, layouts::nvfp4::pack("x", layer.weight, flavor::modelopt),
                         layouts::nvfp4::config_of(flavor::modelopt), "nvfp4");
        bool exact = false;
        const tensors written = layouts::nvfp4::pack("x", layer.weight, flavor::compressed_tensors, &exact);
        exact_ones += exact ? 1 : 0;
        if (exact) {
            check_round_trip(layer, written, layouts::nvfp4::config_of(flavor::compressed_tensors), "nvfp4");
            continue;
        }
        // Else each scale is off by at most 2 units in the last place, and codes are the same.
        std::vector<st::tensor> views;
        for (const auto& t : written.value()) views.push_back(t.view());
        const auto back = layouts::nvfp4::unpack(views[0], views[1], views[2], nullptr, true);
        for (extent n = 0; n < 32; ++n) {
            for (extent k = 0; k < 96; ++k) CHECK(back.value().weight.code(n, k) == layer.weight.code(n, k));
            for (extent g = 0; g < 6; ++g) {
                const auto a = std::bit_cast<std::int32_t>(back.value().weight.scale(n, g)),
                           b = std::bit_cast<std::int32_t>(layer.weight.scale(n, g));
                CHECK(std::abs(a - b) <= 2);
            }
        }
    }
    CHECK(exact_ones < 12);
    for (const char* name : {"mxfp4", "mxfp4_ggml"}) {
        const qmatrix m = nibble::quantize(weights(32, 96), name);
        const tensors written = layouts::mxfp4::pack("x", std::span(&m, 1));
        std::vector<st::tensor> views;
        for (const auto& t : written.value()) views.push_back(t.view());
        const auto back = layouts::mxfp4::unpack(views[0], views[1], nullptr, 0);
        CHECK(same_bits(nibble::io::dequantize(back.value()), nibble::dequantize(m)));
        CHECK(!layouts::mxfp4::unpack(views[0], views[1], nullptr, 1));
        CHECK(!layouts::mxfp4::unpack(views[0], views[1], nullptr, -1));
    }
    // A tensor scale that is a power of two divides and multiplies alike.
    nibble::qmatrix_builder out(1, 16, nibble::fp4_e2m1::format, nibble::scales::e4m3_f32, offset_kind::none,
                                per_group{16});
    out.set_tensor_scale(0.25f);
    out.set_scale(0, 0, 0x35);
    bool exact = false;
    const qmatrix two = std::move(out).finish();
    CHECK(layouts::nvfp4::pack("x", two, flavor::compressed_tensors, &exact));
    CHECK(exact);
}

TEST_CASE("row blocks are written as the matrices that they are") {
    const qmatrix big = nibble::quantize(weights(64, 128), "int4_zero_g128");
    const linear part{big.row_block(32, 32), {}, {}};
    check_round_trip(part, layouts::gptq::pack("x", part), layouts::gptq::config_of(part), "gptq");
    const qmatrix nested = nibble::quantize(weights(64, 128), "nf4_double");
    CHECK(!layouts::bitsandbytes::pack("x", nested.row_block(16, 16)));  // its second-level scales begin inside a block
    const qmatrix tiled = nibble::quantize(weights(144, 160), "fp8_block128");
    CHECK(!layouts::fp8::pack("x", tiled.row_block(16, 32)));
    const linear tail{tiled.row_block(128, 16), {}, {}};
    check_round_trip(tail, layouts::compressed_tensors::pack("x", tail.weight),
                     layouts::compressed_tensors::config_of(tail.weight), "fp8");
}

TEST_CASE("what a layout cannot hold is refused, and the message says what it can") {
    const auto refused = [](const tensors& t) {
        REQUIRE(!t);
        INFO(t.failure().message);
        CHECK(t.failure().code == errc::unsupported);
        CHECK(t.failure().message.find("it takes ") != std::string::npos);
    };
    const Eigen::MatrixXf w = weights(32, 64);
    const auto q = [&](const char* name) { return nibble::quantize(w, name); };
    for (const char* name : {"nf4", "int4_min_g64", "q4_k", "int6_g64", "int8_per_channel", "int8_per_tensor", "mxfp4",
                             "bf16", "ternary_twn", "binary_g128"}) {
        INFO(name);
        refused(layouts::gptq::pack("x", {q(name), {}, {}}));
        refused(layouts::awq::pack("x", q(name)));
    }
    for (const char* name : {"af4", "iq4_nl", "int4_g64", "mxfp4", "q4_k"})
        refused(layouts::bitsandbytes::pack("x", q(name)));
    refused(layouts::bitsandbytes::pack("x", nibble::quantize(weights(3, 100), "nf4")));
    for (const char* name :
         {"nf4", "int4_min_g64", "q4_k", "int8_per_tensor", "fp8_e5m2_per_channel", "mxfp8", "tq2_0", "bf16"})
        refused(layouts::compressed_tensors::pack("x", q(name)));
    refused(layouts::compressed_tensors::pack("x", nibble::quantize(weights(3, 100), "int4_g32")));
    for (const char* name : {"int8_per_channel", "mxfp8", "nf4", "bf16"}) refused(layouts::fp8::pack("x", q(name)));
    for (const char* name : {"nvfp4_ggml", "mxfp4", "int4_g32"})
        refused(layouts::nvfp4::pack("x", q(name), layouts::nvfp4::flavor::modelopt));
    for (const char* name : {"nvfp4", "mxfp8", "int4_g32"}) {
        const qmatrix m = q(name);
        refused(layouts::mxfp4::pack("x", std::span(&m, 1)));
    }
    refused(layouts::gptq::pack("x", {nibble::quantize(weights(33, 64), "int4_g32"), {}, {}}));
    refused(layouts::gptq::pack("x", {nibble::quantize(weights(32, 65), "int4_g32"), {}, {}}));
    refused(layouts::awq::pack("x", nibble::quantize(weights(33, 64), "int4_g32")));
    refused(layouts::awq::pack("x", nibble::quantize(weights(32, 80), "int4_g32")));
    linear bad{q("int4_g32"), {0, 0}, {}};
    CHECK(!layouts::gptq::pack("x", bad));
    bad.permutation.assign(64, 0);
    CHECK(!layouts::gptq::pack("x", bad));
}
