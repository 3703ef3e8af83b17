// Compiles the kernels once per instruction-set level: the only file that opens target regions.
//
// Each level is a namespace of its own, so two levels never share a symbol. Nothing with an include guard is included
// inside a region: a header first seen there would be compiled for that level and linked into callers that lack it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "../../formats/half.hpp"
#include "../kernels/types.hpp"
#include "levels.hpp"

#if NIBBLE_COMPILE_AVX2
#include <immintrin.h>
#endif

NIBBLE_FP_BEGIN
namespace nibble::detail::scalar {
#include "scalar.inl.hpp"

#include "../kernels/product.inl.hpp"
#include "../kernels/unpack.inl.hpp"
#include "../kernels/encode.inl.hpp"
#include "../kernels/decode.inl.hpp"
#include "../kernels/table.inl.hpp"
}  // namespace nibble::detail::scalar
NIBBLE_FP_END

#if NIBBLE_COMPILE_AVX2
NIBBLE_FP_BEGIN
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
namespace nibble::detail::avx2 {
#include "avx2.inl.hpp"

#include "../kernels/product.inl.hpp"
#include "../kernels/unpack.inl.hpp"
#include "../kernels/encode.inl.hpp"
#include "../kernels/decode.inl.hpp"
#include "../kernels/table.inl.hpp"
}  // namespace nibble::detail::avx2
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
NIBBLE_FP_END
#endif
