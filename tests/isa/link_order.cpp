// One half of a program whose files are compiled for different CPUs: link_order.cmake says how. HALF names its
// function; MAIN makes the main function instead, which calls the older half.
#include <cstdint>

#if defined(MAIN)

#include <cstdio>

std::uint32_t older();

int main() { return std::printf("%08lx", static_cast<unsigned long>(older())) == 8 ? 0 : 1; }

#else

#include <nibble/nibble.hpp>

#include <cstring>

std::uint32_t HALF();

std::uint32_t HALF() {
    Eigen::MatrixXf w(33, 64), x(64, 3);
    std::uint32_t state = 1;
    const auto fill = [&state](Eigen::MatrixXf& m) {
        for (Eigen::Index i = 0; i < m.size(); ++i) {
            state = state * 1664525u + 1013904223u;
            m.data()[i] = 0x1p-23f * static_cast<float>(static_cast<std::int32_t>(state) >> 8);
        }
    };
    fill(w);
    fill(x);
    std::uint32_t hash = 2166136261u;
    const auto add = [&hash](const Eigen::MatrixXf& m) {
        for (Eigen::Index i = 0; i < m.size(); ++i) {
            std::uint32_t bits;
            std::memcpy(&bits, m.data() + i, 4);
            hash = (hash ^ bits) * 16777619u;
        }
    };
    for (const char* recipe : {"int8_per_channel", "int4_zero_g128", "nf4_double", "q4_k", "mxfp4"}) {
        const nibble::qmatrix wq = nibble::quantize(w, recipe);
        add(wq * x);
        Eigen::MatrixXf y(w.rows(), x.cols());
        nibble::gemm(wq, x, y, {.compute = nibble::compute::a8});
        add(y);
        add(nibble::dequantize(wq));
    }
    return hash;
}

#endif
