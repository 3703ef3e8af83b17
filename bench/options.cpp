#include "options.hpp"

#include <algorithm>
#include <charconv>
#include <optional>

#include <CLI/CLI.hpp>

#include "report.hpp"

namespace bench {
namespace {

constexpr Eigen::Index largest_side = 65536;
constexpr Eigen::Index largest_batch = 4096;
constexpr double most_memory = 3.5e9;

const nibble::recipe& format_named(const std::string& name) {
    if (const nibble::recipe* r = recipe_named(name)) return *r;
    throw bad_input("--format: there is no format '" + name + "'; there are " + known_formats());
}

std::vector<const nibble::recipe*> formats_of(const std::vector<std::string>& names) {
    std::vector<const nibble::recipe*> formats;
    for (const std::string& name : names) {
        const nibble::recipe* r = &format_named(name);
        if (std::find(formats.begin(), formats.end(), r) == formats.end()) formats.push_back(r);
    }
    if (names.empty())
        for (const nibble::recipe& r : nibble::recipes()) formats.push_back(&r);
    return formats;
}

void read_shape(const std::string& text, settings& s) {
    const std::size_t cross = text.find('x');
    const auto rows = whole_number(std::string_view(text).substr(0, cross), largest_side);
    const auto cols =
        cross == std::string::npos ? std::nullopt : whole_number(std::string_view(text).substr(cross + 1), largest_side);
    if (!rows || !cols)
        throw bad_input("--shape: expected ROWSxCOLUMNS such as 4096x4096, each from 1 to " +
                        std::to_string(largest_side) + ", found '" + text + "'");
    s.rows = *rows;
    s.cols = *cols;
}

void read_batches(const std::string& text, settings& s) {
    s.batches.clear();
    for (std::size_t first = 0; first <= text.size();) {
        const std::size_t comma = (std::min)(text.find(',', first), text.size());
        const auto m = whole_number(std::string_view(text).substr(first, comma - first), largest_batch);
        if (!m)
            throw bad_input("--batch: expected numbers of columns such as 1,128, each from 1 to " +
                            std::to_string(largest_batch) + ", found '" + text + "'");
        if (std::find(s.batches.begin(), s.batches.end(), *m) == s.batches.end()) s.batches.push_back(*m);
        first = comma + 1;
    }
}

}  // namespace

std::optional<Eigen::Index> whole_number(std::string_view text, Eigen::Index largest) {
    Eigen::Index value = 0;
    const auto [end, why] = std::from_chars(text.data(), text.data() + text.size(), value);
    if (why != std::errc{} || end != text.data() + text.size() || value < 1 || value > largest) return std::nullopt;
    return value;
}

nibble::compute compute_named(const std::string& name) {
    std::string known;
    for (const nibble::compute c :
         {nibble::compute::f32, nibble::compute::a16, nibble::compute::a8, nibble::compute::strict_f32}) {
        if (name == nibble::name_of(c)) return c;
        known += (known.empty() ? "" : ", ") + std::string(nibble::name_of(c));
    }
    throw bad_input("--compute: expected one of " + known + ", found '" + name + "'");
}

void set_isa(const std::string& name) {
    std::string known;
    for (const nibble::isa level : nibble::compiled_isas()) {
        if (!nibble::is_supported(level)) continue;
        if (name == nibble::name_of(level)) {
            nibble::set_active_isa(level);
            return;
        }
        known += (known.empty() ? "" : ", ") + std::string(nibble::name_of(level));
    }
    throw bad_input("--isa: expected one of " + known + ", which this CPU can run, found '" + name + "'");
}

const nibble::recipe* recipe_named(std::string_view name) {
    if (const nibble::recipe* r = nibble::find_recipe(name)) return r;
    const nibble::code_format* f = nibble::find_format(name);
    return f != nullptr ? nibble::default_recipe(*f) : nullptr;
}

void describe_options(CLI::App& app, command_line& line) {
    app.name("nibble_bench");
    app.description(
        "Compares nibble's formats: size, accuracy on real weights with their real activations, and speed.\n"
        "Without options: every format, on a slice of a real model, in about two minutes.\n\n"
        "Accuracy is summed over all layers of the data. Times are of synthetic weights of one shape, in rounds: one\n"
        "sample of every format per round, in a new random order each, as many rounds as the time budget allows\n"
        "(at least 3, at most 25). quantize is timed on 256 rows. Every product is first compared with plain loops\n"
        "in double: a format that disagrees shows WRONG.\n\n"
        "`nibble_bench roofline` measures kernels against the limits of this CPU instead; it has options of its own.\n"
        "`nibble_bench io` measures files: opening, repacking, converting.\n\n"
        "Exit codes: 0 well, 1 an option, file or disk is wrong, 2 a product is wrong, 130 Ctrl-C");
    app.add_option("--format", line.formats, "formats to compare, a,b,c (default: all of --list)")
        ->delimiter(',')
        ->type_name("NAMES");
    app.add_flag("--list", line.list, "list every format with its bits and its use, and end");
    app.add_option("--compute", line.compute, "arithmetic of products: f32, a16, a8 or strict_f32")
        ->type_name("CLASS")
        ->capture_default_str();
    app.add_option("--shape", line.shape, "shape of the weights that times are taken on")
        ->type_name("NxK")
        ->capture_default_str();
    app.add_option("--batch", line.batches, "columns of activations that times are taken with")
        ->type_name("M,...")
        ->capture_default_str();
    app.add_option("--isa", line.isa, "instruction set of products (default: the best of this CPU)")->type_name("NAME");
    app.add_flag("--quick", line.quick, "two rounds only: coarse times");
    app.add_option("--time-budget", line.time_budget,
                   "seconds for everything; preparing takes some 40 of them at 4096x4096")
        ->type_name("SECONDS")
        ->capture_default_str();
    app.add_option(
           "--input", line.input_text,
           "compare on the layers of this safetensors or GGUF file: NAME.weight [out, in] with NAME.eval_input [tokens, in];\n"
           "with PATTERN (* and ?) on the matrices whose names match. Quantized tensors of GGUF are dequantized")
        ->type_name("FILE[:PATTERN]");
    app.add_option("--weight", line.input.weight,
                   "only this tensor of --input; without activations, synthetic ones are used")
        ->type_name("NAME");
    app.add_option("--activations", line.input.activations, "the activations of --weight, [tokens, in]")
        ->type_name("NAME");
    app.add_option("--csv", line.csv_file, "the table as CSV; without FILE to standard output, in place of the table")
        ->type_name("[FILE]")
        ->expected(0, 1);
    app.add_option("--json", line.json_file, "everything, with every sample, as JSON")->type_name("FILE");
    app.parse_complete_callback([&app, &line] {
        line.csv = app.count("--csv") != 0;
        line.json = app.count("--json") != 0;
        const input_request given = split_input(line.input_text);
        line.input.file = given.file;
        line.input.pattern = given.pattern;
    });
}

settings check_settings(const command_line& line) {
    settings s;
    s.formats = formats_of(line.formats);
    s.compute = compute_named(line.compute);
    read_shape(line.shape, s);
    read_batches(line.batches, s);
    s.quick = line.quick;
    if (!(line.time_budget > 0.0 && line.time_budget <= 86400.0))
        throw bad_input("--time-budget: expected seconds, more than 0 and at most 86400, found " +
                        std::to_string(line.time_budget));
    s.time_budget = line.time_budget;
    if (!line.isa.empty()) set_isa(line.isa);
    if (line.json && line.json_file.empty()) throw bad_input("--json: expected the name of a file, found ''");
    if (line.input.file.empty() && (!line.input.weight.empty() || !line.input.activations.empty()))
        throw bad_input("--weight and --activations name tensors of --input, which is not given");
    if (!line.input.pattern.empty() && !line.input.weight.empty())
        throw bad_input("--weight names one tensor, the PATTERN of --input several: give one of them");
    if (line.input.weight.empty() && !line.input.activations.empty())
        throw bad_input("--activations needs --weight: the tensor that they belong to");
    if (const double bytes = timing_memory(s); bytes > most_memory)
        throw bad_input("--shape " + line.shape + " with " + std::to_string(s.formats.size()) + " formats needs " +
                        std::to_string(static_cast<long>(bytes / 1e6)) + " MB, at most " +
                        std::to_string(static_cast<long>(most_memory / 1e6)) +
                        " are used; compare fewer formats with --format");
    return s;
}

}  // namespace bench
