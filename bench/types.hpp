// What the parts of the benchmark program share.
#pragma once

#include <stdexcept>
#include <string>

#include <Eigen/Core>

namespace bench {

/// Weights as files hold them: [out, in], a row after the other.
using row_matrix = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;

/// Something is wrong with what the user gave us: options, files, the disk. The message is for the user and says what
/// was expected; the program prints it and ends with exit code 1.
class bad_input : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// Ctrl-C came before there was anything to show. Exit code 130.
class interrupted : public std::runtime_error {
public:
    interrupted() : std::runtime_error("interrupted") {}
};

}  // namespace bench
