"""The measuring itself, where it could silently lie: against servers of known behaviour."""

import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from PIL import Image

from tests.benchmarks import images
from tests.benchmarks.answers import AnswerCheck, WrongAnswer, labels_in
from tests.benchmarks.cells import FULL, NO_SERVERS, OURS, closed_loop
from tests.benchmarks.connection import Answer, AnswerReader
from tests.benchmarks.contenders import NETWORKS, Form, contenders
from tests.benchmarks.footprint import Memory, cpu_seconds, server_processes
from tests.benchmarks.goals import write_goals
from tests.benchmarks.growth import Growth, by_rows, modelled_rate, on_cores, require_cores
from tests.benchmarks.images import load_images
from tests.benchmarks.load import Job, Report, run_job
from tests.benchmarks.measurements import Measurement, Measurements, ratio, read_csv, write_csv
from tests.benchmarks.mixed import greatest_deviation
from tests.benchmarks.null_server import NullServer, Respond, canned_answer, respond, response
from tests.benchmarks.request_bodies import Requests, make_bodies
from tests.benchmarks.served import Mislabelled
from tests.benchmarks.servers import Server, suspended
from tests.benchmarks.serving import MOST_IDLE_CORES
from tests.benchmarks.serving_plots import COLOURS
from tests.benchmarks.serving_record import Footprint, LeftOut, Record, load, save
from tests.benchmarks.serving_tables import write_summary, write_tables
from tests.benchmarks.tables import RESULTS
from tests.benchmarks.window import ClosedWindow, quantile
from tests.running import wait_until

pytestmark = pytest.mark.slow

# Published rows of an earlier run, of graphs as Keras exports them.
FORMER = {f"{server} + onnxruntime" for server in ("LitServe", "BentoML", "PyTriton")}
FILES = [b"first", b"second", b"third"]
JOB = Job(port=0, path="/snowflake/1", form="snowflake", rows=1, seconds=0.3, warm_up_seconds=0.0)


def measured(job: Job, respond: Respond = respond, delay_seconds: float = 0.0) -> Report:
    """The report of a job at a server in the same loop."""

    async def run() -> Report:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: NullServer(respond, delay_seconds), "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            requests = iter(Requests(job.form, job.path, make_bodies(job.form, job.rows, FILES)))
            return await run_job(replace(job, port=port), requests)

    return asyncio.run(run())


def in_order(*answers: bytes) -> Callable[[str], bytes]:
    """One answer after the other, then the last one again and again."""
    left = list(answers)
    return lambda path: left.pop(0) if len(left) > 1 else left[0]


def test_closed_loop_counts_what_its_connections_were_answered() -> None:
    report = measured(replace(JOB, path="/snowflake/16", rows=16, connections=2), delay_seconds=0.05)
    assert report.images == 16 * report.requests
    assert report.requests % 2 == 0
    assert 50 <= (report.p50_ms or 0)
    assert report.images_per_second <= 2 * 16 / 0.05
    assert report.seconds >= 0.3
    assert not report.errors


def test_closed_loop_of_a_burst_gains_and_loses_no_wave() -> None:
    """Four connections answered together, every 50 ms: 80 a second, wherever the window begins."""
    times = iter([0.05 * wave for wave in range(1, 9) for _ in range(4)])
    clock = [0.0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.benchmarks.window.time.perf_counter", lambda: clock[0])
        window = ClosedWindow(4, 1, 0.1, 0.1, lambda: None)
        while not window.is_over:
            clock[0] = next(times) + 1e-9
            window.answered(0.05)
    assert window.tally.images / window.tally.seconds == pytest.approx(80)


def test_burst_of_old_answers_is_no_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    """One worker answers five connections every 3.3 seconds, another three every 0.55: 7 a second."""
    clock = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])
    answers = sorted(
        (turn + 1) * latency
        for latency, connections in ((3.3, 5), (0.55, 3))
        for turn in range(int(60 / latency))
        for _ in range(connections)
    )
    for warm_up_seconds in (0.1, 1.5, 2.2, 2.8, 3.0, 3.2):
        window = ClosedWindow(8, 1, warm_up_seconds, 0.5, lambda: None)
        window._started = 0.0  # noqa: SLF001 - as the clock begins
        for at in answers:
            clock[0] = at + 1e-9
            window.answered(3.3 if at % 3.3 < 1e-6 else 0.55)
            if window.is_over:
                break
        assert window.tally.images / window.tally.seconds == pytest.approx(5 / 3.3 + 3 / 0.55, rel=0.2)


def test_server_that_is_restless_is_told_and_suspended() -> None:
    """Its processes take a core while they run, and nothing while they are suspended."""
    spinning = "import os; os.fork()\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", spinning], start_new_session=True) as process:
        server = Server(contenders()[0], NETWORKS[0], 0, process, Path())
        try:
            wait_until(lambda: server.idle_cores() > MOST_IDLE_CORES)
            with suspended([server]):
                assert server.idle_cores() <= MOST_IDLE_CORES
            wait_until(lambda: server.idle_cores() > MOST_IDLE_CORES)
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def test_open_loop_counts_from_the_intended_start() -> None:
    """After one stall of 300 ms, the latency of requests meant to start meanwhile includes their wait."""
    stalled_until = [0.0]

    def stall_once(path: str) -> bytes:
        if not stalled_until[0]:
            stalled_until[0] = time.perf_counter() + 0.3
            time.sleep(0.3)
        return respond(path)

    report = measured(replace(JOB, requests_per_second=100.0, seconds=0.5), stall_once)
    assert (report.p99_ms or 0) > 250
    assert report.requests > 20
    assert (report.p50_ms or 0) > 20, "half of half a second's requests stood behind the stall"


def test_open_loop_sends_at_its_rate_although_the_server_is_slow() -> None:
    report = measured(replace(JOB, requests_per_second=100.0, seconds=0.5), delay_seconds=0.2)
    assert 25 < report.requests < 90
    assert (report.p50_ms or 0) >= 200


def test_refusal_is_counted_and_is_no_image() -> None:
    refusal = response(429, b"{}")
    report = measured(JOB, in_order(refusal, refusal, respond(JOB.path)))
    assert report.refusals == 2
    assert report.errors == {"429": 2}
    assert report.images == report.requests > 0


def test_server_that_only_fails_ends_the_job() -> None:
    report = measured(replace(JOB, connections=8), in_order(response(500, b"out of order")))
    assert report.images_per_second == 0
    assert report.refusals == 0
    assert set(report.errors) == {"500"}
    assert report.first_error == "500: out of order"


@pytest.mark.parametrize("rows", [1, 3])
def test_wrong_number_of_rows_is_an_error(rows: int) -> None:
    right = response(200, canned_answer("snowflake", 2))
    wrong = response(200, canned_answer("snowflake", rows))
    report = measured(replace(JOB, rows=2), in_order(right, wrong, right))
    assert report.errors == {"WrongAnswer": 1}


def test_row_that_failed_is_an_error_also_where_answers_are_only_counted() -> None:
    check = AnswerCheck("snowflake", 1)
    check.require_labels(b'{"data": [[0, {"label": "Patches", "error": null}]]}', whole=True)
    failed = b'{"data": [[0, {"label": null, "error": {"code": "corrupt_image"}}]]}'
    for whole in (True, False):
        with pytest.raises(WrongAnswer):
            check.require_labels(failed, whole=whole)


def test_rows_in_another_order_are_an_error() -> None:
    with pytest.raises(WrongAnswer, match="order"):
        labels_in("snowflake", b'{"data": [[1, "Patches"], [0, "Patches"]]}')


def test_labels_are_found_in_every_form() -> None:
    for form in get_args(Form):
        assert labels_in(form, canned_answer(form, 1)) == ["Scratches"]
    abstained = json.dumps({"label": None, "nearest_label": "Patches", "error": None}).encode()
    assert labels_in("image", abstained) == ["Patches"]


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 7\r\n\r\n",
        "Transfer-Encoding: chunked\r\n\r\n3\r\nimg\r\n4\r\n1234\r\n0\r\n\r\n",
        "\r\n",
    ],
)
def test_answer_is_read_in_whatever_pieces_it_comes(head: str) -> None:
    data = f"HTTP/1.1 200 OK\r\n{head}".encode() + (b"" if "chunked" in head else b"img1234")
    for size in (1, 5, len(data)):
        reader = AnswerReader()
        pieces = [reader.feed(data[begin : begin + size]) for begin in range(0, len(data), size)]
        found = [*filter(None, pieces), *filter(None, [reader.end()])]
        assert found == [Answer(200, b"img1234", keeps_open=head != "\r\n")]


def test_bodies_go_through_all_images_in_one_order() -> None:
    bodies = [json.loads(body)["data"] for body in make_bodies("snowflake", 2, FILES)]
    assert [number for number, _ in bodies[0]] == [0, 1]
    assert len({text for body in bodies for _, text in body}) == len(FILES)
    assert make_bodies("image", 1, FILES) == FILES


def test_record_is_kept_and_joined_with_another(tmp_path: Path) -> None:
    memory = Memory(1.5, 1.0, 2.0)
    record = Record(
        "a machine",
        Measurements([measurement(OURS, 0, 123.0)]),
        [Footprint("net", OURS, "1.0", (0.5, 0.75), memory, memory)],
        [LeftOut("net", "peer", "it does not start")],
        {"net": 2.0},
    )
    save(record, tmp_path / "new" / "net.json")
    kept = load(tmp_path / "new" / "net.json")
    assert kept == record
    assert load(tmp_path / "other.json") is None
    joined = Record("a machine")
    joined.add(record)
    assert joined == record


def test_every_snowflake_request_has_a_batch_id_of_its_own() -> None:
    requests = iter(Requests("snowflake", "/classify", [b"{}"]))
    heads = [next(requests).head for _ in range(3)]
    assert len(set(heads)) == 3
    assert all(b"sf-external-function-query-batch-id: " in head for head in heads)


def measurement(contender: str, turn: int, rate: float) -> Measurement:
    return Measurement("net", contender, "snowflake", 64, "8 connections", turn, rate)


def test_ratio_is_formed_within_rounds() -> None:
    """The neighbour that halved both in the second round changes nothing; a lone round is left out."""
    cell = closed_loop("snowflake", 64, 8)
    pairs = [(OURS, 0, 200.0), ("peer", 0, 100.0), (OURS, 1, 100.0), ("peer", 1, 50.0), (OURS, 2, 900.0)]
    measurements = Measurements([measurement(*pair) for pair in pairs])
    ours, peer = (measurements.by_round("net", name, cell) for name in (OURS, "peer"))
    assert ratio(ours, peer) == 2.0
    assert ratio(ours, {}) is None


def test_server_is_judged_at_the_load_that_suits_it() -> None:
    few, many = closed_loop("snowflake", 64, 1), closed_loop("snowflake", 64, 8)
    slow = [measurement(OURS, turn, 100.0)._replace(load=few.load) for turn in range(3)]
    fast = [measurement(OURS, turn, 150.0) for turn in range(3)]
    assert Measurements(slow + fast).best("net", OURS, [few, many]) == many


def test_measurements_survive_the_table(tmp_path: Path) -> None:
    written = Measurements([measurement(OURS, 0, 1000 / 3)._replace(p50_ms=1.5, first_error="500: a, b")])
    file = io.StringIO()
    write_csv(written, file, "a machine")
    path = tmp_path / "cells.csv"
    path.write_text(file.getvalue(), encoding="utf-8")
    read, about = read_csv(path)
    assert (read.measured, about) == (written.measured, "a machine")


def test_quantile_is_a_value_that_was_measured() -> None:
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([float(i) for i in range(1, 101)], 0.99) == 99.0
    assert quantile([], 0.5) is None


def test_slope_is_held_against_the_median() -> None:
    assert greatest_deviation({(1, 2): 1.0, (2, 3): 1.0, (3, 4): 1.2}) == pytest.approx(0.2)


def test_cpu_time_is_that_of_all_processes_of_the_server() -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass\nprint(flush=True)\ntime.sleep(30)"
    parent = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {spin!r}])"
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdout=subprocess.PIPE, start_new_session=True
    ) as server:
        assert server.stdout is not None
        server.stdout.readline()
        pids = server_processes(server.pid)
        spent = cpu_seconds(pids)
        os.killpg(server.pid, 9)
    assert len(pids) == 2
    assert spent >= 0.2  # /proc counts in ticks


def test_every_server_has_a_colour_and_so_is_drawn() -> None:
    assert {contender.name for contender in contenders()} <= COLOURS.keys()


@pytest.mark.parametrize(
    ("kind", "file_format", "mode", "size"),
    [
        ("png", "PNG", "L", (200, 200)),
        ("jpeg", "JPEG", "L", (200, 200)),
        ("jpeg-400x300", "JPEG", "RGB", (400, 300)),
        ("jpeg-1600x1200", "JPEG", "RGB", (1600, 1200)),
        ("jpeg-4000x3000", "JPEG", "RGB", (4000, 3000)),
        ("png-1600x1200", "PNG", "L", (1600, 1200)),
        ("tiff-2048x1536", "TIFF", "I;16", (2048, 1536)),
    ],
)
def test_images_are_of_the_kind_that_is_asked_for(
    kind: str, file_format: str, mode: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "CAMERA_IMAGES", 2)
    files = load_images(kind).files
    assert len(set(files)) > 1
    with Image.open(io.BytesIO(files[0])) as image:
        assert (image.format, image.mode, image.size) == (file_format, mode, size)


def test_no_cell_is_measured_twice() -> None:
    cells = [cell for group in FULL for cell in group.cells]
    assert len(set(cells)) == len(cells)


@pytest.mark.parametrize("folder", [RESULTS, RESULTS / "readme"], ids=lambda folder: folder.name)
def test_published_tables_are_those_of_the_published_cells(folder: Path, tmp_path: Path) -> None:
    """Of the servers that are measured, and of no others: a row without cells has nothing behind it."""
    measurements, about = read_csv(folder / "serving_cells.csv")
    known = {contender.name for contender in contenders()} | NO_SERVERS | FORMER
    assert {m.contender for m in measurements.measured} <= known
    peaks = dict.fromkeys(measurements.networks, 0.0)
    record = Record(about, measurements, peak_rss_mb=peaks)
    write_tables(record, tmp_path)
    write_goals(record, tmp_path)
    # Memory and starts are no cells.
    published = {path.name for path in folder.glob("serving_*.md")} - {
        "serving_footprint.md",
        "serving_summary.md",
        "serving_rows.md",
    }
    assert published
    for name in published:
        made, kept = (
            (place / name).read_text(encoding="utf-8").splitlines()[1:] for place in (tmp_path, folder)
        )
        # Start and memory are goals too.
        assert set(made) <= set(kept) if name == "serving_goals.md" else kept == made


def test_summary_has_our_ratio_to_each_server_of_the_same_round(tmp_path: Path) -> None:
    """A lone fast round and what only one of them did change nothing; more is better of rates alone."""
    rates = {OURS: (300.0, 150.0), "peer": (200.0, 100.0)}
    rounds = [
        measurement(name, turn, rate)._replace(p50_ms=6400 / rate, load="1 connection")
        for name, of_rounds in rates.items()
        for turn, rate in enumerate(of_rounds)
    ]
    footprints = [
        Footprint("net", name, "1.0", starts, Memory(0, pss, 0), Memory(0, 0, 0))
        for name, starts, pss in ((OURS, (1.0, 2.0), 100.0), ("peer", (2.0, 4.0), 125.0))
    ]
    write_summary(Record("a machine", Measurements(rounds), footprints), tmp_path)
    rows = (tmp_path / "serving_summary.md").read_text(encoding="utf-8").splitlines()[2:]
    cells = {row.split(" | ")[1]: row.strip("| ").split(" | ")[2:] for row in rows}
    assert cells[""] == [OURS, "peer"]
    assert cells["images/s, 64 rows"] == ["225", "150 (1.50x)"]
    assert cells["images/s, 1 row"] == ["–", "–"]
    assert cells["p50 alone, 64 rows, ms"] == ["32.0", "48.0 (0.67x)"]
    assert cells["memory when ready (PSS), MB"] == ["100", "125 (0.80x)"]
    assert cells["start to first label, s"] == ["1.5", "3.0 (0.50x)"]


def test_published_footprints_are_of_servers_that_have_cells() -> None:
    measured = {m.contender for m in read_csv(RESULTS / "serving_cells.csv")[0].measured}
    rows = (RESULTS / "serving_footprint.md").read_text(encoding="utf-8").splitlines()[4:]
    named = {re.sub(r" [0-9.]+( \+ [0-9.]+)?$|: .*", "", row.split(" | ")[1]) for row in rows}
    assert named <= measured


def growth_of(points: dict[float, tuple[float, ...]]) -> tuple[Growth, Measurements]:
    """Milliseconds a request in each round, by rows."""
    growth = by_rows([int(rows) for rows in points], 1)
    rounds = [
        Measurement(
            point.network.name, OURS, "snowflake", point.cell.rows, point.cell.load, turn, 1.0, p50_ms=ms
        )
        for point in growth.points
        for turn, ms in enumerate(points[point.x])
    ]
    return growth, Measurements(rounds)


def test_slope_is_that_of_each_rounds_line_from_16_rows() -> None:
    """A row alone lies off the line; a round with one point has no line."""
    growth, measurements = growth_of(
        {1: (50.0,), 16: (18.0, 36.0), 64: (66.0, 132.0), 1024: (1026.0, 2052.0, 9.0)}
    )
    lines = growth.lines(measurements, OURS)
    assert lines == {0: pytest.approx((1.0, 2.0)), 1: pytest.approx((2.0, 4.0))}


def test_more_cores_speed_up_until_the_first_process_is_the_limit() -> None:
    assert [modelled_rate(2.0, 0.25, cores) for cores in (1, 2, 4, 8)] == [500, 1000, 2000, 2000]
    assert modelled_rate(2.0, 0.0, 8) == 4000


def test_each_server_gets_a_worker_on_each_of_its_cores() -> None:
    for contender in contenders():
        pinned = on_cores(contender, NETWORKS[0], 1)
        assert pinned.template[:3] == ("taskset", "-c", str(min(os.sched_getaffinity(0))))
        assert pinned.workers(NETWORKS[0]) == 1


def test_server_on_other_cores_is_no_contender() -> None:
    cores = len(os.sched_getaffinity(0))
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        server = Server(contenders()[0], NETWORKS[0], 0, process, Path())
        require_cores(server, cores)
        os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
        if cores > 1:
            with pytest.raises(Mislabelled):
                require_cores(server, cores)
        process.communicate(b"\n")
