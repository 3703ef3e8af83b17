#include "roofline_report.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <map>
#include <set>
#include <tuple>

#include <nlohmann/json.hpp>

#include "../text_table.hpp"
#include "targets.hpp"

namespace bench::roofline {
namespace {

using nibble::index;

// More than this of a limit is no noise of an idle machine.
constexpr double beyond_limit = 1.05;

using json = nlohmann::ordered_json;

std::string percent(double fraction) { return fixed(100.0 * fraction, 0) + " %"; }

std::string by_threads(const std::map<int, double>& rates, const char* unit) {
    std::string out;
    for (const auto& [threads, rate] : rates)
        out += (out.empty() ? "" : ", ") + fixed(rate, rate < 100.0 ? 1 : 0) + " (" + std::to_string(threads) +
               (threads == 1 ? " thread)" : " threads)");
    return out + " " + unit;
}

std::string shape_of(const row& r) { return std::to_string(r.n) + "x" + std::to_string(r.k); }

// --- JSON ---------------------------------------------------------------------------------------------------------

// JSON has neither NaN nor infinity.
json number(double x) { return std::isfinite(x) ? json(x) : json(nullptr); }

json object(const std::map<int, double>& rates) {
    json out = json::object();
    for (const auto& [threads, rate] : rates) out[std::to_string(threads)] = number(rate);
    return out;
}

double one_thread(const std::map<int, double>& rates) {
    const auto found = rates.find(1);
    return found == rates.end() ? std::nan("") : found->second;
}

json header(const environment& e, const settings& s, const results& r) {
    json classes = json::array();
    for (const nibble::compute c : s.classes) classes.push_back(nibble::name_of(c));
    const limits& l = r.limits;
    return {{"schema", "nibble_roofline"},
            {"schema_version", json_schema_version},
            {"complete", r.complete},
            {"read_gbytes_per_s", object(l.read_gbytes_per_s)},
            {"cache_read_gbytes_per_s", object(l.cache_read_gbytes_per_s)},
            {"fill_gbytes_per_s", object(l.fill_gbytes_per_s)},
            {"f32_gflops", number(one_thread(l.f32_gflops))},
            {"int8_gops", number(one_thread(l.int8_gops))},
            {"f32_gflops_by_threads", object(l.f32_gflops)},
            {"int8_gops_by_threads", object(l.int8_gops)},
            {"isa", e.isa},
            {"cpu", {{"model", e.cpu}, {"cores", e.cores}, {"flags", e.cpu_flags}}},
            {"compiler", {{"name", e.compiler}, {"flags", e.compiler_flags}}},
            {"eigen", e.eigen},
            {"version", e.version},
            {"commit", e.commit},
            {"compute", classes},
            {"row_budget_s", s.row_budget},
            {"seconds", r.seconds},
            {"notes", r.notes}};
}

json json_row(const row& o, const limits& l) {
    const bool timed = o.wrong.empty();
    const auto figure = [timed](double x) { return timed ? number(x) : json(nullptr); };
    return {{"kernel", name_of(o.kernel)},
            {"format", o.format},
            {"group", o.group},
            {"scale", o.scale},
            {"offset", o.offset},
            {"compute", o.compute},
            {"isa", o.isa},
            {"n", o.n},
            {"k", o.k},
            {"m", o.m},
            {"threads", o.threads},
            {"residency", name_of(o.residency)},
            {"median_s", figure(o.median())},
            {"min_s", figure(o.least())},
            {"gflops", figure(o.operations == 0.0 ? std::nan("") : o.gflops())},
            {"gbytes_per_s", figure(o.gbytes_per_s())},
            {"fraction_of_bandwidth", figure(o.fraction_of_bandwidth(l))},
            {"fraction_of_peak", figure(o.fraction_of_peak(l))},
            {"rel_l2_error", number(o.rel_l2_error)}};
}

// --- text ---------------------------------------------------------------------------------------------------------

std::string header_text(const environment& e, const results& r) {
    const limits& l = r.limits;
    std::string out = "nibble " + e.version + (e.commit.empty() ? "" : " (" + e.commit + ")") + ", " + e.compiler +
                      ", Eigen " + e.eigen + "\n";
    out += "CPU         " + e.cpu + ", " + std::to_string(e.cores) + " cores; products run at " + e.isa + "\n";
    out += "memory      " + by_threads(l.read_gbytes_per_s, "GB/s read") + "; " +
           by_threads(l.fill_gbytes_per_s, "GB/s filled") + "\n";
    out += "8 MiB set   " + by_threads(l.cache_read_gbytes_per_s, "GB/s read") + "\n";
    out += "fp32 peak   " + by_threads(l.f32_gflops, "GFLOP/s") + "\n";
    out += "int8 peak   " + by_threads(l.int8_gops, "GOP/s") + "\n";
    return out;
}

std::string cell(const row& o, const limits& l) {
    if (!o.wrong.empty()) return "WRONG";
    // The nearer limit is the one that counts.
    const double bandwidth = o.fraction_of_bandwidth(l);
    const double peak = o.fraction_of_peak(l);
    return bandwidth >= peak || std::isnan(peak) ? percent(bandwidth) + " b" : percent(peak) + " p";
}

// Products of one shape, residency and number of threads: a line for each format and class, a column for each M.
std::string product_table(const settings& s, const results& r, const shape& of, residency where, int threads) {
    text_table table;
    std::vector<std::string> head = {"format", "class"};
    for (const index m : s.batches) head.push_back("M=" + std::to_string(m));
    head.emplace_back("");
    table.add(head);
    std::vector<std::pair<std::string, std::string>> lines;
    std::map<std::tuple<std::string, std::string, index>, const row*> cells;
    for (const row& o : r.rows) {
        if (o.kernel != kernel::product || o.shape_n != of.n || o.k != of.k || o.residency != where ||
            o.threads != threads)
            continue;
        const std::pair line(o.format, o.code.empty() ? o.isa : o.compute);
        if (std::find(lines.begin(), lines.end(), line) == lines.end()) lines.push_back(line);
        cells[{line.first, line.second, o.m}] = &o;
    }
    if (lines.empty()) return {};
    for (const auto& [format, compute] : lines) {
        std::vector<std::string> line = {format, compute.substr(0, compute.find(','))};
        for (const index m : s.batches) {
            const auto found = cells.find({format, compute, m});
            line.push_back(found == cells.end() ? "-" : cell(*found->second, r.limits));
        }
        line.emplace_back("");
        table.add(std::move(line));
    }
    return "\nproducts " + nibble::detail::shape_text(of.n, of.k) + ", weights " +
           (where == residency::dram ? "from memory" : "from an 8 MiB set") + ", " + std::to_string(threads) +
           (threads == 1 ? " thread\n" : " threads\n") + table.text(1);
}

std::string other_table(const results& r) {
    text_table table;
    table.add({"kernel", "format", "class", "shape", "M", "median ms", "GB/s", "of limit", ""});
    bool any = false;
    for (const row& o : r.rows) {
        if (o.kernel == kernel::product || (o.kernel == kernel::prepare && o.m != 1)) continue;
        any = true;
        const bool timed = o.wrong.empty();
        table.add({name_of(o.kernel), o.format, o.compute, shape_of(o), o.m == 0 ? "-" : std::to_string(o.m),
                   timed ? fixed(o.median() * 1e3, 3) : "WRONG", timed ? fixed(o.gbytes_per_s(), 2) : "WRONG",
                   timed ? percent(o.fraction_of_bandwidth(r.limits)) : "WRONG", ""});
    }
    return any ? "\n" + table.text(1) : std::string();
}

std::string misses_text(const results& r) {
    const evaluation e = evaluate(r);
    std::string out =
        "\n" + std::to_string(e.checked - e.misses.size()) + " of " + std::to_string(e.checked) + " targets are met";
    if (e.misses.empty()) return out + (e.checked == 0 ? ": none of the rows has one\n" : "\n");
    out += "; these rows miss one:\n";
    text_table table;
    table.add({"target", "format", "class", "isa", "shape", "M", "threads", "from", "is", "wanted", ""});
    for (const miss& m : e.misses) {
        const row& o = *m.of;
        table.add({m.work, o.format, o.compute, o.isa, shape_of(o), o.m == 0 ? "-" : std::to_string(o.m),
                   std::to_string(o.threads), name_of(o.residency), fixed(100.0 * m.got, 1) + " %",
                   (m.at_most ? "<= " : ">= ") + fixed(100.0 * m.wanted, 1) + " %", ""});
    }
    return out + table.text(1);
}

}  // namespace

std::string json_text(const environment& where, const settings& s, const results& r) {
    json out = {{"header", header(where, s, r)}, {"rows", json::array()}};
    for (const row& o : r.rows) out["rows"].push_back(json_row(o, r.limits));
    return out.dump(1, ' ', false, json::error_handler_t::replace) + "\n";
}

std::string table_text(const environment& where, const settings& s, const results& r) {
    std::string out = header_text(where, r);
    for (const shape& of : s.shapes)
        for (const residency from : s.residencies)
            for (const int threads : s.threads) out += product_table(s, r, of, from, threads);
    out += other_table(r);
    out +=
        "\nb: of the bandwidth, p: of the peak (int8 where the product runs on integers, else fp32); the nearer one is "
        "shown.\n"
        "Bytes are the format's own; peaks are those of " +
        where.isa + ".\n";
    const auto beyond = std::count_if(r.rows.begin(), r.rows.end(), [&r](const row& o) {
        return o.wrong.empty() &&
               (o.fraction_of_bandwidth(r.limits) > beyond_limit || o.fraction_of_peak(r.limits) > beyond_limit);
    });
    if (beyond != 0)
        out +=
            "note: " + std::to_string(beyond) +
            " rows are beyond a limit, so other programs slowed the probes down: do not trust fractions of this run\n";
    for (const std::string& note : r.notes) out += wrapped("note: ", note);
    if (!r.complete) out += "note: interrupted; rows that are missing were not measured\n";
    for (const row& o : r.rows)
        if (!o.wrong.empty())
            out +=
                wrapped("WRONG: ", std::string(name_of(o.kernel)) + " " + o.format + " " + o.compute + " " +
                                       shape_of(o) + " M = " + std::to_string(o.m) + ", " + std::to_string(o.threads) +
                                       " threads, " + name_of(o.residency) + ": " + o.wrong);
    return out + misses_text(r);
}

}  // namespace bench::roofline
