"""Train the published recipe on a labelled folder, with its published options, and save it as an artifact."""

import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from model.artifact import Artifact
from model.compile import compile_artifact
from model.engines import Classifier
from model.errors import TrainingError
from model.image import ImageSpec
from model.networks.registry import build_network
from model.tensorflow_engine import TensorFlowClassifier
from model.training.augmentation import Augmentation, apply_warp, random_warp
from model.training.callbacks import BestEpoch, ProgressBar
from model.training.dataset import SPLITS, LabelledImages, find_class_names, load_split
from model.training.metrics import Metrics, measure
from model.training.save import save


@dataclass(frozen=True)
class Knobs:
    """Training options; the defaults are those of the published recipe."""

    network: str = "recipe"
    image: ImageSpec = field(default_factory=lambda: ImageSpec(height=200, width=200, channels=3))
    epochs: int = 20
    batch_size: int = 16
    learning_rate: float = 0.001  # Keras's default for Adam
    augmentation: Augmentation = field(default_factory=Augmentation)


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


def train(knobs: Knobs, data_dir: Path, h5_path: Path, seeds: Sequence[int]) -> Artifact:
    """Train once per seed, then save and compile the network with the lowest validation loss.

    Ctrl-C stops training and keeps the best epoch so far. Raises DatasetError if the folder cannot be used,
    TrainingError if the loss is not finite, KeyboardInterrupt if no epoch has finished.
    """
    if h5_path.suffix != ".h5":
        raise TrainingError(f"The network must be saved as an .h5. Received: {h5_path}")
    class_names = find_class_names(data_dir)
    splits = {name: load_split(data_dir, name, class_names, knobs.image) for name in SPLITS}
    trained = _train_seeds(knobs, splits, len(class_names), seeds)
    best = min(trained, key=lambda result: result.valid.loss)
    artifact = save(best.network, h5_path, _card_of(best, trained, knobs, class_names, splits))
    compile_artifact(artifact)
    print(_describe_spread(trained))
    return artifact


def train_one_seed(
    knobs: Knobs, splits: dict[str, LabelledImages], num_classes: int, seed: int
) -> TrainedNetwork:
    """Train one network and restore the weights of its best epoch.

    Raises KeyboardInterrupt if interrupted before the first epoch has finished.
    """
    keras.utils.set_random_seed(seed)
    network = build_network(knobs.network, knobs.image, num_classes)
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
        valid=_measure(classifier, splits["valid"]),
        test=_measure(classifier, splits["test"]),
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


def training_batches(data: LabelledImages, num_classes: int, knobs: Knobs, seed: int) -> tf.data.Dataset:
    """Endless augmented batches, images (b, h, w, c), float32 0..255, and one-hot labels (b, k)."""
    channels = data.images.shape[-1]
    # If all channels are equal, warping one and copying it gives the same pixels as warping three.
    is_grey = bool((data.images == data.images[..., :1]).all())
    images = tf.constant(data.images[..., :1] if is_grey else data.images)
    labels = tf.constant(data.labels)

    def augmented(indices: tf.Tensor, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        warp = random_warp(
            knobs.augmentation,
            tf.shape(indices)[0],
            seed=tf.stack([tf.constant(seed, tf.int64), step]),
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


def _validation_batches(data: LabelledImages, num_classes: int, knobs: Knobs) -> tf.data.Dataset:
    one_hot = tf.one_hot(data.labels, num_classes)
    images = tf.cast(data.images, tf.float32)
    return tf.data.Dataset.from_tensor_slices((images, one_hot)).batch(knobs.batch_size)


def _measure(classifier: Classifier, data: LabelledImages) -> Metrics:
    return measure(classifier.predict(data.images), data.labels)


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
            "network": knobs.network,
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
