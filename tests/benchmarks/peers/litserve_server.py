"""LitServe: Snowflake batches, merged across requests where BATCH is above 1.

WORKERS processes hold a model each; WAIT_MS is the longest that a request waits for others to join it.
Raw images are left out: LitServe parses every body itself, as JSON or as a form.
"""

from typing import Any, TypeAlias

import litserve
from fastapi import Request
from peer_model import PeerModel, setting

Rows: TypeAlias = list[list[Any]]


class Classify(litserve.LitAPI):
    def setup(self, device: str) -> None:
        self.model = PeerModel("litserve")

    # Annotated otherwise, FastAPI looks for it in the query; what comes is the parsed body.
    def decode_request(self, request: Request) -> Rows:
        return request["data"]

    def predict(self, x: Any) -> Any:
        if setting("BATCH", 1) == 1:
            return self.model.answer_rows(x)
        answered = iter(self.model.answer_rows([row for rows in x for row in rows]))
        return [[next(answered) for _ in rows] for rows in x]

    def encode_response(self, output: Rows) -> dict[str, Rows]:
        return {"data": output}


if __name__ == "__main__":
    api = Classify(
        max_batch_size=setting("BATCH", 1),
        batch_timeout=setting("WAIT_MS", 0) / 1000,
        api_path="/classify",
    )
    server = litserve.LitServer(
        api,
        accelerator="cpu",
        workers_per_device=setting("WORKERS", 1),
        timeout=60,
        fast_queue=setting("FAST_QUEUE", 0) == 1,
    )
    server.run(
        host="127.0.0.1",
        port=setting("PORT", 8000),
        num_api_servers=setting("API_SERVERS", 1),
        log_level="warning",
        generate_client_file=False,
    )
