// Catch2, version 2 or 3: the tests include this and nothing of Catch2 itself.
//
// Use what both versions have: TEST_CASE, SECTION, REQUIRE, CHECK, INFO, CAPTURE, GENERATE, TEMPLATE_TEST_CASE.
// A test that cannot run on this machine says why and returns: `NIBBLE_SKIP("no AVX-512 here")`.
#pragma once

// CMake defines NIBBLE_CATCH2_MAJOR as the version it found: both may be installed.
#if !defined(NIBBLE_CATCH2_MAJOR)
#if __has_include(<catch2/catch_all.hpp>)
#define NIBBLE_CATCH2_MAJOR 3
#else
#define NIBBLE_CATCH2_MAJOR 2
#endif
#endif

#if NIBBLE_CATCH2_MAJOR >= 3
#include <catch2/catch_all.hpp>
using Catch::Approx;
#else
#include <catch2/catch.hpp>
#endif

#define NIBBLE_SKIP(reason)          \
    do {                             \
        WARN("skipped: " << reason); \
        SUCCEED();                   \
        return;                      \
    } while (false)
