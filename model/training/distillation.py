"""Distillation: texture statistics of a pretrained network, which a smaller network learns to predict.

They contain no classes. A linear classifier on these alone classifies defects of hot-rolled steel better than
a small network trained from scratch.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from model.compile import convert
from model.engines import LiteRtClassifier
from model.image import ImageSpec
from model.networks.frozen_statistics import statistics_network
from model.networks.texture_statistics import STATISTICS


class TextureStatistics:
    """Map images (n, h, w, c), uint8, to texture statistics (n, STATISTICS), float32. Thread-safe."""

    SIZE = STATISTICS

    def __init__(self, image: ImageSpec, threads: int) -> None:
        compiled = convert(statistics_network(image), image.shape)
        # It returns the network's only output, whatever its name.
        self._network = LiteRtClassifier(compiled, scale=1.0, interpreters=threads)
        self._threads = ThreadPoolExecutor(threads, "distillation")

    def describe(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        rows = self._threads.map(lambda image: self._network.predict(image[np.newaxis]), images)
        return np.concatenate(list(rows))
