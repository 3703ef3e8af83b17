// nibble::compiled: the algorithms, which take Eigen's decompositions and long to compile. See compiled.cpp.
#define NIBBLE_COMPILED_ALGORITHMS_HERE
#include <nibble/algorithms/gptq.hpp>
#include <nibble/algorithms/awq.hpp>
#include <nibble/algorithms/refine.hpp>
