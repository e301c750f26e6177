"""What several tests share: the shipped artifact's service, sample images, and the real ones if given."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

# Each worker has one core: threads of their own would spin while they wait for each other. Before NumPy.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("TF_NUM_INTEROP_THREADS", "1")
# Otherwise each login asks for a cloud around this machine, in six threads, for up to 0.2 s.
os.environ.setdefault("SNOWFLAKE_DISABLE_PLATFORM_DETECTION", "true")

import hypothesis
import pytest
from starlette.testclient import TestClient

from app.main import create_app
from app.settings import Settings

SAMPLES = Path(__file__).parent.parent / "model" / "samples"

# Tests share the cores, so that an example's time says nothing.
hypothesis.settings.register_profile("shared-cores", deadline=None)
hypothesis.settings.load_profile("shared-cores")

# A shell starts background jobs deaf to Ctrl-C, and processes inherit that: tests that press it would hang.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """What collection imports is never garbage: not looking for any there takes a fifth of its time off."""
    gc.disable()
    collected = yield
    gc.freeze()
    gc.enable()
    return collected


@pytest.fixture(autouse=True)
def _own_signal_handlers() -> Iterator[None]:
    """A command that runs in this process sets handlers, which would end a later test quietly."""
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def neu_dir() -> Path:
    """The real NEU images, which are not ours to ship."""
    if not os.environ.get("NEU_DATA_DIR"):
        pytest.skip("NEU_DATA_DIR does not name a folder of the real NEU images: make test NEU_DATA_DIR=DIR")
    return Path(os.environ["NEU_DATA_DIR"]).resolve(strict=True)


@pytest.fixture(scope="session")
def sample() -> bytes:
    """One drawn sample, a PNG of 200 x 200 pixels."""
    return (SAMPLES / "scratches.png").read_bytes()


@pytest.fixture(scope="session")
def client() -> Iterator[TestClient]:
    """The service with its default settings and the shipped artifact."""
    with TestClient(create_app(Settings())) as client:
        yield client
