"""The Python function inside a warehouse, run as Snowflake runs it: from a folder of imports and a zip.

Only Snowflake's own module is a stand-in: it reads local files by a mapping of scoped URLs.
"""

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from app.provisioning.ddl import load
from app.provisioning.udf_bundle import HANDLER, package_check, write_bundle
from app.workers.classify import ImageClassifier
from model.artifact import load_artifact
from model.defaults import DEFAULT_MODEL_PATH
from model.engines import open_classifier
from model.errors import ArtifactError
from model.image_limits import ImageLimits
from tests.app.provisioning.test_ddl import PLAIN
from tests.conftest import SAMPLES

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
SAMPLE_NAMES = sorted(path.name for path in SAMPLES.glob("*.png"))
FUNCTIONS = [s for s in load("14_warehouse_functions.sql", PLAIN) if s.startswith("CREATE OR REPLACE")]
# As PyPI calls what the code calls otherwise.
DISTRIBUTIONS = {"PIL": "pillow", "pydantic_core": "pydantic", "snowflake": "snowflake-snowpark-python"}

OPTIONS: list[Any] = [{"evidence": True}, None, {"evidence": False}, {}, {"evidnce": True}]

_PACKAGE = r"'([a-z][a-z0-9-]+)([^']*)'"

# Keras warns of NumPy's ways while it reads an h5.
WARNINGS = ("-W", "error", "-W", "ignore::DeprecationWarning")

PROGRAM = """
import io, json, sys, types
from concurrent.futures import ThreadPoolExecutor

work = json.load(sys.stdin)
opened = []
sys.addaudithook(lambda event, about: event == "open" and opened.append(str(about[0])))

class SnowflakeFile:
    @staticmethod
    def open(url, mode):
        if url not in work["files"]:
            if url.endswith("stand-in"):  # as version 1.56.0 of PyPI's package
                raise ValueError("Scoped and Stage URLs are not yet supported.")
            raise PermissionError(url) if url.endswith("foreign") else FileNotFoundError(url)
        return ShortReads(work["files"][url], mode)

class ShortReads(io.FileIO):
    def read(self, size):
        return super().read(min(size, 7000))

for name in ("snowflake", "snowflake.snowpark", "snowflake.snowpark.files"):
    sys.modules[name] = types.ModuleType(name)
sys.modules["snowflake.snowpark.files"].SnowflakeFile = SnowflakeFile

import pandas as pd
import ext_classify_udf

def run(batch):
    columns = list(zip(*batch))
    types = {0: "string", 1: object}
    frame = pd.DataFrame({i: pd.Series(column, dtype=types[i]) for i, column in enumerate(columns)})
    return ext_classify_udf.classify(frame)

with ThreadPoolExecutor(4) as threads:
    answers = list(threads.map(run, work["batches"]))
ours = {name: str(m.__file__) for name, m in sys.modules.items() if name.split(".")[0] in ("app", "model")}
json.dump({"answers": answers, "modules": ours, "opened": opened}, sys.stdout)
"""


@pytest.fixture(scope="module")
def imports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Snowflake copies from the stage, in one folder."""
    folder: Path = tmp_path_factory.mktemp("imports")
    write_bundle(load_artifact(DEFAULT_MODEL_PATH), folder)
    return folder


@pytest.fixture(scope="module")
def in_process() -> ImageClassifier:
    artifact = load_artifact(DEFAULT_MODEL_PATH)
    return ImageClassifier(artifact, open_classifier(artifact, "litert", 1, Path()), ImageLimits())


def scoped(name: str) -> str:
    return f"https://account.snowflakecomputing.com/api/files/01b02bdf-0001-2f3c-0000-0000000a1b2e/{name}"


def run(imports: Path, batches: list[Any], *, before: str = "", **files: Path) -> dict[str, Any]:
    """What the function answers to each batch, and what its process loaded and opened."""
    known = {scoped(name): str(SAMPLES / name) for name in SAMPLE_NAMES}
    known |= {scoped(name): str(path) for name, path in files.items()}
    path = [str(imports / "ext_classify.zip"), str(imports), os.environ.get("PYTHONPATH", "")]
    finished = subprocess.run(
        [sys.executable, *WARNINGS, "-X", f"snowflake_import_directory={imports}/", "-c", before + PROGRAM],
        input=json.dumps({"batches": batches, "files": known}),
        env={"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(filter(None, path))},
        cwd=imports,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    answer: dict[str, Any] = json.loads(finished.stdout)
    return answer


@pytest.fixture(scope="module")
def answered(imports: Path) -> dict[str, Any]:
    """The samples 8 times, then OPTIONS, in one process, because each compiles the code of the zip."""
    samples = [[scoped(name)] for name in SAMPLE_NAMES]
    return run(imports, [*[samples] * 8, [[scoped(SAMPLE_NAMES[0]), option] for option in OPTIONS]])


def outcomes(classifier: ImageClassifier, *, evidence: bool = False) -> list[Any]:
    images = [(SAMPLES / name).read_bytes() for name in SAMPLE_NAMES]
    found = classifier.classify(images, [evidence] * len(images)).outcomes
    listed: list[Any] = json.loads(json.dumps(found))
    return listed


def test_outcomes_are_those_of_the_service_bit_for_bit(
    answered: dict[str, Any], in_process: ImageClassifier
) -> None:
    assert answered["answers"][:8] == [outcomes(in_process)] * 8
    assert len({outcome["label"] for outcome in answered["answers"][0]}) == len(SAMPLE_NAMES)


def test_options_ask_for_evidence_row_by_row(answered: dict[str, Any], in_process: ImageClassifier) -> None:
    rows = answered["answers"][8]
    assert rows[0] == outcomes(in_process, evidence=True)[0]
    assert rows[1:4] == [outcomes(in_process)[0]] * 3
    assert rows[4]["error"]["code"] == "invalid_options"


def test_a_bad_row_is_its_own_outcome(imports: Path, in_process: ImageClassifier, tmp_path: Path) -> None:
    sample = (SAMPLES / SAMPLE_NAMES[0]).read_bytes()
    (tmp_path / "torn.png").write_bytes(sample[: len(sample) // 2])
    with (tmp_path / "large.png").open("wb") as file:
        file.truncate(ImageLimits.max_image_bytes + 1)
    sources = [scoped(name) for name in (SAMPLE_NAMES[0], "torn", "large", "missing", "foreign")]
    batch = [[source] for source in (*sources, None, "@images/a.png", "no image")]
    [rows] = run(imports, [batch], torn=tmp_path / "torn.png", large=tmp_path / "large.png")["answers"]
    assert rows[0] == outcomes(in_process)[0]
    assert rows[5] is None
    codes = [row["error"]["code"] for row in (*rows[1:5], *rows[6:])]
    assert codes == [
        "corrupt_image",
        "image_too_large",
        "fetch_failed",
        "fetch_failed",
        "stage_not_authorized",
        "invalid_base64",
    ]
    assert not any(source in json.dumps(rows) for source in sources)


def test_stand_in_of_the_package_is_refused_with_words(imports: Path) -> None:
    [rows] = run(imports, [[[scoped("stand-in")], [scoped("missing")]]])["answers"]
    assert [row["error"]["code"] for row in rows] == ["fetch_failed", "fetch_failed"]
    assert ["snowflake-snowpark-python" in row["error"]["message"] for row in rows] == [True, False]


def test_the_network_is_loaded_once_for_many_batches(imports: Path, answered: dict[str, Any]) -> None:
    for suffix in (".h5", ".json", ".tflite", ".tflite.json"):
        path = str(imports / DEFAULT_MODEL_PATH.with_suffix(suffix).name)
        assert answered["opened"].count(path) == 1


def test_all_of_app_and_model_comes_from_the_zip(imports: Path, answered: dict[str, Any]) -> None:
    modules = answered["modules"]
    assert "app.workers.classify" in modules
    assert all(path.startswith(f"{imports}/ext_classify.zip/") for path in modules.values())


def test_tensorflow_runs_the_h5_where_litert_is_not_installed(
    imports: Path, in_process: ImageClassifier
) -> None:
    batch = [[scoped(name)] for name in SAMPLE_NAMES]
    hide = "import sys; sys.modules['ai_edge_litert'] = None\n"
    [rows] = run(imports, [batch], before=hide)["answers"]
    assert [row["label"] for row in rows] == [outcome["label"] for outcome in outcomes(in_process)]


def test_packages_are_what_the_loaded_modules_import(answered: dict[str, Any]) -> None:
    sources = [HANDLER, *(_source_of(name, path) for name, path in answered["modules"].items())]
    found = set().union(*map(_third_parties, sources))
    needed = {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in found} | {"ai-edge-litert"}
    for function in FUNCTIONS:
        assert {name for name, _ in _packages(function)} == needed


def test_packages_are_resolved_before_the_upload_with_the_functions_list() -> None:
    _, check, *others = load("14_warehouse_functions.sql", PLAIN)
    assert check == package_check().rstrip(";")
    assert others[1].startswith("PUT ")
    assert {tuple(_packages(function)) for function in FUNCTIONS} == {tuple(re.findall(_PACKAGE, check)[:-1])}
    version, *_, repository = re.findall(r"'([^']*)'", check)
    for function in FUNCTIONS:
        assert f"RUNTIME_VERSION = '{version}'" in function
        assert f"ARTIFACT_REPOSITORY = {repository}\n" in function


def test_packages_are_as_new_as_those_that_serve() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    serving = dict(re.findall(r"^([a-z0-9-]+)(>=[0-9.]+)", "\n".join(project["dependencies"]), re.MULTILINE))
    for function in FUNCTIONS:
        assert [(n, v) for n, v in _packages(function) if n in serving] == [
            (n, serving[n]) for n, _ in _packages(function) if n in serving
        ]
        assert f"RUNTIME_VERSION = '{project['requires-python'].removeprefix('>=')}'" in function


def test_imports_are_the_files_of_the_bundle(imports: Path) -> None:
    assert len(FUNCTIONS) == 2
    for function in FUNCTIONS:
        named = re.findall(r"'@\"CODE\"/(.*)'", function)
        assert sorted(named) == sorted(path.name for path in imports.iterdir() if path.is_file())
        assert f"HANDLER = '{HANDLER.stem}.classify'" in function


def test_the_same_code_gives_the_same_bundle(imports: Path, tmp_path: Path) -> None:
    written = write_bundle(load_artifact(DEFAULT_MODEL_PATH), tmp_path / "new" / "folder")
    assert {path.name: path.read_bytes() for path in written} == {
        path.name: (imports / path.name).read_bytes() for path in written
    }


def test_a_network_without_its_twin_is_refused(tmp_path: Path) -> None:
    for suffix in (".h5", ".json"):
        source = DEFAULT_MODEL_PATH.with_suffix(suffix)
        (tmp_path / source.name).write_bytes(source.read_bytes())
    with pytest.raises(ArtifactError, match="ext-classify compile --model"):
        write_bundle(load_artifact(tmp_path / DEFAULT_MODEL_PATH.name), tmp_path / "bundle")


def _source_of(name: str, path: str) -> Path:
    return ROOT / path.partition(".zip/")[2] if ".zip/" in path else pytest.fail(f"{name} is at {path}")


def _third_parties(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module).partition(".")[0])
    return found - sys.stdlib_module_names - {"app", "model"}


def _packages(function: str) -> list[tuple[str, str]]:
    [listed] = re.findall(r"PACKAGES = \((.*?)\n    \)", function, re.DOTALL)
    return re.findall(_PACKAGE, listed)
