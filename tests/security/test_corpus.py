"""Each input of the fuzzing corpus runs through its target."""

from pathlib import Path

import pytest

from tests.fuzz.targets import TARGETS

CORPUS = Path(__file__).parents[1] / "fuzz" / "corpus"


@pytest.mark.parametrize("target", TARGETS)
def test_corpus_holds(target: str) -> None:
    found = sorted((CORPUS / target).iterdir())
    assert len(found) > 40
    for path in found:
        TARGETS[target](path.read_bytes())
