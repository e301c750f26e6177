#!/bin/sh
# Remove from an environment (its folder) what serving does not need, half of its size.
set -eu
packages=$(echo "$1"/lib/python3*/site-packages)
cd "$packages"

# LiteRT's accelerators for GPUs and phones, and tools.
rm -rf ai_edge_litert/libLiteRtWebGpuAccelerator.so ai_edge_litert/tools ai_edge_litert/vendors
# botocore describes four hundred services; workload identity needs sts.
find botocore/data -mindepth 1 -maxdepth 1 -type d ! -name sts ! -name sso ! -name sso-oidc -exec rm -r {} +
# Tests, type stubs, and sources of compiled modules.
find . -depth -type d -name tests -exec rm -r {} +
find . -type f \( -name '*.pyi' -o -name '*.pyx' -o -name '*.pxd' -o -name '*.c' -o -name '*.h' -o -name '*.a' \) -delete
# Debug symbols are half of a library. auditwheel has rewritten those in *.libs, which strip would break.
find . -name '*.so' ! -path '*.libs/*' -exec strip --strip-debug {} +
# Data for training only, and the published recipe's network, which can be mounted.
rm -r model/networks/pretrained model/saved/metal_defects_final.*
