# cmake -DSOURCE=... -DBINARY=... [-DERROR=regex] -P run.cmake -- options...
# Configures the project SOURCE afresh with the options, builds it and runs its program, `consumer`.
# With ERROR, configuring must fail with an output that matches.
set(options)
set(past_dashes OFF)
foreach(i RANGE 1 ${CMAKE_ARGC})
  if(past_dashes AND DEFINED CMAKE_ARGV${i})
    list(APPEND options "${CMAKE_ARGV${i}}")
  elseif("${CMAKE_ARGV${i}}" STREQUAL "--")
    set(past_dashes ON)
  endif()
endforeach()

file(REMOVE_RECURSE "${BINARY}")
execute_process(COMMAND ${CMAKE_COMMAND} -S "${SOURCE}" -B "${BINARY}" ${options}
  RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(ERROR)
  string(REGEX REPLACE "[ \n]+" " " flat "${output}")  # CMake wraps its messages
  if(status EQUAL 0 OR NOT flat MATCHES "${ERROR}")
    message(FATAL_ERROR "configuring was to fail with '${ERROR}', it returned ${status} and said:\n${output}")
  endif()
  return()
endif()
if(NOT status EQUAL 0)
  message(FATAL_ERROR "configuring failed:\n${output}")
endif()
execute_process(COMMAND ${CMAKE_COMMAND} --build "${BINARY}"
  RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "building failed:\n${output}")
endif()
execute_process(COMMAND "${BINARY}/consumer" COMMAND_ERROR_IS_FATAL ANY)
