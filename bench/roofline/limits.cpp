#include "limits.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>

#include "../timing.hpp"

namespace bench::roofline {
namespace {

constexpr std::size_t prefetch_distances[] = {0, 512, 2048};
constexpr std::size_t fill_floats = std::size_t{16} << 20;
constexpr double peak_seconds = 0.004;

std::atomic<std::uint64_t> sink{0};  // results end here, so that no loop is left out

double seconds_of(const std::function<void()>& work) {
    const auto start = std::chrono::steady_clock::now();
    work();
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

const probe_set& known_probes(nibble::isa level) {
    const probe_set* probes = probes_of(level);
    return probes != nullptr ? *probes : *scalar_probes();
}

std::map<int, double> medians(const std::map<int, std::vector<double>>& rates) {
    std::map<int, double> out;
    for (const auto& [threads, values] : rates) out[threads] = median_of(values);
    return out;
}

void raise(std::map<int, double>& best, const std::map<int, double>& other) {
    for (const auto& [threads, rate] : other) best[threads] = (std::max)(best[threads], rate);
}

}  // namespace

const probe_set* probes_of(nibble::isa level) noexcept {
    switch (level) {
        case nibble::isa::scalar: return scalar_probes();
#if NIBBLE_COMPILE_X86
        case nibble::isa::avx2: return avx2_probes();
        case nibble::isa::avxvnni: return avxvnni_probes();
        case nibble::isa::avx512: return avx512_probes();
        case nibble::isa::avx512vnni: return avx512vnni_probes();
#endif
    }
    return nullptr;
}

nibble::isa best_supported_isa() noexcept {
    nibble::isa best = nibble::isa::scalar;
    for (const nibble::isa level : nibble::compiled_isas())
        if (nibble::is_supported(level) && probes_of(level) != nullptr) best = level;
    return best;
}

limit_meter::limit_meter(nibble::isa level, std::vector<thread_pool*> pools, std::size_t megabytes)
    : peak_(known_probes(level)),
      reader_(known_probes(best_supported_isa())),
      pools_(std::move(pools)),
      block_((std::max)(megabytes * 1000000, 2 * cache_set_bytes) / sizeof(float), 1.0f) {}

void limit_meter::measure() {
    for (thread_pool* pool : pools_) {
        read(*pool);
        compute(*pool);
    }
}

void limit_meter::read(thread_pool& pool) {
    const auto threads = static_cast<std::size_t>(pool.size());
    const auto* bytes = static_cast<const unsigned char*>(static_cast<const void*>(block_.data()));
    // Each thread has a part of its own; probes read multiples of 512 bytes.
    const auto pass = [&](std::size_t size, std::size_t ahead, int times) {
        const std::size_t part = size / threads / 512 * 512;
        const double seconds = seconds_of([&] {
            pool.on_each([&](int thread) {
                std::uint64_t all = 0;
                for (int i = 0; i < times; ++i)
                    all ^= reader_.read(bytes + static_cast<std::size_t>(thread) * part, part, ahead);
                sink.fetch_xor(all, std::memory_order_relaxed);
            });
        });
        return static_cast<double>(part * threads) * times / seconds / 1e9;
    };
    for (const std::size_t ahead : prefetch_distances) {
        read_[ahead].add(pool.size(), pass(block_.size() * sizeof(float), ahead, 1));
        pass(cache_set_bytes, ahead, 1);
        cache_read_[ahead].add(pool.size(), pass(cache_set_bytes, ahead, 8));
    }
    const std::size_t count = (std::min)(fill_floats, block_.size() / 2);
    if (filled_ + count > block_.size()) filled_ = 0;
    float* const first = block_.data() + filled_;
    filled_ += count;
    const double seconds = seconds_of([&] {
        pool.on_each([&](int thread) {
            const std::size_t part = count / threads;
            std::fill_n(first + static_cast<std::size_t>(thread) * part, part, 1.0f);
        });
    });
    fill_.add(pool.size(), static_cast<double>(count / threads * threads) * sizeof(float) / seconds / 1e9);
}

void limit_meter::compute(thread_pool& pool) {
    const auto peak = [&](double ops, const std::function<void(std::int64_t)>& run) {
        // A first run says how many rounds fill the time, and wakes wide units up.
        std::int64_t rounds = 20000;
        const double first = seconds_of([&] { run(rounds); });
        rounds = static_cast<std::int64_t>(static_cast<double>(rounds) * (std::clamp)(peak_seconds / first, 1.0, 1e4));
        // Threads share no unit: each has a rate of its own, whenever it began.
        std::vector<double> rates(static_cast<std::size_t>(pool.size()));
        pool.on_each([&](int thread) {
            rates[static_cast<std::size_t>(thread)] =
                ops * static_cast<double>(rounds) / seconds_of([&] { run(rounds); }) / 1e9;
        });
        return std::accumulate(rates.begin(), rates.end(), 0.0);
    };
    f32_.add(pool.size(), peak(peak_.f32_ops, [&](std::int64_t rounds) {
                 sink.fetch_add(peak_.f32(rounds) > 0.0f ? 1 : 0, std::memory_order_relaxed);
             }));
    int8_.add(pool.size(), peak(peak_.int8_ops, [&](std::int64_t rounds) {
                  sink.fetch_add(static_cast<std::uint64_t>(peak_.int8(rounds)), std::memory_order_relaxed);
              }));
}

limits limit_meter::result() const {
    limits out;
    for (const auto& [ahead, samples] : read_) raise(out.read_gbytes_per_s, medians(samples.rates));
    for (const auto& [ahead, samples] : cache_read_) raise(out.cache_read_gbytes_per_s, medians(samples.rates));
    out.fill_gbytes_per_s = medians(fill_.rates);
    out.f32_gflops = medians(f32_.rates);
    out.int8_gops = medians(int8_.rates);
    return out;
}

}  // namespace bench::roofline
