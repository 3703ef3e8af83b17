# cmake -DGIT=... -DSOURCE=... -DHEADER=... -P git_commit.cmake
# Writes the header with the commit of SOURCE, "-dirty" behind it when tracked files differ, "" when SOURCE is not the
# top of a git work tree (an unpacked archive inside somebody else's repository must not report their commit).
set(commit "")
if(GIT)
  execute_process(COMMAND "${GIT}" rev-parse --show-toplevel WORKING_DIRECTORY "${SOURCE}"
    OUTPUT_VARIABLE top OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  file(REAL_PATH "${SOURCE}" source)
  if(top STREQUAL source)
    execute_process(COMMAND "${GIT}" describe --always --dirty --abbrev=12 "--exclude=*" WORKING_DIRECTORY "${SOURCE}"
      OUTPUT_VARIABLE commit OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
  endif()
endif()
set(text "#pragma once\n#define NIBBLE_GIT_COMMIT \"${commit}\"\n")
if(EXISTS "${HEADER}")
  file(READ "${HEADER}" old)
endif()
if(NOT text STREQUAL "${old}")
  file(WRITE "${HEADER}" "${text}")
endif()
