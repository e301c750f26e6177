"""Runs the pages of infra/tutorials as a reader would, in a clone of their own, and compares what is printed.

A comment before a fence says what becomes of it:

    <!-- runs -->            pasted into the reader's terminal; every command of it must succeed
    <!-- runs and stays -->  started in a terminal of its own, where it stays until the end
    <!-- prints -->          what the block before it has printed

In the expected output, `…` matches any text of one line, and a line of only `…` any lines. Ports are free
ones, shown as the page shows them.
Log lines of TensorFlow Lite, which come at any time, are left out.

A block of sh without a comment is rehearsed: run with stand-ins of the programs that it calls, which only
write down what they were called with.
"""

import difflib
import json
import os
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from tests.running import free_port

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "tutorials"
LONGEST_SECONDS = 300.0
"""Of one block, on a machine that is busy with other things."""
LONGEST_STOP_SECONDS = 30.0
SERVICE_PORT, LOCAL_PORT = 8000, 8100
_END = "end-of-block"
_BLOCK = re.compile(r"(?:^<!-- ([a-z ]+) -->\n)?^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_HOW = (None, "runs", "runs and stays", "prints")
# What a rehearsal must not do, and what it answers where a page uses the output.
_STAND_IN = """#!{python}
import json, pathlib, sys
call = [pathlib.Path(sys.argv[0]).name, *sys.argv[1:]]
with open({calls!r}, "a") as file:
    file.write(json.dumps(call) + "\\n")
text = " ".join(call)
for part, answer in {answers!r}.items():
    if part in text:
        print(answer)
        break
"""
STAND_INS = ("aws", "docker", "ext-classify", "make", "snow")


class PageIsWrong(AssertionError):
    """What the page shows is not what happens."""


@dataclass(frozen=True)
class Block:
    line: int
    how: str | None
    language: str
    text: str


def blocks_of(page: str) -> list[Block]:
    found = []
    for match in _BLOCK.finditer(page):
        how, language, text = match.groups()
        if how not in _HOW:
            raise PageIsWrong(f"No such mark: {how}")
        found.append(Block(page.count("\n", 0, match.start()) + 1, how, language, text))
    return found


def copy_clone(folder: Path) -> None:
    """What a clone holds, and both environments as links to the one that tests run in.

    Bytecode comes with it, which a clone's first command would write in two seconds.
    """
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    ):
        if name and not name.startswith("tests/") and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    for package in ("app", "model"):
        for compiled in (ROOT / package).rglob("__pycache__/*.pyc"):
            target = folder / compiled.relative_to(ROOT)
            if target.parent.parent.is_dir():  # bytecode stays behind where an earlier version had a package
                target.parent.mkdir(exist_ok=True)
                shutil.copy2(compiled, target)
    for environment in (".venv", ".venv-dev"):
        programs = folder / environment / "bin"
        programs.mkdir(parents=True)
        for name, arguments in (("python", ""), ("ext-classify", "-m app.cli ")):
            _write_program(
                programs / name,
                f'#!/bin/sh\nexport PYTHONPATH="{folder}"\nexec "{sys.executable}" {arguments}"$@"\n',
            )
        (folder / environment / ".installed").touch()


class Session:
    """A bash that is given one block after the other."""

    def __init__(self, clone: Path, answers: dict[str, str]) -> None:
        self.calls: list[list[str]] = []
        self._ports = {SERVICE_PORT: free_port(), LOCAL_PORT: free_port()}
        self._staying = 0
        self._outside = clone.parent
        self._calls = self._outside / "calls"
        stand_ins = self._outside / "stand-ins"
        stand_ins.mkdir()
        text = _STAND_IN.format(python=sys.executable, calls=str(self._calls), answers=answers)
        for name in STAND_INS:
            _write_program(stand_ins / name, text)
        # What `make test` and its caller have set is nothing that a reader has.
        others = ("EXT_CLASSIFY_", "MAKE", "MFLAGS", "PORT", "IMAGES")
        ours = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        ours |= {
            "EXT_CLASSIFY_PORT": str(self._ports[SERVICE_PORT]),
            "EXT_CLASSIFY_STOP_DELAY_SECONDS": "0",
            "HOME": str(self._outside),
        }
        # Whatever the session has started holds its other end.
        self._held, holding = os.pipe()
        self._bash = subprocess.Popen(
            ["bash", "--noprofile", "--norc"],  # noqa: S607
            cwd=clone,
            env=ours,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(holding,),
        )
        os.close(holding)
        self._send("set -euo pipefail\n")

    def run(self, block: Block) -> str:
        """What it prints. Raises PageIsWrong when a command of it fails."""
        return self._shown(self._ask(f"{{\n{self._meant(block.text)}\n}} </dev/null"))

    def start(self, block: Block) -> Path:
        """The file that it prints into."""
        self._staying += 1
        output = self._outside / f"terminal-{self._staying}"
        self._ask(f"{{\n{self._meant(block.text)}\n}} </dev/null >{shlex.quote(str(output))} 2>&1 &")
        return output

    def rehearse(self, block: Block) -> None:
        self._calls.write_text("", encoding="utf-8")
        path = shlex.quote(str(self._outside / "stand-ins"))
        self._ask(f"real_path=$PATH; PATH={path}:$PATH\n{{\n{block.text}\n}} </dev/null\nPATH=$real_path")
        self.calls += [json.loads(line) for line in self._calls.read_text(encoding="utf-8").splitlines()]

    def compare(self, page: Block, printed: str) -> None:
        """Raises PageIsWrong."""
        if not re.fullmatch(_pattern(page.text), _trimmed(printed)):
            shown, real = (_trimmed(text).splitlines() for text in (page.text, printed))
            difference = "\n".join(difflib.unified_diff(shown, real, "the page", "printed", lineterm=""))
            raise PageIsWrong(f"Line {page.line}:\n{difference}")

    def await_print(self, page: Block, output: Path) -> None:
        deadline = time.monotonic() + LONGEST_SECONDS / 3
        while True:
            printed = self._shown(output.read_bytes().decode() if output.exists() else "")
            try:
                return self.compare(page, printed)
            except PageIsWrong:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def end(self) -> None:
        """Stop what stays, and all that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGTERM)
        select.select([self._held], [], [], LONGEST_STOP_SECONDS)
        with suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        os.close(self._held)
        with suppress(BrokenPipeError):
            self._bash.communicate()

    def _ask(self, command: str) -> str:
        watchdog = threading.Timer(LONGEST_SECONDS, lambda: os.killpg(self._bash.pid, signal.SIGKILL))
        watchdog.start()
        try:
            self._send(f"{command}\nprintf '%s\\n' {_END}\n")
            return self._read(command)
        finally:
            watchdog.cancel()

    def _send(self, text: str) -> None:
        assert self._bash.stdin is not None
        self._bash.stdin.write(text.encode())
        self._bash.stdin.flush()

    def _read(self, command: str) -> str:
        assert self._bash.stdout is not None
        printed = ""
        while not printed.endswith(f"{_END}\n"):
            line = self._bash.stdout.readline().decode()
            if not line:
                raise PageIsWrong(f"This failed:\n{command}\n\nIt printed:\n{printed}")
            printed += line
        return printed.removesuffix(f"{_END}\n")

    def _meant(self, text: str) -> str:
        """The page's commands, for the ports that are free here."""
        text = re.sub(r"(--serve|--local)\b", rf"\1 --port {self._ports[LOCAL_PORT]}", text)
        for shown, free in self._ports.items():
            text = text.replace(f"127.0.0.1:{shown}", f"127.0.0.1:{free}")
        return text

    def _shown(self, printed: str) -> str:
        printed = printed.replace(f" --port {self._ports[LOCAL_PORT]}", "")
        for shown, free in self._ports.items():
            printed = re.sub(rf"\b{free}\b", str(shown), printed)
        return printed


def follow(page: str, clone: Path, answers: dict[str, str] | None = None) -> list[list[str]]:
    """Do all that a page says. Returns what the stand-ins were called with. Raises PageIsWrong."""
    with _session(clone, answers or {}) as session:
        printed, staying = "", None
        for block in blocks_of(page):
            if block.how == "runs":
                printed, staying = session.run(block), None
            elif block.how == "runs and stays":
                staying = session.start(block)
            elif block.how == "prints" and staying is not None:
                session.await_print(block, staying)
            elif block.how == "prints":
                session.compare(block, printed)
            elif block.language == "sh":
                session.rehearse(block)
        return session.calls


@contextmanager
def _session(clone: Path, answers: dict[str, str]) -> Iterator[Session]:
    session = Session(clone, answers)
    try:
        yield session
    finally:
        session.end()


def _pattern(text: str) -> str:
    lines = (
        r"(?:.*\n)*?" if line == "…" else ".*".join(map(re.escape, line.split("…"))) + r"\n"
        for line in _trimmed(text).splitlines()
    )
    return "".join(lines)


def _trimmed(text: str) -> str:
    """Without what a terminal does not show: carriage returns, and blanks at the ends of lines."""
    lines = [line.rpartition("\r")[2].rstrip() for line in text.split("\n")]
    return "\n".join(lines).strip("\n") + "\n"


def _write_program(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
