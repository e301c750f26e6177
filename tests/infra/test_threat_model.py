"""Each threat names tests that there are, and each picture is one that anybody can see and hear read out."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from tests.test_house import ROOT

PAGE = ROOT / "infra" / "docs" / "threat_model.md"
THREATS = [
    row
    for row in re.findall(r"^\|(.*\|.*\|.*\|.*)\|$", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    if not row.startswith(("---", " threat "))
]
TEST = re.compile(r"\[(test_\w+)\]\(\.\./\.\./(tests/[\w/]+\.py)\)")
PICTURES = sorted((ROOT / "infra" / "pictures").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


def threat_of(row: str) -> str:
    return row.partition("|")[0].strip()


def test_there_are_threats() -> None:
    assert len(THREATS) > 40


@pytest.mark.parametrize("row", THREATS, ids=threat_of)
def test_each_threat_is_tested_by_what_it_names(row: str) -> None:
    threat, done, shown, _ = row.split("|")
    assert threat.strip()
    assert done.strip()
    tests = TEST.findall(shown)
    assert tests or shown.strip() == "as above"
    for name, path in tests:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {name}\(|^    (async )?def {name}\(", source, re.MULTILINE), name


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_each_picture_has_a_title_a_description_and_a_ground_of_its_own(picture: Path) -> None:
    drawn = ET.parse(picture).getroot()  # noqa: S314 - ours
    title, description = drawn.find(f"{SVG}title"), drawn.find(f"{SVG}desc")
    assert title is not None
    assert title.text
    assert description is not None
    assert description.text
    ground = drawn.find(f"{SVG}rect")
    assert ground is not None
    # It must be readable on light and dark pages.
    sides = drawn.get("viewBox", "").split()[2:]
    assert [float(ground.get(side, 0)) for side in ("width", "height")] == pytest.approx(
        list(map(float, sides)), abs=2
    )
    assert set(re.findall(r"https?://[^\"']+", picture.read_text(encoding="utf-8"))) == {SVG.strip("{}")}


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_each_picture_is_shown_with_words_for_who_cannot_see_it(picture: Path) -> None:
    pages = [
        (ROOT / name).read_text(encoding="utf-8")
        for name in ("README.md", "infra/docs/architecture.md", "infra/docs/http.md")
    ]
    [words] = re.findall(rf"!\[([^\]]+)\]\((?:infra/|\.\./)pictures/{picture.name}\)", "".join(pages))
    assert len(words) > 80
