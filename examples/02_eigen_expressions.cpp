// One layer of a network, written with whatever Eigen types the program has: a row-major map of a checkpoint's bytes,
// half-precision weights, blocks as outputs, tokens as rows. Nothing that has memory of its own is copied.
#include <iostream>
#include <vector>

#include <Eigen/Core>
#include <nibble/nibble.hpp>

using RowMajor = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

int main() {
    const Eigen::Index in = 384, out = 512, tokens = 16;

    // Weights of a checkpoint: row-major, fp16, in a buffer that someone else owns.
    std::vector<Eigen::half> file(static_cast<std::size_t>(out * in));
    for (std::size_t i = 0; i < file.size(); ++i) file[i] = Eigen::half(static_cast<float>(static_cast<int>(i * 37 % 101) - 50) / 500.0f);
    using HalfRows = Eigen::Matrix<Eigen::half, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
    const Eigen::Map<const HalfRows> checkpoint(file.data(), out, in);

    const auto query = nibble::quantize<nibble::int8>(checkpoint.topRows(256));     // a block of a map
    const auto value = nibble::quantize<nibble::int4>(checkpoint.bottomRows(256));  // groups of 32 by default

    // Activations as Python stores them: tokens x features, row-major.
    const RowMajor x = RowMajor::Random(tokens, in);

    // Two products into the two halves of one matrix; the outputs are blocks.
    Eigen::MatrixXf qv(out, tokens);
    nibble::gemm(query, x.transpose(), qv.topRows(256));
    nibble::gemm(value, x.transpose(), qv.bottomRows(256));

    // The same with tokens as rows, and an expression that has to be evaluated: scaled activations.
    const RowMajor scaled = (x * 0.5f) * query.transpose();

    // A double matrix is read as it is.
    const Eigen::MatrixXd precise = x.transpose().cast<double>();
    const Eigen::MatrixXf again = query * precise;

    std::cout << "same bits from floats and doubles: " << (again == qv.topRows(256) ? "yes" : "no") << '\n'
              << "scaling by 1/2 is exact:           " << (scaled == (qv.topRows(256) * 0.5f).transpose() ? "yes" : "no") << '\n'
              << "first token alone, same bits:      " << (query * x.row(0).transpose() == qv.col(0).head(256) ? "yes" : "no") << '\n';
    return again == qv.topRows(256) ? 0 : 1;
}
