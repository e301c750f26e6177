"""Train the default network on labels and, by distillation, on a pretrained network's features.

Every batch consists of augmented images and of synthetic negatives, which are images of no class. The
pretrained network sees each augmented image without disturbance; the trained network sees it with changed
light, blur and noise and learns to predict the pretrained network's texture statistics (G. Hinton et al.,
Distilling the Knowledge in a Neural Network, 2015; features as in A. Romero et al., FitNets, 2015). The final
weights are a moving average over the last steps (B. Polyak). Afterwards, the temperature and the novelty
detector are fitted.
"""

import hashlib
import json
import math
import os
import platform
import sys
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from model.arrays import Floats, Ints, Mask, Pixels, Strings
from model.artifact import Artifact, ArtifactCard, card_path, save_card, sha256_of
from model.compile import convert
from model.defaults import usable_cores
from model.engines import LiteRtClassifier
from model.errors import TrainingError
from model.image import ImageSpec
from model.networks.keras_model import class_weights_of, save_network
from model.networks.pretrained_blocks import STATISTICS, statistics_classifier, statistics_network
from model.networks.texture_cnn import fold, trainable_texture_cnn
from model.novelty import Novelty
from model.tensorflow_engine import with_golden_answer
from model.training.augmentation import Augmentation, disturb, draw_negatives, turn
from model.training.calibration import (
    Linear,
    class_weights,
    expected_accuracy,
    fit_novelty,
    fit_ridge,
    fit_temperature,
)
from model.training.folder import Folder, LabelledImages
from model.training.splits import FOLDS, assign_folds

DEFAULT_IMAGE = ImageSpec(height=200, width=200, channels=1)
EPOCHS = 32
LEAST_STEPS = 1000
"""A small folder's epochs have few steps, so that it needs more epochs."""
PATIENCE = 8
"""Early stopping: epochs without a lower loss on the images held out for calibration."""
LOG_INTERVAL_SECONDS = 5.0
"""Minimum interval between updates of a progress bar that is written to a file or a pipe."""


@dataclass(frozen=True)
class Knobs:
    """Training options of the default network."""

    image: ImageSpec = DEFAULT_IMAGE
    epochs: int | None = None
    """None: EPOCHS, or as many as LEAST_STEPS need, with early stopping after EPOCHS."""
    batch_size: int = 24
    learning_rate: float = 0.003
    """Peak value, after a linear warm-up over two epochs; a cosine decay follows."""
    weight_decay: float = 0.02
    label_smoothing: float = 0.05
    distillation: float = 2.0
    """Weight of the distillation loss, relative to the label loss."""
    synthetic_negatives: int = 4
    """Synthetic negatives per batch, which the network learns to separate from the folder's images."""
    familiarity: float = 0.3
    """Weight of the loss of that separation, relative to the label loss."""
    averaging: float = 0.99
    """Highest decay of the moving average of the weights, per step."""
    most_gradient: float = 2.0
    """Global norm to which gradients are clipped."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    accuracy: float | None = None
    """Accuracy on unseen groups, if known from cross-validation; confidence is calibrated to it. If None, the
    accuracy is estimated on the held-out calibration images.
    """


@dataclass(frozen=True)
class Fitted:
    """A network from images to [logits, embedding] with averaged weights, and its training history."""

    network: keras.Model
    loss: tuple[float, ...]
    """Mean loss on augmented images by epoch, including the distillation loss."""
    accuracy: tuple[float, ...]
    """Accuracy on augmented images by epoch, measured before each step."""


@dataclass(frozen=True)
class Trained:
    """A network to save, with its temperature folded in, and its novelty detector."""

    network: keras.Model
    temperature: float
    accuracy: float
    """The mean confidence after calibration."""
    novelty: Novelty
    fitted: Fitted | None
    """The training's history; None for the frozen network."""


def with_image(knobs: Knobs, **changes: int) -> Knobs:
    """Return the options for images of another height, width or number of channels."""
    return replace(knobs, image=knobs.image.model_copy(update=changes))


def fit_calibrated(folder: Folder, splits: Strings, knobs: Knobs, seed: int, checkpoint: Path) -> Trained:
    """Train on the split `train`, and fit the temperature to the split `valid`."""
    fitted_on, held_out = splits == "train", splits == "valid"
    valid = folder.data.take(held_out)
    training = Training(folder.data.take(fitted_on), len(folder.class_names), knobs, seed)
    fitted = run(training, checkpoint, valid)
    trainable = fitted.network
    logits, _ = _answer(trainable, folder.data.images[held_out])
    accuracy = knobs.accuracy or expected_accuracy(logits, folder.data.labels[held_out])
    temperature = fit_temperature(logits, accuracy)
    _, embeddings = _answer(trainable, folder.data.images[fitted_on])
    novelty = fit_novelty(embeddings, folder.data.labels[fitted_on], folder.groups[fitted_on])
    return Trained(fold(trainable, knobs.image, temperature), temperature, accuracy, novelty, fitted)


def run(training: "Training", checkpoint: Path, valid: LabelledImages | None = None) -> Fitted:
    """Run all epochs; a loss on `valid` that no longer falls stops them, but never before EPOCHS.

    The state is written to `checkpoint` after each epoch; the same call resumes from it and ends with the
    same weights. The caller deletes the file once the result is saved. Raises TrainingError if the loss is
    not finite.
    """
    done = training.load(checkpoint)
    steps = training.steps_per_epoch
    batches = training.batches(done)
    with progress_bar(training.epochs * steps, done * steps, f"seed {training.seed}") as bar:
        for epoch in range(done, training.epochs):
            if training.is_stale(epoch):
                break
            for batch in islice(batches, steps):
                training.note(epoch, *training.step(*batch))
                bar.set_postfix_str(f"loss {training.loss[epoch]:.3f}", refresh=False)
                bar.update()
            if valid is not None and epoch + 1 >= EPOCHS and training.epochs > EPOCHS:
                training.keep_best(epoch, valid)
            training.save(checkpoint, epoch + 1)
    training.use_best()
    finished = np.flatnonzero(training.loss).max() + 1
    return Fitted(
        training.network,
        tuple(training.loss[:finished].tolist()),
        tuple(training.accuracy[:finished].tolist()),
    )


def progress_bar(steps: int, done: int, title: str) -> "tqdm[Any]":
    """A bar over all steps of a training, starting at `done`, with the remaining time."""
    seconds = 0.1 if sys.stderr.isatty() else LOG_INTERVAL_SECONDS
    return tqdm(total=steps, initial=done, desc=title, unit="step", dynamic_ncols=True, mininterval=seconds)


class Training:
    """The state of a training, and one step of it."""

    def __init__(self, data: LabelledImages, num_classes: int, knobs: Knobs, seed: int) -> None:
        keras.utils.set_random_seed(seed)
        self._data, self._knobs, self.seed = data, knobs, seed
        self._fingerprint = _fingerprint_of(data, num_classes, knobs, seed)
        self._batch_size = min(knobs.batch_size, len(data))
        self.steps_per_epoch = len(data) // self._batch_size
        self.epochs = knobs.epochs or max(EPOCHS, math.ceil(LEAST_STEPS / self.steps_per_epoch))
        self._texture_statistics = TextureStatistics(knobs.image, usable_cores())
        statistics = self._texture_statistics.describe(data.images)
        self._statistics_mean = statistics.mean(axis=0)
        self._statistics_scale = statistics.std(axis=0) + 1e-3
        self._class_weights = tf.constant(class_weights(data.labels, num_classes))
        self.network = trainable_texture_cnn(knobs.image, num_classes)
        self._distil = keras.layers.Dense(STATISTICS)
        self._distil.build(self.network.outputs[1].shape)
        self._recognise = keras.layers.Dense(1)
        self._recognise.build(self.network.outputs[1].shape)
        helpers = (self._distil, self._recognise)
        self._trained = [
            *self.network.trainable_variables,
            *(variable for layer in helpers for variable in layer.trainable_variables),
        ]
        self._optimizer = keras.optimizers.AdamW(knobs.learning_rate, weight_decay=knobs.weight_decay)
        self._optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
        self._optimizer.build(self._trained)
        self._average = [tf.Variable(weight) for weight in self.network.weights]
        self._best = [tf.Variable(weight) for weight in self.network.weights]
        self.best_epoch, self.best_loss = tf.Variable(-1), tf.Variable(math.inf)
        self._step = tf.Variable(0.0)
        self.loss, self.accuracy = np.zeros(self.epochs), np.zeros(self.epochs)
        self._steps_recorded = np.zeros(self.epochs)

    def batches(self, first_epoch: int) -> Iterator[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
        """Batches from an epoch on: images and negatives (b + x, h, w, c), labels (b,), statistics (b, s)."""
        # One stream for all epochs, so that only the first epoch waits for its first batch.
        steps = np.arange(self.epochs * self.steps_per_epoch)[first_epoch * self.steps_per_epoch :]
        dataset = tf.data.Dataset.from_tensor_slices(steps)
        batches = dataset.map(self._augmented_batch, usable_cores(), deterministic=True)
        return iter(batches.prefetch(usable_cores()))

    def _augmented_batch(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        images, labels = tf.numpy_function(self._select_batch, [step], (tf.uint8, tf.int64))
        images = tf.ensure_shape(images, (self._batch_size, *self._knobs.image.shape))
        labels = tf.ensure_shape(labels, (self._batch_size,))
        seed = tf.stack([tf.constant(self.seed, tf.int64), step])
        images = tf.round(turn(tf.cast(images, tf.float32), self._knobs.augmentation, seed))
        negatives = tf.numpy_function(self._draw_negatives, [seed], tf.float32)
        negatives = tf.ensure_shape(negatives, (self._knobs.synthetic_negatives, *self._knobs.image.shape))
        statistics = tf.numpy_function(self._statistics_of, [images], tf.float32)
        statistics = tf.ensure_shape(statistics, (self._batch_size, STATISTICS))
        images = disturb(images, self._knobs.augmentation, seed + 1)
        return tf.concat([images, negatives], 0), labels, statistics

    def _select_batch(self, step: np.int64) -> tuple[Pixels, Ints]:
        epoch, place = divmod(int(step), self.steps_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self._data))
        chosen = order[place * self._batch_size :][: self._batch_size]
        return self._data.images[chosen], self._data.labels[chosen]

    def _draw_negatives(self, seed: Ints) -> Floats:
        random = np.random.default_rng(seed.tolist())
        return draw_negatives(self._knobs.synthetic_negatives, self._knobs.image.shape, random)

    def _statistics_of(self, images: Floats) -> Floats:
        # Rounded before, so the conversion changes nothing.
        statistics = self._texture_statistics.describe(images.astype(np.uint8))
        return np.asarray((statistics - self._statistics_mean) / self._statistics_scale)

    @tf.function  # type: ignore[untyped-decorator]
    def step(
        self, images: tf.Tensor, labels: tf.Tensor, statistics: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Run one optimizer step; return the loss and the accuracy from before the step."""
        self._optimizer.learning_rate.assign(self._learning_rate())
        with tf.GradientTape() as tape:
            all_logits, embedding = self.network(images, training=True)
            logits = all_logits[: self._batch_size]
            loss = self._label_loss(logits, labels)
            loss += self._knobs.familiarity * self._familiarity_loss(embedding)
            predicted = self._distil(embedding[: self._batch_size])
            loss += self._knobs.distillation * tf.reduce_mean((predicted - statistics) ** 2)
        gradients = tape.gradient(loss, self._trained)
        gradients, _ = tf.clip_by_global_norm(gradients, self._knobs.most_gradient)
        self._optimizer.apply_gradients(zip(gradients, self._trained, strict=True))
        self._step.assign_add(1.0)
        decay = tf.minimum(self._knobs.averaging, self._step / (9.0 + self._step))
        for average, weight in zip(self._average, self.network.weights, strict=True):
            average.assign(decay * average + (1 - decay) * weight.value)
        correct = tf.argmax(logits, axis=1) == labels
        return loss, tf.reduce_mean(tf.cast(correct, tf.float32))

    def note(self, epoch: int, loss: tf.Tensor, accuracy: tf.Tensor) -> None:
        """Update the epoch's mean loss and accuracy. Raises TrainingError if the loss is not finite."""
        if not math.isfinite(float(loss)):
            raise TrainingError("The training loss must be finite. Received: NaN or infinity.")
        self._steps_recorded[epoch] += 1
        share = 1 / self._steps_recorded[epoch]
        self.loss[epoch] += share * (float(loss) - self.loss[epoch])
        self.accuracy[epoch] += share * (float(accuracy) - self.accuracy[epoch])

    def _label_loss(self, logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        classes = logits.shape[-1]
        smooth = self._knobs.label_smoothing
        targets = tf.one_hot(labels, classes) * (1 - smooth) + smooth / classes
        losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
        return tf.reduce_mean(losses * tf.gather(self._class_weights, labels))

    def _familiarity_loss(self, embedding: tf.Tensor) -> tf.Tensor:
        """Loss of separating the folder's images from synthetic negatives by the embedding."""
        familiar = tf.cast(tf.range(tf.shape(embedding)[0]) < self._batch_size, tf.float32)
        scores = self._recognise(embedding)[:, 0]
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(familiar, scores))

    def _learning_rate(self) -> tf.Tensor:
        warm_up = tf.minimum(1.0, (self._step + 1) / (2.0 * self.steps_per_epoch))
        progress = self._step / (self.epochs * self.steps_per_epoch)
        return self._knobs.learning_rate * warm_up * 0.5 * (1 + tf.cos(math.pi * progress))

    def keep_best(self, epoch: int, valid: LabelledImages) -> None:
        """Keep the averaged weights if their loss on `valid` is the lowest so far."""
        current = [tf.identity(weight) for weight in self.network.weights]
        _assign(self.network.weights, self._average)
        logits, _ = _answer(self.network, valid.images)
        _assign(self.network.weights, current)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(valid.labels, logits)
        loss = tf.reduce_mean(losses)
        if loss < self.best_loss:
            self.best_loss.assign(loss)
            self.best_epoch.assign(epoch)
            _assign(self._best, self._average)

    def is_stale(self, epoch: int) -> bool:
        """Whether PATIENCE epochs have passed since the best one."""
        return 0 <= int(self.best_epoch) < epoch - PATIENCE

    def use_best(self) -> None:
        """Use the averaged weights: the best ones with early stopping, else the last ones."""
        _assign(self.network.weights, self._average if int(self.best_epoch) < 0 else self._best)

    def save(self, checkpoint: Path, finished_epochs: int) -> None:
        """Write the state to `checkpoint` atomically."""
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        state = map(keras.ops.convert_to_numpy, self._variables())
        arrays = {f"v{number}": np.asarray(value) for number, value in enumerate(state)}
        unfinished = checkpoint.with_name(checkpoint.name + ".part")
        with unfinished.open("wb") as file:
            curves = {"loss": self.loss, "accuracy": self.accuracy}
            facts = {"finished_epochs": np.array(finished_epochs), "fingerprint": np.array(self._fingerprint)}
            np.savez(file, **facts, **curves, **arrays)  # type: ignore[arg-type]
        unfinished.replace(checkpoint)

    def load(self, checkpoint: Path) -> int:
        """Restore the state and return the number of finished epochs, or 0 if the file does not match."""
        try:
            with checkpoint.open("rb") as file, np.load(file) as saved:
                arrays = dict(saved)
        except (OSError, ValueError, EOFError, BadZipFile, zlib.error):  # missing or unreadable
            return 0
        if str(arrays.get("fingerprint")) != self._fingerprint:
            return 0
        for number, variable in enumerate(self._variables()):
            variable.assign(arrays[f"v{number}"])
        self.loss, self.accuracy = arrays["loss"], arrays["accuracy"]
        return int(arrays["finished_epochs"])

    def _variables(self) -> list[tf.Variable]:
        optimizer = [v for v in self._optimizer.variables if v is not self._optimizer.learning_rate]
        return [
            *self.network.variables,
            *self._distil.variables,
            *self._recognise.variables,
            *optimizer,
            *self._average,
            *self._best,
            self.best_epoch,
            self.best_loss,
            self._step,
        ]


def _assign(targets: Sequence[Any], values: Sequence[Any]) -> None:
    for target, value in zip(targets, values, strict=True):
        target.assign(value)


def _fingerprint_of(data: LabelledImages, num_classes: int, knobs: Knobs, seed: int) -> str:
    facts = json.dumps([asdict(knobs) | {"image": knobs.image.model_dump()}, num_classes, seed])
    digest = hashlib.sha256(facts.encode())
    for array in (data.images, data.labels):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _answer(trainable: keras.Model, images: Pixels) -> tuple[Floats, Floats]:
    """Logits (n, k) and embeddings (n, d)."""
    batches = np.array_split(images, -(-len(images) // 64))
    answers = [trainable(batch.astype(np.float32), training=False) for batch in batches]
    logits, embeddings = zip(*answers, strict=True)
    return np.concatenate([part.numpy() for part in logits]), np.concatenate(
        [part.numpy() for part in embeddings]
    )


def refuse_output(h5_path: Path, data_dir: Path, *, force: bool) -> None:
    """Raise TrainingError, before training starts, if the network cannot be saved as `h5_path`."""
    if h5_path.suffix != ".h5":
        raise TrainingError(f"The network must be saved as an .h5. Received: {h5_path}")
    if h5_path.resolve().is_relative_to(data_dir.resolve()):
        raise TrainingError(f"The network must be saved outside the folder of images. Received: {h5_path}")
    nearest = next(parent for parent in h5_path.resolve().parents if parent.is_dir())
    if h5_path.is_dir() or not os.access(nearest, os.W_OK):
        raise TrainingError(f"The network must be saved where a file can be written. Received: {h5_path}")
    existing = [path for path in (h5_path, card_path(h5_path)) if path.exists()]
    if existing and not force:
        raise TrainingError(f"An existing network is replaced only with --force. Received: {existing[0]}")


def save(network: keras.Model, h5_path: Path, card_parts: dict[str, Any]) -> Artifact:
    """Write the .h5 and its card, including golden probabilities. Raises ArtifactError."""
    h5_path.parent.mkdir(parents=True, exist_ok=True)
    save_network(network, h5_path)
    card = ArtifactCard(
        **card_parts,
        scale=1.0,
        sha256=sha256_of(h5_path),
        class_weights=class_weights_of(network),
        versions=_versions(),
    )
    return save_card(h5_path, with_golden_answer(card, network))


def _versions() -> dict[str, str]:
    return {
        "ext-classify": version("ext-classify"),
        "keras": keras.__version__,
        "python": platform.python_version(),
        "tensorflow": tf.__version__,
    }


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
        for part in range(FOLDS):
            tested = self._folds == part
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
