#!/bin/sh
# cli_test.sh PROGRAM DATA_DIR: the benchmark program as its users see it. Every exit code, message and file.
set -u
bench=$(CDPATH='' cd -- "$(dirname -- "$1")" && pwd)/$(basename -- "$1")
data=$(CDPATH='' cd -- "$2" && pwd)
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
cd "$work" || exit 1
failures=0

fail() {
    echo "FAILED: $*"
    sed 's/^/    /' out err
    failures=$((failures + 1))
}

# expect CODE ARGUMENTS...: runs the program; output goes to out and err.
expect() {
    code=$1
    shift
    "$bench" "$@" >out 2>err
    got=$?
    [ "$got" = "$code" ] || fail "exit code $got, expected $code: $*"
}

# says FILE TEXT: the text is in the file.
says() {
    grep -qF -- "$2" "$1" || fail "'$2' is not in $1"
}

# refuses TEXT ARGUMENTS...: exit code 1, the text on standard error, nothing on standard output.
refuses() {
    text=$1
    shift
    expect 1 "$@"
    says err "nibble_bench: "
    says err "$text"
    [ ! -s out ] || fail "standard output is not empty: $*"
}

# leaves NAMES: exactly these files are here, besides out and err.
leaves() {
    now=$(find . -type f ! -name out ! -name err | sort | tr '\n' ' ')
    [ "$now" = "$1" ] || fail "files here: '$now', expected '$1'"
}

small="--quick --shape 256x256 --format q4_k,nf4"

# --- help and lists
expect 0 --help
says out '--time-budget'
expect 0 --list
says out 'q4_k'
says out 'fp4_e2m1'
says out 'the usual 4-bit choice'

# --- a comparison from end to end
expect 0 $small
says out 'all-MiniLM-L6-v2'
says out 'f32 (Eigen)'
says out 'attn_q 384x384'
says out 'Take q4_k'
says err 'timed round 2'
says err 'ETA'
grep -q "$(printf '\033')" out err && fail 'escape sequences without a terminal'
expect 0 $small --compute a8 --batch 3 --isa scalar
says out 'M = 3'
says out 'runs at scalar, compute a8'
expect 0 $small --compute strict_f32 --time-budget 1
expect 0 --quick --shape 16x8 --format int8 # a code format: its usual recipe
says out 'int8_per_channel'
expect 0 --quick --shape 1x1 --batch 1 --format binary,q6_k
leaves ''

# --- files
expect 0 $small --csv
columns='^format,status,bits_per_weight,bytes,.*,m1_ms,m1_times_eigen,m128_ms,m128_times_eigen,quantize_mb_per_s,beaten_by$'
head -n 1 out | grep -q "$columns" || fail 'the head of the CSV'
grep -q '^q4_k,ok,4.5' out || fail 'the line of q4_k'
expect 0 $small --csv r.csv --json r.json
says out 'Take q4_k'
leaves './r.csv ./r.json '
for key in schema schema_version nibble commit cpu model isa flags compiler eigen data layers options timing rows cpu_ms \
    wall_ms advice; do
    grep -q "\"$key\":" r.json || fail "key $key of the JSON"
done
expect 0 $small --json r.json # over an old one
expect 0 $small --json /dev/stdout
says out '"schema": "nibble_bench"'
rm -f r.csv r.json

# --- files that cannot be written
if [ -c /dev/full ]; then
    refuses '/dev/full: cannot write this output file: No space left on device' $small --json /dev/full
    refuses '/dev/full: cannot write this output file: No space left on device' $small --csv /dev/full
    for arguments in --list --help "$small"; do
        "$bench" $arguments >/dev/full 2>err
        [ $? = 1 ] || fail "exit code of $arguments > /dev/full"
        says err 'standard output: cannot write'
    done
fi
# A disk that is full after half a kilobyte: no file, no part of one.
(
    trap '' XFSZ
    ulimit -f 1
    exec "$bench" $small --json big.json
) >/dev/null 2>err
[ $? = 1 ] || fail 'exit code with a full disk'
grep -q 'big.json: cannot write this output file' err || fail 'message with a full disk'
leaves ''
# The old file stays whole when the new one cannot be written.
echo old >big.json
(
    trap '' XFSZ
    ulimit -f 1
    exec "$bench" $small --json big.json
) >/dev/null 2>err
[ "$(cat big.json)" = old ] || fail 'the old file is gone'
rm big.json
# Known before the measuring starts.
refuses 'none/r.json: cannot open this output file: No such file or directory' $small --json none/r.json
refuses '.: cannot open this output file: Is a directory' $small --csv .
grep -q 'timed round' err && fail 'a bad path was noticed too late'
refuses "--json: expected the name of a file" $small --json ''
leaves ''

# --- options that make no sense
refuses '--nope' --nope
refuses "there is no format 'q9'; there are int8_per_channel" --format q4_k,q9
says err ' int4 '
says err ' mxfp4 '
for shape in 4096 x 0x5 5x0 -1x4 4096x 4x4x4 4096X4096 4.5x4 99999999999999999999x1 65537x1 "4 x4"; do
    refuses "--shape: expected ROWSxCOLUMNS such as 4096x4096, each from 1 to 65536, found '$shape'" --shape="$shape"
done
refuses '--shape 65536x65536 with 52 formats needs' --shape 65536x65536
for batch in 0 -1 1,,2 1, a 5000; do
    refuses "--batch: expected numbers of columns such as 1,128, each from 1 to 4096, found '$batch'" --batch="$batch"
done
refuses "--compute: expected one of f32, a16, a8, strict_f32, found 'w4a8'" --compute w4a8
refuses "--isa: expected one of scalar" --isa mmx
refuses '--time-budget: expected seconds' --time-budget 0
refuses '--time-budget: expected seconds' --time-budget nan
refuses '--time-budget' --time-budget soon
refuses 'name tensors of --input' --weight a.weight
refuses '--activations needs --weight' --input a --activations b

# --- files that cannot be read
refuses 'expected a safetensors file: cannot open "none.safetensors": No such file' $small --input none.safetensors
refuses 'expected a safetensors file' $small --input .
head -c 100000 "$data/minilm_layer3.safetensors" >cut.safetensors
refuses 'expected a safetensors file: "cut.safetensors": ' $small --input cut.safetensors
echo hello >text.safetensors
refuses 'expected a safetensors file: "text.safetensors": ' $small --input text.safetensors
says err 'expected 8 bytes of header length, the file has 6 bytes (at byte 6)'
model=$data/minilm_layer3.safetensors
refuses 'no tensor "attn_k.weight"; nearest' $small --input "$model" --weight attn_k.weight
refuses 'must be [tokens, 384]' $small --input "$model" --weight attn_q.weight --activations ffn_down.weight
refuses 'must have two dimensions [out, in], found F32 [384]' $small --input "$model" --weight attn_q.bias
refuses 'found no such pair' $small --input "$data/minilm_layer3_ffn_down_input.safetensors"

# --- the user's own weights
expect 0 $small --input "$model"
says out 'minilm_layer3.safetensors'
says out '2 weight matrices'
expect 0 $small --input "$model" --weight ffn_up.weight --activations attn_q.calib_input
says out 'ffn_up 1536x384 with 256 tokens; real activations'
expect 0 $small --input "$model" --weight ffn_down.weight # its activations are in the other file
says out 'synthetic normal activations'
expect 0 $small --input "$model:attn_?.weight"
refuses 'matches "nothing*"' $small --input "$model:nothing*"
refuses 'give one of them' $small --input "$model:attn*" --weight attn_q.weight
# GGUF: one quantized tensor of 8 x 256, Q8_0, written byte by byte
{
    printf 'GGUF\003\000\000\000\001\000\000\000\000\000\000\000\000\000\000\000\000\000\000\000'
    printf '\010\000\000\000\000\000\000\000a.weight\002\000\000\000\000\001\000\000\000\000\000\000\010\000\000\000\000\000\000\000'
    printf '\010'
    head -c 35 /dev/zero # the rest of the type, the offset, and zeros up to a multiple of 32
    head -c 2176 /dev/zero | tr '\000' '\044'
} >q.gguf
expect 0 $small --input q.gguf
says out 'dequantized'
expect 0 $small --input q.gguf --weight a.weight
refuses 'no tensor of two dimensions matches "b*"' $small --input 'q.gguf:b*'
refuses 'no tensor "b.weight"' $small --input q.gguf --weight b.weight
rm -f q.gguf

# --- algorithms
expect 0 algorithms --only mxfp4 --size 256 --tokens 300 --json r.json
says out 'does not help here'
for key in group method bits_per_weight output_sqnr_db mean_gain_db what ratio missed; do says r.json "\"$key\":"; done
refuses "found '5 bits'" algorithms --only '2 bits,5 bits'
refuses 'a multiple of 128' algorithms --size 100
refuses '--tokens: expected' algorithms --tokens 0
rm -f r.json

# --- Ctrl-C: what has been measured is shown, and said to be incomplete
rm -f ./*.safetensors
if timeout --version >/dev/null 2>&1; then # --foreground: one signal, not a second one to the whole group, which ends the program
    timeout --foreground --preserve-status -s INT 5 \
        "$bench" --shape 4096x4096 --format q4_k,q6_k,q2_k,nf4 --json r.json --time-budget 300 >out 2>err
    got=$?
    [ $got = 130 ] || fail "exit code $got after Ctrl-C"
    if grep -q 'timed round 1' err; then
        says out 'note: interrupted after'
        says r.json '"complete": false'
    else # a slow machine: nothing to show yet
        says err 'nibble_bench: interrupted'
        leaves ''
    fi
fi

[ $failures = 0 ] || exit 1
echo 'all passed'
