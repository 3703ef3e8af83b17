// The command line of `nibble_bench roofline`.
#pragma once

#include <string>
#include <vector>

#include "roofline.hpp"

namespace CLI {
class App;
}

namespace bench::roofline {

/// What the user wrote. Empty lists: everything, or what --quick says.
struct command_line {
    std::vector<std::string> formats, classes, residencies, sizes, kernels, batches, threads;
    std::string isa;
    double row_budget = -1.0;
    bool quick = false;
    bool no_native = false;
    bool json = false;
    std::string json_file;
};

/// Registers the options; parsing fills `line`, which must outlive `app`.
void describe_options(CLI::App& app, command_line& line);

/// Turns text into settings, and sets the instruction set. Throws bad_input saying what was expected.
[[nodiscard]] settings check_settings(const command_line& line);

}  // namespace bench::roofline
