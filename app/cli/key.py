"""ext-classify key: create an API key."""

import json
import sys
from pathlib import Path

from app.api.auth import NAME, line_of, make_key
from app.cli.command_line import Add, add_json
from app.errors import CommandError


def add_commands(add: Add) -> None:
    command = add("key", key, "create an API key, and the line for the service's file of keys")
    command.add_argument("name", help="name of the caller who gets the key")
    command.add_argument(
        "--file", type=Path, help="append the line to this file of keys (default: print the line)"
    )
    add_json(command)


def key(name: str, file: Path | None, as_json: bool) -> None:
    """Print a new key once; only its hash is stored."""
    if not NAME.fullmatch(name):
        raise CommandError(
            f"a key's name must consist of letters, digits, dots, dashes and underscores. Received: {name!r}"
        )
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
        print(f"Add this line to the file in EXT_CLASSIFY_API_KEYS_FILE:\n{line}", file=sys.stderr)
