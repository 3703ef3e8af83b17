// What this CPU can do at most, measured by the probes. Measured again and again during a run, so that the limits see
// the same neighbours, heat and turbo as the products do.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include <nibble/cpu.hpp>

#include "probes.hpp"
#include "thread_pool.hpp"

namespace bench::roofline {

/// By number of threads. GB are 10^9 bytes; a multiplication and an addition are two operations.
struct limits {
    std::map<int, double> read_gbytes_per_s;        ///< from memory
    std::map<int, double> cache_read_gbytes_per_s;  ///< an 8 MiB set, read over and over
    std::map<int, double> fill_gbytes_per_s;        ///< a plain fill of 64 MiB of floats, not from a cache
    std::map<int, double> f32_gflops;
    std::map<int, double> int8_gops;
};

/// The set that is called cache-resident.
inline constexpr std::size_t cache_set_bytes = std::size_t{8} << 20;

/// The probes of a level; null where it was not compiled.
[[nodiscard]] const probe_set* probes_of(nibble::isa level) noexcept;

/// The level whose probes read fastest: the best that this CPU supports. Bandwidth belongs to the machine, not to the
/// level that products run at.
[[nodiscard]] nibble::isa best_supported_isa() noexcept;

class limit_meter {
public:
    /// Peaks at `level`, for the thread count of each pool. `megabytes`: how much is read from memory at a time.
    limit_meter(nibble::isa level, std::vector<thread_pool*> pools, std::size_t megabytes = 256);

    /// One more sample of everything: some 0.1 s for each pool.
    void measure();
    /// Medians of what was measured; of the ways to read, the fastest.
    [[nodiscard]] limits result() const;

private:
    struct samples_of {
        std::map<int, std::vector<double>> rates;
        void add(int threads, double rate) { rates[threads].push_back(rate); }
    };
    void read(thread_pool& pool);
    void compute(thread_pool& pool);

    const probe_set& peak_;
    const probe_set& reader_;
    std::vector<thread_pool*> pools_;
    std::vector<float> block_;
    std::size_t filled_ = 0;
    std::map<std::size_t, samples_of> read_, cache_read_;  // by prefetch distance
    samples_of fill_, f32_, int8_;
};

}  // namespace bench::roofline
