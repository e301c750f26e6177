"""How the image starts, answers, shuts down, and fails to start."""

import asyncio
import base64
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from PIL import Image

from app.client import is_ready
from app.names import BATCH_ID_HEADER
from model.defaults import DEFAULT_MODEL_PATH
from tests.benchmarks.connection import Connection, ConnectionLost
from tests.conftest import SAMPLES
from tests.container.engine import Container, run_engine, run_in_image, run_to_its_end, running_container
from tests.running import exchange, wait_until
from tests.trials.caller import make_batches, post_of

RECIPE = DEFAULT_MODEL_PATH.with_name("metal_defects_final.h5")
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    with running_container() as container:
        yield container


def test_all_forms_of_request_are_answered(container: Container, sample: bytes) -> None:
    raw = exchange(container.port, "POST", "/classify", sample, {"Content-Type": "image/png"})
    assert json.loads(raw.body)["label"] == "Scratches"

    rows = {"data": [[0, base64.b64encode(sample).decode()], [1, "no image"], [2, None]]}
    headers = JSON | {BATCH_ID_HEADER: "batch"}
    batch = exchange(container.port, "POST", "/classify", json.dumps(rows).encode(), headers)
    [(_, first), (_, second), (_, third)] = json.loads(batch.body)["data"]
    assert (first["label"], second["error"]["code"], third) == ("Scratches", "invalid_base64", None)

    head = b'--b\r\nContent-Disposition: form-data; name="f"; filename="a.png"\r\n\r\n'
    form = head + sample + b"\r\n--b--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    [result] = json.loads(exchange(container.port, "POST", "/classify", form, headers).body)["results"]
    assert (result["filename"], result["label"]) == ("a.png", "Scratches")


def test_service_is_the_first_process_and_may_do_nothing(container: Container) -> None:
    status = dict(line.split(":\t", 1) for line in container.run("cat", "/proc/1/status").splitlines())
    assert status["Name"] == "ext-classify"
    assert status["Uid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"


def test_only_tmp_can_be_written_to(container: Container) -> None:
    tried = "for folder in / /opt/ext-classify /var /etc /home /tmp; do touch $folder/x && echo $folder; done"
    assert container.run("sh", "-c", f"({tried}) 2> /dev/null; true").split() == ["/tmp"]  # noqa: S108


def test_memory_is_bounded_as_the_engine_was_told(container: Container) -> None:
    files = "/sys/fs/cgroup/memory.max /sys/fs/cgroup/memory/memory.limit_in_bytes"
    assert container.run("sh", "-c", f"cat {files} 2> /dev/null; true").strip() == str(1024**3)


def test_images_that_take_all_memory_cost_no_row_beside_them() -> None:
    """The kernel kills the classifier process, not the one that answers HTTP."""
    file = BytesIO()
    Image.new("RGBA", (4000, 4000)).save(file, "PNG")
    large, small = file.getvalue(), (SAMPLES / "pitted.png").read_bytes()
    texts = [base64.b64encode(image).decode() for image in (large, small)]
    body = json.dumps({"data": [[number, texts[number % 2]] for number in range(8)]}).encode()
    with running_container("--memory=160m", "--memory-swap=160m") as container:
        answer = exchange(container.port, "POST", "/classify", body, JSON)
        outcomes = [outcome for _, outcome in json.loads(answer.body)["data"]]
        assert [outcome["label"] for outcome in outcomes[1::2]] == ["Pitted"] * 4
        assert "classifier_died" in {(outcome["error"] or {}).get("code") for outcome in outcomes[::2]}
        wait_until(lambda: is_ready(container.url))


def test_health_check_tells_a_service_that_is_ready_from_one_that_is_not(container: Container) -> None:
    assert container.run("python3", "-m", "app.server.probe") == ""
    at_another_port = f"EXT_CLASSIFY_PORT={container.port + 1}"
    probed = run_engine(
        "exec", "--env", at_another_port, container.name, "python3", "-m", "app.server.probe", check=False
    )
    assert probed.returncode == 1


def test_stop_under_load_loses_nothing_that_was_accepted(sample: bytes) -> None:
    batches = list(make_batches([sample], rows=8, count=4000))
    with running_container() as container:
        outcomes = asyncio.run(load_and_stop(container, [post_of(batch) for batch in batches]))
        assert container.exit_code == 0
        assert '"event":"stopping"' in container.log()
    assert outcomes["200"] > 20
    assert set(outcomes) == {"200"}, outcomes


async def load_and_stop(container: Container, requests: list[object]) -> Counter[str]:
    outcomes: Counter[str] = Counter()

    async def load(mine: list[object]) -> None:
        connection = Connection(container.port)
        for request in mine:
            try:
                answer = await connection.ask(request)  # type: ignore[arg-type]
            except ConnectionRefusedError:
                return
            except (OSError, ConnectionLost):
                outcomes["cut off"] += 1
                connection.close()
            else:
                outcomes[str(answer.status)] += 1

    async def stop() -> None:
        await asyncio.sleep(1)
        await asyncio.to_thread(container.stop)

    await asyncio.gather(stop(), *(load(requests[n::4]) for n in range(4)))
    return outcomes


def test_second_signal_hastens_the_end() -> None:
    with running_container(EXT_CLASSIFY_STOP_DELAY_SECONDS="60") as container:
        began = time.monotonic()
        run_engine("kill", "--signal=TERM", container.name)
        time.sleep(0.5)
        run_engine("kill", "--signal=TERM", container.name)
        wait_until(lambda: "Finished server process" in container.log())
        assert time.monotonic() - began < 30
        wait_until(lambda: container.exit_code == 0)


def volume_of(h5_path: Path, folder: Path) -> str:
    """A folder of a network's files that the container's user may read."""
    for file in h5_path.parent.glob(f"{h5_path.stem}.*"):
        Path(shutil.copy(file, folder)).chmod(0o644)
    folder.chmod(0o755)
    return f"--volume={folder}:/model:ro"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Not below pytest's folder, which other users cannot read."""
    with TemporaryDirectory() as folder:
        yield Path(folder)


def test_network_of_ones_own_comes_by_a_volume(folder: Path, sample: bytes) -> None:
    with running_container(
        volume_of(RECIPE, folder), EXT_CLASSIFY_MODEL_PATH=f"/model/{RECIPE.name}"
    ) as container:
        answer = exchange(container.port, "POST", "/classify", sample, {"Content-Type": "image/png"})
        assert json.loads(answer.body)["model"]["name"] == RECIPE.stem


def other_weights(h5_path: Path) -> None:
    h5_path.write_bytes(h5_path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_weights, "must have the sha256 that its card names"),
        (lambda h5_path: h5_path.with_suffix(".json").unlink(), "Missing: /model/steel_defects.json"),
        (Path.unlink, "Missing: /model/steel_defects.h5"),
        (lambda h5_path: h5_path.chmod(0o600), "steel_defects.h5 must be readable by the user 10001"),
        (lambda h5_path: h5_path.parent.chmod(0o700), "steel_defects.h5 must be readable by the user 10001"),
        (
            lambda h5_path: h5_path.with_suffix(".tflite").chmod(0o600),
            "steel_defects.tflite must be readable by the user 10001",
        ),
    ],
)
def test_wrong_network_ends_the_start_with_a_line_that_says_so(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    volume = volume_of(DEFAULT_MODEL_PATH, folder)
    spoil(folder / DEFAULT_MODEL_PATH.name)
    ran = run_to_its_end(
        volume, EXT_CLASSIFY_AUTH="none", EXT_CLASSIFY_MODEL_PATH=f"/model/{DEFAULT_MODEL_PATH.name}"
    )
    assert ran.returncode == 1
    assert "Traceback" not in ran.stderr
    assert message in ran.stderr.splitlines()[-1]


def test_without_a_word_on_who_may_call_it_does_not_listen() -> None:
    ran = run_to_its_end("--env=EXT_CLASSIFY_HOST=0.0.0.0")
    assert ran.returncode == 1
    assert "AUTH must be api_key, jwt, spcs or none" in ran.stderr


def test_compiled_packages_work_without_their_symbols() -> None:
    modules = (
        "aiohttp, cryptography.fernet, kornia_rs.io, numpy.linalg, PIL.Image, snowflake.connector, uvloop"
    )
    program = f"import {modules}; print(1)"
    assert run_in_image(f"python3 -c '{program}'") == "1\n"
