"""Training keeps the best epoch and shows its progress."""

import io
import re
from contextlib import redirect_stderr

import numpy as np
import pytest

from model.training import fit
from model.training.fit import progress_bar
from model.training.recipe import BestEpoch, ProgressBar
from tests.model.conftest import tiny_network


def test_weights_of_the_lowest_validation_loss_are_kept() -> None:
    best, network = BestEpoch(), tiny_network()
    best.set_model(network)
    for epoch, loss in enumerate([0.9, 0.3, 0.5, 0.3]):
        network.set_weights([np.full_like(weights, epoch) for weights in network.get_weights()])
        best.on_epoch_end(epoch, {"val_loss": loss})
    assert (best.epoch, best.finished_epochs) == (2, 4)
    assert best.weights is not None
    assert all((weights == 1).all() for weights in best.weights)


def test_nan_loss_is_never_the_best() -> None:
    best = BestEpoch()
    best.set_model(tiny_network())
    best.on_epoch_end(0, {"val_loss": float("nan")})
    assert best.weights is None
    assert best.finished_epochs == 1


def test_bar_shows_steps_loss_accuracy_and_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(4, "seed 7")
    bar.on_train_batch_end(0, {"loss": 1.25})
    bar.on_epoch_end(0, {"val_accuracy": 0.5})
    bar.on_train_batch_end(1, {"loss": 0.75})
    bar.close()
    shown = capsys.readouterr().err
    assert re.search(r"seed 7: +50%\|.*\| 2/4 \[\d\d:\d\d<\d\d:\d\d, .*step", shown)
    assert shown.rstrip().endswith("loss 0.750, after epoch 1 valid accuracy 0.500]")


def written(steps: int, done: int) -> list[str]:
    with redirect_stderr(io.StringIO()) as log, progress_bar(steps, done, "seed 0") as bar:
        for _ in range(steps - done):
            bar.update()
    return log.getvalue().split("\r")[1:]


def test_bar_in_a_log_is_written_only_at_start_and_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "LOG_INTERVAL_SECONDS", 3600.0)
    first, last = written(400, 0)
    assert "0/400" in first
    assert "400/400" in last


def test_bar_starts_at_the_finished_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "LOG_INTERVAL_SECONDS", 3600.0)
    assert "300/400" in written(400, 300)[0]


def test_bar_without_an_interval_is_written_at_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "LOG_INTERVAL_SECONDS", 0.0)
    assert len(written(40, 0)) > 20
