"""The log names the network that answers, and warns of one whose preprocessing is unconfirmed."""

import pytest

from app.workers.pool import log_model
from app.workers.protocol import ServedModel


@pytest.mark.parametrize("event", ["ready", "reloaded"])
@pytest.mark.parametrize("is_unchecked", [True, False])
def test_unchecked_network_is_named(
    caplog: pytest.LogCaptureFixture, event: str, *, is_unchecked: bool
) -> None:
    card = {"is_unchecked": is_unchecked, "preprocessing_check": "no images"}
    log_model(event, ServedModel({"name": "n", "version": "0"}, card))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [("no images" in warning and "--try" in warning) for warning in warnings] == [True] * is_unchecked
