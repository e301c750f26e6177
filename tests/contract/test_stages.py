"""Staged files through a running service, from the emulator behind a recording proxy (`door`)."""

import importlib
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import snowflake.connector

from app.emulator import ACCOUNT_HOST, LocalServer, Name
from app.names import quote_identifier, quote_string
from tests.app.forms import text_of
from tests.conftest import SAMPLES
from tests.contract.source_table import CELLS, ENVIRONMENT, answer_of, classify, make_sources
from tests.running import running_service
from tests.snowflake_front import LOGIN, QUERY, Answer, Asked, Front, failure, front

pytestmark = pytest.mark.slow

HOST = f"https://{ACCOUNT_HOST}"
FILES = f"{HOST}/api/files/LOCAL/PUBLIC"
IMAGES = "@local.public.images"
LABELS = {path.name: path.stem.capitalize() for path in sorted(SAMPLES.glob("*.png"))}
NAMES = list(LABELS)
SIGNING, LISTING, GETTING = "SELECT GET_PRESIGNED_URL", "LIST ", "GET "


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as running:
        running.mount(SAMPLES)
        running.mount(SAMPLES, "OTHERS")
        yield running


@pytest.fixture(scope="module")
def cursor(server: LocalServer) -> Iterator[Any]:
    with snowflake.connector.connect(**server.connect_arguments) as connection, connection.cursor() as cursor:
        yield cursor


@pytest.fixture
def door(server: LocalServer) -> Iterator[Front]:
    with front(server.port) as opened:
        yield opened


@pytest.fixture(scope="module")
def shared(server: LocalServer) -> Iterator[tuple[str, Front]]:
    """A service with default settings, and its door."""
    with front(server.port) as door, service_behind(server, door) as service:
        yield service, door


@pytest.fixture
def shared_door(shared: tuple[str, Front]) -> Iterator[Front]:
    """With the requests of this test, which may set its answers."""
    door = shared[1]
    door.asked.clear()
    yield door
    door.answer = lambda _: None


@pytest.fixture
def service(shared: tuple[str, Front], shared_door: Front) -> str:
    """It has logged in."""
    return shared[0]


@contextmanager
def service_behind(server: LocalServer, door: Front, **settings: object) -> Iterator[str]:
    """A service that connects through the proxy, after its first login attempt."""
    patient = {"snowflake_timeout_seconds": 120, "fetch_timeout_seconds": 120}
    given = {f"EXT_CLASSIFY_{name.upper()}": str(value) for name, value in (patient | settings).items()}
    with running_service(**server.service_environment | door.environment | given) as service:
        while not door.logins:
            threading.Event().wait(0.01)
        yield service


def answers(service: str, sources: list[Any]) -> list[str | None]:
    return list(map(answer_of, classify(service, sources)))


def put(cursor: Any, stage: str, name: str, *, folder: str = "", sample: str = "scratches.png") -> None:
    """Upload a sample under this name."""
    location = f"@{stage}/{folder}"
    with (SAMPLES / sample).open("rb") as content:
        cursor.execute(
            f"PUT {quote_string(f'file:///{name}')} {quote_string(location)} AUTO_COMPRESS = FALSE",
            file_stream=content,
        )


def signed_paths(door: Front) -> list[list[str]]:
    """The paths of each statement that requests signed URLs."""
    signing = [request for request in door.asked if request.path == QUERY and request.sql.startswith(SIGNING)]
    return [json.loads(request.body["bindings"]["1"]["value"]) for request in signing]


# Each kind of source in each state.


@pytest.fixture(scope="module")
def found(server: LocalServer) -> dict[tuple[str, str], list[Any]]:
    """The outcomes of each source in two batches: in the second, the encryption of each stage is cached."""
    sources = make_sources(server)
    with running_service(**server.service_environment | ENVIRONMENT) as service:
        batches = [classify(service, list(sources.values())) for _ in range(2)]
    return dict(zip(sources, map(list, zip(*batches, strict=True)), strict=True))


@pytest.mark.parametrize(
    ("kind", "state", "expected"),
    [(kind, state, answer) for kind, states in CELLS.items() for state, answer in states.items()],
)
def test_each_source_has_the_outcome_of_its_state(
    found: dict[tuple[str, str], list[Any]], kind: str, state: str, expected: str
) -> None:
    assert [answer_of(outcome) for outcome in found[kind, state]] == [expected, expected]
    for outcome in found[kind, state]:
        if outcome["error"]:
            assert not outcome["error"]["retryable"]


def test_image_has_the_same_outcome_by_every_kind_of_source(found: dict[tuple[str, str], list[Any]]) -> None:
    outcomes = [found[kind, "ok"][0] for kind, states in CELLS.items() if states["ok"] == "Scratches"]
    assert len(outcomes) > 5
    assert all(outcome == outcomes[0] for outcome in outcomes)


# The number of statements.


def test_batch_of_one_stage_is_one_statement(shared_door: Front, service: str) -> None:
    names = [NAMES[n % len(NAMES)] for n in range(200)]
    for _ in range(2):
        assert answers(service, [f"{IMAGES}/{name}" for name in names]) == [LABELS[name] for name in names]
    assert signed_paths(shared_door) == [names[: len(NAMES)]] * 2
    assert len(shared_door.statements) == 2
    assert shared_door.logins == []


def test_batch_of_two_stages_is_two_statements(shared_door: Front, service: str) -> None:
    sources = [f"{FILES}/{stage}/{name}" for name in NAMES for stage in ("IMAGES", "OTHERS")]
    assert answers(service, sources) == [LABELS[name] for name in NAMES for _ in range(2)]
    assert signed_paths(shared_door) == [NAMES, NAMES]
    assert len(shared_door.statements) == 2


def test_repeated_file_of_a_batch_is_signed_once(shared_door: Front, service: str) -> None:
    assert answers(service, [f"{IMAGES}/pitted.png"] * 50) == ["Pitted"] * 50
    assert signed_paths(shared_door) == [["pitted.png"]]


def test_batch_without_staged_files_runs_no_statement(
    shared_door: Front, sample: bytes, service: str
) -> None:
    assert answers(service, [text_of(sample), sample.hex(), None]) == ["Scratches", "Scratches", None]
    assert shared_door.statements == []


def test_burst_of_batches_shares_few_connections_and_blocks_nothing(server: LocalServer, door: Front) -> None:
    two, release = threading.Barrier(3), threading.Event()

    def hold(asked: Asked) -> Answer:
        if asked.path == QUERY and not release.is_set():
            two.wait()
            release.wait()
        return None

    with (
        service_behind(server, door, snowflake_max_connections=2) as service,
        ThreadPoolExecutor(50) as callers,
    ):
        door.answer = hold
        batches = [callers.submit(answers, service, [f"{IMAGES}/{NAMES[n % 6]}"]) for n in range(50)]
        two.wait()
        for _ in range(5):
            assert httpx.get(f"{service}/healthz", timeout=180).status_code == 200
        assert len(door.statements) == 2
        release.set()
        assert [batch.result() for batch in batches] == [[LABELS[NAMES[n % 6]]] for n in range(50)]
    assert len(door.logins) == 2
    assert len(door.statements) == 50


# Other accounts and stages that are not allowed.


def test_files_of_other_accounts_are_refused_after_one_question(server: LocalServer, door: Front) -> None:
    hosts = [f"org{n}.snowflakecomputing.com" for n in range(20)]
    sources = [f"https://{host}/api/files/LOCAL/PUBLIC/IMAGES/pitted.png" for host in hosts]
    with service_behind(server, door) as service:
        for _ in range(2):
            outcomes = classify(service, [*sources, f"{FILES}/IMAGES/pitted.png"])
            assert list(map(answer_of, outcomes)) == ["wrong_account"] * 20 + ["Pitted"]
    assert hosts[0] in outcomes[0]["error"]["message"]
    assert [sql for sql in door.statements if not sql.startswith(SIGNING)] == [
        "SELECT SYSTEM$ALLOWLIST()",
        "SELECT SYSTEM$ALLOWLIST_PRIVATELINK()",
    ]
    assert signed_paths(door) == [["pitted.png"]] * 2


def test_account_alias_is_accepted(server: LocalServer, door: Front) -> None:
    with service_behind(server, door, snowflake_account="org-steel") as service:
        for _ in range(2):
            assert answers(service, [f"{FILES}/IMAGES/{name}" for name in NAMES]) == list(LABELS.values())
        assert answers(
            service, ["https://org-steel.snowflakecomputing.com/api/files/LOCAL/PUBLIC/IMAGES/pitted.png"]
        ) == ["Pitted"]
    assert door.statements.count("SELECT SYSTEM$ALLOWLIST()") == 1


def test_privatelink_host_of_business_critical_accounts_is_accepted(shared_door: Front, service: str) -> None:
    private = FILES.replace(".snowflakecomputing", ".privatelink.snowflakecomputing")
    scoped = private.replace("LOCAL/PUBLIC", "019260c2-00c0-f2f2-0000-4383001cf046/bXlfZGF0YWJhc2U")
    sources = [f"{FILES}/IMAGES/pitted.png", f"{private}/IMAGES/pitted.png", scoped]
    assert answers(service, sources) == ["Pitted", "Pitted", "scoped_url_not_readable"]
    assert signed_paths(shared_door) == [["pitted.png"]]
    assert len(shared_door.statements) == 1


def test_failed_allowlist_query_is_retried(server: LocalServer, door: Front) -> None:
    refusals = iter([failure(1003)])
    door.answer = lambda asked: next(refusals, None) if asked.path == QUERY else None
    with service_behind(server, door, snowflake_account="org-steel") as service:
        assert answers(service, [f"{FILES}/IMAGES/pitted.png"]) == ["snowflake_refused"]
        assert answers(service, [f"{FILES}/IMAGES/pitted.png"]) == ["Pitted"]


def test_only_listed_stages_are_read(server: LocalServer, door: Front) -> None:
    sources = [f"{IMAGES}/pitted.png", f"{FILES}/IMAGES/pitted.png"]
    others = ["@local.public.others/pitted.png", f"{FILES}/OTHERS/pitted.png"]
    others += [f"{FILES}/images/pitted.png", "@local.public.unknown/a.png"]
    with service_behind(server, door, snowflake_stages='local.public.images,"x".y.z') as service:
        outcomes = classify(service, sources + others)
    assert list(map(answer_of, outcomes)) == ["Pitted"] * 2 + ["stage_not_allowed"] * 4
    assert '"LOCAL"."PUBLIC"."OTHERS"' in outcomes[2]["error"]["message"]
    [statement] = door.statements
    assert "IMAGES" in statement


def test_stage_path_without_its_schema_is_refused_without_a_statement(
    shared_door: Front, service: str
) -> None:
    outcomes = classify(service, ["@images/pitted.png", "@public.images/pitted.png"])
    assert list(map(answer_of, outcomes)) == ["stage_not_authorized"] * 2
    assert "@db.schema.images/pitted.png" in outcomes[0]["error"]["message"]
    assert "@db.public.images/pitted.png" in outcomes[1]["error"]["message"]
    assert shared_door.statements == []


def test_service_without_an_account_names_the_setting(sample: bytes) -> None:
    with running_service() as service:
        outcomes = classify(service, [f"{FILES}/IMAGES/a.png", text_of(sample), f"{IMAGES}/a.png"])
    assert list(map(answer_of, outcomes)) == [
        "snowflake_not_configured",
        "Scratches",
        "snowflake_not_configured",
    ]
    assert "EXT_CLASSIFY_SNOWFLAKE_ACCOUNT" in outcomes[0]["error"]["message"]


# Failures of Snowflake.


def test_suspended_warehouse_is_warehouse_unavailable(server: LocalServer, door: Front, cursor: Any) -> None:
    with service_behind(server, door, snowflake_warehouse="small") as service:
        cursor.execute("ALTER WAREHOUSE small SUSPEND")
        try:
            [outcome] = classify(service, [f"{IMAGES}/pitted.png"])
        finally:
            cursor.execute("ALTER WAREHOUSE small RESUME")
        assert answer_of(outcome) == "warehouse_unavailable"
        assert outcome["error"]["retryable"]
        assert answers(service, [f"{IMAGES}/pitted.png"]) == ["Pitted"]


def test_refused_login_is_tried_once_for_a_burst(server: LocalServer, door: Front, sample: bytes) -> None:
    message = "Incorrect username or password was specified."
    door.answer = lambda asked: failure(390100, message) if asked.path == LOGIN else None
    sources = [f"{IMAGES}/pitted.png", text_of(sample), f"{FILES}/IMAGES/pitted.png"]
    with service_behind(server, door) as service, ThreadPoolExecutor(20) as callers:
        batches = list(callers.map(lambda _: classify(service, sources), range(20)))
    for batch in batches:
        assert list(map(answer_of, batch)) == [
            "snowflake_login_failed",
            "Scratches",
            "snowflake_login_failed",
        ]
        assert "390100" in batch[0]["error"]["message"]
        assert message not in str(batch)
    assert len(door.logins) == 1


def test_unreachable_snowflake_fails_only_its_rows(server: LocalServer, sample: bytes) -> None:
    with front() as gone:
        pass
    environment = server.service_environment | gone.environment
    sources = [text_of(sample), f"{IMAGES}/pitted.png", None, f"{FILES}/IMAGES/pitted.png", sample.hex(), "?"]
    with running_service(**environment, EXT_CLASSIFY_SNOWFLAKE_TIMEOUT_SECONDS="1") as service:
        outcomes = classify(service, sources)
    assert list(map(answer_of, outcomes)) == [
        "Scratches",
        "snowflake_unavailable",
        None,
        "snowflake_unavailable",
        "Scratches",
        "invalid_base64",
    ]
    assert outcomes[1]["error"]["retryable"]


@pytest.mark.parametrize("path", [LOGIN, QUERY])
def test_hanging_snowflake_fails_only_its_rows_within_the_timeout(
    server: LocalServer, door: Front, sample: bytes, path: str
) -> None:
    """Without the timeout, the connector waits for more than a minute, for each caller in turn."""
    door.answer = lambda asked: door.hang() if asked.path == path else None
    limits = {"snowflake_timeout_seconds": 2, "snowflake_max_connections": 1}
    with service_behind(server, door, **limits) as service, ThreadPoolExecutor(10) as callers:
        batches = [
            callers.submit(classify, service, [f"{IMAGES}/a.png", text_of(sample)], timeout_seconds=120)
            for _ in range(10)
        ]
        assert httpx.get(f"{service}/healthz", timeout=180).status_code == 200
        for batch in batches:
            assert list(map(answer_of, batch.result())) == ["snowflake_unavailable", "Scratches"]


@pytest.mark.parametrize("number", [390104, 390111, 390114])
def test_expired_session_is_replaced(shared_door: Front, number: int, service: str) -> None:
    assert answers(service, [f"{IMAGES}/pitted.png"]) == ["Pitted"]
    over = iter([failure(number)])
    shared_door.answer = lambda asked: next(over, None) if asked.path == QUERY else None
    for _ in range(2):
        assert answers(service, [f"{IMAGES}/pitted.png", f"{IMAGES}/rolled.png"]) == ["Pitted", "Rolled"]
    assert len(shared_door.logins) == 1
    assert len(shared_door.statements) == 4


def test_session_that_the_server_lost_is_replaced(server: LocalServer, door: Front) -> None:
    sessions = importlib.import_module("fakesnow.server").sessions
    known = set(sessions)
    with service_behind(server, door) as service:
        assert answers(service, [f"{IMAGES}/pitted.png"]) == ["Pitted"]
        for token in set(sessions) - known:
            del sessions[token]
        for _ in range(2):
            assert answers(service, [f"{IMAGES}/pitted.png"]) == ["Pitted"]
    assert len(door.logins) == 2


# Files without usable signed URLs.


@pytest.fixture(scope="module")
def sealed(cursor: Any) -> str:
    """A stage with client-side encrypted files."""
    cursor.execute("CREATE STAGE encrypted")
    for name in NAMES:
        put(cursor, "encrypted", name, folder="2026/a b", sample=name)
    return "@local.public.encrypted/2026/a b"


def test_encrypted_files_are_downloaded_without_signed_urls(
    shared_door: Front, sealed: str, service: str
) -> None:
    sources = [f"{sealed}/{name}" for name in NAMES]
    assert answers(service, [*sources, f"{sealed}/no.png"]) == [*LABELS.values(), "file_missing"]
    assert len(signed_paths(shared_door)) == 1
    assert sum(sql.startswith(GETTING) for sql in shared_door.statements) == len(NAMES)
    assert answers(service, [*sources, f"{sealed}/no.png"]) == [*LABELS.values(), "file_missing"]
    assert len(signed_paths(shared_door)) == 1
    assert sum(sql.startswith(LISTING) for sql in shared_door.statements) == 2 * len(NAMES) + 1
    assert sum(sql.startswith(GETTING) for sql in shared_door.statements) == 2 * len(NAMES)


@pytest.mark.parametrize("refused", [{}, {"number": 1044}])
def test_files_are_downloaded_where_urls_are_not_signed(
    server: LocalServer, door: Front, refused: dict[str, int]
) -> None:
    """Signed URLs are disabled in the service's settings, or refused by the account."""
    if refused:
        door.answer = lambda asked: (
            failure(**refused) if asked.path == QUERY and asked.sql.startswith(SIGNING) else None
        )
    settings = {} if refused else {"snowflake_presigned_urls": "false"}
    sources = [f"{FILES}/IMAGES/pitted.png", f"{IMAGES}/no.png", "@local.public.nowhere/a.png"]
    with service_behind(server, door, **settings) as service:
        for _ in range(2):
            assert answers(service, sources) == ["Pitted", "file_missing", "stage_not_authorized"]
    assert len(signed_paths(door)) == (2 if refused else 0)


# Names of stages and files.

STAGES = [
    ("LOCAL", "PUBLIC", "lower"),
    ("LOCAL", "PUBLIC", "with space"),
    ("LOCAL", "PUBLIC", "dot.ted"),
    ("LOCAL", "PUBLIC", "50%"),
    ("LOCAL", "PUBLIC", "%20"),
    ("LOCAL", "PUBLIC", "bücher-鋼"),
    ("LOCAL", "PUBLIC", 'say "hi"'),
    ("LOCAL", "PUBLIC", "it's"),
    ("LOCAL", "PUBLIC", "a/b"),
    ("LOCAL", "PUBLIC", "back\\slash"),
    ("LOCAL", "PUBLIC", "what?#&+@"),
    ("LOCAL", "PUBLIC", "~"),
    ("LOCAL", "PUBLIC", "'; DROP STAGE images; --"),
    ("LOCAL", "sch.ema", "S"),
    ("my db", "a/b", 'x"y'),
    ("%", "ünïcode", "lower"),
]
PATHS = [
    "plain.png",
    "a b.png",
    "a#1.png",
    "what?.png",
    "100%.png",
    "%2e%2fa.png",
    "a+b&c=d.png",
    "it's.png",
    'say "hi".png',
    "back\\slash.png",
    "caf\u00e9.png",
    "cafe\u0301.png",
    "鋼.png",
    "two..dots.png",
    "semi;colon,comma.png",
    "'); DROP STAGE images; --.png",
    f"{'long' * 49}.png",
]


@pytest.mark.parametrize("kind", ["SNOWFLAKE_SSE", "SNOWFLAKE_FULL"])
def test_stages_of_any_name_are_read(server: LocalServer, cursor: Any, kind: str, service: str) -> None:
    sources = []
    for names in STAGES:
        stage = quote_identifier(*names)
        make_stage(server, cursor, names, kind)
        put(cursor, stage, "a b.png", folder="july")
        sources += [f"@{stage}/july/a b.png", build_file_url(cursor, stage, "july/a b.png")]
    found = dict(zip(sources, answers(service, sources), strict=True))
    assert found == dict.fromkeys(sources, "Scratches")


@pytest.mark.parametrize("kind", ["SNOWFLAKE_SSE", "SNOWFLAKE_FULL"])
def test_files_of_any_name_are_read(cursor: Any, kind: str, service: str) -> None:
    cursor.execute(f"CREATE OR REPLACE STAGE names ENCRYPTION = (TYPE = '{kind}')")
    sources = []
    for path in PATHS:
        for folder in ("", f"{Path(path).stem}/"):
            put(cursor, "names", path, folder=folder)
            sources += [f"@local.public.names/{folder}{path}", build_file_url(cursor, "names", folder + path)]
    found = dict(zip(sources, answers(service, sources), strict=True))
    assert found == dict.fromkeys(sources, "Scratches")


@pytest.mark.parametrize(
    ("kind", "answer"), [("SNOWFLAKE_SSE", "Scratches"), ("SNOWFLAKE_FULL", "snowflake_refused")]
)
def test_longest_names_exceed_only_the_connector_s_limit(
    cursor: Any, kind: str, answer: str, service: str
) -> None:
    cursor.execute(f"CREATE OR REPLACE STAGE lengthy ENCRYPTION = (TYPE = '{kind}')")
    put(cursor, "lengthy", f"{'a' * 240}.png")
    assert answers(service, [f"@local.public.lengthy/{'a' * 240}.png"]) == [answer]


def test_composed_and_decomposed_names_are_two_files(cursor: Any, service: str) -> None:
    cursor.execute("CREATE OR REPLACE STAGE forms ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')")
    put(cursor, "forms", "caf\u00e9.png", sample="pitted.png")
    put(cursor, "forms", "cafe\u0301.png", sample="rolled.png")
    sources = [f"@local.public.forms/{name}.png" for name in ("caf\u00e9", "cafe\u0301")]
    sources += [build_file_url(cursor, "forms", f"{name}.png") for name in ("caf\u00e9", "cafe\u0301")]
    assert answers(service, sources) == ["Pitted", "Rolled"] * 2


def test_invalid_name_does_not_affect_other_rows(service: str) -> None:
    bad = [f"{IMAGES}/a\0.png", f"{FILES}/IMAGES/%00.png", f"{FILES}/IMAGES/%ff.png", '@"a\0"/b.png']
    odd = [f"{IMAGES}//pitted.png", f"{IMAGES}/../secret.png", f"{IMAGES}/" + "a/" * 2000 + "a.png"]
    sources = [*bad, *odd, f"{IMAGES}/pitted.png", f"{FILES}/IMAGES/pitted.png"]
    found = answers(service, sources)
    assert found[:4] == ["invalid_source"] * 4
    assert not set(LABELS.values()) & set(found[4:7])
    assert found[7:] == ["Pitted", "Pitted"]


def make_stage(server: LocalServer, cursor: Any, names: Name, kind: str) -> None:
    """Create the stage by SQL, or directly if fakesnow does not support the schema's name."""
    if names[:2] == ("LOCAL", "PUBLIC"):
        stage = quote_identifier(*names)
        cursor.execute(f"CREATE OR REPLACE STAGE {stage} ENCRYPTION = (TYPE = '{kind}')")
    else:
        is_open = kind == "SNOWFLAKE_SSE"
        server.local.catalog.stages[names] = server.local.catalog.new_stage(
            names, is_server_side_encrypted=is_open
        )


def build_file_url(cursor: Any, stage: str, path: str) -> str:
    location = quote_string(f"@{stage}")
    url: str = cursor.execute(f"SELECT BUILD_STAGE_FILE_URL({location}, {quote_string(path)})").fetchone()[0]
    return url


# Secrets.


def test_no_secret_leaves_the_service(
    server: LocalServer, door: Front, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    token, passphrase = "pat-7c1d", "phrase-55aa"
    key = tmp_path / "key.p8"
    key.write_text("no key")
    sources = [
        f"{IMAGES}/pitted.png",
        "@local.public.nowhere/a.png",
        f"{IMAGES}/no.png",
        f"{FILES}/IMAGES/a%00.png",
    ]
    texts = []
    refusals = [
        failure(1003, "syntax error near 'SELECT'"),
        (500, {}),
        failure(606),
        failure(390104),
    ]
    with service_behind(server, door, snowflake_token=token, snowflake_timeout_seconds=1) as service:
        for refusal in [None, *refusals]:
            door.answer = lambda asked, refusal=refusal: refusal if asked.path == QUERY else None
            texts.append(json.dumps(classify(service, sources)))
    refused = {"snowflake_private_key_file": key, "snowflake_private_key_passphrase": passphrase}
    with front(server.port) as other:
        environment = server.service_environment | other.environment
        given = {f"EXT_CLASSIFY_{name.upper()}": str(value) for name, value in refused.items()}
        with running_service(**environment | given) as service:
            outcomes = classify(service, sources)
    assert answer_of(outcomes[0]) == "snowflake_login_failed"
    texts.append(json.dumps(outcomes))
    log = capfd.readouterr().err
    assert "classified" in log
    for secret in (token, passphrase):
        assert secret not in "".join(texts)
        assert secret not in log
    for leak in (
        "SELECT",
        "Traceback",
        "GET_PRESIGNED",
        str(tmp_path),
        str(Path(__file__).parents[2]),
        "X-Amz",
    ):
        assert leak not in "".join(texts)
    assert "Traceback" not in log
