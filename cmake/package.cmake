# find_package(nibble): from an install prefix, and from this build tree (-Dnibble_DIR=<build tree>/package).
#
# Two export sets, because nibble::io is given out only where nlohmann-json is found.
include(CMakePackageConfigHelpers)

set(nibble_package_dir ${nibble_BINARY_DIR}/package)
write_basic_package_version_file(${nibble_package_dir}/nibbleConfigVersion.cmake
  COMPATIBILITY SameMinorVersion  # before 1.0 a minor version may break users
  ARCH_INDEPENDENT)

# The build tree. Fetched dependencies are exported along; a target that the parent project made cannot be.
set(nibble_exportable ON)
foreach(name eigen json)
  set(target ${nibble_${name}_target})
  set(nibble_package_finds_${name} ON)
  if(target MATCHES "^nibble_")
    set(nibble_package_finds_${name} OFF)
    list(APPEND nibble_exported ${target})
  elseif(TARGET ${target})
    get_target_property(imported ${target} IMPORTED)
    if(NOT imported)
      set(nibble_exportable OFF)
    endif()
  endif()
endforeach()
if(nibble_exportable)
  set(nibble_compiled_sources ${nibble_SOURCE_DIR}/cmake)
  configure_package_config_file(${nibble_SOURCE_DIR}/cmake/nibbleConfig.cmake.in
    ${nibble_package_dir}/nibbleConfig.cmake
    INSTALL_DESTINATION ${nibble_package_dir} INSTALL_PREFIX ${nibble_BINARY_DIR} PATH_VARS nibble_compiled_sources NO_SET_AND_CHECK_MACRO)
  export(TARGETS nibble ${nibble_exported} NAMESPACE nibble:: FILE ${nibble_package_dir}/nibbleTargets.cmake)
  export(TARGETS nibble_io NAMESPACE nibble:: FILE ${nibble_package_dir}/nibbleIoTargets.cmake)
endif()

if(NOT NIBBLE_INSTALL OR CMAKE_SKIP_INSTALL_RULES)
  return()
endif()

include(GNUInstallDirs)
set(nibble_install_dir ${CMAKE_INSTALL_DATADIR}/cmake/nibble)  # headers only: nothing belongs to one architecture
set(nibble_package_finds_eigen ON)
set(nibble_package_finds_json ON)
set(nibble_compiled_sources ${nibble_install_dir})
configure_package_config_file(${nibble_SOURCE_DIR}/cmake/nibbleConfig.cmake.in
  ${nibble_package_dir}/install/nibbleConfig.cmake
  INSTALL_DESTINATION ${nibble_install_dir} PATH_VARS nibble_compiled_sources NO_SET_AND_CHECK_MACRO)
install(DIRECTORY ${nibble_SOURCE_DIR}/include/nibble DESTINATION ${CMAKE_INSTALL_INCLUDEDIR}
  COMPONENT nibble_Development FILES_MATCHING PATTERN "*.hpp")
install(FILES ${nibble_package_dir}/install/nibbleConfig.cmake ${nibble_package_dir}/nibbleConfigVersion.cmake
  ${nibble_SOURCE_DIR}/cmake/compiled.cpp ${nibble_SOURCE_DIR}/cmake/compiled_algorithms.cpp
  DESTINATION ${nibble_install_dir} COMPONENT nibble_Development)
install(FILES ${nibble_SOURCE_DIR}/LICENSE DESTINATION ${CMAKE_INSTALL_DATADIR}/licenses/nibble
  COMPONENT nibble_Development)
install(TARGETS nibble EXPORT nibble INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(TARGETS nibble_io EXPORT nibble_io INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT nibble NAMESPACE nibble:: FILE nibbleTargets.cmake
  DESTINATION ${nibble_install_dir} COMPONENT nibble_Development)
install(EXPORT nibble_io NAMESPACE nibble:: FILE nibbleIoTargets.cmake
  DESTINATION ${nibble_install_dir} COMPONENT nibble_Development)
