"""Every knob of the service, once. Each is read from the environment: EXT_CLASSIFY_<NAME>."""

import os
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    FilePath,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.names import parse_identifier
from app.spcs import is_inside_spcs
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


def _require_redis_url(url: SecretStr) -> SecretStr:
    if not url.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("A Redis URL must begin with redis://, rediss:// or unix://")
    return url


StageName = Annotated[str, AfterValidator(_require_stage_name)]


def _share_of_cores(settings: dict[str, Any]) -> int:
    """Of one worker, rounded up: a process too many costs less than a core that idles."""
    if settings.get("engine") == "tensorflow":
        return 1
    workers: int = settings.get("workers", 1)
    return -(-usable_cores() // workers)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name, which may mean any address
        return host == "localhost"


DEFAULT_PORT = 8000


def _ignore_service_link(value: object) -> object:
    """Of a service named ext-classify, Kubernetes tells every pod EXT_CLASSIFY_PORT=tcp://10.0.0.1:8000."""
    return DEFAULT_PORT if isinstance(value, str) and value.startswith("tcp://") else value


# What else it says then, of which nothing is meant for us.
_SERVICE_LINK = re.compile(r"EXT_CLASSIFY_(SERVICE_HOST|SERVICE_PORT|SERVICE_PORT_.+|PORT_\d+_(TCP|UDP).*)")


class Settings(BaseSettings):
    """Made once at start, passed in, never changed."""

    model_config = SettingsConfigDict(env_prefix="EXT_CLASSIFY_", frozen=True, use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address that `ext-classify serve` listens on."""
    port: Annotated[int, Field(ge=1, le=65535), BeforeValidator(_ignore_service_link)] = DEFAULT_PORT
    """Port that `ext-classify serve` listens on."""
    auth: Annotated[
        tuple[Literal["none", "api_key", "jwt", "spcs"], ...], NoDecode, BeforeValidator(_split_list)
    ] = ()
    """Who may call: whoever has an `api_key`, bears a `jwt`, or comes through the ingress of Snowpark
    Container Services (`spcs`), or any of several, separated by commas. `none` is anybody: without a word on
    it, the service listens on loopback only."""
    api_keys_file: FilePath | None = None
    """File of the API keys' hashes, one `NAME SHA256` a line, read anew when it changes; `ext-classify key`
    makes them."""
    jwt_issuer: str | None = None
    """Who must have issued a token, its `iss`."""
    jwt_audience: str | None = None
    """Whom it must be for, its `aud`."""
    jwt_jwks_url: Annotated[str, Field(pattern="^https?://")] | None = None
    """Where the issuer's keys are."""
    jwt_callers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list)] = ()
    """Whose it must be, its `appid`, `azp` or `sub`, separated by commas; by default anybody's, which in a
    tenant of Azure AD is any application's."""
    show_playground: bool = True
    """Whether there is a page at `/` to try images on."""
    show_docs: bool = True
    """Whether there are `/docs` and `/openapi.json`."""
    traces: bool = False
    """Whether to send OpenTelemetry traces, by its own variables such as `OTEL_EXPORTER_OTLP_ENDPOINT`; needs
    the `traces` extra."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least severe log lines to write, to standard error."""

    model_path: Path = DEFAULT_MODEL_PATH
    """The network's .h5; its .json card and its compiled .tflite stand beside it."""
    engine: Engine = "litert"
    """`litert` serves; `tensorflow` is the reference, and needs the `train` extra."""
    cache_dir: Path = Field(default_factory=user_cache_dir)
    """Where a network without a compiled twin is compiled to."""
    stop_delay_seconds: Annotated[float, Field(ge=0)] = 1.0
    """How long the service answers on after SIGTERM, no longer ready, so that load balancers learn of it."""
    stop_grace_seconds: PositiveInt = 25
    """Time that it then has to end what was begun; what is left is answered 503, to be sent again
    elsewhere."""
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes that answer HTTP, each with a network and classifiers of its own."""
    classifiers: PositiveInt = Field(default_factory=_share_of_cores)
    """Processes that decode and predict, for each worker; by default, as many as give each core one, and one
    with TensorFlow, which takes all cores by itself."""

    max_wait_seconds: PositiveFloat = 5.0
    """Longest that rows may have to wait for those before them, as measured; beyond it, 429 until it is
    less."""
    max_pending_bytes: PositiveInt = 256 * 1024 * 1024
    """Most bytes of bodies, inflated, that arrive or wait for their answer, and of large answers being sent;
    beyond it, slow bodies are evicted and the youngest get 429. Bodies of at most `MAX_IMAGE_BYTES` have as
    much again."""
    sync_deadline_seconds: PositiveFloat = 20.0
    """Longest that a batch with an id is waited for; then 202, and it is to be asked for. Gateways wait 29.
    Several workers promise nothing without Redis."""
    request_timeout_seconds: PositiveFloat = 600.0
    """Longest that any request, or a batch that is asked for later, may take; then 503, to be sent again.
    Snowflake asks for a batch for 10 minutes."""
    remembered_seconds: Annotated[float, Field(ge=600)] = 600.0
    """How long the answer to a batch is remembered by its id; Snowflake would have it 43200, 12 hours."""
    max_remembered_bytes: PositiveInt = 128 * 1024 * 1024
    """Most memory for such answers, compressed; beyond it, the oldest are forgotten sooner."""
    redis_url: Annotated[SecretStr, AfterValidator(_require_redis_url)] | None = None
    """Redis that all replicas remember answers in, such as `rediss://user:password@host:6379/0`; by default,
    each has its own memory only."""
    body_timeout_seconds: PositiveFloat = 30.0
    """Longest time for a request's body to arrive."""
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
    image_statistics: bool = False
    """Whether to measure how bright and how sharp images are, for `/metrics` and the log; it takes a little
    of each one's time."""

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

    @model_validator(mode="after")
    def _require_what_auth_needs(self) -> Self:
        needs = {
            "api_key": {"api_keys_file"},
            "jwt": {"jwt_issuer", "jwt_audience", "jwt_jwks_url"},
        }
        for way in self.auth:
            if missing := sorted(name.upper() for name in needs.get(way, ()) if not getattr(self, name)):
                raise ValueError(f"AUTH={way} needs {', '.join(missing)}")
        if "none" in self.auth and len(self.auth) > 1:
            raise ValueError("AUTH=none is for anybody, and excludes all others")
        if "spcs" in self.auth and not is_inside_spcs():
            raise ValueError(
                "AUTH=spcs is for Snowpark Container Services only: elsewhere, anybody can say so"
            )
        if not self.auth and not _is_loopback(self.host):
            raise ValueError(
                f"HOST={self.host} lets others in: say who may call, AUTH=api_key, jwt or spcs, or AUTH=none"
            )
        return self

    @property
    def image_limits(self) -> ImageLimits:
        return ImageLimits(self.max_image_bytes, self.max_image_pixels, self.max_image_side_pixels)

    @property
    def reads_stages(self) -> bool:
        """Whether the service has a Snowflake account to read stages from."""
        return self.snowflake_account is not None or is_inside_spcs()


def unknown_variables() -> list[str]:
    """Environment variables of our prefix that name no knob: misspelt, they would silently do nothing."""
    known = {f"EXT_CLASSIFY_{name.upper()}" for name in Settings.model_fields}
    ours = (name for name in os.environ if name.upper().startswith("EXT_CLASSIFY_"))
    return sorted(name for name in ours if name.upper() not in known and not _SERVICE_LINK.fullmatch(name))
