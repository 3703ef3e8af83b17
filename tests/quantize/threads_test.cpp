// quantize, dequantize and prepare with an executor: the bytes of one thread, for every recipe and kind of grouping.
#include <nibble/nibble.hpp>

#include <atomic>
#include <limits>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/inspect.hpp"
#include "support/mistake.hpp"
#include "support/reference.hpp"
#include "support/spawning.hpp"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using nibble::qmatrix;
using reference::tally;

MatrixXf numbers(Index rows, Index cols) {
    MatrixXf m(rows, cols);
    std::uint32_t state = 17;
    for (Index j = 0; j < cols; ++j)
        for (Index i = 0; i < rows; ++i) {
            state = state * 1664525u + 1013904223u;
            m(i, j) = static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-31f * static_cast<float>(1 + i % 5);
        }
    return m;
}

bool same(const qmatrix& a, const qmatrix& b) {
    return inspect::codes(a) == inspect::codes(b) && inspect::scales(a) == inspect::scales(b) && inspect::offsets(a) == inspect::offsets(b);
}

/// Threads that count their tasks.
struct counting {
    std::atomic<Index>& tasks;
    template <class Body>
    void operator()(Index n, Body body) const {
        tasks += n;
        spawning{3}(n, body);
    }
};

}  // namespace

TEST_CASE("quantize and dequantize give the bytes of one thread", "[quantize][threads]") {
    tally t;
    std::atomic<Index> tasks{0};
    auto threads = nibble::make_executor(3, counting{tasks});
    for (const Index rows : {1, 16, 39, 300}) {
        const MatrixXf w = numbers(rows, 256);
        for (const nibble::recipe& r : nibble::recipes()) {
            const auto name = [&] { return std::string(r.name) + " of " + std::to_string(rows) + " rows"; };
            const nibble::quantize_plan plan = nibble::make_plan(r);
            const qmatrix one = nibble::quantize(w, plan);
            tasks = 0;
            const qmatrix many = nibble::quantize(w, plan, {.executor = &threads});
            t.check(same(one, many), name);
            t.check(rows < 39 || tasks > 1 || one.layout().block_rows == 128, [&] { return name() + " ran no tasks"; });
            const Eigen::Matrix<float, -1, -1, Eigen::RowMajor> transposed = w;
            t.check(same(one, nibble::quantize(transposed, plan, {.executor = &threads})), [&] { return name() + ", row-major"; });
            tasks = 0;
            t.check(nibble::dequantize(many, {.executor = &threads}) == nibble::dequantize(one), [&] { return name() + ", decoded"; });
            t.check(rows < 39 || tasks > 1, [&] { return name() + " was decoded without tasks"; });
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() > 50);
}

TEST_CASE("tiles of rows that panels do not divide are quantized whole", "[quantize][threads]") {
    tally t;
    auto threads = nibble::make_executor(4, spawning{4});
    const MatrixXf w = numbers(150, 96);
    for (const Index tile_rows : {2, 8, 12, 16, 24, 32, 48, 100, 0})
        for (const nibble::granularity group : {nibble::granularity{tile_rows, 32}, nibble::granularity{tile_rows, 0}}) {
            const qmatrix one = nibble::quantize<nibble::int8>(w, group);
            const qmatrix many = nibble::quantize<nibble::int8>(w, group, {.executor = &threads});
            t.check(same(one, many), [&] { return "absmax, tiles of " + std::to_string(tile_rows) + " rows"; });
            const qmatrix found = nibble::quantize<nibble::int4>(w, nibble::mse{}, group);
            t.check(same(found, nibble::quantize<nibble::int4>(w, nibble::mse{}, group, {.executor = &threads})),
                    [&] { return "mse, tiles of " + std::to_string(tile_rows) + " rows"; });
        }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() > 30);
}

TEST_CASE("importance and saturation reach every thread", "[quantize][threads]") {
    auto threads = nibble::make_executor(4, spawning{4});
    MatrixXf w = numbers(130, 256);
    std::vector<float> importance(256);
    for (std::size_t k = 0; k < 256; ++k) importance[k] = 1.0f + static_cast<float>(k % 7) * 0.25f;
    for (const char* name : {"q4_k", "q6_k", "q2_k", "iq4_nl"}) {
        const qmatrix one = nibble::quantize(w, name, {.importance = importance});
        CHECK(same(one, nibble::quantize(w, name, {.importance = importance, .executor = &threads})));
        CHECK(!same(one, nibble::quantize(w, name, {.executor = &threads})));
    }
    w(1, 1) = std::numeric_limits<float>::infinity();
    w(129, 7) = std::numeric_limits<float>::quiet_NaN();
    w(77, 3) = 1000.0f;  // the largest finite weight is another thread's
    const nibble::quantize_options saturate{.non_finite = nibble::non_finite::saturate};
    nibble::quantize_options both = saturate;
    both.executor = &threads;
    for (const char* name : {"int8_per_channel", "nf4_double", "nvfp4", "fp8_per_tensor"})
        CHECK(same(nibble::quantize(w, name, saturate), nibble::quantize(w, name, both)));
}

TEST_CASE("an error on another thread comes back to the caller", "[quantize][threads]") {
    auto threads = nibble::make_executor(4, spawning{4});
    MatrixXf w = numbers(130, 64);
    w(129, 7) = std::numeric_limits<float>::quiet_NaN();
    const mistake m = of([&] { static_cast<void>(nibble::quantize<nibble::int8>(w, {.executor = &threads})); });
    CHECK(m.code == nibble::errc::non_finite);
    CHECK(m.message.find("W(129, 7) is ") != std::string::npos);
}

TEST_CASE("activations prepared by several threads are those of one", "[prepare][threads]") {
    auto threads = nibble::make_executor(4, spawning{4});
    const qmatrix w = nibble::quantize<nibble::int4>(numbers(40, 96));
    MatrixXf x = numbers(96, 33);
    x(5, 20) = std::numeric_limits<float>::infinity();  // a column for strict_f32
    for (const nibble::compute c : {nibble::compute::a8, nibble::compute::a16, nibble::compute::f32, nibble::compute::strict_f32}) {
        MatrixXf one(40, 33), many(40, 33);
        nibble::gemm(w, nibble::prepare(w, x, c), one);
        nibble::gemm(w, nibble::prepare(w, x, c, &threads), many);
        CHECK(std::memcmp(one.data(), many.data(), sizeof(float) * 40 * 33) == 0);
    }
}
