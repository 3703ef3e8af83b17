#!/bin/sh
# convert_test.sh CONVERT INSPECT VALIDATE GOLDEN_DIR: the examples `convert` and `validate` as their users see them. What comes
# out, exit codes, messages, memory.
. "$(dirname "$0")/tool_test.sh"
convert=$1
inspect=$2
validate=$3
golden=$4
# sums FILE: the tensors and the checksums of their values, sorted.
sums() { "$inspect" --checksum "$1" | awk '/^metadata/ { exit } NF > 4 && !/^tensor / && !/^(GGUF|packed|safetensors),? / { print $1, $NF }' | sort; }
same() { cmp -s "$1" "$2" || fail "$3: $(diff "$1" "$2")"; }

float=$golden/gguf/files_expected.safetensors
blocks=$golden/gguf/default_alignment.gguf

# The same bytes of Q4_K and the same packed matrix have the same values: each writer checks the other.
expect 0 "$convert" "$float" "$work/a.gguf" --format q4_k --include 'alignment_64/blk.0.*_*.weight' --exclude '*iq4*'
says "$out" '56 tensors, 12 of them to q4_k'
says "$work/err" 'F32 -> Q4_K'
expect 0 "$convert" "$float" "$work/a.nibble" --format q4_k --include 'alignment_64/blk.0.*_*.weight' --exclude '*iq4*' --threads 3
says "$out" '12 of them to q4_k'
sums "$work/a.gguf" >"$work/1"
sums "$work/a.nibble" >"$work/2"
[ "$(wc -l <"$work/1")" -eq 56 ] || fail '56 tensors'
same "$work/1" "$work/2" 'GGUF and packed'
sums "$float" >"$work/3"
[ "$(comm -12 "$work/1" "$work/3" | wc -l)" -eq 44 ] || fail 'tensors that are copied keep their values'
"$inspect" "$work/a.gguf" >"$out"
grep -qE '^alignment_64/blk.0.q4_0.weight +Q4_K +3 x 256 +432 ' "$out" || fail 'the type in the GGUF file'
"$inspect" "$work/a.nibble" >"$out"
grep -qE '^alignment_64/blk.0.q4_0.weight +q4_k +3 x 256 +432 ' "$out" || fail 'the type in the packed file'
says "$out" 'packed, 56 tensors'

expect 0 "$convert" "$float" "$work/q.gguf" --format q8_0 --include '*/blk.0.q?_?.weight' --exclude '*q2_k*' --exclude '*q3*t'
says "$out" ' 16 of them to q8_0'

# A GGUF file to a packed one and back: blocks stay what they are, bit for bit, and the metadata goes along.
expect 0 "$convert" "$blocks" "$work/b.nibble" --format q8_0 --include blk.0.f32.weight
expect 0 "$convert" "$blocks" "$work/c.gguf" --format f16 --include blk.0.f32.weight
sums "$blocks" | grep -v blk.0.f32 >"$work/1"
sums "$work/b.nibble" | grep -v blk.0.f32 >"$work/2"
sums "$work/c.gguf" | grep -v blk.0.f32 >"$work/3"
same "$work/1" "$work/2" 'blocks in a packed file'
same "$work/1" "$work/3" 'blocks in a GGUF file'
"$inspect" "$work/c.gguf" >"$out"
says "$out" 'test.array_i32 = [1, -2, 3]'
"$inspect" "$work/b.nibble" >"$out"
says "$out" 'test.string = '
expect 0 "$convert" "$blocks" "$work/d.safetensors" --format f32 --requantize --json
says "$out" '"from": "Q6_K"'
says "$out" '"to": "F32"'
sums "$work/d.safetensors" >"$work/2"
sums "$blocks" >"$work/1"
same "$work/1" "$work/2" 'blocks decoded to floats'
expect 0 "$convert" "$work/b.nibble" "$work/e.safetensors" --format bf16 --requantize
expect 0 "$inspect" "$work/e.safetensors"
says "$out" 'safetensors, 24 tensors'
[ "$(grep -c ' BF16 ' "$out")" -eq 18 ] || fail '18 matrices of BF16'
expect 0 "$convert" "$blocks" "$work/f.gguf" --format q4_0 --requantize
expect 0 "$inspect" "$work/f.gguf"
[ "$(grep -c ' Q4_0 ' "$out")" -eq 15 ] || fail '15 matrices of Q4_0; rows of 7 do not fill blocks'

# A folder of shards.
mkdir "$work/model"
cp "$float" "$work/model/model-00001-of-00002.safetensors"
cp "$golden/safetensors_files/numpy_all_dtypes.safetensors" "$work/model/model-00002-of-00002.safetensors"
"$inspect" --json "$float" | sed -n 's/^ *"name": \(".*"\),$/\1: "model-00001-of-00002.safetensors",/p' >"$work/map"
"$inspect" --json "$work/model/model-00002-of-00002.safetensors" | sed -n 's/^ *"name": \(".*"\),$/\1: "model-00002-of-00002.safetensors",/p' >>"$work/map"
{ echo '{"weight_map": {'; sed '$s/,$//' "$work/map"; echo '}}'; } >"$work/model/model.safetensors.index.json"
expect 0 "$convert" "$work/model" "$work/g.nibble" --format nf4 --include 'big_endian/*'
says "$out" "$(wc -l <"$work/map") tensors, 2 of them to nf4"

# An importance matrix changes the bytes, and only of what it names.
printf '\001\000\000\000\001\000\000\000a\001\000\000\000\001\000\000\000\000\000\200\077' >"$work/one.imatrix"
expect 0 "$convert" "$float" "$work/h.nibble" --format q4_k --importance "$work/one.imatrix"
says "$out" '(0 with importance)'
{ printf '\001\000\000\000\043\000\000\000default_alignment/blk.0.q8_0.weight\001\000\000\000\000\001\000\000'
  i=0; while [ $i -lt 128 ]; do printf '\000\000\200\077\000\000\310\102'; i=$((i + 1)); done; } >"$work/im"
expect 0 "$convert" "$float" "$work/i.nibble" --format q4_k --importance "$work/im"
says "$out" '(1 with importance)'
sums "$work/h.nibble" >"$work/1"
sums "$work/i.nibble" >"$work/2"
[ "$(comm -13 "$work/1" "$work/2" | cut -d' ' -f1)" = default_alignment/blk.0.q8_0.weight ] || fail 'the tensor with importance'
expect 1 "$convert" "$float" "$work/j" --format nf4 --importance "$work/im"
says "$work/err" 'importance weights would be ignored'

# Mistakes; whatever happens, the destination is what it was and nothing is left beside it.
echo old >"$work/old.gguf"
expect 3 "$convert" "$float" "$work/old.gguf" --format q4_k --include 'no such name'
expect 1 "$convert" "$float" "$work/old.gguf" --format nf4
says "$work/err" 'GGUF has no type for nf4'
expect 1 "$convert" "$float" "$work/old.gguf" --format q9
says "$work/err" 'no format "q9"; there are f32 f16 bf16 int8'
expect 1 "$convert" "$work/no such file" "$work/old.gguf" --format q4_k
expect 1 "$convert" "$float" "$work/old.gguf" --format q4_k --importance "$work/err"
expect 1 "$convert" "$golden/safetensors_files/torch_all_dtypes.safetensors" "$work/old.gguf" --format q8_0
expect 2 "$convert" "$float" "$work/old.gguf"
expect 2 "$convert" "$float" "$work/old.gguf" --format
expect 2 "$convert" "$float" "$work/old.gguf" --format q4_k more
expect 2 "$convert" --format q4_k
expect 0 "$convert" --help
# A tensor of NaN, after one that is fine: F32 [1, 8] each.
header='{"a":{"dtype":"F32","shape":[1,8],"data_offsets":[0,32]},"b":{"dtype":"F32","shape":[1,8],"data_offsets":[32,64]}}'
nan() { printf '\162\000\000\000\000\000\000\000%s' "$header"; head -c 56 /dev/zero; printf '\000\000\300\177\000\000\000\000'; }
nan >"$work/nan.safetensors"
expect 0 "$convert" "$work/nan.safetensors" "$work/nan.gguf" --format f16
expect 1 "$convert" "$work/nan.safetensors" "$work/old.safetensors" --format int8_g32
says "$work/err" 'tensor "b": quantize: W(0, 6) is nan'
[ "$(cat "$work/old.gguf")" = old ] || fail 'the old file'
[ ! -e "$work/old.safetensors" ] || fail 'a file of a conversion that failed'
ls "$work" | grep -q partial && fail "left behind: $(ls "$work")"

expect 3 "$validate" "$work/nan.safetensors"
says "$out" '1 of 8 values are NaN or Inf, the first is element 6'
says "$out" '2 tensors, 1 bad, 0 not decoded'
expect 3 "$validate" --json "$work/nan.safetensors"
says "$out" '"state": "bad"'
for file in "$blocks" "$work/a.nibble" "$work/a.gguf" "$work/d.safetensors" "$work/model"; do
    expect 0 "$validate" "$file"
    says "$out" ', 0 bad,'
done
head -c 3000 "$blocks" >"$work/cut.gguf"
expect 1 "$validate" "$work/cut.gguf"
expect 2 "$validate"
expect 0 "$validate" --help
# Inf as the fp16 scale of a Q8_0 block: a matrix of one block is the last 64 bytes of its file.
{ printf '\100\000\000\000\000\000\000\000%-64s' '{"a":{"dtype":"F32","shape":[1,32],"data_offsets":[0,128]}}'; head -c 128 /dev/zero; } >"$work/block.safetensors"
expect 0 "$convert" "$work/block.safetensors" "$work/block.gguf" --format q8_0
expect 0 "$validate" "$work/block.gguf"
printf '\000\174' | dd of="$work/block.gguf" bs=1 seek=$(($(wc -c <"$work/block.gguf") - 64)) conv=notrunc 2>/dev/null
expect 3 "$validate" "$work/block.gguf"
says "$out" 'the fp16 scale is Inf or NaN'

# 20 tensors of 16 MB (zeros, which take no room on the disk): memory is a few times one of them, not the file.
json=
i=0
while [ $i -lt 20 ]; do
    json="$json,\"t$i\":{\"dtype\":\"F32\",\"shape\":[2048,2048],\"data_offsets\":[$((i * 16777216)),$(((i + 1) * 16777216))]}"
    i=$((i + 1))
done
json="{${json#,}}"
while [ $((${#json} % 256)) -ne 0 ]; do json="$json "; done
printf "\\000\\$(printf %03o $((${#json} / 256)))\\000\\000\\000\\000\\000\\000%s" "$json" >"$work/large.safetensors"
truncate -s $((8 + ${#json} + 20 * 16777216)) "$work/large.safetensors" || exit 1
for name in large.gguf large.nibble; do
    expect 0 "$convert" "$work/large.safetensors" "$work/$name" --format q8_0 --threads 2
    peak=$(sed -n 's/.*peak memory \([0-9]*\) MB.*/\1/p' "$out")
    echo "$name: peak memory $peak MB"
    case $(uname) in Linux) [ "${peak:-999}" -le 48 ] || fail "peak memory $peak MB" ;; esac
    rm -f "$work/$name"
done

finish
