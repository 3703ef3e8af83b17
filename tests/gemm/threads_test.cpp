// Threads change no bit: executors of several threads, and several threads that call at once. Run it under the preset
// tsan, too.
#include <nibble/nibble.hpp>

#include <array>
#include <string>
#include <thread>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/reference.hpp"
#include "support/spawning.hpp"

using Eigen::MatrixXf;
using nibble::compute;
using nibble::qmatrix;
using reference::tally;
using Index = nibble::index;

namespace {

constexpr std::array<compute, 4> classes = {compute::strict_f32, compute::f32, compute::a16, compute::a8};

/// Every fourth column goes to strict_f32 in class f32.
MatrixXf activations(Index k, Index m, std::uint64_t stream) {
    MatrixXf x = data::matrix(k, m, stream);
    for (Index j = 3; j < m; j += 4) x(k / 2, j) = j % 8 == 3 ? 0x1p26f : reference::float_from_bits(0x7fc12345u);
    return x;
}

}  // namespace

TEST_CASE("any number of threads gives the bits of one", "[gemm][threads]") {
    tally t;
    std::size_t products = 0;
    for (const char* name : {"int4_g32", "int8_per_channel", "q4_k", "nf4"}) {
        for (const Index n : {1, 16, 17, 33, 200}) {
            const qmatrix w = nibble::quantize(data::matrix(n, 256, static_cast<std::uint64_t>(n)), name);
            for (const Index m : {1, 2, 3, 8, 15, 16, 17, 70}) {
                const MatrixXf x = activations(256, m, static_cast<std::uint64_t>(100 + m));
                const Eigen::VectorXf bias = data::matrix(n, 1, 5);
                for (const compute c : classes) {
                    ++products;
                    nibble::gemm_options options{.compute = c, .bias = bias, .accumulate = true};
                    const MatrixXf before = data::matrix(n, m, 6);
                    MatrixXf wanted = before;
                    for (Index j = 0; j < m; ++j) nibble::gemm(w, x.col(j), wanted.col(j), options);  // one thread, one by one
                    nibble::workspace scratch;
                    options.workspace = &scratch;
                    for (int threads = 1; threads <= 5; ++threads) {
                        auto executor = nibble::make_executor(threads, spawning{threads});
                        options.executor = &executor;
                        MatrixXf y = before;
                        nibble::gemm(w, x, y, options);
                        t.check(data::bits_differing(y, wanted) == 0, [&] {
                            return std::string(name) + " " + nibble::name_of(c) + ", " + std::to_string(n) + "x256 x " + std::to_string(m) + ", " +
                                   std::to_string(threads) + " threads";
                        });
                    }
                }
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(products == 4 * 5 * 8 * 4);
    CHECK(t.cases() == products * 5);
}

TEST_CASE("every level with two threads", "[gemm][threads]") {
    tally t;
    auto executor = nibble::make_executor(2, spawning{2});
    std::size_t count = 0;
    for (const nibble::recipe& r : nibble::recipes()) {
        ++count;
        const qmatrix w = nibble::quantize(data::matrix(67, 256, count), r.name);
        const MatrixXf x = activations(256, 9, 200 + count);
        for (const compute c : classes) {
            MatrixXf wanted(67, 9);
            nibble::gemm(w, x, wanted, {.compute = c});
            const nibble::prepared_activations a = nibble::prepare(w, x, c);
            for_each_isa([&](nibble::isa level) {
                MatrixXf y(67, 9);
                Eigen::Matrix<Eigen::half, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> h(67, 9);  // rows of 18 bytes
                nibble::gemm(w, x, y, {.compute = c, .executor = &executor});
                t.check(data::bits_differing(y, wanted) == 0, [&] { return std::string(r.name) + " " + nibble::name_of(c) + " at " + nibble::name_of(level); });
                y.setZero();
                nibble::gemm(w, a, y, {.compute = c, .executor = &executor});
                t.check(data::bits_differing(y, wanted) == 0, [&] { return std::string(r.name) + " prepared, " + nibble::name_of(c); });
                nibble::gemm(w, x, h, {.compute = c, .executor = &executor});
                Index wrong = 0;
                for (Index j = 0; j < 9; ++j)
                    for (Index n = 0; n < 67; ++n) wrong += h(n, j).x != nibble::float_to_fp16(wanted(n, j)) ? 1 : 0;
                t.check(wrong == 0, [&] { return std::string(r.name) + " to halves, " + nibble::name_of(c); });
            });
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == count * 4 * 3 * supported_isas().size());
    CHECK(count >= 52);
}

TEST_CASE("several threads call at once with one matrix and one X", "[gemm][threads]") {
    const qmatrix w = nibble::quantize(data::matrix(100, 512, 1), "int4_g32");
    const MatrixXf x = activations(512, 12, 2);
    const nibble::prepared_activations a = nibble::prepare(w, x);
    for (const compute c : classes) {
        MatrixXf wanted(100, 12);
        nibble::gemm(w, x, wanted, {.compute = c});
        constexpr std::size_t callers = 4;
        std::vector<int> wrong(callers, -1);
        std::vector<std::thread> threads;
        for (std::size_t i = 0; i < callers; ++i)
            threads.emplace_back([&, i] {
                auto own = nibble::make_executor(2, spawning{2});
                nibble::workspace scratch;
                int bad = 0;
                for (int round = 0; round < 8; ++round) {
                    MatrixXf y(100, 12);
                    nibble::gemm(w, x, y, {.compute = c, .workspace = &scratch, .executor = i % 2 == 0 ? &own : nullptr});
                    bad += data::bits_differing(y, wanted) != 0 ? 1 : 0;
                    if (c != compute::f32) continue;
                    nibble::gemm(w, a, y, {.workspace = &scratch});
                    bad += data::bits_differing(y, wanted) != 0 ? 1 : 0;
                    bad += data::bits_differing(w * x, wanted) != 0 ? 1 : 0;
                }
                wrong[i] = bad;
            });
        for (std::thread& t : threads) t.join();
        CHECK(wrong == std::vector<int>(callers, 0));
    }
}

TEST_CASE("threads write disjoint parts of one output", "[gemm][threads]") {
    // The columns of one Y, and the rows of one Y by views of one matrix, from two threads without a lock between them.
    const qmatrix w = nibble::quantize(data::matrix(64, 256, 3), "int4_g32");
    const MatrixXf x = activations(256, 10, 4);
    const MatrixXf wanted = w * x;
    MatrixXf y(64, 10);
    std::thread left([&] { nibble::gemm(w, x.leftCols(5), y.leftCols(5)); });
    nibble::gemm(w, x.rightCols(5), y.rightCols(5));
    left.join();
    CHECK(data::bits_differing(y, wanted) == 0);
}

TEST_CASE("products inside a task of the same executor", "[gemm][threads]") {
    const qmatrix w = nibble::quantize(data::matrix(50, 128, 5), "int4_g32");
    const MatrixXf x = activations(128, 6, 6);
    const MatrixXf wanted = w * x;
    auto executor = nibble::make_executor(3, spawning{3});
    std::vector<MatrixXf> y(6, MatrixXf(50, 6));
    executor.parallel_for(6, [&](Index i) { nibble::gemm(w, x, y[static_cast<std::size_t>(i)], {.executor = &executor}); });
    for (const MatrixXf& got : y) CHECK(data::bits_differing(got, wanted) == 0);
}
