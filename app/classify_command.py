"""ext-classify classify: image files through a running service."""

from pathlib import Path

from app.client import DEFAULT_URL, classify_files, find_images, print_outcomes
from app.command_line import Add


def classify(paths: list[Path], url: str, as_json: bool) -> None:
    images = find_images(paths)
    print_outcomes(images, classify_files(images, url), as_json=as_json)


def add_commands(add: Add) -> None:
    command = add("classify", classify, "classify image files through a running service")
    command.add_argument("paths", type=Path, nargs="+", metavar="PATH", help="images, or folders of them")
    command.add_argument("--url", default=DEFAULT_URL, help="the service (default %(default)s)")
    command.add_argument("--json", action="store_true", dest="as_json", help="one outcome a line")
