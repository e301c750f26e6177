#!/bin/sh
# List an image's packages: packages.sh IMAGE FOLDER writes python-packages.txt, in pip's format, and
# debian-packages.txt.
set -eu
. "$(dirname "$0")/engine.sh"
image=$1
folder=$2
mkdir -p "$folder"
"$ENGINE" run --rm --entrypoint python3 "$image" -c '
from importlib.metadata import distributions
print(*sorted(f"{found.name.lower()}=={found.version}" for found in distributions() if found.name != "ext-classify"), sep="\n")
' > "$folder/python-packages.txt"
"$ENGINE" run --rm --entrypoint dpkg-query "$image" -W > "$folder/debian-packages.txt"
