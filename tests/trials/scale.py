"""python -m tests.trials.scale: three replicas behind nginx, with Redis, through failures and restarts.

50,000 rows in ten statements by `ext-classify sql --chaos`, during which a replica is killed, one is drained,
Redis restarts and nginx reloads its configuration. Every row must be answered once, with the same outcome.
"""

import argparse
import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

from app.client import is_ready
from tests.benchmarks.images import as_jpeg, load_images
from tests.running import CLI, free_port, wait_until
from tests.trials.scale_report import Event, Query, write_report

ROOT = Path(__file__).parents[2]
REPLICAS = 3
IMAGES = 100
STATEMENT_ROWS = 5000
# When a share of the rows has been answered.
KILL_AT, DRAIN_AT, REDIS_AT, RELOAD_AT = 0.15, 0.35, 0.55, 0.75
DOWN_SECONDS = 3.0


@dataclass
class Plant:
    """What is running, and where."""

    folder: Path
    redis_port: int = field(default_factory=free_port)
    nginx_port: int = field(default_factory=free_port)
    replica_ports: list[int] = field(default_factory=lambda: [free_port() for _ in range(REPLICAS)])
    running: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.nginx_port}"

    @property
    def access_log(self) -> Path:
        return self.folder / "access.log"

    def start_redis(self) -> None:
        command = ["redis-server", "--port", str(self.redis_port), "--bind", "127.0.0.1", "--save", ""]
        self._start("redis", [*command, "--loglevel", "warning"])

    def start_replica(self, number: int) -> None:
        port = self.replica_ports[number]
        variables = {
            "EXT_CLASSIFY_REDIS_URL": f"redis://127.0.0.1:{self.redis_port}/0",
            "EXT_CLASSIFY_LOG_LEVEL": "warning",
        }
        self._start(f"replica {number}", [*CLI, "serve", "--port", str(port)], variables)

    def start_nginx(self) -> None:
        """The shipped configuration of nginx, on other ports."""
        shipped = (ROOT / "infra" / "nginx" / "nginx.conf").read_text(encoding="utf-8")
        ours = shipped.replace("listen 8080;", f"listen 127.0.0.1:{self.nginx_port};")
        ours = ours.replace("access_log /dev/stdout", f"access_log {self.access_log}")
        (self.folder / "nginx.conf").write_text(ours, encoding="utf-8")
        servers = (f"server 127.0.0.1:{port} max_fails=3 fail_timeout=10s;\n" for port in self.replica_ports)
        (self.folder / "upstreams.conf").write_text("".join(servers), encoding="utf-8")
        nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        configuration = str(self.folder / "nginx.conf")
        self._start("nginx", [nginx, "-p", str(self.folder), "-c", configuration, "-g", "daemon off;"])

    def is_replica_ready(self, number: int) -> bool:
        return is_ready(f"http://127.0.0.1:{self.replica_ports[number]}")

    def end(self, name: str, number: int = signal.SIGTERM) -> int:
        """Its exit code."""
        self.running[name].send_signal(number)
        return self.running[name].wait(60)

    def _start(self, name: str, command: Sequence[str], variables: dict[str, str] | None = None) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self.running[name] = subprocess.Popen(
                command, env=os.environ | (variables or {}), stdout=log, stderr=log
            )

    def answered_batches(self) -> int:
        return sum(1 for line in self.log_lines() if line["status"] == 200)

    def log_lines(self) -> Iterator[dict[str, object]]:
        for line in self.access_log.read_text(encoding="utf-8").splitlines():
            if line.endswith("}"):  # the last may be on its way
                yield json.loads(line)


@contextmanager
def running_plant() -> Iterator[Plant]:
    with ExitStack() as stack:
        plant = Plant(Path(stack.enter_context(TemporaryDirectory())))
        stack.callback(lambda: [process.kill() for process in plant.running.values()])
        plant.start_redis()
        for number in range(REPLICAS):
            plant.start_replica(number)
        plant.start_nginx()
        wait_until(lambda: all(map(plant.is_replica_ready, range(REPLICAS))))
        wait_until(lambda: is_ready(plant.url))
        yield plant


def befall(plant: Plant, batches: int, events: list[Event]) -> None:
    """Run the events in order, each once its share of the batches has been answered."""

    def wait_for(share: float) -> None:
        while plant.answered_batches() < share * batches:
            time.sleep(0.2)

    def note(text: str) -> None:
        events.append(Event(time.time(), text))
        print(f"  {text}", file=sys.stderr, flush=True)

    wait_for(KILL_AT)
    plant.end("replica 0", signal.SIGKILL)
    note("replica 0 killed")
    time.sleep(DOWN_SECONDS)
    plant.start_replica(0)
    wait_until(lambda: plant.is_replica_ready(0))
    note("replica 0 back")

    wait_for(DRAIN_AT)
    note("replica 1 drained")
    assert plant.end("replica 1") == 0, "a replica that is stopped must exit with 0"
    plant.start_replica(1)
    wait_until(lambda: plant.is_replica_ready(1))
    note("replica 1 back")

    wait_for(REDIS_AT)
    plant.end("redis")
    note("Redis gone")
    time.sleep(DOWN_SECONDS)
    plant.start_redis()
    note("Redis back, empty")

    wait_for(RELOAD_AT)
    plant.running["nginx"].send_signal(signal.SIGHUP)
    note("nginx reloaded")


def statements(images: Sequence[bytes], rows: int) -> str:
    texts = [base64.b64encode(image).decode() for image in images]
    inserted = "".join(f"INSERT INTO photos VALUES ({n}, '{text}');\n" for n, text in enumerate(texts))  # noqa: S608
    return (
        f"CREATE TABLE photos (id NUMBER, image VARCHAR);\n{inserted}"  # noqa: S608
        "CREATE TABLE answers (id NUMBER, number NUMBER, answer VARIANT);\n"
        f"{''.join(_ask_for(start, len(images)) for start in range(0, rows, STATEMENT_ROWS))}"
        "SELECT id, COUNT(*) AS answered, COUNT(DISTINCT number) AS numbers, "
        "COUNT(DISTINCT answer::string) AS outcomes, MIN(answer:label::string) AS label, "
        "COUNT(answer:error:code::string) AS failed FROM answers GROUP BY id ORDER BY id;\n"
    )


def _ask_for(start: int, images: int) -> str:
    """A statement's rows: few enough, as the emulator's client resends a statement after a minute or two."""
    first, times = start // images, STATEMENT_ROWS // images
    return (
        "INSERT INTO answers SELECT id, number, ext_classify(image) FROM photos CROSS JOIN "  # noqa: S608
        f"(SELECT {first} + seq4() AS number FROM TABLE(GENERATOR(ROWCOUNT => {times})));\n"
    )


def ask(plant: Plant, images: Sequence[bytes], rows: int) -> tuple[list[dict[str, object]], str]:
    """The last statement's rows, and the client's counts of calls, retries and polls."""
    command = [*CLI, "sql", "--chaos", "--json", "--url", plant.url]
    asked = subprocess.run(
        command, input=statements(images, rows), capture_output=True, text=True, check=False, timeout=1800
    )
    assert asked.returncode == 0, asked.stderr[-2000:]
    answered = [json.loads(line) for line in asked.stdout.splitlines() if '"ANSWERED"' in line]
    calls: Counter[str] = Counter()
    for line in re.findall(r"\((\d+ rows to the service in .*)\)", asked.stderr):
        calls.update({what: int(count) for count, what in re.findall(r"(\d+) ([a-z]{2,})", line)})
    return answered, ", ".join(f"{count:,} {what}" for what, count in calls.items())


def check(answered: Sequence[dict[str, object]], images: int, rows: int) -> None:
    """Every row once, and each image's outcome the same wherever and whenever it was classified."""
    assert len(answered) == images
    for row in answered:
        assert row["ANSWERED"] == row["NUMBERS"] == rows // images, row
        assert (row["OUTCOMES"], row["FAILED"]) == (1, 0), row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    options = parser.parse_args()
    loaded = load_images()
    images = as_jpeg(loaded.files[:IMAGES])
    batch_rows = 4  # of `sql --chaos`
    events: list[Event] = []
    with running_plant() as plant:
        threads = ThreadPoolExecutor(1)
        befalling = threads.submit(befall, plant, options.rows // batch_rows, events)
        began = time.time()
        answered, calls = ask(plant, images, options.rows)
        seconds = time.time() - began
        befalling.result(60)  # every event has happened and had an effect
        lines = [line for line in plant.log_lines() if "/classify" in str(line["request"])]
    check(answered, len(images), options.rows)
    statuses = Counter(str(line["status"]) for line in lines)
    moments = [(str(line["time"]), batch_rows) for line in lines if line["status"] == 200]
    print(f"{options.rows} rows of {loaded.description}: each answered once, each image always alike")
    write_report(Query(options.rows, seconds, calls, statuses, moments), events)


if __name__ == "__main__":
    main()
