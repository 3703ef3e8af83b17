// Compiler facts, decided once: exceptions, and the floating-point region that the numerics contract rests on.
//
// Everything that decides a byte or a product is written between NIBBLE_FP_BEGIN and NIBBLE_FP_END. Inside, whatever
// flags the including file has (-ffast-math, -Ofast, -march=native), a multiply and an add are two roundings, a
// division is a division, and nothing is reassociated. GCC 12 contracts even an intrinsic multiply and add into an fma
// when the target has one; only a region-wide option stops that.
//
// Inside a region: no lambdas (they do not inherit the options) and no std:: arithmetic.
// Finiteness is always tested on integer bits: no pragma brings back isnan() under -ffinite-math-only.
#pragma once

#include <cfloat>
#include <cstddef>
#include <cstdint>

#include "version.hpp"

#if !defined(__cplusplus) || (__cplusplus < 202002L && (!defined(_MSVC_LANG) || _MSVC_LANG < 202002L))
#error "nibble needs C++20: compile with -std=c++20 or newer"
#endif

#if defined(FLT_EVAL_METHOD) && FLT_EVAL_METHOD > 0
#error "nibble needs float arithmetic in float (FLT_EVAL_METHOD 0); on 32-bit x86 compile with -msse2 -mfpmath=sse"
#endif

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "nibble supports little-endian machines only"
#endif

#if defined(__cpp_exceptions) || defined(__EXCEPTIONS) || defined(_CPPUNWIND)
#define NIBBLE_HAS_EXCEPTIONS 1
#else
#define NIBBLE_HAS_EXCEPTIONS 0
#endif

#define NIBBLE_PRAGMA(text) _Pragma(#text)

#if defined(__clang__)
#if defined(__aarch64__) && __clang_major__ < 15
// These ignore float_control on Arm, with a warning: contraction is all that can be pinned.
#if defined(__FAST_MATH__) || (defined(__FINITE_MATH_ONLY__) && __FINITE_MATH_ONLY__)
#error "nibble on Arm holds its results under -ffast-math with GCC, or clang 15 and newer: compile without it"
#endif
#define NIBBLE_FP_BEGIN NIBBLE_PRAGMA(clang fp contract(off))
#define NIBBLE_FP_END NIBBLE_PRAGMA(STDC FP_CONTRACT DEFAULT)
#else
// Under -ffp-contract=fast (part of -ffast-math) with an fma in the baseline, the code generator fuses across
// contract(off); arithmetic that may trap is never fused. It costs quantizing a third of its speed, so only there.
#if defined(__FMA__) || defined(__aarch64__)
#define NIBBLE_FP_EXCEPT NIBBLE_PRAGMA(float_control(except, on))
#else
#define NIBBLE_FP_EXCEPT
#endif
// contract(off) comes last: float_control(precise, on) turns contraction on.
#define NIBBLE_FP_BEGIN                              \
    NIBBLE_PRAGMA(float_control(push))               \
    NIBBLE_PRAGMA(float_control(precise, on))        \
    NIBBLE_FP_EXCEPT                                 \
    NIBBLE_PRAGMA(clang fp contract(off))
#define NIBBLE_FP_END NIBBLE_PRAGMA(float_control(pop))
#endif
#define NIBBLE_NOINLINE __attribute__((noinline))
#define NIBBLE_INLINE inline __attribute__((always_inline))
#elif defined(__GNUC__)
#define NIBBLE_FP_BEGIN                  \
    NIBBLE_PRAGMA(GCC push_options)      \
    NIBBLE_PRAGMA(GCC optimize("no-fast-math", "fp-contract=off"))
#define NIBBLE_FP_END NIBBLE_PRAGMA(GCC pop_options)
#define NIBBLE_NOINLINE __attribute__((noinline))
#define NIBBLE_INLINE inline __attribute__((always_inline))
#elif defined(_MSC_VER)
#define NIBBLE_FP_BEGIN __pragma(float_control(precise, on, push)) __pragma(fp_contract(off))
#define NIBBLE_FP_END __pragma(float_control(pop))
#define NIBBLE_NOINLINE __declspec(noinline)
#define NIBBLE_INLINE __forceinline
#else
#error "nibble knows how to pin floating-point options for GCC, clang and MSVC only"
#endif

// nibble::compiled: the entry points that are marked NIBBLE_API are declared only, and defined once in a static library
// (cmake/compiled.cpp). Without the macro NIBBLE_COMPILED everything is inline, which is the default.
#if defined(NIBBLE_COMPILED)
#define NIBBLE_API
#else
#define NIBBLE_API inline
#endif
#if !defined(NIBBLE_COMPILED) || defined(NIBBLE_COMPILED_HERE)
#define NIBBLE_DEFINE_API 1
#else
#define NIBBLE_DEFINE_API 0
#endif
// calibration/ and algorithms/ are in a file of their own of the library (cmake/compiled_algorithms.cpp).
#if !defined(NIBBLE_COMPILED) || defined(NIBBLE_COMPILED_ALGORITHMS_HERE)
#define NIBBLE_DEFINE_ALGORITHMS 1
#else
#define NIBBLE_DEFINE_ALGORITHMS 0
#endif
// So is io/, in a library of its own because it needs nlohmann-json (cmake/compiled_io.cpp): what is marked NIBBLE_IO_API.
#if defined(NIBBLE_COMPILED_IO)
#define NIBBLE_IO_API
#else
#define NIBBLE_IO_API inline
#endif
#if !defined(NIBBLE_COMPILED_IO) || defined(NIBBLE_COMPILED_IO_HERE)
#define NIBBLE_DEFINE_IO 1
#else
#define NIBBLE_DEFINE_IO 0
#endif

// The inline namespace of everything in nibble: which instructions the compiler may use in plain code. A program whose
// files are compiled for different CPUs then has two of each inline function, and a file for the oldest CPU never calls
// what another file's flags made; a type of nibble that crosses from one such file to another does not link. Eigen asks
// the same: files that share its objects need the same -m flags. Settings (set_active_isa, set_error_handler) are heard by
// files of the same flags. With nibble::compiled there is one name: its users compile with the library's flags.
#if defined(NIBBLE_COMPILED)
#define NIBBLE_ABI abi_compiled
#elif defined(__AVX512F__)
#define NIBBLE_ABI abi_avx512
#elif defined(__AVX2__) || defined(__FMA__) || defined(__BMI__) || defined(__BMI2__)
#define NIBBLE_ABI abi_avx2
#elif defined(__AVX__)
#define NIBBLE_ABI abi_avx
#elif defined(__SSE3__) || defined(__POPCNT__)
#define NIBBLE_ABI abi_sse4
#elif defined(__ARM_FEATURE_SVE)
#define NIBBLE_ABI abi_sve
#elif defined(__ARM_FEATURE_DOTPROD) || defined(__ARM_FEATURE_ATOMICS)
#define NIBBLE_ABI abi_armv8_2
#else
#define NIBBLE_ABI abi_baseline
#endif

namespace nibble::inline NIBBLE_ABI {

/// Rows, columns, positions and strides. The same type as Eigen::Index by default.
using index = std::ptrdiff_t;

}  // namespace nibble
