#!/bin/sh
# Build the image of this tree: build.sh IMAGE [TARGET]; TARGET is serve (the default) or full.
# BASE_IMAGE sets the Dockerfile's argument. PIP_CERT names the certificates of a proxy for pip.
set -eu
here=$(dirname "$0")
. "$here/engine.sh"
image=$1
target=${2:-serve}
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$here/../../pyproject.toml" | head -n 1)
revision=$(git -C "$here" rev-parse HEAD 2> /dev/null || echo unknown)
epoch=$(git -C "$here" log -1 --format=%ct 2> /dev/null || echo 0)

set -- --target "$target" --tag "$image" \
  --build-arg "VERSION=$version" --build-arg "REVISION=$revision" --build-arg "SOURCE_DATE_EPOCH=$epoch"
[ -z "${BASE_IMAGE:-}" ] || set -- "$@" --build-arg "BASE_IMAGE=$BASE_IMAGE"
if [ -n "${PIP_CERT:-}" ]; then
  pip_conf=$(mktemp)
  trap 'rm -f "$pip_conf"' EXIT
  printf '[global]\ncert = /run/ca.crt\n' > "$pip_conf"
  set -- "$@" --secret "id=pip_conf,src=$pip_conf" --secret "id=ca_bundle,src=$PIP_CERT"
fi
if [ "$ENGINE" = docker ]; then
  docker build "$@" "$here/../.."
else
  buildah bud --layers --format docker --isolation chroot --network host --timestamp "$epoch" "$@" "$here/../.."
fi
