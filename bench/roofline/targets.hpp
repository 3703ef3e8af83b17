// How near to the limits of the CPU every kind of work has to come, in one place. Rows are measured against them at
// every instruction-set level.
#pragma once

#include <span>
#include <string>
#include <vector>

#include "roofline.hpp"

namespace bench::roofline {

enum class limit_kind { read, cache_read, fill, f32_peak, int8_peak };

/// Rows that `applies` picks have to reach `wanted` of a limit, with the median of their times. With two threads and
/// more: of the limit of that many threads, and 5 points less.
struct target {
    const char* work;
    double wanted;
    limit_kind limit;
    bool (*applies)(const row&);
};
[[nodiscard]] std::span<const target> targets();
inline constexpr double threads_allowance = 0.05;

// Targets that compare two rows.
inline constexpr double most_prepare = 0.03;   ///< of the product at M = 1
inline constexpr double most_drop = 0.05;      ///< of GFLOP/s from one M to the next, beyond the confidence intervals
inline constexpr nibble::index steady_m = 64;  ///< the M up to which these hold

struct miss {
    const row* of = nullptr;
    std::string work;
    double got = 0.0;  ///< fractions of the limit; for two rows, of the other one
    double wanted = 0.0;
    bool at_most = false;  ///< `wanted` is what may be at most, not at least
};

struct evaluation {
    std::vector<miss> misses;  ///< in the order of the rows
    std::size_t checked = 0;   ///< pairs of a row and a target
};

/// Rows that were refused or have no limit to compare with are left out. The misses point into the results.
[[nodiscard]] evaluation evaluate(const results& r);

}  // namespace bench::roofline
