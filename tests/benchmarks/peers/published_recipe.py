"""The published recipe's network behind FastAPI, in the simplest way: uvicorn published_recipe:app.

The recipe predicts without the scale of 1/255 that it trained with; the .h5 includes that step, so the
answers are correct.
"""

import base64
import io
import json
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from fastapi import FastAPI, Request
from PIL import Image
from pydantic import BaseModel
from served_report import report_served

card = json.loads(Path(os.environ["CARD_PATH"]).read_text(encoding="utf-8"))
model = keras.models.load_model(os.environ["MODEL_PATH"], compile=False)
report_served("fastapi", keras.backend.backend(), tf.__version__, os.environ["MODEL_PATH"])
app = FastAPI()


class Batch(BaseModel):
    data: list[list[Any]]


def classify_image(data: bytes) -> dict[str, Any]:
    spec = card["image"]
    image = Image.open(io.BytesIO(data)).convert("L" if spec["channels"] == 1 else "RGB")
    image = image.resize((spec["width"], spec["height"]), Image.Resampling.BILINEAR)
    x = np.array(image, dtype="float32").reshape(spec["height"], spec["width"], spec["channels"])
    probabilities = model.predict(x[None] * card["scale"], verbose=0)[0]
    best = int(np.argmax(probabilities))
    return {
        "label": card["class_names"][best],
        "confidence": float(probabilities[best]),
        "probabilities": {
            name: float(probability)
            for name, probability in zip(card["class_names"], probabilities, strict=True)
        },
    }


def classify_row(text: str) -> dict[str, Any]:
    try:
        return classify_image(base64.b64decode(text))
    except Exception as error:  # noqa: BLE001
        return {"error": {"code": type(error).__name__, "message": str(error)}}


@app.get("/readyz")
async def ready() -> dict[str, str]:
    return {"status": "ready"}


@app.post("/classify")
async def classify(batch: Batch) -> dict[str, Any]:
    return {"data": [[row, classify_row(text)] for row, text in batch.data]}


@app.post("/image")
async def image(request: Request) -> dict[str, Any]:
    return classify_image(await request.body())
