// Quantizers that look at every weight: mse (a grid of clipped ranges) and percentile.
#pragma once

#include <algorithm>
#include <vector>

#include "absmax.hpp"
#include "affine.hpp"

namespace nibble::inline NIBBLE_ABI {

NIBBLE_FP_BEGIN

/// The scale that loses least: tries the range shrunk by 1 - i * step for i = 0 .. steps - 1 (GPTQ's grid: step 0.01,
/// steps 80) and keeps the first with the least sum of importance * error^2. Works with every
/// format; `offset` none, zero_point or minimum says which formula the range goes through. With `zeros`, so many integer zero
/// points on either side of that of each range are tried, too.
struct mse {
    static constexpr const char* name = "mse";
    static constexpr bool searches = true;
    offset_kind offset = offset_kind::none;
    int steps = 80;
    float step = 0.01f;
    int zeros = 0;

    [[nodiscard]] group_scale operator()(const group_view& g) const noexcept {
        if (g.x.empty()) return {};
        float low = g.x[0];
        float high = g.x[0];
        for (const float x : g.x) {
            low = x < low ? x : low;
            high = x > high ? x : high;
        }
        const float last = static_cast<float>(g.format.code_count() - 1);
        const int beside = offset == offset_kind::zero_point ? zeros : 0;
        group_scale best = propose(low, high, g.format);
        double least = loss(g, best);
        for (int i = 0; i < steps; ++i) {
            const float keep = 1.0f - static_cast<float>(i) * step;
            if (!(keep > 0.0f)) break;
            const group_scale range = propose(low * keep, high * keep, g.format);
            for (int z = -beside; z <= beside; ++z) {
                if (i == 0 && z == 0) continue;
                const group_scale s{range.scale, range.offset + static_cast<float>(z)};
                if (z != 0 && !(s.offset >= 0.0f && s.offset <= last)) continue;
                const double e = loss(g, s);
                if (e < least) {
                    least = e;
                    best = s;
                }
            }
        }
        return best;
    }

private:
    [[nodiscard]] group_scale propose(float low, float high, const code_format& f) const noexcept {
        switch (offset) {
            case offset_kind::none: return absmax{}.from_range(low, high, f);
            case offset_kind::zero_point: return zero_point{}.from_range(low, high, f);
            case offset_kind::float_zero: return float_zero{}.from_range(low, high, f);
            case offset_kind::minimum: return min_offset{}.from_range(low, high, f);
        }
        return {};
    }
    [[nodiscard]] double loss(const group_view& g, group_scale s) const noexcept {
        const float inv = detail::inverse(s.scale);
        double sum = 0.0;
        for (std::size_t i = 0; i < g.x.size(); ++i) {
            const unsigned code = detail::encode_weight(g.format, offset, g.x[i], inv, s.offset);
            const double e = static_cast<double>(detail::decode_weight(g.format, offset, code, s.scale, s.offset)) -
                             static_cast<double>(g.x[i]);
            sum += e * e * (g.importance.empty() ? 1.0 : static_cast<double>(g.importance[i]));
        }
        return sum;
    }
};

/// scale from the p-th percentile of |w| (nearest rank): the few weights beyond it are clipped.
struct percentile {
    static constexpr const char* name = "percentile";
    double percent = 99.99;

    [[nodiscard]] group_scale operator()(const group_view& g) const {
        if (g.x.empty()) return {};
        std::vector<float> sorted(g.x.size());
        for (std::size_t i = 0; i < sorted.size(); ++i) sorted[i] = detail::magnitude(g.x[i]);
        // multiplied first: 99.9 / 100 * 1000 is a little above 999 in double
        const double rank = std::ceil(percent * static_cast<double>(sorted.size()) / 100.0);
        const double bounded = std::clamp(rank, 1.0, static_cast<double>(sorted.size()));
        const auto at = sorted.begin() + (static_cast<std::ptrdiff_t>(bounded) - 1);
        std::nth_element(sorted.begin(), at, sorted.end());
        return {*at / g.format.max_value, 0.0f};
    }
};

NIBBLE_FP_END

}  // namespace nibble
