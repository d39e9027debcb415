# What a contributor runs every day. `just` alone lists it.

_list:
    @just --list --unsorted

# all tests, on this platform
test *args:
    cargo test --all-features {{args}}

# format and lint
lint:
    cargo fmt --all
    cargo clippy --workspace --all-targets --all-features -- -D warnings

# the other platforms, or some of: check unix wine i686 musl linux6.1 page16k page64k
cross *parts:
    ci/cross/run {{parts}}

# the main job, on a gibibyte, with a table
checkpoint *args:
    cargo run --release --example checkpoint -- {{args}}

# a short program: fixture, fuzz_target, pool, rollback, share or undo
example name:
    cargo run --release --example {{name}}

# the benchmark; `just bench --quick` for a smaller one
bench *args:
    cargo run --release -p memsnap-bench -- {{args}}

# a database, a WebAssembly runtime, a virtual machine: `just showcase wasm --quick`
showcase program *args:
    cargo run --release -p memsnap-showcase --bin {{program}} -- {{args}}

# all of CI
ci:
    .ci/run
