"""Private names of dependencies have upper bounds, and a test names those that an upgrade removes."""

import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, Histogram

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"

NAMES = {
    "aiohttp": [
        ("aiohttp.client_proto", "ResponseHandler"),
        ("aiohttp.http", "RawResponseMessage"),
    ],
    "uvicorn": [
        ("uvicorn.config", "STARTUP_FAILURE"),
        ("uvicorn.protocols.http.flow_control", "HIGH_WATER_LIMIT"),
        ("uvicorn.protocols.http.flow_control", "FlowControl.resume_reading"),
        ("uvicorn.protocols.http.httptools_impl", "STATUS_LINE"),
        ("uvicorn.protocols.http.httptools_impl", "RequestResponseCycle.send"),
        ("uvicorn.protocols.utils", "get_local_addr"),
        ("uvicorn.protocols.utils", "get_remote_addr"),
        ("uvicorn.server", "ServerState"),
        ("uvicorn.supervisors.multiprocess", "Multiprocess"),
        ("uvicorn.supervisors.multiprocess", "Process.is_ready"),
    ],
    "tensorflow": [
        ("tensorflow.lite.python.convert", "mlir_quantize"),
        ("tensorflow.lite.python.optimize.calibrator", "Calibrator"),
    ],
    "fakesnow": [
        ("fakesnow.conn", "FakeSnowflakeConnection"),
        ("fakesnow.cursor", "FakeSnowflakeCursor"),
        ("fakesnow.dialect", "parse_one"),
        ("fakesnow.instance", "FakeSnow"),
        ("fakesnow.server", "query_request"),
        ("fakesnow.server", "routes"),
        ("fakesnow.server", "sessions"),
        ("fakesnow.transforms", "SERVER_VERSION"),
    ],
}


@pytest.mark.parametrize(("module", "name"), [name for names in NAMES.values() for name in names])
def test_private_name_exists(module: str, name: str) -> None:
    found = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)


def test_histogram_of_prometheus_client_has_its_private_attributes() -> None:
    """`app.telemetry.metrics.Distribution` adds many values at once."""
    histogram = Histogram("h", "A histogram.", buckets=(1.0,), registry=CollectorRegistry())
    assert list(histogram._upper_bounds) == [1.0, float("inf")]  # noqa: SLF001
    for value in (histogram._sum, *histogram._buckets):  # noqa: SLF001
        value.inc(1)
        assert value.get() == 1


def test_operations_of_keras_have_their_private_module() -> None:
    """`model.networks.keras_model` restores the arithmetic that an .h5 names without a module."""
    import keras  # noqa: PLC0415 - slow
    from keras.src import ops as operations  # noqa: PLC0415 - slow

    named = (
        operations.numpy.TrueDivide,
        operations.nn.Softmax,
        operations.core.Cast,
        operations.image.Resize,
    )
    assert all(issubclass(kind, keras.Operation) for kind in named)


def test_layer_of_keras_has_its_private_attributes() -> None:
    """`model.compile` follows the calls of a layer."""
    import keras  # noqa: PLC0415 - slow

    layer = keras.layers.Dense(1)
    tensor = keras.Input((2,))
    layer(tensor)
    [node] = layer._inbound_nodes  # noqa: SLF001
    assert [id(one) for one in node.input_tensors] == [id(tensor)]


@pytest.mark.parametrize("package", ["keras", "prometheus-client", *NAMES])
def test_package_with_private_names_has_an_upper_bound(package: str) -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    requirements = [
        *project["dependencies"],
        *(one for extra in project["optional-dependencies"].values() for one in extra),
    ]
    bounded = [",<" in one for one in requirements if one.startswith((f"{package}>", f"{package}["))]
    assert bounded
    assert all(bounded)
