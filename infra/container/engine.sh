#!/bin/sh
# Source this file: it sets $ENGINE, which builds and runs containers, and its settings.
if [ -z "${ENGINE:-}" ]; then
  if docker info > /dev/null 2>&1; then ENGINE=docker; else ENGINE=podman; fi
fi
export ENGINE

# podman without systemd, for example inside a container: cgroupfs, logs in files, its own limits only, and the
# host's network, so that no firewall rules remain.
if [ "$ENGINE" = podman ] && [ ! -d /run/systemd/system ]; then
  state=${CONTAINER_STATE:-/var/tmp/ext-classify-containers}
  mkdir -p "$state"
  cat > "$state/storage.conf" << CONF
[storage]
driver = "overlay"
graphroot = "$state/storage"
runroot = "$state/run"
CONF
  cat > "$state/containers.conf" << CONF
[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
netns = "host"
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
CONF
  export CONTAINERS_STORAGE_CONF="$state/storage.conf" CONTAINERS_CONF="$state/containers.conf"
fi
