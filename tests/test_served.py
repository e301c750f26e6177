"""A benchmark measures nothing that is not what its label says, and every label says what is served."""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import pytest

from model.artifact import load_artifact
from model.networks.keras_model import load_network
from tests.benchmarks import contenders as labels
from tests.benchmarks import served, tune_peers
from tests.benchmarks.contenders import (
    NETWORKS,
    PEERS,
    Contender,
    Network,
    contenders,
    ext_classify,
    published_recipe,
)
from tests.benchmarks.engine_limit import engine_labels
from tests.benchmarks.images import ImageSet
from tests.benchmarks.load_process import LoadProcess
from tests.benchmarks.networks import quantise, require_weights
from tests.benchmarks.served import Mislabelled, NotServing, Served, labelled, require_label, sha256_of
from tests.benchmarks.servers import Server, answering
from tests.benchmarks.tune_peers import GRIDS
from tests.conftest import SAMPLES

pytestmark = pytest.mark.slow

RECIPE, STEEL = NETWORKS
IMAGE = (SAMPLES / "scratches.png").read_bytes()
# Written out, and not by the code under test: the engine that each label names, and the file that it takes.
FILES = {
    "FastAPI + TensorFlow": ("tensorflow", ".h5"),
    "FastAPI + onnxruntime": ("onnxruntime", ".onnx"),
    "FastAPI + onnxruntime (rewritten)": ("onnxruntime", ".rewritten.onnx"),
    "FastAPI + OpenVINO": ("openvino", ".rewritten.onnx"),
    "FastAPI + LiteRT": ("litert", ".tflite"),
    "FastAPI + LiteRT (our decoder)": ("litert", ".tflite"),
    "LitServe + onnxruntime (rewritten)": ("onnxruntime", ".rewritten.onnx"),
    "BentoML + onnxruntime (rewritten)": ("onnxruntime", ".rewritten.onnx"),
    "PyTriton + onnxruntime (rewritten)": ("onnxruntime", ".rewritten.onnx"),
    "published recipe": ("tensorflow", ".h5"),
    "ext-classify": ("litert", ".h5"),
}


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand-ins for the graphs that `make bench-serving` exports."""
    monkeypatch.setattr(labels, "ONNX", tmp_path)
    for network in NETWORKS:
        (tmp_path / f"{network.name}.onnx").write_bytes(b"as exported")
        (tmp_path / f"{network.name}.rewritten.onnx").write_bytes(b"rewritten")


@pytest.mark.usefixtures("exported")
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
@pytest.mark.parametrize("contender", contenders(), ids=lambda contender: contender.name)
def test_contender_is_given_the_file_that_its_label_names(contender: Contender, network: Network) -> None:
    engine, suffix = FILES[contender.name]
    wanted = labelled(contender, network)
    assert (wanted.engine, wanted.file) == (engine, network.name + suffix)
    if contender.model_page:
        assert str(network.h5) in contender.command(network, 1)
    else:
        given = Path(contender.environment(network, 1)["MODEL_PATH"])
        assert given.name == network.name + suffix
        assert sha256_of(given) == wanted.sha256


def test_every_label_is_checked_and_every_peer_is_tuned_but_the_plain_ones() -> None:
    names = {contender.name for contender in contenders()}
    assert names == FILES.keys()
    plain = {"FastAPI + LiteRT", "FastAPI + LiteRT (our decoder)", "published recipe"}
    assert names - GRIDS.keys() == {"ext-classify", *plain}


PEER = next(contender for contender in contenders() if contender.name == "FastAPI + TensorFlow")
RIGHT = labelled(PEER, STEEL)
WRONG = {
    "engine": RIGHT._replace(engine="onnxruntime"),
    "file": RIGHT._replace(file="steel_defects.onnx"),
    "content": RIGHT._replace(sha256="0" * 64),
    "version": RIGHT._replace(version="0.1 + 0.2"),
}


def log_of(folder: Path, *reports: Served) -> Path:
    """As peers write it, among what their frameworks write."""
    log = folder / "log"
    lines = [f"INFO: starting\nSERVED {labels_json(report)}\n" for report in reports]
    log.write_text("".join(lines) + "INFO: ready\n", encoding="utf-8")
    return log


def labels_json(report: Served) -> str:
    return "{" + ", ".join(f'"{name}": "{value}"' for name, value in report._asdict().items()) + "}"


def test_peer_that_serves_what_its_label_says_is_accepted(tmp_path: Path) -> None:
    require_label(PEER, STEEL, 0, log_of(tmp_path, RIGHT, RIGHT))


@pytest.mark.parametrize("wrong", WRONG)
def test_peer_that_serves_something_else_is_refused(wrong: str, tmp_path: Path) -> None:
    log = log_of(tmp_path, WRONG[wrong], WRONG[wrong])
    with pytest.raises(Mislabelled, match=r"'FastAPI \+ TensorFlow' must serve .* It reports: "):
        require_label(PEER, STEEL, 0, log)


def test_one_worker_of_two_that_serves_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Mislabelled):
        require_label(PEER, STEEL, 0, log_of(tmp_path, RIGHT, WRONG["engine"]))


def test_worker_that_reports_nothing_is_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "REPORT_TIMEOUT_SECONDS", 0.0)
    with pytest.raises(NotServing, match="1 of 2 workers"):
        require_label(PEER, STEEL, 0, log_of(tmp_path, RIGHT))


@pytest.mark.usefixtures("exported")
@pytest.mark.parametrize("engine", ["onnxruntime (rewritten)", "OpenVINO"])
def test_rewritten_graph_that_is_the_exported_one_is_refused(engine: str) -> None:
    rewritten = next(contender for contender in contenders() if contender.engine == engine)
    STEEL.file("onnxruntime (rewritten)").write_bytes(b"as exported")
    with pytest.raises(Mislabelled, match="rewritten graph"):
        labelled(rewritten, STEEL)


def peer_of_this_environment(settings: Mapping[str, str]) -> Contender:
    """The published recipe's server, which needs nothing but what trains."""
    return replace(
        published_recipe(),
        template=(sys.executable, "-m", "uvicorn", "published_recipe:app", "--port", "{port}"),
        version=f"{version('fastapi')} + {version('tensorflow-cpu')}",
        settings={STEEL.name: settings},
    )


CLASSIFY = """
import sys
from pathlib import Path
from peer_model import PeerModel
for answer in PeerModel("fastapi").answer_files([Path(path).read_bytes() for path in sys.argv[1:]]):
    print(answer["label"])
"""


def labels_of_peer(peer: Contender, network: Network, files: Sequence[Path], log: Path) -> list[str]:
    """What a peer's one worker says, without its HTTP server, whose packages are not in this environment."""
    with log.open("w") as errors:
        finished = subprocess.run(
            [sys.executable, "-c", CLASSIFY, *map(str, files)],
            cwd=PEERS,
            env=os.environ | peer.environment(network, 1),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            check=True,
        )
    return finished.stdout.splitlines()


def litert_peer(name: str) -> Contender:
    [peer] = (contender for contender in contenders() if contender.name == name)
    versions = f"{version('fastapi')} + {version('ai-edge-litert')}"
    one_worker = {network.name: {**peer.settings[network.name], "WORKERS": "1"} for network in NETWORKS}
    return replace(peer, version=versions, settings=one_worker)


# The recipe's file has two signatures.
@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
@pytest.mark.parametrize("name", ["FastAPI + LiteRT", "FastAPI + LiteRT (our decoder)"])
def test_peer_with_litert_reports_its_twin_and_gives_its_labels(
    name: str, network: Network, tmp_path: Path
) -> None:
    peer, log, files = litert_peer(name), tmp_path / "log", sorted(SAMPLES.glob("*.png"))
    expected = engine_labels(network.h5, [path.read_bytes() for path in files])
    assert labels_of_peer(peer, network, files, log) == expected
    require_label(peer, network, 0, log)
    other = STEEL if network == RECIPE else RECIPE
    with pytest.raises(Mislabelled, match=rf"from {other.name}\.tflite.*from {network.name}\.tflite"):
        require_label(peer, other, 0, log)


def test_running_peer_reports_the_file_that_it_was_given() -> None:
    with answering(peer_of_this_environment({}), STEEL, IMAGE) as (server, _):
        assert server.classify([IMAGE]) == ["Scratches"]


def test_running_peer_that_is_given_another_file_is_refused() -> None:
    wrong = {"MODEL_PATH": str(RECIPE.h5), "CARD_PATH": str(RECIPE.card)}
    with (
        pytest.raises(Mislabelled, match=r"from steel_defects\.h5.*from metal_defects_final\.h5"),
        answering(peer_of_this_environment(wrong), STEEL, IMAGE),
    ):
        pytest.fail("a mislabelled server must not be handed out")


@pytest.mark.parametrize("given", NETWORKS, ids=lambda network: network.name)
def test_our_service_is_held_to_its_label_too(given: Network) -> None:
    service = (sys.executable, "-m", "app.cli", "serve", "--port", "{port}", "--model", str(given.h5))
    contender = replace(ext_classify(), template=service)
    if given == STEEL:
        with answering(contender, STEEL, IMAGE) as (server, _):
            assert server.classify([IMAGE]) == ["Scratches"]
    else:
        with pytest.raises(Mislabelled, match="litert"), answering(contender, STEEL, IMAGE):
            pytest.fail("a mislabelled server must not be handed out")


def test_mislabelled_server_ends_the_run_and_is_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers that do not start are left out; a wrong label must not pass for one of those."""

    @contextmanager
    def mislabelled(*_: object) -> Iterator[tuple[Server, float]]:
        refuse()
        yield

    def refuse() -> NoReturn:
        raise Mislabelled("it serves something else")

    assert not issubclass(Mislabelled, NotServing)
    monkeypatch.setattr(tune_peers, "answering", mislabelled)
    monkeypatch.setattr(tune_peers, "load_images", lambda: ImageSet((IMAGE,), "one sample"))
    with pytest.raises(Mislabelled):
        tune_peers.rates_of(PEER, {}, STEEL, LoadProcess.__new__(LoadProcess), 1.0)


def test_networks_are_held_to_the_weights_that_their_labels_name() -> None:
    artifact = load_artifact(STEEL.h5)
    quantised = quantise(load_network(STEEL.h5), artifact.card.image.shape)
    compiled = STEEL.h5.with_suffix(".tflite").read_bytes()
    require_weights("8-bit weights", quantised)
    require_weights("float32", compiled)
    with pytest.raises(Mislabelled, match=r"'float32' has [1-9]"):
        require_weights("float32", quantised)
    with pytest.raises(Mislabelled, match="'8-bit weights' has 0"):
        require_weights("8-bit weights", compiled)
