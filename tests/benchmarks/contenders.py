"""The servers that `make bench` compares: ours as shipped, and its peers as tune_peers found them best."""

import re
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

# v2 is KServe's tensor of BYTES, which stands in for "snowflake" at PyTriton.
Form: TypeAlias = Literal["snowflake", "image", "multipart", "v2"]
Settings: TypeAlias = Mapping[str, str]
"""Environment variables that a peer's server reads."""

ROOT = Path(__file__).parent.parent.parent
SAVED = ROOT / "model" / "saved"
ONNX = ROOT / ".bench"
PEERS = Path(__file__).parent / "peers"


class Network(NamedTuple):
    name: str
    h5: Path
    """Its card lies beside it."""

    @property
    def card(self) -> Path:
        return self.h5.with_suffix(".json")

    @property
    def onnx(self) -> Path:
        """As Keras exports it."""
        return ONNX / f"{self.name}.onnx"

    @property
    def rewritten_onnx(self) -> Path:
        """Rewritten by hand to what costs onnxruntime least."""
        return ONNX / f"{self.name}.rewritten.onnx"


NETWORKS = tuple(Network(name, SAVED / f"{name}.h5") for name in ("metal_defects_final", "steel_defects"))


RECIPE, STEEL = (network.name for network in NETWORKS)
# One single-threaded worker a core: two threads a worker, or one worker for both cores, were slower or alike.
WORKERS = {"THREADS": "1", "WORKERS": "2"}
# onnxruntime takes less of the CPU for an image than TensorFlow, of either network.
ONNXRUNTIME = {**WORKERS, "ENGINE": "onnxruntime"}
REWRITTEN = {**WORKERS, "ENGINE": "onnxruntime, rewritten"}
PEER_SETTINGS: Mapping[str, Mapping[str, Settings]] = {
    # A second thread that decodes gained nothing anywhere.
    "FastAPI + TensorFlow": {
        # Eight images' first maps fit into the cache; 16 to 64 cost a third more.
        RECIPE: {**WORKERS, "ENGINE": "tensorflow", "POOL": "1", "MICRO_BATCH": "8"},
        # The maps are small, and a call of TensorFlow is dear.
        STEEL: {**WORKERS, "ENGINE": "tensorflow", "POOL": "1", "MICRO_BATCH": "64"},
    },
    "FastAPI + onnxruntime": {
        # Batches of 64 cost it least in batches of 64; above, they would take a gigabyte. To a single row the
        # settings that differ are one. Spinning doubles the CPU time.
        RECIPE: {**ONNXRUNTIME, "POOL": "1", "MICRO_BATCH": "64"},
        STEEL: {**ONNXRUNTIME, "POOL": "1", "MICRO_BATCH": "64"},
    },
    "FastAPI + onnxruntime (rewritten)": {
        RECIPE: {**REWRITTEN, "POOL": "1", "MICRO_BATCH": "64"},
        STEEL: {**REWRITTEN, "POOL": "1", "MICRO_BATCH": "64"},
    },
    "LitServe": {
        # Merging requests pays where a row takes milliseconds; a second API server was slower or alike.
        RECIPE: {**ONNXRUNTIME, "MICRO_BATCH": "8", "BATCH": "8", "WAIT_MS": "5", "FAST_QUEUE": "1"},
        STEEL: {**ONNXRUNTIME, "MICRO_BATCH": "64"},
    },
    "BentoML": {
        # Adaptive batching sends every row through one more process.
        RECIPE: {**ONNXRUNTIME, "POOL": "1", "MICRO_BATCH": "1"},
        STEEL: {**ONNXRUNTIME, "POOL": "2", "MICRO_BATCH": "1"},
    },
    "PyTriton": {
        # Waiting for other requests to join was slower: under load they have come already.
        RECIPE: {**ONNXRUNTIME, "MICRO_BATCH": "8"},
        STEEL: {**ONNXRUNTIME, "MICRO_BATCH": "64"},
    },
}


@dataclass(frozen=True)
class Contender:
    name: str
    version: str
    """Of its framework."""
    paths: Mapping[Form, str]
    """The URL path of each form that it speaks."""
    ready_path: str
    """A GET of it answers 200 when the server is ready."""
    template: tuple[str, ...]
    """Its command, with {port} and {h5} to be filled in."""
    cwd: Path
    settings: Mapping[str, Settings] = field(default_factory=dict)
    """For each network, by name, the peer's own environment variables."""
    fixed: Settings = field(default_factory=dict)
    """Environment variables that stay the same."""

    def command(self, network: Network, port: int) -> list[str]:
        return [part.format(port=port, h5=network.h5) for part in self.template]

    def environment(self, network: Network, port: int) -> dict[str, str]:
        """What to add to os.environ."""
        if not self.settings:
            return dict(self.fixed)
        settings = dict(self.settings[network.name])
        model = network.onnx if settings.pop("ENGINE") == "onnxruntime" else network.h5
        if "WORKERS" in settings:
            settings["WEB_CONCURRENCY"] = settings["WORKERS"]  # uvicorn's name for it
        paths = {"MODEL_PATH": str(model), "CARD_PATH": str(network.card)}
        return {"PORT": str(port), **paths, **self.fixed, **settings}


def contenders() -> list[Contender]:
    return [
        ext_classify(),
        plain_fastapi("FastAPI + TensorFlow", "tensorflow-cpu"),
        plain_fastapi("FastAPI + onnxruntime", "onnxruntime"),
        plain_fastapi("FastAPI + onnxruntime (rewritten)", "onnxruntime"),
        litserve(),
        bentoml(),
        pytriton(),
        published_recipe(),
    ]


def ext_classify() -> Contender:
    return Contender(
        name="ext-classify",
        version=version("ext-classify"),
        paths={"snowflake": "/classify", "image": "/classify", "multipart": "/classify"},
        ready_path="/readyz",
        template=(str(ROOT / ".venv/bin/ext-classify"), "serve", "--port", "{port}", "--model", "{h5}"),
        cwd=ROOT,
    )


def plain_fastapi(name: str, engine: str) -> Contender:
    return Contender(
        name=name,
        version=f"{locked('fastapi')} + {locked(engine)}",
        paths={"snowflake": "/classify", "image": "/image", "multipart": "/files"},
        ready_path="/readyz",
        template=(*uvicorn("plain_fastapi:app"), "--log-level", "warning", "--no-access-log"),
        cwd=PEERS,
        settings=PEER_SETTINGS[name],
    )


def litserve() -> Contender:
    return Contender(
        name="LitServe",
        version=locked("litserve"),
        paths={"snowflake": "/classify"},
        ready_path="/health",
        template=(interpreter("peers"), "litserve_server.py"),
        cwd=PEERS,
        settings=PEER_SETTINGS["LitServe"],
    )


def bentoml() -> Contender:
    bentoml_command = (interpreter("peers"), "-m", "bentoml", "serve", "bentoml_server:Classify")
    return Contender(
        name="BentoML",
        version=locked("bentoml"),
        paths={"snowflake": "/classify"},
        ready_path="/readyz",
        template=(*bentoml_command, "--host", "127.0.0.1", "--port", "{port}"),
        cwd=PEERS,
        settings=PEER_SETTINGS["BentoML"],
        fixed={"BENTOML_DO_NOT_TRACK": "True"},
    )


def pytriton() -> Contender:
    return Contender(
        name="PyTriton",
        version=locked("nvidia-pytriton", "pytriton"),
        paths={"v2": "/v2/models/classify/infer"},
        ready_path="/v2/models/classify/ready",
        template=(interpreter("pytriton"), "pytriton_server.py"),
        cwd=PEERS,
        settings=PEER_SETTINGS["PyTriton"],
        # Triton's stub takes the system's libpython, and dies with the modules of this one.
        fixed={"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")},
    )


def published_recipe() -> Contender:
    return Contender(
        name="published recipe",
        version=f"{locked('fastapi')} + {locked('tensorflow-cpu')}",
        paths={"snowflake": "/classify", "image": "/image"},
        ready_path="/readyz",
        template=uvicorn("published_recipe:app"),
        cwd=PEERS,
        settings={network.name: {"ENGINE": "tensorflow"} for network in NETWORKS},
    )


def uvicorn(app: str) -> tuple[str, ...]:
    return (interpreter("peers"), "-m", "uvicorn", app, "--port", "{port}")


def interpreter(environment: str) -> str:
    return str(ROOT / f".venv-bench-{environment}" / "bin" / "python")


def locked(package: str, environment: str = "peers") -> str:
    """The version in the environment's lock."""
    lock = (PEERS / f"requirements-{environment}.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(package)}==([^ ;]+)", lock, re.MULTILINE)
    if found is None:
        raise LookupError(f"No lock names {package}.")
    return found.group(1)
