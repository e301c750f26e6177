import numpy as np
import pytest

from app.outcome import ModelIdentity
from app.workers.classify import outcome_of_probabilities

MODEL = ModelIdentity(name="m", version="v")


def test_probabilities_keep_six_decimals() -> None:
    outcome = outcome_of_probabilities(np.array([0.25, 0.7499995], np.float32), ("a", "b"), MODEL)
    assert outcome["probabilities"] == {"a": 0.25, "b": pytest.approx(0.7499995, abs=5e-7)}
    assert outcome["label"] == "b"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_probabilities_that_are_no_numbers_become_an_error(bad: float) -> None:
    outcome = outcome_of_probabilities(np.array([bad, 0.5], np.float32), ("a", "b"), MODEL)
    assert outcome["label"] is None
    assert outcome["error"] is not None
    assert outcome["error"]["code"] == "prediction_failed"
