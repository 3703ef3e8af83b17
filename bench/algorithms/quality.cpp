#include <algorithm>
#include <cmath>
#include <ctime>
#include <functional>
#include <numeric>

#include <CLI/CLI.hpp>
#include <nibble/algorithms/quantize_layer.hpp>
#include <nibble/calibration/importance.hpp>
#include <nibble/layers/outliers.hpp>

#include "../data.hpp"
#include "../options.hpp"
#include "algorithms_benchmark.hpp"

namespace bench::algorithms {
namespace {

using nibble::index;

// A layer with what a method may see of it.
struct subject {
    layer of;                     // its activations are those that no method sees
    nibble::layer_calibration seen;
    std::vector<float> importance;
    Eigen::MatrixXd outputs;      // of `of`, in double
};

// What a method made: outputs for the activations that it has not seen, and the bits that a weight takes.
struct outcome {
    Eigen::MatrixXd outputs;
    double bits = 0.0;
};

Eigen::MatrixXd product(const nibble::qmatrix& q, const Eigen::MatrixXf& x) {
    row_matrix w(q.rows(), q.cols());
    nibble::dequantize(q, w);
    return w.cast<double>() * x.cast<double>();
}

outcome outcome_of(const nibble::qmatrix& q, const subject& s) { return {product(q, s.of.activations), q.bits_per_weight()}; }

using plan_type = nibble::quantize_plan;
using method_function = std::function<outcome(const subject&, const plan_type&)>;

outcome nearest(const subject& s, const plan_type& plan) { return outcome_of(nibble::quantize(s.of.weights, plan), s); }
outcome weighted(const subject& s, const plan_type& plan) { return outcome_of(nibble::quantize(s.of.weights, plan, {.importance = s.importance}), s); }
outcome hqq(const subject& s, const plan_type& plan) { return outcome_of(nibble::hqq(s.of.weights, plan).weights, s); }

// Every combination that quantize_layer knows. Channel scales are fp32 numbers of a column each.
method_function layered(const nibble::layer_options& options) {
    return [options](const subject& s, const plan_type& plan) {
        const nibble::quantized_layer q = nibble::quantize_layer(s.of.weights, s.seen, plan, options);
        outcome o{product(q.weights, q.activations(s.of.activations)), q.weights.bits_per_weight()};
        if (!q.scales.empty()) o.bits += 32.0 / static_cast<double>(q.weights.rows());
        return o;
    };
}

// SpQR: half a percent of the weights in fp16, GPTQ for the rest.
outcome dense_and_sparse(const subject& s, const plan_type& plan) {
    const auto split = nibble::find_outliers(s.of.weights, plan, {.fraction = 0.005, .importance = s.importance});
    const nibble::outlier_matrix m =
        nibble::join_outliers(nibble::gptq(split.rest, s.seen.moments, plan, {.measure_before = false}).weights, s.of.weights, split.rest, split);
    outcome o = outcome_of(m.dense(), s);
    o.bits = m.bits_per_weight();
    for (index n = 0; n < m.rows(); ++n)
        for (index i = m.row_begin()[static_cast<std::size_t>(n)]; i < m.row_begin()[static_cast<std::size_t>(n + 1)]; ++i) {
            const double v = static_cast<double>(nibble::fp16_to_float(m.values()[static_cast<std::size_t>(i)]));
            o.outputs.row(n) += v * s.of.activations.row(m.columns()[static_cast<std::size_t>(i)]).cast<double>();
        }
    return o;
}

struct method {
    std::string name;
    plan_type plan;
    method_function run;
};
struct competition {
    std::string group;
    std::vector<method> methods;  // the first is what the others are compared with
};

std::vector<competition> competitions() {
    static constexpr nibble::absmax absmax{};
    static constexpr nibble::zero_point zero_point{};
    static constexpr nibble::float_zero float_zero{};
    static constexpr nibble::mse mse{};
    using nibble::layer_rounding;
    using nibble::layer_scaling;
    const nibble::layer_options plain{.gptq = {.measure_before = false}};
    nibble::layer_options awq = plain, gptq = plain, ordered = plain, awq_gptq = plain, rotated = plain;
    awq.scaling = awq_gptq.scaling = layer_scaling::awq;
    awq.rounding = layer_rounding::nearest;
    ordered.gptq.static_groups = false;
    rotated.rotate = true;
    const auto named = [](const char* name) { return nibble::detail::plan_of_name(name); };
    const auto calibrated = [&](const plan_type& p, std::vector<method>& to) {
        to.push_back({"awq", p, layered(awq)});
        to.push_back({"gptq", p, layered(gptq)});
        to.push_back({"gptq, groups in order", p, layered(ordered)});
        to.push_back({"awq, gptq", p, layered(awq_gptq)});
        to.push_back({"rotation, gptq", p, layered(rotated)});
    };
    std::vector<competition> all;
    const auto integers = [&](const std::string& group, const nibble::code_format& f, const char* k_quant) {
        const auto plan = [&](const auto& rule) { return nibble::make_plan(nibble::format_handle(f), rule, nibble::granularity{1, 64}); };
        competition c{group, {}};
        c.methods = {{"absmax", plan(absmax), nearest},
                     {"zero point", plan(zero_point), nearest},
                     {"mse", plan(mse), nearest},
                     {"mse, importance", plan(mse), weighted},
                     {"hqq", plan(float_zero), hqq}};
        calibrated(plan(zero_point), c.methods);
        c.methods.push_back({"outliers, gptq", plan(zero_point), dense_and_sparse});
        c.methods.push_back({k_quant, named(k_quant), nearest});
        c.methods.push_back({std::string(k_quant) + ", importance", named(k_quant), weighted});
        all.push_back(std::move(c));
    };
    const std::vector<std::string>& names = group_names();
    integers(names[0], nibble::int2::format, "q2_k");
    integers(names[1], nibble::int3::format, "q3_k");
    integers(names[2], nibble::int4::format, "q4_k");
    for (std::size_t i = 3; i < names.size(); ++i) {
        const plan_type plan = named(names[i].c_str());
        competition c{names[i], {{"nearest", plan, nearest}}};
        calibrated(plan, c.methods);
        all.push_back(std::move(c));
    }
    return all;
}

// CPU time of this process.
double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

std::vector<subject> subjects(const std::string& directory) {
    const dataset data = load_directory(directory, "bench/data");
    std::vector<subject> all;
    for (const layer& l : data.layers) {
        if (l.calibration.size() == 0) throw bad_input(directory + ": expected a tensor \"" + l.name + ".calib_input\", found none");
        subject s{l, nibble::layer_calibration(l.weights.cols()), {}, {}};
        s.seen.add(l.calibration);
        nibble::importance importance(l.weights.cols());
        importance.add(l.calibration);
        const auto weights = importance.weights();
        s.importance.assign(weights.begin(), weights.end());
        s.outputs = l.weights.cast<double>() * l.activations.cast<double>();
        all.push_back(std::move(s));
    }
    return all;
}

double sqnr_db(const subject& s, const outcome& o) { return 10.0 * std::log10(s.outputs.squaredNorm() / (s.outputs - o.outputs).squaredNorm()); }

quality_row judge(const std::string& group, const method& m, const std::vector<subject>& layers, const quality_row* first) {
    quality_row row;
    row.group = group;
    row.method = m.name;
    double bits = 0.0, weights = 0.0;
    const double start = cpu_seconds();
    std::vector<outcome> made;
    for (const subject& s : layers) made.push_back(m.run(s, m.plan));
    row.seconds = cpu_seconds() - start;
    for (std::size_t i = 0; i < layers.size(); ++i) {
        const auto size = static_cast<double>(layers[i].of.weights.size());
        bits += made[i].bits * size;
        weights += size;
        row.sqnr_db.push_back(sqnr_db(layers[i], made[i]));
        row.gain_db.push_back(first != nullptr ? row.sqnr_db[i] - first->sqnr_db[i] : 0.0);
    }
    row.bits = bits / weights;
    return row;
}

}  // namespace

const std::vector<std::string>& group_names() {
    static const std::vector<std::string> names = {"2 bits", "3 bits", "4 bits", "nf4", "mxfp4"};
    return names;
}

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
    app.add_option("--only", line.groups, "these formats, of: 2 bits, 3 bits, 4 bits, nf4, mxfp4")->type_name("LIST")->delimiter(',');
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
    for (const std::string& g : line.groups)
        if (std::find(group_names().begin(), group_names().end(), g) == group_names().end())
            throw bad_input("--only: expected some of 2 bits, 3 bits, 4 bits, nf4, mxfp4, found '" + g + "'");
    s.groups = line.groups;
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
        if (!s.groups.empty() && std::find(s.groups.begin(), s.groups.end(), c.group) == s.groups.end()) continue;
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
