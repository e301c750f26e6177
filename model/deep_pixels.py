"""Scale integer pixels of more than 8 bits, and float pixels, to 8 bits without clipping."""

import numpy as np
from numpy.typing import NDArray

from model.errors import CorruptImage

# White levels assumed for formats that do not state one: 0..1, 8-bit and 16-bit images.
USUAL_WHITES = (1.0, 255.0, 65535.0)
# Rows are scaled in float64, which no float32 range overflows, in small blocks to bound memory.
_ROWS_AT_A_TIME = 64


def scale_integers(values: NDArray[np.uint16], bits: int) -> NDArray[np.uint8]:
    """Scale unsigned pixels (h, w) of `bits` bits, 9 to 16, so that full white becomes 255."""
    table = np.rint(np.arange(2**16) * (255.0 / (2**bits - 1))).clip(0, 255).astype(np.uint8)
    scaled: NDArray[np.uint8] = table[values]
    return scaled


def scale_to_fit(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scale pixels (h, w) of a format that does not state its white level.

    White is the first of USUAL_WHITES that no pixel exceeds. If a pixel exceeds all of them or is negative,
    the range from minimum to maximum is stretched to 0..255. Raises CorruptImage for NaN or infinity.
    """
    low, high = float(values.min()), float(values.max())
    if not np.isfinite((low, high)).all():
        raise CorruptImage("Float pixels must be finite. Received: NaN or infinity.")
    black, white = _black_and_white(low, high)
    scaled = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _ROWS_AT_A_TIME):
        rows = values[start : start + _ROWS_AT_A_TIME].astype(np.float64)
        scaled[start : start + _ROWS_AT_A_TIME] = np.rint((rows - black) / (white - black or 1.0) * 255.0)
    return scaled


def _black_and_white(low: float, high: float) -> tuple[float, float]:
    for white in USUAL_WHITES:
        if low >= 0.0 and high <= white:
            return 0.0, white
    return low, high
