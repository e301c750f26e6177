"""What is locked, and that serving stays small."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
LOCKS = (
    "requirements.txt",
    *(f"requirements-{name}.txt" for name in ("sql", "dev", "full", "build", "fuzz")),
)
CONNECTOR_5, DBT, KERAS_2 = (f"requirements-{name}.txt" for name in ("connector5", "dbt", "keras2"))
PEERS = tuple(f"tests/benchmarks/peers/requirements-{name}.txt" for name in ("peers", "pytriton"))


def locked(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    pins = (re.match(r"([A-Za-z0-9._-]+)==([^ ;]+)", line) for line in lines)
    return {pin.group(1).lower(): pin.group(2) for pin in pins if pin}


def test_serving_carries_no_tensorflow() -> None:
    assert not locked("requirements.txt").keys() & {"tensorflow", "tensorflow-cpu", "keras", "h5py", "scipy"}


def test_serving_imports_no_tensorflow() -> None:
    """Neither what answers HTTP, nor what classifies."""
    program = (
        "import sys; from app.main import create_app; from app.settings import Settings;"
        "from app.workers.starting import options_of; from app.workers.process import NetworkLoader;"
        "create_app(Settings()); NetworkLoader(options_of(Settings())).classifier();"
        "print(sorted({'tensorflow', 'keras', 'h5py', 'tqdm', 'scipy'} & set(sys.modules)))"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"


def test_classifier_processes_import_no_settings() -> None:
    """They are ready 50 ms earlier without, and so is the service."""
    program = "import sys, app.workers.process; print('app.settings' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "False"


@pytest.mark.parametrize("name", [*LOCKS, CONNECTOR_5, DBT, KERAS_2, *PEERS])
def test_every_pin_has_hashes_and_no_index_is_named(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    entries = re.split(r"\n(?=\S)", text.strip())
    assert [entry for entry in entries if "--hash=sha256:" not in entry] == []
    assert "://" not in text
    assert "index-url" not in text


def test_every_environment_has_the_same_versions() -> None:
    versions: dict[str, set[str]] = {}
    for name in LOCKS:
        for package, version in locked(name).items():
            versions.setdefault(package, set()).add(version)
    assert {package: found for package, found in versions.items() if len(found) > 1} == {}


def test_images_carry_what_serving_needs() -> None:
    serving, full = locked("requirements.txt"), locked("requirements-full.txt")
    assert serving.items() <= full.items()
    assert full.keys() & {"tensorflow", "tensorflow-cpu"}


def test_locked_connectors_are_of_both_lines() -> None:
    assert locked("requirements.txt")["snowflake-connector-python"].startswith("4.")
    assert locked(CONNECTOR_5)["snowflake-connector-python"].startswith("5.")


def test_serving_carries_no_local_sql() -> None:
    assert not locked("requirements.txt").keys() & {"fakesnow", "duckdb", "pyarrow", "sqlglot", "trustme"}
