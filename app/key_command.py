"""ext-classify key: make an API key."""

import json
import sys
from pathlib import Path

from app.api_keys import NAME, line_of, make_key
from app.command_line import Add, CommandError, add_json


def add_commands(add: Add) -> None:
    command = add("key", key, "make an API key, and the line by which the service knows it")
    command.add_argument("name", help="whose it is to be")
    command.add_argument("--file", type=Path, help="file of keys to add the line to (default: print it)")
    add_json(command)


def key(name: str, file: Path | None, as_json: bool) -> None:
    """The key is printed once, and is nowhere to be found after that."""
    if not NAME.fullmatch(name):
        raise CommandError(f"a key's name must be of letters, digits, dots and dashes. Received: {name!r}")
    made = make_key()
    line = line_of(name, made)
    if file is not None:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        with file.open("a", encoding="utf-8") as lines:
            lines.write(f"{line}\n" if text.endswith("\n") or not text else f"\n{line}\n")
    if as_json:
        print(json.dumps({"name": name, "key": made, "line": line, "file": file and str(file)}))
        return
    print(made)
    if file is None:
        print(f"For the file that EXT_CLASSIFY_API_KEYS_FILE names:\n{line}", file=sys.stderr)
