"""The servers that `make bench` compares: our service as shipped, and its peers as tuned by tune_peers."""

import re
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

# v2 is KServe's tensor of BYTES, which PyTriton receives in place of "snowflake".
Form: TypeAlias = Literal["snowflake", "image", "multipart", "v2"]
Engine: TypeAlias = Literal["LiteRT", "TensorFlow", "onnxruntime", "onnxruntime (rewritten)", "OpenVINO"]
"""What computes; "(rewritten)" says that the graph is not the one that Keras exports, as for OpenVINO too."""
Settings: TypeAlias = Mapping[str, str]
"""Environment variables that a peer's server reads."""

ROOT = Path(__file__).parent.parent.parent
SAVED = ROOT / "model" / "saved"
ONNX = ROOT / ".bench"
PEERS = Path(__file__).parent / "peers"


class Network(NamedTuple):
    name: str
    h5: Path
    """Its card is next to it."""

    @property
    def card(self) -> Path:
        return self.h5.with_suffix(".json")

    def file(self, engine: Engine) -> Path:
        """The file that a peer with this engine is given; our service takes the .h5."""
        match engine:
            case "LiteRT":
                return self.h5.with_suffix(".tflite")
            case "TensorFlow":
                return self.h5
            case "onnxruntime":
                return ONNX / f"{self.name}.onnx"
            case "onnxruntime (rewritten)" | "OpenVINO":
                return ONNX / f"{self.name}.rewritten.onnx"


NETWORKS = tuple(Network(name, SAVED / f"{name}.h5") for name in ("metal_defects_final", "steel_defects"))
# As users bring them: keras_networks.py makes them.
BROUGHT = tuple(
    Network(name, ONNX / f"{name}.h5") for name in ("mobilenet_v2", "efficientnet_b0", "resnet50")
)

RECIPE, STEEL = (network.name for network in NETWORKS)
# One single-threaded worker a core: two threads a worker, or one worker for both cores, were slower or alike.
WORKERS = {"THREADS": "1", "WORKERS": "2"}
ONE_BY_ONE = {**WORKERS, "POOL": "1", "MICRO_BATCH": "1"}
EIGHT_BY_EIGHT = {**ONE_BY_ONE, "MICRO_BATCH": "8"}
PEER_SETTINGS: Mapping[str, Mapping[str, Settings]] = {
    # A second thread that decodes gained nothing anywhere.
    "FastAPI + TensorFlow": {
        # The first feature maps of eight images fit into the cache; 16 to 64 images cost a third more.
        RECIPE: {**WORKERS, "POOL": "1", "MICRO_BATCH": "8"},
        # The feature maps are small, and a call of TensorFlow is expensive.
        STEEL: {**WORKERS, "POOL": "1", "MICRO_BATCH": "64"},
    },
    "FastAPI + onnxruntime": {
        # Batches of 64 cost it least in batches of 64; above, they would take a gigabyte. To a single row the
        # settings that differ are one. Spinning doubles the CPU time.
        RECIPE: {**WORKERS, "POOL": "1", "MICRO_BATCH": "64"},
        STEEL: {**WORKERS, "POOL": "1", "MICRO_BATCH": "64"},
    },
    "FastAPI + onnxruntime (rewritten)": {
        RECIPE: {**WORKERS, "POOL": "1", "MICRO_BATCH": "64"},
        STEEL: {**WORKERS, "POOL": "1", "MICRO_BATCH": "64"},
    },
    "FastAPI + OpenVINO": dict.fromkeys((RECIPE, STEEL), EIGHT_BY_EIGHT),
    # Not tuned: the simplest server of the same engine and file, one image per call.
    "FastAPI + LiteRT": dict.fromkeys((RECIPE, STEEL), ONE_BY_ONE),
    "FastAPI + LiteRT (our decoder)": dict.fromkeys((RECIPE, STEEL), ONE_BY_ONE),
    "LitServe + onnxruntime (rewritten)": {
        # Merging requests pays where a row takes milliseconds; a second API server was slower or alike.
        RECIPE: {**WORKERS, "MICRO_BATCH": "8", "BATCH": "8", "WAIT_MS": "5", "FAST_QUEUE": "1"},
        STEEL: {**WORKERS, "MICRO_BATCH": "64"},
    },
    "BentoML + onnxruntime (rewritten)": {
        # Adaptive batching sends every row through one more process.
        RECIPE: {**WORKERS, "POOL": "1", "MICRO_BATCH": "1"},
        STEEL: {**WORKERS, "POOL": "2", "MICRO_BATCH": "1"},
    },
    "PyTriton + onnxruntime (rewritten)": {
        # Waiting for other requests to join was slower: under load they have come already.
        RECIPE: {**WORKERS, "MICRO_BATCH": "8"},
        STEEL: {**WORKERS, "MICRO_BATCH": "64"},
    },
}


PACKAGES: Mapping[Engine, str] = {
    "LiteRT": "ai-edge-litert",
    "TensorFlow": "tensorflow-cpu",
    "onnxruntime": "onnxruntime",
    "onnxruntime (rewritten)": "onnxruntime",
    "OpenVINO": "openvino",
}


@dataclass(frozen=True)
class Contender:
    name: str
    engine: Engine
    version: str
    """Of its framework, and of its engine."""
    paths: Mapping[Form, str]
    """The URL path of each form that it speaks."""
    template: tuple[str, ...]
    """Its command, with {port} and {h5} to be filled in."""
    cwd: Path
    settings: Mapping[str, Settings] = field(default_factory=dict)
    """For each network, by name, the peer's own environment variables; ONE_BY_ONE for those not tuned."""
    fixed: Settings = field(default_factory=dict)
    """Environment variables that stay the same."""
    model_page: str | None = None
    """A GET of it says what is served; without one, the log does, as peers/served_report.py writes it."""

    def command(self, network: Network, port: int) -> list[str]:
        return [part.format(port=port, h5=network.h5) for part in self.template]

    def environment(self, network: Network, port: int) -> dict[str, str]:
        """What to add to os.environ."""
        if not self.settings:
            return dict(self.fixed)
        settings = dict(self._settings_for(network))
        if "WORKERS" in settings:
            settings["WEB_CONCURRENCY"] = settings["WORKERS"]  # uvicorn's name for it
        paths = {"MODEL_PATH": str(self.file(network)), "CARD_PATH": str(network.card)}
        return {"PORT": str(port), **paths, **self.fixed, **settings}

    def file(self, network: Network) -> Path:
        """What it is given, and reports."""
        return network.h5 if self.model_page else network.file(self.engine)

    def workers(self, network: Network) -> int:
        """Processes, or instances in one process, that each load the model's file."""
        return int(self._settings_for(network).get("WORKERS", 1))

    def _settings_for(self, network: Network) -> Settings:
        return self.settings.get(network.name, ONE_BY_ONE) if self.settings else {}


def contenders() -> list[Contender]:
    return [
        ext_classify(),
        plain_fastapi("TensorFlow"),
        plain_fastapi("onnxruntime"),
        plain_fastapi("onnxruntime (rewritten)"),
        plain_fastapi("OpenVINO", {"ENGINE": "openvino"}),
        plain_fastapi("LiteRT"),
        plain_fastapi("LiteRT", {"DECODER": "service", "PYTHONPATH": str(ROOT)}, name=" (our decoder)"),
        litserve(),
        bentoml(),
        pytriton(),
        published_recipe(),
    ]


def ext_classify() -> Contender:
    return Contender(
        name="ext-classify",
        engine="LiteRT",
        version=version("ext-classify"),
        paths={"snowflake": "/classify", "image": "/classify", "multipart": "/classify"},
        template=(str(ROOT / ".venv/bin/ext-classify"), "serve", "--port", "{port}", "--model", "{h5}"),
        cwd=ROOT,
        model_page="/model",
    )


def plain_fastapi(engine: Engine, fixed: Settings | None = None, name: str = "") -> Contender:
    name = f"FastAPI + {engine}{name}"
    return Contender(
        name=name,
        engine=engine,
        version=locked_versions("fastapi", engine),
        paths={"snowflake": "/classify", "image": "/image", "multipart": "/files"},
        template=(*uvicorn("plain_fastapi:app"), "--log-level", "warning", "--no-access-log"),
        cwd=PEERS,
        settings=PEER_SETTINGS[name],
        fixed=fixed or {},
    )


def litserve(engine: Engine = "onnxruntime (rewritten)") -> Contender:
    name = f"LitServe + {engine}"
    return Contender(
        name=name,
        engine=engine,
        version=locked_versions("litserve", engine),
        paths={"snowflake": "/classify"},
        template=(interpreter("peers"), "litserve_server.py"),
        cwd=PEERS,
        settings=PEER_SETTINGS[name],
    )


def bentoml(engine: Engine = "onnxruntime (rewritten)") -> Contender:
    name = f"BentoML + {engine}"
    bentoml_command = (interpreter("peers"), "-m", "bentoml", "serve", "bentoml_server:Classify")
    return Contender(
        name=name,
        engine=engine,
        version=locked_versions("bentoml", engine),
        paths={"snowflake": "/classify"},
        template=(*bentoml_command, "--host", "127.0.0.1", "--port", "{port}"),
        cwd=PEERS,
        settings=PEER_SETTINGS[name],
        fixed={"BENTOML_DO_NOT_TRACK": "True"},
    )


def pytriton(engine: Engine = "onnxruntime (rewritten)") -> Contender:
    name = f"PyTriton + {engine}"
    return Contender(
        name=name,
        engine=engine,
        version=locked_versions("nvidia-pytriton", engine, "pytriton"),
        paths={"v2": "/v2/models/classify/infer"},
        template=(interpreter("pytriton"), "pytriton_server.py"),
        cwd=PEERS,
        settings=PEER_SETTINGS[name],
        # Triton's stub takes the system's libpython, and dies with the modules of this one.
        fixed={"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")},
    )


def published_recipe() -> Contender:
    return Contender(
        name="published recipe",
        engine="TensorFlow",
        version=locked_versions("fastapi", "TensorFlow"),
        paths={"snowflake": "/classify", "image": "/image"},
        template=uvicorn("published_recipe:app"),
        cwd=PEERS,
        settings={network.name: {} for network in NETWORKS},
    )


def uvicorn(app: str) -> tuple[str, ...]:
    return (interpreter("peers"), "-m", "uvicorn", app, "--port", "{port}")


def interpreter(environment: str) -> str:
    return str(ROOT / f".venv-bench-{environment}" / "bin" / "python")


def locked_versions(framework: str, engine: Engine, environment: str = "peers") -> str:
    """The framework's and the engine's, as a peer reports them."""
    return f"{locked(framework, environment)} + {locked(PACKAGES[engine], environment)}"


def locked(package: str, environment: str = "peers") -> str:
    """The version in the environment's lock."""
    lock = (PEERS / f"requirements-{environment}.txt").read_text(encoding="utf-8")
    found = re.search(rf"^{re.escape(package)}==([^ ;]+)", lock, re.MULTILINE)
    if found is None:
        raise LookupError(f"No lock names {package}.")
    return found.group(1)
