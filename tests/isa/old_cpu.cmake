# Runs PROGRAM (../determinism/dump.cpp) under EMULATOR, a CPU that has only the baseline: it must choose the level
# scalar by itself and print what EXPECTED holds.
cmake_minimum_required(VERSION 3.21)

execute_process(COMMAND ${CMAKE_COMMAND} -E env --unset=NIBBLE_ISA ${EMULATOR} ${PROGRAM}
  OUTPUT_VARIABLE output ERROR_VARIABLE told RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "stopped with ${failed}\n${told}")
endif()
if(NOT told STREQUAL "level scalar\n")
  message(FATAL_ERROR "not the level scalar: ${told}")
endif()
file(READ ${EXPECTED} wanted)
if(NOT output STREQUAL wanted)
  file(WRITE ${PROGRAM}_old_cpu.txt "${output}")
  message(FATAL_ERROR "other bytes or products than expected: compare ${PROGRAM}_old_cpu.txt with ${EXPECTED}")
endif()
