// The floating-point control register: nearest rounding, subnormals kept, exceptions masked, for as long as a call
// lasts. A host program may have set FTZ/DAZ (every -ffast-math shared object does) or another rounding mode; neither
// may change a byte or a product.
#pragma once

#include "../config.hpp"

#if defined(__x86_64__) || defined(_M_X64) || defined(__SSE2__)
#include <xmmintrin.h>
#elif !defined(__aarch64__)
#include <cfenv>
#endif

namespace nibble::inline NIBBLE_ABI::detail {

/// Sets the default floating-point environment of this thread and restores what it found. The work between must be in
/// functions of their own that are not inlined, or the compiler may move arithmetic across.
class fp_environment {
public:
    fp_environment(const fp_environment&) = delete;
    fp_environment& operator=(const fp_environment&) = delete;

#if defined(__x86_64__) || defined(_M_X64) || defined(__SSE2__)
    fp_environment() noexcept : saved_(_mm_getcsr()) { _mm_setcsr(0x1f80u); }
    ~fp_environment() { _mm_setcsr(saved_); }

private:
    unsigned saved_;
#elif defined(__aarch64__)
    fp_environment() noexcept {
        __asm__ volatile("mrs %0, fpcr" : "=r"(saved_));
        __asm__ volatile("msr fpcr, %0" : : "r"(std::uint64_t{0}) : "memory");
    }
    ~fp_environment() { __asm__ volatile("msr fpcr, %0" : : "r"(saved_) : "memory"); }

private:
    std::uint64_t saved_ = 0;
#else
    fp_environment() noexcept {
        std::fegetenv(&saved_);
        std::fesetenv(FE_DFL_ENV);
    }
    ~fp_environment() { std::fesetenv(&saved_); }

private:
    std::fenv_t saved_;
#endif
};

}  // namespace nibble::detail
