#include "compare.hpp"

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>

#include "check.hpp"
#include "eigen_products.hpp"

namespace bench {
namespace {

// quantize() costs the same for every row, so a block of rows tells its speed.
constexpr Eigen::Index most_quantize_rows = 256;
// Rows of the timing shape that are compared with the reference.
constexpr Eigen::Index checked_rows = 32;
constexpr double infinity = std::numeric_limits<double>::infinity();

void stop_if_interrupted() {
    if (was_interrupted()) throw interrupted();
}

double decibel(double signal, double noise) { return noise == 0.0 ? infinity : 10.0 * std::log10(signal / noise); }

// A sum of squared errors against a sum of squares, and the largest error.
struct error_sum {
    double signal = 0.0;
    double noise = 0.0;
    double largest = 0.0;

    void add(const Eigen::MatrixXd& wanted, const Eigen::MatrixXd& got) {
        if (wanted.size() == 0) return;
        signal += wanted.squaredNorm();
        noise += (got - wanted).squaredNorm();
        largest = (std::max)(largest, (got - wanted).cwiseAbs().maxCoeff());
    }
};

std::string disagreement(const std::string& where, const verdict& v) {
    char text[120];
    std::snprintf(text, sizeof text, ": relative error %.2e, at most %.2e is allowed", v.error, v.tolerance);
    return where + text;
}

// --- accuracy: the real layers -----------------------------------------------------------------------------------

struct layer_reference {
    const layer* data;
    Eigen::MatrixXd weights;
    Eigen::MatrixXd outputs;
};

void measure_accuracy(const std::vector<layer_reference>& layers, const nibble::recipe& format, const settings& s,
                      row& r) {
    error_sum weights;
    error_sum outputs;
    double bits = 0.0;
    double count = 0.0;
    for (const layer_reference& l : layers) {
        const Eigen::MatrixXf& x = l.data->activations;
        nibble::qmatrix q;
        try {
            q = nibble::quantize(l.data->weights, nibble::make_plan(format));
        } catch (const nibble::error& e) {
            r.failed = l.data->name + ": " + e.what();
            return;
        }
        const row_matrix decoded = decode_rows(q, spread_rows(q.rows(), q.rows()));
        Eigen::MatrixXf y(q.rows(), x.cols());
        nibble::gemm(q, x, y, {.compute = s.compute});

        const verdict v = check_product(decoded, q.group_size(), x, y, s.compute);
        if (!v.right() && r.wrong.empty()) r.wrong = disagreement(l.data->name, v);
        weights.add(l.weights, decoded.cast<double>());
        outputs.add(l.outputs, y.cast<double>());
        bits += q.bits_per_weight() * static_cast<double>(decoded.size());
        count += static_cast<double>(decoded.size());
        // 16-bit weights and strict_f32 go there by design; columns that a class cannot carry are what is counted.
        if (s.compute != nibble::compute::strict_f32 && format.format->decode != nibble::decode_class::wide)
            r.strict_columns += nibble::strict_columns(q, x, {.compute = s.compute});
        r.columns += x.cols();
    }
    r.bits_per_weight = bits / count;
    r.bytes = bits / 8.0;
    r.weight_sqnr_db = decibel(weights.signal, weights.noise);
    r.output_sqnr_db = decibel(outputs.signal, outputs.noise);
    r.max_weight_error = weights.largest;
    r.max_output_error = outputs.largest;
}

// --- time: synthetic weights of the timing shape -----------------------------------------------------------------

// What is multiplied on the clock. Weights are in both orders: files have rows, Eigen's default is columns.
struct timing_inputs {
    row_matrix weights;
    row_matrix quantize_block;
    Eigen::MatrixXf eigen_weights;
    std::vector<Eigen::MatrixXf> x, y;  // one for each batch

    explicit timing_inputs(const settings& s) : weights(normal_matrix(s.rows, s.cols, 0.02f, 42)) {
        quantize_block = weights.topRows((std::min)(most_quantize_rows, s.rows));
        eigen_weights = weights;
        for (const Eigen::Index m : s.batches) {
            x.emplace_back(normal_matrix(m, s.cols, 1.0f, 43).transpose());
            y.emplace_back(s.rows, m);
        }
    }

    [[nodiscard]] product_arguments arguments(std::size_t batch) {
        return {eigen_weights.data(), x[batch].data(),      y[batch].data(),
                eigen_weights.rows(), eigen_weights.cols(), x[batch].cols()};
    }
};

// Returns the seconds that the products took.
double check_timing_products(const nibble::qmatrix& q, const settings& s, timing_inputs& in, const progress& clock,
                             row& r) {
    const std::vector<Eigen::Index> rows = spread_rows(q.rows(), checked_rows);
    const row_matrix decoded = decode_rows(q, rows);
    double seconds = 0.0;
    for (std::size_t b = 0; b < in.x.size(); ++b) {
        const double start = clock.elapsed();
        nibble::gemm(q, in.x[b], in.y[b], {.compute = s.compute});
        seconds += clock.elapsed() - start;
        Eigen::MatrixXf y(decoded.rows(), in.y[b].cols());
        for (std::size_t i = 0; i < rows.size(); ++i) y.row(static_cast<Eigen::Index>(i)) = in.y[b].row(rows[i]);
        const verdict v = check_product(decoded, q.group_size(), in.x[b], y, s.compute);
        if (!v.right() && r.wrong.empty())
            r.wrong = disagreement(
                nibble::detail::shape_text(q.rows(), q.cols()) + " x " + std::to_string(in.x[b].cols()), v);
    }
    return seconds;
}

std::string batch_text(Eigen::Index m) { return " M = " + std::to_string(m); }

void time_eigen(row& r, product_function product, const settings& s, timing_inputs& in,
                std::vector<contender>& contenders) {
    r.products.resize(s.batches.size());
    for (std::size_t b = 0; b < s.batches.size(); ++b)
        contenders.push_back(
            {r.name + batch_text(s.batches[b]), [&in, product, b] { product(in.arguments(b)); }, &r.products[b]});
}

void time_format(row& r, const nibble::recipe& format, const nibble::qmatrix& q, const settings& s, timing_inputs& in,
                 std::vector<contender>& contenders) {
    r.timing_bits_per_weight = q.bits_per_weight();
    r.products.resize(s.batches.size());
    const nibble::gemm_options how{.compute = s.compute};
    for (std::size_t b = 0; b < s.batches.size(); ++b)
        contenders.push_back({r.name + batch_text(s.batches[b]),
                              [&in, &q, how, b] { nibble::gemm(q, in.x[b], in.y[b], how); }, &r.products[b]});
    r.quantize_bytes = static_cast<double>(in.quantize_block.size()) * 4.0;
    contenders.push_back(
        {r.name + " quantize",
         [&in, &format] { static_cast<void>(nibble::quantize(in.quantize_block, nibble::make_plan(format))); },
         &r.quantize});
}

bool cpu_has_avx2() noexcept {
#if defined(__GNUC__) && defined(__x86_64__)
    return __builtin_cpu_supports("avx2") != 0 && __builtin_cpu_supports("fma") != 0;
#else
    return false;
#endif
}

std::vector<row> baseline_rows(const dataset& data) {
    std::vector<row> rows;
    row r;
    r.baseline = true;
    r.name = "f32 (Eigen)";
    r.use_when = "the baseline, compiled with this program's flags: " + eigen_instruction_sets();
    r.bytes = data.weight_count() * 4.0;
    r.weight_sqnr_db = r.output_sqnr_db = infinity;
    rows.push_back(r);
    const bool same = eigen_instruction_sets().find("AVX") != std::string::npos;
    if (eigen_product_avx2() != nullptr && cpu_has_avx2() && !same) {
        r.name = "f32 (Eigen, AVX2)";
        r.use_when = "the same compiled with -mavx2 -mfma";
        rows.push_back(r);
    }
    return rows;
}

}  // namespace

double row::quantize_mb_per_s() const { return quantize_bytes / 1e6 / (quantize.median() / 1e3); }

bool results::any_wrong() const noexcept {
    return std::any_of(rows.begin(), rows.end(), [](const row& r) { return !r.wrong.empty(); });
}

const row* results::find(std::string_view name) const noexcept {
    const auto found = std::find_if(rows.begin(), rows.end(), [name](const row& r) { return r.name == name; });
    return found == rows.end() ? nullptr : &*found;
}

double timing_memory(const settings& s) {
    double bits = 2.0 * 32.0;
    // Scales and padding take less than 2 bits per weight in every format.
    for (const nibble::recipe* r : s.formats) bits += r->format->bits + 2.0;
    double bytes = static_cast<double>(s.rows) * static_cast<double>(s.cols) * bits / 8.0;
    for (const Eigen::Index m : s.batches) bytes += static_cast<double>(m) * static_cast<double>(s.rows + s.cols) * 4.0;
    return bytes;
}

results compare_formats(const dataset& data, const settings& s, progress& shown) {
    results out;
    std::vector<layer_reference> layers;
    for (const layer& l : data.layers) {
        shown.status("reference product of " + l.name);
        layers.push_back({&l, l.weights.cast<double>(), reference_product(l.weights, l.activations)});
    }

    shown.status("making " + nibble::detail::shape_text(s.rows, s.cols) + " weights");
    timing_inputs in(s);
    out.quantize_rows = in.quantize_block.rows();

    // Contenders point into the rows and matrices: none of the two may move any more.
    std::deque<row> rows;
    std::deque<nibble::qmatrix> matrices;
    std::vector<contender> contenders;
    for (row& r : baseline_rows(data)) {
        rows.push_back(std::move(r));
        time_eigen(rows.back(), rows.size() == 1 ? &eigen_product : eigen_product_avx2(), s, in, contenders);
    }
    const int rounds = s.quick ? 2 : 3;
    const round_plan plan{rounds, s.quick ? rounds : 25, s.time_budget};
    const double start = shown.elapsed();
    double products = 0.0;  // seconds of one product of every format so far
    for (std::size_t i = 0; i < s.formats.size(); ++i) {
        const nibble::recipe& format = *s.formats[i];
        const std::string place = std::to_string(i + 1) + "/" + std::to_string(s.formats.size()) + " " + format.name;
        rows.emplace_back();
        row& r = rows.back();
        r.name = format.name;
        r.use_when = format.use_when;
        shown.status("accuracy " + place);
        measure_accuracy(layers, format, s, r);
        stop_if_interrupted();
        if (r.failed.empty() && r.wrong.empty()) {
            shown.status("quantizing and checking " + place);
            matrices.push_back(nibble::quantize(in.weights, nibble::make_plan(format)));
            products += check_timing_products(matrices.back(), s, in, shown, r);
            if (r.wrong.empty())
                time_format(r, format, matrices.back(), s, in, contenders);
            else
                matrices.pop_back();
            stop_if_interrupted();
        }
        const double left = static_cast<double>(s.formats.size() - i - 1) / static_cast<double>(i + 1);
        const double preparing = left * (shown.elapsed() - start);
        shown.expect(preparing + plan.time_left(shown.elapsed() + preparing, products * (1.0 + left), 0));
        shown.milestone("checked " + place + (r.failed.empty() && r.wrong.empty() ? "" : ": " + r.failed + r.wrong));
    }

    out.rounds = time_rounds(contenders, plan, shown);
    if (out.rounds == 0) throw interrupted();
    out.complete = !was_interrupted();
    out.seconds = shown.elapsed();
    out.rows.assign(std::make_move_iterator(rows.begin()), std::make_move_iterator(rows.end()));
    rank(out.rows);
    return out;
}

void rank(std::vector<row>& rows) {
    std::stable_sort(rows.begin(), rows.end(), [](const row& a, const row& b) {
        if (a.baseline != b.baseline) return a.baseline;
        if (a.baseline) return false;
        if (a.failed.empty() != b.failed.empty()) return a.failed.empty();
        if (a.bits_per_weight != b.bits_per_weight) return a.bits_per_weight > b.bits_per_weight;
        return a.output_sqnr_db > b.output_sqnr_db;
    });
    for (row& r : rows) {
        r.beaten_by.clear();
        if (!r.usable()) continue;
        const row* best = nullptr;
        for (const row& other : rows) {
            if (!other.usable() || other.bytes > r.bytes || other.output_sqnr_db < r.output_sqnr_db) continue;
            if (other.bytes == r.bytes && other.output_sqnr_db == r.output_sqnr_db) continue;  // r itself, or its equal
            // Name the most exact one, the smallest of equals: nothing beats that one in turn.
            if (best == nullptr || other.output_sqnr_db > best->output_sqnr_db ||
                (other.output_sqnr_db == best->output_sqnr_db && other.bytes < best->bytes))
                best = &other;
        }
        if (best != nullptr) r.beaten_by = best->name;
    }
}

}  // namespace bench
