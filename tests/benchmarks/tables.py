"""Writes benchmark figures as Markdown tables that name the machine."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def machine() -> str:
    """Processor, cores and Python, in a line."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor()
    return f"{processor}, {os.cpu_count()} cores, {platform.system()}, Python {platform.python_version()}"


def write_table(  # noqa: PLR0913 - each is said by its name
    name: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    command: str = "make bench",
    about: str | None = None,
    folder: Path | None = RESULTS,
) -> None:
    """Print a table, and write it to <name>.md in `folder` if given; `about` says what was measured."""
    first = f"`{command}`, {about or machine()}"
    lines = [first, "", _line(header), _line(["---"] * len(header)), *map(_line, rows)]
    text = "\n".join(lines) + "\n"
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
