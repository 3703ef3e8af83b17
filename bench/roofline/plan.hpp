// The order of a run: stations, at each of which formats and Eigen take turns at one piece of work.
#pragma once

#include <vector>

#include "roofline.hpp"

namespace bench::roofline {

struct station {
    roofline::shape shape;
    std::size_t first = 0, last = 0;  ///< subjects
    roofline::residency residency = roofline::residency::dram;
    roofline::kernel kernel = roofline::kernel::product;
    int threads = 1;
    nibble::index m = 0;

    [[nodiscard]] bool same_formats(const station& s) const noexcept {
        return shape.n == s.shape.n && shape.k == s.shape.k && first == s.first && last == s.last;
    }
};

/// Everything that was asked for. Formats share a station as far as their copies fit in memory together. quantize and
/// dequantize, from and to memory, and prepare run on one thread.
[[nodiscard]] std::vector<station> plan_run(const settings& s);

/// About how many seconds a station takes on a CPU of that fp32 peak; what matters is the ratio of two of them.
[[nodiscard]] double expected_seconds(const station& at, const settings& s, double gflops);

}  // namespace bench::roofline
