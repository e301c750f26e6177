from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.images.source import Base64Text, HexText
from app.outcome import ImageStatistics, ModelIdentity, outcome_of_error
from app.workers.protocol import (
    Answers,
    FrameReader,
    Greeting,
    ServedModel,
    WaitingRow,
    format_frame,
    format_rows,
    parse_answers,
    parse_greeting,
    read_rows,
)
from model.errors import CorruptImage

MODEL = ModelIdentity(name="m", version="v")
OUTCOME = outcome_of_error(CorruptImage("brokeñ"), MODEL)

texts = st.binary()
images = st.one_of(texts, st.builds(Base64Text, texts), st.builds(HexText, texts))
calls = st.lists(st.builds(WaitingRow, images, st.booleans()), min_size=1)


@pytest.mark.slow
@given(st.lists(calls))
def test_read_rows_returns_the_formatted_rows(sent: list[list[WaitingRow]]) -> None:
    stream = BytesIO(b"".join(buffer for rows in sent for buffer in format_rows(rows)))
    assert list(iter(lambda: read_rows(stream), [])) == sent


@given(calls, st.data())
def test_truncated_call_raises_eof_error(rows: list[WaitingRow], data: st.DataObject) -> None:
    call = b"".join(format_rows(rows))
    cut = data.draw(st.integers(1, len(call) - 1))
    with pytest.raises(EOFError):
        read_rows(BytesIO(call[:cut]))


def pieces(content: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = [0, *sorted(cut % (len(content) + 1) for cut in cuts), len(content)]
    return (content[begin:end] for begin, end in pairwise(places))


@given(st.lists(st.integers(0, 10_000)))
def test_frames_are_assembled_from_any_pieces(cuts: list[int]) -> None:
    answers = [
        Answers([OUTCOME, None], {1: "RuntimeError: no"}, {0: ImageStatistics(0.5, 1e-7)}, 0.25, 0.5),
        Answers([], {}),
        Answers([OUTCOME] * 3),
    ]
    reader = FrameReader()
    frames = b"".join(map(format_frame, answers))
    arrived = [frame for piece in pieces(frames, cuts) for frame in reader.read(piece)]
    rows = [len(answer.outcomes) for answer in answers]
    assert list(map(parse_answers, arrived, rows)) == answers


def test_answers_to_another_number_of_rows_are_refused() -> None:
    [frame] = FrameReader().read(format_frame(Answers([OUTCOME])))
    with pytest.raises(ValueError, match=r"must be 2 outcomes\. Received: 1"):
        parse_answers(frame, rows=2)


def test_statistics_that_are_no_numbers_are_refused() -> None:
    answers = Answers([OUTCOME], statistics={0: ImageStatistics("bright", 0.1)})  # type: ignore[arg-type]
    [frame] = FrameReader().read(format_frame(answers))
    with pytest.raises(ValueError, match="bright"):
        parse_answers(frame, rows=1)


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"5",
        b"{}",
        b'{"outcomes":5}',
        b'{"outcomes":[5]}',
        b'{"outcomes":[{"label":"Pitted"}]}',
        b'{"outcomes":[null],"decode_seconds":NaN}',
        b'{"outcomes":[null],"predict_seconds":-1}',
        b'{"outcomes":[null],"decode_seconds":1e999}',
        b'{"outcomes":[null],"failures":{"first":"?"}}',
        b'{"outcomes":[null],"statistics":{"0":[0.5]}}',
        b"\xff",
    ],
)
def test_invalid_answers_raise_value_error(content: bytes) -> None:
    """The connection handles ValueError only; the event loop would receive other exceptions."""
    with pytest.raises(ValueError, match=r"."):
        parse_answers(content, rows=1)


@pytest.mark.parametrize("greeting", [Greeting(ServedModel(MODEL, {"a": [1]})), Greeting(refusal="no")])
def test_greeting_is_parsed_as_it_was_formatted(greeting: Greeting) -> None:
    [frame] = FrameReader().read(format_frame(greeting))
    assert parse_greeting(frame) == greeting


def test_image_is_sent_without_a_copy() -> None:
    images = [b"a" * 1000, b"b" * 1000, b"c" * 1000]
    rows = [images[0], Base64Text(images[1]), HexText(images[2])]
    _, *buffers = format_rows([WaitingRow(image, evidence=False) for image in rows])
    assert all(buffer is image for buffer, image in zip(buffers, images, strict=True))
