"""Hundreds of files that Pillow writes, and BMPs that nothing here writes, decode to what they were made of.

`python -m tests.trials.pictures` compares more of them with libvips and OpenCV.
"""

import pytest

from model.errors import InputError
from tests.trials.pictures import HEIGHT, WIDTH, Picture, by_hand, by_pillow, decoded_here, is_same

UNSUPPORTED = ("other", "BMP 4444", "BMP 2101010", "BMP rgba")


def is_decoded(picture: Picture) -> bool:
    return not picture.name.startswith(UNSUPPORTED)


@pytest.mark.slow
def test_files_show_what_they_were_made_of() -> None:
    different = [
        picture.name
        for picture in (*by_pillow(), *by_hand())
        if is_decoded(picture)
        and not is_same(decoded_here(picture.data, (HEIGHT, WIDTH)), picture.expected, picture)
    ]
    assert different == []


def test_other_kinds_are_refused_by_name() -> None:
    for picture in by_hand():
        if not is_decoded(picture):
            with pytest.raises(InputError) as refused:
                decoded_here(picture.data, (HEIGHT, WIDTH))
            assert refused.value.code == "unsupported_format", picture.name
