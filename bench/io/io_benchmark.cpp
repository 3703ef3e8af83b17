#include "io_benchmark.hpp"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <functional>
#include <memory>
#include <random>

#include <CLI/CLI.hpp>
#include <benchmark/benchmark.h>
#include <nibble/io/checkpoint.hpp>
#include <nibble/io/gguf.hpp>
#include <nibble/io/gguf_writer.hpp>
#include <nibble/quantize.hpp>

#include "../data.hpp"
#include "../options.hpp"
#include "scalar_k_quants.hpp"

namespace bench::io {
namespace {

namespace fs = std::filesystem;
namespace st = nibble::io::safetensors;
namespace ggml = nibble::io::ggml;
namespace gguf = nibble::io::gguf;
namespace layouts = nibble::io::layouts;
using nibble::index;
using bytes = std::vector<std::uint8_t>;

constexpr std::size_t tensor_count = 10'000;
constexpr double gguf_ms = 10.0, safetensors_ms = 30.0;
constexpr double repack_target = 0.85, convert_target = 0.60, search_target = 5.0;
constexpr index search_rows = 128;  // searches are slow, and rows independent

// A folder for the files that are opened; gone with the object.
class scratch {
public:
    scratch() {
        std::random_device random;
        path_ = fs::temp_directory_path() / ("nibble_bench_io_" + std::to_string(random()) + std::to_string(random()));
        std::error_code why;
        if (!fs::create_directories(path_, why)) throw bad_input(path_.string() + ": cannot create: " + why.message());
    }
    ~scratch() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }
    scratch(const scratch&) = delete;
    scratch& operator=(const scratch&) = delete;
    [[nodiscard]] fs::path file(const char* name) const { return path_ / name; }

private:
    fs::path path_;
};

std::string tensor_name(std::size_t i) { return "model.layers." + std::to_string(i / 10) + ".mlp.part_" + std::to_string(i % 10) + ".weight"; }

void write_gguf(const fs::path& to) {
    gguf::writer out;
    out.set("general.architecture", "bench").or_throw();
    for (std::size_t i = 0; i < tensor_count; ++i) out.add_tensor(tensor_name(i), ggml::type::q4_0, {1, 32}).or_throw();
    out.create(to).or_throw();
    const std::vector<std::byte> block(18);
    for (std::size_t i = 0; i < tensor_count; ++i) out.write(std::span<const std::byte>(block)).or_throw();
    out.finish().or_throw();
}

void write_safetensors(const fs::path& to) {
    std::vector<st::tensor_data> tensors;
    for (std::size_t i = 0; i < tensor_count; ++i) tensors.push_back({tensor_name(i), st::dtype::f16, {1, 8}, std::vector<std::byte>(16)});
    st::write(to, tensors).or_throw();
}

// Weights with an outlier now and then, as trained ones have.
row_matrix weights(index rows, index cols) {
    row_matrix w = normal_matrix(rows, cols, 0.02f, 5);
    for (index i = 0; i < w.size(); i += 97) w.data()[i] *= 4.0f;
    return w;
}

nibble::const_view view_of(const row_matrix& w, index rows, index cols) { return {w.data(), nibble::scalar_type::f32, rows, cols, w.cols(), 1}; }
nibble::const_view view_of(const row_matrix& w) { return view_of(w, w.rows(), w.cols()); }

// The baseline of repacking: as many bytes into new memory, allocated as that of a matrix is.
void copy(const std::uint8_t* from, std::size_t size) {
    nibble::detail::aligned_bytes to(size, size);
    std::memcpy(to.data(), from, size);
    benchmark::DoNotOptimize(to.data());
    benchmark::ClobberMemory();
}

// The baseline of converting: every byte is read and added, eight sums at a time.
void read_all(const std::uint8_t* from, std::size_t size) {
    std::uint64_t sum[32] = {};
    for (std::size_t i = 0; i + sizeof sum <= size; i += sizeof sum) {
        std::uint64_t u[32];
        std::memcpy(u, from + i, sizeof u);
        for (int j = 0; j < 32; ++j) sum[j] ^= u[j];
    }
    benchmark::DoNotOptimize(sum);
}

// A row and the two things that are run for it.
struct measured {
    row of;
    std::function<void()> own, other;
};

template <class Result>
void keep(const Result& r) {
    if (!r) throw std::runtime_error(r.failure().message);
    benchmark::DoNotOptimize(r.value());
}

void add_repacks(std::vector<measured>& all, const row_matrix& w) {
    for (const char* name : {"q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs", "tq2_0", "mxfp4_ggml",
                             "nvfp4_ggml", "bf16"}) {
        // Some rows again and again: searches over all of them would take most of the run.
        const nibble::qmatrix some = nibble::quantize(view_of(w, (std::min)(w.rows(), index{64}), w.cols()), nibble::detail::plan_of_name(name));
        const ggml::type type = ggml::type_of(some).value();
        const bytes part = ggml::pack(some, type).value();
        const auto data = std::make_shared<bytes>();
        const auto row_bytes = static_cast<std::size_t>(ggml::row_bytes(type, w.cols()));
        while (data->size() < row_bytes * static_cast<std::size_t>(w.rows()))
            data->insert(data->end(), part.begin(), part.begin() + static_cast<std::ptrdiff_t>((std::min)(part.size(), row_bytes * static_cast<std::size_t>(w.rows()) - data->size())));
        measured m;
        m.of = {"repack", std::string("gguf ") + ggml::name(type), static_cast<double>(data->size()), "copy", repack_target, {}, {}, {}};
        const nibble::qmatrix whole = ggml::unpack(type, *data, w.rows(), w.cols()).value();
        if (ggml::pack(whole, type).value() != *data) m.of.wrong = "packed again, it has other bytes";
        m.own = [data, type, rows = w.rows(), cols = w.cols()] { keep(ggml::unpack(type, *data, rows, cols)); };
        m.other = [data] { copy(data->data(), data->size()); };
        all.push_back(std::move(m));
    }
    // One layer of each layout, through its tensors.
    using tensors = std::vector<st::tensor_data>;
    const auto layout = [&](const std::string& what, tensors t, auto unpack) {
        const auto own = std::make_shared<tensors>(std::move(t));
        const auto views = std::make_shared<std::vector<st::tensor>>();
        std::size_t size = 0;
        for (const st::tensor_data& d : *own) {
            views->push_back(d.view());
            size += d.bytes.size();
        }
        const auto data = std::make_shared<bytes>(size, std::uint8_t{1});
        measured m;
        m.of = {"repack", what, static_cast<double>(size), "copy", repack_target, {}, {}, {}};
        m.own = [own, views, unpack] { keep(unpack(*views)); };
        m.other = [data] { copy(data->data(), data->size()); };
        all.push_back(std::move(m));
    };
    using views = std::vector<st::tensor>;
    const auto q = [&](const char* name) { return nibble::quantize(view_of(w), nibble::detail::plan_of_name(name)); };
    layout("gptq, 4 bits", layouts::gptq::pack("x", {q("int4_zero_g128"), {}, {}}).value(),
           [](const views& t) { return layouts::gptq::unpack(t[0], t[1], t[2], nullptr, nullptr, {}); });
    layout("awq", layouts::awq::pack("x", q("int4_zero_g128")).value(),
           [](const views& t) { return layouts::awq::unpack(t[0], t[1], t[2], nullptr, {128, false}); });
    layout("bitsandbytes nf4", layouts::bitsandbytes::pack("x", q("nf4")).value(),
           [](const views& t) { return layouts::bitsandbytes::unpack_four_bit({&t[0], &t[1], &t[2], &t[3], nullptr, nullptr, nullptr}); });
    layout("compressed-tensors, 4 bits", layouts::compressed_tensors::pack("x", q("int4_g128")).value(), [](const views& t) {
        return layouts::compressed_tensors::unpack_integers({&t[0], &t[1], &t[2], nullptr, nullptr, nullptr}, {4, nibble::granularity{1, 128}, true});
    });
    layout("fp8, 128 x 128", layouts::fp8::pack("x", q("fp8_block128")).value(),
           [](const views& t) { return layouts::fp8::unpack(t[0], t[1], nullptr, nibble::granularity{128, 128}); });
    layout("nvfp4", layouts::nvfp4::pack("x", q("nvfp4"), layouts::nvfp4::flavor::modelopt).value(),
           [](const views& t) { return layouts::nvfp4::unpack(t[0], t[1], t[2], nullptr, false); });
    const nibble::qmatrix expert[] = {q("mxfp4")};
    layout("mxfp4", layouts::mxfp4::pack("x", expert).value(), [](const views& t) { return layouts::mxfp4::unpack(t[0], t[1], nullptr, 0); });
}

void add_conversions(std::vector<measured>& all, const row_matrix& w) {
    const auto half = std::make_shared<std::vector<std::uint16_t>>(static_cast<std::size_t>(w.size()));
    for (index i = 0; i < w.size(); ++i) (*half)[static_cast<std::size_t>(i)] = nibble::float_to_bf16(w.data()[i]);
    for (const char* name : {"q8_0", "q4_0", "nf4"}) {
        for (const bool wide : {true, false}) {
            nibble::const_view from = view_of(w);
            if (!wide) from = {half->data(), nibble::scalar_type::bf16, w.rows(), w.cols(), w.cols(), 1};
            const std::size_t size = static_cast<std::size_t>(w.size()) * (wide ? 4 : 2);
            measured m;
            m.of = {"convert", std::string(wide ? "f32" : "bf16") + " to " + name, static_cast<double>(size), "read", convert_target, {}, {}, {}};
            const nibble::quantize_plan plan = nibble::detail::plan_of_name(name);
            m.own = [from, plan, half] { benchmark::DoNotOptimize(nibble::quantize(from, plan)); };
            m.other = [from, size] { read_all(static_cast<const std::uint8_t*>(from.data), size); };
            all.push_back(std::move(m));
        }
    }
}

void add_searches(std::vector<measured>& all, const row_matrix& w) {
    struct search {
        const char* name;
        void (*block)(const float*, std::uint8_t*);
        std::size_t bytes;
        ggml::type type;
    };
    const index rows = (std::min)(w.rows(), search_rows), cols = w.cols() / 256 * 256;
    if (cols == 0) return;
    for (const search& s : {search{"q4_k", quantize_q4_k, q4_k_bytes, ggml::type::q4_k}, search{"q6_k", quantize_q6_k, q6_k_bytes, ggml::type::q6_k}}) {
        const auto out = std::make_shared<bytes>(static_cast<std::size_t>(rows * cols / 256) * s.bytes);
        const auto loop = [out, &w, rows, cols, s] {
            std::uint8_t* to = out->data();
            for (index n = 0; n < rows; ++n)
                for (index k = 0; k < cols; k += 256, to += s.bytes) s.block(w.data() + n * w.cols() + k, to);
            benchmark::DoNotOptimize(out->data());
        };
        const nibble::const_view from = view_of(w, rows, cols);
        const nibble::quantize_plan plan = nibble::detail::plan_of_name(s.name);
        measured m;
        m.of = {"search", std::string("f32 to ") + s.name, static_cast<double>(rows * cols * 4), "scalar loop", search_target, {}, {}, {}};
        loop();
        if (ggml::pack(nibble::quantize(from, plan), s.type).value() != *out) m.of.wrong = "the scalar loop makes other bytes";
        m.own = [from, plan] { benchmark::DoNotOptimize(nibble::quantize(from, plan)); };
        m.other = loop;
        all.push_back(std::move(m));
    }
}

}  // namespace

bool results::any_wrong() const {
    return std::any_of(rows.begin(), rows.end(), [](const row& r) { return !r.wrong.empty(); });
}

void describe_options(CLI::App& app, command_line& line) {
    app.description(
        "Measures files: opening them, repacking their tensors for multiplication, converting floats. Every row takes turns\n"
        "with what it is compared with: a copy of the same bytes into new memory, reading the same bytes, a scalar loop with\n"
        "the same answer. One thread, milliseconds of CPU, caches emptied in between. Ends with the rows that miss a target.\n\n"
        "Exit codes: 0 well, 1 an option, file or disk is wrong, 2 an answer is wrong, 130 Ctrl-C");
    app.add_option("--size", line.size, "shape of the weights")->type_name("NxK")->capture_default_str();
    app.add_option("--isa", line.isa, "instruction set (default: the best of this CPU)")->type_name("NAME");
    app.add_flag("--quick", line.quick, "three rounds only: coarse times");
    app.add_option("--json", line.json_file, "everything, with every sample, as JSON")->type_name("FILE");
    app.parse_complete_callback([&app, &line] { line.json = app.count("--json") != 0; });
}

settings check_settings(const command_line& line) {
    settings s;
    constexpr Eigen::Index largest = 16384;
    const std::size_t cross = line.size.find('x');
    const auto n = whole_number(std::string_view(line.size).substr(0, cross), largest);
    const auto k = cross == std::string::npos ? std::nullopt : whole_number(std::string_view(line.size).substr(cross + 1), largest);
    if (!n || !k || *n % 128 != 0 || *k % 256 != 0)
        throw bad_input("--size: expected ROWSxCOLUMNS such as 4096x4096, at most 16384, rows a multiple of 128 and columns of 256, found '" + line.size + "'");
    s.rows = *n;
    s.cols = *k;
    if (line.quick) s.rounds = 3;
    if (line.json && line.json_file.empty()) throw bad_input("--json: expected the name of a file, found ''");
    if (!line.isa.empty()) set_isa(line.isa);
    return s;
}

results measure(const settings& s, progress& shown) {
    shown.status("preparing");
    const scratch folder;
    std::vector<measured> all;
    const fs::path g = folder.file("x.gguf"), t = folder.file("x.safetensors");
    write_gguf(g);
    write_safetensors(t);
    all.push_back({{"open", "gguf, 10000 tensors", 0.0, {}, gguf_ms, {}, {}, {}}, [g] { keep(gguf::open(g)); }, {}});
    all.push_back({{"open", "safetensors, 10000 tensors", 0.0, {}, safetensors_ms, {}, {}, {}}, [t] { keep(st::open(t)); }, {}});
    const row_matrix w = weights(s.rows, s.cols);
    add_repacks(all, w);
    add_conversions(all, w);
    add_searches(all, w);

    std::vector<contender> contenders;
    for (measured& m : all) {
        contenders.push_back({m.of.kind + " " + m.of.what, m.own, &m.of.own});
        if (m.other) contenders.push_back({m.of.beside, m.other, &m.of.other});
    }
    const int rounds = time_rounds(contenders, {s.rounds, s.rounds, 0.0}, shown);
    results r;
    r.complete = rounds == s.rounds;
    if (rounds == 0) throw interrupted();
    for (measured& m : all) r.rows.push_back(std::move(m.of));
    return r;
}

}  // namespace bench::io
