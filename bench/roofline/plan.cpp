#include "plan.hpp"

#include <algorithm>
#include <cmath>

namespace bench::roofline {
namespace {

constexpr double most_memory = 1.5e9;  // of the copies at a station
constexpr double memory_set = 128e6;

double matrix_bytes(const subject& s, const shape& of) {
    // Scales and padding take less than 2 bits per weight in every format.
    return static_cast<double>(of.n) * static_cast<double>(of.k) * (s.plan.format->bits + 2.0) / 8.0;
}

// Where a station's formats end that begin at `first`.
std::size_t last_of(const settings& s, const shape& of, std::size_t first) {
    double memory = 0.0;
    std::size_t last = first;
    for (; last < s.subjects.size(); ++last) {
        const double bytes = matrix_bytes(s.subjects[last], of);
        memory += bytes * copies_from_memory(bytes);
        if (last > first && memory > most_memory) break;
    }
    return last;
}

bool asks_for(const settings& s, kernel k) {
    return std::find(s.kernels.begin(), s.kernels.end(), k) != s.kernels.end();
}

}  // namespace

int copies_from_memory(double bytes) noexcept {
    return static_cast<int>(std::ceil(memory_set / (std::max)(bytes, 1.0)));
}

nibble::index cached_rows(nibble::index n, double bytes_per_row) noexcept {
    const auto rows = static_cast<nibble::index>(static_cast<double>(cache_set_bytes) / bytes_per_row) / 16 * 16;
    return (std::min)(n, (std::max)(rows, nibble::index{16}));
}

std::vector<station> plan_run(const settings& s) {
    std::vector<station> plan;
    for (const shape& of : s.shapes) {
        for (std::size_t first = 0; first < s.subjects.size();) {
            const std::size_t last = last_of(s, of, first);
            for (const residency where : s.residencies) {
                station at{of, first, last, where};
                if (asks_for(s, kernel::product)) {
                    for (const int threads : s.threads) {
                        for (const nibble::index m : s.batches) {
                            at.threads = threads;
                            at.m = m;
                            plan.push_back(at);
                        }
                    }
                }
                at.threads = 1;
                for (const kernel k : {kernel::quantize, kernel::dequantize}) {
                    at.kernel = k;
                    at.m = 0;
                    if (asks_for(s, k) && where == residency::dram) plan.push_back(at);
                }
                at.kernel = kernel::prepare;
                if (asks_for(s, kernel::prepare) && where == s.residencies.front()) {
                    for (const nibble::index m : s.batches) {
                        at.m = m;
                        plan.push_back(at);
                    }
                }
            }
            first = last;
        }
    }
    return plan;
}

double expected_seconds(const station& at, const settings& s, double gflops) {
    const double formats = static_cast<double>(at.last - at.first);
    const double weights = static_cast<double>(at.shape.n) * static_cast<double>(at.shape.k);
    double rows = formats;
    double call = weights * 1e-8;
    if (at.kernel == kernel::prepare || at.kernel == kernel::product) rows *= static_cast<double>(s.classes.size());
    if (at.kernel == kernel::prepare) call = 0.0;
    if (at.kernel == kernel::product) {
        rows += 2.0;
        call = weights * static_cast<double>(at.m) * 2.0 / (gflops * 0.5e9 * at.threads);
        if (at.residency == residency::cache) call *= 0.5;
    }
    return rows * (std::max)(s.row_budget, call * (s.least_samples + 2));
}

}  // namespace bench::roofline
