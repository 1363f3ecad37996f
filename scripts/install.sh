#!/usr/bin/env bash
# Builds tollgate and puts it where cargo puts programs (~/.cargo/bin). Needs Rust; adds a C compiler where there is none.
set -euo pipefail
cd "$(dirname "$0")/.."

command -v cargo >/dev/null || { echo "Rust is needed first: https://rustup.rs" >&2; exit 1; }
scripts/packages.sh cc:gcc
cargo install --locked --path .
tollgate --version
