"""The images that the playground and local SQL offer for a network: a few of its own."""

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.defaults import samples_folder
from model.image import encode_png

MAX_SAMPLES = 12


def save_samples(
    h5_path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], class_names: Sequence[str]
) -> None:
    """Write one image (h, w, c) of each class, up to MAX_SAMPLES, for the playground and local SQL.

    They replace the samples of a former network of that name.
    """
    folder = samples_folder(h5_path)
    folder.mkdir(exist_ok=True, parents=True)
    for old in folder.glob("*.png"):
        old.unlink()
    present, first = np.unique(labels, return_index=True)
    for label, index in list(zip(present, first, strict=True))[:MAX_SAMPLES]:
        name = re.sub(r"[^\w-]+", "_", class_names[label])
        (folder / f"{label:02}-{name}.png").write_bytes(encode_png(images[index]))
