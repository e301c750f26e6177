"""ext-classify demo: start the service, classify a folder with SQL on an emulated Snowflake, keep serving."""

from collections import Counter
from pathlib import Path

from app.cli.command_line import Add, end_well_when_stopped, parse_port
from app.cli.sql import import_local
from app.settings import Settings
from model.defaults import SAMPLES

STATEMENT = """SELECT relative_path, answer:label::string AS label, answer:confidence::float AS confidence
FROM (SELECT relative_path, ext_classify(file_url) AS answer FROM DIRECTORY(@images))
ORDER BY relative_path"""

_INTRODUCTION = """
An emulated Snowflake has {images} images of {folder} on its stage @images. For this query, it calls
POST {url}/classify as Snowflake does:

{statement};
"""

_NEXT = """
Serving on {url} until Ctrl-C. In another terminal, try:

  .venv/bin/ext-classify sql --images YOUR_FOLDER     (an interactive SQL shell)
  curl -s -H 'Content-Type: image/png' --data-binary @{example} {url}/classify
  curl -s -F file=@{example} {url}/classify

or open {url}/ in a browser and drop images of your own on the page
"""


def demo(images: Path, port: int | None) -> None:
    """Serve until Ctrl-C. Raises ClientError if the port is in use or the service does not start."""
    settings = Settings() if port is None else Settings(port=port)
    end_well_when_stopped()
    local = import_local("app.cli.sql_shell")
    folder, example = _shortest(images), _shortest(SAMPLES / "scratches.png")
    try:
        with local.local_sql(folder, service_port=settings.port) as (shell, url, service):
            print(_INTRODUCTION.format(url=url, images=shell.images, folder=folder, statement=STATEMENT))
            rows = shell.run(STATEMENT, as_json=False)
            labels = Counter(label or "(none)" for _, label, _ in rows)
            print("\n" + ", ".join(f"{count} {label}" for label, count in sorted(labels.items())))
            print(_NEXT.format(url=url, example=example), flush=True)
            service.wait()
    except KeyboardInterrupt:
        print("Stopped.")


def add_commands(add: Add) -> None:
    command = add("demo", demo, "start the service, classify sample images with SQL, and keep serving")
    command.add_argument("--port", type=parse_port, help="port to listen on (default 8000)")
    command.add_argument(
        "--images", type=Path, default=SAMPLES, help="folder to classify (default: the samples)"
    )


def _shortest(path: Path) -> Path:
    """The path relative to the working directory, if it is inside it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
