// The list of code formats. Adding a format is one struct in formats/ and one line here: tests, benchmarks, the
// documentation's table and --list all derive from it.
#pragma once

#include <span>
#include <string_view>

#include "codebook.hpp"
#include "half.hpp"
#include "integer.hpp"
#include "minifloat.hpp"

#define NIBBLE_FORMATS(X) \
    X(int8)               \
    X(int6)               \
    X(int5)               \
    X(int4)               \
    X(int3)               \
    X(int2)               \
    X(binary)             \
    X(ternary)            \
    X(nf4)                \
    X(fp4)                \
    X(af4)                \
    X(iq4_nl)             \
    X(fp4_e2m1)           \
    X(fp6_e2m3)           \
    X(fp6_e3m2)           \
    X(fp8_e4m3)           \
    X(fp8_e5m2)           \
    X(fp8_e4m3fnuz)       \
    X(fp8_e5m2fnuz)       \
    X(bf16)               \
    X(fp16)

namespace nibble::inline NIBBLE_ABI {

/// Every code format of the library.
[[nodiscard]] inline std::span<const code_format* const> formats() noexcept {
#define NIBBLE_ENTRY(name) &name::format,
    static constexpr const code_format* list[] = {NIBBLE_FORMATS(NIBBLE_ENTRY)};
#undef NIBBLE_ENTRY
    return list;
}

/// The code format of that name, or null.
[[nodiscard]] inline const code_format* find_format(std::string_view name) noexcept {
    for (const code_format* f : formats())
        if (name == f->name) return f;
    return nullptr;
}

}  // namespace nibble
