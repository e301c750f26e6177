import pytest

from tests.container.engine import IMAGE


@pytest.fixture(scope="module", autouse=True)
def image() -> str:
    if not IMAGE:
        pytest.skip("CONTAINER_IMAGE names no image: make container-test")
    return IMAGE
