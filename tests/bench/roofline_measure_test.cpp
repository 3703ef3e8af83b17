// A small roofline from end to end, and what it says when another process answers wrongly or not at all.
#include "support/catch.hpp"

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "../../bench/roofline/native_eigen.hpp"
#include "../../bench/roofline/roofline.hpp"
#include "../../bench/types.hpp"

namespace {

namespace rl = bench::roofline;
namespace fs = std::filesystem;

rl::settings small() {
    rl::settings s;
    for (const char* name : {"int4_g32", "nf4_double", "q4_k", "bf16"}) s.subjects.push_back(rl::subject_named(name));
    s.classes = {nibble::compute::strict_f32, nibble::compute::f32, nibble::compute::a16, nibble::compute::a8};
    s.batches = {1, 5};
    s.threads = {1, 2};
    s.residencies = {rl::residency::cache};
    s.shapes = {{48, 512}};
    s.kernels = {rl::kernel::product, rl::kernel::prepare};
    s.row_budget = 0.0;
    s.least_samples = 3;
    s.limit_megabytes = 20;
    return s;
}

// A program that stands in for Eigen's: a shell script.
class script {
public:
    explicit script(const std::string& body) {
        path_ = fs::temp_directory_path() / ("nibble_roofline_" + std::to_string(std::rand()) + ".sh");
        std::ofstream(path_) << "#!/bin/sh\n" << body;
        fs::permissions(path_, fs::perms::owner_all);
    }
    ~script() {
        std::error_code ignored;
        fs::remove(path_, ignored);
    }
    [[nodiscard]] std::string name() const { return path_.string(); }

private:
    fs::path path_;
};

// Says that it is done in no time, and that all outputs are 1.
constexpr const char* liar =
    "while read -r what a b c; do\n"
    "  case $what in\n"
    "    load) echo 'ok LIE' ;;\n"
    "    run) echo 'ok 1e-9' ;;\n"
    "    rows) set -- $b $c; out=ok; for i in \"$@\"; do j=0; while [ $j -lt $a ]; do out=\"$out 1\"; j=$((j+1)); done; done\n"
    "          echo \"$out\" ;;\n"
    "  esac\n"
    "done\n";

rl::results run(const rl::settings& s) {
    bench::progress shown;
    return rl::measure(s, shown);
}

}  // namespace

TEST_CASE("every format, class, M and number of threads is measured and right") {
    const rl::settings s = small();
    const rl::results r = run(s);
    CHECK(r.complete);
    CHECK_FALSE(r.any_wrong());
    CHECK(r.notes.empty());
    // products and Eigen; prepare on one thread
    CHECK(r.rows.size() == 4 * 4 * 2 * 2 + 2 * 2 + 4 * 4 * 2);
    for (const rl::row& row : r.rows) {
        CAPTURE(row.format, row.compute, row.m, row.threads, rl::name_of(row.kernel));
        CHECK(row.seconds.size() == 3);
        CHECK(row.median() > 0.0);
        CHECK(row.least() <= row.median());
        CHECK(row.n == 48);
        CHECK(row.k == 512);
        CHECK(row.fraction_of_bandwidth(r.limits) > 0.0);
        const double largest = row.compute == "a8" ? 2e-2 : row.compute == "a16" ? 1e-4 : 1e-5;
        CHECK(row.rel_l2_error < largest);
        CHECK(row.rel_l2_error > 0.0);
        if (row.kernel == rl::kernel::prepare) {
            CHECK(row.threads == 1);
            CHECK(std::isnan(row.fraction_of_peak(r.limits)));
            CHECK(row.bytes == 512.0 * 4.0 * static_cast<double>(row.m));
        } else {
            CHECK(row.fraction_of_peak(r.limits) > 0.0);
            CHECK(row.operations == 2.0 * 48.0 * 512.0 * static_cast<double>(row.m));
        }
        if (row.format == "int4_g32") CHECK(row.integer_sums == (row.kernel == rl::kernel::product && row.compute != "strict_f32"));
        if (row.format == "nf4_double") {
            CHECK_FALSE(row.integer_sums);
            CHECK(row.scale == "double_quantized");
            CHECK(row.group == 64);
        }
        if (row.format == "bf16") CHECK(row.group == 0);
        if (row.format == rl::eigen_format) CHECK(row.bytes == 48.0 * 512.0 * 4.0);
    }
}

TEST_CASE("quantize and dequantize are measured and right") {
    rl::settings s = small();
    s.subjects = {rl::subject_named("int8_per_channel"), rl::subject_named("binary_g128"), rl::subject_named("fp8_block128"),
                  rl::subject_named("mxfp6_e3m2")};
    s.residencies = {rl::residency::dram};
    s.shapes = {{512, 4096}};
    s.kernels = {rl::kernel::quantize, rl::kernel::dequantize};
    const rl::results r = run(s);
    CHECK_FALSE(r.any_wrong());
    CHECK(r.rows.size() == 8);
    for (const rl::row& row : r.rows) {
        CAPTURE(row.format, rl::name_of(row.kernel));
        CHECK(row.seconds.size() == 3);
        CHECK(row.threads == 1);
        CHECK(row.compute == "none");
        CHECK(row.bytes == static_cast<double>(row.n) * 4096.0 * 4.0);
        if (row.kernel == rl::kernel::dequantize) CHECK(row.rel_l2_error == 0.0);
        if (row.kernel == rl::kernel::quantize) CHECK(row.rel_l2_error > 1e-3);
    }
}

TEST_CASE("wrong answers are refused, and their times thrown away") {
    const script program(liar);
    rl::settings s = small();
    s.subjects.resize(1);
    s.native_program = program.name();
    const rl::results r = run(s);
    CHECK(r.any_wrong());
    std::size_t wrong = 0;
    for (const rl::row& row : r.rows) {
        CAPTURE(row.format);
        CHECK(row.wrong.empty() == (row.format != rl::native_eigen_format));
        if (row.wrong.empty()) continue;
        ++wrong;
        CHECK(row.isa == "LIE");
        CHECK(row.seconds.empty());
        CHECK(row.rel_l2_error > 0.1);
    }
    CHECK(wrong == 4);
}

TEST_CASE("a process that is missing, ends, or says something else costs its rows and no more") {
    rl::settings s = small();
    s.subjects.resize(1);
    struct broken {
        std::string body, says;
    };
    for (const broken& b : {broken{"exit 3", "ended with exit code 3"}, broken{"kill -9 $$", "ended by signal 9"},
                            broken{"kill -ILL $$", "compiled for another CPU"},
                            broken{"while read -r x; do echo out of memory; done", "out of memory"},
                            broken{"read -r x; echo ok; read -r x; exit 0", "ended with exit code 0"}}) {
        CAPTURE(b.body);
        const script program(b.body);
        s.native_program = program.name();
        const rl::results r = run(s);
        CHECK_FALSE(r.any_wrong());
        REQUIRE(r.notes.size() == 1);
        CHECK(r.notes[0].find(b.says) != std::string::npos);
        for (const rl::row& row : r.rows) CHECK(row.format != rl::native_eigen_format);
    }
    s.native_program = "/none/such/program";
    const rl::results r = run(s);
    REQUIRE(r.notes.size() == 1);
    CHECK(r.notes[0].find("exit code 127") != std::string::npos);
}

TEST_CASE("nothing to measure is said, not shown as a success") {
    rl::settings s = small();
    s.kernels = {rl::kernel::quantize};
    CHECK_THROWS_AS(run(s), bench::bad_input);
}
