// Runs a test once per instruction-set level that was compiled in and that this CPU has.
//
//   const std::size_t levels = for_each_isa([&](nibble::isa level) { ... });
//   REQUIRE(levels >= 1);
//
// The level is forced, proven to be the active one before and after, and restored even when an assertion throws.
#pragma once

#include <nibble/cpu.hpp>

#include <cstddef>
#include <vector>

#include "support/catch.hpp"

class isa_guard {
public:
    isa_guard() : before_(nibble::active_isa()) {}
    ~isa_guard() { nibble::set_active_isa(before_); }
    isa_guard(const isa_guard&) = delete;
    isa_guard& operator=(const isa_guard&) = delete;

private:
    nibble::isa before_;
};

[[nodiscard]] inline std::vector<nibble::isa> supported_isas() {
    std::vector<nibble::isa> levels;
    for (const nibble::isa level : nibble::compiled_isas())
        if (nibble::is_supported(level)) levels.push_back(level);
    return levels;
}

template <class Test>
std::size_t for_each_isa(Test test) {
    const isa_guard restore;
    const std::vector<nibble::isa> levels = supported_isas();
    REQUIRE(!levels.empty());
    for (const nibble::isa level : levels) {
        nibble::set_active_isa(level);
        INFO("at level " << nibble::name_of(level));
        REQUIRE(nibble::active_isa() == level);
        test(level);
        REQUIRE(nibble::active_isa() == level);
    }
    return levels.size();
}
