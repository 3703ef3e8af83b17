// Quantize a matrix, multiply with it, see what it cost.
#include <iostream>

#include <Eigen/Core>
#include <nibble/nibble.hpp>

int main() {
    Eigen::MatrixXf W = Eigen::MatrixXf::Random(1024, 1024);  // N x K weights
    Eigen::MatrixXf X = Eigen::MatrixXf::Random(1024, 8);     // K x M activations, a column per token

    auto Wq = nibble::quantize<nibble::q4_k>(W);  // or nf4, int8, mxfp4 ..., or by name: quantize(W, "q4_k")
    Eigen::MatrixXf Y = Wq * X;                   // fused: the weights stay quantized in memory

    const Eigen::MatrixXf exact = W * X;
    std::cout << Wq.bits_per_weight() << " bits per weight, " << W.size() * 4 / static_cast<long>(Wq.bytes())
              << " times smaller\n"
              << "weights " << nibble::sqnr_db(W, nibble::dequantize(Wq)) << " dB, outputs " << nibble::sqnr_db(exact, Y)
              << " dB\n";
}
