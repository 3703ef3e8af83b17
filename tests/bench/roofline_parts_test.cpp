// What a roofline is made of: probes, threads, turns, copies of matrices, float products, the plan.
#include "support/catch.hpp"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstring>
#include <set>

#include "../../bench/check.hpp"
#include "../../bench/data.hpp"
#include "../../bench/roofline/float_product.hpp"
#include "../../bench/roofline/interleave.hpp"
#include "../../bench/roofline/limits.hpp"
#include "../../bench/roofline/plan.hpp"

namespace {

namespace rl = bench::roofline;
using Eigen::Index;

}  // namespace

TEST_CASE("probes of every supported level read every byte and compute") {
    std::vector<unsigned char> bytes(4096 + 1);
    for (std::size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<unsigned char>(i * 7);
    for (const nibble::isa level : nibble::compiled_isas()) {
        CAPTURE(nibble::name_of(level));
        const bench::probe_set* p = rl::probes_of(level);
        REQUIRE(p != nullptr);
        CHECK(p->f32_ops > 0.0);
        CHECK(p->int8_ops > 0.0);
        if (!nibble::is_supported(level)) continue;
        for (const std::size_t ahead : {std::size_t{0}, std::size_t{512}}) {
            for (unsigned char* first : {bytes.data(), bytes.data() + 1}) {  // no alignment is needed
                const std::uint64_t before = p->read(first, 4096, ahead);
                for (std::size_t i = 0; i < 4096; ++i) {
                    first[i] ^= 1;
                    if (p->read(first, 4096, ahead) == before) FAIL("byte " << i << " is not read");
                    first[i] ^= 1;
                }
                CHECK(p->read(first, 4096, ahead) == before);
            }
        }
        CHECK(std::isfinite(p->f32(1000)));
        CHECK(p->int8(3) == p->int8(3));
    }
    CHECK(nibble::is_supported(rl::best_supported_isa()));
}

#if defined(__x86_64__) && defined(__GNUC__)
TEST_CASE("probes run no more than two instructions in a cycle") {
    // More would mean that the compiler merged sums that are alike. The least of many short times: other programs may run.
    const auto seconds = [](auto&& work) {
        const auto start = std::chrono::steady_clock::now();
        work();
        return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    };
    constexpr std::int64_t rounds = 20000;
    struct width {
        nibble::isa level;
        double bytes;
    };
    for (const width& w : {width{nibble::isa::avx2, 32.0}, width{nibble::isa::avxvnni, 32.0}, width{nibble::isa::avx512, 64.0},
                           width{nibble::isa::avx512vnni, 64.0}}) {
        if (!nibble::is_supported(w.level)) continue;
        CAPTURE(nibble::name_of(w.level));
        const bench::probe_set* p = rl::probes_of(w.level);
        volatile double sink = 0.0;
        double adds = 1e9;
        double f32 = 1e9;
        double int8 = 1e9;
        for (int i = 0; i < 500; ++i) {
            // Each addition waits for the one before, a cycle.
            adds = (std::min)(adds, seconds([] {
                                  std::uint64_t sum = 0;
                                  for (std::int64_t k = 0; k < rounds; ++k) __asm__ volatile("add $1, %0\n\tadd $1, %0" : "+r"(sum));
                              }));
            f32 = (std::min)(f32, seconds([&] { sink = static_cast<double>(p->f32(rounds)); }));
            int8 = (std::min)(int8, seconds([&] { sink = static_cast<double>(p->int8(rounds)); }));
        }
        const double cycle = adds / (2.0 * rounds);
        CHECK(p->f32_ops * rounds / (f32 / cycle) / (w.bytes / 4.0 * 2.0) < 2.3);
        CHECK(p->int8_ops * rounds / (int8 / cycle) / (w.bytes * 2.0) < 2.3);
        CHECK(sink == sink);
    }
}
#endif

TEST_CASE("limits are measured for each number of threads") {
    bench::thread_pool one(1), two(2);
    rl::limit_meter meter(nibble::active_isa(), {&one, &two}, 32);
    meter.measure();
    const rl::limits l = meter.result();
    for (const auto* rates : {&l.read_gbytes_per_s, &l.cache_read_gbytes_per_s, &l.fill_gbytes_per_s, &l.f32_gflops, &l.int8_gops}) {
        REQUIRE(rates->size() == 2);
        for (const int threads : {1, 2}) {
            CHECK(rates->at(threads) > 0.01);
            CHECK(rates->at(threads) < 1e5);
        }
    }
    CHECK(l.int8_gops.at(1) > 0.5 * l.f32_gflops.at(1));
}

TEST_CASE("a pool runs a job once on each thread, and every task once") {
    for (const int threads : {1, 2, 3}) {
        bench::thread_pool pool(threads);
        CHECK(pool.size() == threads);
        for (int round = 0; round < 200; ++round) {
            std::vector<int> calls(static_cast<std::size_t>(threads));
            pool.on_each([&](int thread) { ++calls[static_cast<std::size_t>(thread)]; });
            if (std::count(calls.begin(), calls.end(), 1) != threads) FAIL("round " << round);
        }
        std::vector<std::atomic<int>> done(1000);
        pool.parallel_for(1000, [&](std::ptrdiff_t i) { done[static_cast<std::size_t>(i)].fetch_add(1); });
        CHECK(std::all_of(done.begin(), done.end(), [](const std::atomic<int>& d) { return d.load() == 1; }));
        pool.parallel_for(0, [](std::ptrdiff_t) { FAIL("there is no task"); });
    }
}

TEST_CASE("contenders take turns until each has had its share") {
    std::vector<double> quick, slow;
    std::vector<char> order;
    const std::vector<rl::contender> contenders = {
        {"quick", [&](int calls) { order.push_back('q'); return 0.001 * calls; }, &quick},
        {"slow", [&](int calls) { order.push_back('s'); return 1.0 * calls; }, &slow},
    };
    bench::progress shown;
    std::mt19937 random(1);
    rl::interleave(contenders, {0.0, 4, 50, 0.01}, random, shown, "test");
    CHECK(quick == std::vector<double>(4, 0.001));  // of one call
    CHECK(slow == std::vector<double>(4, 1.0));
    REQUIRE(order.size() == 10);  // the first of each is not counted
    for (std::size_t i = 2; i < order.size(); i += 2) CHECK(order[i] != order[i + 1]);

    // The most samples, whatever the budget.
    quick.clear();
    rl::interleave({contenders[0]}, {1e9, 4, 7, 0.01}, random, shown, "test");
    CHECK(quick.size() == 7);
}

TEST_CASE("copies of a quantized block are that block again and again, in memory of their own") {
    const bench::row_matrix weights = bench::normal_matrix(rl::replicator::block_rows, 320, 0.02f, 7);
    for (const rl::subject& s : rl::default_subjects()) {
        CAPTURE(s.name);
        const rl::replicator maker(s, weights);
        const nibble::qmatrix direct = nibble::quantize(weights, s.plan);
        const nibble::qmatrix same = maker.make(rl::replicator::block_rows);
        REQUIRE(same.memory_bytes() == direct.memory_bytes());
        CHECK(same.data() != maker.block().data());
        CHECK(std::memcmp(same.data(), direct.data(), direct.memory_bytes()) == 0);
        CHECK(same.exponent() == direct.exponent());
        CHECK(same.tensor_scale() == direct.tensor_scale());
        CHECK(same.bytes() == direct.bytes());
        for (const Index rows : {16, 300, 512}) {
            const nibble::qmatrix q = maker.make(rows);
            REQUIRE(q.rows() == rows);
            bool equal = true;
            for (Index n = 0; n < rows; n += 7)
                for (Index k = 0; k < 320; k += 11) equal = equal && q(n, k) == direct(n % rl::replicator::block_rows, k);
            CHECK(equal);
        }
    }
}

TEST_CASE("without --format every code format is measured, and what has targets") {
    std::set<std::string> codes, names;
    for (const rl::subject& s : rl::default_subjects()) {
        codes.insert(s.plan.format->name);
        CHECK(names.insert(s.name).second);
    }
    for (const nibble::code_format* f : nibble::formats()) {
        CAPTURE(f->name);
        CHECK(codes.count(f->name) == 1);
    }
    for (const char* name : {"int4_g32", "int4_g128", "int4_per_channel", "int8_per_channel", "int8_g32", "q4_k", "q6_k", "nf4_double"})
        CHECK(names.count(name) == 1);
    CHECK(rl::subject_named("nf4").plan.group.cols == 64);
    CHECK(rl::subject_named("int8").name == "int8_per_channel");
    CHECK_THROWS_AS(rl::subject_named("q9"), bench::bad_input);
}

TEST_CASE("float products are right on every number of threads, for every copy") {
    bench::row_matrix w(37, 50);
    for (Index i = 0; i < 37; ++i)
        for (Index k = 0; k < 50; ++k) w(i, k) = rl::number_at(rl::weight_seed, static_cast<std::uint64_t>(i * 50 + k));
    Eigen::MatrixXf x(50, 5);
    for (Index i = 0; i < x.size(); ++i) x.data()[i] = rl::number_at(rl::activation_seed, static_cast<std::uint64_t>(i));
    CHECK(w.cwiseAbs().maxCoeff() <= 1.0f);
    CHECK(w.cwiseAbs().minCoeff() < 0.1f);
    CHECK(std::abs(w.mean()) < 0.1f);
    const Eigen::MatrixXd y = bench::reference_product(w, x);
    for (const int threads : {1, 2, 3}) {
        bench::thread_pool pool(threads);
        rl::float_product product({37, 50, 5, 3}, pool);
        for (const Index m : {1, 5, 2, 4}) {
            CHECK(product.run(m, 1, m == 2) >= 0.0);
            for (Index j = 0; j < m; ++j)
                for (Index i = 0; i < 37; ++i) CHECK(static_cast<double>(product.y(i, j)) == Approx(y(i, j)).margin(1e-5));
        }
    }
}

TEST_CASE("memory and cache sizes") {
    CHECK(rl::copies_from_memory(128e6) == 1);
    CHECK(rl::copies_from_memory(127e6) == 2);
    CHECK(rl::copies_from_memory(9e6) * 9e6 >= 128e6);
    CHECK(rl::cached_rows(4096, 4096.0) == 2048);
    CHECK(rl::cached_rows(4096, 2304.0) == 3632);  // q4_k, K = 4096
    CHECK(rl::cached_rows(100, 10.0) == 100);
    CHECK(rl::cached_rows(100, 1e9) == 16);
    for (const double bytes : {700.0, 2304.0, 16384.0}) CHECK(static_cast<double>(rl::cached_rows(65536, bytes)) * bytes <= 8.0 * 1048576.0);
}

TEST_CASE("the plan has all that was asked for once, formats together that fit in memory") {
    rl::settings s;
    s.subjects = rl::default_subjects();
    s.classes = {nibble::compute::a8};
    s.batches = {1, 512};
    s.threads = {1, 2};
    s.residencies = {rl::residency::dram, rl::residency::cache};
    s.shapes = {{4096, 4096}, {4096, 11008}};
    s.kernels = {rl::kernel::product, rl::kernel::quantize, rl::kernel::dequantize, rl::kernel::prepare};
    const std::vector<rl::station> plan = rl::plan_run(s);
    std::map<rl::kernel, std::size_t> rows;
    for (const rl::station& at : plan) {
        CHECK(at.last > at.first);
        rows[at.kernel] += at.last - at.first;
        CHECK(rl::expected_seconds(at, s, 100.0) > 0.0);
        if (at.kernel != rl::kernel::product) CHECK(at.threads == 1);
    }
    const std::size_t formats = s.subjects.size();
    CHECK(rows[rl::kernel::product] == formats * 2 * 2 * 2 * 2);
    CHECK(rows[rl::kernel::quantize] == formats * 2);
    CHECK(rows[rl::kernel::dequantize] == formats * 2);
    CHECK(rows[rl::kernel::prepare] == formats * 2 * 2);
    CHECK(plan.front().last > plan.front().first + 3);  // some together
    CHECK(plan.front().last < formats);                 // but not all

    s.residencies = {rl::residency::cache};
    s.kernels = {rl::kernel::quantize};
    CHECK(rl::plan_run(s).empty());
}
