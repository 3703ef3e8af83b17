// From the active level to its kernels.
#pragma once

#include "../cpu.hpp"
#include "kernels/epilogue_types.hpp"
#include "kernels/types.hpp"

#if NIBBLE_DEFINE_API  // else the kernels are in the library, and not even read
#include "isa/foreach_level.hpp"
#endif

namespace nibble::inline NIBBLE_ABI::detail {

[[nodiscard]] NIBBLE_API const kernel_table& kernels_of(isa level) noexcept;
[[nodiscard]] NIBBLE_API const epilogue_table& epilogues_of(isa level) noexcept;

[[nodiscard]] inline const kernel_table& active_kernels() noexcept { return kernels_of(active_isa()); }
[[nodiscard]] inline const epilogue_table& active_epilogues() noexcept { return epilogues_of(active_isa()); }

#if NIBBLE_DEFINE_API
NIBBLE_API const kernel_table& kernels_of(isa level) noexcept {
#define NIBBLE_ENTRY(name) &name::kernels,
    static constexpr const kernel_table* tables[] = {NIBBLE_LEVELS(NIBBLE_ENTRY)};
#undef NIBBLE_ENTRY
    return *tables[static_cast<std::size_t>(level)];
}

NIBBLE_API const epilogue_table& epilogues_of(isa level) noexcept {
#define NIBBLE_ENTRY(name) &name::epilogues,
    static constexpr const epilogue_table* tables[] = {NIBBLE_LEVELS(NIBBLE_ENTRY)};
#undef NIBBLE_ENTRY
    return *tables[static_cast<std::size_t>(level)];
}
#endif

}  // namespace nibble::detail
