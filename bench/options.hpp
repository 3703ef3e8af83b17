// The command line: what may be said, and whether it makes sense.
#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "compare.hpp"
#include "data.hpp"

namespace CLI {
class App;
}

namespace bench {

/// What the user wrote.
struct command_line {
    std::vector<std::string> formats;
    std::string compute = "f32";
    std::string shape = "4096x4096";
    std::string batches = "1,128";
    std::string isa;
    double time_budget = 120.0;
    bool quick = false;
    bool list = false;
    std::string input_text;  ///< FILE or FILE:PATTERN
    input_request input;
    bool csv = false;      ///< --csv was given
    std::string csv_file;  ///< empty: standard output
    bool json = false;
    std::string json_file;
};

/// Registers every option; parsing fills `line`, which must outlive `app`.
void describe_options(CLI::App& app, command_line& line);

/// The recipe that a name stands for: the recipe of that name, or the usual one of the code format. Null if unknown.
[[nodiscard]] const nibble::recipe* recipe_named(std::string_view name);

/// A whole number between 1 and `largest`, or nothing.
[[nodiscard]] std::optional<Eigen::Index> whole_number(std::string_view text, Eigen::Index largest);

/// What --compute and --isa mean. Both throw bad_input listing what there is.
[[nodiscard]] nibble::compute compute_named(const std::string& name);
void set_isa(const std::string& name);

/// Turns text into settings, and sets the instruction set. Throws bad_input saying what was expected.
[[nodiscard]] settings check_settings(const command_line& line);

}  // namespace bench
