// Loops that do one thing as fast as a CPU can: what products are measured against. One set for each instruction-set
// level, in a file of its own whose functions are compiled for that level; call only what the CPU supports.
//
// No nibble and no Eigen here or in the probe files: inline functions of theirs would be compiled for the level, too.
#pragma once

#include <cstddef>
#include <cstdint>

namespace bench {

/// The probes of one level.
///
///   level        fp32                    int8
///   scalar       multiply, add           multiply, add in int32
///   avx2         vfmadd, ymm             vpmaddubsw and vpaddw, ymm
///   avxvnni      vfmadd, ymm             vpdpbusd, ymm
///   avx512       vfmadd, zmm             vpmaddubsw and vpaddw, zmm
///   avx512vnni   vfmadd, zmm             vpdpbusd, zmm
struct probe_set {
    /// Reads [p, p + bytes) once, in order; bytes is a multiple of 512. ahead: how far in front of the loads prefetches
    /// go, in bytes; 0: none. Returns a number that depends on every byte.
    std::uint64_t (*read)(const unsigned char* p, std::size_t bytes, std::size_t ahead);
    /// `rounds` times f32_ops (int8_ops) operations on independent registers; a multiplication and an addition are two.
    float (*f32)(std::int64_t rounds);
    std::int32_t (*int8)(std::int64_t rounds);
    double f32_ops;
    double int8_ops;
};

// Null where the compiler cannot target the level.
[[nodiscard]] const probe_set* scalar_probes() noexcept;
[[nodiscard]] const probe_set* avx2_probes() noexcept;
[[nodiscard]] const probe_set* avxvnni_probes() noexcept;
[[nodiscard]] const probe_set* avx512_probes() noexcept;
[[nodiscard]] const probe_set* avx512vnni_probes() noexcept;

}  // namespace bench

#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
#define BENCH_PROBES_X86 1
// Sums of a loop that multiplies and adds in one instruction: as many as latency times throughput (5 x 2), and few
// enough for 16 registers; of one that adds with vpaddw, which takes a cycle; and of one that only loads. Each has a
// name of its own: GCC keeps parts of an array in memory.
#define BENCH_FMA_SUMS 10
#define BENCH_ADD_SUMS 8
#define BENCH_EACH_4(X) X(0) X(1) X(2) X(3)
#define BENCH_EACH_8(X) BENCH_EACH_4(X) X(4) X(5) X(6) X(7)
#define BENCH_EACH_10(X) BENCH_EACH_8(X) X(8) X(9)
// Keeps a register's value from the optimizer, at no cost.
#define BENCH_OPAQUE(x) __asm__ volatile("" : "+x"(x))
#else
#define BENCH_PROBES_X86 0
#endif
