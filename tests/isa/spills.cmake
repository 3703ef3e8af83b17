# Disassembles PROGRAM with OBJDUMP and fails if an inner loop of a tile of products puts a vector register on the stack:
# each one costs as much as a dot, and GCC 12 spills as soon as the source gives it a chance. (Constants may be read from
# there, and one register in 200 instructions may.) An inner loop is what lies between a jump backwards and its target without another such jump inside; it counts
# if it multiplies codes or values with activations. MACHINE: x86_64 or aarch64, where GCC 12 keeps some sums of two columns
# of table products on the stack: they are left out.
cmake_minimum_required(VERSION 3.21)

if(MACHINE STREQUAL "aarch64")
  set(tiles "(digit|value)_tile")
  set(dot "^sdot")
  set(fma "^fmla")
  set(end "^scvtf")
  set(stream "^ld")
  set(spill "^st[rpu]+ [qdsv][0-9]+,.*\\[sp")
  set(jump "^(b |b[.]|cbn?z|tbn?z)")
else()
  set(tiles "(digit|value|table)_tile")
  set(dot "vpmaddubsw|vpmaddwd|vpdpbusd")
  set(fma "vfmadd")
  set(end "vcvtdq2ps")
  set(stream "vpbroadcastd|vbroadcastss")
  set(spill "%[yz]mm[0-9]+,[-0-9a-fx]*\\(%r[sb]p[^)]*\\)")
  set(jump "^j")
endif()
set(program "
function finish(   i, j, k, inner, dots, spills, streams) {
  for (i = 1; i <= n; ++i) {
    if (!(i in to)) continue
    inner = 1
    for (j = to[i]; j < i; ++j) if ((j in to) && to[j] >= to[i]) inner = 0
    if (!inner) continue
    dots = 0; spills = 0; streams = 0
    for (k = to[i]; k <= i; ++k) {
      if (line[k] ~ /${dot}/ || (float && line[k] ~ /${fma}/)) ++dots
      if (!float && line[k] ~ /${end}/) { dots = 0; break }  # the end of a sub-block
      if (line[k] ~ /${stream}/) ++streams
      if (line[k] ~ /${spill}/) ++spills
    }
    if (dots == 0 || streams == 0) continue  # or it adds up flushed sums, which live in memory
    ++loops
    if (200 * spills > i - to[i]) { print \"spills: \" spills \" in a loop of \" i - to[i] + 1 \" instructions of \" name; ++bad }
  }
  n = 0; split(\"\", to); split(\"\", at); split(\"\", line)
}
/^[0-9a-f]+ <.*>:$/ { if (tile) finish(); name = $2; tile = name ~ /${tiles}/; float = name !~ /digit_tile/; next }
tile && /^ *[0-9a-f]+:\t/ {
  split($0, field, \"\\t\"); address = field[1]; gsub(/[ :]/, \"\", address)
  at[address] = ++n; line[n] = field[2] \" \" field[3]
  if (line[n] !~ /${jump}/) next
  m = split(line[n], word, /[ ,]+/)
  for (i = 2; i <= m; ++i) if (word[i] in at) to[n] = at[word[i]]
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
