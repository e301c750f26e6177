"""Every knob of the service, once. Each is read from the environment: EXT_CLASSIFY_<NAME>."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, PositiveFloat, PositiveInt
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from model.artifact import DEFAULT_MODEL_PATH
from model.compiled import user_cache_dir
from model.image_limits import ImageLimits
from model.runtime import Engine, usable_cores


def _split_list(value: object) -> object:
    return value.replace(",", " ").split() if isinstance(value, str) else value


HostPattern = Annotated[str, Field(pattern=r"^\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*(:[0-9]{1,5})?$")]


class Settings(BaseSettings):
    """Made once at start, passed in, never changed."""

    model_config = SettingsConfigDict(env_prefix="EXT_CLASSIFY_", frozen=True, use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address that `ext-classify serve` listens on."""
    port: Annotated[int, Field(ge=1, le=65535)] = 8000
    """Port that `ext-classify serve` listens on."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe log lines to write, to standard error."""

    model_path: Path = DEFAULT_MODEL_PATH
    """The network's .h5; its .json card and its compiled .tflite stand beside it."""
    engine: Engine = "litert"
    """`litert` serves; `tensorflow` is the reference, and needs the `train` extra."""
    cache_dir: Path = Field(default_factory=user_cache_dir)
    """Where a network without a compiled twin is compiled to."""
    threads: PositiveInt = Field(default_factory=usable_cores)
    """Threads that decode and predict; one a core by default."""

    max_body_bytes: PositiveInt = 64 * 1024 * 1024
    """Largest request body, as sent and once inflated."""
    max_rows: PositiveInt = 4096
    """Most rows, or files, in one request."""
    max_image_bytes: PositiveInt = ImageLimits.max_image_bytes
    """Largest image file."""
    max_image_pixels: PositiveInt = ImageLimits.max_image_pixels
    """Most pixels in an image, checked before they are decoded."""
    max_image_side_pixels: PositiveInt = ImageLimits.max_image_side_pixels
    """Longest side of an image, checked before it is decoded."""

    allowed_url_hosts: Annotated[tuple[HostPattern, ...], NoDecode, BeforeValidator(_split_list)] = ()
    """Hosts that images may be fetched from, separated by commas: `host`, `.domain` for all hosts below
    it, or `host:port`."""
    allow_private_addresses: bool = False
    """Fetch from private, loopback and link-local addresses too, such as a store inside the plant."""
    max_redirects: Annotated[int, Field(ge=0, le=20)] = 3
    """Redirects to follow for one image; each hop is checked like the first."""
    fetch_timeout_seconds: PositiveFloat = 10.0
    """Longest time for one image to arrive, redirects included."""
    max_concurrent_fetches: PositiveInt = 64
    """Images fetched at the same time, over all requests."""

    @property
    def image_limits(self) -> ImageLimits:
        return ImageLimits(self.max_image_bytes, self.max_image_pixels, self.max_image_side_pixels)


def unknown_variables() -> list[str]:
    """Environment variables of our prefix that name no knob: misspelt, they would silently do nothing."""
    known = {f"EXT_CLASSIFY_{name.upper()}" for name in Settings.model_fields}
    return sorted(v for v in os.environ if v.upper().startswith("EXT_CLASSIFY_") and v.upper() not in known)
