from app.outcome import (
    ImageStatistics,
    ModelIdentity,
    Outcome,
    Summary,
    blank_outcome,
    outcome_of_error,
    summarise,
)
from model.errors import CorruptImage

MODEL = ModelIdentity(name="m", version="v")
FAILED = outcome_of_error(CorruptImage("broken"), MODEL)


def labelled(label: str, confidence: float) -> Outcome:
    return {**blank_outcome(MODEL), "label": label, "confidence": confidence}


def abstained_on(nearest: str, confidence: float) -> Outcome:
    outcome = blank_outcome(MODEL)
    return {**outcome, "abstained": True, "nearest_label": nearest, "confidence": confidence}


def test_labels_are_of_images_that_have_one() -> None:
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


def test_nothing_has_no_mean() -> None:
    assert summarise([None, FAILED], []).figures() == {
        "labels": {},
        "abstained": 0,
        "mean_confidence": None,
        "mean_brightness": None,
        "mean_sharpness": None,
    }
