"""Whatever fuzzing has found to reach something of its own goes through its target again."""

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
