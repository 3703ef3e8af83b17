// A convolution's weights and a batch of token embeddings: tensors with a channel axis.
#include <iostream>

#include <nibble/nibble.hpp>
#include <nibble/tensor.hpp>

int main() {
    // 3x3 convolution, [out, in, h, w] in row-major order as most checkpoints have it.
    Eigen::Tensor<float, 4, Eigen::RowMajor> kernel(64, 32, 3, 3);
    kernel.setRandom();
    const nibble::qtensor q = nibble::quantize<nibble::int8>(kernel, 0);  // one scale per output channel
    const auto back = nibble::dequantize<Eigen::Tensor<float, 4, Eigen::RowMajor>>(q);
    const Eigen::Tensor<float, 0, Eigen::RowMajor> worst = (back - kernel).abs().maximum();
    std::cout << "kernel: " << q.matrix.bits_per_weight() << " bits per weight, largest error " << worst() << '\n';

    // A projection applied to every token of every sequence: features x tokens x batch.
    const Eigen::MatrixXf W = Eigen::MatrixXf::Random(48, 96);
    const nibble::qmatrix Wq = nibble::quantize<nibble::nf4>(W);
    Eigen::Tensor<float, 3> x(96, 10, 4);
    x.setRandom();
    const Eigen::Tensor<float, 3> y = Wq * x;
    std::cout << "projected: " << y.dimension(0) << " x " << y.dimension(1) << " x " << y.dimension(2) << '\n';

    // It is the product of the matrix with each vector along the first axis.
    const Eigen::VectorXf one = Wq * Eigen::Map<const Eigen::VectorXf>(&x(0, 3, 2), 96);
    bool same = true;
    for (Eigen::Index n = 0; n < one.size(); ++n) same = same && one[n] == y(n, 3, 2);
    std::cout << "same bits as one vector at a time: " << (same ? "yes" : "no") << '\n';
    return same ? 0 : 1;
}
