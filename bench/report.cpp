#include "report.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <sstream>

#include <benchmark/benchmark.h>
#include <nlohmann/json.hpp>

#include "eigen_products.hpp"
#include "nibble_git_commit.hpp"
#include "options.hpp"
#include "text_table.hpp"

namespace bench {
namespace {

// Thresholds of the advice. 30 dB on outputs is a relative error of 3 %; at 4.6 bits, a format has room for 4-bit codes
// and their scales, which is what most people who ask for "4 bits" mean.
constexpr double near_lossless_db = 30.0;
constexpr double small_bits = 4.6;
// Times whose median is known no better than this are marked.
constexpr double uncertain = 0.05;

std::string number(double x, int decimals) {
    if (std::isnan(x)) return "-";
    if (std::isinf(x)) return "exact";
    char text[48];
    std::snprintf(text, sizeof text, "%.*f", decimals, x);
    return text;
}

std::string general(double x) {
    char text[48];
    std::snprintf(text, sizeof text, "%.3g", x);
    return text;
}

// Three digits, whatever the size.
std::string milliseconds(double ms) { return number(ms, ms >= 100.0 ? 0 : ms >= 10.0 ? 1 : ms >= 1.0 ? 2 : 3); }

std::string shape_of(Eigen::Index rows, Eigen::Index cols) { return std::to_string(rows) + "x" + std::to_string(cols); }

// --- tables ---------------------------------------------------------------------------------------------------------

double speedup(const report& r, const row& of, std::size_t batch) {
    return r.measured.eigen().products[batch].median() / of.products[batch].median();
}

std::string main_table(const report& r) {
    const settings& s = r.options;
    text_table table;
    std::vector<std::string> top = {"", "bits per", "", "weights", "outputs", "weights", "outputs"};
    std::vector<std::string> head = {"format", "weight", "bytes", "SQNR dB", "SQNR dB", "max err", "max err"};
    for (const Eigen::Index m : s.batches) {
        top.insert(top.end(), {"M = " + std::to_string(m), "times"});
        head.insert(head.end(), {"ms", "Eigen"});
    }
    top.insert(top.end(), {"quantize", ""});
    head.insert(head.end(), {"MB/s", "beaten by"});
    table.add(top);
    table.add(head);

    for (const row& o : r.measured.rows) {
        if (!o.failed.empty()) {
            std::vector<std::string> cells(head.size(), "-");
            cells.front() = o.name;
            cells.back() = "(not possible, see below)";
            table.add(std::move(cells));
            continue;
        }
        std::vector<std::string> cells = {o.name, number(o.bits_per_weight, 3), number(o.bytes, 0)};
        if (o.baseline) {
            cells.insert(cells.end(), {"-", "-", "-", "-"});
        } else {
            cells.insert(cells.end(), {number(o.weight_sqnr_db, 2), number(o.output_sqnr_db, 2),
                                       general(o.max_weight_error), general(o.max_output_error)});
        }
        for (std::size_t b = 0; b < s.batches.size(); ++b) {
            if (!o.wrong.empty()) {
                cells.insert(cells.end(), {"WRONG", "WRONG"});
                continue;
            }
            const samples& time = o.products[b];
            std::string mark = time.uncertainty() > uncertain ? "~" : "";
            cells.push_back(mark.append(milliseconds(time.median())));
            cells.push_back(std::string("x").append(number(speedup(r, o, b), 2)));
        }
        cells.push_back(!o.wrong.empty() ? "WRONG" : o.baseline ? "-" : number(o.quantize_mb_per_s(), 0));
        cells.push_back(o.beaten_by);
        table.add(std::move(cells));
    }
    return table.text(2);
}

std::string layers_text(const dataset& data) {
    std::string out;
    for (const layer& l : data.layers)
        out += (out.empty() ? "" : ", ") + l.name + " " + shape_of(l.weights.rows(), l.weights.cols()) + " with " +
               std::to_string(l.activations.cols()) + " tokens";
    return out;
}

std::string activations_text(const dataset& data) {
    return data.synthetic_activations ? "synthetic normal activations (the file has none for it)" : "real activations";
}

std::string header_text(const report& r) {
    const environment& e = r.where;
    const settings& s = r.options;
    std::string out = "nibble " + e.version + (e.commit.empty() ? "" : " (" + e.commit + ")") + ", " + e.compiler +
                      ", Eigen " + e.eigen + "\n";
    out += "CPU       " + e.cpu + ", " + std::to_string(e.cores) + " cores; nibble runs at " + e.isa + ", compute " +
           nibble::name_of(s.compute) + ", one thread\n";
    out += wrapped("accuracy  ",
                   r.data.description + ": " + layers_text(r.data) + "; " + activations_text(r.data) +
                       "; SQNR from sums of squares over all layers, max err the largest |error| of any element");
    out += wrapped("time      ", shape_of(s.rows, s.cols) +
                                     " synthetic normal weights, M columns of activations; medians of " +
                                     std::to_string(r.measured.rounds) +
                                     " interleaved samples of CPU time, weights read from memory, not from caches; "
                                     "quantize: MB of fp32 weights, on " +
                                     std::to_string(r.measured.quantize_rows) + " of the rows");
    return out;
}

void note_busy_machine(const report& r, std::string& out) {
    double cpu = 0.0;
    double wall = 0.0;
    for (const row& o : r.measured.rows) {
        for (const samples& time : o.products) {
            for (const double ms : time.cpu_ms) cpu += ms;
            for (const double ms : time.wall_ms) wall += ms;
        }
    }
    if (cpu < 0.9 * wall)
        out += "note: other programs kept this one off the CPU for " + number(100.0 * (1.0 - cpu / wall), 0) +
               " % of the time; an idle machine gives steadier times\n";
}

void note_strict_columns(const report& r, std::string& out) {
    std::string formats;
    for (const row& o : r.measured.rows)
        if (o.strict_columns != 0)
            formats += (formats.empty() ? "" : ", ") + o.name + " " + std::to_string(o.strict_columns) + " of " +
                       std::to_string(o.columns);
    if (!formats.empty())
        out += wrapped("note: ", "columns of the " + std::string(r.data.synthetic_activations ? "" : "real ") +
                                     "activations whose outliers " + nibble::name_of(r.options.compute) +
                                     " cannot carry, so that they went to strict_f32: " + formats);
}

std::string notes_text(const report& r) {
    std::string out = "times Eigen: how many times faster than f32 (Eigen), which is compiled for " +
                      r.where.eigen_isa + "; \"~\": median uncertain by more than 5 %\n";
    out += "beaten by: that format is no larger and its outputs are no less exact, and one of the two is better\n";
    note_strict_columns(r, out);
    note_busy_machine(r, out);
    if (!r.measured.complete) out += "note: interrupted after " + std::to_string(r.measured.rounds) + " rounds\n";
    for (const row& o : r.measured.rows) {
        if (!o.failed.empty()) out += wrapped("not possible: ", o.name + ": " + o.failed);
        if (!o.wrong.empty()) out += wrapped("WRONG: ", o.name + " disagrees with the reference in double: " + o.wrong);
    }
    return out;
}

// --- CSV and JSON ------------------------------------------------------------------------------------------------

std::string csv_number(double x) {
    if (std::isnan(x)) return "";
    if (std::isinf(x)) return "inf";
    char text[40];
    std::snprintf(text, sizeof text, "%.9g", x);
    return text;
}

const char* status_of(const row& o) { return !o.failed.empty() ? "failed" : !o.wrong.empty() ? "wrong" : "ok"; }

// JSON has no infinity: an exact format has SQNR null.
nlohmann::ordered_json json_number(double x) {
    return std::isfinite(x) ? nlohmann::ordered_json(x) : nlohmann::ordered_json(nullptr);
}

nlohmann::ordered_json json_samples(const samples& s) {
    return {{"median_ms", json_number(s.median())},
            {"uncertainty", s.uncertainty()},
            {"cpu_ms", s.cpu_ms},
            {"wall_ms", s.wall_ms}};
}

nlohmann::ordered_json json_row(const report& r, const row& o) {
    nlohmann::ordered_json out = {
        {"format", o.name}, {"use_when", o.use_when}, {"baseline", o.baseline}, {"status", status_of(o)}};
    if (!o.failed.empty()) {
        out["message"] = o.failed;
        return out;
    }
    out["bits_per_weight"] = o.bits_per_weight;
    out["bytes"] = o.bytes;
    out["weight_sqnr_db"] = json_number(o.weight_sqnr_db);
    out["output_sqnr_db"] = json_number(o.output_sqnr_db);
    out["max_weight_error"] = o.max_weight_error;
    out["max_output_error"] = o.max_output_error;
    out["strict_columns"] = o.strict_columns;
    out["columns"] = o.columns;
    out["beaten_by"] = o.beaten_by.empty() ? nlohmann::ordered_json(nullptr) : nlohmann::ordered_json(o.beaten_by);
    if (!o.wrong.empty()) {
        out["message"] = o.wrong;
        return out;
    }
    out["timing_bits_per_weight"] = o.timing_bits_per_weight;
    out["products"] = nlohmann::ordered_json::array();
    for (std::size_t b = 0; b < o.products.size(); ++b) {
        nlohmann::ordered_json product = {{"batch", r.options.batches[b]},
                                          {"times_eigen", json_number(speedup(r, o, b))}};
        product.update(json_samples(o.products[b]));
        out["products"].push_back(std::move(product));
    }
    if (!o.baseline) {
        out["quantize"] = {{"mb_per_s", json_number(o.quantize_mb_per_s())}};
        out["quantize"].update(json_samples(o.quantize));
    }
    return out;
}

}  // namespace

// --- the machine -------------------------------------------------------------------------------------------------

namespace {

// The value of the first "name : value" line of /proc/cpuinfo; empty where there is none.
std::string cpuinfo(const std::string& name) {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        const std::size_t colon = line.find(':');
        if (line.compare(0, name.size(), name) == 0 && colon != std::string::npos && colon + 2 <= line.size())
            return line.substr(colon + 2);
    }
    return {};
}

std::string compiler_name() {
#if defined(__clang__)
    return "clang " + std::to_string(__clang_major__) + "." + std::to_string(__clang_minor__);
#elif defined(__GNUC__)
    return "GCC " + std::to_string(__GNUC__) + "." + std::to_string(__GNUC_MINOR__);
#elif defined(_MSC_VER)
    return "MSVC " + std::to_string(_MSC_VER);
#else
    return "unknown compiler";
#endif
}

std::string eigen_version() {
#if defined(EIGEN_VERSION_STRING)
    return EIGEN_VERSION_STRING;
#else
    return std::to_string(EIGEN_WORLD_VERSION) + "." + std::to_string(EIGEN_MAJOR_VERSION) + "." +
           std::to_string(EIGEN_MINOR_VERSION);
#endif
}

}  // namespace

environment describe_environment() {
    environment e;
    e.version = std::to_string(NIBBLE_VERSION_MAJOR) + "." + std::to_string(NIBBLE_VERSION_MINOR) + "." +
                std::to_string(NIBBLE_VERSION_PATCH);
    e.commit = NIBBLE_GIT_COMMIT;
    e.cpu = cpuinfo("model name");
    if (e.cpu.empty()) e.cpu = "unknown CPU";
    e.cores = benchmark::CPUInfo::Get().num_cpus;
    std::istringstream flags(cpuinfo("flags"));
    for (std::string flag; flags >> flag;) e.cpu_flags.push_back(flag);
    e.isa = nibble::name_of(nibble::active_isa());
    e.compiler = compiler_name();
#if defined(NIBBLE_BENCH_FLAGS)
    e.compiler_flags = NIBBLE_BENCH_FLAGS;
#endif
    e.eigen = eigen_version();
    e.eigen_isa = eigen_instruction_sets();
    return e;
}

std::string table_text(const report& r) {
    return header_text(r) + "\n" + main_table(r) + "\n" + notes_text(r) + "\n" + wrapped("", advice(r));
}

std::string csv_text(const report& r) {
    std::string out =
        "format,status,bits_per_weight,bytes,weight_sqnr_db,output_sqnr_db,max_weight_error,max_output_error,strict_"
        "columns";
    for (const Eigen::Index m : r.options.batches)
        out += ",m" + std::to_string(m) + "_ms,m" + std::to_string(m) + "_times_eigen";
    out += ",quantize_mb_per_s,beaten_by\n";
    for (const row& o : r.measured.rows) {
        out += o.name.find(',') == std::string::npos ? o.name : "\"" + o.name + "\"";  // "f32 (Eigen, AVX2)"
        out += std::string(",") + status_of(o);
        const bool measured = o.failed.empty();
        const auto add = [&out](bool there, double x) {
            out += ",";
            if (there) out += csv_number(x);
        };
        add(measured, o.bits_per_weight);
        add(measured, o.bytes);
        add(measured, o.weight_sqnr_db);
        add(measured, o.output_sqnr_db);
        add(measured, o.max_weight_error);
        add(measured, o.max_output_error);
        add(measured, static_cast<double>(o.strict_columns));
        const bool timed = measured && o.wrong.empty();
        for (std::size_t b = 0; b < r.options.batches.size(); ++b) {
            add(timed, timed ? o.products[b].median() : 0.0);
            add(timed, timed ? speedup(r, o, b) : 0.0);
        }
        add(timed && !o.baseline, o.quantize_mb_per_s());
        out += "," + o.beaten_by + "\n";
    }
    return out;
}

std::string json_text(const report& r) {
    const environment& e = r.where;
    const settings& s = r.options;
    nlohmann::ordered_json out;
    out["schema"] = "nibble_bench";
    out["schema_version"] = json_schema_version;
    out["complete"] = r.measured.complete;
    out["nibble"] = {{"version", e.version}, {"commit", e.commit}};
    out["cpu"] = {{"model", e.cpu}, {"cores", e.cores}, {"isa", e.isa}, {"flags", e.cpu_flags}};
    out["compiler"] = {{"name", e.compiler}, {"flags", e.compiler_flags}};
    out["eigen"] = {{"version", e.eigen}, {"isa", e.eigen_isa}};
    nlohmann::ordered_json layers = nlohmann::ordered_json::array();
    for (const layer& l : r.data.layers)
        layers.push_back({{"name", l.name},
                          {"rows", l.weights.rows()},
                          {"cols", l.weights.cols()},
                          {"tokens", l.activations.cols()}});
    out["data"] = {{"description", r.data.description},
                   {"files", r.data.files},
                   {"activations", r.data.synthetic_activations ? "synthetic" : "real"},
                   {"layers", layers}};
    std::vector<std::string> names;
    for (const nibble::recipe* format : s.formats) names.emplace_back(format->name);
    out["options"] = {{"formats", names},          {"compute", nibble::name_of(s.compute)},
                      {"shape", {s.rows, s.cols}}, {"batches", s.batches},
                      {"quick", s.quick},          {"time_budget_s", s.time_budget},
                      {"weights_seed", 42}};
    out["timing"] = {{"rounds", r.measured.rounds},
                     {"seconds", r.measured.seconds},
                     {"quantize_rows", r.measured.quantize_rows},
                     {"threads", 1},
                     {"caches", "cold"},
                     {"clock", "CPU time of the thread"}};
    out["rows"] = nlohmann::ordered_json::array();
    for (const row& o : r.measured.rows) out["rows"].push_back(json_row(r, o));
    out["advice"] = advice(r);
    // A path that is not UTF-8 must not end the program now.
    return out.dump(1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string advice(const report& r) {
    const row* exact = nullptr;  // the smallest one that is nearly lossless
    const row* small = nullptr;  // the most exact one of about 4.5 bits
    for (const row& o : r.measured.rows) {
        if (!o.usable() || !o.beaten_by.empty()) continue;
        if (o.output_sqnr_db >= near_lossless_db && (exact == nullptr || o.bytes < exact->bytes)) exact = &o;
        if (o.bits_per_weight <= small_bits && (small == nullptr || o.output_sqnr_db > small->output_sqnr_db))
            small = &o;
    }
    const auto facts = [&r](const row& o) {
        std::string text = number(o.bits_per_weight, 2) + " bits, ";
        text += std::isinf(o.output_sqnr_db) ? "exact" : number(o.output_sqnr_db, 1) + " dB";
        for (std::size_t b = 0; b < r.options.batches.size(); ++b) {
            text += b == 0 ? "; speed x" : ", x";
            text += number(speedup(r, o, b), 2) + (b == 0 ? " Eigen's at M = " : " at M = ") +
                    std::to_string(r.options.batches[b]);
        }
        return text;
    };
    std::string out;
    if (exact != nullptr)
        out = "Take " + exact->name +
              " where outputs must hardly change: it is the smallest format compared with at least " +
              number(near_lossless_db, 0) + " dB on outputs, an error below 3 % (" + facts(*exact) + ")";
    if (small != nullptr && small != exact)
        out += (out.empty() ? "Take " : "; take ") + small->name +
               " where size decides: it is the most exact one of at most " + number(small_bits, 1) + " bits (" +
               facts(*small) + ")";
    if (out.empty())
        out = "No format compared can be recommended: of those with right products, none has " +
              number(near_lossless_db, 0) + " dB on outputs and none at most " + number(small_bits, 1) + " bits";
    out += "; this rests on " + std::to_string(r.data.layers.size()) +
           (r.data.layers.size() == 1 ? " weight matrix" : " weight matrices") + " of " + r.data.description +
           " with " + std::to_string(r.data.token_count()) + " tokens of " + activations_text(r.data) +
           ", and on times on " + r.where.cpu + ".";
    return out;
}

std::string known_formats() {
    std::string out;
    for (const nibble::recipe& r : nibble::recipes()) out.append(out.empty() ? "" : " ").append(r.name);
    for (const nibble::code_format* f : nibble::formats())
        if (nibble::find_recipe(f->name) == nullptr && recipe_named(f->name) != nullptr)
            out.append(" ").append(f->name);
    return out;
}

std::string list_text() {
    text_table recipes;
    recipes.add({"recipe", "bits per weight", "code", "group", "use when"});
    for (const nibble::recipe& r : nibble::recipes()) {
        // Per-channel scales and the like depend on the shape; 4096 columns are usual.
        const nibble::qmatrix_builder shape(256, 4096, *r.format, r.scale, r.offset(), r.group);
        const std::string group = r.format->decode == nibble::decode_class::wide ? "-"
                                  : r.group.rows == 1 ? (r.group.cols == 0 ? "row" : std::to_string(r.group.cols))
                                  : r.group.cols == 0 ? "tensor"
                                                      : shape_of(r.group.rows, r.group.cols);
        recipes.add({r.name, number(shape.peek().bits_per_weight(), 3), r.format->name, group, r.use_when});
    }
    text_table codes;
    codes.add({"code", "bits", "recipe", "use when"});
    for (const nibble::code_format* f : nibble::formats()) {
        const nibble::recipe* standard = recipe_named(f->name);
        codes.add({f->name, std::to_string(f->bits), standard != nullptr ? standard->name : "-", f->use_when});
    }
    return "Recipes: a code, its scales and the rule that chooses them. Bits with scales, at 4096 columns.\n\n" +
           recipes.text(1) + "\nCode formats: --format takes these names too, and means the recipe named beside.\n\n" +
           codes.text(1);
}

}  // namespace bench
