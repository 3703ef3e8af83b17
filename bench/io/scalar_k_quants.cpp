// The searches as ggml defines them (ggml-quants.c, quantize_row_q4_K_ref and quantize_row_q6_K_ref), in the order of its
// sums, so that the bytes are the same.
#include "scalar_k_quants.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include <nibble/formats/half.hpp>

namespace bench::io {
namespace {

int nearest(float x) { return static_cast<int>(std::nearbyint(x)); }
int clamped(float x, int low, int high) { return (std::min)((std::max)(nearest(x), low), high); }
float half_of(const std::uint8_t* at) {
    std::uint16_t h;
    std::memcpy(&h, at, 2);
    return nibble::fp16_to_float(h);
}
void put_half(float x, std::uint8_t* at) {
    const std::uint16_t h = nibble::float_to_fp16(x);
    std::memcpy(at, &h, 2);
}

struct affine {
    float scale, minimum;
};

// x is about scale * code - minimum, codes 0 to 15, weighted by the root mean square of the group and |x|.
affine search_affine(const float* x) {
    float squares = 0.0f;
    for (int i = 0; i < 32; ++i) squares += x[i] * x[i];
    const float average = std::sqrt(squares / 32.0f);
    float weight[32], low = x[0], high = x[0], sum_w = 0.0f, sum_x = 0.0f;
    for (int i = 0; i < 32; ++i) {
        weight[i] = average + std::fabs(x[i]);
        low = (std::min)(low, x[i]);
        high = (std::max)(high, x[i]);
        sum_w += weight[i];
        sum_x += weight[i] * x[i];
    }
    low = (std::min)(low, 0.0f);
    if (high == low) return {0.0f, -low};
    float scale = 1.0f / (15.0f / (high - low)), inverse = 15.0f / (high - low), best = 0.0f;
    for (int i = 0; i < 32; ++i) {
        const float d = scale * static_cast<float>(clamped(inverse * (x[i] - low), 0, 15)) + low - x[i];
        best += weight[i] * (d * d);
    }
    for (int step = 0; step <= 20; ++step) {
        inverse = (-1.0f + 0.1f * static_cast<float>(step) + 15.0f) / (high - low);
        int code[32];
        float sum_l = 0.0f, sum_l2 = 0.0f, sum_xl = 0.0f;
        for (int i = 0; i < 32; ++i) {
            code[i] = clamped(inverse * (x[i] - low), 0, 15);
            const float l = static_cast<float>(code[i]);
            sum_l += weight[i] * l;
            sum_l2 += weight[i] * l * l;
            sum_xl += weight[i] * l * x[i];
        }
        const float determinant = sum_w * sum_l2 - sum_l * sum_l;
        if (!(determinant > 0.0f)) continue;
        float this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
        float this_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant;
        if (this_low > 0.0f) {
            this_low = 0.0f;
            this_scale = sum_xl / sum_l2;
        }
        float error = 0.0f;
        for (int i = 0; i < 32; ++i) {
            const float d = this_scale * static_cast<float>(code[i]) + this_low - x[i];
            error += weight[i] * (d * d);
        }
        if (error < best) {
            best = error;
            scale = this_scale;
            low = this_low;  // the next trial divides by high - this one
        }
    }
    return {scale, -low};
}

// x is about scale * code, codes -32 to 31, weighted by x^2.
float search_symmetric(const float* x) {
    float most = 0.0f, extreme = 0.0f;
    for (int i = 0; i < 16; ++i)
        if (std::fabs(x[i]) > most) {
            most = std::fabs(x[i]);
            extreme = x[i];
        }
    if (most < 1e-15f) return 0.0f;
    float scale = 0.0f, best = 0.0f;
    for (int step = 0; step <= 18; ++step) {
        const int offset = step == 0 ? 0 : step <= 9 ? step - 10 : step - 9;  // 0, then -9 .. -1, 1 .. 9
        const float inverse = -(32.0f + 0.1f * static_cast<float>(offset)) / extreme;
        float sum_xl = 0.0f, sum_l2 = 0.0f;
        for (int i = 0; i < 16; ++i) {
            const float l = static_cast<float>(clamped(inverse * x[i], -32, 31)), w = x[i] * x[i];
            sum_xl += w * x[i] * l;
            sum_l2 += w * l * l;
        }
        if (step == 0) {
            scale = sum_l2 != 0.0f ? sum_xl / sum_l2 : 0.0f;
            best = scale * sum_xl;
        } else if (sum_l2 > 0.0f && sum_xl * sum_xl > best * sum_l2) {
            scale = sum_xl / sum_l2;
            best = scale * sum_xl;
        }
    }
    return scale;
}

}  // namespace

void quantize_q4_k(const float* x, std::uint8_t* block) {
    affine group[8];
    float most_scale = 0.0f, most_minimum = 0.0f;
    for (int j = 0; j < 8; ++j) {
        group[j] = search_affine(x + 32 * j);
        most_scale = (std::max)(most_scale, group[j].scale);
        most_minimum = (std::max)(most_minimum, group[j].minimum);
    }
    const float inverse_scale = most_scale > 0.0f ? 63.0f / most_scale : 0.0f;
    const float inverse_minimum = most_minimum > 0.0f ? 63.0f / most_minimum : 0.0f;
    put_half(most_scale / 63.0f, block);
    put_half(most_minimum / 63.0f, block + 2);
    std::uint8_t* const packed = block + 4;
    std::memset(packed, 0, 140);
    const float d = half_of(block), m = half_of(block + 2);
    for (int j = 0; j < 8; ++j) {
        const int ls = (std::min)(63, nearest(inverse_scale * group[j].scale)) & 63;
        const int lm = (std::min)(63, nearest(inverse_minimum * group[j].minimum)) & 63;
        if (j < 4) {
            packed[j] = static_cast<std::uint8_t>(packed[j] | ls);
            packed[j + 4] = static_cast<std::uint8_t>(packed[j + 4] | lm);
        } else {
            packed[j + 4] = static_cast<std::uint8_t>((ls & 15) | (lm & 15) << 4);
            packed[j - 4] = static_cast<std::uint8_t>(packed[j - 4] | (ls >> 4) << 6);
            packed[j] = static_cast<std::uint8_t>(packed[j] | (lm >> 4) << 6);
        }
        const float scale = d * static_cast<float>(ls), minimum = m * static_cast<float>(lm);
        std::uint8_t* const codes = block + 16 + j / 2 * 32;
        for (int i = 0; i < 32; ++i) {
            const int code = scale == 0.0f ? 0 : clamped((x[32 * j + i] + minimum) / scale, 0, 15);
            codes[i] = static_cast<std::uint8_t>(codes[i] | code << (j % 2 * 4));
        }
    }
}

void quantize_q6_k(const float* x, std::uint8_t* block) {
    std::memset(block, 0, q6_k_bytes);
    float scale[16], most = 0.0f, extreme = 0.0f;
    for (int j = 0; j < 16; ++j) {
        scale[j] = search_symmetric(x + 16 * j);
        if (std::fabs(scale[j]) > most) {
            most = std::fabs(scale[j]);
            extreme = scale[j];
        }
    }
    if (most < 1e-15f) return;
    const float inverse = -128.0f / extreme;
    put_half(1.0f / inverse, block + 208);
    const float d = half_of(block + 208);
    for (int j = 0; j < 16; ++j) {
        const int stored = (std::min)(127, nearest(inverse * scale[j]));
        block[192 + j] = static_cast<std::uint8_t>(stored);
        const float s = d * static_cast<float>(stored);
        if (s == 0.0f) continue;  // never with weights of ordinary sizes
        for (int i = 0; i < 16; ++i) {
            const auto code = static_cast<unsigned>(clamped(x[16 * j + i] / s, -32, 31) + 32);
            const int k = 16 * j + i, half = k / 128, quarter = k % 128 / 32, place = k % 32;
            std::uint8_t& low = block[64 * half + 32 * (quarter % 2) + place];
            std::uint8_t& high = block[128 + 32 * half + place];
            low = static_cast<std::uint8_t>(low | (code & 15) << (quarter / 2 * 4));
            high = static_cast<std::uint8_t>(high | (code >> 4) << (quarter * 2));
        }
    }
}

}  // namespace bench::io
