// Instruction-set levels: the list, what this CPU has, and the environment variable.
#include <nibble/cpu.hpp>

#include <cstdint>
#include <cstdlib>
#include <set>
#include <string>

#include "support/catch.hpp"
#include "support/for_each_isa.hpp"

TEST_CASE("the compiled levels ascend from scalar and have names of their own", "[cpu]") {
    const auto levels = nibble::compiled_isas();
    REQUIRE(!levels.empty());
    CHECK(levels.front() == nibble::isa::scalar);
    std::set<std::string> names;
    for (std::size_t i = 0; i < levels.size(); ++i) {
        if (i > 0) CHECK(levels[i - 1] < levels[i]);
        names.insert(nibble::name_of(levels[i]));
    }
    CHECK(names.size() == levels.size());
    CHECK(names.count("?") == 0);
    CHECK(std::string(nibble::name_of(nibble::isa::scalar)) == "scalar");
}

TEST_CASE("this CPU", "[cpu]") {
    CHECK(nibble::is_supported(nibble::isa::scalar));
#if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    REQUIRE(nibble::compiled_isas().size() >= 2);
    const bool wanted =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // the compiler's own detection
    CHECK(nibble::is_supported(nibble::isa::avx2) == wanted);
#elif defined(__aarch64__) && defined(__linux__)
    REQUIRE(nibble::compiled_isas().size() == 2);
    std::uint64_t features = 0;  // Linux lets programs read it; bits 44 to 47: dot products
    __asm__("mrs %0, ID_AA64ISAR0_EL1" : "=r"(features));
    CHECK(nibble::is_supported(nibble::isa::neon) == ((features >> 44 & 15) != 0));
#endif
    CHECK(nibble::is_supported(nibble::active_isa()));
}

TEST_CASE("set_active_isa", "[cpu]") {
    const isa_guard restore;
    const std::size_t levels = for_each_isa([](nibble::isa level) { CHECK(nibble::active_isa() == level); });
    CHECK(levels == supported_isas().size());
    nibble::set_active_isa(nibble::isa::scalar);
    for (const nibble::isa level : nibble::compiled_isas()) {
        if (nibble::is_supported(level)) continue;
        try {
            nibble::set_active_isa(level);
            CHECK(false);
        } catch (const nibble::error& e) {
            CHECK(e.code() == nibble::errc::unsupported);
            CHECK(std::string(e.what()).find(nibble::name_of(level)) != std::string::npos);
        }
        CHECK(nibble::active_isa() == nibble::isa::scalar);  // nothing changed
    }
}

#if !defined(_WIN32)
TEST_CASE("NIBBLE_ISA lowers the level and never raises it", "[cpu]") {
    const char* before = std::getenv("NIBBLE_ISA");
    const std::string saved = before != nullptr ? before : "";
    ::unsetenv("NIBBLE_ISA");
    const nibble::isa best = nibble::detail::best_isa();
    CHECK(best == supported_isas().back());
    for (const nibble::isa level : nibble::compiled_isas()) {
        ::setenv("NIBBLE_ISA", nibble::name_of(level), 1);
        CHECK(nibble::detail::best_isa() == (nibble::is_supported(level) ? level : best));
    }
    for (const char* nonsense : {"", "nonsense", "SCALAR", "scalar ", "avx1024"}) {
        ::setenv("NIBBLE_ISA", nonsense, 1);
        CHECK(nibble::detail::best_isa() == best);
    }
    if (before != nullptr)
        ::setenv("NIBBLE_ISA", saved.c_str(), 1);
    else
        ::unsetenv("NIBBLE_ISA");
}
#endif
