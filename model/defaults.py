"""Defaults: the network, the engines and the cache folder for compiled models."""

import os
import tempfile
from pathlib import Path
from typing import Literal

SAMPLES = Path(__file__).parent / "samples"
DEFAULT_MODEL_PATH = Path(__file__).parent / "saved" / "steel_defects.h5"

Engine = Literal["litert", "tensorflow"]


def user_cache_dir() -> Path:
    """Cache folder for compiled models of .h5 files that have none next to them."""
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given) / "ext-classify"
    try:
        return Path.home() / ".cache" / "ext-classify"
    except RuntimeError:  # a container's user may have neither HOME nor a passwd entry
        return Path(tempfile.gettempdir()) / "ext-classify"
