"""ext-classify doctor with real services, a real Redis and an emulated Snowflake."""

import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from app.api.auth import line_of, make_key
from app.cli.doctor import ask_service, check_gateway
from app.cli.main import main
from app.cli.service_process import own_service
from app.emulator import LocalServer
from app.provisioning.upload import find_files, upload
from app.provisioning.user_session import connect
from app.settings import Settings
from app.snowflake.self_check import Findings, check_clock, check_network_settings
from tests.app.batches.test_redis_store import REDIS, redis_server
from tests.app.emulator.remote_service import DROP, RemoteService, Reply
from tests.app.emulator.sql import Sql
from tests.conftest import SAMPLES
from tests.running import free_port, running_service
from tests.test_house import ROOT


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as running:
        yield running


class Doctor:
    """Runs the command and returns its findings by check."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.exit_code = -1
        self.printed = ""

    def run(self, *arguments: str) -> dict[str, dict[str, Any]]:
        self.exit_code = main(["doctor", "--json", *arguments])
        printed = self._capsys.readouterr()
        self.printed = printed.err
        return {finding["check"]: finding for finding in json.loads(printed.out)}


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Doctor:
    monkeypatch.setenv("EXT_CLASSIFY_PORT", str(free_port()))
    return Doctor(capsys)


def test_default_configuration_passes(doctor: Doctor) -> None:
    found = doctor.run()
    assert doctor.exit_code == 0
    assert {finding["state"] for finding in found.values()} == {"ok", "skipped"}
    assert "steel_defects" in found["network"]["said"]
    assert found["service's login"]["state"] == "skipped"


def test_invalid_settings_skip_all_other_checks(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXT_CLASSIFY_MAX_ROWS", "none")
    found = doctor.run()
    assert doctor.exit_code == 1
    assert list(found) == ["settings"]
    assert found["settings"]["said"].startswith("EXT_CLASSIFY_MAX_ROWS: ")
    assert "CLASSIFIERS" not in found["settings"]["said"]
    assert ": settings." in doctor.printed


def test_unknown_setting_is_a_note(
    capsys: pytest.CaptureFixture[str], doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EXT_CLASSIFY_MAX_ROW", "1")
    assert main(["doctor"]) == 0
    assert "note    settings" in capsys.readouterr().out


def test_missing_model_is_an_error(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EXT_CLASSIFY_MODEL_PATH", str(tmp_path / "gone.h5"))
    found = doctor.run()
    assert doctor.exit_code == 1
    assert found["network"]["state"] == "wrong"
    assert "gone" in found["network"]["said"]
    assert found["port"]["state"] == "ok"


def test_more_processes_than_cores_are_a_note(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXT_CLASSIFY_CLASSIFIERS", "500")
    assert doctor.run()["cores"]["state"] == "note"


@pytest.mark.slow
def test_port_in_use_is_accepted_only_if_ext_classify_uses_it(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_service() as url:
        monkeypatch.setenv("EXT_CLASSIFY_PORT", url.rpartition(":")[2])
        assert doctor.run()["port"]["state"] == "ok"
    with RemoteService() as other:
        other.respond = lambda _: Reply(body=b"{}")
        monkeypatch.setenv("EXT_CLASSIFY_PORT", other.origin.rpartition(":")[2])
        assert doctor.run()["port"]["state"] == "wrong"
        other.respond = lambda _: Reply(body=b'{"model": {"name": "n", "version": "another"}}')
        port = doctor.run()["port"]
        assert port["state"] == "note"
        assert port["said"].endswith("another")


def test_invalid_file_of_keys_is_an_error(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    monkeypatch.setenv("EXT_CLASSIFY_AUTH", "api_key")
    monkeypatch.setenv("EXT_CLASSIFY_API_KEYS_FILE", str(keys))
    keys.write_text("no key\n", encoding="utf-8")
    assert doctor.run()["API keys"]["state"] == "wrong"
    keys.write_text(line_of("mill", make_key()) + "\n", encoding="utf-8")
    assert doctor.run()["API keys"]["state"] == "ok"


@pytest.mark.skipif(REDIS is None, reason="redis-server is not installed: make system-deps")
def test_redis_connection_is_checked(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    monkeypatch.setenv("EXT_CLASSIFY_REDIS_URL", f"redis://:password@127.0.0.1:{port}/0")
    found = doctor.run()["Redis"]
    assert found["state"] == "wrong"
    assert "password" not in found["said"]
    monkeypatch.setenv("EXT_CLASSIFY_REDIS_URL", f"redis://127.0.0.1:{port}/0")
    with redis_server(port):
        assert doctor.run()["Redis"]["state"] == "ok"


def test_keys_of_the_token_issuer_are_checked(
    doctor: Doctor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text('{"keys": [{}, {}]}', encoding="utf-8")

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as origin:
        for name, value in (("ISSUER", "i"), ("AUDIENCE", "a"), ("JWKS_URL", f"{origin}/keys")):
            monkeypatch.setenv(f"EXT_CLASSIFY_JWT_{name}", value)
        monkeypatch.setenv("EXT_CLASSIFY_AUTH", "jwt")
        found = doctor.run()
        assert found["issuer of tokens"]["state"] == "ok"
        assert "2" in found["issuer of tokens"]["said"]
        assert found["clock"]["state"] == "ok"
        monkeypatch.setenv("EXT_CLASSIFY_JWT_JWKS_URL", f"{origin}/gone")
        assert doctor.run()["issuer of tokens"]["state"] == "wrong"


class serving:  # noqa: N801 - a context manager
    def __init__(self, handler: type[SimpleHTTPRequestHandler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> str:
        self._thread.start()
        return f"http://127.0.0.1:{self._server.server_port}"

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def test_image_hosts_are_checked(
    doctor: Doctor, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        store = f"localhost:{silent.getsockname()[1]}"
        monkeypatch.setenv("EXT_CLASSIFY_ALLOWED_URL_HOSTS", f"{store},.example.com,no.such.invalid")
        found = doctor.run()
    assert "public address" in found["host of images localhost"]["said"]
    assert found["host of images"]["state"] == "skipped"
    assert found["host of images no.such.invalid"]["state"] == "wrong"


def test_store_with_a_private_certificate_needs_ssl_cert_file(
    doctor: Doctor, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.service_environment.items():
        monkeypatch.setenv(name, value)
    host = server.service_environment["EXT_CLASSIFY_ALLOWED_URL_HOSTS"].partition("/")[0]
    found = doctor.run()[f"host of images {host.partition(':')[0]}"]
    assert found["state"] in ("ok", "note")
    monkeypatch.delenv("SSL_CERT_FILE")
    found = doctor.run()[f"host of images {host.partition(':')[0]}"]
    assert found["state"] == "wrong"
    assert "certificate" in found["said"].lower()


def test_service_logs_in_and_reads_its_stages(
    doctor: Doctor, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in server.service_environment.items():
        monkeypatch.setenv(name, value)
    fill_stages(server)
    stages = "local.public.photos,local.public.sealed,local.public.bare,local.public.nowhere"
    monkeypatch.setenv("EXT_CLASSIFY_SNOWFLAKE_STAGES", stages)
    found = doctor.run()
    assert doctor.exit_code == 1
    assert found["service's login"]["state"] in ("ok", "note")
    assert found["clock"]["state"] == "ok"
    assert found['stage "LOCAL"."PUBLIC"."PHOTOS"']["state"] == "ok"
    assert found['stage "LOCAL"."PUBLIC"."SEALED"']["state"] == "note"
    assert found['stage "LOCAL"."PUBLIC"."BARE"']["state"] == "skipped"
    assert found['stage "LOCAL"."PUBLIC"."NOWHERE"']["state"] == "wrong"


def fill_stages(server: LocalServer) -> None:
    """One file in PHOTOS, one in SEALED, which clients encrypt, and none in BARE."""
    sse = "ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')"
    with Sql(server) as sql:
        sql.rows(f"CREATE OR REPLACE STAGE local.public.photos {sse} DIRECTORY = (ENABLE = TRUE)")
        sql.rows("CREATE OR REPLACE STAGE local.public.sealed DIRECTORY = (ENABLE = TRUE)")
        sql.rows(f"CREATE OR REPLACE STAGE local.public.bare {sse}")
    with connect(**server.connect_arguments) as user_session:
        for stage in ("photos", "sealed"):
            upload(user_session, find_files([SAMPLES / "patches.png"]), f"local.public.{stage}")


@pytest.mark.slow
def test_running_service_is_asked_instead_of_this_environment(
    doctor: Doctor, server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill_stages(server)
    environment = server.service_environment | {"EXT_CLASSIFY_SNOWFLAKE_STAGES": "local.public.photos"}
    with own_service(environment=environment) as (url, _):
        for found in (doctor.run("--url", url), run_on_port(doctor, url, monkeypatch)):
            assert found["running service"]["state"] == "ok"
            assert found["service's login"]["state"] == "ok"
            assert found['stage "LOCAL"."PUBLIC"."PHOTOS"']["state"] == "ok"
        assert "network" not in doctor.run("--url", url)


def run_on_port(doctor: Doctor, url: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Any]]:
    monkeypatch.setenv("EXT_CLASSIFY_PORT", url.rpartition(":")[2])
    return doctor.run()


@pytest.mark.parametrize(
    ("key", "reply", "state"),
    [
        (None, Reply(401, b"{}"), "note"),
        ("of-the-mill", Reply(401, b"{}"), "wrong"),
        ("of-the-mill", Reply(404, b"{}"), "note"),
        ("of-the-mill", Reply(200, b'{"version": "1", "model": {"version": "v"}, "findings": []}'), "ok"),
        ("of-the-mill", Reply(200, b"{}"), "wrong"),
        ("of-the-mill", Reply(200, b"<html>"), "wrong"),
        (None, DROP, "wrong"),
    ],
)
def test_answer_of_the_running_service_decides_the_state(key: str | None, reply: Reply, state: str) -> None:
    findings = Findings()
    with RemoteService() as running:
        running.respond = lambda _: reply
        ask_service(findings, running.origin, key)
        assert running.received[-1].headers["X-API-Key"] == key
    assert [finding.state for finding in findings] == [state]


@pytest.mark.parametrize(
    ("variables", "check"),
    [
        ({"HTTPS_PROXY": "http://mill:secret@proxy:1"}, "proxy"),
        ({"https_proxy": "http://mill:secret@proxy:1"}, "proxy"),
        ({"SSL_CERT_FILE": "/ca.pem"}, "certificates"),
        ({"REQUESTS_CA_BUNDLE": "/ca.pem"}, "certificates"),
        ({"SSL_CERT_FILE": "/ca.pem", "REQUESTS_CA_BUNDLE": "/ca.pem"}, None),
        ({"HTTPS_PROXY": "", "SSL_CERT_FILE": ""}, None),
        ({"HTTPS_PROXY": "http://proxy:1", "EXT_CLASSIFY_FETCH_PROXY": "http://proxy:1"}, None),
    ],
)
def test_proxy_or_ca_of_one_client_only_is_a_note(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], check: str | None
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    findings = Findings()
    check_network_settings(findings, Settings())
    assert [finding.check for finding in findings if finding.state == "note"] == ([check] if check else [])
    assert not any("secret" in finding.said for finding in findings)


def test_advice_names_settings_by_their_variables() -> None:
    sources = [ROOT / "app/cli/doctor.py", ROOT / "app/snowflake/self_check.py"]
    settings = {name.upper() for name in Settings.model_fields if "_" in name}
    text = "".join(path.read_text(encoding="utf-8") for path in sources)
    named = re.findall(r"\b(EXT_CLASSIFY_)?([A-Z]+(?:_[A-Z]+)+)\b", text)
    assert {name for prefix, name in named if name in settings and not prefix} == set()
    assert {name for prefix, name in named if prefix} <= {name.upper() for name in Settings.model_fields}


def test_failed_login_is_reported_without_the_token(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "ACCOUNT": "local",
        "USER": "classifier",
        "TOKEN": "of-the-mill",
        "HOST": "127.0.0.1",
        "PORT": str(free_port()),
        "PROTOCOL": "http",
        "TIMEOUT_SECONDS": "2",
    }.items():
        monkeypatch.setenv(f"EXT_CLASSIFY_SNOWFLAKE_{name}", value)
    found = doctor.run()["service's login"]
    assert found["state"] == "wrong"
    assert "Snowflake" in found["said"]
    assert "of-the-mill" not in found["said"]


@pytest.mark.slow
def test_user_logs_in_and_finds_the_function(
    doctor: Doctor, server: LocalServer, capsys: pytest.CaptureFixture[str]
) -> None:
    local = ["--local", "--port", str(server.port)]
    assert doctor.run(*local, "--function", "nowhere")["function"]["state"] == "note"
    with own_service(environment=server.service_environment) as (url, _):
        arn = "arn:aws:iam::000000000000:role/local"
        register = ["--provider", "aws", "--url", f"{url}/classify", "--role-arn", arn]
        assert main(["register", "--json", *local, *register]) == 0
    assert all("done" in json.loads(line) for line in capsys.readouterr().out.splitlines())
    found = doctor.run(*local)
    assert found["function"]["state"] == "ok"
    assert "LOCAL.PUBLIC" in found["function"]["said"]
    assert "LOCAL" in found["your login"]["said"]


@pytest.mark.slow
def test_gateway_that_reaches_the_service_passes(doctor: Doctor) -> None:
    with running_service() as url:
        found = doctor.run("--gateway", f"{url}/classify")
    assert doctor.exit_code == 0
    assert found["gateway"]["state"] == "ok"


@pytest.mark.parametrize(
    ("reply", "state", "said"),
    [
        (Reply(403, b'{"message":"Missing Authentication Token"}'), "note", "403: .*Missing Authentication"),
        (Reply(401, b"no"), "note", "401.*: no"),
        (Reply(404, b"no route"), "wrong", "404: no route"),
        (Reply(502, b"bad gateway"), "wrong", "502: bad gateway"),
        (Reply(200, b"<html>hello"), "wrong", ": <html>hello"),
        (Reply(200, b'{"data": []}'), "wrong", r": \{\"data\": \[\]\}"),
        (DROP, "wrong", "."),
    ],
)
def test_response_of_the_gateway_decides_the_state(reply: Reply, state: str, said: str) -> None:
    findings = Findings()
    with RemoteService() as gateway:
        gateway.respond = lambda _: reply
        check_gateway(findings, gateway.url, "of-the-mill")
        assert gateway.received[-1].headers["X-API-Key"] == "of-the-mill"
        assert gateway.received[-1].rows == [[0, None]]
    plain, *_, judged = findings
    assert (plain.check, plain.state) == ("gateway", "note")
    assert judged.state == state
    assert re.search(said, judged.said)
    assert judged.advice


@pytest.mark.parametrize(
    "url", ["gateway/classify", "https://h:99999/x", "http://[/x", "https://a..b/x", "https://user:word@h/x"]
)
def test_invalid_gateway_url_is_an_error(doctor: Doctor, url: str) -> None:
    found = doctor.run("--gateway", url)
    wrong = [finding for finding in found.values() if finding["state"] == "wrong"]
    assert [finding["check"].partition("'")[0] for finding in wrong] == ["gateway"]
    assert "user:word" not in json.dumps(found)


def test_doctor_does_not_send_the_key_to_a_redirect_target() -> None:
    findings = Findings()
    with RemoteService() as gateway, RemoteService() as elsewhere:
        gateway.respond = lambda _: Reply(302, b"", {"Location": elsewhere.url})
        check_gateway(findings, gateway.url, "of-the-mill")
        assert elsewhere.received == []
    assert findings[-1].state == "wrong"
    assert findings[-1].said.startswith("302")


def test_gateway_with_an_untrusted_certificate_receives_no_request(server: LocalServer) -> None:
    findings = Findings()
    store = server.service_environment["EXT_CLASSIFY_ALLOWED_URL_HOSTS"].partition("/")[0]
    check_gateway(findings, f"https://{store}/classify", "of-the-mill")
    [finding] = findings
    assert finding.check == "gateway's certificate"
    assert "certificate" in finding.said.lower()


@pytest.mark.parametrize("url", ["redis://127.0.0.1:1/0", "redis://127.0.0.1:1/x"])
def test_unusable_redis_url_is_an_error(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("EXT_CLASSIFY_REDIS_URL", url)
    found = doctor.run()
    assert {found[check]["state"] for check in ("Redis", "settings") if check in found} >= {"wrong"}


@pytest.mark.parametrize(
    ("ahead", "state"), [(0, "ok"), (29, "ok"), (-29, "ok"), (40, "wrong"), (-40, "wrong")]
)
def test_clock_skew_up_to_30_seconds_is_accepted(ahead: float, state: str) -> None:
    findings = Findings()
    check_clock(findings, time.time() - ahead, "Snowflake's")
    [finding] = findings
    assert finding.state == state
    assert ("ahead of" if ahead > 0 else "behind") in finding.said or not ahead
