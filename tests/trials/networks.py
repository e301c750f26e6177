"""python -m tests.trials.networks [NAME ...]: imports networks of both Kerases and compares answers.

Each network is built, saved, imported and served by LiteRT in one process after the other. The answers for
IMAGES images are compared with those of the Keras that wrote the file, preprocessed by the author's own code.
Writes results/networks.md. Names choose networks by their beginning.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import gc
import sys
import tempfile
import time
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tf_keras

from model.artifact import ArtifactCard
from model.contact_sheet import ContactSheet
from model.engines import open_classifier
from model.errors import ModelError
from model.image import ImageSpec, encode_png
from model.importing import Request, import_network
from model.preprocessing import PRESETS, Preset
from tests.model.conftest import random_images
from tests.model.kinds import KINDS, NAMES, Kind

RESULTS = Path(__file__).parent / "results"
IMAGES = 12
SIDE = 96
HEADER = (
    "network",
    "file",
    "read by",
    "preprocessing",
    "recommended",
    "wrong ones noticed",
    "ending",
    "labels equal",
    "max abs. difference",
    "seconds",
)

APPLICATIONS: tuple[tuple[str, str, Preset, dict[str, Any]], ...] = (
    ("MobileNet", "mobilenet", "symmetric", {"alpha": 0.25}),
    ("MobileNetV2", "mobilenet_v2", "symmetric", {"alpha": 0.35}),
    ("MobileNetV3Small", "mobilenet_v3", "raw", {}),
    ("EfficientNetB0", "efficientnet", "raw", {}),
    ("EfficientNetV2B0", "efficientnet_v2", "raw", {}),
    ("DenseNet121", "densenet", "torch", {}),
    ("NASNetMobile", "nasnet", "symmetric", {}),
    ("ResNet50", "resnet50", "caffe", {}),
    ("ResNet50V2", "resnet_v2", "symmetric", {}),
    ("VGG16", "vgg16", "caffe", {}),
    ("InceptionV3", "inception_v3", "symmetric", {}),
    ("Xception", "xception", "symmetric", {}),
    ("ConvNeXtTiny", "convnext", "raw", {}),
)


def applications() -> list[Kind]:
    """Transfer learning as in Keras's guides: a base without its top, pooling and a dense layer."""
    return [
        _application(library, name, module, preset, given)
        for name, module, preset, given in APPLICATIONS
        for library in (keras, tf_keras)
    ]


def _application(library: Any, name: str, module: str, preset: Preset, given: dict[str, Any]) -> Kind:
    def build(k: Any) -> Any:
        base = getattr(k.applications, name)(
            input_shape=(SIDE, SIDE, 3), include_top=False, weights=None, **given
        )
        top = k.layers.Dense(3, activation="softmax", kernel_initializer=k.initializers.RandomNormal(0, 0.3))
        network = k.Sequential([k.Input((SIDE, SIDE, 3)), base, k.layers.GlobalAveragePooling2D(), top])
        _adapt(network, np.asarray(own(_images(8).astype(np.float32))))
        return network

    own = getattr(library.applications, module).preprocess_input
    return Kind(
        f"{library.__name__}-{name}",
        build,
        library,
        suffix=".keras" if library is keras else ".h5",
        request=Request(NAMES, preset),
        shape=(SIDE, SIDE, 3),
        to_input=lambda x: np.asarray(own(x.astype(np.float32))),
    )


def _adapt(network: Any, inputs: np.ndarray) -> None:
    """Give batch normalisations the statistics of some images, as training would."""
    for layer in network.layers[0].layers:
        if type(layer).__name__ == "BatchNormalization":
            layer.momentum = 0.5
    for _ in range(6):
        network(inputs, training=True)


def _images(count: int, seed: int = 0) -> np.ndarray:
    """Blurred noise: neighbouring pixels are alike, as in photographs."""
    coarse = random_images(count, ImageSpec(height=12, width=12, channels=3), seed)
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def _write_images(folder: Path) -> Path:
    """Images without classes: the first batch normalisation must tell the preprocessing."""
    images = folder / "images"
    images.mkdir()
    for number, pixels in enumerate(_images(16, 2)):
        (images / f"{number}.png").write_bytes(encode_png(pixels))
    return images


def measure(kind: Kind) -> tuple[str, ...]:
    """One line of the table."""
    file = kind.suffix or "SavedModel"
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        path, own_answer = kind.write(Path(folder))
        is_adapted = "Net" in kind.name or "ption" in kind.name
        request = replace(kind.request, try_dir=_write_images(Path(folder))) if is_adapted else kind.request
        try:
            imported = import_network(path, request)
            classifier = open_classifier(imported.artifact, "litert", 1, Path(folder))
        except ModelError as error:
            return (kind.name, file, "refused", *[""] * 6, str(error)[:120])
        height, width, channels = kind.shape
        spec = ImageSpec(height=height, width=width, channels=channels)  # type: ignore[arg-type]
        images = _images(IMAGES, 1) if kind.shape == (SIDE, SIDE, 3) else random_images(IMAGES, spec)
        served, expected = classifier.predict(images), own_answer(images)
    card = imported.artifact.card
    equal = int((served.argmax(axis=1) == expected.argmax(axis=1)).sum())
    difference = float(np.abs(served - expected).max())
    preset = next((name for name, one in PRESETS.items() if one == card.preprocessing), "explicit")
    writer = imported.findings[0].removeprefix("Written by ").partition(" Input")[0].rstrip(".")
    seconds = f"{time.monotonic() - started:.0f}"
    figures = f"{equal} of {len(images)}", f"{difference:.1e}", seconds
    sheet = imported.sheet
    images_say = ("", "") if sheet is None else (sheet.recommended(None).name, _noticed(sheet, card))
    return (kind.name, file, writer, preset, *images_say, card.ending, *figures)


def _noticed(sheet: ContactSheet, card: ArtifactCard) -> str:
    """For how many of the wrong preprocessings a warning would appear if they were stated."""
    wrong = [row.candidate for row in sheet.rows if row.candidate.preprocessing != card.preprocessing]
    return f"{sum(sheet.recommended(one) != one for one in wrong)} of {len(wrong)}"


def main(names: list[str]) -> None:
    kinds = [*KINDS, *applications()]
    chosen = [kind for kind in kinds if not names or any(kind.name.startswith(name) for name in names)]
    rows = []
    for kind in chosen:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rows.append(measure(kind))
        print(*rows[-1], sep="\t", flush=True)
        keras.backend.clear_session()
        tf_keras.backend.clear_session()
        gc.collect()
    lines = [_line(HEADER), _line(["---"] * len(HEADER)), *map(_line, rows)]
    if not names:
        (RESULTS / "networks.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main(sys.argv[1:])
