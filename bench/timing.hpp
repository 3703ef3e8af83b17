// Timing with Google Benchmark. All contenders are measured in rounds, one sample of each per round, in a new random
// order each time: whatever the machine does meanwhile (turbo, neighbours, heat) hits all of them alike.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "progress.hpp"

namespace bench {

/// What was measured of one contender, in milliseconds, in the order of the rounds.
struct samples {
    std::vector<double> cpu_ms;  ///< the thread's time on the CPU: what reports show
    std::vector<double> wall_ms;

    [[nodiscard]] double median() const;
    /// Half the width of the 95 % interval of the median, as a part of the median: 1.57 IQR / sqrt(n) (McGill, Tukey
    /// and Larsen 1978). 1 when there are fewer than 3 samples.
    [[nodiscard]] double uncertainty() const;
};

/// The median of numbers; NaN of none.
[[nodiscard]] double median_of(std::vector<double> values);
/// What samples::uncertainty() says, of any numbers.
[[nodiscard]] double uncertainty_of(std::vector<double> values);

struct contender {
    std::string name;           ///< for the status line
    std::function<void()> run;  ///< one sample
    samples* into = nullptr;
};

struct round_plan {
    int least = 3;
    int most = 25;
    double deadline = 0.0;  ///< no round starts that would end later than this, by the clock of `progress`

    /// How long all rounds will take that are still to come at `now`, when one takes `round` seconds.
    [[nodiscard]] double time_left(double now, double round, int done) const noexcept;
};

/// Returns the number of rounds. Stops early, and keeps what it has, when was_interrupted().
int time_rounds(const std::vector<contender>& contenders, const round_plan& plan, progress& shown);

}  // namespace bench
