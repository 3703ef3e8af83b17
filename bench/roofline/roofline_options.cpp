#include "roofline_options.hpp"

#include <algorithm>

#include <CLI/CLI.hpp>

#include "../options.hpp"

namespace bench::roofline {
namespace {

using nibble::index;

constexpr index largest_side = 65536;
constexpr index largest_batch = 4096;
constexpr index most_threads = 256;
constexpr double most_memory = 4e9;  // of float weights: those that Eigen multiplies and those that are quantized
constexpr int most_copies = 1024;    // of a matrix that is read from memory

const std::vector<std::string> quick_formats = {
    "int8_per_channel", "int8_g32", "int4_g32", "int4_g128", "int4_per_channel",
    "int4_zero_g128",   "q6_k",     "q4_k",     "nf4",       "fp8_per_channel"};

std::string listed(const std::vector<std::string>& names) {
    std::string out;
    for (const std::string& name : names) out += (out.empty() ? "" : ", ") + name;
    return out;
}

// `values` of the names that were given, each once; of all names when there are none.
template <class T>
std::vector<T> chosen(const char* option, const std::vector<std::string>& given, const std::vector<std::string>& names,
                      const std::vector<T>& values) {
    if (given.empty()) return values;
    std::vector<T> out;
    for (const std::string& name : given) {
        const auto at = std::find(names.begin(), names.end(), name);
        if (at == names.end())
            throw bad_input(std::string(option) + ": expected some of " + listed(names) + ", found '" + name + "'");
        const T value = values[static_cast<std::size_t>(at - names.begin())];
        if (std::find(out.begin(), out.end(), value) == out.end()) out.push_back(value);
    }
    return out;
}

std::vector<index> numbers(const char* option, const std::vector<std::string>& given, index largest) {
    std::vector<index> out;
    for (const std::string& text : given) {
        const auto value = whole_number(text, largest);
        if (!value)
            throw bad_input(std::string(option) + ": expected whole numbers from 1 to " + std::to_string(largest) +
                            ", found '" + text + "'");
        out.push_back(*value);
    }
    std::sort(out.begin(), out.end());
    out.erase(std::unique(out.begin(), out.end()), out.end());
    return out;
}

shape shape_named(const std::string& text) {
    const std::size_t cross = text.find('x');
    const auto n = whole_number(std::string_view(text).substr(0, cross), largest_side);
    const auto k = cross == std::string::npos ? std::nullopt
                                              : whole_number(std::string_view(text).substr(cross + 1), largest_side);
    if (!n || !k)
        throw bad_input("--size: expected ROWSxCOLUMNS such as 4096x11008, each from 1 to " +
                        std::to_string(largest_side) + ", found '" + text + "'");
    const double bytes = 2.0 * 4.0 * static_cast<double>(*n) * static_cast<double>(*k);
    if (bytes > most_memory)
        throw bad_input("--size " + text + " needs " + std::to_string(static_cast<long>(bytes / 1e6)) +
                        " MB of float weights, at most " + std::to_string(static_cast<long>(most_memory / 1e6)) +
                        " are used");
    return {*n, *k};
}

// A matrix that is read from memory needs so many copies that they do not fit into a cache together.
void check_copies(const settings& s) {
    if (std::find(s.residencies.begin(), s.residencies.end(), residency::dram) == s.residencies.end()) return;
    for (const shape& of : s.shapes) {
        for (const subject& what : s.subjects) {
            const double bytes = static_cast<double>(of.n) * static_cast<double>(of.k) * what.plan.format->bits / 8.0;
            if (copies_from_memory(bytes) > most_copies)
                throw bad_input("--size " + std::to_string(of.n) + "x" + std::to_string(of.k) +
                                " is too small to be read from memory in " + what.name + ": more than " +
                                std::to_string(most_copies) + " copies; take --residency cache");
        }
    }
}

}  // namespace

void describe_options(CLI::App& app, command_line& line) {
    app.description(
        "Measures kernels against the limits of this CPU: how much of the memory bandwidth and of the peak of its\n"
        "arithmetic do products use? Limits are measured in the same run by loops that do nothing else. Every format "
        "x\n"
        "class x number of columns x shape takes turns with Eigen's float product, as compiled by default and with\n"
        "-march=native. Every answer is compared with plain loops in double first. Ends with the rows that miss a "
        "target.\n\n"
        "Everything takes more than an hour; the options narrow it, --quick is some minutes.\n\n"
        "Exit codes: 0 well, 1 an option, file or disk is wrong, 2 an answer is wrong, 130 Ctrl-C");
    const auto list = [&app](const char* name, std::vector<std::string>& into, const char* text, const char* type) {
        app.add_option(name, into, text)->delimiter(',')->type_name(type);
    };
    list("--format", line.formats,
         "recipes or code formats, or int4_per_channel (default: 40 that cover all code formats)", "NAMES");
    list("--compute", line.classes, "of strict_f32, f32, a16, a8 (default: all)", "CLASSES");
    list("--batch", line.batches, "columns of activations (default: 1,2,4,8,16,32,64,128,512)", "M,...");
    list("--threads", line.threads, "numbers of threads (default: 1,2)", "T,...");
    list("--residency", line.residencies, "where weights come from, of dram, cache (default: both)", "NAMES");
    list("--size", line.sizes, "shapes of the weights (default: 4096x4096,4096x11008)", "NxK,...");
    list("--kernel", line.kernels, "of product, quantize, dequantize, prepare (default: all)", "NAMES");
    app.add_option("--isa", line.isa, "instruction set of products and of the peaks (default: the best of this CPU)")
        ->type_name("NAME");
    app.add_option("--row-budget", line.row_budget,
                   "seconds of samples for one row, and at least 5 samples (default: 0.25)")
        ->type_name("SECONDS");
    app.add_flag(
        "--quick", line.quick,
        "coarse: 3 samples of 10 formats in a8 and f32, 4096x4096, M = 1, 16, 512, one thread, unless said otherwise");
    app.add_flag("--no-native", line.no_native, "without Eigen compiled with -march=native");
    app.add_option("--json", line.json_file, "limits and rows as JSON")->type_name("FILE");
    app.parse_complete_callback([&app, &line] { line.json = app.count("--json") != 0; });
}

settings check_settings(const command_line& line) {
    settings s;
    const auto or_quick = [&line](const std::vector<std::string>& given, const std::vector<std::string>& quick,
                                  const std::vector<std::string>& usual) {
        return !given.empty() ? given : line.quick ? quick : usual;
    };
    for (const std::string& name : or_quick(line.formats, quick_formats, {})) {
        subject what = subject_named(name);
        if (std::none_of(s.subjects.begin(), s.subjects.end(),
                         [&what](const subject& other) { return other.name == what.name; }))
            s.subjects.push_back(std::move(what));
    }
    if (s.subjects.empty()) s.subjects = default_subjects();
    for (const std::string& name : or_quick(line.classes, {"f32", "a8"}, {"strict_f32", "f32", "a16", "a8"})) {
        const nibble::compute c = compute_named(name);
        if (std::find(s.classes.begin(), s.classes.end(), c) == s.classes.end()) s.classes.push_back(c);
    }
    s.batches = numbers(
        "--batch", or_quick(line.batches, {"1", "16", "512"}, {"1", "2", "4", "8", "16", "32", "64", "128", "512"}),
        largest_batch);
    for (const index t : numbers("--threads", or_quick(line.threads, {"1"}, {"1", "2"}), most_threads))
        s.threads.push_back(static_cast<int>(t));
    s.residencies =
        chosen<residency>("--residency", line.residencies, {"dram", "cache"}, {residency::dram, residency::cache});
    s.kernels = chosen<kernel>("--kernel", line.kernels, {"product", "quantize", "dequantize", "prepare"},
                               {kernel::product, kernel::quantize, kernel::dequantize, kernel::prepare});
    for (const std::string& text : or_quick(line.sizes, {"4096x4096"}, {"4096x4096", "4096x11008"})) {
        const shape of = shape_named(text);
        if (std::none_of(s.shapes.begin(), s.shapes.end(),
                         [&of](const shape& other) { return other.n == of.n && other.k == of.k; }))
            s.shapes.push_back(of);
    }
    check_copies(s);
    if (line.quick) {
        s.row_budget = 0.0;
        s.least_samples = 3;
    }
    if (line.row_budget != -1.0) {
        if (!(line.row_budget >= 0.0 && line.row_budget <= 3600.0))
            throw bad_input("--row-budget: expected seconds, from 0 to 3600, found " + std::to_string(line.row_budget));
        s.row_budget = line.row_budget;
    }
    if (line.json && line.json_file.empty()) throw bad_input("--json: expected the name of a file, found ''");
    if (!line.isa.empty()) set_isa(line.isa);
    return s;
}

}  // namespace bench::roofline
