"""FastAPI with one endpoint per form of request, tuned by hand: uvicorn plain_fastapi:app.

Whole requests run in a pool of POOL threads, which limits how many compete for the cores.
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
from fastapi import FastAPI, HTTPException, Request, Response
from peer_model import PeerModel, setting

model = PeerModel("fastapi")
threads = ThreadPoolExecutor(setting("POOL", 2))
app = FastAPI()


@app.get("/readyz")
async def ready() -> dict[str, str]:
    return {"status": "ready"}


@app.post("/classify")
async def classify(request: Request) -> Response:
    return await answer(answer_batch, await request.body())


@app.post("/image")
async def classify_image(request: Request) -> Response:
    return await answer(answer_image, await request.body())


@app.post("/files")
async def classify_files(request: Request) -> Response:
    async with request.form() as form:
        files = [await upload.read() for upload in form.getlist("file") if not isinstance(upload, str)]
    return await answer(answer_files, files)


async def answer(work: Any, received: Any) -> Response:
    body = await asyncio.get_running_loop().run_in_executor(threads, work, received)
    return Response(body, media_type="application/json")


def answer_batch(body: bytes) -> bytes:
    try:
        rows = orjson.loads(body)["data"]
        answered = model.answer_rows(rows)
    except (LookupError, TypeError, ValueError) as error:
        raise HTTPException(400, "The body must be a batch of rows.") from error
    return orjson.dumps({"data": answered})


def answer_image(body: bytes) -> bytes:
    return orjson.dumps(model.answer_files([body])[0])


def answer_files(files: list[bytes]) -> bytes:
    return orjson.dumps({"results": model.answer_files(files)})
