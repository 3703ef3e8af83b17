// The cache of keys and values: what it stands for against KIVI's formula, attention against double and its bound, the cost of
// appending, bad input.
#include <nibble/layers/kv_cache.hpp>
#include <nibble/nibble.hpp>

#include <cmath>
#include <limits>
#include <vector>

#include "support/catch.hpp"
#include "support/count_allocations.hpp"
#include "support/data.hpp"
#include "support/for_each_isa.hpp"
#include "support/mistake.hpp"

using Eigen::MatrixXd;
using Eigen::MatrixXf;
using extent = nibble::index;
using nibble::errc;
using nibble::kv_cache;

namespace {

nibble::quantize_plan named(const char* name) { return nibble::make_plan(*nibble::find_recipe(name)); }

/// Keys as transformers have them: a channel in 16 is 16 times larger than the rest.
MatrixXf outlier_keys(extent channels, extent tokens, std::uint64_t stream) {
    MatrixXf k = data::matrix(channels, tokens, stream);
    for (extent c = 3; c < channels; c += 16) k.row(c) *= 16.0f;
    return k;
}

/// KIVI's formula for n numbers, `step` apart, with scale and minimum in fp16.
void kivi(float* x, extent n, extent step, int bits) {
    float low = x[0], high = x[0];
    for (extent i = 0; i < n; ++i) {
        low = std::min(low, x[i * step]);
        high = std::max(high, x[i * step]);
    }
    const float s = static_cast<float>(Eigen::half((high - low) / static_cast<float>((1 << bits) - 1))), m = static_cast<float>(Eigen::half(low));
    for (extent i = 0; i < n; ++i) {
        const float q = s == 0.0f ? 0.0f : std::nearbyint((x[i * step] - m) * (1.0f / s));
        x[i * step] = std::min(std::max(q, 0.0f), static_cast<float>((1 << bits) - 1)) * s + m;
    }
}

MatrixXd softmax(MatrixXd s) {
    for (extent h = 0; h < s.cols(); ++h) {
        s.col(h) = (s.col(h).array() - s.col(h).maxCoeff()).exp();
        s.col(h) /= s.col(h).sum();
    }
    return s;
}

}  // namespace

TEST_CASE("the cache stands for what KIVI's formula says", "[kv_cache]") {
    const MatrixXf k = outlier_keys(64, 300, 1), v = data::matrix(64, 300, 2);
    kv_cache cache(64);
    cache.append(k, v);
    CHECK(cache.tokens() == 300);
    CHECK(cache.quantized_keys() == 256);
    CHECK(cache.quantized_values() == 172);
    MatrixXf keys = k, values = v;
    for (extent c = 0; c < 64; ++c)
        for (extent t = 0; t < 256; t += 32) kivi(&keys(c, t), 32, 64, 2);
    for (extent t = 0; t < 172; ++t)
        for (extent c = 0; c < 64; c += 32) kivi(&values(c, t), 32, 1, 2);
    CHECK(data::bits_differing(cache.decoded_keys(), keys) == 0);
    CHECK(data::bits_differing(cache.decoded_values(), values) == 0);
}

TEST_CASE("keys and values may have formats of their own", "[kv_cache]") {
    const MatrixXf k = outlier_keys(64, 96, 7), v = data::matrix(64, 96, 8);
    for (const bool per_token : {false, true}) {
        kv_cache cache(64, {named("q8_0"), named("int2_min_g32"), 32, per_token});
        cache.append(k, v);
        const MatrixXf keys = nibble::dequantize(nibble::quantize(per_token ? MatrixXf(k.transpose()) : k, "q8_0"));
        CHECK(data::bits_differing(cache.decoded_keys(), per_token ? MatrixXf(keys.transpose()) : keys) == 0);
        CHECK(data::bits_differing(cache.decoded_values().leftCols(64), nibble::dequantize(nibble::quantize(v.leftCols(64).transpose(), "int2_min_g32")).transpose()) == 0);
    }
    for (double x = 0.0; x > -700.0; x -= 0.37) CHECK(std::abs(nibble::detail::exp_negative(x) / std::exp(x) - 1.0) < 2e-15);
    CHECK(nibble::detail::exp_negative(-1e300) == 0.0);
}

TEST_CASE("how tokens are split into calls changes nothing", "[kv_cache]") {
    const MatrixXf k = outlier_keys(40, 201, 3), v = data::matrix(40, 201, 4), q = data::matrix(40, 3, 5);
    nibble::kv_cache_options o;
    o.residual = 32;
    kv_cache whole(40, o), single(40, o), pieces(40, o);
    whole.append(k, v);
    for (extent t = 0; t < 201; ++t) single.append(k.col(t), v.col(t));
    for (extent t = 0, n = 1; t < 201; t += n, n = std::min<extent>(n + 7, 201 - t)) pieces.append(k.middleCols(t, n), v.middleCols(t, n));
    const MatrixXf out = whole.attend(q, 0.16f);
    for (const kv_cache* c : {&single, &pieces}) {
        CHECK(c->tokens() == 201);
        CHECK(data::bits_differing(c->decoded_keys(), whole.decoded_keys()) == 0);
        CHECK(data::bits_differing(c->decoded_values(), whole.decoded_values()) == 0);
        CHECK(data::bits_differing(c->attend(q, 0.16f), out) == 0);
        CHECK(c->work().quantized == whole.work().quantized);
    }
    for (extent h = 0; h < 3; ++h) CHECK(data::bits_differing(whole.attend(q.col(h), 0.16f), out.col(h)) == 0);
    for_each_isa([&](nibble::isa) { CHECK(data::bits_differing(whole.attend(q, 0.16f), out) == 0); });
}

TEST_CASE("attention is that of the decoded cache, at every length", "[kv_cache]") {
    for (const bool per_token : {false, true})
        for (const char* format : {"int2_min_g32", "int4_min_g64", "q8_0", "int8_per_channel", "fp8_per_channel"}) {
            CAPTURE(per_token, format);
            nibble::kv_cache_options o{named(format), named(format), 64, per_token};
            kv_cache cache(48, o);
            const MatrixXf q = data::matrix(48, 2, 6);
            CHECK(cache.attend(q, 1.0f) == MatrixXf::Zero(48, 2));
            extent tokens = 0;
            for (const extent n : {1, 62, 1, 1, 63, 2, 90}) {  // 1, 63, 64, 65, 128, 130, 220
                cache.append(outlier_keys(48, n, static_cast<std::uint64_t>(10 + tokens)), data::matrix(48, n, static_cast<std::uint64_t>(20 + tokens)));
                tokens += n;
                CAPTURE(tokens);
                const MatrixXd s = cache.decoded_keys().cast<double>().transpose() * q.cast<double>();
                CHECK((cache.scores(q).cast<double>() - s).norm() <= 1e-6 * s.norm());
                const MatrixXd wanted = cache.decoded_values().cast<double>() * softmax(0.1 * s);
                CHECK((cache.attend(q, 0.1f).cast<double>() - wanted).norm() <= 1e-5 * wanted.norm());
            }
        }
}

TEST_CASE("the error of attention has its bound, and keys want scales of channels", "[kv_cache]") {
    const MatrixXf k = outlier_keys(64, 256, 31), v = data::matrix(64, 256, 32), q = 0.05f * data::matrix(64, 4, 33);
    const auto lost = [&](bool per_token, const char* format) {
        kv_cache cache(64, {named(format), named(format), 128, per_token});
        cache.append(k, v);
        const MatrixXd s = k.cast<double>().transpose() * q.cast<double>(), got = cache.decoded_keys().cast<double>().transpose() * q.cast<double>();
        const MatrixXd out = v.cast<double>() * softmax(s);
        const MatrixXf attended = cache.attend(q, 1.0f);
        const double by_value = static_cast<double>((cache.decoded_values() - v).cwiseAbs().maxCoeff());
        for (extent h = 0; h < 4; ++h) {
            const double delta = (got - s).col(h).cwiseAbs().maxCoeff();
            CHECK(delta <= static_cast<double>(q.col(h).cwiseAbs().sum() * (cache.decoded_keys() - k).cwiseAbs().maxCoeff()));
            for (extent c = 0; c < 64; ++c) {
                const double range = static_cast<double>(v.row(c).maxCoeff() - v.row(c).minCoeff());
                CHECK(std::abs(static_cast<double>(attended(c, h)) - out(c, h)) <= std::tanh(delta / 2) * range + by_value + 1e-5);
            }
        }
        return static_cast<double>((cache.decoded_keys() - k).leftCols(128).squaredNorm());
    };
    CHECK(lost(false, "int2_min_g32") < 0.5 * lost(true, "int2_min_g32"));
    CHECK(lost(false, "int4_min_g64") < 0.5 * lost(true, "int4_min_g64"));
}

TEST_CASE("appending costs the new tokens alone", "[kv_cache]") {
    const MatrixXf k = outlier_keys(64, 4096, 41), v = data::matrix(64, 4096, 42);
    kv_cache cache(64);
    long early = 0, late = 0;
    for (extent t = 0; t < 4096; ++t) {
        const nibble::kv_cache_work before = cache.work();
        const long made = allocations::of([&] { cache.append(k.col(t), v.col(t)); });
        if (t >= 256 && t < 512) early = std::max(early, made);
        if (t >= 3840) late = std::max(late, made);
        CHECK(cache.work().copied - before.copied == 128);
        // A value that leaves, and all keys when a chunk of 128 is complete.
        CHECK(cache.work().quantized - before.quantized == (t >= 128 ? 64 : 0) + (t % 128 == 127 ? 128 * 64 : 0));
    }
    CHECK(late <= early);
    CHECK(cache.work().quantized == 64 * (cache.quantized_keys() + cache.quantized_values()));
    // 3 bits a number, and 128 tokens of floats for keys and values each.
    CHECK(cache.memory_bytes() < 4096 * 64 * 2 * 3 / 8 * 11 / 10 + 2 * 128 * 64 * 4 + 4096);
    CHECK(cache.memory_bytes() > 4096 * 64 * 2 * 3 / 8);
}

TEST_CASE("a window slides by whole chunks", "[kv_cache]") {
    nibble::kv_cache_options o;
    o.residual = 32;
    const MatrixXf k = outlier_keys(32, 150, 51), v = data::matrix(32, 150, 52), q = data::matrix(32, 2, 53);
    kv_cache cache(32, o), late(32, o);
    cache.append(k.leftCols(140), v.leftCols(140));
    cache.forget(64);
    cache.append(k.rightCols(10), v.rightCols(10));
    late.append(k.rightCols(86), v.rightCols(86));
    CHECK(cache.tokens() == 86);
    CHECK(data::bits_differing(cache.decoded_keys(), late.decoded_keys()) == 0);
    CHECK(data::bits_differing(cache.decoded_values(), late.decoded_values()) == 0);
    CHECK(data::bits_differing(cache.attend(q, 0.2f), late.attend(q, 0.2f)) == 0);
    for (const extent n : {-32, 31, 64, 96}) CHECK(of([&] { cache.forget(n); }).code == errc::invalid_argument);
    CHECK(cache.tokens() == 86);
    kv_cache moved = std::move(cache);
    CHECK(data::bits_differing(moved.attend(q, 0.2f), late.attend(q, 0.2f)) == 0);
}

TEST_CASE("constant groups are exact, and bad input changes nothing", "[kv_cache]") {
    nibble::kv_cache_options o;
    o.residual = 32;
    kv_cache cache(32, o);
    cache.append(MatrixXf::Constant(32, 64, 0.5f), MatrixXf::Constant(32, 64, -2.0f));
    CHECK(cache.decoded_keys() == MatrixXf::Constant(32, 64, 0.5f));
    CHECK((cache.attend(MatrixXf::Ones(32, 1), 1.0f).array() + 2.0f).abs().maxCoeff() < 1e-6f);
    MatrixXf bad = MatrixXf::Zero(32, 3);
    bad(7, 2) = std::numeric_limits<float>::quiet_NaN();
    const mistake m = of([&] { cache.append(MatrixXf::Zero(32, 3), bad); });
    CHECK(m.code == errc::non_finite);
    CHECK(contains(m.message, "values(7, 2)"));
    CHECK(of([&] { cache.append(bad, MatrixXf::Zero(32, 3)); }).code == errc::non_finite);
    CHECK(of([&] { cache.append(MatrixXf::Zero(31, 3), MatrixXf::Zero(31, 3)); }).code == errc::shape_mismatch);
    CHECK(of([&] { cache.append(MatrixXf::Zero(32, 3), MatrixXf::Zero(32, 2)); }).code == errc::shape_mismatch);
    CHECK(of([&] { static_cast<void>(cache.scores(MatrixXf::Zero(31, 1))); }).code == errc::shape_mismatch);
    CHECK(of([&] { static_cast<void>(cache.weighted_values(MatrixXf::Zero(63, 1))); }).code == errc::shape_mismatch);
    CHECK(cache.tokens() == 64);
    CHECK(of([] { kv_cache(0); }).code == errc::invalid_argument);
    CHECK(of([] { kv_cache(8, {.residual = 0}); }).code == errc::invalid_argument);
    CHECK(of([] { kv_cache(8, {.residual = 48}); }).code == errc::invalid_argument);
    CHECK(of([] { kv_cache(8, {.keys = named("nf4_double")}); }).code == errc::unsupported);
    CHECK(of([] { kv_cache(8, {.values = named("int8_per_tensor")}); }).code == errc::unsupported);
}
