#!/bin/sh
# Take out of an environment (its folder) what no serving needs, half of what it would weigh.
set -eu
packages=$(echo "$1"/lib/python3*/site-packages)
cd "$packages"

# LiteRT: engines of GPUs and phones, and tools.
rm -rf ai_edge_litert/libLiteRtWebGpuAccelerator.so ai_edge_litert/tools ai_edge_litert/vendors
# botocore describes four hundred services; a login by workload identity asks sts.
find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name sts ! -name sso ! -name sso-oidc -exec rm -r {} +
# Tests, type stubs, and sources of what is compiled.
find . -depth -type d -name tests -exec rm -r {} +
find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' -o -name '*.a' \) -delete
# Debug symbols are half of a library. auditwheel has rewritten those in *.libs, which strip would break.
find . -name '*.so' ! -path '*.libs/*' -exec strip --strip-debug {} +
# Ours: what only training reads, and the published recipe's network, which a volume can bring.
rm -r model/networks/pretrained model/saved/metal_defects_final.*
