import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter
from scipy.ndimage import laplace

from model.image import ROWS_APART, ImageSpec, brightness_and_sharpness, decode
from model.image_limits import ImageLimits
from tests.model.pictures import Pixels, encode, noise

SPEC = ImageSpec(height=200, width=200, channels=1)


def pixels_of(image: Image.Image | bytes, channels: int = 1) -> Pixels:
    content = image if isinstance(image, bytes) else encode(image, "PNG")
    spec = SPEC.model_copy(update={"channels": channels})
    return decode(content, spec, ImageLimits())


def of_every_row(grey: np.ndarray) -> tuple[float, float]:
    """Brightness and sharpness of all rows, by SciPy's Laplacian."""
    inside = laplace(grey.astype(np.float64) / 255)[1:-1, 1:-1]
    return float(grey.mean()) / 255, float(inside.var())


@pytest.mark.parametrize("size", [(200, 200), (3, 3), (6, 5), (37, 200), (200, 4)])
def test_mean_and_variance_of_the_laplacian_are_of_every_fourth_row(size: tuple[int, int]) -> None:
    pixels = noise(*size, channels=1, seed=sum(size))
    grey = pixels[:, :, 0].astype(np.float64) / 255
    brightness, sharpness = brightness_and_sharpness(pixels)
    assert brightness == pytest.approx(grey[1:-1:ROWS_APART].mean(), rel=1e-5)
    assert sharpness == pytest.approx(laplace(grey)[1:-1:ROWS_APART, 1:-1].var(), rel=1e-4, abs=1e-7)


def test_every_fourth_row_represents_all_rows(neu_dir: Path) -> None:
    files = sorted((neu_dir / "test").glob("*/*"))
    assert files
    images = [pixels_of(path.read_bytes()) for path in files]
    found = np.array([brightness_and_sharpness(pixels) for pixels in images])
    whole = np.array([of_every_row(pixels[:, :, 0]) for pixels in images])
    assert np.abs(found / whole - 1).max() < 0.1
    assert found.mean(axis=0) == pytest.approx(whole.mean(axis=0), rel=0.01)


def test_brightness_and_sharpness_are_independent(sample: bytes) -> None:
    image = Image.open(io.BytesIO(sample)).convert("L")
    brightness, sharpness = brightness_and_sharpness(pixels_of(image))
    darker, _ = brightness_and_sharpness(pixels_of(image.point(lambda grey: grey // 2)))
    as_bright, blurred = brightness_and_sharpness(pixels_of(image.filter(ImageFilter.GaussianBlur(2))))
    assert darker == pytest.approx(brightness / 2, abs=0.005)
    assert as_bright == pytest.approx(brightness, abs=0.005)
    assert blurred < 0.1 * sharpness


@pytest.mark.parametrize("channels", [1, 3])
def test_blank_image_has_its_grey_and_no_sharpness(channels: int) -> None:
    for grey in (0, 51, 255):
        pixels = pixels_of(Image.new("L", (200, 200), grey), channels)
        assert brightness_and_sharpness(pixels) == (pytest.approx(grey / 255), 0.0)


def test_coloured_image_is_measured_as_grey() -> None:
    image = Image.fromarray(noise(200, 200))
    colour = brightness_and_sharpness(pixels_of(image, channels=3))
    assert colour == pytest.approx(brightness_and_sharpness(pixels_of(image, channels=1)), rel=0.01)


@pytest.mark.parametrize("size", [(1, 1), (2, 200), (200, 2)])
def test_image_without_inner_pixels_has_no_sharpness(size: tuple[int, int]) -> None:
    pixels = np.full((*size, 1), 51, np.uint8)
    assert brightness_and_sharpness(pixels) == (pytest.approx(0.2), 0.0)
