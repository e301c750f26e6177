"""The published recipe: its network, and its training with the published options on a labelled folder."""

import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

from model.artifact import Artifact, save_samples
from model.compile import compile_artifact
from model.errors import TrainingError
from model.image import ImageSpec
from model.tensorflow_engine import TensorFlowClassifier
from model.training.augmentation import RecipeAugmentation, apply_warp, random_warp
from model.training.fit import progress_bar, refuse_output, save
from model.training.folder import SPLITS, Folder, LabelledImages, describe_folder, load_folder, split
from model.training.metrics import Metrics, Unseen, measure, verdict


@dataclass(frozen=True)
class Knobs:
    """Training options; the defaults are those of the published recipe."""

    image: ImageSpec = field(default_factory=lambda: ImageSpec(height=200, width=200, channels=3))
    epochs: int = 20
    batch_size: int = 16
    learning_rate: float = 0.001  # Keras's default for Adam
    augmentation: RecipeAugmentation = field(default_factory=RecipeAugmentation)


@dataclass(frozen=True)
class TrainedNetwork:
    """The network of one seed at its best epoch, and its metrics on images it was not trained on."""

    network: keras.Model
    seed: int
    best_epoch: int
    finished_epochs: int
    train_seconds: float
    interrupted: bool
    valid: Metrics
    test: Metrics


def train(
    knobs: Knobs, data_dir: Path, h5_path: Path, seeds: Sequence[int], *, force: bool = False
) -> Artifact:
    """Train once per seed, then save and compile the network with the lowest validation loss.

    Ctrl-C stops training and keeps the best epoch so far. Raises DatasetError if the folder cannot be used,
    TrainingError if the loss is not finite, or the artifact cannot be written or, without `force`, exists,
    and KeyboardInterrupt if no epoch has finished.
    """
    refuse_output(h5_path, data_dir, force=force)
    folder = load_folder(data_dir, knobs.image)
    print(describe_folder(folder), file=sys.stderr)
    names = split(folder)
    splits = {name: folder.data.take(names == name) for name in SPLITS}
    trained = _train_seeds(knobs, splits, len(folder.class_names), seeds)
    best = min(trained, key=lambda result: result.valid.loss)
    card_parts = _card_of(best, trained, knobs, folder.class_names, splits)
    card_parts["metrics"]["verdict"] = _verdict(best.network, splits["test"], folder)
    artifact = save(best.network, h5_path, card_parts)
    compile_artifact(artifact)
    save_samples(h5_path, splits["test"].images, splits["test"].labels, folder.class_names)
    print(_describe_spread(trained))
    return artifact


def train_one_seed(
    knobs: Knobs, splits: dict[str, LabelledImages], num_classes: int, seed: int
) -> TrainedNetwork:
    """Train one network and restore the weights of its best epoch.

    Raises KeyboardInterrupt if interrupted before the first epoch has finished.
    """
    keras.utils.set_random_seed(seed)
    network = recipe_cnn(knobs.image, num_classes)
    network.compile(
        optimizer=keras.optimizers.Adam(knobs.learning_rate),
        loss="categorical_crossentropy",
        metrics=["accuracy"],
    )
    best = BestEpoch()
    steps = -(-len(splits["train"]) // knobs.batch_size)
    started = time.monotonic()
    with closing(ProgressBar(knobs.epochs * steps, f"seed {seed}")) as bar:
        try:
            network.fit(
                training_batches(splits["train"], num_classes, knobs, seed),
                steps_per_epoch=steps,
                epochs=knobs.epochs,
                validation_data=_validation_batches(splits["valid"], num_classes, knobs),
                shuffle=False,  # the batches are shuffled already
                callbacks=[best, bar],
                verbose=0,
            )
            interrupted = False
        except KeyboardInterrupt:
            interrupted = True
    if best.weights is None:
        if interrupted:
            raise KeyboardInterrupt
        raise TrainingError("The validation loss must be finite. Received: NaN or infinity.")
    network.set_weights(best.weights)
    classifier = TensorFlowClassifier(network)
    return TrainedNetwork(
        network=network,
        seed=seed,
        best_epoch=best.epoch,
        finished_epochs=best.finished_epochs,
        train_seconds=round(time.monotonic() - started, 1),
        interrupted=interrupted,
        **{
            name: measure(classifier.predict(splits[name].images), splits[name].labels) for name in SPLITS[1:]
        },
    )


def _train_seeds(
    knobs: Knobs, splits: dict[str, LabelledImages], num_classes: int, seeds: Sequence[int]
) -> list[TrainedNetwork]:
    trained: list[TrainedNetwork] = []
    for seed in seeds:
        try:
            result = train_one_seed(knobs, splits, num_classes, seed)
        except KeyboardInterrupt:
            if not trained:
                raise
            break
        trained.append(result)
        # On stderr, like the bar: a closed stdout must not prevent the network from being saved.
        print(_describe(result), file=sys.stderr)
        if result.interrupted:
            break
    return trained


def recipe_cnn(image: ImageSpec, num_classes: int) -> keras.Model:
    """The published recipe: a dilated CNN, 3.45 M parameters and 44 M MACs at 200 x 200 x 3.

    The published script divides pixels by 255 outside the network, but not when it predicts; here, the
    network does it.
    """
    return keras.Sequential(
        [
            keras.Input(image.shape),  # (n, 200, 200, 3)
            layers.Rescaling(1 / 255),
            layers.Conv2D(64, 2, strides=2, activation="elu"),  # (n, 100, 100, 64)
            layers.MaxPooling2D(2),  # (n, 50, 50, 64)
            layers.Conv2D(128, 2, strides=2, activation="elu"),  # (n, 25, 25, 128)
            layers.MaxPooling2D(2),  # (n, 12, 12, 128)
            layers.Conv2D(256, 2, dilation_rate=2, activation="elu"),  # (n, 10, 10, 256)
            layers.MaxPooling2D(2),  # (n, 5, 5, 256)
            layers.Flatten(),
            layers.Dense(512, activation="elu"),
            layers.Dropout(0.3),
            layers.Dense(num_classes, activation="softmax"),
        ],
        name="recipe",
    )


def training_batches(data: LabelledImages, num_classes: int, knobs: Knobs, seed: int) -> tf.data.Dataset:
    """Endless augmented batches, images (b, h, w, c), float32 0..255, and one-hot labels (b, k)."""
    channels = data.images.shape[-1]
    # If all channels are equal, warping one and copying it gives the same pixels as warping three.
    is_grey = bool((data.images == data.images[..., :1]).all())
    images = tf.constant(data.images[..., :1] if is_grey else data.images)
    labels = tf.constant(data.labels)

    def augmented(indices: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        warp = random_warp(
            knobs.augmentation, tf.shape(indices)[0], seed=tf.stack([tf.constant(seed, tf.int64), step])
        )
        batch = tf.cast(tf.gather(images, indices), tf.float32)
        warped = apply_warp(batch, warp)
        warped = tf.tile(warped, (1, 1, 1, channels // batch.shape[-1]))
        return warped, tf.one_hot(tf.gather(labels, indices), num_classes)

    order = tf.data.Dataset.range(len(data)).shuffle(len(data), seed=seed)
    batches = order.batch(knobs.batch_size).repeat()
    steps = tf.data.Dataset.counter()
    return (
        tf.data.Dataset.zip(batches, steps)
        .map(augmented, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
        .prefetch(tf.data.AUTOTUNE)
    )


class BestEpoch(keras.callbacks.Callback):
    """Keep the weights of the epoch with the lowest validation loss."""

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Any] | None = None
        self.epoch = 0
        self.finished_epochs = 0
        self._loss = float("inf")

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self.finished_epochs = epoch + 1
        if logs["val_loss"] < self._loss:
            self._loss = logs["val_loss"]
            self.epoch = epoch + 1
            self.weights = self.model.get_weights()


class ProgressBar(keras.callbacks.Callback):
    """One bar over all steps, with the loss, the validation accuracy and the remaining time."""

    def __init__(self, steps: int, title: str) -> None:
        super().__init__()
        self._bar = progress_bar(steps, 0, title)
        self._validation = ""

    def on_train_batch_end(self, _: int, logs: dict[str, float]) -> None:
        self._bar.set_postfix_str(f"loss {logs['loss']:.3f}{self._validation}", refresh=False)
        self._bar.update()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self._validation = f", after epoch {epoch + 1} valid accuracy {logs['val_accuracy']:.3f}"

    def close(self) -> None:
        self._bar.close()


def _validation_batches(data: LabelledImages, num_classes: int, knobs: Knobs) -> tf.data.Dataset:
    one_hot = tf.one_hot(data.labels, num_classes)
    images = tf.cast(data.images, tf.float32)
    return tf.data.Dataset.from_tensor_slices((images, one_hot)).batch(knobs.batch_size)


def _card_of(
    best: TrainedNetwork,
    trained: Sequence[TrainedNetwork],
    knobs: Knobs,
    class_names: tuple[str, ...],
    splits: dict[str, LabelledImages],
) -> dict[str, Any]:
    return {
        "class_names": class_names,
        "image": knobs.image,
        "metrics": {
            "valid": asdict(best.valid),
            "test": asdict(best.test),
            "test_accuracy_by_seed": {str(r.seed): r.test.accuracy for r in trained},
            "test_loss_by_seed": {str(r.seed): r.test.loss for r in trained},
        },
        "training": {
            "network": "recipe",
            "parameters": best.network.count_params(),
            "images": {name: len(split) for name, split in splits.items()},
            "epochs": knobs.epochs,
            "finished_epochs": best.finished_epochs,
            "best_epoch": best.best_epoch,
            "batch_size": knobs.batch_size,
            "learning_rate": knobs.learning_rate,
            "augmentation": asdict(knobs.augmentation),
            "seed": best.seed,
            "train_seconds": best.train_seconds,
        },
    }


def _verdict(network: keras.Model, tested: LabelledImages, folder: Folder) -> str:
    predicted = TensorFlowClassifier(network).predict(tested.images).argmax(axis=1)
    unseen = Unseen(tested.labels, predicted, None)
    return verdict(unseen, None, folder.class_names, np.bincount(folder.data.labels))


def _describe(result: TrainedNetwork) -> str:
    return (
        f"seed {result.seed}: test accuracy {result.test.accuracy:.1%}, loss {result.test.loss:.3f} "
        f"(epoch {result.best_epoch} of {result.finished_epochs}, {result.train_seconds:.0f} s)"
    )


def _describe_spread(trained: Sequence[TrainedNetwork]) -> str:
    accuracies = [result.test.accuracy for result in trained]
    losses = [result.test.loss for result in trained]
    return (
        f"{len(trained)} seed(s): test accuracy mean {statistics.mean(accuracies):.1%}, "
        f"from {min(accuracies):.1%} to {max(accuracies):.1%}; loss mean {statistics.mean(losses):.3f}, "
        f"from {min(losses):.3f} to {max(losses):.3f}."
    )
