// Wall time of contenders that take turns: a sample of each in every round, in a new random order, until each has had
// its share of time. Wall time, because products run on several threads.
#pragma once

#include <functional>
#include <random>
#include <string>
#include <vector>

#include "../progress.hpp"

namespace bench::roofline {

struct contender {
    std::string name;                     ///< for the status line
    std::function<double(int)> run;       ///< calls it so many times, and returns the seconds of all together
    std::vector<double>* into = nullptr;  ///< gets the seconds of one call
};

struct sampling {
    double budget = 0.25;  ///< seconds for one contender
    int least = 5;         ///< samples, whatever the budget
    int most = 50;
    double shortest = 1e-3;  ///< seconds of a sample: quick contenders are called several times
};

/// Returns early, and keeps what it has, when was_interrupted(). `place`: where in the run this is.
void interleave(const std::vector<contender>& contenders, const sampling& how, std::mt19937& order, progress& shown,
                const std::string& place);

}  // namespace bench::roofline
