// `nibble_bench algorithms`: what calibration gains on real weights and activations, and what it costs.
//
// Quality: every method rounds every layer of bench/data, calibrated on NAME.calib_input; the SQNR is that of outputs for
// NAME.eval_input, tokens that no method has seen. Products are in double, of the weights as they decode, brought back to the
// order and scale of the layer, so nothing but the method's choice of codes and scales is measured.
#pragma once

#include <string>
#include <vector>

#include "../progress.hpp"
#include "../report.hpp"

namespace CLI {
class App;
}

namespace bench::algorithms {

/// What the user wrote.
struct command_line {
    std::string size = "4096";
    std::string tokens = "2048";
    std::vector<std::string> groups;
    bool no_speed = false;
    bool json = false;
    std::string json_file;
};

struct settings {
    nibble::index channels = 0, tokens = 0;  ///< of the layer that is timed
    bool speed = true;
    std::vector<std::string> groups;         ///< of group_names(); empty: all
};

/// One method at one format, over all layers.
struct quality_row {
    std::string group;                   ///< "4 bits": rows that compete
    std::string method;
    double bits = 0.0;                   ///< per weight, of all layers, scales and zeros counted
    std::vector<double> sqnr_db;         ///< of each layer's outputs
    std::vector<double> gain_db;         ///< over the first row of the group
    double seconds = 0.0;                ///< of CPU, for all layers

    [[nodiscard]] double mean_gain() const;
};

/// One thing that was timed.
struct cost_row {
    std::string what;
    std::string beside;    ///< what it is compared with
    double own_ms = 0.0, other_ms = 0.0;
    double most = 0.0;     ///< the target: own <= most * other
    [[nodiscard]] double ratio() const { return own_ms / other_ms; }
};

struct results {
    std::vector<std::string> layers;
    std::vector<quality_row> quality;
    std::vector<cost_row> costs;
    bool complete = true;
};

/// Registers every option; parsing fills `line`, which must outlive `app`.
void describe_options(CLI::App& app, command_line& line);
/// What formats are compared within: "2 bits", "nf4".
[[nodiscard]] const std::vector<std::string>& group_names();
/// Turns text into settings. Throws bad_input saying what was expected.
[[nodiscard]] settings check_settings(const command_line& line);

/// The quality of every method on the layers of a directory, then the costs. Throws bad_input where the data is not readable.
[[nodiscard]] results measure(const std::string& data_directory, const settings& s, progress& shown);

/// Appends the cost of everything that is timed. (A file of its own: costs.cpp.)
void measure_costs(const settings& s, progress& shown, results& r);

[[nodiscard]] std::string table_text(const environment& where, const results& r);
[[nodiscard]] std::string json_text(const environment& where, const settings& s, const results& r);

}  // namespace bench::algorithms
