"""PyTriton: Triton's front end and dynamic batcher before WORKERS Python models, in KServe's v2 form.

    POST /v2/models/classify/infer
    {"inputs": [{"name": "image", "shape": [n, 1], "datatype": "BYTES", "data": ["<base64>", …]}]}

The output `answer` is of the same shape, a JSON object a row.
"""

import json
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from peer_model import PeerModel, setting
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

Texts = NDArray[np.bytes_]
# Triton refuses a request of more rows than its batcher may merge.
MOST_ROWS = 4096


def make_classify(model: PeerModel) -> Callable[..., Any]:
    @batch
    def classify(image: Texts) -> dict[str, Texts]:
        rows = [[number, text] for number, [text] in enumerate(image)]
        answers = [[json.dumps(answer).encode()] for _, answer in model.answer_rows(rows)]
        return {"answer": np.array(answers, dtype=np.bytes_)}

    return classify


def main() -> None:
    # As Ctrl-C does, so that Triton takes its workspace of 20 MB away when it is stopped.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    port = setting("PORT", 8000)
    config = TritonConfig(
        http_address="127.0.0.1",
        http_port=port,
        http_thread_count=setting("HTTP_THREADS", 2),
        allow_grpc=False,
        allow_metrics=False,
        log_verbose=0,
    )
    wait = DynamicBatcher(max_queue_delay_microseconds=setting("WAIT_MS", 0) * 1000)
    with Triton(config=config) as triton:
        triton.bind(
            model_name="classify",
            infer_func=[make_classify(PeerModel("nvidia-pytriton")) for _ in range(setting("WORKERS", 1))],
            inputs=[Tensor(name="image", dtype=np.bytes_, shape=(1,))],
            outputs=[Tensor(name="answer", dtype=np.bytes_, shape=(1,))],
            config=ModelConfig(max_batch_size=MOST_ROWS, batcher=wait),
            strict=False,
        )
        triton.serve()


if __name__ == "__main__":
    main()
