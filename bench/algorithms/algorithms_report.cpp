#include <cstdio>

#include <nlohmann/json.hpp>

#include "../text_table.hpp"
#include "algorithms_benchmark.hpp"

namespace bench::algorithms {
namespace {

using json = nlohmann::ordered_json;

std::string quality_text(const results& r) {
    text_table table;
    std::vector<std::string> head = {"", "method", "bits"};
    for (const std::string& l : r.layers) head.push_back(l);
    head.insert(head.end(), {"gain", "s", ""});
    table.add(head);
    std::string group;
    for (const quality_row& q : r.quality) {
        std::vector<std::string> cells = {q.group == group ? "" : q.group, q.method, fixed(q.bits, 2)};
        for (const double db : q.sqnr_db) cells.push_back(fixed(db, 2));
        cells.insert(cells.end(), {q.group == group ? fixed(q.mean_gain(), 2, true) : "", fixed(q.seconds, 2), ""});
        table.add(std::move(cells));
        group = q.group;
    }
    return table.text(1);
}

// Methods that lose, by name.
std::string losers(const results& r) {
    std::string names;
    for (const quality_row& q : r.quality)
        if (q.mean_gain() < 0.0) names += (names.empty() ? "" : "; ") + q.group + ": " + q.method + " (" + fixed(q.mean_gain(), 2, true) + " dB)";
    return names.empty() ? "none" : names;
}

std::string cost_text(const results& r) {
    text_table table;
    table.add({"", "ms", "beside", "ms", "ratio", "target", ""});
    for (const cost_row& c : r.costs)
        table.add({c.what, fixed(c.own_ms, 2), c.beside, fixed(c.other_ms, 2), fixed(c.ratio(), 2) + " x", "<= " + fixed(c.most, 2) + " x",
                   c.ratio() > c.most ? "missed" : ""});
    return table.text(1);
}

}  // namespace

std::string table_text(const environment& where, const results& r) {
    std::string out = "nibble " + where.version + (where.commit.empty() ? "" : " " + where.commit) + ", " + where.cpu + ", " + where.isa + ", " + where.compiler +
                      "\noutput SQNR in dB on held-out tokens; gain: mean over the layers, over the first row of the group\n\n" + quality_text(r) + "\n" +
                      wrapped("does not help here: ", losers(r));
    if (!r.costs.empty()) out += "\n" + cost_text(r);
    if (!r.complete) out += "note: interrupted\n";
    return out;
}

std::string json_text(const environment& where, const settings& s, const results& r) {
    json out = {{"header",
                 {{"version", where.version}, {"commit", where.commit}, {"cpu", where.cpu}, {"isa", where.isa}, {"compiler", where.compiler},
                  {"compiler_flags", where.compiler_flags}, {"layers", r.layers}, {"channels", s.channels}, {"tokens", s.tokens}, {"complete", r.complete}}},
                {"quality", json::array()},
                {"costs", json::array()}};
    for (const quality_row& q : r.quality)
        out["quality"].push_back({{"group", q.group}, {"method", q.method}, {"bits_per_weight", q.bits}, {"output_sqnr_db", q.sqnr_db}, {"gain_db", q.gain_db},
                                  {"mean_gain_db", q.mean_gain()}, {"cpu_s", q.seconds}});
    for (const cost_row& c : r.costs)
        out["costs"].push_back({{"what", c.what}, {"ms", c.own_ms}, {"beside", c.beside}, {"beside_ms", c.other_ms}, {"ratio", c.ratio()}, {"most", c.most},
                                {"missed", c.ratio() > c.most}});
    return out.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

}  // namespace bench::algorithms
