"""The processes that classify now, and how those of a new network take their place."""

import asyncio
from types import TracebackType
from typing import Self

from app.classifiers.frames import ServedModel
from app.classifiers.host import ClassifierProcesses
from app.classifiers.pool import ClassifierPool
from app.row_queue import RowQueue
from app.settings import Settings


class LiveClassifiers:
    """Classifies what the queue has while the context lasts; whoever still waits then is not answered."""

    def __init__(
        self, settings: Settings, queue: RowQueue, processes: ClassifierProcesses, model: ServedModel
    ) -> None:
        self.pool = ClassifierPool(
            queue,
            processes.host,
            model,
            settings.max_image_cpu_seconds,
            has_spare=settings.engine == "litert",  # TensorFlow takes all cores, and memory for each process
        )
        self._settings = settings
        self._processes = processes
        self._reloading = asyncio.Lock()

    async def __aenter__(self) -> Self:
        for connection, pid in zip(self._processes.hand_over(), self._processes.pids, strict=True):
            await self.pool.connect(connection, pid=pid)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pool.close()
        await asyncio.to_thread(self._processes.close)

    async def reload(self) -> ServedModel:
        """Read the network anew; it takes over once it is verified, warm, and right about its golden image.

        No row waits for it: what served goes on serving until then, or for ever. Raises ArtifactError.
        """
        async with self._reloading:
            processes = await asyncio.to_thread(ClassifierProcesses, self._settings)
            try:
                model = await asyncio.to_thread(processes.wait_until_ready)
            except BaseException:
                await asyncio.shield(asyncio.to_thread(processes.close))
                raise
            earlier, self._processes = self._processes, processes
            await self.pool.switch(processes.host, model, processes.hand_over(), processes.pids)
            await asyncio.to_thread(earlier.close)
            return model
