#include "timing.hpp"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include <benchmark/benchmark.h>

namespace bench {
namespace {

// A sample must find its weights in memory, not in a cache, as in a model that is larger than the caches: reading this
// block in between drives them out.
class cache_flusher {
public:
    cache_flusher() {
        std::size_t largest = std::size_t{16} << 20;
        for (const auto& cache : benchmark::CPUInfo::Get().caches)
            largest = (std::max)(largest, static_cast<std::size_t>((std::max)(cache.size, 0)));
        block_.resize((std::min)(2 * largest, std::size_t{256} << 20), 1);
    }
    void operator()() const {
        std::uint64_t sum = 0;
        for (std::size_t i = 0; i < block_.size(); i += 64) sum += block_[i];
        benchmark::DoNotOptimize(sum);
    }

private:
    std::vector<unsigned char> block_;
};

// Collects the one run that each contender has in a round.
class collector : public benchmark::BenchmarkReporter {
public:
    explicit collector(const std::vector<contender>& contenders) : contenders_(contenders) {}

    bool ReportContext(const Context&) override { return true; }
    void ReportRuns(const std::vector<Run>& runs) override {
        if (was_interrupted()) return;  // its contender did not run
        for (const Run& run : runs) {
            samples& into = *contenders_[std::stoul(run.run_name.function_name)].into;
            into.cpu_ms.push_back(run.GetAdjustedCPUTime());
            into.wall_ms.push_back(run.GetAdjustedRealTime());
        }
    }

private:
    const std::vector<contender>& contenders_;
};

void initialize_library() {
    std::string name = "nibble_bench";
    std::string interleaving = "--benchmark_enable_random_interleaving=true";
    char* arguments[] = {name.data(), interleaving.data(), nullptr};
    int count = 2;
    benchmark::Initialize(&count, arguments);
}

}  // namespace

double median_of(std::vector<double> values) {
    if (values.empty()) return std::numeric_limits<double>::quiet_NaN();
    std::sort(values.begin(), values.end());
    const std::size_t middle = values.size() / 2;
    return values.size() % 2 == 1 ? values[middle] : (values[middle - 1] + values[middle]) / 2.0;
}

double round_plan::time_left(double now, double round, int done) const noexcept {
    return (std::clamp)(deadline - now, round * (std::max)(least - done, 0), round * (std::max)(most - done, 0));
}

double samples::median() const { return median_of(cpu_ms); }

double uncertainty_of(std::vector<double> values) {
    if (values.size() < 3) return 1.0;
    std::sort(values.begin(), values.end());
    const auto quantile = [&values](double q) {
        const double at = q * static_cast<double>(values.size() - 1);
        const auto below = static_cast<std::size_t>(at);
        const std::size_t above = (std::min)(below + 1, values.size() - 1);
        return values[below] + (at - static_cast<double>(below)) * (values[above] - values[below]);
    };
    return 1.57 * (quantile(0.75) - quantile(0.25)) / std::sqrt(static_cast<double>(values.size())) / quantile(0.5);
}

double samples::uncertainty() const { return uncertainty_of(cpu_ms); }

int time_rounds(const std::vector<contender>& contenders, const round_plan& plan, progress& shown) {
    initialize_library();
    const cache_flusher flush_caches;
    std::size_t done = 0;
    for (std::size_t i = 0; i < contenders.size(); ++i) {
        const contender& c = contenders[i];
        const auto sample = [&](benchmark::State& state) {
            if (!was_interrupted()) {
                const std::size_t round = done / contenders.size() + 1;
                const std::size_t in_round = done++ % contenders.size() + 1;
                shown.status("round " + std::to_string(round) + ", " + std::to_string(in_round) + "/" +
                             std::to_string(contenders.size()) + "  " + c.name);
                flush_caches();
            }
            for (auto _ : state) {
                if (!was_interrupted()) c.run();
                benchmark::ClobberMemory();
            }
        };
        auto* registered = benchmark::RegisterBenchmark(std::to_string(i).c_str(), sample);
        registered->Iterations(1)->Unit(benchmark::kMillisecond);
    }

    collector results(contenders);
    int rounds = 0;
    double longest = 0.0;
    while (rounds < plan.most && !was_interrupted()) {
        const double start = shown.elapsed();
        if (rounds >= plan.least && start + longest > plan.deadline) break;
        benchmark::RunSpecifiedBenchmarks(&results);
        if (was_interrupted()) break;
        ++rounds;
        longest = (std::max)(longest, shown.elapsed() - start);
        shown.expect(plan.time_left(shown.elapsed(), longest, rounds));
        shown.milestone("timed round " + std::to_string(rounds));
    }
    benchmark::ClearRegisteredBenchmarks();
    return rounds;
}

}  // namespace bench
