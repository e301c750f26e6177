import json

import pytest

from app.api.answers import refusal_of
from app.errors import Unauthorized


@pytest.mark.parametrize("message", ["half of a pair: \ud800", "\udfff" * 1000, "whole: \U0001f600", "é"])
def test_every_message_can_be_sent(message: str) -> None:
    answer = refusal_of(Unauthorized(message))
    assert answer.status_code == 401
    sent = json.loads(bytes(answer.body))["error"]["message"]
    assert sent == message.encode("utf-8", "backslashreplace").decode()
