"""Fit the last layer of the frozen network, in seconds: the baseline of every training."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from model.arrays import Floats, Mask, Pixels
from model.compile import convert
from model.defaults import usable_cores
from model.engines import LiteRtClassifier
from model.image import ImageSpec
from model.networks.texture_statistics import statistics_classifier, statistics_network
from model.novelty import Novelty
from model.training.augmentation import Augmentation, turn
from model.training.calibration import Linear, fit_novelty, fit_ridge
from model.training.folder import Folder
from model.training.splits import FOLDS, assign_folds
from model.training.synthetic_negatives import draw_negatives

VIEWS = 4
"""Turned copies of each training image. On 60 photographs, four add 2.6 points of accuracy, eight 2.9."""
NEGATIVES = 120


class TextureStatistics:
    """Map images (n, h, w, c), uint8, to texture statistics (n, STATISTICS), float32. Thread-safe.

    They contain no classes. A linear classifier on these alone classifies defects of hot-rolled steel better
    than a small network trained from scratch, so that training also learns to predict them.
    """

    def __init__(self, image: ImageSpec, threads: int) -> None:
        compiled = convert(statistics_network(image), image.shape)
        # It returns the network's only output, whatever its name.
        self._network = LiteRtClassifier(compiled, scale=1.0, interpreters=threads)
        self._threads = ThreadPoolExecutor(threads, "statistics")

    def describe(self, images: Pixels) -> Floats:
        rows = self._threads.map(lambda image: self._network.predict(image[np.newaxis]), images)
        return np.concatenate(list(rows))


class FrozenStatistics:
    """Statistics of a folder's images, of turned views of them and of synthetic negatives."""

    def __init__(self, folder: Folder, image: ImageSpec, views: int, seed: int) -> None:
        describe = TextureStatistics(image, usable_cores()).describe
        self._image, self._classes, self.views = image, len(folder.class_names), views
        self._labels, self._groups = folder.data.labels, folder.groups
        self._folds = assign_folds(self._labels, self._groups) if folder.folds is None else folder.folds
        images = folder.data.images
        turned = [_turn(images, seed, number) for number in range(views)]
        self._statistics = np.stack([describe(view) for view in (images, *turned)])  # (1 + views, n, d)
        random = np.random.default_rng(seed)
        self._negatives = describe(draw_negatives(NEGATIVES, image.shape, random).astype(np.uint8))

    def fit(self, chosen: Mask, views: int) -> Linear:
        """Fit the layer to the `chosen` (n,) images and some views of them."""
        rows = self._statistics[: 1 + views, chosen].reshape(-1, self._statistics.shape[-1])
        return fit_ridge(rows, np.tile(self._labels[chosen], 1 + views), self._classes)

    def scores(self, layer: Linear) -> Floats:
        """Scores (n, k) of all images, without views."""
        return layer(self._statistics[0])

    def cross_validate(self, views: int) -> tuple[Floats, Mask]:
        """Scores (n, k), and whether it abstains (n,), by a fit to the other folds."""
        scores = np.zeros((len(self._labels), self._classes), dtype=np.float32)
        abstained = np.zeros(len(self._labels), dtype=bool)
        for fold in range(FOLDS):
            tested = self._folds == fold
            if tested.any() and not tested.all():
                scores[tested] = self.scores(self.fit(~tested, views))[tested]
                abstained[tested] = self.fit_novelty(~tested).abstains(self._statistics[0, tested])
        return scores, abstained

    def network(self, layer: Linear, temperature: float) -> keras.Model:
        """The network to save, with scores divided by `temperature`."""
        network = statistics_classifier(self._image, self._classes)
        network.layers[-1].set_weights([layer.kernel / temperature, layer.bias / temperature])
        return network

    def fit_novelty(self, chosen: Mask) -> Novelty:
        statistics = self._statistics[0, chosen]
        return fit_novelty(statistics, self._labels[chosen], self._groups[chosen], self._negatives)


def _turn(images: Pixels, seed: int, number: int) -> Pixels:
    turned = turn(tf.cast(images, tf.float32), Augmentation(), tf.constant([seed, number], tf.int64))
    return np.asarray(tf.cast(tf.round(turned), tf.uint8))
