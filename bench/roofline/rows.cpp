#include <algorithm>
#include <cmath>

#include "../timing.hpp"
#include "roofline.hpp"

namespace bench::roofline {
namespace {

double limit_of(const std::map<int, double>& by_threads, int threads) {
    const auto found = by_threads.find(threads);
    return found == by_threads.end() ? std::nan("") : found->second;
}

}  // namespace

const char* name_of(residency r) noexcept { return r == residency::dram ? "dram" : "cache"; }

const char* name_of(kernel k) noexcept {
    switch (k) {
        case kernel::product: return "product";
        case kernel::quantize: return "quantize";
        case kernel::dequantize: return "dequantize";
        case kernel::prepare: return "prepare";
    }
    return "?";
}

double row::median() const { return median_of(seconds); }
double row::least() const { return seconds.empty() ? std::nan("") : *std::min_element(seconds.begin(), seconds.end()); }
double row::uncertainty() const { return uncertainty_of(seconds); }

double row::fraction_of_bandwidth(const limits& l) const {
    if (kernel == roofline::kernel::dequantize) return gbytes_per_s() / limit_of(l.fill_gbytes_per_s, threads);
    const auto& limit = residency == roofline::residency::dram ? l.read_gbytes_per_s : l.cache_read_gbytes_per_s;
    return gbytes_per_s() / limit_of(limit, threads);
}

double row::fraction_of_peak(const limits& l) const {
    if (operations == 0.0) return std::nan("");
    return gflops() / limit_of(integer_sums ? l.int8_gops : l.f32_gflops, threads);
}

bool results::any_wrong() const noexcept {
    return std::any_of(rows.begin(), rows.end(), [](const row& r) { return !r.wrong.empty(); });
}

}  // namespace bench::roofline
