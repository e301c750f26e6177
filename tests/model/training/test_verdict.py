"""The verdict says in words what a training has achieved."""

from dataclasses import replace

import numpy as np
import pytest

from model.training.metrics import Unseen, verdict

NAMES = ("banded", "braided", "dotted")


def answers(right: tuple[int, ...], shown: int, *, instead: int = 2, abstained: int = 1) -> Unseen:
    """`shown` images of each class, of which some are right and the others taken for class `instead`."""
    labels = np.repeat(np.arange(len(right)), shown)
    is_right = np.tile(np.arange(shown), len(right)) < np.repeat(right, shown)
    return Unseen(
        labels, np.where(is_right, labels, instead), np.arange(len(labels)) < abstained, "by 5 folds"
    )


def test_weak_classes_of_few_images_are_named_worst_first() -> None:
    said = verdict(answers((12, 6, 15), 15), np.ones(86, dtype=bool), NAMES, np.array([15, 15, 15]))
    assert "right on 33 of 45 unseen images, by 5 folds (95 % interval 59% to 84%)." in said
    assert "Too few photographs of braided (6 of 15 right); add others until it has 30 or more." in said
    assert "Recognises foreign images: abstains on 86 of 86 drawn ones, and on 1 of 45" in said


def test_several_classes_need_twice_the_images_of_the_largest() -> None:
    said = verdict(answers((10, 20, 40), 40), np.ones(9, dtype=bool), NAMES, np.array([40, 50, 40]))
    assert (
        "of banded (10 of 40 right) and braided (20 of 40 right); add others until each has 100 or more"
        in said
    )


def test_weak_class_of_many_images_is_to_be_checked() -> None:
    said = verdict(answers((60, 100, 100), 100), np.ones(9, dtype=bool), NAMES, np.array([500, 500, 500]))
    assert "Check the labels of banded (60 of 100 right), often taken for dotted." in said
    assert "Too few" not in said


def test_good_network_needs_no_advice() -> None:
    said = verdict(answers((15, 14, 15), 15), np.ones(86, dtype=bool), NAMES, np.array([15, 15, 15]))
    assert "Too few" not in said
    assert "Check" not in said
    assert "not clearly better" not in said


def test_guessing_is_called_guessing() -> None:
    said = verdict(answers((0, 0, 15), 15), np.ones(86, dtype=bool), NAMES, np.array([15, 15, 15]))
    assert "not clearly better than always naming the largest class, 15 of 45" in said


@pytest.mark.parametrize(
    ("abstained", "words"),
    [
        (0, "Does not recognise foreign images: abstains on 0 of 86"),
        (60, "Recognises only some foreign images"),
    ],
)
def test_foreign_images_that_are_answered_are_counted(abstained: int, words: str) -> None:
    foreign = np.arange(86) < abstained
    assert words in verdict(answers((15, 15, 15), 15), foreign, NAMES, np.array([15, 15, 15]))


def test_network_without_a_detector_never_abstains() -> None:
    unseen = Unseen(np.arange(3), np.arange(3), None)
    assert "it never abstains" in verdict(unseen, None, NAMES, np.array([9, 9, 9]))


def test_many_weak_classes_are_counted() -> None:
    names = tuple("abcdefghi")
    said = verdict(answers((0,) * 9, 3, instead=8), np.ones(1, dtype=bool), names, np.full(9, 5))
    assert "e (0 of 3 right) and 3 more classes" in said


def test_classes_of_unknown_sizes_are_to_be_checked() -> None:
    unseen = replace(answers((15, 3, 15), 15), how="", what="train images")
    said = verdict(unseen, None, NAMES, None)
    assert said.startswith("Verdict: right on 33 of 45 train images (95 %")
    assert "Check the labels of braided (3 of 15 right), often taken for dotted." in said
    assert "photographs" not in said


def test_classes_to_check_are_set_apart_from_what_they_are_taken_for() -> None:
    said = verdict(answers((1, 2, 15), 15), None, NAMES, None)
    assert "banded (1 of 15 right), often taken for dotted; and braided (2 of 15" in said
    said = verdict(answers((1, 2, 3, 15), 15, instead=3), None, (*NAMES, "woven"), None)
    assert "often taken for woven; braided (2 of 15 right), often taken for woven; and dotted" in said
