#include "targets.hpp"

#include <algorithm>
#include <cmath>
#include <string_view>
#include <tuple>

namespace bench::roofline {
namespace {

using nibble::index;

// --- which rows ---------------------------------------------------------------------------------------------------

bool product_at(const row& r, index m) { return r.kernel == kernel::product && r.m == m && !r.code.empty(); }
bool from_memory(const row& r, index m) { return product_at(r, m) && r.residency == residency::dram; }
bool from_cache(const row& r, index m) { return product_at(r, m) && r.residency == residency::cache; }

bool in(const row& r, std::string_view compute) { return r.compute == compute; }
bool rounds_activations_or_f32(const row& r) { return in(r, "a8") || in(r, "a16") || in(r, "f32"); }

// Scales of their own for each group, without an offset.
bool plain(const row& r, std::string_view code) {
    return r.code == code && r.offset == "none" && r.scale != "two_level";
}
bool int4(const row& r, index group) { return plain(r, "int4") && r.group == group; }
bool int8(const row& r, index group) { return plain(r, "int8") && r.group == group; }
bool int4_or_int8(const row& r, index group) { return int4(r, group) || int8(r, group); }
bool k_quant(const row& r, index group) {
    return r.scale == "two_level" && r.decode == nibble::decode_class::integer && r.group == group;
}
bool integer_of_2_to_8_bits(const row& r) {
    return r.decode == nibble::decode_class::integer && r.bits >= 2 && r.bits <= 8;
}
bool fp8(const row& r) { return std::string_view(r.code).substr(0, 4) == "fp8_"; }
bool table_of_16(const row& r) { return r.decode == nibble::decode_class::table && r.bits == 4; }

bool quantizes(const row& r, bool one_scale) { return r.kernel == kernel::quantize && r.one_scale == one_scale; }
bool by_range(const row& r) {
    return (r.code == "int8" || r.code == "int4") && (r.rule == "absmax" || r.rule == "zero_point");
}
bool by_table(const row& r) { return r.code == "nf4" || fp8(r); }

// Not on the integer path, whatever the class.
bool float_path(const row& r) { return in(r, "strict_f32") || (in(r, "f32") && (r.code == "nf4" || fp8(r))); }

using enum limit_kind;
using r = const row&;

constexpr target table[] = {
    {"M = 1, memory: integers of 2 to 8 bits", 0.90, read,
     [](r x) { return from_memory(x, 1) && integer_of_2_to_8_bits(x) && rounds_activations_or_f32(x); }},
    {"M = 1, memory: tables of 16 and fp8, f32", 0.75, read,
     [](r x) { return from_memory(x, 1) && in(x, "f32") && (table_of_16(x) || fp8(x)); }},
    {"M = 2, memory: int4 a8", 0.90, read, [](r x) { return from_memory(x, 2) && x.code == "int4" && in(x, "a8"); }},
    {"M = 4, memory: int4 a8", 0.80, read, [](r x) { return from_memory(x, 4) && x.code == "int4" && in(x, "a8"); }},

    {"M = 1, cache: int4 g32 a8", 0.60, cache_read, [](r x) { return from_cache(x, 1) && int4(x, 32) && in(x, "a8"); }},
    {"M = 1, cache: int4 g32 f32", 0.40, cache_read,
     [](r x) { return from_cache(x, 1) && int4(x, 32) && in(x, "f32"); }},
    {"M = 1, cache: int8 a8", 0.75, cache_read,
     [](r x) { return from_cache(x, 1) && plain(x, "int8") && in(x, "a8"); }},
    {"M = 1, cache: int8 f32", 0.50, cache_read,
     [](r x) { return from_cache(x, 1) && plain(x, "int8") && in(x, "f32"); }},

    {"M = 16, cache: int4 g32 a8", 0.64, int8_peak,
     [](r x) { return from_cache(x, 16) && int4(x, 32) && in(x, "a8"); }},
    {"M = 16, cache: int4 g128 a8", 0.82, int8_peak,
     [](r x) { return from_cache(x, 16) && int4(x, 128) && in(x, "a8"); }},
    {"M = 16, cache: int4 per channel a8", 0.88, int8_peak,
     [](r x) { return from_cache(x, 16) && int4(x, 0) && in(x, "a8"); }},
    {"M = 16, cache: int4 g32 f32", 0.22, int8_peak,
     [](r x) { return from_cache(x, 16) && int4(x, 32) && in(x, "f32"); }},
    {"M = 16, cache: int4 g128 f32", 0.27, int8_peak,
     [](r x) { return from_cache(x, 16) && int4(x, 128) && in(x, "f32"); }},
    {"M = 16, memory: int4 g32 a8", 0.8 * 0.64, int8_peak,
     [](r x) { return from_memory(x, 16) && int4(x, 32) && in(x, "a8"); }},
    {"M = 16, memory: int4 g128 a8", 0.8 * 0.82, int8_peak,
     [](r x) { return from_memory(x, 16) && int4(x, 128) && in(x, "a8"); }},
    {"M = 16, memory: int4 per channel a8", 0.8 * 0.88, int8_peak,
     [](r x) { return from_memory(x, 16) && int4(x, 0) && in(x, "a8"); }},
    {"M = 16, memory: int4 g32 f32", 0.8 * 0.22, int8_peak,
     [](r x) { return from_memory(x, 16) && int4(x, 32) && in(x, "f32"); }},
    {"M = 16, memory: int4 g128 f32", 0.8 * 0.27, int8_peak,
     [](r x) { return from_memory(x, 16) && int4(x, 128) && in(x, "f32"); }},

    {"M = 512: int4 g32 a8", 0.63, int8_peak, [](r x) { return product_at(x, 512) && int4(x, 32) && in(x, "a8"); }},
    {"M = 512: int4 g128 a8", 0.81, int8_peak, [](r x) { return product_at(x, 512) && int4(x, 128) && in(x, "a8"); }},
    {"M = 512: int4 per channel a8", 0.87, int8_peak,
     [](r x) { return product_at(x, 512) && int4(x, 0) && in(x, "a8"); }},
    {"M = 512: int8 per channel a8", 0.85, int8_peak,
     [](r x) { return product_at(x, 512) && int8(x, 0) && in(x, "a8"); }},
    {"M = 512: int8 g32 a8", 0.62, int8_peak, [](r x) { return product_at(x, 512) && int8(x, 32) && in(x, "a8"); }},
    {"M = 512: K-quants of group 16 a8", 0.50, int8_peak,
     [](r x) { return product_at(x, 512) && k_quant(x, 16) && in(x, "a8"); }},
    {"M = 512: K-quants of group 32 a8", 0.60, int8_peak,
     [](r x) { return product_at(x, 512) && k_quant(x, 32) && in(x, "a8"); }},
    {"M = 512: int4, int8 g32 a16", 0.39, int8_peak,
     [](r x) { return product_at(x, 512) && int4_or_int8(x, 32) && in(x, "a16"); }},
    {"M = 512: int4, int8 g128 a16", 0.42, int8_peak,
     [](r x) { return product_at(x, 512) && int4_or_int8(x, 128) && in(x, "a16"); }},
    {"M = 512: int4, int8 g32 f32", 0.24, int8_peak,
     [](r x) { return product_at(x, 512) && int4_or_int8(x, 32) && in(x, "f32"); }},
    {"M = 512: int4, int8 g128 f32", 0.29, int8_peak,
     [](r x) { return product_at(x, 512) && int4_or_int8(x, 128) && in(x, "f32"); }},
    {"M = 512: nf4, fp8, strict_f32", 0.75, f32_peak, [](r x) { return product_at(x, 512) && float_path(x); }},

    {"quantize: int8, int4, absmax and zero point", 0.80, read, [](r x) { return quantizes(x, false) && by_range(x); }},
    {"quantize: nf4, fp8", 0.60, read, [](r x) { return quantizes(x, false) && by_table(x); }},
    {"quantize: one scale, int8, int4", 0.40, read, [](r x) { return quantizes(x, true) && by_range(x); }},
    {"quantize: one scale, fp8", 0.30, read, [](r x) { return quantizes(x, true) && by_table(x); }},
    {"dequantize", 0.85, fill, [](r x) { return x.kernel == kernel::dequantize; }},
};

// --- how much they reach ------------------------------------------------------------------------------------------

double fraction(const row& x, limit_kind kind, const limits& l) {
    const auto of = [&x](double rate, const std::map<int, double>& by_threads) {
        const auto found = by_threads.find(x.threads);
        return found == by_threads.end() ? std::nan("") : rate / found->second;
    };
    switch (kind) {
        case read: return of(x.gbytes_per_s(), l.read_gbytes_per_s);
        case cache_read: return of(x.gbytes_per_s(), l.cache_read_gbytes_per_s);
        case fill: return of(x.gbytes_per_s(), l.fill_gbytes_per_s);
        case f32_peak: return of(x.gflops(), l.f32_gflops);
        case int8_peak: return of(x.gflops(), l.int8_gops);
    }
    return std::nan("");
}

bool measured(const row& x) { return x.wrong.empty() && !x.seconds.empty(); }

class evaluator {
public:
    explicit evaluator(const results& all) : all_(all) {}

    evaluation run() {
        for (const row& x : all_.rows) {
            if (!measured(x)) continue;
            for (const target& t : table)
                if (t.applies(x))
                    expect(x, t.work, fraction(x, t.limit, all_.limits),
                           t.wanted - (x.threads > 1 ? threads_allowance : 0.0), false);
            if (product_at(x, 512) && float_path(x)) against_eigen(x);
            if (x.kernel == kernel::product && x.m < steady_m) against_next(x);
            if (x.kernel == kernel::prepare && x.m == 1 && x.shape_n == 4096 && x.k == 4096) against_product(x);
        }
        return std::move(out_);
    }

private:
    void expect(const row& x, std::string work, double got, double wanted, bool at_most) {
        if (std::isnan(got)) return;
        ++out_.checked;
        if (at_most ? got > wanted : got < wanted) out_.misses.push_back({&x, std::move(work), got, wanted, at_most});
    }

    template <class Predicate>
    const row* find(const Predicate& is) const {
        const row* best = nullptr;
        for (const row& x : all_.rows)
            if (measured(x) && is(x) && (best == nullptr || x.m < best->m)) best = &x;
        return best;
    }

    // The same work at other M.
    static bool same_series(const row& a, const row& b) {
        const auto key = [](const row& x) {
            return std::tie(x.kernel, x.format, x.compute, x.isa, x.n, x.k, x.threads, x.residency);
        };
        return key(a) == key(b);
    }

    void against_eigen(const row& x) {
        const row* eigen = find([&x](const row& y) {
            return y.format == native_eigen_format && y.m == x.m && y.k == x.k && y.shape_n == x.shape_n &&
                   y.threads == x.threads && y.residency == x.residency;
        });
        if (eigen != nullptr) expect(x, "GFLOP/s of Eigen -march=native", x.gflops() / eigen->gflops(), 1.0, false);
    }

    // No longer than the next larger M, and no cliff there: beyond what the medians are uncertain by.
    void against_next(const row& x) {
        if (x.code.empty()) return;
        const row* next = find([&x](const row& y) { return same_series(x, y) && y.m > x.m && y.m <= steady_m; });
        if (next == nullptr || x.seconds.size() < 3 || next->seconds.size() < 3) return;
        const double doubt = x.uncertainty() + next->uncertainty();
        expect(x, "time of M = " + std::to_string(next->m), x.median() / next->median(), 1.0 + doubt, true);
        expect(*next, "GFLOP/s of M = " + std::to_string(x.m), next->gflops() / x.gflops(), 1.0 - most_drop - doubt,
               false);
    }

    void against_product(const row& x) {
        const auto is = [&x](const row& y) {
            return y.kernel == kernel::product && y.format == x.format && y.compute == x.compute && y.m == 1 &&
                   y.k == x.k && y.shape_n == x.shape_n && y.threads == 1;
        };
        const row* whole = find([&](const row& y) { return is(y) && y.residency == residency::dram; });
        if (whole == nullptr) whole = find([&](const row& y) { return is(y) && y.n == x.shape_n; });
        if (whole != nullptr) expect(x, "prepare: of the product", x.median() / whole->median(), most_prepare, true);
    }

    const results& all_;
    evaluation out_;
};

}  // namespace

std::span<const target> targets() { return table; }

evaluation evaluate(const results& all) { return evaluator(all).run(); }

}  // namespace bench::roofline
