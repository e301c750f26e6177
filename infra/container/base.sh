#!/bin/sh
# Build debian:bookworm-slim from Debian's packages, where no image registry is reachable (as root).
set -eu
. "$(dirname "$0")/engine.sh"
image=docker.io/library/debian:bookworm-slim

"$ENGINE" image inspect "$image" > /dev/null 2>&1 && exit
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
mirror=$(awk '/^URIs:/ {print $2; exit}' /etc/apt/sources.list.d/debian.sources 2> /dev/null || true)
debootstrap --variant=minbase bookworm "$root" ${mirror:+"$mirror"} > "$root.log"
# Debian's own slim images omit these too.
rm -rf "$root"/var/cache/apt/* "$root"/var/cache/debconf/*-old "$root"/var/lib/apt/lists/* "$root"/var/log/*.log \
  "$root"/usr/share/doc/* "$root"/usr/share/man/* "$root"/usr/share/info/* "$root"/usr/share/locale/* \
  "$root"/usr/share/lintian "$root"/usr/share/linda
tar -C "$root" -c . | "$ENGINE" import -c 'CMD ["bash"]' - "$image" > /dev/null
