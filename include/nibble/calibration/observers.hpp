// Observers: what range of values a quantizer should represent, from activations that stream by in batches.
//
//     nibble::magnitude_histogram seen(K);
//     for each batch: seen.add(X);                                                   // K x T, a column per token
//     auto rule = nibble::static_activations(seen.entropy(), nibble::activation_type::i8);
//     auto a = nibble::quantize_activations(X, rule);
//
//   min_max_observer          every value fits                      per tensor, per channel   merge
//   moving_average_observer   exponential average of batch ranges   per tensor, per channel   no: batches have an order
//   magnitude_histogram       percentile, mse, entropy of |x|       per tensor                merge
//   histogram_observer        PyTorch's HistogramObserver           per tensor                merge
//
// A range also serves the quantizers of weights: nibble::zero_point{}.from_range(r.low, r.high, nibble::int8::format).
// Every add() throws errc::shape_mismatch for a wrong number of channels, errc::non_finite with the index of a NaN or Inf,
// and then changes nothing. Batches without tokens are ignored. Ranges before the first token: errc::invalid_argument.
#pragma once

#include "../quantized_activations.hpp"
#include "histogram_search.hpp"
#include "tokens.hpp"

namespace nibble::inline NIBBLE_ABI {

/// The fixed grid for a range: i8 symmetric, scale = max(-low, high) / 127; u8 with a zero point, the range widened to
/// include zero. The formulas are those of quantize_activations().
[[nodiscard]] inline activation_rule static_activations(value_range r, activation_type type = activation_type::i8) {
    if (!detail::finite_in_memory(&r.low) || !detail::finite_in_memory(&r.high) || r.low > r.high)
        detail::fail(errc::invalid_argument, "static_activations: a range from " + std::to_string(r.low) + " to " + std::to_string(r.high));
    const detail::fp_environment environment;
    const float both[2] = {r.low, r.high};
    const group_scale s = detail::activation_grid(both, 2, detail::largest_magnitude(r.low, r.high), type);
    return activation_rule::fixed(s.scale, static_cast<int>(s.offset), type);
}

namespace detail {

NIBBLE_FP_BEGIN

[[nodiscard]] inline value_range joined(value_range a, value_range b) noexcept {
    return {b.low < a.low ? b.low : a.low, b.high > a.high ? b.high : a.high};
}
NIBBLE_NOINLINE inline void widen(const float* x, index tokens, index channels, value_range* ranges, bool fresh) noexcept {
    for (index t = 0; t < tokens; ++t, fresh = false)
        for (index k = 0; k < channels; ++k) {
            const float v = x[t * channels + k];
            ranges[k] = fresh ? value_range{v, v} : joined(ranges[k], {v, v});
        }
}
[[nodiscard]] inline value_range joined(std::span<const value_range> ranges) noexcept {
    value_range all = ranges[0];
    for (const value_range& r : ranges) all = joined(all, r);
    return all;
}
NIBBLE_NOINLINE inline void approach(value_range& r, value_range batch, float constant) noexcept {
    r.low = r.low + constant * (batch.low - r.low);
    r.high = r.high + constant * (batch.high - r.high);
}
/// x * 2^-exponent, rounded down.
[[nodiscard]] inline index bin_of(float x, double inverse_width) noexcept { return static_cast<index>(static_cast<double>(magnitude(x)) * inverse_width); }

NIBBLE_FP_END

/// Ranges of K channels, and whether there are any yet.
class channel_ranges {
public:
    channel_ranges(index channels, const char* who) : who_(who) {
        if (channels < 1) fail(errc::invalid_argument, std::string(who) + ": " + std::to_string(channels) + " channels");
        ranges_.resize(static_cast<std::size_t>(channels));
    }
    [[nodiscard]] index channels() const noexcept { return static_cast<index>(ranges_.size()); }
    [[nodiscard]] bool any() const noexcept { return any_; }
    void add(const const_view& x) {
        const fp_environment environment;
        for_token_blocks(x, channels(), who_, [&](const float* values, index tokens) {
            widen(values, tokens, channels(), ranges_.data(), !any_);
            any_ = true;
        });
    }
    void merge(const channel_ranges& other) {
        if (other.channels() != channels())
            fail(errc::shape_mismatch, std::string(who_) + ": merging " + std::to_string(other.channels()) + " channels into " + std::to_string(channels()));
        for (std::size_t k = 0; k < ranges_.size() && other.any_; ++k) ranges_[k] = any_ ? joined(ranges_[k], other.ranges_[k]) : other.ranges_[k];
        any_ = any_ || other.any_;
    }
    /// Of all channels.
    [[nodiscard]] value_range all() const {
        need();
        return joined(std::span<const value_range>(ranges_));
    }
    [[nodiscard]] value_range of(index k) const {
        need();
        if (k < 0 || k >= channels()) fail(errc::out_of_range, std::string(who_) + ": channel " + std::to_string(k) + " of " + std::to_string(channels()));
        return ranges_[static_cast<std::size_t>(k)];
    }
    [[nodiscard]] std::vector<value_range>& values() noexcept { return ranges_; }

private:
    void need() const {
        if (!any_) fail(errc::invalid_argument, std::string(who_) + ": no token was seen by " + std::to_string(channels()) + " channels");
    }

    const char* who_;
    std::vector<value_range> ranges_;
    bool any_ = false;
};

}  // namespace detail

/// The smallest and the largest value seen. Any split into batches, and any order, give the same.
class min_max_observer {
public:
    explicit min_max_observer(index channels) : ranges_(channels, "min_max_observer") {}

    template <eigen_expression X>
    void add(const Eigen::DenseBase<X>& x) {
        ranges_.add(eigen_view<X>(x).get());
    }
    void add(const const_view& x) { ranges_.add(x); }
    void merge(const min_max_observer& other) { ranges_.merge(other.ranges_); }

    [[nodiscard]] index channels() const noexcept { return ranges_.channels(); }
    [[nodiscard]] value_range range() const { return ranges_.all(); }
    [[nodiscard]] value_range range(index channel) const { return ranges_.of(channel); }

private:
    detail::channel_ranges ranges_;
};

/// PyTorch's MovingAverageMinMaxObserver: the first batch's range, then low += constant * (batch's low - low), and so high.
class moving_average_observer {
public:
    /// Throws errc::invalid_argument below 1 channel and outside 0 <= constant <= 1.
    explicit moving_average_observer(index channels, float constant = 0.01f)
        : tensor_(1, "moving_average_observer"), ranges_(channels, "moving_average_observer"), constant_(constant) {
        if (!(constant >= 0.0f && constant <= 1.0f))
            detail::fail(errc::invalid_argument, "moving_average_observer: an averaging constant of " + std::to_string(constant));
    }

    template <eigen_expression X>
    void add(const Eigen::DenseBase<X>& x) {
        add(eigen_view<X>(x).get());
    }
    void add(const const_view& x) {
        detail::channel_ranges batch(channels(), "moving_average_observer");
        batch.add(x);
        if (!batch.any()) return;
        detail::channel_ranges whole(1, "moving_average_observer");
        const value_range all = batch.all();
        const float ends[2] = {all.low, all.high};
        whole.add({ends, scalar_type::f32, 1, 2, 2, 1});
        if (!ranges_.any()) {
            tensor_ = whole;
            ranges_ = batch;
            return;
        }
        const detail::fp_environment environment;
        detail::approach(tensor_.values()[0], all, constant_);
        for (std::size_t k = 0; k < ranges_.values().size(); ++k) detail::approach(ranges_.values()[k], batch.values()[k], constant_);
    }

    [[nodiscard]] index channels() const noexcept { return ranges_.channels(); }
    /// The average of the ranges of whole batches.
    [[nodiscard]] value_range range() const { return tensor_.all(); }
    [[nodiscard]] value_range range(index channel) const { return ranges_.of(channel); }

private:
    detail::channel_ranges tensor_, ranges_;
    float constant_;
};

/// Counts of |x| in bins as wide as a power of two, so many that the largest magnitude lies in the upper half of 4096.
/// When that grows, neighbours are added: counts stay exact, whatever the order and split of batches, and merging is exact.
class magnitude_histogram {
public:
    static constexpr index bins = 4096;

    explicit magnitude_histogram(index channels) : ranges_(channels, "magnitude_histogram"), counts_(static_cast<std::size_t>(bins), 0.0) {}

    template <eigen_expression X>
    void add(const Eigen::DenseBase<X>& x) {
        add(eigen_view<X>(x).get());
    }
    void add(const const_view& x) {
        ranges_.add(x);
        if (!ranges_.any()) return;
        fit();
        detail::for_token_blocks(x, channels(), "magnitude_histogram", [&](const float* values, index tokens) { count(values, tokens * channels()); });
    }
    void merge(const magnitude_histogram& other) {
        ranges_.merge(other.ranges_);
        if (!other.ranges_.any()) return;
        magnitude_histogram h = other;
        fit();  // at least as wide as the other: its values are in ranges_ now
        while (h.exponent_ < exponent_) h.halve();
        for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += h.counts_[i];
    }

    [[nodiscard]] index channels() const noexcept { return ranges_.channels(); }
    [[nodiscard]] std::span<const double> counts() const noexcept { return counts_; }
    /// counts()[i] lie in [i, i + 1) * width().
    [[nodiscard]] double width() const noexcept { return std::ldexp(1.0, exponent_); }
    [[nodiscard]] value_range range() const { return ranges_.all(); }

    /// Ranges within that of the values seen, clipped at the magnitude that a search of histogram_search.hpp finds.
    [[nodiscard]] value_range percentile(double percent = 99.99) const { return clipped(percentile_limit(used(), width(), percent)); }
    /// levels: the largest code; 127 for int8.
    [[nodiscard]] value_range least_squares(int levels = 127) const { return clipped(mse_limit(used(), width(), levels)); }
    /// levels: 128 for int8, 256 for uint8.
    [[nodiscard]] value_range entropy(int levels = 128) const { return clipped(entropy_limit(used(), width(), levels)); }

private:
    static constexpr int finest = -149 - 12;  // no float is smaller than 2^-149

    void fit() {
        const value_range r = ranges_.all();
        const float largest = detail::largest_magnitude(r.low, r.high);
        if (largest == 0.0f) return;
        while (std::ldexp(static_cast<double>(largest), -exponent_) >= static_cast<double>(bins)) halve();
    }
    void halve() {
        ++exponent_;
        for (std::size_t i = 0; i < counts_.size() / 2; ++i) counts_[i] = counts_[2 * i] + counts_[2 * i + 1];
        std::fill(counts_.begin() + bins / 2, counts_.end(), 0.0);
    }
    void count(const float* x, index n) {
        const double inverse = std::ldexp(1.0, -exponent_);
        for (index i = 0; i < n; ++i) counts_[static_cast<std::size_t>(detail::bin_of(x[i], inverse))] += 1.0;
    }
    /// The bins up to the largest magnitude.
    [[nodiscard]] std::span<const double> used() const {
        const value_range r = ranges_.all();
        return counts().first(static_cast<std::size_t>(detail::bin_of(detail::largest_magnitude(r.low, r.high), std::ldexp(1.0, -exponent_)) + 1));
    }
    [[nodiscard]] value_range clipped(double limit) const {
        const value_range r = ranges_.all();
        const auto l = static_cast<float>(limit);
        return {(std::max)(r.low, -l), (std::min)(r.high, l)};
    }

    detail::channel_ranges ranges_;
    std::vector<double> counts_;
    int exponent_ = finest;
};

/// PyTorch's HistogramObserver (torch 2.13): 2048 bins from the smallest to the largest value. When the range grows, each
/// old bin is cut into 16 parts, which go to the new bins that hold their middles. Counts are never lost, also not while
/// the range stays the same (as they were in older versions), and are in double.
class histogram_observer {
public:
    static constexpr index bins = 2048;

    explicit histogram_observer(index channels) : seen_(channels, "histogram_observer"), counts_(static_cast<std::size_t>(bins), 0.0) {}

    template <eigen_expression X>
    void add(const Eigen::DenseBase<X>& x) {
        add(eigen_view<X>(x).get());
    }
    void add(const const_view& x) {
        const bool first = !seen_.any();
        const value_range before = first ? value_range{} : seen_.all();
        seen_.add(x);
        if (!seen_.any()) return;
        const value_range now = seen_.all();
        if (!first) rebin(before, now);
        detail::for_token_blocks(x, seen_.channels(), "histogram_observer", [&](const float* values, index tokens) {
            for (index i = 0; i < tokens * seen_.channels(); ++i) counts_[bin_of(static_cast<double>(values[i]), now)] += 1.0;
        });
    }
    void merge(const histogram_observer& other) {
        if (!seen_.any() || !other.seen_.any()) {
            const bool take = other.seen_.any();
            seen_.merge(other.seen_);
            if (take) counts_ = other.counts_;
            return;
        }
        const value_range before = seen_.all();
        histogram_observer h = other;
        seen_.merge(other.seen_);
        rebin(before, seen_.all());
        h.rebin(h.seen_.all(), seen_.all());
        for (std::size_t i = 0; i < counts_.size(); ++i) counts_[i] += h.counts_[i];
    }

    [[nodiscard]] index channels() const noexcept { return seen_.channels(); }
    [[nodiscard]] std::span<const double> counts() const noexcept { return counts_; }
    /// Of all values seen.
    [[nodiscard]] value_range seen() const { return seen_.all(); }
    /// The part of it that search_range() keeps; levels: 2 to the number of bits.
    [[nodiscard]] value_range range(int levels = 256) const {
        const value_range r = seen_.all();
        if (r.low == r.high) return r;
        const double low = static_cast<double>(r.low), width = (static_cast<double>(r.high) - low) / static_cast<double>(bins);
        const auto [start, end] = search_range(counts_, width, levels);
        return {static_cast<float>(low + width * static_cast<double>(start)), static_cast<float>(low + width * static_cast<double>(end + 1))};
    }

private:
    [[nodiscard]] static std::size_t bin_of(double x, value_range r) noexcept {
        if (r.low == r.high) return static_cast<std::size_t>(bins / 2);
        const double low = static_cast<double>(r.low), high = static_cast<double>(r.high);
        const auto bin = static_cast<index>((x - low) / (high - low) * static_cast<double>(bins));
        return static_cast<std::size_t>((std::min)(bin, bins - 1));
    }
    void rebin(value_range from, value_range to) {
        if (from == to) return;
        std::vector<double> old(counts_.size(), 0.0);
        old.swap(counts_);
        constexpr index parts = 16;
        const double low = static_cast<double>(from.low), part = (static_cast<double>(from.high) - low) / static_cast<double>(bins * parts);
        for (index i = 0; i < bins * parts; ++i)
            counts_[bin_of(low + (static_cast<double>(i) + 0.5) * part, to)] += old[static_cast<std::size_t>(i / parts)] / static_cast<double>(parts);
    }

    detail::channel_ranges seen_;
    std::vector<double> counts_;
};

}  // namespace nibble
