"""Output of commands on a real terminal, and as JSON."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.cli.main import SHELLS, main
from app.cli.terminal import PlainScreen, bar
from model.defaults import DEFAULT_MODEL_PATH
from tests.conftest import SAMPLES
from tests.running import CLI, Terminal, run_on_a_terminal, running_service, shown_on_a_terminal

pytestmark = pytest.mark.slow

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_service() as url:
        yield url


def test_terminal_shows_colours_and_a_summary(url: str, tmp_path: Path) -> None:
    shutil.copytree(SAMPLES, tmp_path / "photos")
    (tmp_path / "photos" / "[red]broken.png").write_bytes(b"no image")
    shown = shown_on_a_terminal("classify", "--url", url, str(tmp_path / "photos"))
    assert "\x1b[32m" in shown  # green
    assert "\x1b[33m" in shown  # yellow: a sample with low confidence
    assert "\x1b[31m" in shown  # red
    text = _COLOUR.sub("", shown)
    assert "[red]broken.png" in text
    assert re.search(r"Crazing\s+1\s+█+▍?\s+0\.99\d\d", text), text
    assert re.search(r"\(unsupported_format\)\s+1", text)


def test_file_names_do_not_control_the_terminal(url: str, tmp_path: Path) -> None:
    for name in (":label:.png", "a\x1b[31m.png", "b\n.png", "c\u202egnp.exe.png", "d\x9b31m.png", "ü 雪.png"):
        shutil.copy(SAMPLES / "pitted.png", tmp_path / name)
    shown = shown_on_a_terminal("classify", "--url", url, str(tmp_path))
    for name in (
        ":label:.png",
        r"a\x1b[31m.png",
        r"b\n.png",
        r"c\u202egnp.exe.png",
        r"d\x9b31m.png",
        "ü 雪.png",
    ):
        assert name in shown


def test_redirected_output_has_no_progress_bar(url: str, tmp_path: Path) -> None:
    """The bar goes to the terminal, on stderr."""
    for flags, lines in (["--json"], 6), ([], 10):
        out = tmp_path / "out"
        command = shlex.join([*CLI, "classify", "--url", url, *flags, str(SAMPLES)])
        shown = run_on_a_terminal("sh", "-c", f"{command} > {out}")
        printed = out.read_text(encoding="utf-8").splitlines()
        assert len(printed) == lines
        assert "Scratches" in printed[5 if flags else 6]
        assert "Scratches" not in shown


def test_json_has_no_colours_on_a_terminal(url: str) -> None:
    shown = shown_on_a_terminal("classify", "--json", "--url", url, str(SAMPLES))
    assert [json.loads(line)["error"] for line in shown.splitlines()] == [None] * 6


def test_no_color_disables_colours(url: str) -> None:
    shown = shown_on_a_terminal("classify", "--url", url, str(SAMPLES), NO_COLOR="1")
    assert not re.search(r"\x1b\[3[0-9]m", shown)
    assert "Scratches" in shown


def test_terminal_shows_sql_rows_as_a_table(url: str) -> None:
    shown = _COLOUR.sub("", shown_on_a_terminal("sql", "--url", url, "SELECT 1.5 AS n, 'a[b]' AS label"))
    assert re.search(r"N\s+LABEL", shown)
    assert "─" in shown
    assert re.search(r"1\.5\s+a\[b\]", shown)


def test_rows_wider_than_the_terminal_are_expanded(url: str) -> None:
    statement = "SELECT REPEAT('long ', 12) AS a, REPEAT('text ', 12) AS b"
    assert re.search(
        r"-\[ row 1 \]-+\s+A +(long ){11}long\s+B +(text ){11}text\s", plain("sql", "--url", url, statement)
    )
    assert "row 1" not in plain("sql", "--url", url, "SELECT 1 AS a, 2 AS b")
    heatmap = """SELECT REPEAT('long ', 12) AS "a:label::b", REPEAT('QUJD', 99) || ' NULL' AS c"""
    assert re.search(
        r"a:label::b +(long ){11}long\s+C +(QUJD){5}… \(396 characters\) NULL\s",
        plain("sql", "--url", url, heatmap),
    )


def plain(*arguments: str) -> str:
    return _COLOUR.sub("", shown_on_a_terminal(*arguments))


def test_shell_keeps_its_history_for_this_user_only(url: str, tmp_path: Path) -> None:
    for typed, shown in ("SELECT 40 + 2;\n", "42"), ("\x1b[A\x1b[A\n", "42"):  # the arrow skips `exit`
        with Terminal(*CLI, "sql", "--url", url, XDG_STATE_HOME=str(tmp_path)) as terminal:
            terminal.wait_for("sql> ")
            terminal.type(typed)
            terminal.wait_for(shown)
            terminal.type("exit\n")
            assert terminal.exit_code() == 0
    assert (tmp_path / "ext-classify" / "sql_history").stat().st_mode & 0o777 == 0o600


def test_plain_output_has_the_same_text(capsys: pytest.CaptureFixture[str]) -> None:
    screen = PlainScreen()
    screen.table(["NAME", "N"], [["a", "1"], ["longer", "2"]])
    screen.line("red", "red")
    with screen.progress(3, "images") as advance:
        advance(3)
    printed = capsys.readouterr()
    assert printed.out == "NAME    N\n------  -\na       1\nlonger  2\nred\n"
    assert printed.err == ""


@pytest.mark.parametrize(
    ("share", "drawn"),
    [(0, ""), (1, "████"), (0.5, "██"), (0.0001, "▏"), (2, "████"), (-1, ""), (0.53125, "██▏")],
)
def test_length_of_a_bar_is_its_share(share: float, drawn: str) -> None:
    assert bar(share, 4) == drawn


@pytest.mark.parametrize("shell", SHELLS)
def test_completion_script_contains_every_command(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in ("classify", "doctor", "api-key-file", "batch-rows"):
        assert word in script or word.replace("-", "_") in script


def test_bash_completes_commands_flags_and_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    script = tmp_path / "completion"
    script.write_text(capsys.readouterr().out, encoding="utf-8")
    (tmp_path / "photo.png").touch()

    def completed(*words: str) -> set[str]:
        line = " ".join(["ext-classify", *words])
        program = (
            f"source {script}; cd {tmp_path}; COMP_WORDS=(ext-classify {' '.join(repr(w) for w in words)}); "
            f"COMP_CWORD={len(words)}; COMP_LINE={line!r}; COMP_POINT={len(line)}; "
            "f=$(complete -p ext-classify | sed 's/.*-F \\([^ ]*\\).*/\\1/'); $f; "
            "printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        command = ["bash", "-c", program]
        finished = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)
        return set(finished.stdout.split())

    assert {"classify", "completion", "doctor"} <= completed("")
    assert "--evidence" in completed("classify", "--ev")
    assert "photo.png" in completed("verify", "ph")


def test_key_and_verify_print_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert main(["key", "mill", "--file", str(keys), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["name"], made["file"]) == ("mill", str(keys))
    assert made["line"] in keys.read_text(encoding="utf-8")
    assert main(["verify", "--json"]) == 0
    model = json.loads(capsys.readouterr().out)
    assert model["name"] == DEFAULT_MODEL_PATH.stem
    assert model["shape"] == [200, 200, 1]
    assert "Scratches" in model["class_names"]
