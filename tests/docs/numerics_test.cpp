// docs/numerics.md is true: the table of paths is what the library chooses, the measured errors are measured again and
// stand below the bounds of section 4, and what must not change the bits does not.
//
//   nibble_test_docs_numerics "[measure]"    prints the measured tables as they stand in the document
#include <nibble/nibble.hpp>

#include <Eigen/Core>

#include <algorithm>
#include <bit>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <limits>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#if defined(__SSE2__)
#include <xmmintrin.h>
#endif

#include "support/catch.hpp"

namespace {

using nibble::compute;
using nibble::index;
using cells = std::vector<std::string>;
using rows = std::vector<cells>;

#if defined(NIBBLE_SOURCE_DIR)
const std::string source_dir = NIBBLE_SOURCE_DIR;
#else
const std::string source_dir = std::string(NIBBLE_TEST_DATA_DIR) + "/../..";
#endif

constexpr compute classes[] = {compute::strict_f32, compute::f32, compute::a16, compute::a8};

// The rows of every table of the document, by the first word of its head. "| a | `b` |" is {"a", "b"}.
std::map<std::string, rows> read_tables() {
    std::ifstream file(source_dir + "/docs/numerics.md", std::ios::binary);
    REQUIRE(file.good());
    std::map<std::string, rows> tables;
    rows* table = nullptr;
    for (std::string line; std::getline(file, line);) {
        if (line.empty() || line[0] != '|') {
            table = nullptr;
            continue;
        }
        cells row;
        std::istringstream stream(line.substr(1));
        for (std::string cell; std::getline(stream, cell, '|');) {
            cell.erase(std::remove(cell.begin(), cell.end(), '`'), cell.end());
            const std::size_t first = cell.find_first_not_of(' ');
            row.push_back(first == std::string::npos ? "" : cell.substr(first, cell.find_last_not_of(' ') + 1 - first));
        }
        if (table == nullptr) table = &tables[row.at(0)];
        else if (row.at(0).find("--") == std::string::npos) table->push_back(row);
    }
    return tables;
}

std::string scientific(double x) {
    char text[40];
    std::snprintf(text, sizeof text, "%.1e", x);
    return text;
}

std::string line_of(const cells& row) {
    std::string line = "|";
    for (std::size_t i = 0; i < row.size(); ++i) line += (i == 0 ? " `" : " ") + row[i] + (i == 0 ? "` |" : " |");
    return line;
}

// --- data ------------------------------------------------------------------------------------------------------------

// Sums of four 20-bit numbers of a linear congruential generator: nearly normal, exact floats, the same everywhere.
Eigen::MatrixXf random_matrix(index n, index k, std::uint32_t seed) {
    Eigen::MatrixXf m(n, k);
    std::uint32_t state = seed;
    for (index c = 0; c < k; ++c) {
        for (index r = 0; r < n; ++r) {
            std::int32_t sum = 0;
            for (int i = 0; i < 4; ++i) {
                state = state * 1664525u + 1013904223u;
                sum += static_cast<std::int32_t>(state >> 12) - 524288;
            }
            m(r, c) = static_cast<float>(sum) / 524288.0f;
        }
    }
    return m;
}

const Eigen::MatrixXf& weights() {
    static const Eigen::MatrixXf w = random_matrix(48, 1024, 1);
    return w;
}
const Eigen::MatrixXf& activations() {
    static const Eigen::MatrixXf x = random_matrix(1024, 8, 2);
    return x;
}

// One recipe for each code format, then some with an offset or with scales of two levels.
const std::vector<std::string> measured_recipes = {
    "int8_per_channel", "int6_g64", "int5_g64", "int4_g32", "int3_zero_g64", "int2_zero_g32", "binary_g128", "ternary_twn",
    "nf4", "fp4", "af4", "iq4_nl", "mxfp4", "mxfp6", "mxfp6_e3m2", "fp8_per_channel", "mxfp8_e5m2",
    "fp8_e4m3fnuz_per_channel", "fp8_e5m2fnuz_per_channel", "bf16", "fp16",
    "int4_zero_g128", "int4_min_g64", "int4_hqq_g64", "q4_k", "q2_k", "q6_k", "nf4_double", "nvfp4"};

// --- errors and bounds -------------------------------------------------------------------------------------------------

std::string path_text(const nibble::code_format& f, compute c) {
    const nibble::detail::product_path p = nibble::detail::path_of(f, c);
    if (p.strict) return "fma on weights";
    if (p.digits > 0) return "exact sums, " + std::to_string(p.digits) + (p.digits == 1 ? " digit" : " digits");
    if (p.rounded > 0) return "fma on values, x of " + std::to_string(8 * p.rounded) + " bits";
    return "fma on values";
}

// A quantized matrix in double, as its accessors give it.
struct decoded_matrix {
    explicit decoded_matrix(const nibble::qmatrix& m) : weight(m.rows(), m.cols()), terms(m.rows(), m.cols()) {
        for (index n = 0; n < m.rows(); ++n) {
            for (index k = 0; k < m.cols(); ++k) {
                const index g = k / m.group_size();
                const double s = std::abs(static_cast<double>(m.scale(n, g)));
                const double o = std::abs(static_cast<double>(m.offset(n, g)));
                const double u = static_cast<double>(m.code(n, k));
                weight(n, k) = static_cast<double>(m(n, k));
                terms(n, k) = m.offset_type() == nibble::offset_kind::minimum      ? s * u + o
                              : m.offset_type() == nibble::offset_kind::float_zero ? s * u + s * o
                                                                                   : std::abs(weight(n, k));
            }
        }
    }
    Eigen::MatrixXd weight;  // w
    Eigen::MatrixXd terms;   // T of section 4
};

// Section 4 of the document: what may separate the outputs of one column from the exact product.
Eigen::VectorXd bounds_of(const nibble::qmatrix& w, const Eigen::MatrixXd& terms, const Eigen::VectorXd& x, compute c) {
    const nibble::detail::product_path p = nibble::detail::path_of(w.format(), c);
    const int digits = p.digits + p.rounded;
    const double limit = digits == 1 ? 127.0 : digits == 2 ? 32639.0 : 8355711.0;
    double blocks = 0.0, longest = 0.0;
    Eigen::VectorXd steps(w.cols());  // how far a rounded activation may be from x
    for (index g = 0; g < w.groups(); ++g) {
        const index group_end = std::min(w.cols(), (g + 1) * w.group_size());
        for (index first = g * w.group_size(); first < group_end; first += 256) {
            const index length = std::min<index>(256, group_end - first);
            const double amax = x.segment(first, length).cwiseAbs().maxCoeff();
            const double step = (0.5 + limit * 0x1p-23) * (1.0 + 0x1p-23) * amax / limit;
            steps.segment(first, length).setConstant(digits == 0 ? 0.0 : step);
            blocks += 1.0;
            longest = std::max(longest, static_cast<double>(length));
        }
    }
    const bool offsets = w.offset_type() == nibble::offset_kind::minimum || w.offset_type() == nibble::offset_kind::float_zero;
    double roundings = offsets ? 2.0 * blocks + 5.0 : blocks + 3.0;
    if (p.digits == 0) roundings = longest + blocks + 2.0;
    if (p.strict) roundings = static_cast<double>(w.cols());
    const double gamma = roundings * 0x1p-24 / (1.0 - roundings * 0x1p-24);
    return terms * steps + gamma * (terms * (x.cwiseAbs() + steps));
}

struct measurement {
    double relative = 0.0;          // L2 norm of the error over that of the product
    double largest_of_bound = 0.0;  // largest error / bound
};

measurement measure(const nibble::qmatrix& w, const decoded_matrix& d, compute c) {
    Eigen::MatrixXf y(w.rows(), activations().cols());
    nibble::gemm(w, activations(), y, {.compute = c});
    const Eigen::MatrixXd x = activations().cast<double>();
    const Eigen::MatrixXd exact = d.weight * x;
    const Eigen::MatrixXd error = (y.cast<double>() - exact).cwiseAbs();
    measurement m;
    m.relative = error.norm() / exact.norm();
    for (index j = 0; j < x.cols(); ++j)
        m.largest_of_bound = std::max(m.largest_of_bound, error.col(j).cwiseQuotient(bounds_of(w, d.terms, x.col(j), c)).maxCoeff());
    return m;
}

struct report {
    rows errors;                         // recipe, then the relative error of each class
    std::map<std::string, double> paths; // largest error / bound
};

const report& measured() {
    static const report all = [] {
        report r;
        for (const std::string& name : measured_recipes) {
            const nibble::qmatrix w = nibble::quantize(weights(), name);
            const decoded_matrix d(w);
            r.errors.push_back({name});
            for (const compute c : classes) {
                const measurement m = measure(w, d, c);
                r.errors.back().push_back(scientific(m.relative));
                double& worst = r.paths[path_text(w.format(), c)];
                worst = std::max(worst, m.largest_of_bound);
            }
        }
        return r;
    }();
    return all;
}

bool close(const std::string& a, double b) { return std::abs(std::strtod(a.c_str(), nullptr) - b) <= 0.06 * b; }

// --- columns that go to strict_f32 ---------------------------------------------------------------------------------------

struct column {
    const char* text;
    Eigen::VectorXf x;
};

std::vector<column> columns() {
    const auto ones = [](index at, float value) {
        Eigen::VectorXf x = Eigen::VectorXf::Ones(64);
        x(at) = value;
        return x;
    };
    Eigen::VectorXf alone = Eigen::VectorXf::Zero(64);
    alone(5) = 3.0f;
    Eigen::VectorXf tiny = Eigen::VectorXf::Ones(64);
    tiny.head(32).setConstant(0x1p-100f);
    Eigen::VectorXf small = tiny;
    small.head(32).setConstant(0x1p-80f);
    return {{"ones", ones(0, 1.0f)},
            {"zeros", Eigen::VectorXf::Zero(64)},
            {"ones and a NaN", ones(3, std::numeric_limits<float>::quiet_NaN())},
            {"ones and an Inf", ones(3, std::numeric_limits<float>::infinity())},
            {"ones and 2^14", ones(3, 0x1p14f)},
            {"ones and 2^16", ones(3, 0x1p16f)},
            {"3, the rest zeros", alone},
            {"all 2^-120", Eigen::VectorXf::Constant(64, 0x1p-120f)},
            {"ones, a sub-block of 2^-80", small},
            {"ones, a sub-block of 2^-100", tiny}};
}

rows column_rows() {
    const nibble::qmatrix w = nibble::quantize<nibble::int4_g32>(weights().leftCols(64));
    rows all;
    for (const column& c : columns()) {
        all.push_back({c.text});
        for (const compute k : {compute::f32, compute::a16, compute::a8})
            all.back().push_back(nibble::strict_columns(w, c.x, {.compute = k}) == 1 ? "strict_f32" : "");
    }
    return all;
}

std::vector<std::uint32_t> bits_of(const Eigen::MatrixXf& m) {
    std::vector<std::uint32_t> all;
    for (index c = 0; c < m.cols(); ++c)
        for (index r = 0; r < m.rows(); ++r) all.push_back(std::bit_cast<std::uint32_t>(m(r, c)));
    return all;
}

}  // namespace

TEST_CASE("the table of paths is what the library chooses", "[docs]") {
    const rows shown = read_tables()["format"];
    REQUIRE(shown.size() == nibble::formats().size());
    CHECK(shown.size() == 21);
    for (std::size_t i = 0; i < shown.size(); ++i) {
        const nibble::code_format& f = *nibble::formats()[i];
        cells wanted = {f.name};
        for (const compute c : classes) wanted.push_back(path_text(f, c));
        INFO("should be\n" << line_of(wanted));
        CHECK(shown[i] == wanted);
    }
}

TEST_CASE("the measured errors are measured again", "[docs]") {
    std::map<std::string, rows> tables = read_tables();
    const rows& shown = tables["recipe"];
    REQUIRE(shown.size() == measured().errors.size());
    CHECK(shown.size() == 29);
    for (const nibble::code_format* f : nibble::formats()) {
        INFO(f->name << " is not measured");
        CHECK(std::any_of(measured_recipes.begin(), measured_recipes.end(),
                          [&](const std::string& name) { return nibble::find_recipe(name)->format == f; }));
    }
    for (std::size_t i = 0; i < shown.size(); ++i) {
        const cells& wanted = measured().errors[i];
        INFO("should be\n" << line_of(wanted));
        REQUIRE(shown[i].size() == wanted.size());
        CHECK(shown[i][0] == wanted[0]);
        for (std::size_t c = 1; c < wanted.size(); ++c) CHECK(close(shown[i][c], std::strtod(wanted[c].c_str(), nullptr)));
    }
    const rows& paths = tables["path"];
    REQUIRE(paths.size() == measured().paths.size());
    CHECK(paths.size() == 7);
    for (const cells& row : paths) {
        INFO(line_of(row));
        const auto found = measured().paths.find(row.at(0));
        REQUIRE(found != measured().paths.end());
        INFO("measured " << scientific(found->second));
        CHECK(close(row.back(), found->second));
        CHECK(found->second < 1.0);    // the bound holds
        CHECK(found->second > 0.001);  // and says something
    }
}

TEST_CASE("the measured tables", "[.][measure]") {
    for (const cells& row : measured().errors) std::printf("%s\n", line_of(row).c_str());
    for (const auto& [path, worst] : measured().paths) std::printf("| %s | ... | %s |\n", path.c_str(), scientific(worst).c_str());
    for (const cells& row : column_rows()) std::printf("%s\n", line_of(row).c_str());
    CHECK(measured().errors.size() == measured_recipes.size());
}

TEST_CASE("the columns that go to strict_f32 are those of the table", "[docs]") {
    const rows shown = read_tables()["column"];
    const rows wanted = column_rows();
    REQUIRE(shown.size() == wanted.size());
    CHECK(shown.size() == 10);
    for (std::size_t i = 0; i < shown.size(); ++i) {
        INFO("should be\n" << line_of(wanted[i]));
        CHECK(shown[i] == wanted[i]);
    }
}

TEST_CASE("level, batch, rounding mode and flushing change no bit", "[docs]") {
    const nibble::isa before = nibble::active_isa();
    std::size_t compared = 0;
    for (const std::string& name : measured_recipes) {
        const nibble::qmatrix w = nibble::quantize(weights(), name);
        const auto same_matrix = [&](const nibble::qmatrix& other) {
            return other.memory_bytes() == w.memory_bytes() && std::memcmp(other.data(), w.data(), w.memory_bytes()) == 0;
        };
        for (const compute c : classes) {
            INFO(name << ", " << nibble::name_of(c));
            const auto product = [&](const Eigen::MatrixXf& x) {
                Eigen::MatrixXf y(w.rows(), x.cols());
                nibble::gemm(w, x, y, {.compute = c});
                return bits_of(y);
            };
            const std::vector<std::uint32_t> wanted = product(activations());
            for (const nibble::isa level : nibble::compiled_isas()) {
                if (!nibble::is_supported(level)) continue;
                nibble::set_active_isa(level);
                CHECK(product(activations()) == wanted);
                ++compared;
            }
            nibble::set_active_isa(before);
            std::vector<std::uint32_t> one_by_one;
            for (nibble::index j = 0; j < activations().cols(); ++j)
                for (const std::uint32_t u : product(activations().col(j))) one_by_one.push_back(u);
            CHECK(one_by_one == wanted);

            std::fesetround(FE_UPWARD);
            const std::vector<std::uint32_t> upward = product(activations());
            const bool quantized_upward = same_matrix(nibble::quantize(weights(), name));
            std::fesetround(FE_TONEAREST);
            CHECK(upward == wanted);
            CHECK(quantized_upward);
#if defined(__SSE2__)
            const unsigned control = _mm_getcsr();
            _mm_setcsr(control | 0x8040u);  // FTZ and DAZ
            const std::vector<std::uint32_t> flushing = product(activations());
            const bool quantized_flushing = same_matrix(nibble::quantize(weights(), name));
            _mm_setcsr(control);
            CHECK(flushing == wanted);
            CHECK(quantized_flushing);
#endif
            compared += 3;
        }
    }
    CHECK(compared >= measured_recipes.size() * 4 * 4);
}
