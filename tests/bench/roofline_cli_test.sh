#!/bin/sh
# roofline_cli_test.sh PROGRAM [native]: `nibble_bench roofline` as its users see it. Options, exit codes, messages, files.
# native: Eigen compiled with -march=native was built, too.
set -u
bench=$(CDPATH='' cd -- "$(dirname -- "$1")" && pwd)/$(basename -- "$1")
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
native=${2:-}
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
    "$bench" roofline "$@" >out 2>err
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

small="--quick --size 256x512 --residency cache --format int4_g32,nf4 --batch 1,16"

# --- help
expect 0 --help
says out '--residency'
says out 'Every format x'
"$bench" --help >out 2>err
says out 'roofline'

# --- options that make no sense
refuses '--nope' --nope
refuses "--format: there is no format 'q9'; there are int4_per_channel int8_per_channel" --format q4_k,q9
refuses "--compute: expected one of f32, a16, a8, strict_f32, found 'w4a8'" --compute w4a8
for batch in 0 -1 a 5000 1x; do
    refuses "--batch: expected whole numbers from 1 to 4096, found '$batch'" --batch="$batch"
done
refuses "--threads: expected whole numbers from 1 to 256, found '0'" --threads 0
refuses "--residency: expected some of dram, cache, found 'disk'" --residency disk
refuses "--kernel: expected some of product, quantize, dequantize, prepare, found 'gemm'" --kernel gemm
for size in 4096 x 0x5 5x0 4096x 4x4x4 65537x1; do
    refuses "--size: expected ROWSxCOLUMNS such as 4096x11008, each from 1 to 65536, found '$size'" --size="$size"
done
refuses '--size 65536x65536 needs 34359 MB of float weights, at most 4000 are used' --size 65536x65536
refuses '--size 64x64 is too small to be read from memory in int4_g32: more than 1024 copies; take --residency cache' \
    --size 64x64 --format int4_g32
refuses '--isa: expected one of scalar' --isa mmx
refuses '--row-budget: expected seconds, from 0 to 3600' --row-budget -2
refuses "--json: expected the name of a file, found ''" --json ''
refuses 'nothing to measure' --residency cache --kernel quantize
refuses 'none/r.json: cannot open this output file: No such file or directory' $small --json none/r.json
"$bench" --quick roofline $small >out 2>err
[ $? = 1 ] || fail 'options before roofline'
says err '--quick before roofline belongs to the comparison'

# --- from end to end
expect 0 $small --threads 1,2 --json r.json
says out 'products 256x512, weights from an 8 MiB set, 1 thread'
says out 'products 256x512, weights from an 8 MiB set, 2 threads'
says out 'f32_eigen '
[ -z "$native" ] || says out 'f32_eigen_native '
says out 'targets are met'
says err 'ETA'
grep -q WRONG out && fail 'something is wrong'
grep -q "$(printf '\033')" out err && fail 'escape sequences without a terminal'
for key in header rows read_gbytes_per_s cache_read_gbytes_per_s f32_gflops int8_gops cpu compiler commit kernel format group \
    scale offset compute isa n k m threads residency median_s min_s gflops gbytes_per_s fraction_of_bandwidth \
    fraction_of_peak rel_l2_error; do
    grep -q "\"$key\":" r.json || fail "key $key of the JSON"
done
expect 0 $small --isa scalar --no-native --compute a8 --kernel product
says out 'products run at scalar'
grep -q f32_eigen_native out && fail '--no-native'
expect 0 --quick --size 1024x1024 --format int8 --batch 1 --no-native --compute a8
says out 'weights from memory'
says out 'dequantize  int8_per_channel'
rm -f r.json

# --- Ctrl-C: what has been measured is shown, and said to be incomplete
if timeout --version >/dev/null 2>&1; then # --foreground: one signal, not a second one to the whole group, which ends the program
    timeout --foreground --preserve-status -s INT 5 "$bench" roofline --size 1024x1024 --residency cache --row-budget 2 --json r.json >out 2>err
    got=$?
    [ $got = 130 ] || fail "exit code $got after Ctrl-C"
    if [ -s out ]; then
        says out 'note: interrupted'
        says r.json '"complete": false'
    else # a slow machine: nothing to show yet
        says err 'nibble_bench: interrupted'
    fi
fi

[ $failures = 0 ] || exit 1
echo 'all passed'
