"""python -m tests.trials.fairness: two API keys, one of which floods the service, and the latency of each."""

import argparse
import asyncio
import tempfile
import time
from collections import Counter
from functools import cache
from pathlib import Path

import uvloop

from app.api.auth import line_of, make_key
from tests.benchmarks.connection import Connection
from tests.benchmarks.contenders import Form
from tests.benchmarks.images import load_images
from tests.benchmarks.request_bodies import Request, Requests, make_bodies
from tests.benchmarks.window import quantile
from tests.running import running_service

QUIET_PAUSE_SECONDS = 0.05
# The noisy client ignores Retry-After.
NOISY_PAUSE_SECONDS = 0.005
NOISY_FORMS: tuple[tuple[Form, int], ...] = (("image", 1), ("snowflake", 64), ("snowflake", 1024))


@cache
def _images() -> list[bytes]:
    return list(load_images().files[:16])


class Client:
    """Sends single images or batches with one API key, one after another on each connection."""

    def __init__(self, port: int, key: str, form: Form = "image", rows: int = 1) -> None:
        self._port = port
        self._key = f"X-Api-Key: {key}\r\n\r\n".encode()
        self._requests = iter(Requests(form, "/classify", make_bodies(form, rows, _images())))
        self.statuses: Counter[int] = Counter()
        self.answer_ms: list[float] = []

    async def send(
        self, seconds: float, connections: int = 1, pause_seconds: float = QUIET_PAUSE_SECONDS
    ) -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(*(self._keep_sending(pause_seconds, until) for _ in range(connections)))

    async def _keep_sending(self, pause_seconds: float, until: float) -> None:
        connection = Connection(self._port)
        while time.perf_counter() < until:
            began = time.perf_counter()
            answer = await connection.ask(self._with_key(next(self._requests)))
            self.statuses[answer.status] += 1
            if answer.status == 200:
                self.answer_ms.append((time.perf_counter() - began) * 1000)
            await asyncio.sleep(pause_seconds)
        connection.close()

    def _with_key(self, request: Request) -> Request:
        return Request(request.head.removesuffix(b"\r\n") + self._key, request.body)


def describe(what: str, client: Client) -> str:
    times = sorted(client.answer_ms)
    p50, p99 = (quantile(times, share) for share in (0.5, 0.99))
    return f"| {what} | {dict(sorted(client.statuses.items()))} | {p50 or 0:.1f} | {p99 or 0:.1f} |"


async def compare(port: int, keys: dict[str, str], seconds: float, connections: int) -> None:
    print("| quiet client: a single image every 50 ms, beside | statuses | ms, p50 | ms, p99 |")
    print("| --- | --- | --- | --- |")
    alone = Client(port, keys["quiet"])
    await alone.send(seconds)
    print(describe("nobody", alone))
    for form, rows in NOISY_FORMS:
        for of_key in ("noisy", "quiet"):
            quiet, noisy = Client(port, keys["quiet"]), Client(port, keys[of_key], form, rows)
            await asyncio.gather(quiet.send(seconds), noisy.send(seconds, connections, NOISY_PAUSE_SECONDS))
            load = f"{connections} connections, {form} of {rows}, "
            print(describe(load + ("another key" if of_key == "noisy" else "the same key"), quiet))
            print(describe("&nbsp; that load itself", noisy))


def make_keys(folder: Path) -> tuple[dict[str, str], Path]:
    keys = {name: make_key() for name in ("quiet", "noisy")}
    path = folder / "keys"
    path.write_text("".join(f"{line_of(name, key)}\n" for name, key in keys.items()), encoding="utf-8")
    return keys, path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=24)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        keys, path = make_keys(Path(folder))
        settings = {"EXT_CLASSIFY_AUTH": "api_key", "EXT_CLASSIFY_API_KEYS_FILE": str(path)}
        with running_service(**settings) as url:
            port = int(url.rpartition(":")[2])
            uvloop.run(compare(port, keys, options.seconds, options.connections))


if __name__ == "__main__":
    main()
