"""Requests in each form, and the answers taken apart."""

import base64
import json
from typing import Any

from starlette.testclient import TestClient


def text_of(image: bytes) -> str:
    return base64.b64encode(image).decode()


def post_rows(client: TestClient, rows: list[Any], **headers: str) -> list[Any]:
    """The data of the answer to a Snowflake batch."""
    answer = client.post("/classify", json={"data": rows}, headers=headers)
    assert answer.status_code == 200, answer.text
    return strict_json(answer.content)["data"]


def post_source(client: TestClient, source: object) -> Any:
    """The outcome of a batch of one."""
    [[number, outcome]] = post_rows(client, [[0, source]])
    assert number == 0
    return outcome


def strict_json(content: bytes) -> Any:
    """JSON as RFC 8259 has it: no NaN, no Infinity."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    return json.loads(content, parse_constant=refuse)
