import numpy as np
import pytest

from app.outcome import (
    CallSeconds,
    ImageStatistics,
    ModelIdentity,
    Outcome,
    Step,
    Steps,
    Summary,
    blank_outcome,
    outcome_of_error,
    summarise,
)
from app.workers.classify import outcome_of_probabilities
from model.errors import CorruptImage

MODEL = ModelIdentity(name="m", version="v")
FAILED = outcome_of_error(CorruptImage("broken"), MODEL)


def test_probabilities_keep_six_decimals() -> None:
    outcome = outcome_of_probabilities(np.array([0.25, 0.7499995], np.float32), ("a", "b"), MODEL)
    assert outcome["probabilities"] == {"a": 0.25, "b": pytest.approx(0.7499995, abs=5e-7)}
    assert outcome["label"] == "b"


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_probabilities_that_are_not_numbers_become_an_error(bad: float) -> None:
    outcome = outcome_of_probabilities(np.array([bad, 0.5], np.float32), ("a", "b"), MODEL)
    assert outcome["label"] is None
    assert outcome["error"] is not None
    assert outcome["error"]["code"] == "prediction_failed"


def test_seconds_of_parallel_rows_add_up_within_their_span() -> None:
    step = Step()
    step.note(2.0, 10.0, 12.0)
    step.note(3.0, 11.0, 14.0)
    step.note(0.5, 9.5, 10.0)
    assert step == Step(seconds=5.5, began=9.5, ended=14.0)


def test_rows_of_a_call_share_its_seconds() -> None:
    steps = Steps()
    for _ in range(4):
        steps.note_call(CallSeconds(decode=1.0, predict=2.0), rows=4, ended=20.0)
    assert steps.decode == Step(seconds=1.0, began=17.0, ended=18.0)
    assert steps.predict == Step(seconds=2.0, began=18.0, ended=20.0)
    assert steps.fetch.seconds == 0


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_of_two_requests_in_one_call_have_their_shares(rows: int) -> None:
    steps = Steps()
    for _ in range(rows):
        steps.note_call(CallSeconds(decode=0.0, predict=8.0), rows=4, ended=8.0)
    assert steps.predict == Step(seconds=2.0 * rows, began=0.0, ended=8.0)


def labelled(label: str, confidence: float) -> Outcome:
    return {**blank_outcome(MODEL), "label": label, "confidence": confidence}


def abstained_on(nearest: str, confidence: float) -> Outcome:
    outcome = blank_outcome(MODEL)
    return {**outcome, "abstained": True, "nearest_label": nearest, "nearest_confidence": confidence}


def test_labels_count_only_images_that_have_one() -> None:
    outcomes = [
        labelled("b", 0.9),
        None,
        FAILED,
        abstained_on("b", 0.3),
        labelled("a", 0.5),
        labelled("b", 1.0),
    ]
    summary = summarise(outcomes, [])
    assert summary == Summary({"a": 1, "b": 2}, 1, [0.9, 0.5, 1.0], [])
    assert summary.figures() == {
        "labels": {"a": 1, "b": 2},
        "abstained": 1,
        "mean_confidence": 0.8,
        "mean_brightness": None,
        "mean_sharpness": None,
    }


def test_means_are_rounded() -> None:
    statistics = [ImageStatistics(0.123456, 0.00123456), ImageStatistics(0.2, 0.002)]
    figures = summarise([labelled("a", 0.123456)], statistics).figures()
    assert (figures["mean_brightness"], figures["mean_sharpness"]) == (0.1617, 0.001617)
    assert figures["mean_confidence"] == 0.1235


def test_mean_of_nothing_is_null() -> None:
    assert summarise([None, FAILED], []).figures() == {
        "labels": {},
        "abstained": 0,
        "mean_confidence": None,
        "mean_brightness": None,
        "mean_sharpness": None,
    }
