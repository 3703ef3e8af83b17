# Where the dependencies come from: a target the parent project already has, else a package on the system, else a
# download pinned by its SHA-256. FETCHCONTENT_SOURCE_DIR_<NAME> replaces a download by a local directory;
# CMAKE_DISABLE_FIND_PACKAGE_<Package> ignores what is installed.

# FetchContent is included only when something is fetched: it makes cache variables, which a parent would see.
# SOURCE_SUBDIR names no directory on purpose: the sources are unpacked and their own CMake code is left alone.
macro(nibble_fetch name)
  message(STATUS "nibble: ${name} is not installed, fetching it")
  include(FetchContent)
  FetchContent_Declare(${name} ${ARGN} SOURCE_SUBDIR nibble_takes_the_sources_only)
  FetchContent_MakeAvailable(${name})
endmacro()

# A target for fetched headers, which compilers treat as system headers.
function(nibble_fetched_headers target directory)
  add_library(${target} INTERFACE)
  target_include_directories(${target} SYSTEM INTERFACE $<BUILD_INTERFACE:${directory}>)
endfunction()

# Eigen 3.4 or 5. No version is given to find_package: the version files of 3.4.0 and of 5 refuse each other's numbers.
function(nibble_find_eigen out)
  set(${out} Eigen3::Eigen PARENT_SCOPE)
  if(TARGET Eigen3::Eigen)
    return()
  endif()
  find_package(Eigen3 CONFIG QUIET)
  if(Eigen3_FOUND AND NOT Eigen3_VERSION VERSION_LESS 3.4)
    return()
  endif()
  if(Eigen3_FOUND)
    message(STATUS "nibble: Eigen ${Eigen3_VERSION} in ${Eigen3_DIR} is too old, 3.4 is needed")
  endif()
  nibble_fetch(eigen
    URL https://gitlab.com/libeigen/eigen/-/archive/5.0.1/eigen-5.0.1.tar.gz
    URL_HASH SHA256=e9c326dc8c05cd1e044c71f30f1b2e34a6161a3b6ecf445d56b53ff1669e3dec)
  if(TARGET Eigen3::Eigen AND NOT Eigen3_FOUND)  # the parent declared `eigen` its own way
    return()
  endif()
  nibble_fetched_headers(nibble_eigen ${eigen_SOURCE_DIR})
  set(${out} nibble_eigen PARENT_SCOPE)
endfunction()

# nlohmann-json, for nibble::io. It is fetched only when something here uses it or the user asks.
function(nibble_find_json out)
  set(${out} nlohmann_json::nlohmann_json PARENT_SCOPE)
  if(TARGET nlohmann_json::nlohmann_json)
    return()
  endif()
  find_package(nlohmann_json CONFIG QUIET)
  if(nlohmann_json_FOUND OR NOT (nibble_developer OR NIBBLE_FETCH_JSON))
    return()
  endif()
  nibble_fetch(nlohmann_json
    URL https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz
    URL_HASH SHA256=d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d)
  if(TARGET nlohmann_json::nlohmann_json)
    return()
  endif()
  nibble_fetched_headers(nibble_nlohmann_json ${nlohmann_json_SOURCE_DIR}/include)
  set(${out} nibble_nlohmann_json PARENT_SCOPE)
endfunction()

# CLI11, for the benchmark program and the examples.
function(nibble_find_cli11 out)
  set(${out} CLI11::CLI11 PARENT_SCOPE)
  if(TARGET CLI11::CLI11)
    return()
  endif()
  find_package(CLI11 CONFIG QUIET)
  if(CLI11_FOUND)
    return()
  endif()
  if(NOT TARGET nibble_cli11)
    nibble_fetch(cli11
      URL https://github.com/CLIUtils/CLI11/archive/refs/tags/v2.6.1.tar.gz
      URL_HASH SHA256=377691f3fac2b340f12a2f79f523c780564578ba3d6eaf5238e9f35895d5ba95)
    nibble_fetched_headers(nibble_cli11 ${cli11_SOURCE_DIR}/include)
  endif()
  set(${out} nibble_cli11 PARENT_SCOPE)
endfunction()

# A fetched library that must be compiled: built only if used, never installed, its headers are system headers.
function(nibble_fetched_library wrapper library source_dir binary_dir)
  add_subdirectory(${source_dir} ${binary_dir} EXCLUDE_FROM_ALL)
  get_target_property(real ${library} ALIASED_TARGET)
  add_library(${wrapper} INTERFACE)
  target_link_libraries(${wrapper} INTERFACE ${library})
  target_include_directories(${wrapper} SYSTEM INTERFACE $<TARGET_PROPERTY:${real},INTERFACE_INCLUDE_DIRECTORIES>)
endfunction()

# Catch2, version 2 or 3: tests/support/catch.hpp hides the difference. Also sets ${out}_major.
function(nibble_find_catch2 out)
  find_package(Catch2 CONFIG QUIET)  # no version: neither satisfies a request for the other
  # Version 3 is compiled, and what is installed here may be another machine's.
  if(Catch2_FOUND AND NOT Catch2_VERSION VERSION_LESS 2.13
     AND NOT (CMAKE_CROSSCOMPILING AND Catch2_VERSION VERSION_GREATER_EQUAL 3))
    string(REGEX MATCH "^[0-9]+" major ${Catch2_VERSION})
    set(${out} Catch2::Catch2 PARENT_SCOPE)
    set(${out}_major ${major} PARENT_SCOPE)
    return()
  endif()
  nibble_fetch(catch2
    URL https://github.com/catchorg/Catch2/archive/refs/tags/v3.8.1.tar.gz
    URL_HASH SHA256=18b3f70ac80fccc340d8c6ff0f339b2ae64944782f8d2fca2bd705cf47cadb79)
  nibble_fetched_library(nibble_catch2 Catch2::Catch2 ${catch2_SOURCE_DIR} ${catch2_BINARY_DIR})
  set(${out} nibble_catch2 PARENT_SCOPE)
  set(${out}_major 3 PARENT_SCOPE)
endfunction()

function(nibble_find_benchmark out)
  set(${out} benchmark::benchmark PARENT_SCOPE)
  find_package(benchmark CONFIG QUIET)
  if(benchmark_FOUND)
    return()
  endif()
  nibble_fetch(benchmark
    URL https://github.com/google/benchmark/archive/refs/tags/v1.9.4.tar.gz
    URL_HASH SHA256=b334658edd35efcf06a99d9be21e4e93e092bd5f95074c1673d5c8705d95c104)
  set(BENCHMARK_ENABLE_TESTING OFF CACHE BOOL "" FORCE)
  set(BENCHMARK_ENABLE_WERROR OFF CACHE BOOL "" FORCE)
  nibble_fetched_library(nibble_benchmark benchmark::benchmark ${benchmark_SOURCE_DIR} ${benchmark_BINARY_DIR})
  set(${out} nibble_benchmark PARENT_SCOPE)
endfunction()
