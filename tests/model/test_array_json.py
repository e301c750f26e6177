"""Arrays round-trip through a card, or the card is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from pydantic import ValidationError

from model.arrays import ArrayJson

NUMBERS = st.floats(allow_nan=False, allow_infinity=False, width=32)


@pytest.mark.slow
@given(arrays(np.float32, array_shapes(max_dims=3, max_side=5), elements=NUMBERS))
def test_array_round_trips(array: np.ndarray) -> None:
    json_array = ArrayJson.model_validate_json(ArrayJson.from_array(array).model_dump_json())
    assert np.array_equal(json_array.to_array(), array)
    assert json_array.to_array().dtype == np.float32


@pytest.mark.parametrize(
    ("shape", "float32", "fault"),
    [
        ((2,), "AAAA", "8 bytes. Received: 3"),
        ((1,), "AAAA????", "base64"),
        ((1,), "AACAfw==", "finite"),  # infinity
        ((0,), "", "greater than or equal to 1"),
    ],
)
def test_invalid_array_is_refused(shape: tuple[int, ...], float32: str, fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        ArrayJson(shape=shape, float32=float32)
