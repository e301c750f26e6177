"""BentoML: bentoml serve bentoml_server:Classify. The body of its one endpoint is a Snowflake batch.

WORKERS processes hold a model each, and POOL threads of each answer requests. With BATCH above 0, rows
of different requests are merged by BentoML's adaptive batching in processes behind one that speaks HTTP.
"""

from typing import Any, TypeAlias

import bentoml
from peer_model import PeerModel, setting

Rows: TypeAlias = list[Any]
TRAFFIC = {"timeout": 60}
WORKERS, POOL, BATCH = setting("WORKERS", 1), setting("POOL", 2), setting("BATCH", 0)


class Model:
    def __init__(self) -> None:
        self.model = PeerModel("bentoml")


if BATCH == 0:

    @bentoml.service(workers=WORKERS, threads=POOL, traffic=TRAFFIC)
    class Classify(Model):
        @bentoml.api(route="/classify")
        def classify(self, data: Rows) -> dict[str, Any]:
            return {"data": self.model.answer_rows(data)}

else:

    @bentoml.service(workers=WORKERS, threads=POOL, traffic=TRAFFIC)
    class Merged(Model):
        @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=setting("WAIT_MS", 2000))
        def answer(self, rows: Rows) -> Rows:
            return self.model.answer_rows(rows)

    @bentoml.service(workers=1, traffic=TRAFFIC)
    class Classify:
        merged = bentoml.depends(Merged)

        @bentoml.api(route="/classify")
        async def classify(self, data: Rows) -> dict[str, Any]:
            return {"data": await self.merged.to_async.answer(data)}
