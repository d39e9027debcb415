# Defines where the tools for other platforms are, and how cargo uses them. Source this file in bash.
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

# This folder holds everything that is downloaded and built, some 4 GB. It can be removed at any time.
export MEMSNAP_CROSS=${MEMSNAP_CROSS:-${XDG_CACHE_HOME:-$HOME/.cache}/memsnap/cross}
cache=$MEMSNAP_CROSS
# Increase the number if the standard library is built in another way. The number is part of the flags, and cargo only
# builds again if the flags change.
sysroot=$cache/sysroot-3
# The sysroot with a standard library for ThreadSanitizer.
thread_sysroot=$cache/sysroot-thread-1

# Prints the name of cargo's environment variable for a setting of a target: CARGO_TARGET_...
setting() { # TARGET NAME
    local name=CARGO_TARGET_$1_$2
    name=${name//-/_}
    printf '%s' "${name^^}"
}

# Makes cargo use these flags, and the standard library that `setup` built, for a target.
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
    # If these were set in the session, cargo would ignore the flags below.
    unset RUSTFLAGS RUSTDOCFLAGS CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
    for target in "${CHECKED_TARGETS[@]}"; do
        flags "$target"
    done

    flags x86_64-pc-windows-gnu --cfg=memsnap_no_examples
    linker x86_64-pc-windows-gnu "$cache/bin/x86_64-w64-mingw32-gcc"
    runner x86_64-pc-windows-gnu "$here/wine-runner"
    # Compiles the C code of zstd and BLAKE3.
    export CC_x86_64_pc_windows_gnu=$cache/bin/x86_64-w64-mingw32-gcc
    # rustc searches dlltool in this path.
    export PATH=$cache/mingw/usr/bin:$PATH

    # Links statically, because the libraries for other machines are not in the folders of the dynamic linker.
    for machine in aarch64 powerpc64le i686; do
        target=$machine-unknown-linux-gnu
        flags "$target" -Ctarget-feature=+crt-static -Crelocation-model=static
        linker "$target" "$cache/bin/$machine-linux-gnu-gcc"
        # Compiles the same C code.
        export "CC_${target//-/_}=$cache/bin/$machine-linux-gnu-gcc"
    done
    flags x86_64-unknown-linux-musl
    runner aarch64-unknown-linux-gnu "$here/vm-runner aarch64"
    runner powerpc64le-unknown-linux-gnu "$here/vm-runner powerpc64le"
}
