# Sourced by the tests of the tools: a scratch folder, and what was expected of a program.
# $out has the standard output of the last program, $work/err its messages; failures are counted, finish() says the sum.
set -u
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
out=$work/out
failures=0

fail() {
    echo "FAILED: $*"
    sed 's/^/    /' "$out" "$work/err"
    failures=$((failures + 1))
}
# expect CODE PROGRAM ARGUMENTS...
expect() {
    code=$1
    shift
    "$@" >"$out" 2>"$work/err"
    got=$?
    [ "$got" = "$code" ] || fail "exit code $got, expected $code: $*"
}
says() { grep -qF -- "$2" "$1" || fail "'$2' is not in $1"; }
finish() {
    [ "$failures" -eq 0 ] || exit 1
    echo 'all is well'
}
