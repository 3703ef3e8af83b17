// All kernels, in order (no include guard: see digits.inl.hpp).
#include "digits.inl.hpp"
#include "unpack.inl.hpp"
#include "chain.inl.hpp"
#include "scales.inl.hpp"
#include "round.inl.hpp"
#include "table.inl.hpp"
#include "epilogue.inl.hpp"
