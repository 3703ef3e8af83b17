#include <cmath>
#include <cstdio>

#include <nlohmann/json.hpp>

#include "../text_table.hpp"
#include "io_benchmark.hpp"

namespace bench::io {
namespace {

using json = nlohmann::ordered_json;

// GB/s of a row that has bytes.
double rate(const row& r, const samples& of) { return r.bytes / of.median() / 1e6; }

std::string ratio_text(const row& r, double x) { return r.target > 1.0 ? fixed(x, 2) + " x" : fixed(100.0 * x, 0) + " %"; }
std::string target_text(const row& r) { return r.beside.empty() ? "< " + fixed(r.target, 0) + " ms" : ">= " + ratio_text(r, r.target); }

}  // namespace

std::string table_text(const environment& where, const settings& s, const results& r) {
    std::string out = "nibble " + where.version + (where.commit.empty() ? "" : " " + where.commit) + ", " + where.cpu + ", " + where.isa + ", " +
                      where.compiler + "\n" + std::to_string(s.rows) + "x" + std::to_string(s.cols) + " weights, one thread, medians of " +
                      std::to_string(s.rounds) + " rounds, milliseconds of CPU\n\n";
    text_table table;
    table.add({"", "", "ms", "+-", "GB/s", "beside", "GB/s", "ratio", "target", ""});
    for (const row& o : r.rows) {
        const bool pair = !o.beside.empty();
        table.add({o.kind + " " + o.what, "", fixed(o.ms(), 2), fixed(100.0 * o.own.uncertainty(), 0) + " %", o.bytes > 0.0 ? fixed(rate(o, o.own), 2) : "",
                   o.beside, pair ? fixed(rate(o, o.other), 2) : "", pair ? ratio_text(o, o.ratio()) : "", target_text(o),
                   !o.wrong.empty() ? "WRONG" : o.missed() ? "missed" : ""});
    }
    out += table.text(1);
    std::string misses;
    for (const row& o : r.rows)
        if (o.missed())
            misses += (misses.empty() ? "" : ", ") + o.kind + " " + o.what + " (" + (o.beside.empty() ? fixed(o.ms(), 1) + " ms" : ratio_text(o, o.ratio())) + ")";
    out += "\n" + wrapped("targets missed: ", misses.empty() ? "none" : misses);
    for (const row& o : r.rows)
        if (!o.wrong.empty()) out += wrapped("WRONG: ", o.kind + " " + o.what + ": " + o.wrong);
    if (!r.complete) out += "note: interrupted\n";
    return out;
}

std::string json_text(const environment& where, const settings& s, const results& r) {
    json out = {{"header",
                 {{"version", where.version}, {"commit", where.commit}, {"cpu", where.cpu}, {"isa", where.isa}, {"compiler", where.compiler},
                  {"compiler_flags", where.compiler_flags}, {"rows", s.rows}, {"columns", s.cols}, {"rounds", s.rounds}, {"complete", r.complete}}},
                {"rows", json::array()}};
    for (const row& o : r.rows) {
        json j = {{"kind", o.kind}, {"what", o.what}, {"bytes", o.bytes}, {"ms", o.ms()}, {"target", o.target}, {"missed", o.missed()}, {"wrong", o.wrong},
                  {"cpu_ms", o.own.cpu_ms}};
        if (!o.beside.empty()) {
            j["beside"] = o.beside;
            j["ratio"] = o.ratio();
            j["beside_cpu_ms"] = o.other.cpu_ms;
        }
        out["rows"].push_back(std::move(j));
    }
    return out.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

}  // namespace bench::io
