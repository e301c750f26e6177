"""Every knob of the service, once. Each is read from the environment: EXT_CLASSIFY_<NAME>."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, FilePath, PositiveFloat, PositiveInt, SecretStr
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.snowflake.identifier import parse_identifier
from model.cores import usable_cores
from model.defaults import DEFAULT_MODEL_PATH, Engine, user_cache_dir
from model.image_limits import ImageLimits


def _split_list(value: object) -> object:
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _split_names(value: object) -> object:
    """By commas, but for those in double quotes."""
    if not isinstance(value, str):
        return value
    return [name.strip() for name in re.findall(r'(?:"(?:[^"]|"")*"|[^",])+', value) if name.strip()]


# A host, an optional port, and optional folders; no folder begins with a dot.
_HOST_PATTERN = r"^\.?[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*(:[0-9]{1,5})?(/[A-Za-z0-9$_~-][A-Za-z0-9._~$-]*)*/?$"
HostPattern = Annotated[str, Field(pattern=_HOST_PATTERN)]


def _require_stage_name(text: str) -> str:
    if len(parse_identifier(text)) != 3:
        raise ValueError(f"A stage must be named as db.schema.stage. Received: {text!r}.")
    return text


StageName = Annotated[str, AfterValidator(_require_stage_name)]


def _share_of_cores(settings: dict[str, Any]) -> int:
    """Of one worker, rounded up: a process too many costs less than a core that idles."""
    if settings.get("engine") == "tensorflow":
        return 1
    workers: int = settings.get("workers", 1)
    return -(-usable_cores() // workers)


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
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes that answer HTTP, each with a network and classifiers of its own."""
    classifiers: PositiveInt = Field(default_factory=_share_of_cores)
    """Processes that decode and predict, for each worker; by default, as many as give each core one, and one
    with TensorFlow, which takes all cores by itself."""

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
    max_image_memory_bytes: Annotated[int, Field(ge=64 * 1024 * 1024)] = 1024 * 1024 * 1024
    """Memory that each classifier process may take for its images, beside the network's."""
    max_image_cpu_seconds: PositiveFloat = 10.0
    """Longest CPU time for one image."""

    allowed_url_hosts: Annotated[tuple[HostPattern, ...], NoDecode, BeforeValidator(_split_list)] = ()
    """Hosts that images may be fetched from, separated by commas: `host`, `.domain` for all hosts below
    it, or `host:port`, each with `/bucket` behind it for what lies below that only."""
    allow_private_addresses: bool = False
    """Fetch from private, loopback and link-local addresses too, such as a store inside the plant."""
    max_redirects: Annotated[int, Field(ge=0, le=20)] = 3
    """Redirects to follow for one image; each hop is checked like the first."""
    fetch_timeout_seconds: PositiveFloat = 10.0
    """Longest time for one image to arrive, redirects included."""
    max_concurrent_fetches: PositiveInt = 64
    """Images fetched at the same time, over all requests."""

    snowflake_account: str | None = None
    """Account to read stages from, `organization-account` or a locator with its region; none by default. In
    Snowpark Container Services the service finds its account and token by itself."""
    snowflake_user: str | None = None
    """User that the service logs in as."""
    snowflake_private_key_file: FilePath | None = None
    """Private key of that user, PEM, for key-pair login."""
    snowflake_private_key_passphrase: SecretStr | None = None
    """Passphrase of the private key, if it has one."""
    snowflake_token: SecretStr | None = None
    """Token to log in with."""
    snowflake_token_file: Path | None = None
    """File with that token, read anew for every login."""
    snowflake_token_type: Literal["PROGRAMMATIC_ACCESS_TOKEN", "OAUTH"] = "PROGRAMMATIC_ACCESS_TOKEN"  # noqa: S105
    """What kind of token it is."""
    snowflake_workload_identity_provider: Literal["AWS", "AZURE", "GCP", "OIDC"] | None = None
    """Cloud whose identity of this machine is the login."""
    snowflake_role: str | None = None
    """Role with READ on the stages; the user's default role by default."""
    snowflake_warehouse: str | None = None
    """Warehouse for the statements that sign URLs; the user's default warehouse by default."""
    snowflake_stages: Annotated[tuple[StageName, ...], NoDecode, BeforeValidator(_split_names)] = ()
    """Stages that may be read, `db.schema.stage`, separated by commas; all that the role may read by
    default."""
    snowflake_presigned_urls: bool = True
    """Fetch staged files by pre-signed URLs; if false, the connector downloads them."""
    snowflake_max_connections: PositiveInt = 4
    """Connections to Snowflake at the same time."""
    snowflake_timeout_seconds: PositiveFloat = 20.0
    """Longest time for a login or a statement."""
    snowflake_host: str | None = None
    """Host of the account where it is not the usual one, such as a private link's."""
    snowflake_port: Annotated[int, Field(ge=1, le=65535)] = 443
    """Port of that host."""
    snowflake_protocol: Literal["https", "http"] = "https"
    """`http` is for local SQL only."""

    @property
    def image_limits(self) -> ImageLimits:
        return ImageLimits(self.max_image_bytes, self.max_image_pixels, self.max_image_side_pixels)


def unknown_variables() -> list[str]:
    """Environment variables of our prefix that name no knob: misspelt, they would silently do nothing."""
    known = {f"EXT_CLASSIFY_{name.upper()}" for name in Settings.model_fields}
    return sorted(v for v in os.environ if v.upper().startswith("EXT_CLASSIFY_") and v.upper() not in known)
