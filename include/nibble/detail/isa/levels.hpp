// The instruction-set levels, in ascending order. One list: dispatch tables, tests and benchmarks derive from it.
// A level is compiled where the compiler can target it; whether this CPU has it is asked once at run time (cpu.hpp).
//
//   level        needs                                              elsewhere
//   scalar       nothing beyond the baseline                        every compiler and CPU
//   avx2         AVX2, FMA, F16C and the OS saving ymm              x86-64 with GCC or clang
//   avxvnni      avx2 and AVX-VNNI
//   avx512       avx2, AVX-512 F BW DQ VL and the OS saving zmm
//   avx512vnni   avx512, AVX512-VNNI and VBMI
//   neon         the dot products of Armv8.2 (sdot)                 aarch64 with GCC or clang
#pragma once

#include "../../config.hpp"

// Frozen to 0 or 1 here: inside a target region __AVX2__ means different things to different compilers.
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define NIBBLE_COMPILE_X86 1
#else
#define NIBBLE_COMPILE_X86 0
#endif

#if defined(__aarch64__) && (defined(__GNUC__) || defined(__clang__))
#define NIBBLE_COMPILE_NEON 1
#else
#define NIBBLE_COMPILE_NEON 0
#endif

#if NIBBLE_COMPILE_X86
#define NIBBLE_LEVELS(X) X(scalar) X(avx2) X(avxvnni) X(avx512) X(avx512vnni)
#elif NIBBLE_COMPILE_NEON
#define NIBBLE_LEVELS(X) X(scalar) X(neon)
#else
#define NIBBLE_LEVELS(X) X(scalar)
#endif

namespace nibble::inline NIBBLE_ABI {

/// An instruction-set level.
enum class isa : std::uint8_t {
#define NIBBLE_ENTRY(name) name,
    NIBBLE_LEVELS(NIBBLE_ENTRY)
#undef NIBBLE_ENTRY
};

}  // namespace nibble
