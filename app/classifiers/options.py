"""What a classifier process is told at its start."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from model.defaults import Engine
from model.image_limits import ImageLimits


class ProcessOptions(BaseModel):
    """Which network, and what of an image it may be shown."""

    model_config = ConfigDict(frozen=True)

    model_path: Path
    engine: Engine
    cache_dir: Path
    limits: ImageLimits
    max_image_memory_bytes: int
    max_image_cpu_seconds: float
    image_statistics: bool
