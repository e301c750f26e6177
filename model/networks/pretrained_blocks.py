"""The pretrained network: the first eight blocks of EfficientNet-Lite0, complete or with fewer filters."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from io import BytesIO

import keras
import numpy as np
from keras import layers
from numpy.typing import NDArray

from model.arrays import Floats

WEIGHTS = "pretrained/efficientnet_lite0.npz"
NORM_EPSILON = 1e-3
PIXEL_SCALE, PIXEL_OFFSET = 1 / 128, -127 / 128
"""The scaling of pixels 0..255 that it was trained with."""


@dataclass(frozen=True)
class Block:
    """An inverted residual block. `expanded` is None if it does not expand, like the first."""

    kernel: int
    strides: int
    expanded: int | None
    filters: int


@dataclass(frozen=True)
class Convolution:
    """A kernel in Keras's layout, and its batch normalisation (4, c): gamma, beta, mean, variance."""

    kernel: Floats
    norm: Floats

    def folded(self, *, depthwise: bool) -> list[Floats]:
        """Kernel and bias of an equal convolution without normalisation."""
        gamma, beta, mean, variance = self.norm
        factor = gamma / np.sqrt(variance + NORM_EPSILON)
        shape = (-1, 1) if depthwise else (-1,)
        return [self.kernel * factor.reshape(shape), beta - mean * factor]


STEM_FILTERS = 32
BLOCKS = (
    Block(3, 1, None, 16),
    Block(3, 2, 96, 24),
    Block(3, 1, 144, 24),
    Block(5, 2, 144, 40),
    Block(5, 1, 240, 40),
    Block(3, 2, 240, 80),
    Block(3, 1, 480, 80),
    Block(3, 1, 480, 80),
)


def load_convolutions(channels: int, stem_filters: int, blocks: tuple[Block, ...]) -> list[Convolution]:
    """Weights, in the order of the layers, of a network with the same or fewer filters inside its blocks.

    Keeps the filters with the largest weights in the next layer. For a single channel, the stem's kernels are
    summed over colours.
    """
    # A warehouse imports this package from a zip.
    content = files("model.networks").joinpath(WEIGHTS).read_bytes()
    with np.load(BytesIO(content)) as weights:
        kept = _strongest(np.abs(weights["block0/project/kernel"][0, 0]).sum(axis=1), stem_filters)
        kernel = weights["stem/kernel"][..., kept]
        if channels == 1:
            kernel = kernel.sum(axis=2, keepdims=True)
        found = [Convolution(kernel, weights["stem/norm"][:, kept])]
        for number, block in enumerate(blocks):
            found += _load_block(weights, number, block, kept)
    return found


def apply_block(
    x: keras.KerasTensor, block: Block, convolve: Callable[..., keras.KerasTensor]
) -> keras.KerasTensor:
    """Apply a block to features; `convolve(x, layer type, *size, active, strides)` adds one convolution."""
    before = x
    if block.expanded is not None:
        x = convolve(x, layers.Conv2D, block.expanded, 1)
    x = convolve(x, layers.DepthwiseConv2D, block.kernel, strides=block.strides)
    x = convolve(x, layers.Conv2D, block.filters, 1, active=False)
    return layers.Add()([before, x]) if before.shape == x.shape else x


def _load_block(
    weights: "np.lib.npyio.NpzFile", number: int, block: Block, arriving: NDArray[np.intp]
) -> list[Convolution]:
    def part(name: str) -> Convolution:
        prefix = f"block{number}/{name}"
        return Convolution(weights[f"{prefix}/kernel"], weights[f"{prefix}/norm"])

    depthwise, project = part("depthwise"), part("project")
    kept, found = arriving, []
    if block.expanded is not None:
        importance = np.linalg.norm(project.kernel[0, 0], axis=1) * np.abs(depthwise.norm[0])
        kept = _strongest(importance, block.expanded)
        expand = part("expand")
        found.append(Convolution(expand.kernel[..., kept], expand.norm[:, kept]))
    found.append(Convolution(depthwise.kernel[:, :, kept], depthwise.norm[:, kept]))
    found.append(Convolution(project.kernel[:, :, kept], project.norm))
    return found


def _strongest(importance: Floats, count: int) -> NDArray[np.intp]:
    """Indices of the `count` largest values, in ascending order."""
    return np.sort(np.argsort(-importance, kind="stable")[:count])
