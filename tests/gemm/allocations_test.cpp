// A product that is given a workspace which served it before allocates nothing, whatever its options; without one it
// allocates once.
#include <nibble/nibble.hpp>

#include <array>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/count_allocations.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/reference.hpp"

using Eigen::MatrixXf;
using nibble::compute;
using nibble::qmatrix;
using reference::tally;
using Index = nibble::index;

namespace {

constexpr std::array<compute, 4> classes = {compute::strict_f32, compute::f32, compute::a16, compute::a8};

/// Runs tasks in a loop, and says it has four threads: threads would allocate themselves.
class loop final : public nibble::executor {
public:
    [[nodiscard]] int concurrency() const noexcept override { return 4; }

private:
    void run(Index tasks, nibble::task_body body) override {
        for (Index i = 0; i < tasks; ++i) body(i);
    }
};

/// Every other column cannot be carried by class f32.
MatrixXf activations(Index k, Index m, bool hostile) {
    MatrixXf x = data::matrix(k, m, 1);
    if (hostile)
        for (Index j = 0; j < m; j += 2) x(k / 2, j) = j % 4 == 0 ? 0x1p26f : reference::float_from_bits(0x7f800000u);
    return x;
}

}  // namespace

TEST_CASE("nothing is allocated with a workspace that was used before", "[gemm][allocations]") {
    tally t;
    loop threads;
    constexpr Index n = 83, k = 512;
    const Eigen::VectorXf bias = data::matrix(n, 1, 2);
    for (const char* name : {"int4_g32", "q4_k", "int8_per_channel", "nf4", "fp16", "int3_zero_g64"}) {
        const qmatrix w = nibble::quantize(data::matrix(n, k, 3), name);
        for (const Index m : {1, 4, 33}) {
            for (const bool hostile : {false, true}) {
                const MatrixXf x = activations(k, m, hostile);
                MatrixXf y = MatrixXf::Zero(n, m);
                Eigen::Matrix<Eigen::half, Eigen::Dynamic, Eigen::Dynamic> narrow(n, m);
                narrow.setZero();
                for (const compute c : classes) {
                    const nibble::prepared_activations a = nibble::prepare(w, x, c);
                    for_each_isa([&](nibble::isa level) {
                        nibble::workspace scratch;
                        nibble::gemm_options options{.compute = c, .workspace = &scratch};
                        const auto check = [&](const char* what, const auto& call) {
                            scratch.release();
                            const long first = allocations::of(call);
                            const long again = allocations::of(call);
                            t.check(first == 1 && again == 0, [&] {
                                return std::string(name) + " " + nibble::name_of(c) + " at " + nibble::name_of(level) + ", " + std::to_string(m) +
                                       " columns" + (hostile ? " of hostile numbers, " : ", ") + what + ": " + std::to_string(first) + " and then " +
                                       std::to_string(again);
                            });
                        };
                        check("plain", [&] { nibble::gemm(w, x, y, options); });
                        check("prepared", [&] { nibble::gemm(w, a, y, options); });
                        check("to halves", [&] { nibble::gemm(w, x, narrow, options); });
                        check("a transposed output", [&] {
                            nibble::gemm(w, nibble::column_major(x.data(), k, m), nibble::row_major(y.data(), n, m), options);
                        });
                        options.bias = bias;
                        options.activation = nibble::activation::gelu_erf;
                        options.accumulate = true;
                        check("options", [&] { nibble::gemm(w, x, y, options); });
                        options.executor = &threads;
                        check("an executor", [&] { nibble::gemm(w, x, y, options); });
                        check("an executor, prepared", [&] { nibble::gemm(w, a, y, options); });
                        check("an executor, to halves", [&] { nibble::gemm(w, x, narrow, options); });
                    });
                }
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 6 * 3 * 2 * 4 * 8 * supported_isas().size());
}

TEST_CASE("a workspace serves smaller products too", "[gemm][allocations]") {
    const qmatrix w = nibble::quantize(data::matrix(64, 512, 4), "int4_g32");
    const MatrixXf x = activations(512, 40, true);
    MatrixXf y(64, 40);
    nibble::workspace scratch;
    nibble::gemm(w, x, y, {.workspace = &scratch});
    const std::size_t capacity = scratch.capacity();
    CHECK(capacity > 0);
    CHECK(allocations::of([&] {
              for (Index m = 40; m >= 0; --m)
                  for (const compute c : {compute::f32, compute::a16, compute::a8})
                      nibble::gemm(w, x.leftCols(m), y.leftCols(m), {.compute = c, .workspace = &scratch});
          }) == 0);
    CHECK(scratch.capacity() == capacity);
    // Each column, as a decoder calls it.
    CHECK(allocations::of([&] {
              for (Index j = 0; j < 40; ++j) nibble::gemm(w, x.col(j), y.col(j), {.workspace = &scratch});
          }) == 0);
}

TEST_CASE("without a workspace memory is asked for once, and given back", "[gemm][allocations]") {
    const qmatrix w = nibble::quantize(data::matrix(64, 512, 4), "int4_g32");
    const MatrixXf x = activations(512, 40, true);
    MatrixXf y(64, 40);
    CHECK(allocations::of([&] { nibble::gemm(w, x, y); }) == 1);
    CHECK(allocations::of([&] { nibble::gemm(w, x, y); }) == 1);
    CHECK(allocations::of([] { static_cast<void>(std::vector<int>(3)); }) == 1);  // the count counts
}

TEST_CASE("several products in a call allocate a list of them at most", "[gemm][allocations]") {
    const qmatrix w = nibble::quantize(data::matrix(64, 512, 4), "int4_g32");
    const MatrixXf x = activations(512, 6, true);
    std::vector<MatrixXf> y(8, MatrixXf(64, 6));
    std::vector<nibble::gemm_call> calls;
    for (MatrixXf& to : y) calls.push_back(nibble::make_call(w, x, to));
    nibble::workspace scratch;
    nibble::gemm(calls, {.workspace = &scratch});
    CHECK(allocations::of([&] { nibble::gemm(calls, {.workspace = &scratch}); }) <= 1);
}
