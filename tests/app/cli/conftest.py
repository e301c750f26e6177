"""A service that reads the stages of the local SQL server."""

from collections.abc import Iterator

import pytest

from app.cli.service_process import own_service
from app.emulator import LocalServer


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as running:
        yield running


@pytest.fixture(scope="module")
def url(server: LocalServer) -> Iterator[str]:
    with own_service(environment=server.service_environment) as (url, _):
        yield url
