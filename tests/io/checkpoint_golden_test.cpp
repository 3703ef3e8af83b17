// Every checkpoint of tests/golden/checkpoints, opened as a user would: each was written by the library it is named
// after, or compared with it once, and expected.safetensors holds its weights as that library decodes them.
#include "nibble/io/checkpoint.hpp"

#include <bit>
#include <map>
#include <set>

#include "support/catch.hpp"
#include "support/golden.hpp"

namespace {

namespace fs = std::filesystem;
using extent = nibble::index;  // index is a function of <strings.h>
using nibble::io::linear;
using nibble::io::open_checkpoint;

[[nodiscard]] fs::path folder() { return fs::path(NIBBLE_TEST_DATA_DIR) / "checkpoints"; }

// name of a checkpoint -> layout of its layer
const std::map<std::string, std::string>& known() {
    static const std::map<std::string, std::string> all = {
        {"awq_gemm_g128", "awq"},
        {"awq_gemm_g32", "awq"},
        {"awq_gemv_g128", "awq"},
        {"awq_gemv_g32", "awq"},
        {"bnb_fp4", "bitsandbytes-4bit"},
        {"bnb_int8", "bitsandbytes-int8"},
        {"bnb_nf4", "bitsandbytes-4bit"},
        {"bnb_nf4_double_quant", "bitsandbytes-4bit"},
        {"ct_fp8_block", "fp8"},
        {"ct_fp8_channel", "fp8"},
        {"ct_fp8_tensor", "fp8"},
        {"ct_int_w8a8_channel", "compressed-tensors"},
        {"ct_mxfp4", "mxfp4"},
        {"ct_mxfp6_e2m3", "mxfp6"},
        {"ct_mxfp8", "mxfp8"},
        {"ct_nvfp4", "nvfp4"},
        {"ct_pack_int2_g64_asym", "compressed-tensors"},
        {"ct_pack_int3_g32_sym", "compressed-tensors"},
        {"ct_pack_int4_channel_asym", "compressed-tensors"},
        {"ct_pack_int4_g128_sym", "compressed-tensors"},
        {"ct_pack_int4_g32_asym", "compressed-tensors"},
        {"ct_pack_int6_channel_asym_odd", "compressed-tensors"},
        {"ct_pack_int8_channel_sym", "compressed-tensors"},
        {"deepseek_fp8_block", "fp8"},
        {"deepseek_fp8_block_ue8m0", "fp8"},
        {"fp8_per_tensor", "fp8"},
        {"gptoss_mxfp4", "mxfp4"},
        {"gptq_2bit_g32_sym_actorder", "gptq"},
        {"gptq_3bit_g32_sym", "gptq"},
        {"gptq_4bit_channel_sym", "gptq"},
        {"gptq_4bit_g128_sym", "gptq"},
        {"gptq_4bit_g32_asym_actorder", "gptq"},
        {"gptq_4bit_g32_asym_zero0", "gptq"},
        {"gptq_8bit_g128_asym", "gptq"},
        {"gptq_v2_4bit_g32_asym", "gptq"},
        {"hqq_1bit_g32_axis0", "hqq"},
        {"hqq_2bit_g16_axis1", "hqq"},
        {"hqq_3bit_g64_axis1", "hqq"},
        {"hqq_4bit_g64_axis0", "hqq"},
        {"hqq_4bit_g64_axis1", "hqq"},
        {"hqq_8bit_g128_axis1", "hqq"},
    };
    return all;
}

/// The expected weights of a layer: of X[e], slice e of tensor X.
[[nodiscard]] std::vector<float> expected(const golden::file& file, const std::string& layer, extent rows,
                                          extent cols) {
    const std::size_t bracket = layer.find('[');
    if (bracket == std::string::npos) {
        CHECK(file.shape(layer + ".weight") ==
              std::vector<std::uint64_t>{static_cast<std::uint64_t>(rows), static_cast<std::uint64_t>(cols)});
        return file.read<float>(layer + ".weight");
    }
    const std::vector<float> all = file.read<float>(layer.substr(0, bracket));
    const std::size_t expert = std::stoul(layer.substr(bracket + 1));
    const extent size = rows * cols;
    REQUIRE((static_cast<std::ptrdiff_t>(expert) + 1) * size <= static_cast<std::ptrdiff_t>(all.size()));
    const auto begin = all.begin() + static_cast<std::ptrdiff_t>(expert) * size;
    return {begin, begin + size};
}

/// The first element that differs, or -1. `tolerance`: relative; 0 means the same bits.
[[nodiscard]] extent first_difference(const Eigen::MatrixXf& w, const std::vector<float>& right, double tolerance) {
    for (extent n = 0; n < w.rows(); ++n)
        for (extent k = 0; k < w.cols(); ++k) {
            const float a = w(n, k), b = right[static_cast<std::size_t>(n * w.cols() + k)];
            if (std::bit_cast<std::uint32_t>(a) == std::bit_cast<std::uint32_t>(b)) continue;
            if (tolerance == 0.0 || !(std::abs(double{a} - double{b}) <= tolerance * std::abs(double{b})))
                return n * w.cols() + k;
        }
    return -1;
}

}  // namespace

TEST_CASE("the golden checkpoints are those of the table") {
    std::set<std::string> found, listed;
    for (const auto& entry : fs::directory_iterator(folder()))
        if (entry.is_directory()) found.insert(entry.path().filename().string());
    for (const auto& [name, layout] : known()) listed.insert(name);
    CHECK(found == listed);
}

TEST_CASE("every checkpoint decodes to the weights of the library that wrote it") {
    for (const auto& [name, layout] : known()) {
        INFO(name);
        const auto model = open_checkpoint(folder() / name);
        if (!model) FAIL(model.failure().message);
        const golden::file right("checkpoints/" + name + "/expected");
        REQUIRE(model.value().layers().size() == (name == "gptoss_mxfp4" ? 2u : 1u));
        for (std::size_t i = 0; i < model.value().layers().size(); ++i) {
            const nibble::io::layer_info& info = model.value().layers()[i];
            CHECK(info.layout == layout);
            const auto layer = model.value().load(i);
            if (!layer) FAIL(layer.failure().message);
            const Eigen::MatrixXf w = nibble::io::dequantize(layer.value());
            CHECK(w.rows() == info.rows);
            CHECK(w.cols() == info.cols);
            CHECK(layer.value().weight.rows() == info.rows);
            CHECK(first_difference(w, expected(right, info.name, info.rows, info.cols),
                                   name == "bnb_int8" ? 0x1p-22 : 0.0) == -1);
            const bool bias = model.value().find(info.name + ".bias") != nullptr || name == "gptoss_mxfp4";
            CHECK(layer.value().bias.size() == (bias ? static_cast<std::size_t>(info.rows) : 0u));
            CHECK(layer.value().permutation.empty() == (name.find("actorder") == std::string::npos));
        }
    }
}

TEST_CASE("tasks in any order make the same bytes") {
    auto backwards = nibble::make_executor(3, [](nibble::index tasks, nibble::task_body body) {
        while (tasks > 0) body(--tasks);
    });
    for (const auto& entry : fs::directory_iterator(folder())) {
        if (!entry.is_directory()) continue;
        const auto model = open_checkpoint(entry.path());
        for (std::size_t i = 0; i < model.value().layers().size(); ++i) {
            INFO(entry.path().filename().string() << " " << i);
            const auto one = model.value().load(i), other = model.value().load(i, &backwards);
            const nibble::qmatrix &a = one.value().weight, &b = other.value().weight;
            CHECK(std::equal(a.data(), a.data() + a.memory_bytes(), b.data(), b.data() + b.memory_bytes()));
            CHECK(one.value().permutation == other.value().permutation);
        }
    }
}

// GPTQModel's v1 of 3 bits: zero points of 4, packed, less 24924924, 92492492, 49249249.
TEST_CASE("zero points of 3 bits as GPTQModel writes them") {
    const auto right = open_checkpoint(folder() / "gptq_3bit_g32_sym");
    const Eigen::MatrixXf w = nibble::io::dequantize(right.value().load(0).value());
    const std::string name = right.value().layers()[0].name;
    std::vector<nibble::io::safetensors::tensor_data> tensors;
    for (const auto* t : right.value().tensors()) tensors.push_back({t->name, t->type, t->shape, {t->bytes.begin(), t->bytes.end()}});
    for (auto& t : tensors) {
        if (t.name != name + ".qzeros") continue;
        constexpr std::uint32_t words[3] = {0, 0xb6db6db7u, 0x49249249u};
        for (std::size_t i = 0; i < t.bytes.size() / 4; ++i) std::memcpy(t.bytes.data() + 4 * i, &words[i % (t.shape[1]) % 3], 4);
    }
    const auto unpack = [&](bool gptqmodel) {
        std::map<std::string, nibble::io::safetensors::tensor> view;
        for (const auto& t : tensors) view[t.name.substr(name.size())] = t.view();
        return nibble::io::layouts::gptq::unpack(view[".qweight"], view[".qzeros"], view[".scales"], &view[".g_idx"], nullptr,
                                                 {3, 32, false, false, gptqmodel});
    };
    CHECK(nibble::io::dequantize(unpack(true).value()) == w);
    CHECK(nibble::io::dequantize(unpack(false).value()) != w);
    const auto config = nibble::io::layouts::parse_quantization_config(R"({"bits":3,"meta":{"quantizer":["gptqmodel:2.0.0"]}})");
    CHECK(config.value().gptqmodel);
    CHECK_FALSE(nibble::io::layouts::parse_quantization_config(R"({"bits":3,"meta":{"quantizer":["other"]}})").value().gptqmodel);
}

TEST_CASE("layers keep the structure of their checkpoint") {
    const auto weight = [](const char* name) {
        const auto model = open_checkpoint(folder() / name);
        return model.value().load(0).value().weight;
    };
    using nibble::offset_kind;
    using nibble::scale_storage;
    CHECK(weight("gptq_4bit_g128_sym").offset_type() == offset_kind::none);
    CHECK(weight("gptq_4bit_g128_sym").group_size() == 128);
    CHECK(weight("gptq_4bit_g32_asym_actorder").offset_type() == offset_kind::zero_point);
    CHECK(weight("gptq_4bit_g32_asym_actorder").group_size() == 32);
    CHECK(weight("gptq_2bit_g32_sym_actorder").group_size() == 32);
    CHECK(weight("gptq_4bit_channel_sym").groups() == 1);
    CHECK(weight("bnb_nf4").name() == "nf4");
    CHECK(weight("bnb_fp4").name() == "fp4");
    CHECK(weight("bnb_nf4_double_quant").name() == "nf4_double");
    CHECK(weight("bnb_nf4_double_quant").scheme().storage == scale_storage::double_quantized);
    CHECK(weight("deepseek_fp8_block").grouping() == nibble::granularity{128, 128});
    CHECK(weight("fp8_per_tensor").groups() == 1);
    CHECK(weight("fp8_per_tensor").grouping().rows == 64);
    CHECK(weight("ct_mxfp4").name() == "mxfp4");
    CHECK(weight("ct_nvfp4").group_size() == 16);
    CHECK(weight("hqq_4bit_g64_axis1").offset_type() == offset_kind::float_zero);
    CHECK(weight("hqq_4bit_g64_axis1").group_size() == 64);
}

TEST_CASE("products of act-order layers are those of the decoded weights") {
    for (const char* name : {"gptq_4bit_g32_asym_actorder", "gptq_2bit_g32_sym_actorder", "gptq_4bit_g128_sym"}) {
        INFO(name);
        const auto model = open_checkpoint(folder() / name);
        const linear layer = model.value().load(0).value();
        const golden::file right(std::string("checkpoints/") + name + "/expected");
        const auto& info = model.value().layers()[0];
        const std::vector<float> w = expected(right, info.name, info.rows, info.cols);
        Eigen::MatrixXf x(info.cols, 3);
        for (extent i = 0; i < x.size(); ++i) x.data()[i] = static_cast<float>((i * 37) % 101 - 50) / 50.0f;
        const Eigen::MatrixXf y = nibble::io::multiply(layer, x);
        REQUIRE(y.rows() == info.rows);
        REQUIRE(y.cols() == 3);
        for (extent m = 0; m < 3; ++m)
            for (extent n = 0; n < info.rows; ++n) {
                double sum = 0.0, magnitude = 0.0;
                for (extent k = 0; k < info.cols; ++k) {
                    const double term = static_cast<double>(w[static_cast<std::size_t>(n * info.cols + k)]) *
                                        static_cast<double>(x(k, m));
                    sum += term;
                    magnitude += std::abs(term);
                }
                if (!layer.bias.empty()) sum += static_cast<double>(layer.bias[static_cast<std::size_t>(n)]);
                INFO(n << " " << m);
                CHECK(std::abs(static_cast<double>(y(n, m)) - sum) <= 1e-6 * magnitude + 1e-6 * std::abs(sum));
            }
    }
}
