#!/usr/bin/env bash
# Base images made on this machine, for builds that reach a Debian mirror but no image registry. Needs root,
# debootstrap, this machine's Rust, and Docker or Podman (CONTAINER_ENGINE). Prints what docker/test.sh takes:
#
#   eval "$(docker/local-bases.sh)" && docker/test.sh
#
# The crates that this machine's cargo has downloaded are lent to the build, which then needs no network.
set -euo pipefail

engine="${CONTAINER_ENGINE:-docker}"
release=bookworm
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
say() { printf '%s\n' "$*" >&2; }
# A folder as an image.
import() { tar --directory "$1" --create . | "$engine" import "${@:3}" - "$2" > /dev/null; }
# A minimal Debian in a folder, with more packages.
bootstrap() {
    debootstrap --variant=minbase "${@:2}" "$release" "$1" > "$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
}

runtime="localhost/debian:$release-slim"
rust="localhost/rust:$release"

if ! "$engine" image inspect "$runtime" > /dev/null 2>&1; then
    say "making $runtime"
    bootstrap "$work/runtime"
    # What the registry's image of this name leaves out, too.
    rm -rf "$work"/runtime/{var/lib/apt/lists,var/cache/apt,var/log,usr/share/{doc,info,lintian,locale,man}}/*
    import "$work/runtime" "$runtime"
fi
if ! "$engine" image inspect "$rust" > /dev/null 2>&1; then
    say "making $rust"
    bootstrap "$work/rust" --include=ca-certificates,gcc,g++,libc6-dev
    mkdir "$work/rust/usr/local/rust"
    cp --archive "$(rustc --print sysroot)"/{bin,lib} "$work/rust/usr/local/rust"
    import "$work/rust" "$rust" --change 'ENV PATH=/usr/local/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin' \
        --change 'ENV CARGO_HOME=/usr/local/cargo'
fi

registry="${CARGO_HOME:-$HOME/.cargo}/registry"
echo "export RUNTIME_IMAGE=$runtime RUST_IMAGE=$rust BUILD_OPTIONS='--network none --volume $registry:/usr/local/cargo/registry:ro'"
