"""python -m tests.trials.service_functions: parallel batches of large photographs, by a service function.

The function is that of infra/snowflake/13_service_functions.sql, and the service has the variables of
infra/spcs/service.yaml. Each caller runs one query of one batch; all start at the same time. The emulator
counts failed tries and aborts queries as Snowpark Container Services does.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import snowflake.connector
import yaml
from PIL import Image
from snowflake.connector.errors import Error

from app.cli.service_process import own_service
from app.emulator import DATABASE, SCHEMA, LocalServer
from app.provisioning.ddl import load
from model.defaults import SAMPLES

SPECIFICATION = Path(__file__).parents[2] / "infra" / "spcs" / "service.yaml"
SIZE = (3000, 2000)
FUNCTION = "EXT_CLASSIFY"
QUERY = "SELECT ext_classify(file_url):label FROM DIRECTORY(@images)"
SERVICE = "CLASSIFIER_SERVICE"


class Called(NamedTuple):
    """The result of one batch."""

    seconds: float
    retries: int
    error: str


def write_photographs(folder: Path, count: int) -> None:
    """Copies of one photograph of 6 megapixels."""
    with Image.open(next(SAMPLES.glob("*.png"))) as sample:
        written = io.BytesIO()
        sample.convert("RGB").resize(SIZE).save(written, "JPEG", quality=90)
    for number in range(count):
        (folder / f"{number:03}.jpg").write_bytes(written.getvalue())


def service_environment(patience_seconds: float) -> dict[str, str]:
    """The variables of the service's specification, on this machine."""
    text = SPECIFICATION.read_text(encoding="utf-8").replace("{{ image }}", "image")
    [container] = yaml.safe_load(text)["spec"]["containers"]
    variables: dict[str, str] = container["env"]
    del variables["EXT_CLASSIFY_AUTH"]  # accepted inside a container only
    return variables | {"EXT_CLASSIFY_PATIENCE_SECONDS": str(patience_seconds)}


@contextmanager
def emulated(
    rows: int, callers: int, patience_seconds: float, max_batch_retries: int | None
) -> Iterator[LocalServer]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_photographs(folder, rows)
        server = stack.enter_context(LocalServer(concurrent_batches=callers))
        server.mount(folder)
        environment = server.service_environment | service_environment(patience_seconds)
        url, _ = stack.enter_context(own_service(environment=environment))
        server.run_service((DATABASE, SCHEMA, SERVICE), url)
        variables = {"database": DATABASE, "schema": SCHEMA, "function": FUNCTION, "service": SERVICE}
        with snowflake.connector.connect(**server.connect_arguments) as connection:
            for statement in load("13_service_functions.sql", variables | {"max_batch_rows": str(rows)}):
                connection.cursor().execute(statement)
            if max_batch_retries is not None:
                connection.cursor().execute(
                    f"ALTER FUNCTION {FUNCTION}(VARCHAR) SET MAX_BATCH_RETRIES = {max_batch_retries}"
                )
        yield server


def call(server: LocalServer) -> Called:
    started, error = time.perf_counter(), ""
    with snowflake.connector.connect(**server.connect_arguments) as connection:
        cursor = connection.cursor()
        try:
            answers = cursor.execute(QUERY).fetchall()
            assert all(label is not None for (label,) in answers)
        except Error as failure:
            error = str(failure.msg).rpartition(": ")[2]
        query = server.query(str(cursor.sfqid))
    return Called(time.perf_counter() - started, query.counts["retries"] if query else 0, error)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--callers", type=int, nargs="+", default=[1, 4, 8, 12])
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--patience", type=float, default=20.0, help="EXT_CLASSIFY_PATIENCE_SECONDS")
    parser.add_argument("--max-batch-retries", type=int, help="instead of those of the SQL file")
    options = parser.parse_args()
    with emulated(options.rows, max(options.callers), options.patience, options.max_batch_retries) as server:
        call(server)  # the service has measured the time of a row
        print("| callers | answered | aborted | failed tries of a batch, most | seconds, first to last |")
        print("| --- | --- | --- | --- | --- |")
        for callers in options.callers:
            with ThreadPoolExecutor(callers) as threads:
                called = list(threads.map(call, [server] * callers))
            aborted = [each for each in called if each.error]
            seconds = sorted(each.seconds for each in called)
            retries = max(each.retries for each in called)
            counts = f"{callers} | {callers - len(aborted)} | {len(aborted)} | {retries}"
            print(f"| {counts} | {seconds[0]:.1f} to {seconds[-1]:.1f} |", flush=True)
            for each in aborted[:1]:
                print(f"\nThe first error: {each.error}\n")


if __name__ == "__main__":
    main()
