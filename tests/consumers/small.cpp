// The least that needs nibble's headers and Eigen's, for the consumers that test CMake code and not nibble.
#include <nibble/eigen.hpp>

// EXPECT_EIGEN: which Eigen this program must have got. 1: the parent project's, 5: a package that says so, 0: neither.
#if !defined(WHICH_Eigen3)
#define WHICH_Eigen3 0
#endif
#if defined(EXPECT_EIGEN) && EXPECT_EIGEN != WHICH_Eigen3
#error "nibble took another Eigen than it should"
#endif

int main() { return Eigen::MatrixXf::Ones(2, 2).sum() == 4.0f ? 0 : 1; }
