"""Draw the six sample images: one for each kind of defect on hot-rolled steel.

The drawings imitate the classes of the NEU surface defect database, so that a fresh clone has images to
classify. They are computed from noise and curves and contain no photographic data.

Run `python -m tests.draw_samples` to regenerate them.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from model.defaults import SAMPLES
from model.image import encode_png, to_pixels

SIDE = 200
SEEDS = {"crazing": 1, "inclusion": 1, "patches": 1, "pitted": 1, "rolled": 1, "scratches": 1}
# A kernel is truncated where it falls to about a hundredth of its peak.
KERNEL_REACH = 3.0
TAPER_PIXELS = 10.0
# In standard deviations of the noise that is thresholded to flecks.
FLECK_SOFTNESS = 0.8

Field = NDArray[np.float64]


def crazing(random: Generator) -> Field:
    """A grainy background with vertical bands, under a net of thin dark cracks that are mostly horizontal."""
    ground = 155.0 + 16.0 * _noise(random, 120.0, 14.0) + 10.0 * _noise(random, 60.0, 60.0)
    grain = 0.09 * _noise(random, 0.8, 0.6) + 0.06 * _noise(random, 2.2, 2.0)
    cracks = _strongest([_crack(random) for _ in range(random.integers(25, 35))])
    broken = cracks * np.clip(0.75 + 0.35 * _noise(random, 0.8, 1.2), 0.0, 1.2)
    holes = _flecks(random, 3.0, 1.7, 3.6 - 0.7 * _noise(random, 40.0, 14.0))
    return ground * (1.0 + grain) * (1.0 - 0.42 * broken) * (1.0 - 0.6 * holes)


def inclusion(random: Generator) -> Field:
    """A smooth background with faint vertical streaks; dark vertical slivers cluster along a few of them."""
    ground = 105.0 + 9.0 * _noise(random, 70.0, 70.0) + 3.0 * _noise(random, 90.0, 4.0)
    grain = 2.0 * _noise(random, 0.6, 0.6) + 1.8 * _noise(random, 4.0, 1.2)
    slivers = _flecks(random, 9.0, 1.8, 2.5 - 0.8 * _noise(random, 35.0, 9.0))
    band = _streak(_path(random, 20.0, 2.0), random.uniform(3.0, 7.0)).T
    return ground + grain - 26.0 * slivers - 9.0 * band * (1.0 + 0.5 * _noise(random, 25.0, 2.0))


def patches(random: Generator) -> Field:
    """Large dark blotches with ragged edges on a bright grainy background."""
    ground = 190.0 + 28.0 * _noise(random, 90.0, 25.0) + 16.0 * _noise(random, 25.0, 25.0)
    shape = _noise(random, 24.0, 14.0) + 0.15 * _noise(random, 5.0, 4.0) + 0.06 * _noise(random, 1.5, 1.2)
    blotches = _step(shape - 0.3, 0.25)
    shade = 60.0 + 9.0 * _noise(random, 14.0, 8.0)
    grain = 13.5 * _noise(random, 0.65, 0.5) + 7.0 * _noise(random, 2.5, 1.5)
    return ground + (shade - ground) * blotches + grain * (1.0 - 0.4 * blotches)


def pitted(random: Generator) -> Field:
    """A bright, smoothly lit background with very many small dark pits of varying density."""
    ground = 212.0 + 25.0 * _noise(random, 70.0, 70.0) + 3.0 * _noise(random, 90.0, 3.0)
    pits = _flecks(random, 1.4, 1.0, 1.1 + 0.5 * _noise(random, 50.0, 30.0))
    large = _flecks(random, 2.4, 1.8, 3.0 + 0.6 * _noise(random, 40.0, 20.0))
    return ground - 42.0 * pits - 45.0 * large + 2.0 * _noise(random, 0.6, 0.6)


def rolled(random: Generator) -> Field:
    """A mid-grey, slightly slanted texture with clusters of small flat dark flecks, each with a light rim."""
    ground = 128.0 + 11.0 * _noise(random, 90.0, 20.0) + 6.0 * _noise(random, 9.0, 12.0)
    brushed = _sheared(_noise(random, 1.2, 5.0), random.uniform(-0.1, 0.35))
    grain = 4.0 * brushed + 6.0 * _noise(random, 0.5, 0.75)
    flecks = _flecks(random, 1.5, 2.6, 2.7 - 1.2 * _noise(random, 14.0, 10.0))
    return ground + grain - 48.0 * flecks + 14.0 * np.roll(flecks, 2, axis=0)


def scratches(random: Generator) -> Field:
    """A smooth dark background with a few bright lines, long and nearly straight, all in one direction."""
    ground = 86.0 + 9.0 * _noise(random, 70.0, 70.0) + 3.0 * _noise(random, 3.0, 50.0)
    lines = _strongest([_scratch(random) for _ in range(random.integers(1, 5))])
    bundles = _strongest([_streak(_path(random, 50.0, 3.0), 9.0) for _ in range(2)])
    fine = _flecks(random, 0.8, 25.0, 3.6 - 2.4 * bundles) * random.uniform(0.3, 0.9)
    shine = 120.0 * (0.85 + 0.2 * _noise(random, 0.6, 2.0))
    image = ground + shine * np.maximum(lines, fine) + 2.0 * _noise(random, 0.7, 0.7)
    return image.T if random.random() < 0.5 else image


DRAWINGS: dict[str, Callable[[Generator], Field]] = {
    "crazing": crazing,
    "inclusion": inclusion,
    "patches": patches,
    "pitted": pitted,
    "rolled": rolled,
    "scratches": scratches,
}


def draw(name: str, seed: int) -> NDArray[np.uint8]:
    """Draw one defect; the same seed gives the same pixels."""
    return to_pixels(DRAWINGS[name](np.random.default_rng(seed)))


def main() -> None:
    SAMPLES.mkdir(exist_ok=True)
    for name, seed in SEEDS.items():
        path = SAMPLES / f"{name}.png"
        path.write_bytes(encode_png(draw(name, seed)))
        print(path)


def _crack(random: Generator) -> Field:
    slope = random.uniform(-0.2, 0.2) * (np.arange(SIDE) - SIDE / 2)
    path = slope + _path(random, 9.0, 4.0) + _wander(random, 2.0, 1.3)
    strength = _span(random, 15.0, 90.0) * np.clip(0.7 + _wander(random, 5.0, 0.3), 0.1, 1.0)
    return _streak(path, random.uniform(1.0, 1.9), strength)


def _scratch(random: Generator) -> Field:
    path = _path(random, 40.0, 1.5)
    strength = _span(random, 40.0, 300.0) * np.clip(0.8 + _wander(random, 5.0, 0.25), 0.2, 1.2)
    return _streak(path, random.uniform(0.7, 3.0), random.uniform(0.4, 1.0) * strength)


def _streak(path: Field, width: Field | float, strength: Field | float = 1.0) -> Field:
    """A line from left to right, centred in each column on the row given by `path`."""
    distance = np.abs(np.arange(SIDE)[:, None] - path)
    return strength * np.exp(-((distance / width) ** 3))


def _strongest(fields: list[Field]) -> Field:
    return np.asarray(np.max(fields, axis=0))


def _flecks(random: Generator, down: float, across: float, sparseness: Field | float) -> Field:
    """Small spots, 0..1, where noise of the given grain exceeds `sparseness` standard deviations."""
    return _step(_noise(random, down, across) - sparseness, FLECK_SOFTNESS)


def _sheared(field: Field, slope: float) -> Field:
    """Shear a field vertically; rows wrap around, which is invisible in noise."""
    columns = np.arange(SIDE)
    rows = columns[:, None] + np.rint(slope * columns).astype(np.int64)
    return np.asarray(field[rows % SIDE, columns])


def _span(random: Generator, shortest: float, longest: float) -> Field:
    """1 along a random stretch and 0 elsewhere, with tapered ends."""
    half = random.uniform(shortest, longest) / 2
    distance = np.abs(np.arange(SIDE) - random.uniform(0.0, SIDE))
    return np.asarray(np.clip((half - distance) / TAPER_PIXELS, 0.0, 1.0))


def _step(field: Field, softness: float) -> Field:
    """A smooth step from 0 to 1 where the field crosses zero."""
    return 0.5 + 0.5 * np.tanh(field / softness)


def _path(random: Generator, grain: float, height: float) -> Field:
    """A curve that wanders around some row of the image."""
    return random.uniform(0.0, SIDE) + _wander(random, grain, height)


def _wander(random: Generator, grain: float, height: float) -> Field:
    """A smooth random curve around zero, one value for each column."""
    weights = _kernel(grain)
    return height * (weights @ random.standard_normal(weights.shape[1]))


def _noise(random: Generator, down: float, across: float) -> Field:
    """Gaussian noise of mean 0 and standard deviation 1, with a grain of `down` x `across` pixels."""
    rows, columns = _kernel(down), _kernel(across)
    return rows @ random.standard_normal((rows.shape[1], columns.shape[1])) @ columns.T


def _kernel(grain: float) -> Field:
    """Matrix that blurs white noise and preserves its deviation; it reads noise beyond the edges, too."""
    reach = int(np.ceil(KERNEL_REACH * grain))
    offsets = np.arange(-reach, SIDE + reach) - np.arange(SIDE)[:, None]
    weights = np.exp(-0.5 * (offsets / grain) ** 2)
    return np.asarray(weights / np.sqrt((weights**2).sum(axis=1, keepdims=True)))


if __name__ == "__main__":
    main()
