"""ext-classify sql and demo: run SQL on an emulated Snowflake, without an account.

Also opens the Snowflake sessions of other commands, on the emulator or on an account.
"""

import argparse
import shlex
import socket
from collections import Counter
from pathlib import Path

from app.cli.command_line import Add, add_json, end_well_when_stopped, needs_extra, parse_port
from app.cli.service_process import (
    HOST,
    add_model,
    default_images,
    reach_loopback_directly,
    refuse_model_of_another_service,
)
from app.client import ClientError, require_route
from app.errors import UsageError
from app.images.files import find_images
from app.provisioning.user_session import (
    UserSession,
    allowed_prefixes,
    connect,
    connect_as_service,
    describe_integration,
    has_integration,
    open_user_session,
)
from app.settings import Settings, is_inside_spcs
from model.defaults import SAMPLES

LOCAL_PORT = 8100
LOCAL_DATABASE = "LOCAL"
# The integration of the function that `sql` registers; it allows the URL of the emulator's service.
LOCAL_INTEGRATION = "EXT_CLASSIFY"
_ANSWER_SECONDS = 2.0

STATEMENT = """SELECT relative_path, answer:label::string AS label, answer:confidence::float AS confidence
FROM (SELECT relative_path, ext_classify(file_url) AS answer FROM DIRECTORY(@images))
ORDER BY relative_path"""

_INTRODUCTION = """
An emulated Snowflake has {images} images of {folder} on its stage @images. For this query, it calls
POST {url}/classify as Snowflake does; {network} answers:

{statement};
"""

_NEXT = """
Serving on {url} until Ctrl-C. In another terminal, try:

  .venv/bin/ext-classify sql --images YOUR_FOLDER     (an interactive SQL shell)
  curl -s -H 'Content-Type: image/png' --data-binary {example} {url}/classify
  curl -s -F file={example} {url}/classify

or open {url}/ in a browser and drop images of your own on the page
"""


def sql(
    statement: str | None,
    images: Path | None,
    url: str | None,
    model: Path | None,
    as_json: bool,
    chaos: bool,
    seed: int,
    serve: bool,
    local: bool,
    port: int,
) -> None:
    if serve and (local or statement is not None):
        received = "`--local`" if local else "a statement"
        raise UsageError(f"`--serve` takes neither a statement nor `--local`. Received: {received}.")
    given = {"--model": model, "--images": images, "--url": url, "--chaos": chaos}
    if local and (ignored := [name for name, value in given.items() if value]):
        raise UsageError(
            "`--local` uses a running emulator, so it excludes `--model`, `--images`, `--url` and `--chaos`. "
            f"Received: {', '.join(ignored)}."
        )
    refuse_model_of_another_service(model, url)
    if url is not None:
        require_route(f"{url.rstrip('/')}/classify", _ANSWER_SECONDS)
    with needs_extra("sql"):
        from app.cli import sql_shell as shell  # noqa: PLC0415 - optional
    end_well_when_stopped()
    reach_loopback_directly()
    if local:
        with connect_locally(port) as user_session:
            shell.Shell(user_session).answer(statement, as_json=as_json)
        return
    images = images or (SAMPLES if url is not None else default_images(model, "--images"))
    chaos_seed, own_port = seed if chaos else None, port if serve else 0
    with shell.local_sql(images, url, model, chaos_seed=chaos_seed, port=own_port) as emulated:
        if serve:
            shell.serve(emulated.server, emulated.url, emulated.network)
        else:
            banner = shell.banner(emulated.shell, emulated.url, emulated.network, images)
            emulated.shell.answer(statement, as_json=as_json, banner=banner)


def demo(images: Path | None, model: Path | None, port: int | None) -> None:
    """Serve until Ctrl-C. Raises CommandError if the port is in use or the service does not start."""
    settings = Settings() if port is None else Settings(port=port)
    end_well_when_stopped()
    with needs_extra("sql"):
        from app.cli.sql_shell import local_sql  # noqa: PLC0415 - optional
    folder = images or default_images(model, "--images")
    folder = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
    example = find_images([folder])[-1]
    with local_sql(folder, None, model, service_port=settings.port) as (shell, _, url, network, service):
        said = {"url": url, "network": network, "images": shell.images, "folder": folder}
        print(_INTRODUCTION.format(**said, statement=STATEMENT))
        rows = shell.run(STATEMENT, as_json=False)
        labels = Counter(label or "(none)" for _, label, _ in rows)
        print("\n" + ", ".join(f"{count} {label}" for label, count in sorted(labels.items())))
        print(_NEXT.format(url=url, example=shlex.quote(f"@{example}")), flush=True)
        if service is not None:
            service.wait()


def add_commands(add: Add) -> None:
    summary = "run SQL on an emulation of Snowflake that calls the service; no account needed"
    command = add("sql", sql, summary)
    flag = command.add_argument
    statement = "statement to run (default: read statements from stdin)"
    flag("statement", nargs="?", metavar="SQL", help=statement)
    flag("--images", type=Path, help="folder to mount as @images (default: the network's samples)")
    url = "URL of a running service, which cannot read @images (default: start one that can)"
    flag("--url", help=url)
    add_model(command)
    add_json(command, "print each row as a line of JSON")
    flag("--chaos", action="store_true", help="repeat, delay, drop and reorder batches at random")
    flag("--seed", type=int, default=0, help="random seed of --chaos (default %(default)s)")
    flag("--serve", action="store_true", help="accept other clients on --port")
    flag("--local", action="store_true", help="connect to the server of --serve on --port")
    flag("--port", type=parse_port, default=LOCAL_PORT, help="port of the emulator (default %(default)s)")

    command = add("demo", demo, "start the service, classify sample images with SQL, and keep serving")
    command.add_argument("--port", type=parse_port, help="port to listen on (default 8000)")
    images = "folder to classify (default: the network's samples)"
    command.add_argument("--images", type=Path, help=images)
    add_model(command)


def add_connection(command: argparse.ArgumentParser) -> None:
    flag = command.add_argument
    connection = "connection in connections.toml (default: its default connection)"
    flag("--connection", metavar="NAME", help=connection)
    flag("--local", action="store_true", help="connect to the local server of `ext-classify sql --serve`")
    flag("--port", type=parse_port, default=LOCAL_PORT, help="port of the local server (default %(default)s)")


def open_session(connection: str | None, local: bool, port: int) -> UserSession:
    """Open a session. Raises ClientError.

    Inside Snowpark Container Services without a named connection, it logs in with the container's token.
    """
    if local:
        return connect_locally(port)
    if connection is None and is_inside_spcs():
        return connect_as_service(Settings())
    return open_user_session(connection)


def connect_locally(port: int) -> UserSession:
    """Connect to the server of `sql --serve`. Raises ClientError."""
    reach_loopback_directly()
    advice = "Start one: ext-classify sql --serve" + (f" --port {port}." if port != LOCAL_PORT else ".")
    try:  # the connector would try several times
        socket.create_connection((HOST, port), _ANSWER_SECONDS).close()
    except OSError as error:
        raise ClientError(
            f"There is no emulated Snowflake on port {port} ({error.strerror}). {advice}"
        ) from None
    return connect(
        advice=advice,
        account="local",
        user="LOCAL",
        password="any",  # noqa: S106 - the emulator accepts any password
        protocol="http",
        host=HOST,
        port=port,
        database=LOCAL_DATABASE,
        schema="PUBLIC",
    )


def local_service(port: int) -> str:
    """URL of the service that the emulator of `sql --serve` calls. Raises ClientError."""
    with connect_locally(port) as user_session:
        if has_integration(user_session, LOCAL_INTEGRATION):
            return allowed_prefixes(describe_integration(user_session, LOCAL_INTEGRATION))[0].rstrip("/")
    raise ClientError(f"The emulator on port {port} has no service of its own: name one with --url.")
