# What only nibble's own tests, benchmarks and examples use. Nothing here is exported or seen by a parent project.

# The widest warnings that GCC and clang give without false alarms. Our headers are not system headers in this build.
add_library(nibble_warnings INTERFACE)
target_compile_options(nibble_warnings INTERFACE
  -Wall -Wextra -Wpedantic -Wconversion -Wsign-conversion -Wshadow -Wold-style-cast -Wdouble-promotion -Wundef
  -Wcast-qual -Wcast-align -Wformat=2 -Wnon-virtual-dtor -Woverloaded-virtual -Wextra-semi -Wunused
  $<$<CXX_COMPILER_ID:GNU>:-Wuseless-cast -Wduplicated-cond -Wlogical-op -Wredundant-decls>
  # GCC 12 takes std::string's operator+ for an overflow (GCC bugs 105329 and 105651).
  $<$<AND:$<CXX_COMPILER_ID:GNU>,$<VERSION_LESS:$<CXX_COMPILER_VERSION>,13>>:-Wno-restrict -Wno-stringop-overflow>
  $<$<CXX_COMPILER_ID:Clang,AppleClang>:-Wimplicit-fallthrough -Wcomma -Wheader-hygiene>
  $<$<BOOL:${NIBBLE_WERROR}>:-Werror>)

# nibble_git_commit: the header nibble_git_commit.hpp, which defines NIBBLE_GIT_COMMIT as a string, "" outside git.
# It is looked at in every build and written only when the commit has changed.
find_package(Git QUIET)
add_custom_target(nibble_git_commit_header
  COMMAND ${CMAKE_COMMAND} "-DGIT=${GIT_EXECUTABLE}" "-DSOURCE=${nibble_SOURCE_DIR}"
          "-DHEADER=${nibble_BINARY_DIR}/generated/nibble_git_commit.hpp" -P ${nibble_SOURCE_DIR}/cmake/git_commit.cmake
  BYPRODUCTS ${nibble_BINARY_DIR}/generated/nibble_git_commit.hpp
  COMMENT "Looking up the git commit" VERBATIM)
add_library(nibble_git_commit INTERFACE)
add_dependencies(nibble_git_commit nibble_git_commit_header)
target_include_directories(nibble_git_commit INTERFACE ${nibble_BINARY_DIR}/generated)

# Programs may use threads, the library never does.
find_package(Threads REQUIRED)

if(NIBBLE_BUILD_TESTS)
  enable_testing()
endif()
