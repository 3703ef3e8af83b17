// Products are the same bits at every instruction-set level, for every recipe, class, ragged shape and number of columns,
// from prepared activations, with a workspace and with tasks in any order. The first level is `scalar`, which
// formula_test.cpp compares with plain loops.
#include <nibble/nibble.hpp>

#include <cstring>
#include <vector>

#include "support/catch.hpp"
#include "support/for_each_isa.hpp"
#include "support/reference.hpp"

namespace {

using Eigen::Index;
using Eigen::MatrixXf;
using reference::tally;

MatrixXf numbers(Index rows, Index cols, std::uint32_t seed, float outlier = 1.0f) {
    MatrixXf m(rows, cols);
    std::uint32_t state = seed * 2654435761u + 1;
    for (Index j = 0; j < cols; ++j)
        for (Index i = 0; i < rows; ++i) {
            state = state * 1664525u + 1013904223u;
            m(i, j) = static_cast<float>(static_cast<std::int32_t>(state)) * 0x1p-31f;
            if (i % 37 == 5) m(i, j) *= outlier;
        }
    return m;
}

std::vector<std::uint32_t> bits(const MatrixXf& m) {
    std::vector<std::uint32_t> u(static_cast<std::size_t>(m.size()));
    if (!u.empty()) std::memcpy(u.data(), m.data(), u.size() * 4);
    return u;
}

constexpr nibble::compute classes[] = {nibble::compute::a8, nibble::compute::a16, nibble::compute::f32, nibble::compute::strict_f32};

/// Runs tasks last to first, and says it has three threads.
class backwards final : public nibble::executor {
public:
    [[nodiscard]] int concurrency() const noexcept override { return 3; }
    int runs = 0;

private:
    void run(nibble::index tasks, nibble::task_body body) override {
        ++runs;
        for (nibble::index i = tasks; i-- > 0;) body(i);
    }
};

void compare(const std::string& what, const nibble::qmatrix& w, const MatrixXf& x, tally& t) {
    for (const nibble::compute c : classes) {
        std::vector<std::uint32_t> wanted;
        nibble::workspace scratch;
        backwards executor;
        for_each_isa([&](nibble::isa level) {
            MatrixXf y = MatrixXf::Constant(w.rows(), x.cols(), 7.0f);
            nibble::gemm(w, x, y, {.compute = c});
            if (level == nibble::isa::scalar) wanted = bits(y);
            const auto name = [&] {
                return what + " " + nibble::name_of(c) + " at " + nibble::name_of(level) + ", " + std::to_string(w.rows()) + "x" +
                       std::to_string(w.cols()) + " x " + std::to_string(x.cols());
            };
            t.check(bits(y) == wanted, name);
            MatrixXf z = MatrixXf::Constant(w.rows(), x.cols(), 8.0f);
            nibble::gemm(w, nibble::prepare(w, x, c), z, {.compute = c, .workspace = &scratch, .executor = &executor});
            t.check(bits(z) == wanted, [&] { return name() + " prepared"; });
        });
        if (w.rows() > 32 && w.cols() > 0 && x.cols() > 0) t.check(executor.runs > 0, [&] { return what + ": no tasks were run"; });
    }
}

}  // namespace

TEST_CASE("every level gives the same bits for every recipe", "[gemm][levels]") {
    tally t;
    std::uint32_t seed = 1;
    for (const nibble::recipe& r : nibble::recipes()) {
        const MatrixXf w = numbers(35, 300, ++seed);
        compare(r.name, nibble::quantize(w, r.name), numbers(300, 11, ++seed, 20.0f), t);
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
}

TEST_CASE("every level gives the same bits for every number of columns", "[gemm][levels]") {
    // Every width of every tile, and what is left over after full tiles.
    tally t;
    std::uint32_t seed = 1000;
    for (const char* name : {"int4_g32", "int8_per_channel", "q5_k", "iq4_nl", "nf4", "int4_zero_g128"}) {
        const nibble::qmatrix w = nibble::quantize(numbers(17, 192, ++seed), name);
        for (Index m = 0; m <= 18; ++m) compare(name, w, numbers(192, m, ++seed), t);
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
}

TEST_CASE("every level gives the same bits for ragged rows, columns and groups", "[gemm][levels]") {
    tally t;
    std::uint32_t seed = 2000;
    for (const Index k : {1, 3, 4, 5, 7, 8, 9, 31, 32, 33, 63, 65, 255, 256, 257, 515})
        for (const Index n : {1, 15, 16, 33}) {
            const MatrixXf w = numbers(n, k, ++seed);
            const MatrixXf x = numbers(k, 3, ++seed);
            for (const Index group : {Index{1}, Index{4}, Index{6}, Index{20}, Index{32}, Index{256}, Index{300}, Index{0}}) {
                if (group > k) continue;
                const nibble::granularity g{1, group};
                compare("int4", nibble::quantize<nibble::int4>(w, nibble::absmax{}, g), x, t);
                compare("int3", nibble::quantize<nibble::int3>(w, nibble::zero_point{}, g), x, t);
                if (n == 33) compare("int2", nibble::quantize<nibble::int2>(w, nibble::min_offset{}, g), x, t);
                if (n == 33) compare("int8", nibble::quantize<nibble::int8>(w, nibble::zero_point{}, g), x, t);
                if (n == 15) compare("fp4_e2m1", nibble::quantize<nibble::fp4_e2m1>(w, nibble::absmax{}, g), x, t);
                if (n == 16) compare("nf4", nibble::quantize<nibble::nf4>(w, nibble::absmax{}, g), x, t);
            }
        }
    INFO(t.report());
    CHECK(t.failures() == 0);
}

TEST_CASE("the largest codes and activations neither saturate nor wrap", "[gemm][levels]") {
    // All codes and all digits at their ends, of both signs, over more k-quads than 16-bit sums hold and over whole
    // sub-blocks: 255 * 32896 * 256 is just below 2^31.
    tally t;
    for (const int bits : {1, 2, 3, 4, 5, 6, 8}) {
        const nibble::code_format* f = bits == 1   ? &nibble::binary::format
                                       : bits == 2 ? &nibble::int2::format
                                       : bits == 3 ? &nibble::int3::format
                                       : bits == 4 ? &nibble::int4::format
                                       : bits == 5 ? &nibble::int5::format
                                       : bits == 6 ? &nibble::int6::format
                                                   : &nibble::int8::format;
        for (const nibble::offset_kind offset : {nibble::offset_kind::none, nibble::offset_kind::zero_point, nibble::offset_kind::minimum}) {
            if (bits == 1 && offset != nibble::offset_kind::none) continue;
            const unsigned last = f->code_count() - 1;
            for (const unsigned code : {0u, last}) {
                for (const unsigned zero : {0u, last}) {
                    nibble::qmatrix_builder b(18, 512, *f, nibble::scales::f32, offset, {1, 0});
                    for (Index n = 0; n < 18; ++n) {
                        b.set_scale(n, 0, nibble::detail::bits_of(n % 2 == 0 ? 1.0f : 0.37f));
                        if (offset != nibble::offset_kind::none)
                            b.set_offset(n, 0, offset == nibble::offset_kind::minimum ? nibble::detail::bits_of(-3.0f) : zero);
                        for (Index k = 0; k < 512; ++k) b.set_code(n, k, code);
                    }
                    const nibble::qmatrix w = std::move(b).finish();
                    MatrixXf x(512, 5);
                    x.col(0).setConstant(1.0f);
                    x.col(1).setConstant(-1.0f);
                    for (Index k = 0; k < 512; ++k) {
                        x(k, 2) = k % 2 == 0 ? 1.0f : -1.0f;
                        x(k, 3) = k % 4 < 2 ? -1.0f : 1.0f;
                        x(k, 4) = k == 7 || k == 300 ? 1.0f : -0.5039f;  // digits 127 and -128 side by side
                    }
                    compare(std::string(f->name) + " all " + std::to_string(code) + " less " + std::to_string(zero), w, x, t);
                    MatrixXf y(18, 5);
                    nibble::gemm(w, x, y);
                    for (Index n = 0; n < 18; ++n)
                        for (Index j = 0; j < 5; ++j) {
                            double sum = 0.0;
                            for (Index k = 0; k < 512; ++k) sum += static_cast<double>(w(n, k)) * static_cast<double>(x(k, j));
                            t.check(std::abs(static_cast<double>(y(n, j)) - sum) <= 1e-3 + 1e-5 * std::abs(sum), [&] {
                                return std::string(f->name) + ": Y(" + std::to_string(n) + ", " + std::to_string(j) + ") is " +
                                       std::to_string(y(n, j)) + ", not " + std::to_string(sum);
                            });
                        }
                }
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
}
