#include <algorithm>
#include <cmath>
#include <ctime>
#include <functional>
#include <numeric>

#include <CLI/CLI.hpp>
#include <nibble/algorithms/gptq.hpp>
#include <nibble/quantize.hpp>
#include <nibble/dequantize.hpp>

#include "../data.hpp"
#include "../options.hpp"
#include "algorithms_benchmark.hpp"

namespace bench::algorithms {
namespace {

using nibble::index;

// A layer with what a method may see of it.
struct subject {
    layer of;                     // its activations are those that no method sees
    nibble::hessian hessian;
    std::vector<float> importance;
    Eigen::MatrixXd outputs;      // of `of`, in double
};

// What a method made: weights in the layer's own order and scale, and the bits that it needs for each.
struct outcome {
    row_matrix weights;
    double bits = 0.0;
};

double bits_of(const nibble::qmatrix& q) { return 8.0 * static_cast<double>(q.bytes()) / static_cast<double>(q.rows() * q.cols()); }

row_matrix decoded(const nibble::qmatrix& q) {
    row_matrix w(q.rows(), q.cols());
    nibble::dequantize(q, w);
    return w;
}

outcome nearest(const subject& s, const nibble::quantize_plan& plan) {
    const nibble::qmatrix q = nibble::quantize(s.of.weights, plan);
    return {decoded(q), bits_of(q)};
}

outcome weighted(const subject& s, const nibble::quantize_plan& plan) {
    const nibble::qmatrix q = nibble::quantize(s.of.weights, plan, {.importance = s.importance});
    return {decoded(q), bits_of(q)};
}

outcome gptq(const subject& s, const nibble::quantize_plan& plan, const nibble::gptq_options& options) {
    const nibble::gptq_result r = nibble::gptq(s.of.weights, s.hessian, plan, options);
    outcome o{decoded(r.weights), bits_of(r.weights)};
    if (!r.order.empty()) {
        const row_matrix permuted = o.weights;
        for (std::size_t j = 0; j < r.order.size(); ++j) o.weights.col(r.order[j]) = permuted.col(static_cast<index>(j));
    }
    return o;
}

struct method {
    std::string name;
    std::function<outcome(const subject&)> run;
};
struct competition {
    std::string group;
    std::vector<method> methods;  // the first is what the others are compared with
};

using method_function = outcome (*)(const subject&, const nibble::quantize_plan&);

method of(std::string name, method_function f, const nibble::quantize_plan& plan) {
    return {std::move(name), [f, plan](const subject& s) { return f(s, plan); }};
}
outcome gptq_default(const subject& s, const nibble::quantize_plan& plan) { return gptq(s, plan, {.measure_before = false}); }
outcome gptq_moving(const subject& s, const nibble::quantize_plan& plan) { return gptq(s, plan, {.static_groups = false, .measure_before = false}); }

std::vector<competition> competitions() {
    static constexpr nibble::absmax absmax{};
    static constexpr nibble::zero_point zero_point{};
    static constexpr nibble::mse mse{};
    constexpr nibble::granularity group{1, 64};
    const auto named = [](const char* name) { return nibble::detail::plan_of_name(name); };
    std::vector<competition> all;
    const auto integers = [&](const std::string& bits, const nibble::code_format& f, const char* k_quant) {
        const nibble::quantize_plan plain = nibble::make_plan(nibble::format_handle(f), absmax, group);
        const nibble::quantize_plan zero = nibble::make_plan(nibble::format_handle(f), zero_point, group);
        const nibble::quantize_plan searched = nibble::make_plan(nibble::format_handle(f), mse, group);
        all.push_back({bits + " bits",
                       {of("absmax", nearest, plain),
                        of("zero point", nearest, zero),
                        of("mse", nearest, searched),
                        of("mse, importance", weighted, searched),
                        of("gptq, absmax", gptq_default, plain),
                        of("gptq", gptq_default, zero),
                        of("gptq, groups in order", gptq_moving, zero),
                        of(k_quant, nearest, named(k_quant)),
                        of(std::string(k_quant) + ", importance", weighted, named(k_quant))}});
    };
    integers("2", nibble::int2::format, "q2_k");
    integers("3", nibble::int3::format, "q3_k");
    integers("4", nibble::int4::format, "q4_k");
    all.push_back({"nf4", {of("absmax", nearest, named("nf4")), of("gptq", gptq_default, named("nf4"))}});
    all.push_back({"mxfp4", {of("mx", nearest, named("mxfp4")), of("gptq", gptq_default, named("mxfp4"))}});
    return all;
}

// CPU time of this process.
double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

std::vector<subject> subjects(const std::string& directory) {
    const dataset data = load_directory(directory, "bench/data");
    std::vector<subject> all;
    for (const layer& l : data.layers) {
        if (l.calibration.size() == 0) throw bad_input(directory + ": expected a tensor \"" + l.name + ".calib_input\", found none");
        subject s{l, nibble::hessian(l.weights.cols()), {}, {}};
        s.hessian.add(l.calibration);
        nibble::importance importance(l.weights.cols());
        importance.add(l.calibration);
        const auto weights = importance.weights();
        s.importance.assign(weights.begin(), weights.end());
        s.outputs = l.weights.cast<double>() * l.activations.cast<double>();
        all.push_back(std::move(s));
    }
    return all;
}

double sqnr_db(const subject& s, const row_matrix& weights) {
    const double noise = (s.outputs - weights.cast<double>() * s.of.activations.cast<double>()).squaredNorm();
    return 10.0 * std::log10(s.outputs.squaredNorm() / noise);
}

quality_row judge(const std::string& group, const method& m, const std::vector<subject>& layers, const quality_row* first) {
    quality_row row;
    row.group = group;
    row.method = m.name;
    double bits = 0.0, weights = 0.0;
    const double start = cpu_seconds();
    std::vector<outcome> made;
    for (const subject& s : layers) made.push_back(m.run(s));
    row.seconds = cpu_seconds() - start;
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const auto size = static_cast<double>(layers[i].of.weights.size());
        bits += made[i].bits * size;
        weights += size;
        row.sqnr_db.push_back(sqnr_db(layers[i], made[i].weights));
        row.gain_db.push_back(first != nullptr ? row.sqnr_db[i] - first->sqnr_db[i] : 0.0);
    }
    row.bits = bits / weights;
    return row;
}

}  // namespace

double quality_row::mean_gain() const {
    return std::accumulate(gain_db.begin(), gain_db.end(), 0.0) / static_cast<double>((std::max)(std::size_t{1}, gain_db.size()));
}

void describe_options(CLI::App& app, command_line& line) {
    app.description(
        "Compares the methods that choose scales and codes from data: output SQNR of every method on held-out activations of\n"
        "the bundled layers, then what they cost. One thread.\n\n"
        "Exit codes: 0 well, 1 an option, file or disk is wrong, 130 Ctrl-C");
    app.add_option("--size", line.size, "channels of the layer that is timed (as many rows)")->type_name("K")->capture_default_str();
    app.add_option("--tokens", line.tokens, "calibration tokens of the layer that is timed")->type_name("T")->capture_default_str();
    app.add_flag("--no-speed", line.no_speed, "quality only");
    app.add_option("--json", line.json_file, "everything as JSON")->type_name("FILE");
    app.parse_complete_callback([&app, &line] { line.json = app.count("--json") != 0; });
}

settings check_settings(const command_line& line) {
    settings s;
    const auto channels = whole_number(line.size, 16384);
    if (!channels || *channels % 128 != 0)
        throw bad_input("--size: expected a multiple of 128 of at most 16384, found '" + line.size + "'");
    const auto tokens = whole_number(line.tokens, 65536);
    if (!tokens) throw bad_input("--tokens: expected a number from 1 to 65536, found '" + line.tokens + "'");
    if (line.json && line.json_file.empty()) throw bad_input("--json: expected the name of a file, found ''");
    s.channels = *channels;
    s.tokens = *tokens;
    s.speed = !line.no_speed;
    return s;
}

results measure(const std::string& data_directory, const settings& s, progress& shown) {
    results r;
    shown.status("reading");
    const std::vector<subject> layers = subjects(data_directory);
    for (const subject& l : layers) r.layers.push_back(l.of.name);
    for (const competition& c : competitions()) {
        const std::size_t first = r.quality.size();
        for (const method& m : c.methods) {
            if (was_interrupted()) {
                r.complete = false;
                return r;
            }
            shown.status(c.group + ": " + m.name);
            quality_row row = judge(c.group, m, layers, r.quality.size() > first ? &r.quality[first] : nullptr);
            r.quality.push_back(std::move(row));
        }
        shown.milestone(c.group);
    }
    if (s.speed) measure_costs(s, shown, r);
    return r;
}

}  // namespace bench::algorithms
