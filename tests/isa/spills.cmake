# Disassembles PROGRAM with OBJDUMP and fails if an inner loop of a tile of products puts a vector register on the stack:
# each one costs as much as a dot, and GCC 12 spills as soon as the source gives it a chance. (Constants may be read from
# there, and one register in 200 instructions may.) An inner loop is what lies between a jump backwards and its target without another such jump inside; it counts
# if it multiplies codes or values with activations.
cmake_minimum_required(VERSION 3.21)

set(program "
function finish(   i, j, k, inner, dots, spills, streams) {
  for (i = 1; i <= n; ++i) {
    if (!(i in to)) continue
    inner = 1
    for (j = to[i]; j < i; ++j) if ((j in to) && to[j] >= to[i]) inner = 0
    if (!inner) continue
    dots = 0; spills = 0; streams = 0
    for (k = to[i]; k <= i; ++k) {
      if (line[k] ~ /vpmaddubsw|vpmaddwd|vpdpbusd/ || (float && line[k] ~ /vfmadd/)) ++dots
      if (!float && line[k] ~ /vcvtdq2ps/) { dots = 0; break }  # the end of a sub-block
      if (line[k] ~ /vpbroadcastd|vbroadcastss/) ++streams
      if (line[k] ~ /%[yz]mm[0-9]+,[-0-9a-fx]*\\(%r[sb]p[^)]*\\)/) ++spills
    }
    if (dots == 0 || streams == 0) continue  # or it adds up flushed sums, which live in memory
    ++loops
    if (200 * spills > i - to[i]) { print \"spills: \" spills \" in a loop of \" i - to[i] + 1 \" instructions of \" name; ++bad }
  }
  n = 0; split(\"\", to); split(\"\", at); split(\"\", line)
}
/^[0-9a-f]+ <.*>:$/ { if (tile) finish(); name = $2; tile = name ~ /(digit|value|table)_tile/; float = name !~ /digit_tile/; next }
tile && /^ *[0-9a-f]+:\t/ {
  split($0, field, \"\\t\"); address = field[1]; gsub(/[ :]/, \"\", address)
  at[address] = ++n; line[n] = field[2]
  m = split(field[2], word, \" \")
  if (word[1] ~ /^j/ && m > 1 && (word[2] in at)) to[n] = at[word[2]]
}
END { if (tile) finish(); print loops + 0, \"loops,\", bad + 0, \"with spills\" }
")
execute_process(COMMAND ${OBJDUMP} -d --no-show-raw-insn ${PROGRAM} COMMAND awk "${program}"
  OUTPUT_VARIABLE output RESULTS_VARIABLE statuses)
if(NOT statuses MATCHES "^0;0$")
  message(FATAL_ERROR "objdump or awk failed: ${statuses}\n${output}")
endif()
message(STATUS "${PROGRAM}: inner loops of tiles:\n${output}")
if(NOT output MATCHES "(^|\n)[1-9][0-9]+ loops, 0 with spills")
  message(FATAL_ERROR "some keep vector registers on the stack, or none was found")
endif()
