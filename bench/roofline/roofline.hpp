// The measurement: every format x class x number of columns x shape, from memory and from a cache, on one and more
// threads, against the limits of this CPU.
#pragma once

#include <deque>
#include <string>
#include <vector>

#include <nibble/nibble.hpp>

#include "../progress.hpp"
#include "limits.hpp"
#include "subjects.hpp"

namespace bench::roofline {

struct shape {
    nibble::index n = 4096;
    nibble::index k = 4096;
};

enum class residency { dram, cache };
enum class kernel { product, quantize, dequantize, prepare };
[[nodiscard]] const char* name_of(residency r) noexcept;
[[nodiscard]] const char* name_of(kernel k) noexcept;

struct settings {
    std::vector<subject> subjects;
    std::vector<nibble::compute> classes;
    std::vector<nibble::index> batches;
    std::vector<int> threads;
    std::vector<residency> residencies;
    std::vector<shape> shapes;
    std::vector<kernel> kernels;
    double row_budget = 0.25;  ///< seconds of samples for one row
    int least_samples = 5;     ///< whatever the budget
    int most_samples = 50;
    std::size_t limit_megabytes = 256;  ///< that the memory probes read at a time
    std::string native_program;         ///< the Eigen -march=native process; empty: none
};

/// How often distinct weights of `bytes` are needed, so that none is still in a cache when its turn comes again.
[[nodiscard]] int copies_from_memory(double bytes) noexcept;

/// Rows of a matrix that make the cache-resident set: as many of n as fit in 8 MiB, a multiple of 16.
[[nodiscard]] nibble::index cached_rows(nibble::index n, double bytes_per_row) noexcept;

/// One measurement.
struct row {
    roofline::kernel kernel = roofline::kernel::product;
    std::string format;
    nibble::index group = 0;  ///< columns that share a scale; 0: whole rows
    std::string scale, offset;
    std::string compute;  ///< "none" for quantize and dequantize
    std::string isa;
    nibble::index n = 0, k = 0, m = 0;  ///< m = 0: there are no columns
    int threads = 1;
    roofline::residency residency = roofline::residency::dram;

    // What targets ask for besides.
    std::string code;  ///< the code format's name; empty for Eigen
    std::string rule;
    int bits = 0;
    nibble::decode_class decode = nibble::decode_class::integer;
    bool one_scale = false;     ///< per tensor
    bool integer_sums = false;  ///< the product runs on integers, so its peak is that of int8
    nibble::index shape_n = 0;  ///< of the whole matrix, where n is the part that fits in the cache

    double operations = 0.0;  ///< 2 n k m; 0 for other kernels than products
    double bytes = 0.0;  ///< the format's own bytes of the weights; fp32 of W (quantize, dequantize) or X (prepare)
    std::vector<double> seconds;  ///< of one call, in the order of the rounds
    double rel_l2_error = 0.0;
    std::string wrong;  ///< why the answer is refused; the row has no times then

    [[nodiscard]] double median() const;
    [[nodiscard]] double least() const;
    [[nodiscard]] double uncertainty() const;  ///< of the median, see timing.hpp
    [[nodiscard]] double gflops() const { return operations / median() / 1e9; }
    [[nodiscard]] double gbytes_per_s() const { return bytes / median() / 1e9; }
    /// Of the limits; NaN where there is none to compare with.
    [[nodiscard]] double fraction_of_bandwidth(const limits& l) const;
    [[nodiscard]] double fraction_of_peak(const limits& l) const;
};

inline constexpr const char* eigen_format = "f32_eigen";
inline constexpr const char* native_eigen_format = "f32_eigen_native";

struct results {
    roofline::limits limits;
    std::deque<row> rows;
    double seconds = 0.0;
    bool complete = true;  ///< false after Ctrl-C
    std::vector<std::string> notes;

    [[nodiscard]] bool any_wrong() const noexcept;
};

/// Measures everything. Throws interrupted when Ctrl-C comes before there is any time, bad_input when there is nothing
/// to measure.
[[nodiscard]] results measure(const settings& s, progress& shown);

}  // namespace bench::roofline
