import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from app.outcome import Outcome
from app.settings import Settings
from app.workers.pool import LiveClassifiers
from app.workers.protocol import WaitingRow
from app.workers.queue import Capacity, RowQueue
from app.workers.starting import ClassifierProcesses
from model.defaults import DEFAULT_MODEL_PATH
from model.errors import ArtifactError
from tests.app.workers.faults import FAULTS, RECIPE, put, tear
from tests.app.workers.test_host import family, needs_proc
from tests.running import wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    """A copy of the network, which a test may replace."""
    put(DEFAULT_MODEL_PATH, tmp_path / "m.h5")
    return tmp_path / "m.h5"


class Load:
    """Classifies rows continuously, and collects their outcomes."""

    def __init__(self, queue: RowQueue, sample: bytes) -> None:
        self.outcomes: list[Outcome | None] = []
        self._queue = queue
        self._rows = [WaitingRow(sample, evidence=False)] * 4
        self._task = asyncio.ensure_future(self._run())

    def versions(self, since: int = 0) -> set[str]:
        answered = [outcome for outcome in self.outcomes[since:] if outcome is not None]
        assert len(answered) == len(self.outcomes[since:])
        assert all(outcome["error"] is None for outcome in answered)
        return {outcome["model"]["version"] for outcome in answered}

    async def makes_progress(self) -> None:
        before = len(self.outcomes)
        while len(self.outcomes) < before + 20:  # noqa: ASYNC110 - another task adds to them
            await asyncio.sleep(0.01)

    async def end(self) -> None:
        self._task.cancel()
        with suppress(asyncio.CancelledError):
            await self._task

    async def _run(self) -> None:
        while True:
            with self._queue.request(len(self._rows)) as request:
                self.outcomes += await request.classify(self._rows)


def under_load(
    model_path: Path, sample: bytes, check: Callable[[LiveClassifiers, Load], "asyncio.Future[None] | object"]
) -> None:
    async def run() -> None:
        settings = Settings(model_path=model_path, classifiers=2)
        processes = await asyncio.to_thread(ClassifierProcesses, settings)
        queue = RowQueue(Capacity(2, 64))
        model = await asyncio.to_thread(processes.wait_until_ready)
        async with LiveClassifiers(settings, queue, processes, model) as classifiers:
            load = Load(queue, sample)
            await load.makes_progress()
            await check(classifiers, load)  # type: ignore[misc]
            await load.makes_progress()
            await load.end()

    asyncio.run(asyncio.wait_for(run(), 300))


def test_reload_switches_to_the_new_network_without_failed_rows(model_path: Path, sample: bytes) -> None:
    async def check(classifiers: LiveClassifiers, load: Load) -> None:
        [earlier] = load.versions()
        put(RECIPE, model_path)
        model = await classifiers.reload()
        assert model.identity["version"] == classifiers.pool.model.identity["version"] != earlier
        switched = len(load.outcomes)
        await load.makes_progress()
        assert load.versions(since=switched + 8) == {model.identity["version"]}
        assert load.versions() == {earlier, model.identity["version"]}

    under_load(model_path, sample, check)


@pytest.mark.parametrize(("suffix", "spoil"), FAULTS.values(), ids=FAULTS)
def test_invalid_network_never_serves(
    model_path: Path, sample: bytes, suffix: str, spoil: Callable[[Path], None]
) -> None:
    async def check(classifiers: LiveClassifiers, load: Load) -> None:
        earlier = classifiers.pool.model
        spoil(model_path.with_suffix(suffix))
        with pytest.raises(ArtifactError):
            await classifiers.reload()
        await load.makes_progress()
        assert classifiers.pool.model is earlier
        assert load.versions() == {earlier.identity["version"]}

    under_load(model_path, sample, check)


@needs_proc
def test_many_reloads_leave_only_the_latest_processes(model_path: Path, sample: bytes) -> None:
    async def check(classifiers: LiveClassifiers, load: Load) -> None:
        for number in range(4):
            put(RECIPE if number % 2 else DEFAULT_MODEL_PATH, model_path)
            if number == 2:
                tear(model_path)
                with pytest.raises(ArtifactError):
                    await classifiers.reload()
            else:
                await classifiers.reload()
        assert len(load.versions()) == 2
        await asyncio.to_thread(wait_until, lambda: len(family()[1]) == 2)

    under_load(model_path, sample, check)
