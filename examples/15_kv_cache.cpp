// A cache of keys and values in 2, 4 and 8 bits: what it holds, what attention loses, and that appending a token costs the same
// after a thousand tokens as after many.
#include <nibble/layers/kv_cache.hpp>
#include <nibble/nibble.hpp>

#include <chrono>
#include <cmath>
#include <cstdio>
#include <random>
#include <string>

using Eigen::Index;
using Eigen::MatrixXf;

int main() {
    constexpr Index channels = 128, tokens = 8192, heads = 4;  // heads of queries that share one of keys
    std::mt19937 random(1);
    const auto normal = [&](Index rows, Index cols) {
        MatrixXf m(rows, cols);
        for (float& x : m.reshaped()) {  // sums of uniform numbers: the same with every standard library
            x = -2.0f;
            for (int i = 0; i < 4; ++i) x += static_cast<float>(random() >> 8) * 0x1p-24f;
            x *= std::sqrt(3.0f);
        }
        return m;
    };
    MatrixXf keys = normal(channels, tokens), values = normal(channels, tokens), queries = normal(channels, heads);
    for (Index c = 5; c < channels; c += 32) keys.row(c).array() = 8.0f * keys.row(c).array() + 20.0f;  // as in models: few channels stand out
    const float scale = 1.0f / std::sqrt(static_cast<float>(channels));

    MatrixXf p = scale * keys.transpose() * queries;
    for (Index h = 0; h < heads; ++h) {
        p.col(h) = (p.col(h).array() - p.col(h).maxCoeff()).exp();
        p.col(h) /= p.col(h).sum();
    }
    const MatrixXf exact = values * p;

    std::printf("%td tokens of %td channels, fp16: %.0f KiB. Relative error of attention\n%-26s %8s %8s %20s %12s\n", tokens, channels,
                4.0 * tokens * channels / 1024, "", "KiB", "error", "us a token: early", "late");
    double by_channel = 0.0, by_token = 0.0;
    for (const char* format : {"int2_min_g32", "int4_min_g64", "q8_0"})
        for (const bool per_token : {false, true}) {
            const nibble::quantize_plan plan = nibble::make_plan(*nibble::find_recipe(format));
            nibble::kv_cache cache(channels, {plan, plan, 128, per_token});
            double took[2] = {};
            for (Index t = 0; t < tokens; t += 1024) {
                const auto start = std::chrono::steady_clock::now();
                for (Index i = t; i < t + 1024; ++i) cache.append(keys.col(i), values.col(i));
                took[t == 0 ? 0 : 1] = std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - start).count() / 1024;
            }
            const double error = nibble::relative_error(exact, cache.attend(queries, scale));
            std::printf("%-13s keys by %-7s %6.0f %8.4f %20.2f %12.2f\n", format, per_token ? "token" : "channel", static_cast<double>(cache.memory_bytes()) / 1024, error,
                        took[0], took[1]);
            if (std::string(format) == "int2_min_g32") (per_token ? by_token : by_channel) = error;
            if (cache.work().quantized != channels * (cache.quantized_keys() + cache.quantized_values())) return 1;  // each number once
        }
    std::printf("2 bits: scales along the tokens of a channel lose %.1f times less than along the channels of a token\n", by_token / by_channel);
    return by_channel < by_token ? 0 : 1;
}
