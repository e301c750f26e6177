"""All settings of the service. Each is read from an environment variable, EXT_CLASSIFY_<NAME>."""

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
    StringConstraints,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from app.names import parse_identifier, require_account
from model.defaults import DEFAULT_MODEL_PATH, Engine, usable_cores, user_cache_dir
from model.image_limits import ImageLimits

# Snowpark Container Services mounts a token and renews it every few minutes; a login needs the newest.
# Source: Snowflake documentation, "Connect to Snowflake from within a container".
SPCS_TOKEN_FILE = Path("/snowflake/session/token")


def is_inside_spcs() -> bool:
    return "SNOWFLAKE_HOST" in os.environ and SPCS_TOKEN_FILE.is_file()


def _split_list(value: object) -> object:
    return value.replace(",", " ").split() if isinstance(value, str) else value


def _as_root_path(value: object) -> object:
    return f"/{value.strip('/')}".rstrip("/") if isinstance(value, str) else value


def _split_names(value: object) -> object:
    """Split by commas outside double quotes."""
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


def _require_token(path: Path) -> Path:
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"The token's file must be readable. Received: {type(error).__name__}.") from None
    if not token:
        raise ValueError("The token's file must hold the token. Received: an empty file.")
    return path


def _require_redis_url(url: SecretStr) -> SecretStr:
    from redis.connection import parse_url  # noqa: PLC0415 - Redis is optional, and slow to import

    try:
        parse_url(url.get_secret_value())  # type: ignore[no-untyped-call]
    except ValueError:  # its message may hold a part of the password
        raise ValueError(
            "A Redis URL must be redis://user:password@host:port/database, rediss://… or unix://PATH"
        ) from None
    return url


_PROXY_URL = re.compile(r"https?://(?:[^\s/?#@]+@)?(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?/?")


def _require_proxy_url(url: SecretStr) -> SecretStr:
    if not _PROXY_URL.fullmatch(url.get_secret_value()):  # which may hold a password
        raise ValueError(
            "A proxy must be http://host:port or https://host:port, with user:password@ if needed"
        )
    return url


StageName = Annotated[str, AfterValidator(_require_stage_name)]
TokenFile = Annotated[FilePath, AfterValidator(_require_token)]
# As browsers send it: in lower case, without a path (RFC 6454).
Origin = Annotated[str, StringConstraints(to_lower=True, pattern=r"(?i)^(\*|https?://[^/\s*]+)$")]


def _share_of_cores(settings: dict[str, Any]) -> int:
    """One worker's share, rounded up: an extra process costs less than an idle core."""
    if settings.get("engine") == "tensorflow":
        return 1
    workers: int = settings.get("workers", 1)
    return -(-usable_cores() // workers)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:  # a name, which may resolve to any address
        return host == "localhost"


DEFAULT_PORT = 8000


def _ignore_service_link(value: object) -> object:
    """Kubernetes sets EXT_CLASSIFY_PORT=tcp://10.0.0.1:8000 in pods, for a service named ext-classify."""
    return DEFAULT_PORT if isinstance(value, str) and value.startswith("tcp://") else value


# Variables that Kubernetes also sets for such a service.
_SERVICE_LINK = re.compile(r"EXT_CLASSIFY_(SERVICE_HOST|SERVICE_PORT|SERVICE_PORT_.+|PORT_\d+_(TCP|UDP).*)")


class Settings(BaseSettings):
    """Immutable settings, read once at startup."""

    model_config = SettingsConfigDict(env_prefix="EXT_CLASSIFY_", frozen=True, use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """Address that `ext-classify serve` listens on."""
    port: Annotated[int, Field(ge=1, le=65535), BeforeValidator(_ignore_service_link)] = DEFAULT_PORT
    """Port that `ext-classify serve` listens on."""
    root_path: Annotated[str, BeforeValidator(_as_root_path), Field(pattern=r"^(/[A-Za-z0-9._~-]+)*$")] = ""
    """Prefix of every path if a gateway passes one on, such as the name of its stage: `/prod`. The service
    answers with and without it."""
    keep_alive_seconds: PositiveInt = 620
    """How long a connection stays open between two requests. It must be longer than the load balancer keeps
    it (Azure Front Door: 90 seconds, Oracle Cloud: 300, Google Cloud: 600), or requests are lost."""
    cors_origins: Annotated[tuple[Origin, ...], NoDecode, BeforeValidator(_split_list)] = ()
    """Web pages whose scripts may send requests, separated by commas, such as `https://app.example.com`; `*`
    for all. None by default."""
    auth: Annotated[
        tuple[Literal["none", "api_key", "jwt", "spcs"], ...], NoDecode, BeforeValidator(_split_list)
    ] = ()
    """Authentication of clients: `api_key`, `jwt`, `spcs` (the ingress of Snowpark Container Services), or
    several of them, separated by commas; `none` accepts every client. If it is not set, the service listens
    on loopback only."""
    api_keys_file: FilePath | None = None
    """File of the API keys' hashes, one `NAME SHA256` a line, reloaded when it changes; `ext-classify key`
    creates keys."""
    jwt_issuer: str | None = None
    """Required `iss` of a token."""
    jwt_audience: str | None = None
    """Required `aud` of a token."""
    jwt_jwks_url: Annotated[str, Field(pattern="^https?://")] | None = None
    """URL of the issuer's keys (JWKS)."""
    jwt_callers: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_list)] = ()
    """Accepted `appid`, `azp` or `sub` of a token, separated by commas; all by default, which in Azure AD
    includes every application of the tenant."""
    show_playground: bool = True
    """Whether to serve a page at `/` where images can be classified."""
    show_docs: bool = True
    """Whether to serve `/docs` and `/openapi.json`."""
    traces: bool = False
    """Whether to send OpenTelemetry traces, configured by the standard variables such as
    `OTEL_EXPORTER_OTLP_ENDPOINT`; needs the `traces` extra."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest level of log lines to write to stderr."""

    model_path: Path = DEFAULT_MODEL_PATH
    """The network's .h5; its .json card and its compiled .tflite are in the same folder."""
    engine: Engine = "litert"
    """`litert` is for serving; `tensorflow` is the reference, and needs the `train` extra."""
    cache_dir: Path = Field(default_factory=user_cache_dir)
    """Folder for the compiled model of a network that has none."""
    stop_delay_seconds: Annotated[float, Field(ge=0)] = 1.0
    """How long the service still accepts requests after SIGTERM, while `/readyz` answers 503, so that load
    balancers stop sending requests to it."""
    stop_grace_seconds: PositiveInt = 25
    """How long the service then completes requests in progress; after that they get 503, and clients retry
    them on another replica."""
    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Processes that answer HTTP, each with its own network and classifier processes."""
    classifiers: PositiveInt = Field(default_factory=_share_of_cores)
    """Processes that decode and predict, for each worker; by default one per core in total, and one per
    worker with TensorFlow, which uses all cores by itself."""

    max_wait_seconds: PositiveFloat = 5.0
    """Longest estimated time that rows may wait in the queue; beyond it, requests get 429."""
    patience_seconds: Annotated[float, Field(ge=0, lt=30)] = Field(
        default_factory=lambda: 20.0 if is_inside_spcs() else 0.0
    )
    """How long a batch with an id waits for its estimated wait to fall to `MAX_WAIT_SECONDS`, before it gets
    429: by default 20 in Snowpark Container Services, where a 429 is a failed try and a call times out after
    30 seconds, and 0 elsewhere."""
    max_pending_bytes: PositiveInt = 256 * 1024 * 1024
    """Most bytes of decompressed bodies that arrive or wait for their answer, and of large answers being
    sent; beyond it, slow bodies are evicted and the newest get 429. Bodies of at most `MAX_IMAGE_BYTES` have
    a reserve of that size. With authentication, the bodies of one caller hold at most three quarters."""
    sync_deadline_seconds: PositiveFloat = 20.0
    """Longest time until a batch with an id is answered; then the service answers 202 and the client polls.
    Gateways time out after 29 seconds. Several workers need Redis for this."""
    request_timeout_seconds: PositiveFloat = 600.0
    """Longest time for any request, and for a deferred batch; then 503, and the client retries. Snowflake
    polls for 10 minutes."""
    answer_cache_seconds: Annotated[float, Field(ge=600)] = 600.0
    """How long the answer to a batch is cached by its id; Snowflake recommends 43200, 12 hours."""
    max_answer_cache_bytes: PositiveInt = 128 * 1024 * 1024
    """Most memory for cached answers, compressed; beyond it, the oldest are evicted."""
    redis_url: Annotated[SecretStr, AfterValidator(_require_redis_url)] | None = None
    """Redis in which all replicas cache answers, such as `rediss://user:password@host:6379/0`; by default,
    each process caches answers in its memory."""
    body_timeout_seconds: PositiveFloat = 30.0
    """Longest time for a request's body to arrive."""
    max_body_bytes: PositiveInt = 64 * 1024 * 1024
    """Largest request body, both as sent and decompressed."""
    max_rows: PositiveInt = 4096
    """Most rows, or files, in one request."""
    max_image_bytes: PositiveInt = ImageLimits.max_image_bytes
    """Largest image file."""
    max_image_pixels: PositiveInt = ImageLimits.max_image_pixels
    """Most pixels in an image, checked before the image is decoded. A 24-megapixel camera needs `25000000`;
    such an image takes up to 600 MB of `MAX_IMAGE_MEMORY_BYTES`."""
    max_image_side_pixels: PositiveInt = ImageLimits.max_image_side_pixels
    """Longest side of an image, checked before the image is decoded."""
    max_image_memory_bytes: Annotated[int, Field(ge=64 * 1024 * 1024)] = 1024 * 1024 * 1024
    """Most memory of each classifier process for images, in addition to the network's."""
    max_image_cpu_seconds: PositiveFloat = 10.0
    """Longest CPU time for one image."""
    image_statistics: bool = False
    """Whether to measure the brightness and sharpness of images for `/metrics` and the log, at a small cost
    per image."""

    allowed_url_hosts: Annotated[tuple[HostPattern, ...], NoDecode, BeforeValidator(_split_list)] = ()
    """Hosts from which images may be fetched, separated by commas: `host`, `.domain` for all hosts below it,
    or `host:port`; a `/bucket` after it allows only paths below that."""
    allow_private_addresses: bool = False
    """Whether images may be fetched from private, loopback and link-local addresses, such as a store inside
    the plant."""
    fetch_proxy: Annotated[SecretStr, AfterValidator(_require_proxy_url)] | None = None
    """HTTP proxy that connects to images' hosts, `http://user:password@host:port`; private addresses are
    connected to directly. The service resolves the names, and asks the proxy for addresses."""
    max_redirects: Annotated[int, Field(ge=0, le=20)] = 3
    """Most redirects to follow for one image; each is checked like the first URL."""
    fetch_timeout_seconds: PositiveFloat = 10.0
    """Longest time to fetch one image, redirects included."""
    max_concurrent_fetches: PositiveInt = 64
    """Images fetched at the same time, over all requests."""

    snowflake_account: str | None = None
    """Account whose stages the service reads, `organization-account` or a locator with its region; none by
    default. In Snowpark Container Services the service finds its account and token by itself."""
    snowflake_user: str | None = None
    """User that the service logs in as."""
    snowflake_private_key_file: FilePath | None = None
    """Private key of that user, PEM, for key-pair login."""
    snowflake_private_key_passphrase: SecretStr | None = None
    """Passphrase of the private key, if it has one."""
    snowflake_token: SecretStr | None = None
    """Token to log in with."""
    snowflake_token_file: TokenFile | None = None
    """File with that token, read at every login."""
    snowflake_token_type: Literal["PROGRAMMATIC_ACCESS_TOKEN", "OAUTH"] = "PROGRAMMATIC_ACCESS_TOKEN"  # noqa: S105
    """Type of the token. A programmatic access token of a user of TYPE=SERVICE is valid only under a network
    policy of the user or the account."""
    snowflake_workload_identity_provider: Literal["AWS", "AZURE", "GCP", "OIDC"] | None = None
    """Cloud whose workload identity the service logs in with. `OIDC` needs the token, such as that of a
    Kubernetes pod, in `SNOWFLAKE_TOKEN_FILE`."""
    snowflake_workload_identity_aws_outbound_token: bool = False
    """Whether to prove an AWS identity by a JWT of GetWebIdentityToken, as Snowflake recommends; the user in
    Snowflake then needs an ISSUER."""
    snowflake_role: str | None = None
    """Role with READ on the stages; by default the user's default role."""
    snowflake_warehouse: str | None = None
    """Warehouse for the statements that sign URLs; by default the user's default warehouse."""
    snowflake_stages: Annotated[tuple[StageName, ...], NoDecode, BeforeValidator(_split_names)] = ()
    """Stages that the service may read, `db.schema.stage`, separated by commas; by default all that the role
    may read."""
    snowflake_presigned_urls: bool = True
    """Whether to fetch staged files by presigned URLs; if false, the connector downloads them."""
    snowflake_max_connections: PositiveInt = 4
    """Most connections to Snowflake at the same time."""
    snowflake_timeout_seconds: PositiveFloat = 20.0
    """Longest time for a login or a statement."""
    snowflake_host: str | None = None
    """Host of the account if it is not the default one, such as a private link's."""
    snowflake_port: Annotated[int, Field(ge=1, le=65535)] = 443
    """Port of that host."""
    snowflake_protocol: Literal["https", "http"] = "https"
    """`http` is for local SQL only."""

    @model_validator(mode="after")
    def _check_auth(self) -> Self:
        needs = {"api_key": {"api_keys_file"}, "jwt": {"jwt_issuer", "jwt_audience", "jwt_jwks_url"}}
        for method in self.auth:
            if missing := sorted(name.upper() for name in needs.get(method, ()) if not getattr(self, name)):
                raise ValueError(f"AUTH={method} needs {', '.join(missing)}")
        if "none" in self.auth and len(self.auth) > 1:
            raise ValueError("AUTH=none cannot be combined with other methods")
        if "spcs" in self.auth and not is_inside_spcs():
            raise ValueError(
                "AUTH=spcs needs Snowpark Container Services: elsewhere, any client can send its headers"
            )
        if not self.auth and not _is_loopback(self.host):
            raise ValueError(
                "AUTH must be api_key, jwt, spcs or none if HOST is not a loopback address. "
                f"Received: HOST={self.host} without AUTH"
            )
        return self

    @model_validator(mode="after")
    def _check_snowflake_login(self) -> Self:
        provider = self.snowflake_workload_identity_provider
        if provider == "OIDC" and not (self.snowflake_token_file or self.snowflake_token):
            raise ValueError(
                "SNOWFLAKE_WORKLOAD_IDENTITY_PROVIDER=OIDC needs SNOWFLAKE_TOKEN_FILE or SNOWFLAKE_TOKEN"
            )
        if self.snowflake_workload_identity_aws_outbound_token and provider != "AWS":
            raise ValueError(
                "SNOWFLAKE_WORKLOAD_IDENTITY_AWS_OUTBOUND_TOKEN needs "
                "SNOWFLAKE_WORKLOAD_IDENTITY_PROVIDER=AWS"
            )
        if self.snowflake_account is not None and self.snowflake_host is None:
            try:
                require_account(self.snowflake_account)
            except ValueError as error:
                raise ValueError(f"SNOWFLAKE_ACCOUNT: {error}") from None
        return self

    @property
    def image_limits(self) -> ImageLimits:
        return ImageLimits(self.max_image_bytes, self.max_image_pixels, self.max_image_side_pixels)

    @property
    def reads_stages(self) -> bool:
        return self.snowflake_account is not None or is_inside_spcs()


def variable_of(name: str) -> str:
    return f"EXT_CLASSIFY_{name}".upper()


def unknown_variables() -> list[str]:
    """Environment variables with the prefix EXT_CLASSIFY_ that name no setting, such as misspelt ones."""
    known = {*map(variable_of, Settings.model_fields)}
    ours = (name for name in os.environ if name.upper().startswith("EXT_CLASSIFY_"))
    return sorted(name for name in ours if name.upper() not in known and not _SERVICE_LINK.fullmatch(name))
