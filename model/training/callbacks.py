"""Training callbacks: the best epoch so far, and progress bars."""

import sys
from typing import Any

import keras
from tqdm import tqdm

LOG_INTERVAL_SECONDS = 5.0
"""Minimum interval between updates of a bar that is written to a file or a pipe."""


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
        self._bar = _bar(steps, 0, title)
        self._validation = ""

    def on_train_batch_end(self, _: int, logs: dict[str, float]) -> None:
        self._bar.set_postfix_str(f"loss {logs['loss']:.3f}{self._validation}", refresh=False)
        self._bar.update()

    def on_epoch_end(self, epoch: int, logs: dict[str, float]) -> None:
        self._validation = f", after epoch {epoch + 1} valid accuracy {logs['val_accuracy']:.3f}"

    def close(self) -> None:
        self._bar.close()


class StepBar:
    """One bar over all steps, starting at `done`, with the loss and the remaining time."""

    def __init__(self, steps: int, done: int, title: str) -> None:
        self._bar = _bar(steps, done, title)

    def advance(self, loss: float) -> None:
        """Advance by one step and show `loss`, the mean of the epoch so far."""
        self._bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self._bar.update()

    def close(self) -> None:
        self._bar.close()


def _bar(steps: int, done: int, title: str) -> "tqdm[Any]":
    seconds = 0.1 if sys.stderr.isatty() else LOG_INTERVAL_SECONDS
    return tqdm(total=steps, initial=done, desc=title, unit="step", dynamic_ncols=True, mininterval=seconds)
