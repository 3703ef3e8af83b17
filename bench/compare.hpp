// The measurement: every format on every layer, then on the clock.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <nibble/nibble.hpp>

#include "data.hpp"
#include "progress.hpp"
#include "timing.hpp"

namespace bench {

struct settings {
    std::vector<const nibble::recipe*> formats;
    nibble::compute compute = nibble::compute::f32;
    Eigen::Index rows = 4096;  ///< of the timing matrix
    Eigen::Index cols = 4096;
    std::vector<Eigen::Index> batches = {1, 128};
    bool quick = false;
    double time_budget = 120.0;  ///< seconds, for everything
};

struct row {
    std::string name;
    std::string use_when;
    bool baseline = false;  ///< Eigen's fp32: no error, not a candidate

    // Over all layers of the data.
    double bits_per_weight = 32.0;
    double bytes = 0.0;
    double weight_sqnr_db = 0.0;  ///< +Inf when exact, and for baselines
    double output_sqnr_db = 0.0;
    double max_weight_error = 0.0;
    double max_output_error = 0.0;
    Eigen::Index strict_columns = 0;  ///< columns of activations that products sent to strict_f32
    Eigen::Index columns = 0;         ///< of how many

    // On the timing shape.
    double timing_bits_per_weight = 32.0;
    std::vector<samples> products;  ///< one for each batch
    samples quantize;
    double quantize_bytes = 0.0;  ///< fp32 bytes that one sample of `quantize` reads

    std::string failed;     ///< why this format cannot hold these weights; no numbers then
    std::string wrong;      ///< which product disagreed with the reference; no times then
    std::string beaten_by;  ///< the format that is no larger and no less exact, and better in one of the two

    [[nodiscard]] bool usable() const noexcept { return !baseline && failed.empty() && wrong.empty(); }
    /// MB of fp32 weights per second; NaN when not measured.
    [[nodiscard]] double quantize_mb_per_s() const;
};

struct results {
    std::vector<row> rows;           ///< by bits per weight, descending; baselines first
    Eigen::Index quantize_rows = 0;  ///< rows of the block that quantize() is timed on
    int rounds = 0;
    double seconds = 0.0;
    bool complete = true;  ///< false after Ctrl-C

    [[nodiscard]] bool any_wrong() const noexcept;
    [[nodiscard]] const row* find(std::string_view name) const noexcept;
    [[nodiscard]] const row& eigen() const noexcept { return rows.front(); }
};

/// Memory that the timing matrices of these settings take, in bytes.
[[nodiscard]] double timing_memory(const settings& s);

/// Measures everything. Throws interrupted when Ctrl-C comes before there are any times.
[[nodiscard]] results compare_formats(const dataset& data, const settings& s, progress& shown);

/// Sorts the rows and fills in `beaten_by`.
void rank(std::vector<row>& rows);

}  // namespace bench
