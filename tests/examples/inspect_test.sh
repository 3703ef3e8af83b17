#!/bin/sh
# inspect_test.sh PROGRAM GOLDEN_DIR: the example `inspect` as its users see it. Exit codes, messages, tables, checksums.
. "$(dirname "$0")/tool_test.sh"
inspect=$1
golden=$2

expect 0 "$inspect" "$golden/gguf/default_alignment.gguf"
says "$out" 'GGUF version 3, 24 tensors'
says "$out" 'test.array_i32 = [1, -2, 3]'
says "$out" 'test.string = "gr\xc3\xbc\xc3\x9fe, \xe4\xb8\x96\xe7\x95\x8c "quoted"\x0a"'
grep -qE '^blk.0.q4_k.weight +Q4_K +3 x 256 +432 +4.5000$' "$out" || fail 'the row of a tensor'
grep -qE '^blk.1.three_dims +F32 +2 x 3 x 4 +96 +32.0000$' "$out" || fail 'the row of three dimensions'

# The same values in a file of blocks and in one of floats, which gguf decoded: the same checksums.
expect 0 "$inspect" --checksum "$golden/gguf/files_expected.safetensors"
says "$out" 'safetensors, 56 tensors'
sed -n 's,^default_alignment/,,p' "$out" | awk 'NF > 3 { print $1, $NF }' | sort >"$work/wanted"
expect 0 "$inspect" --checksum "$golden/gguf/default_alignment.gguf"
awk '/^metadata/ { exit } NF > 4 && !/^tensor / && !/^GGUF / { print $1, $NF }' "$out" | sort >"$work/found"
[ "$(wc -l <"$work/found")" -eq 24 ] || fail '24 tensors'
cmp -s "$work/wanted" "$work/found" || fail "checksums: $(diff "$work/wanted" "$work/found")"
# ... which were computed once without this library.
while read -r name sum; do
    grep -qx "$name $sum" "$work/found" || fail "the checksum of $name is not $sum"
done <<'END'
blk.0.f32.weight bdc39a5c6fec7f69
blk.0.q6_k.weight 51372e5a04a3679e
doubles.f64 f01e44bbccda2c86
ints.i64 96a1443334bc0661
END
expect 0 "$inspect" --json "$golden/gguf/default_alignment.gguf"
says "$out" '"name": "blk.0.q6_k.weight"'
says "$out" '"bits_per_weight": 6.5625'
says "$out" "\"checksum\": \"$(awk '$1 == "blk.0.q6_k.weight" { print $2 }' "$work/wanted")\""

expect 1 "$inspect" "$golden/gguf/big_endian.gguf"
says "$work/err" 'big-endian'
says "$work/err" 'at byte 4'
expect 1 "$inspect" "$work/no_such_file"
says "$work/err" 'inspect: cannot open'
head -c 3000 "$golden/gguf/default_alignment.gguf" >"$work/cut.gguf"
expect 1 "$inspect" "$work/cut.gguf"
says "$work/err" 'reach beyond'
echo 'no model' >"$work/text"
expect 1 "$inspect" "$work/text"
expect 2 "$inspect"
expect 2 "$inspect" --no-such-option "$golden/gguf/default_alignment.gguf"
expect 2 "$inspect" "$golden/gguf/default_alignment.gguf" another
expect 0 "$inspect" --help

finish
