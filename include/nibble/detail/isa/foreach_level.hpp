// Compiles the kernels once per instruction-set level: the only file that opens target regions.
//
// Each level is a namespace of its own, so two levels never share a symbol. Nothing with an include guard is included
// inside a region: a header first seen there would be compiled for that level and linked into callers that lack it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

#include "../../scale.hpp"
#include "../kernels/epilogue_types.hpp"
#include "../kernels/types.hpp"
#include "levels.hpp"

#if NIBBLE_COMPILE_X86
#include <immintrin.h>
#elif NIBBLE_COMPILE_NEON
#include <arm_neon.h>
#endif

NIBBLE_FP_BEGIN
namespace nibble::inline NIBBLE_ABI::detail::scalar {
#include "scalar.inl.hpp"

#include "../kernels/all.inl.hpp"
}  // namespace nibble::detail::scalar
NIBBLE_FP_END

#if NIBBLE_COMPILE_X86 || NIBBLE_COMPILE_NEON

#if defined(__clang__)
#define NIBBLE_TARGET_BEGIN(features) NIBBLE_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define NIBBLE_TARGET_END NIBBLE_PRAGMA(clang attribute pop)
#else
#define NIBBLE_TARGET_BEGIN(features) NIBBLE_PRAGMA(GCC push_options) NIBBLE_PRAGMA(GCC target(features))
#define NIBBLE_TARGET_END NIBBLE_PRAGMA(GCC pop_options)
#endif

#endif

#if NIBBLE_COMPILE_X86

NIBBLE_FP_BEGIN
NIBBLE_TARGET_BEGIN("avx2,fma,f16c")
namespace nibble::inline NIBBLE_ABI::detail::avx2 {
#include "avx2.inl.hpp"

#include "x86_pack.inl.hpp"

#include "avx2_dot.inl.hpp"

#include "../kernels/all.inl.hpp"
}  // namespace nibble::detail::avx2
NIBBLE_TARGET_END

NIBBLE_TARGET_BEGIN("avx2,fma,f16c,avxvnni")
namespace nibble::inline NIBBLE_ABI::detail::avxvnni {
#include "avx2.inl.hpp"

#include "x86_pack.inl.hpp"

#include "avxvnni_dot.inl.hpp"

#include "../kernels/digits.inl.hpp"
// Only the integer dots differ from those of avx2.
inline constexpr kernel_table kernels = with_digits(avx2::kernels, digit_kernels_of<narrow_kind>, digit_kernels_of<wide_kind>);
inline constexpr const epilogue_table& epilogues = avx2::epilogues;
}  // namespace nibble::detail::avxvnni
NIBBLE_TARGET_END

NIBBLE_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
namespace nibble::inline NIBBLE_ABI::detail::avx512 {
#include "avx512.inl.hpp"

#include "x86_pack.inl.hpp"

#include "avx512_dot.inl.hpp"

#include "../kernels/all.inl.hpp"
}  // namespace nibble::detail::avx512
NIBBLE_TARGET_END

NIBBLE_TARGET_BEGIN("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512vbmi")
namespace nibble::inline NIBBLE_ABI::detail::avx512vnni {
#include "avx512.inl.hpp"

#include "x86_pack.inl.hpp"

#include "avx512vnni_dot.inl.hpp"

#include "../kernels/digits.inl.hpp"
// Only the integer dots differ from those of avx512.
inline constexpr kernel_table kernels = with_digits(avx512::kernels, digit_kernels_of<narrow_kind>, digit_kernels_of<wide_kind>);
inline constexpr const epilogue_table& epilogues = avx512::epilogues;
}  // namespace nibble::detail::avx512vnni
NIBBLE_TARGET_END
NIBBLE_FP_END

#elif NIBBLE_COMPILE_NEON

// GCC asks for the whole architecture: its assembler has no dot products below Armv8.2. Clang takes the name of a CPU there.
NIBBLE_FP_BEGIN
#if defined(__clang__)
NIBBLE_TARGET_BEGIN("dotprod")
#else
NIBBLE_TARGET_BEGIN("arch=armv8.2-a+dotprod")
#endif
namespace nibble::inline NIBBLE_ABI::detail::neon {
#include "neon.inl.hpp"

#include "neon_dot.inl.hpp"

#include "../kernels/all.inl.hpp"
}  // namespace nibble::detail::neon
NIBBLE_TARGET_END
NIBBLE_FP_END

#endif

#undef NIBBLE_TARGET_BEGIN
#undef NIBBLE_TARGET_END
