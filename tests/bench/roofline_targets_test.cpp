// Which rows have to reach what, with limits and times that are made up here.
#include "support/catch.hpp"

#include <algorithm>
#include <string>

#include "../../bench/roofline/targets.hpp"

namespace {

namespace rl = bench::roofline;

rl::limits made_up_limits() {
    rl::limits l;
    l.read_gbytes_per_s = {{1, 10.0}, {2, 16.0}};
    l.cache_read_gbytes_per_s = {{1, 40.0}, {2, 60.0}};
    l.fill_gbytes_per_s = {{1, 8.0}, {2, 12.0}};
    l.f32_gflops = {{1, 100.0}, {2, 200.0}};
    l.int8_gops = {{1, 400.0}, {2, 800.0}};
    return l;
}

// An int4 g32 a8 product at M = 1 from memory, one thread; 1e9 operations and 1e9 bytes, in `seconds`.
rl::row made_up_row(double seconds) {
    rl::row r;
    r.format = "int4_g32";
    r.group = 32;
    r.scale = "f16";
    r.offset = "none";
    r.compute = "a8";
    r.isa = "avx2";
    r.n = r.shape_n = r.k = 4096;
    r.m = 1;
    r.code = "int4";
    r.rule = "absmax";
    r.bits = 4;
    r.integer_sums = true;
    r.operations = 1e9;
    r.bytes = 1e9;
    r.seconds = {seconds, seconds, seconds};
    return r;
}

rl::evaluation evaluate(std::initializer_list<rl::row> rows, rl::results& keep) {
    keep.limits = made_up_limits();
    keep.rows.assign(rows.begin(), rows.end());
    return rl::evaluate(keep);
}

// What a row alone has to reach of `limit` (a rate): 0 if nothing. From the miss of a row that is far too slow.
double wanted(rl::row r, std::size_t targets = 1) {
    r.seconds = {1e3, 1e3, 1e3};
    rl::results keep;
    const rl::evaluation e = evaluate({r}, keep);
    CHECK(e.checked == e.misses.size());
    if (e.misses.empty()) return 0.0;
    CHECK(e.misses.size() == targets);
    return e.misses.front().wanted;
}

// Whether the row meets its target at a rate (GB/s or GFLOP/s; both are 1e9 here).
bool meets(rl::row r, double rate) {
    r.seconds = {1.0 / rate, 1.0 / rate, 1.0 / rate};
    rl::results keep;
    const rl::evaluation e = evaluate({r}, keep);
    REQUIRE(e.checked == 1);
    return e.misses.empty();
}

}  // namespace

TEST_CASE("products with one column have to reach a part of the bandwidth") {
    rl::row r = made_up_row(1.0);
    CHECK(wanted(r) == Approx(0.90));
    CHECK(meets(r, 9.01));
    CHECK_FALSE(meets(r, 8.99));

    for (const char* compute : {"a16", "f32"}) {
        r.compute = compute;
        CHECK(wanted(r) == Approx(0.90));
    }
    r.compute = "strict_f32";
    CHECK(wanted(r) == 0.0);

    r = made_up_row(1.0);
    r.residency = rl::residency::cache;
    CHECK(wanted(r) == Approx(0.60));
    CHECK(meets(r, 24.1));  // of 40: the other bandwidth
    CHECK_FALSE(meets(r, 23.9));
    r.compute = "f32";
    CHECK(wanted(r) == Approx(0.40));
    r.code = "int8";
    CHECK(wanted(r) == Approx(0.50));
    r.compute = "a8";
    CHECK(wanted(r) == Approx(0.75));
}

TEST_CASE("tables, fp8, K-quants and offsets at one column") {
    rl::row r = made_up_row(1.0);
    r.compute = "f32";
    r.code = "nf4";
    r.decode = nibble::decode_class::table;
    CHECK(wanted(r) == Approx(0.75));
    r.compute = "a8";
    CHECK(wanted(r) == 0.0);
    r.compute = "f32";
    r.code = "fp8_e4m3";
    r.bits = 8;
    CHECK(wanted(r) == Approx(0.75));
    r.code = "fp6_e2m3";
    r.bits = 6;
    CHECK(wanted(r) == 0.0);

    r = made_up_row(1.0);
    r.scale = "two_level";
    r.offset = "minimum";
    CHECK(wanted(r) == Approx(0.90));
    r.offset = "zero_point";
    CHECK(wanted(r) == Approx(0.90));
    r.bits = 1;
    CHECK(wanted(r) == 0.0);
}

TEST_CASE("few columns and many columns") {
    rl::row r = made_up_row(1.0);
    r.m = 2;
    CHECK(wanted(r) == Approx(0.90));
    r.m = 4;
    CHECK(wanted(r) == Approx(0.80));
    r.m = 8;
    CHECK(wanted(r) == 0.0);

    r.m = 16;
    CHECK(wanted(r) == Approx(0.512));  // from memory: 80 % of 64 %
    r.residency = rl::residency::cache;
    CHECK(wanted(r) == Approx(0.64));
    CHECK(meets(r, 257.0));  // of 400: the peak of integers
    CHECK_FALSE(meets(r, 255.0));
    r.group = 128;
    CHECK(wanted(r) == Approx(0.82));
    r.group = 0;
    CHECK(wanted(r) == Approx(0.88));
    r.group = 128;
    r.compute = "f32";
    CHECK(wanted(r) == Approx(0.27));

    struct expected {
        const char* code;
        nibble::index group;
        const char* compute;
        double wanted;
    };
    for (const expected& e :
         {expected{"int4", 32, "a8", 0.63}, expected{"int4", 128, "a8", 0.81}, expected{"int4", 0, "a8", 0.87},
          expected{"int8", 0, "a8", 0.85}, expected{"int8", 32, "a8", 0.62}, expected{"int4", 32, "a16", 0.39},
          expected{"int8", 128, "a16", 0.42}, expected{"int8", 32, "f32", 0.24}, expected{"int4", 128, "f32", 0.29},
          expected{"int4", 64, "a8", 0.0}, expected{"int6", 32, "a8", 0.0}}) {
        CAPTURE(e.code, e.group, e.compute);
        rl::row at = made_up_row(1.0);
        at.m = 512;
        at.code = e.code;
        at.group = e.group;
        at.compute = e.compute;
        for (const rl::residency from : {rl::residency::dram, rl::residency::cache}) {
            at.residency = from;
            CHECK(wanted(at) == Approx(e.wanted));
        }
    }
    rl::row k = made_up_row(1.0);
    k.m = 512;
    k.code = "int6";
    k.scale = "two_level";
    k.group = 16;
    CHECK(wanted(k) == Approx(0.50));
    k.group = 32;
    CHECK(wanted(k) == Approx(0.60));
}

TEST_CASE("float products are held against the fp32 peak and Eigen") {
    rl::row r = made_up_row(1.0);
    r.m = 512;
    r.compute = "strict_f32";
    r.integer_sums = false;
    CHECK(wanted(r) == Approx(0.75));
    CHECK(meets(r, 75.1));
    CHECK_FALSE(meets(r, 74.9));

    rl::row eigen;
    eigen.format = rl::native_eigen_format;
    eigen.compute = "f32";
    eigen.n = 512;  // less of the same shape: float weights are larger
    eigen.shape_n = eigen.k = 4096;
    eigen.m = 512;
    eigen.operations = 1e9;
    eigen.seconds = {1.0 / 90.0, 1.0 / 90.0, 1.0 / 90.0};
    r.seconds = {1.0 / 80.0, 1.0 / 80.0, 1.0 / 80.0};
    rl::results keep;
    rl::evaluation e = evaluate({r, eigen}, keep);
    CHECK(e.checked == 2);
    REQUIRE(e.misses.size() == 1);
    CHECK(e.misses[0].got == Approx(80.0 / 90.0));
    CHECK(e.misses[0].wanted == 1.0);
    eigen.threads = 2;  // no comparison
    CHECK(evaluate({r, eigen}, keep).checked == 1);
}

TEST_CASE("two threads are held against the limits of two, less 5 points") {
    rl::row r = made_up_row(1.0);
    r.threads = 2;
    CHECK(wanted(r) == Approx(0.85));
    CHECK(meets(r, 13.7));  // of 16
    CHECK_FALSE(meets(r, 13.5));
    r.threads = 3;  // nobody measured the limits of three
    rl::results keep;
    CHECK(evaluate({r}, keep).checked == 0);
}

TEST_CASE("quantize and dequantize") {
    rl::row r = made_up_row(1.0);
    r.kernel = rl::kernel::quantize;
    r.compute = "none";
    r.m = 0;
    r.operations = 0.0;
    CHECK(wanted(r) == Approx(0.80));
    r.rule = "zero_point";
    CHECK(wanted(r) == Approx(0.80));
    r.one_scale = true;
    CHECK(wanted(r) == Approx(0.40));
    r.rule = "a search";
    CHECK(wanted(r) == 0.0);
    r.code = "fp8_e4m3";
    CHECK(wanted(r) == Approx(0.30));
    r.one_scale = false;
    CHECK(wanted(r) == Approx(0.60));
    r.code = "nf4";
    CHECK(wanted(r) == Approx(0.60));

    r.kernel = rl::kernel::dequantize;
    CHECK(wanted(r) == Approx(0.85));
    CHECK(meets(r, 6.9));  // of the 8 GB/s of a fill
    CHECK_FALSE(meets(r, 6.7));
}

TEST_CASE("preparing costs no more than 3 % of the product at one column") {
    rl::row prepare = made_up_row(0.0031);
    prepare.kernel = rl::kernel::prepare;
    prepare.residency = rl::residency::cache;
    prepare.operations = 0.0;
    const rl::row product = made_up_row(0.1);  // meets its own target
    rl::results keep;
    rl::evaluation e = evaluate({prepare, product}, keep);
    CHECK(e.checked == 2);
    REQUIRE(e.misses.size() == 1);
    CHECK(e.misses[0].of == &keep.rows[0]);
    CHECK(e.misses[0].at_most);
    CHECK(e.misses[0].got == Approx(0.031));
    prepare.seconds = {0.0029};
    CHECK(evaluate({prepare, product}, keep).misses.empty());
    prepare.k = 11008;  // only at 4096 x 4096
    CHECK(evaluate({prepare, product}, keep).checked == 1);
}

TEST_CASE("more columns take no less time, and lose no GFLOP/s") {
    const auto at = [](nibble::index m, double seconds) {
        rl::row r = made_up_row(seconds);
        r.code = "int5";  // a series without other targets but at one column
        r.bits = 1;
        r.m = m;
        r.operations = 1e9 * static_cast<double>(m);
        return r;
    };
    rl::results keep;
    CHECK(evaluate({at(8, 1.0), at(16, 2.0)}, keep).misses.empty());
    CHECK(evaluate({at(8, 1.0), at(16, 2.1)}, keep).misses.empty());  // 4.8 % fewer GFLOP/s
    rl::evaluation e = evaluate({at(16, 2.2), at(8, 1.0)}, keep);    // in any order
    REQUIRE(e.misses.size() == 1);
    CHECK(e.misses[0].of->m == 16);
    CHECK(e.misses[0].got == Approx(2.0 / 2.2));
    e = evaluate({at(8, 1.0), at(16, 0.9)}, keep);
    REQUIRE(e.misses.size() == 1);
    CHECK(e.misses[0].of->m == 8);
    CHECK(e.misses[0].at_most);
    // Neighbours in the series only, and nothing beyond 64.
    CHECK(evaluate({at(8, 1.0), at(16, 2.0), at(32, 4.0)}, keep).checked == 4);
    CHECK(evaluate({at(64, 1.0), at(128, 9.0)}, keep).checked == 0);
    // Within the confidence intervals anything goes.
    rl::row noisy = at(16, 2.2);
    noisy.seconds = {1.7, 2.2, 2.7};
    CHECK(evaluate({at(8, 1.0), noisy}, keep).misses.empty());
    // Another series.
    rl::row other = at(16, 0.5);
    other.compute = "a16";
    CHECK(evaluate({at(8, 1.0), other}, keep).checked == 0);
}

TEST_CASE("wrong rows and Eigen's have no targets") {
    rl::results keep;
    rl::row r = made_up_row(1e3);
    r.wrong = "relative error";
    CHECK(evaluate({r}, keep).checked == 0);
    rl::row eigen = made_up_row(1e3);
    eigen.format = rl::eigen_format;
    eigen.code.clear();
    CHECK(evaluate({eigen}, keep).checked == 0);
    CHECK(evaluate({}, keep).checked == 0);
}

TEST_CASE("every target is a part of its limit, and has a name of its own") {
    for (const rl::target& t : rl::targets()) {
        CAPTURE(t.work);
        CHECK(t.wanted > 0.0);
        CHECK(t.wanted < 1.0);
        CHECK(std::count_if(rl::targets().begin(), rl::targets().end(),
                            [&t](const rl::target& other) { return std::string(other.work) == t.work; }) == 1);
    }
}
