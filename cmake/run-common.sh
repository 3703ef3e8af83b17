# Read by tests/run, bench/run and examples/run, which set $root (this repository) and $me (their own name).
# Installs what is missing, configures and builds. Says what it does on standard error, asks nothing.

say() { printf '%s: %s\n' "$me" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }

# nibble_install PRESET: installs what is missing to build the preset. Debian packages need root or a sudo that does
# not ask; elsewhere CMake fetches the libraries, and compilers are the user's to install.
nibble_install() {
    missing=
    have cmake || missing="$missing cmake"
    have ninja || have make || missing="$missing ninja-build"
    if [ "$1" = clang ]; then
        have clang++ || missing="$missing clang"
        have c++ || missing="$missing g++" # for its standard library
    elif [ "$1" = aarch64 ]; then
        have aarch64-linux-gnu-g++ || missing="$missing g++-aarch64-linux-gnu"
        have qemu-aarch64 || missing="$missing qemu-user"
    else
        [ -n "${CXX:-}" ] || have c++ || missing="$missing g++"
    fi
    case $me:$1 in
        tests:release | tests:full | tests:clang) have qemu-x86_64 || missing="$missing qemu-user" ;;
    esac
    if have apt-get && have dpkg-query; then
        for package in libeigen3-dev catch2 libbenchmark-dev nlohmann-json3-dev libcli11-dev; do
            case $(dpkg-query -W -f '${Status}' "$package" 2>/dev/null) in
                *' installed') ;;
                *) missing="$missing $package" ;;
            esac
        done
    fi
    [ -n "$missing" ] || return 0

    if [ "${NIBBLE_NO_INSTALL:-}" = 1 ]; then
        say "not installed:$missing (NIBBLE_NO_INSTALL=1: going on without, CMake fetches the libraries it lacks)"
    elif ! have apt-get; then
        say "not installed:$missing (no apt-get here: please install it; CMake fetches the libraries it lacks)"
    elif [ "$(id -u)" = 0 ]; then
        nibble_apt
    elif have sudo && sudo -n true 2>/dev/null; then
        nibble_apt sudo -n
    else
        say "not installed:$missing (needs root: please run 'apt-get install$missing'; CMake fetches the libraries)"
    fi
}

# nibble_apt [sudo -n]: installs $missing. The package lists are brought up to date only when that is needed.
nibble_apt() {
    say "installing with apt-get:$missing (NIBBLE_NO_INSTALL=1 forbids this)"
    # shellcheck disable=SC2086
    if "$@" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing >"$log" 2>&1; then
        return 0
    fi
    say 'updating the package lists first'
    # shellcheck disable=SC2086
    if "$@" env DEBIAN_FRONTEND=noninteractive apt-get update >"$log" 2>&1 &&
        "$@" env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $missing >>"$log" 2>&1; then
        return 0
    fi
    tail -n 20 "$log" >&2
    say 'apt-get failed, going on: CMake fetches the libraries it lacks'
}

# How many jobs: all processors, unless CMAKE_BUILD_PARALLEL_LEVEL says otherwise.
nibble_jobs() {
    jobs=${CMAKE_BUILD_PARALLEL_LEVEL:-}
    [ -n "$jobs" ] || jobs=$(getconf _NPROCESSORS_ONLN 2>/dev/null) || jobs=2
}

# nibble_build PRESET [TARGET]: installs, configures and builds in build/PRESET. Output goes to build/PRESET/run.log,
# which is shown only on failure.
nibble_build() {
    preset=$1
    build=$root/build/$preset
    log=$build/run.log
    mkdir -p "$build"
    nibble_jobs
    nibble_install "$preset"
    have cmake || die 'cmake is not installed'

    cd "$root"
    say "configuring build/$preset"
    # A build tree keeps the generator it has. Its log takes the place of apt-get's.
    if [ ! -f "$build/CMakeCache.txt" ] && have ninja; then
        cmake --preset "$preset" -G Ninja >"$log" 2>&1 || nibble_failed configuring
    else
        cmake --preset "$preset" >"$log" 2>&1 || nibble_failed configuring
    fi

    say "building ${2:-all} with $jobs jobs (log: build/$preset/run.log)"
    cmake --build "$build" --parallel "$jobs" ${2:+--target "$2"} >"$log" 2>&1 || nibble_failed building
}

nibble_failed() {
    cat "$log" >&2
    die "$1 build/$preset failed, the log is above"
}
