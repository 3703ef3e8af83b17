// Which instruction sets this CPU has, and which one runs.
#pragma once

#include <atomic>
#include <cstdlib>
#include <span>
#include <string_view>

#include "detail/isa/levels.hpp"
#include "error.hpp"

#if NIBBLE_COMPILE_X86
#include <cpuid.h>
#elif NIBBLE_COMPILE_NEON && defined(__linux__)
#include <sys/auxv.h>
#elif NIBBLE_COMPILE_NEON && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace nibble::inline NIBBLE_ABI {

/// The levels that were compiled in, lowest first.
[[nodiscard]] inline std::span<const isa> compiled_isas() noexcept {
#define NIBBLE_ENTRY(name) isa::name,
    static constexpr isa list[] = {NIBBLE_LEVELS(NIBBLE_ENTRY)};
#undef NIBBLE_ENTRY
    return list;
}

[[nodiscard]] constexpr const char* name_of(isa level) noexcept {
    switch (level) {
#define NIBBLE_ENTRY(name) \
    case isa::name: return #name;
        NIBBLE_LEVELS(NIBBLE_ENTRY)
#undef NIBBLE_ENTRY
    }
    return "?";
}

namespace detail {

/// Whether this CPU and its operating system can run a level: by CPUID and XCR0 (the registers that are saved); on Arm by
/// what the options of this file presume, else by what Linux, Android, macOS and iOS tell (other systems: scalar).
[[nodiscard]] inline bool detect(isa level) noexcept {
    if (level == isa::scalar) return true;
#if NIBBLE_COMPILE_X86
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (__get_cpuid(1, &a, &b, &c, &d) == 0) return false;
    constexpr unsigned fma = 1u << 12, osxsave = 1u << 27, avx = 1u << 28, f16c = 1u << 29;
    if ((c & (fma | osxsave | avx | f16c)) != (fma | osxsave | avx | f16c)) return false;
    unsigned low = 0, high = 0;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr unsigned ymm = 0x6, zmm = 0xe6;
    if ((low & ymm) != ymm || __get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return false;
    constexpr unsigned avx2 = 1u << 5;
    if ((b & avx2) == 0 || level == isa::avx2) return (b & avx2) != 0;
    if (level == isa::avxvnni) {
        constexpr unsigned avxvnni = 1u << 4;
        return __get_cpuid_count(7, 1, &a, &b, &c, &d) != 0 && (a & avxvnni) != 0;
    }
    constexpr unsigned f_dq_bw_vl = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;
    if ((low & zmm) != zmm || (b & f_dq_bw_vl) != f_dq_bw_vl) return false;
    constexpr unsigned vbmi_vnni = 1u << 1 | 1u << 11;
    return level == isa::avx512 || (c & vbmi_vnni) == vbmi_vnni;
#elif NIBBLE_COMPILE_NEON && defined(__ARM_FEATURE_DOTPROD)
    return true;
#elif NIBBLE_COMPILE_NEON && defined(__linux__)
    constexpr unsigned long asimddp = 1ul << 20;
    return (::getauxval(AT_HWCAP) & asimddp) != 0;
#elif NIBBLE_COMPILE_NEON && defined(__APPLE__)
    int has = 0;
    std::size_t size = sizeof has;
    return ::sysctlbyname("hw.optional.arm.FEAT_DotProd", &has, &size, nullptr, 0) == 0 && has != 0;
#else
    return false;
#endif
}

}  // namespace detail

/// Whether this CPU and its operating system can run a level.
[[nodiscard]] inline bool is_supported(isa level) noexcept {
#define NIBBLE_ENTRY(name) detail::detect(isa::name),
    static const bool supported[] = {NIBBLE_LEVELS(NIBBLE_ENTRY)};
#undef NIBBLE_ENTRY
    return supported[static_cast<std::size_t>(level)];
}

namespace detail {

[[nodiscard]] inline isa best_isa() noexcept {
    isa best = isa::scalar;
    for (const isa level : compiled_isas())
        if (is_supported(level)) best = level;
    // The environment variable can only lower the level: a name that this CPU lacks, or that nobody knows, changes nothing.
    if (const char* wanted = std::getenv("NIBBLE_ISA"))
        for (const isa level : compiled_isas())
            if (std::string_view(wanted) == name_of(level) && is_supported(level)) best = level;
    return best;
}

[[nodiscard]] inline std::atomic<isa>& isa_slot() noexcept {
    static std::atomic<isa> slot{best_isa()};
    return slot;
}

}  // namespace detail

/// The level that products run at: the best of this CPU, unless the environment variable NIBBLE_ISA (read once) or
/// set_active_isa says otherwise. Results do not depend on it.
[[nodiscard]] inline isa active_isa() noexcept { return detail::isa_slot().load(std::memory_order_relaxed); }

/// Makes every later call run at that level. Throws errc::unsupported if this CPU lacks it.
inline void set_active_isa(isa level) {
    if (!is_supported(level))
        detail::fail(errc::unsupported, std::string("set_active_isa: this CPU has no ") + name_of(level));
    detail::isa_slot().store(level, std::memory_order_relaxed);
}

}  // namespace nibble
