# Disassembles PROGRAM with OBJDUMP and fails if an instruction beyond the baseline of MACHINE (x86_64: one with a VEX or
# EVEX prefix; aarch64: a dot product) stands outside the functions of an instruction-set level (LEVELS: the file that
# lists them): an older CPU could run into it. A level's functions are those whose mangled name begins with
# nibble::detail::LEVEL; a template of another namespace that was instantiated for a level's types is a leak, too. There
# must be such instructions inside, or nothing was looked at.
cmake_minimum_required(VERSION 3.21)

file(STRINGS ${LEVELS} lists REGEX "^#define NIBBLE_LEVELS")
string(REGEX MATCHALL " X\\([a-z0-9_]+\\)" levels "${lists}")
list(REMOVE_DUPLICATES levels)
set(spaces "")
foreach(level IN LISTS levels)
  string(REGEX REPLACE " X\\((.*)\\)" "\\1" level ${level})
  string(LENGTH ${level} length)
  if((MACHINE STREQUAL "aarch64" AND level STREQUAL "neon") OR (NOT MACHINE STREQUAL "aarch64" AND NOT level MATCHES "^(scalar|neon)$"))
    list(APPEND spaces ${length}${level})
  endif()
endforeach()
list(JOIN spaces "|" spaces)
if(spaces STREQUAL "")
  message(FATAL_ERROR "${LEVELS} names no level beyond the baseline")
endif()

# _ZZ: what is local to a function. The number after nibble:: is the length of an inline namespace's name.
set(inside "^_ZZ*N6nibble([0-9]+abi_[a-z0-9_]*)?6detail(${spaces})")
if(MACHINE STREQUAL "aarch64")
  set(beyond "^[su]dot$")
  set(legacy "^$")
else()
  # Vector instructions begin with v. Then those with VEX prefixes that have only general or mask registers.
  set(beyond "^(v[a-z0-9]+|andn|bextr|bls(i|r|msk)|bzhi|mulx|pdep|pext|rorx|s(ar|hl|hr)x|k(add|andn?|mov|not|ortest|or|shift[lr]|test|unpck|xnor|xor)[bwdq]+)$")
  # Begin with v and have none: segment checks and virtualization.
  set(legacy "^v(err|erw|mcall|mfunc|mlaunch|mresume|mxoff|mxon|mclear|mptrld|mptrst|mread|mwrite|mrun|mload|msave|mmcall)$")
endif()
set(program "
/^[0-9a-f]+ <.*>:$/ { name = $2; sub(/^</, \"\", name); sub(/>:$/, \"\", name); next }
/^ *[0-9a-f]+:\t/ {
  split($0, field, \"\\t\"); n = split(field[2], word, \" \"); op = word[1]
  for (i = 1; i < n && word[i] ~ /^(rep|repz|repnz|lock|bnd|notrack|data16|\\{.*\\})$/; ++i) op = word[i + 1]
  if ((op ~ /${beyond}/ && op !~ /${legacy}/) || field[2] ~ /%[yz]mm/) {
    if (name ~ /${inside}/) { ++within; next }
    if (!(name in seen)) print \"leak: \" name \": \" field[2]
    seen[name] = 1; ++leaks
  }
}
END { print within + 0, \"inside,\", leaks + 0, \"outside\" }
")
execute_process(COMMAND ${OBJDUMP} -d --no-show-raw-insn ${PROGRAM} COMMAND awk "${program}"
  OUTPUT_VARIABLE output RESULTS_VARIABLE statuses)
if(NOT statuses MATCHES "^0;0$")
  message(FATAL_ERROR "objdump or awk failed: ${statuses}\n${output}")
endif()
message(STATUS "${PROGRAM}: instructions beyond the baseline: ${output}")
if(NOT output MATCHES "(^|\n)[1-9][0-9]* inside, 0 outside")
  message(FATAL_ERROR "some stand outside the levels' functions, or none was found inside")
endif()
