"""Check that a server runs the engine that its label names, from what it reports."""

import hashlib
import json
import re
import time
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.contenders import Contender, Engine, Network
from tests.running import exchange

REPORT_TIMEOUT_SECONDS = 60.0
_REPORT = re.compile(r"SERVED (\{.*?\})")
_REPORTED_NAMES: dict[Engine, str] = {
    "LiteRT": "litert",
    "TensorFlow": "tensorflow",
    "onnxruntime": "onnxruntime",
    "onnxruntime (rewritten)": "onnxruntime",
    "OpenVINO": "openvino",
}


class Served(NamedTuple):
    engine: str
    """As it names itself."""
    file: str
    sha256: str
    version: str
    """Of the framework, and of the engine."""


class Mislabelled(Exception):
    """A server serves something other than its label says, so its figures are void."""


class NotServing(Exception):
    """A server did not start, or does not answer as asked."""


def labelled(contender: Contender, network: Network) -> Served:
    """What the contender's label says of a network's server.

    Raises Mislabelled where the file of a rewritten graph holds the graph as exported, and OSError where
    there is no file.
    """
    file = contender.file(network)
    sha256 = sha256_of(file)
    if file.name.endswith(".rewritten.onnx") and sha256 == sha256_of(network.file("onnxruntime")):
        raise Mislabelled(f"{file} must hold a rewritten graph. Received: the graph as Keras exports it.")
    return Served(_REPORTED_NAMES[contender.engine], file.name, sha256, contender.version)


def require_label(contender: Contender, network: Network, port: int, log: Path) -> None:
    """Wait until every worker has reported what it serves.

    Raises Mislabelled unless each report is what the label says, and NotServing when one does not come.
    """
    wanted = labelled(contender, network)
    deadline = time.monotonic() + REPORT_TIMEOUT_SECONDS
    workers = contender.workers(network)
    while True:
        reports = _from_page(contender, port) if contender.model_page else _from_log(log)
        for report in reports:
            _refuse_other(contender, network, report, wanted)
        if len(reports) >= workers:
            return
        if time.monotonic() > deadline:
            raise NotServing(f"{len(reports)} of {workers} workers report what they serve")
        time.sleep(0.05)


def _refuse_other(contender: Contender, network: Network, report: Served, wanted: Served) -> None:
    if report != wanted:
        raise Mislabelled(
            f"{contender.name!r} must serve {network.name} by {_shown(wanted)}. It reports: {_shown(report)}."
        )


def _from_page(contender: Contender, port: int) -> list[Served]:
    """The service's card names no version of the service: it is the one that is installed."""
    card = json.loads(exchange(port, "GET", str(contender.model_page)).body)
    return [Served(card["engine"], f"{card['name']}.h5", card["sha256"], contender.version)]


def _from_log(log: Path) -> list[Served]:
    text = log.read_text(encoding="utf-8", errors="replace")
    return [Served(**json.loads(report)) for report in _REPORT.findall(text)]


def _shown(served: Served) -> str:
    return f"{served.engine} ({served.version}) from {served.file}, sha256 {served.sha256[:12]}"


def sha256_of(file: Path) -> str:
    return _sha256_of(file, file.stat().st_mtime_ns)


@lru_cache
def _sha256_of(file: Path, _changed_ns: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
