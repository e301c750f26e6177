"""Behaviour that needs a real connection."""

import http.client
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from urllib.parse import urlsplit

import pytest

from tests.app.forms import text_of
from tests.running import TIMEOUT_SECONDS, running_service

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_service(EXT_CLASSIFY_MAX_WAIT_SECONDS="60") as url:
        yield url


def ask(url: str, body: str) -> bytes:
    """The answer to a Snowflake batch."""
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_SECONDS)) as connection:
        connection.request("POST", "/classify", body=body, headers={"Content-Type": "application/json"})
        return connection.getresponse().read()


@pytest.mark.parametrize("content_type", ["image/png", "application/json", "multipart/form-data; boundary=b"])
def test_client_that_is_still_sending_sees_the_refusal(url: str, content_type: str) -> None:
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=TIMEOUT_SECONDS)) as connection:
        connection.request(
            "POST", "/classify", body=bytes(100_000_000), headers={"Content-Type": content_type}
        )
        answer = connection.getresponse()
        assert answer.status == 413
        assert json.load(answer)["error"]["code"] == "payload_too_large"
        connection.request("GET", "/healthz")
        assert connection.getresponse().status == 200


def test_many_clients_at_once_get_the_answers_of_one(url: str, sample: bytes) -> None:
    body = json.dumps({"data": [[n, text_of(sample) if n % 3 else "?"] for n in range(20)]})

    with ThreadPoolExecutor(32) as clients:
        answers = list(clients.map(lambda _: ask(url, body), range(32)))
    assert answers == [ask(url, body)] * 32
