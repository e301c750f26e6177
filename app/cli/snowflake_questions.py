"""What only a Snowflake account can tell: questions, each answered by statements, as text to paste back.

infra/docs/snowflake_contract.md says where each doubt comes from. The text names no account, role or user.
"""

import base64
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from app import __version__
from app.api.classify import PROBE
from app.client import ClientError, NoReply, Request, send_once
from app.names import directory_of, parse_identifier, quote_identifier, quote_string
from app.provisioning.udf_bundle import package_check
from app.provisioning.user_session import UserSession, describe_error
from model.defaults import SAMPLES

TIMEOUT_SECONDS = 10.0
_ACCOUNT_HOST = re.compile(r"[\w-]+((?:\.[\w-]+)*\.snowflakecomputing\.(?:com|cn))", re.IGNORECASE)
_PRIVATELINK = re.compile(r"(?:\.privatelink)?(\.snowflakecomputing\.)", re.IGNORECASE)


class Unanswered(ClientError):
    """The question does not apply here."""


@dataclass(frozen=True)
class Account:
    """The user's session, the function and the stage; names are quoted."""

    user_session: UserSession
    function: str
    stage: str

    def value(self, expression: str) -> Any:
        """The value of one expression. Raises StatementFailed."""
        _, [[value]], _ = self.user_session.table(f"SELECT {expression}")
        return value

    def call(self, argument: str) -> str:
        """What the function answers to an argument in SQL."""
        answer = self.value(f"{self.function}({argument})")
        if not isinstance(answer, dict):
            return f"answered {json.dumps(answer)}"
        if answer.get("error"):
            return f"error {answer['error']['code']}: {answer['error']['message']}"
        return f"classified as {answer['label']}" + (", with evidence" if answer.get("evidence") else "")

    @cached_property
    def file(self) -> dict[str, Any]:
        """Path and URL of one file of the stage. Raises Unanswered if there is none."""
        table = directory_of(self.stage)
        rows = self.user_session.rows(f"SELECT relative_path, file_url FROM {table} LIMIT 1")  # noqa: S608
        if not rows:
            raise Unanswered(f"{table} lists no file: upload one first")
        return rows[0]

    @property
    def arguments(self) -> str:
        """Stage and path, as the functions that make URLs take them."""
        return f"{quote_string(f'@{self.stage}')}, {quote_string(self.file['relative_path'])}"


def _show_parameter(account: Account, name: str) -> str:
    rows = account.user_session.rows(f"SHOW PARAMETERS LIKE '{name}' IN ACCOUNT")
    # A policy's name stays private.
    return "; ".join("set" if row["value"] not in ("", "false") else "not set" for row in rows) or "not shown"


def _grants(account: Account, thing: str) -> str:
    rows = account.user_session.rows(f"SHOW GRANTS ON {thing}")
    counts = Counter(f"{row['privilege']} to {row['granted_to']}" for row in rows)
    return ", ".join(f"{privilege} ({count})" for privilege, count in sorted(counts.items())) or "none"


def _integration(account: Account) -> str:
    described = account.user_session.rows(f"DESC FUNCTION {account.function}(VARCHAR)")
    properties = {row["property"]: row.get("value", row.get("property_value")) for row in described}
    kept = ("null handling", "volatility", "max_batch_rows", "max_batch_retries", "compression")
    return ", ".join(f"{name}: {properties[name]}" for name in kept if name in properties)


def _fetch_signed(account: Account) -> str:
    url = str(account.value(f"GET_PRESIGNED_URL({account.arguments}, 60)"))
    reply = send_once(Request("GET", url), TIMEOUT_SECONDS)
    said = reply.reason if isinstance(reply, NoReply) else f"status {reply.status}, {len(reply.body)} bytes"
    return f"host {urlsplit(url).hostname}; fetched by this machine: {said}"


def _hosts(account: Account, function: str) -> str:
    counts = Counter(entry["type"] for entry in json.loads(account.value(function)))
    return ", ".join(f"{kind}: {count}" for kind, count in sorted(counts.items()))


def _privatelink(account: Account) -> str:
    return account.call(quote_string(_PRIVATELINK.sub(r".privatelink\1", account.file["file_url"])))


def _sample() -> str:
    return base64.b64encode((SAMPLES / "scratches.png").read_bytes()).decode()


Ask = Callable[[Account], str]
QUESTIONS: dict[str, tuple[str, Ask]] = {
    "versions": (
        "Which Snowflake answers?",
        lambda at: f"{at.value('CURRENT_VERSION()')}, {at.value('CURRENT_REGION()')}",
    ),
    "bundle": (
        "Do grants survive CREATE OR REPLACE (behavior change 2433)?",
        lambda at: str(at.value("SYSTEM$BEHAVIOR_CHANGE_BUNDLE_STATUS('2026_08')")),
    ),
    "function": ("How does the account describe the function?", _integration),
    "base64": ("Is base64 text classified?", lambda at: at.call(quote_string(_sample()))),
    "hex": (
        "Is a BINARY classified, as hex text?",
        lambda at: at.call(f"HEX_ENCODE(BASE64_DECODE_BINARY({quote_string(_sample())}))"),
    ),
    "null": ("Is NULL answered NULL?", lambda at: at.call("NULL")),
    "options": (
        "Does an OBJECT of options arrive as an object?",
        lambda at: at.call(f"{quote_string(_sample())}, OBJECT_CONSTRUCT('evidence', TRUE)"),
    ),
    "hosts": ("Which hosts does the account list?", lambda at: _hosts(at, "SYSTEM$ALLOWLIST()")),
    "private_hosts": (
        "Which hosts for private connectivity?",
        lambda at: _hosts(at, "SYSTEM$ALLOWLIST_PRIVATELINK()"),
    ),
    "file_url": (
        "Does the service read a file URL, and which host has it?",
        lambda at: f"{urlsplit(at.file['file_url']).hostname}: {at.call(quote_string(at.file['file_url']))}",
    ),
    "privatelink": ("Does the service read its privatelink form?", _privatelink),
    "scoped_url": (
        "What does the service say to a scoped URL?",
        lambda at: at.call(f"BUILD_SCOPED_FILE_URL({at.arguments})"),
    ),
    "signed_url": (
        "Does the service read a pre-signed URL of the caller?",
        lambda at: at.call(f"GET_PRESIGNED_URL({at.arguments}, 600)"),
    ),
    "signing": ("Which host have signed URLs, and do network rules let this machine fetch?", _fetch_signed),
    "429": ("Is a 429 sent again, when, and with the same batch id?", lambda at: at.call(f"'{PROBE}429'")),
    "202": ("Is a 202 polled?", lambda at: at.call(f"'{PROBE}202'")),
    "grants_function": (
        "Which roles can call the function?",
        lambda at: _grants(at, f"FUNCTION {at.function}(VARCHAR)"),
    ),
    "grants_stage": ("Who may read the stage?", lambda at: _grants(at, f"STAGE {at.stage}")),
    "network_policy": ("Has the account a network policy?", lambda at: _show_parameter(at, "NETWORK_POLICY")),
    "internal_stages": (
        "Do network rules hold for internal stages?",
        lambda at: _show_parameter(at, "ENFORCE_NETWORK_RULES_FOR_INTERNAL_STAGES"),
    ),
    "packages": (
        "Does the account have the warehouse function's packages?",
        lambda at: "resolved" if at.user_session.rows(package_check().rstrip(";")) else "no answer",
    ),
}


def find_function(user_session: UserSession, name: str) -> str:
    """The quoted name of a function, looked up in the account unless it is qualified. Raises ClientError."""
    parts = parse_identifier(name)
    if len(parts) == 3:
        return quote_identifier(*parts)
    pattern = quote_string(parts[-1].replace("_", "\\_"))
    for row in user_session.rows(f"SHOW USER FUNCTIONS LIKE {pattern} IN ACCOUNT"):
        if row["name"] == parts[-1]:
            return quote_identifier(str(row["catalog_name"]), str(row["schema_name"]), parts[-1])
    raise ClientError(f"Function {name} not found. Create it with: ext-classify register")


def ask(user_session: UserSession, function: str, stage: str | None) -> Iterator[str]:
    """Yield the lines of the text. Raises ClientError if there is no such function."""
    from snowflake.connector import __version__ as connector  # noqa: PLC0415 - slow to import

    name = find_function(user_session, function)
    images = quote_identifier(*parse_identifier(name)[:2], "IMAGES")
    account = Account(user_session, name, quote_identifier(*parse_identifier(stage)) if stage else images)
    yield f"ext-classify {__version__}, snowflake-connector-python {connector}"
    for key, (text, answer) in QUESTIONS.items():
        started = time.monotonic()
        try:
            said = answer(account)
        except ClientError as error:
            said = f"{'skipped' if isinstance(error, Unanswered) else 'failed'}: {describe_error(error)}"
        seconds = time.monotonic() - started
        masked = _ACCOUNT_HOST.sub(r"<account>\1", said)
        yield f"{key:<16} {text}\n{'':<16} {masked} ({seconds:.1f} s)"
