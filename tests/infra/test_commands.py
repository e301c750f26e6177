"""Every command that the README and the manual show: a test runs it, or the manual says why none can."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from tests.app.batches.test_redis_store import REDIS, redis_server
from tests.running import exchange, free_port, logging_service, running_service, wait_until
from tests.write_docs import DOCS, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "infra").rglob("*.md"))]
PAGES = [page for page in PAGES if page.parent.name != "tutorials"]  # test_tutorials runs those
OPERATIONS = (DOCS / "operations.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^ *```sh\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
# The program or target, and where it is run: a path and a word of the test.
RUN_BY = {
    "curl": ("tests/test_readme.py", "test_curl_examples"),
    "echo": ("tests/test_readme.py", "test_curl_examples"),
    "openssl": ("tests/infra/test_commands.py", "test_key_pair"),
    "redis-cli": ("tests/infra/test_commands.py", "test_redis_accepts"),
    "dbt": ("tests/infra/test_dbt.py", "DBT"),
    "eval": ("tests/app/cli/test_terminal.py", '"completion", "bash"'),
    "python": ("tests/infra/test_udf.py", "udf_bundle"),
    "make run": ("tests/test_readme.py", "running_demo"),
    "make .venv-dbt/.installed": (
        "Makefile",
        "test: .venv-dev/.installed .venv-connector5/.installed .venv-dbt",
    ),
    "make train": ("tests/app/cli/test_main.py", '"train"'),
    "make setup": (".ci/run", "make test"),
    "make dev": (".ci/run", "make test"),
    "make test": (".ci/run", "make test"),
}
# Of the shell itself, and of no effect alone.
SHELL = {"export", "for", "done", "printf"}


def commands_of(page: Path) -> set[str]:
    """Programs, with the subcommand of ext-classify and the target of make."""
    blocks = "".join(BLOCK.findall(page.read_text(encoding="utf-8"))).replace("\\\n", " ")
    found = set()
    for line in blocks.splitlines():
        text = re.sub(r"^ *((\w+=)?\"?\$\(|([A-Z_]+=\S+ +)+)", "", line).strip()
        if text and not text.startswith("#") and not re.match(r"\w+=", text):
            program, _, rest = text.partition(" ")
            program = program.rpartition("/")[2]
            named = program in ("ext-classify", "make")
            found.add(f"{program} {rest.split()[0]}" if named else program)
    return found


SHOWN = set().union(*map(commands_of, PAGES))


def not_run() -> dict[str, str]:
    """The manual's table: command to reason."""
    _, _, below = (
        (DOCS / "README.md").read_text(encoding="utf-8").partition("### Commands that no test runs\n")
    )
    rows = re.findall(r"^\| (`.*?`) \| (.+?) \|", below, re.MULTILINE)
    return {command: reason for names, reason in rows for command in re.findall(r"`([^`]+)`", names)}


def test_every_command_is_run_by_a_test_or_listed_with_the_reason() -> None:
    others = {command for command in SHOWN if not command.startswith("ext-classify ")}
    assert sorted(others - SHELL) == sorted([*RUN_BY, *not_run()])
    for path, word in RUN_BY.values():
        assert word in (ROOT / path).read_text(encoding="utf-8"), path


def test_every_subcommand_is_run_by_a_test() -> None:
    texts = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests" / "app").rglob("test_*.py"))
    names = {command.partition(" ")[2] for command in SHOWN if command.startswith("ext-classify ")}
    assert len(names) > 8
    assert {name for name in names if f'["{name}"' not in texts} == set()


def line_with(text: str) -> str:
    [line] = [line for block in BLOCK.findall(OPERATIONS) for line in block.splitlines() if text in line]
    return line.partition("   #")[0]


def shell(command: str, folder: Path) -> str:
    bash = ["bash", "-o", "pipefail", "-c", command]
    return subprocess.run(bash, cwd=folder, capture_output=True, text=True, check=True).stdout


def test_key_pair_is_one_that_the_connector_reads(tmp_path: Path) -> None:
    printed = shell(line_with("openssl genrsa"), tmp_path)
    assert printed.startswith("-----BEGIN PUBLIC KEY-----")
    assert load_pem_private_key((tmp_path / "new.p8").read_bytes(), None)


@pytest.mark.slow
def test_first_look_works_when_pasted(tmp_path: Path) -> None:
    with running_service() as url:
        for text in ("/readyz", "/metrics"):
            assert shell(line_with(f"http://HOST:8000{text}").replace("http://HOST:8000", url), tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("jq") is None, reason="jq is not installed")
def test_log_is_filtered_when_pasted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with logging_service(log, EXT_CLASSIFY_NONE="1") as (_, port):
        wait_until(lambda: b'"ready"' in log.read_bytes())
        assert exchange(port, "POST", "/classify").status == 415
        wait_until(lambda: b'"refused"' in log.read_bytes())
    read = f"cat {log}"
    warnings = shell(line_with("grep -v").replace("docker logs CONTAINER 2>&1", read), tmp_path)
    assert "There is no such setting" in warnings
    refused = shell(line_with('"refused"').replace("docker logs CONTAINER 2>&1", read), tmp_path)
    assert '"event":"refused"' in refused


@pytest.mark.skipif(REDIS is None, reason="redis-server is not installed: make system-deps")
def test_redis_accepts_both_passwords_meanwhile(tmp_path: Path) -> None:
    port = free_port()
    with redis_server(port):
        for text in (">NEW", "<OLD"):
            shell(line_with(text).replace("redis-cli", f"redis-cli -p {port}"), tmp_path)
