"""A labelled folder, DIR/{train,valid,test}/<class>/<image>, decoded as the service decodes images."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model.errors import DatasetError, InputError
from model.image import ImageSpec, decode
from model.image_limits import ImageLimits

SPLITS = ("train", "valid", "test")

_LIMITS = ImageLimits()


@dataclass(frozen=True)
class LabelledImages:
    """Images (n, h, w, c), uint8; labels (n,), int64, indices into the class names; paths of the files."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, chosen: NDArray[np.bool_]) -> "LabelledImages":
        """The images where `chosen` (n,) is true."""
        paths = tuple(path for path, wanted in zip(self.paths, chosen, strict=True) if wanted)
        return LabelledImages(self.images[chosen], self.labels[chosen], paths)


def find_class_names(data_dir: Path, split: str = "train") -> tuple[str, ...]:
    """Class names of a split: its subfolders in sorted order, which is the order of the network's outputs."""
    split_dir = data_dir / split
    if not split_dir.is_dir():
        raise DatasetError(f"A labelled folder must contain {', '.join(SPLITS)}. Missing: {split_dir}")
    folders = (folder.name for folder in split_dir.iterdir() if folder.is_dir())
    class_names = tuple(sorted(name for name in folders if not name.startswith(".")))
    if len(class_names) < 2:
        raise DatasetError(f"{split_dir} must contain a folder for each of two or more classes.")
    return class_names


def load_split(data_dir: Path, split: str, class_names: tuple[str, ...], spec: ImageSpec) -> LabelledImages:
    """Decode every image of a split, with classes in the order of `class_names`.

    Raises DatasetError if a class has no images, the subfolders are not `class_names`, or an image cannot be
    decoded.
    """
    _refuse_other_classes(data_dir / split, class_names)
    labelled = list(_find_images(data_dir / split, class_names))
    with ThreadPoolExecutor() as threads:
        images = list(threads.map(lambda row: _decode_file(row[0], spec), labelled))
    return LabelledImages(
        images=np.stack(images),
        labels=np.array([label for _, label in labelled], dtype=np.int64),
        paths=tuple(path for path, _ in labelled),
    )


def _refuse_other_classes(split_dir: Path, class_names: tuple[str, ...]) -> None:
    found = find_class_names(split_dir.parent, split_dir.name)
    differing = sorted(set(found).symmetric_difference(class_names))
    if differing:
        raise DatasetError(f"{split_dir} must contain the classes {class_names}. Differs: {differing}")


def _find_images(split_dir: Path, class_names: tuple[str, ...]) -> Iterator[tuple[Path, int]]:
    for label, class_name in enumerate(class_names):
        paths = find_files(split_dir / class_name)
        if not paths:
            raise DatasetError(f"Every class must have images. Empty: {split_dir / class_name}")
        for path in paths:
            yield path, label


def find_files(folder: Path) -> list[Path]:
    """All files below a folder in sorted order, except hidden ones."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _decode_file(path: Path, spec: ImageSpec) -> NDArray[np.uint8]:
    try:
        return decode(path.read_bytes(), spec, _LIMITS)
    except InputError as error:
        raise DatasetError(f"{path}: {error.message}") from error
