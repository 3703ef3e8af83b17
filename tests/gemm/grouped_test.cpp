// Several products in one call, as a mixture of experts has them: matrices of any shapes and formats, each with columns,
// a bias and an output of its own. The bits are those of one call for each.
#include <nibble/nibble.hpp>

#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "support/catch.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/mistake.hpp"
#include "support/reference.hpp"
#include "support/spawning.hpp"

using Eigen::MatrixXf;
using nibble::compute;
using nibble::errc;
using nibble::gemm_call;
using nibble::qmatrix;
using reference::tally;
using Index = nibble::index;

namespace {

constexpr std::array<compute, 4> classes = {compute::strict_f32, compute::f32, compute::a16, compute::a8};

/// A product of a call, with the memory that it refers to.
struct expert {
    qmatrix w;
    MatrixXf x, y;
    Eigen::VectorXf bias;

    expert(const char* recipe, Index n, Index k, Index m, std::uint64_t stream, bool hostile)
        : w(nibble::quantize(data::matrix(n, k, stream), recipe)), x(data::matrix(k, m, stream + 1)), y(data::matrix(n, m, stream + 2)),
          bias(data::matrix(n, 1, stream + 3)) {
        if (!hostile || k < 3) return;
        for (Index j = 0; j < m; j += 2) x(k / 2, j) = j % 4 == 0 ? 0x1p26f : reference::float_from_bits(0x7f800000u);
    }
};

std::vector<expert> experts(bool hostile) {
    std::vector<expert> all;
    all.emplace_back("int4_g32", 64, 256, 5, 10, hostile);
    all.emplace_back("int4_g32", 64, 256, 0, 20, hostile);  // an expert that got no token
    all.emplace_back("q4_k", 17, 512, 40, 30, hostile);
    all.emplace_back("int8_per_channel", 100, 33, 1, 40, hostile);
    all.emplace_back("nf4", 1, 300, 3, 50, hostile);
    all.emplace_back("fp16", 33, 64, 9, 60, hostile);
    all.emplace_back("int4_g32", 0, 64, 4, 70, hostile);
    all.emplace_back("int3_zero_g64", 15, 1, 18, 80, hostile);
    all.emplace_back("int8_per_channel", 20, 0, 2, 90, hostile);
    all.emplace_back("mxfp4", 48, 96, 70, 100, hostile);
    return all;
}

std::vector<gemm_call> calls_of(std::vector<expert>& all, bool every_bias = true) {
    std::vector<gemm_call> calls;
    for (std::size_t i = 0; i < all.size(); ++i) {
        expert& e = all[i];
        if (every_bias || i % 2 == 0) calls.push_back(nibble::make_call(e.w, e.x, e.y, e.bias));
        else calls.push_back(nibble::make_call(e.w, e.x, e.y));
    }
    return calls;
}

}  // namespace

TEST_CASE("several products in a call have the bits of single calls", "[gemm][grouped]") {
    tally t;
    for (const bool hostile : {false, true}) {
        for (const compute c : classes) {
            for (const bool accumulate : {false, true}) {
                nibble::gemm_options options{.compute = c, .activation = nibble::activation::gelu_tanh, .accumulate = accumulate};
                std::vector<expert> single = experts(hostile);
                for (std::size_t i = 0; i < single.size(); ++i) {
                    nibble::gemm_options own = options;
                    if (i % 2 == 0) own.bias = single[i].bias;
                    nibble::gemm(single[i].w, single[i].x, single[i].y, own);
                }
                nibble::workspace scratch;
                for_each_isa([&](nibble::isa level) {
                    for (const int threads : {0, 1, 2, 3, 5}) {
                        auto executor = nibble::make_executor(threads == 0 ? 1 : threads, spawning{threads});
                        options.executor = threads == 0 ? nullptr : &executor;
                        options.workspace = threads == 2 ? &scratch : nullptr;
                        std::vector<expert> all = experts(hostile);
                        nibble::gemm(calls_of(all, false), options);
                        for (std::size_t i = 0; i < all.size(); ++i)
                            t.check(data::bits_differing(all[i].y, single[i].y) == 0, [&] {
                                return std::string(nibble::name_of(c)) + " at " + nibble::name_of(level) + ", call " + std::to_string(i) + ", " +
                                       std::to_string(threads) + " threads" + (hostile ? ", hostile" : "") + (accumulate ? ", accumulate" : "");
                            });
                    }
                });
            }
        }
    }
    INFO(t.report());
    CHECK(t.failures() == 0);
    CHECK(t.cases() == 2 * 4 * 2 * 5 * 10 * supported_isas().size());
}

TEST_CASE("calls in any order, repeated, and none", "[gemm][grouped]") {
    std::vector<expert> single = experts(true);
    for (expert& e : single) nibble::gemm(e.w, e.x, e.y, {.bias = e.bias});
    std::vector<expert> all = experts(true);
    std::vector<gemm_call> calls = calls_of(all);
    nibble::gemm(std::vector<gemm_call>(calls.rbegin(), calls.rend()));
    for (std::size_t i = 0; i < all.size(); ++i) CHECK(data::bits_differing(all[i].y, single[i].y) == 0);
    for (std::size_t first = 0; first < all.size(); ++first) {
        std::vector<expert> some = experts(true);
        calls = calls_of(some);
        nibble::gemm(std::span<const gemm_call>(calls).subspan(first, 1));
        CHECK(data::bits_differing(some[first].y, single[first].y) == 0);
    }
    CHECK(of([] { nibble::gemm(std::span<const gemm_call>()); }).code == errc::ok);
    // One matrix and one X, many outputs.
    const expert& e = single[0];
    std::vector<MatrixXf> y(20, MatrixXf(64, 5));
    calls.clear();
    for (MatrixXf& to : y) calls.push_back(nibble::make_call(e.w, e.x, to, e.bias));
    nibble::gemm(calls);
    for (const MatrixXf& got : y) CHECK(data::bits_differing(got, e.y) == 0);
}

TEST_CASE("outputs of several products may differ in type and layout", "[gemm][grouped]") {
    const expert e("int4_g32", 35, 96, 5, 10, true);
    Eigen::Matrix<Eigen::half, Eigen::Dynamic, Eigen::Dynamic> halves(35, 5), halves_wanted(35, 5);
    Eigen::Matrix<Eigen::bfloat16, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor> brains(35, 5), brains_wanted(35, 5);
    MatrixXf floats(5, 35), wanted(35, 5);
    nibble::gemm(e.w, e.x, halves_wanted);
    nibble::gemm(e.w, e.x, brains_wanted);
    nibble::gemm(e.w, e.x, wanted);
    const MatrixXf wide = [&] {
        MatrixXf m(100, 7);
        m.block(2, 1, 96, 5) = e.x;
        return m;
    }();
    const std::vector<gemm_call> calls = {nibble::make_call(e.w, e.x, halves), nibble::make_call(e.w, wide.block(2, 1, 96, 5), brains),
                                          nibble::make_call(e.w, e.x, floats.transpose())};
    nibble::gemm(calls);
    CHECK(std::memcmp(halves.data(), halves_wanted.data(), 35 * 5 * 2) == 0);
    CHECK(std::memcmp(brains.data(), brains_wanted.data(), 35 * 5 * 2) == 0);
    CHECK(data::bits_differing(floats.transpose().eval(), wanted) == 0);
}

TEST_CASE("the bias of the options is not that of the calls", "[gemm][grouped]") {
    expert e("int4_g32", 35, 96, 5, 10, false);
    const MatrixXf wanted = e.w * e.x;
    const std::vector<gemm_call> calls = {nibble::make_call(e.w, e.x, e.y)};
    nibble::gemm(calls, {.bias = e.bias});
    CHECK(data::bits_differing(e.y, wanted) == 0);
}

TEST_CASE("a mistake in one of several products names it, and nothing is written", "[gemm][grouped][errors]") {
    for (const std::size_t bad : {std::size_t{0}, std::size_t{3}, std::size_t{9}}) {
        const auto refused = [&](const auto& spoil, errc code, const std::string& part) {
            std::vector<expert> all = experts(false);
            std::vector<gemm_call> calls = calls_of(all);
            spoil(calls[bad]);
            const mistake m = of([&] { nibble::gemm(calls); });
            INFO(m.message);
            CHECK(m.code == code);
            CHECK(contains(m.message, part));
            CHECK(contains(m.message, "call " + std::to_string(bad) + " of 10"));
            const std::vector<expert> before = experts(false);
            for (std::size_t i = 0; i < all.size(); ++i) CHECK(data::bits_differing(all[i].y, before[i].y) == 0);
        };
        refused([](gemm_call& c) { c.x.rows += 1; }, errc::shape_mismatch, "X is ");
        refused([](gemm_call& c) { c.y.rows += 1; }, errc::shape_mismatch, "so Y must be ");
        refused([](gemm_call& c) { c.y.cols += 1; }, errc::shape_mismatch, "so Y must be ");
        refused([](gemm_call& c) { c.y.type = nibble::scalar_type::f64; }, errc::unsupported, "double");
        refused([](gemm_call& c) { c.y.data = nullptr; }, errc::invalid_argument, "Y is a null pointer");
        refused([](gemm_call& c) { c.x.data = nullptr; }, errc::invalid_argument, "X is a null pointer");
        refused([](gemm_call& c) { c.y.data = const_cast<void*>(c.x.data); }, errc::overlap, "Y shares memory with X");
        const Eigen::VectorXf bias = Eigen::VectorXf::Zero(3);
        refused([&](gemm_call& c) { c.bias = bias; }, errc::shape_mismatch, "the bias has 3 elements");
    }
}
