#include "interleave.hpp"

#include <algorithm>
#include <cmath>

namespace bench::roofline {
namespace {

constexpr double most_calls = 10000.0;

struct turn {
    const contender* who = nullptr;
    int calls = 1;
    int samples = 0;
    double spent = 0.0;

    [[nodiscard]] bool done(const sampling& how) const noexcept {
        return samples >= how.most || (samples >= how.least && spent >= how.budget);
    }
};

}  // namespace

void interleave(const std::vector<contender>& contenders, const sampling& how, std::mt19937& order, progress& shown,
                const std::string& place) {
    std::vector<turn> turns;
    for (const contender& c : contenders) {
        if (was_interrupted()) return;
        shown.status(place + "  " + c.name);
        // Not counted: page faults, tables and branch predictors. It says how many calls make a sample.
        const double seconds = c.run(1);
        turns.push_back(
            {&c, static_cast<int>((std::clamp)(std::ceil(how.shortest / seconds), 1.0, most_calls)), 0, 0.0});
    }
    for (;;) {
        turns.erase(std::remove_if(turns.begin(), turns.end(), [&how](const turn& t) { return t.done(how); }),
                    turns.end());
        if (turns.empty()) return;
        std::shuffle(turns.begin(), turns.end(), order);
        for (turn& t : turns) {
            if (was_interrupted()) return;
            shown.status(place + "  " + t.who->name);
            const double start = shown.elapsed();
            t.who->into->push_back(t.who->run(t.calls) / t.calls);
            t.spent += shown.elapsed() - start;
            ++t.samples;
        }
    }
}

}  // namespace bench::roofline
