"""Brightness and sharpness of an image, independent of its content.

Sharpness is the variance of the Laplacian (J. L. Pech-Pacheco et al., Diatom autofocusing in brightfield
microscopy: a comparative study, ICPR 2000): an image that is out of focus has few edges.
"""

import numpy as np
from numpy.typing import NDArray

ROWS_APART = 4
"""Only every n-th row is measured: all rows give nearly the same values and take several times as long."""
# The weights that Pillow converts to grey with (ITU-R BT.601).
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
_WHITE = 255.0


def brightness_and_sharpness(pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Mean and variance of the Laplacian of the grey values, 0 to 1, of pixels (h, w, c).

    Both are computed from every fourth inner row. An image narrower or lower than 3 pixels has sharpness 0.
    """
    height, width, _ = pixels.shape
    if min(height, width) < 3:
        return float(_grey(pixels).mean()) / _WHITE, 0.0
    above, inside, below = (_grey(pixels[row : height - 2 + row : ROWS_APART]) for row in range(3))
    grey = inside.astype(np.float32)
    laplacian = grey[:, 1:-1] * -4
    for neighbours in (above[:, 1:-1], below[:, 1:-1], grey[:, :-2], grey[:, 2:]):
        laplacian += neighbours
    return _mean(grey.ravel()) / _WHITE, _variance(laplacian.ravel()) / _WHITE**2


def _grey(pixels: NDArray[np.uint8]) -> NDArray[np.uint8] | NDArray[np.float32]:
    """(h, w), 0 to 255."""
    if pixels.shape[2] == 1 or pixels.strides[2] == 0:  # all channels are equal
        return pixels[:, :, 0]
    grey: NDArray[np.float32] = pixels @ _LUMA
    return grey


# For arrays of this size, NumPy's mean and var take several times as long.
def _mean(values: NDArray[np.float32]) -> float:
    return float(np.add.reduce(values)) / values.size


def _variance(values: NDArray[np.float32]) -> float:
    return float(values.dot(values)) / values.size - _mean(values) ** 2
