// Results as text: the table, CSV, JSON, the list of formats, and the advice.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "compare.hpp"

namespace bench {

/// Where the numbers were measured.
struct environment {
    std::string version;  ///< of nibble
    std::string commit;   ///< "" outside git
    std::string cpu;
    int cores = 0;
    std::vector<std::string> cpu_flags;
    std::string isa;  ///< what products ran at
    std::string compiler;
    std::string compiler_flags;
    std::string eigen;
    std::string eigen_isa;
};

/// This machine and this program.
[[nodiscard]] environment describe_environment();

struct report {
    const environment& where;
    const dataset& data;
    const settings& options;
    const results& measured;
};

/// What a person reads: header, table, notes and, as the last line, the advice.
[[nodiscard]] std::string table_text(const report& r);

/// One line for each row of the table.
[[nodiscard]] std::string csv_text(const report& r);

/// Everything, with every sample. The schema is described in README.md and has a version number of its own.
inline constexpr int json_schema_version = 1;
[[nodiscard]] std::string json_text(const report& r);

/// One sentence: what to take, why, and on what data that rests.
[[nodiscard]] std::string advice(const report& r);

/// --list: every recipe and code format.
[[nodiscard]] std::string list_text();

/// The names that --format accepts.
[[nodiscard]] std::string known_formats();

}  // namespace bench
