// `nibble_bench io`: what files cost. Opening them, repacking their tensors for multiplication, converting floats.
#pragma once

#include <string>
#include <vector>

#include "../progress.hpp"
#include "../report.hpp"
#include "../timing.hpp"

namespace CLI {
class App;
}

namespace bench::io {

/// What the user wrote.
struct command_line {
    std::string size = "4096x4096";
    std::string isa;
    bool quick = false;
    bool json = false;
    std::string json_file;
};

struct settings {
    nibble::index rows = 0, cols = 0;
    int rounds = 9;
};

/// One thing that was measured.
struct row {
    std::string kind;       ///< "open", "repack", "convert", "search"
    std::string what;       ///< "gguf, 10000 tensors", "q4_k", "f32 to q8_0"
    double bytes = 0.0;     ///< read from the file or the weights; 0 where the time itself counts
    std::string beside;     ///< what it is compared with: "copy", "read", "scalar loop"; "" for none
    double target = 0.0;    ///< the least ratio, or the most milliseconds of "open"
    std::string wrong;      ///< why its answer is wrong; "" if it is right
    samples own, other;     ///< of this and of what it is compared with, in the same rounds

    /// Milliseconds of CPU.
    [[nodiscard]] double ms() const { return own.median(); }
    /// Its speed as a part of that of what it is compared with.
    [[nodiscard]] double ratio() const { return other.median() / own.median(); }
    [[nodiscard]] bool missed() const { return beside.empty() ? ms() > target : ratio() < target; }
};

struct results {
    std::vector<row> rows;
    bool complete = true;
    [[nodiscard]] bool any_wrong() const;
};

/// Registers every option; parsing fills `line`, which must outlive `app`.
void describe_options(CLI::App& app, command_line& line);
/// Turns text into settings, and sets the instruction set. Throws bad_input saying what was expected.
[[nodiscard]] settings check_settings(const command_line& line);

[[nodiscard]] results measure(const settings& s, progress& shown);

[[nodiscard]] std::string table_text(const environment& where, const settings& s, const results& r);
[[nodiscard]] std::string json_text(const environment& where, const settings& s, const results& r);

}  // namespace bench::io
