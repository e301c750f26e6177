"""Defaults: the shipped models, the engines, the cache folder for compiled models and the number of cores."""

import math
import os
import tempfile
from pathlib import Path
from typing import Literal

Engine = Literal["litert", "tensorflow"]
Network = Literal["texture", "recipe"]
"""The networks that can be trained."""

SAMPLES = Path(__file__).parent / "samples"
_SAVED = Path(__file__).parent / "saved"
SHIPPED_MODELS: dict[Network, Path] = {
    "texture": _SAVED / "steel_defects.h5",
    "recipe": _SAVED / "metal_defects_final.h5",
}
DEFAULT_MODEL_PATH = SHIPPED_MODELS["texture"]

# Source: Linux kernel documentation, "Control Group v2" (cpu.max) and "CFS Bandwidth Control" (cpu.cfs_*).
_CGROUP = Path("/sys/fs/cgroup")


def samples_folder(h5_path: Path) -> Path:
    """Folder of a network's own sample images, next to its .h5."""
    return h5_path.with_name(f"{h5_path.name if h5_path.is_dir() else h5_path.stem}.samples")


def find_samples(h5_path: Path) -> Path | None:
    """Folder of images to try a network on: its own, else the drawn ones of steel for a shipped network."""
    own = samples_folder(h5_path)
    if own.is_dir() and any(own.iterdir()):
        return own
    is_shipped = h5_path.resolve() in {path.resolve() for path in SHIPPED_MODELS.values()}
    return SAMPLES if is_shipped else None


def user_cache_dir() -> Path:
    """Cache folder for compiled models of .h5 files that have none next to them."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "ext-classify"
    try:
        return Path.home() / ".cache" / "ext-classify"
    except RuntimeError:  # a container's user may have neither HOME nor a passwd entry
        return Path(tempfile.gettempdir()) / "ext-classify"


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Number of cores in this process's CPU affinity, capped at the container's CPU quota, rounded up."""
    quota = _quota_cores(cgroup)
    cores = _schedulable_cores()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def _schedulable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # absent on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota_cores(cgroup: Path) -> float | None:
    """CPU quota of the cgroup in cores; None if it has no quota or the quota cannot be read."""
    try:
        v2 = cgroup / "cpu.max"
        quota, period = v2.read_text(encoding="ascii").split() if v2.exists() else _read_v1(cgroup)
        return int(quota) / int(period) if int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):  # cpu.max holds "max" without a quota
        return None


def _read_v1(cgroup: Path) -> list[str]:
    folder = cgroup / "cpu"
    quota, period = (folder / f"cpu.cfs_{name}_us" for name in ("quota", "period"))
    return [quota.read_text(encoding="ascii"), period.read_text(encoding="ascii")]
