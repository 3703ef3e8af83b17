// From the active level to its kernels.
#pragma once

#include "../cpu.hpp"
#include "isa/foreach_level.hpp"

namespace nibble::inline NIBBLE_ABI::detail {

[[nodiscard]] inline const kernel_table& kernels_of(isa level) noexcept {
#define NIBBLE_ENTRY(name) &name::kernels,
    static constexpr const kernel_table* tables[] = {NIBBLE_LEVELS(NIBBLE_ENTRY)};
#undef NIBBLE_ENTRY
    return *tables[static_cast<std::size_t>(level)];
}

[[nodiscard]] inline const kernel_table& active_kernels() noexcept { return kernels_of(active_isa()); }

[[nodiscard]] inline const epilogue_table& epilogues_of(isa level) noexcept {
#define NIBBLE_ENTRY(name) &name::epilogues,
    static constexpr const epilogue_table* tables[] = {NIBBLE_LEVELS(NIBBLE_ENTRY)};
#undef NIBBLE_ENTRY
    return *tables[static_cast<std::size_t>(level)];
}

[[nodiscard]] inline const epilogue_table& active_epilogues() noexcept { return epilogues_of(active_isa()); }

}  // namespace nibble::detail
