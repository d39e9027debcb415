# Where the tools for other platforms are, and how cargo uses them. To be sourced, with bash.
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# Everything is in this folder, some 4 GB, which can be removed at any time.
export MEMSNAP_CROSS=${MEMSNAP_CROSS:-${XDG_CACHE_HOME:-$HOME/.cache}/memsnap/cross}
cache=$MEMSNAP_CROSS
# To be given another number when the library is built in another way, for cargo goes on with what it built before
# unless its flags change.
sysroot=$cache/sysroot-3
# With a standard library for ThreadSanitizer.
thread_sysroot=$cache/sysroot-thread-1

# CARGO_TARGET_..., the name by which cargo knows a setting of a target.
setting() { # TARGET NAME
    local name=CARGO_TARGET_$1_$2
    name=${name//-/_}
    printf '%s' "${name^^}"
}

# Builds for a target are made with these flags, and with the standard library that `setup` built.
flags() { # TARGET FLAGS...
    local target=$1
    shift
    export "$(setting "$target" RUSTFLAGS)=--sysroot=$sysroot $*"
    export "$(setting "$target" RUSTDOCFLAGS)=--sysroot=$sysroot $*"
}

linker() { export "$(setting "$1" LINKER)=$2"; }
runner() { export "$(setting "$1" RUNNER)=$2"; }

CHECKED_TARGETS=(x86_64-pc-windows-msvc aarch64-apple-darwin x86_64-unknown-freebsd
    x86_64-unknown-netbsd x86_64-unknown-illumos x86_64-linux-android)

use_cross_tools() {
    local target machine
    # Set for the whole session, they would take the place of the flags below.
    unset RUSTFLAGS RUSTDOCFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
    for target in "${CHECKED_TARGETS[@]}"; do
        flags "$target"
    done

    flags x86_64-pc-windows-gnu
    linker x86_64-pc-windows-gnu "$cache/bin/x86_64-w64-mingw32-gcc"
    runner x86_64-pc-windows-gnu "$here/wine-runner"
    # rustc looks for dlltool there.
    export PATH=$cache/mingw/usr/bin:$PATH

    # Static, since the libraries for other machines are not where a dynamic linker looks for them.
    for machine in aarch64 powerpc64le i686; do
        target=$machine-unknown-linux-gnu
        flags "$target" -Ctarget-feature=+crt-static -Crelocation-model=static
        linker "$target" "$cache/bin/$machine-linux-gnu-gcc"
    done
    flags x86_64-unknown-linux-musl
    runner aarch64-unknown-linux-gnu "$here/vm-runner aarch64"
    runner powerpc64le-unknown-linux-gnu "$here/vm-runner powerpc64le"
}
