"""Load a folder with one subfolder per class, and check it completely before training starts.

The layout is DIR/<class>/<image>, or DIR/{train,valid,test}/<class>/<image> if the folder has its own split.
Images may have any size and mode that the service decodes.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model.arrays import Floats, Ints, Mask, Pixels, Strings
from model.artifact import folder_of_class
from model.errors import DatasetError, InputError
from model.image import ImageSpec, decode, stretch
from model.image_limits import ImageLimits
from model.training.splits import find_groups, split_randomly

SPLITS = ("train", "valid", "test")
LEAST_CLASSES, MOST_CLASSES = 2, 1000
LEAST_IMAGES = 3
"""Per class: one each for training, calibration and testing."""
FEW_IMAGES = 30
"""Classes with fewer images cause a warning."""
MOST_NAMED = 10
"""Faults of one kind that a message lists; it counts the others."""
COLOUR_LEVELS = 3.0
"""Mean difference between colour channels, in grey levels, above which images count as coloured."""
COLOUR_SAMPLE = 64
PATTERN_SIDE = 32
LEAST_CORRELATION = 0.995
"""JPEG copies (quality 75) of the NEU images reach 0.999 or more, different images 0.992 at most."""
_FLAT = 1.0
"""In grey levels. Patterns that vary less are skipped, because all of them look alike."""
_ROWS = 512
"""Patterns compared at a time, to bound memory."""
_LIMITS = ImageLimits()
_ANY_IMAGE = ImageSpec(height=32, width=32, channels=3)
_IMAGE_SUFFIXES = frozenset(
    {
        ".avif", ".bmp", ".dib", ".dng", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg",
        ".png", ".tif", ".tiff", ".webp",
    }
)  # fmt: skip
"""A file with such a suffix must be an image that the service decodes; other files may be something else."""


@dataclass(frozen=True)
class LabelledImages:
    """Images (n, h, w, c), uint8; labels (n,), int64, indices into the class names; paths of the files."""

    images: Pixels
    labels: Ints
    paths: tuple[Path, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, chosen: Mask) -> "LabelledImages":
        """The images where `chosen` (n,) is true."""
        paths = tuple(path for path, wanted in zip(self.paths, chosen, strict=True) if wanted)
        return LabelledImages(self.images[chosen], self.labels[chosen], paths)


@dataclass(frozen=True)
class Folder:
    class_names: tuple[str, ...]
    """In the order of the network's outputs."""
    data: LabelledImages
    splits: Strings
    """(n,): train, valid or test; empty strings if the folder has no split."""
    groups: Ints
    """(n,): images with the same number show the same piece and must not be divided between splits."""
    folds: Ints | None
    """(n,): fold numbers from the folder's manifest, or None."""
    warnings: tuple[str, ...]


def load_folder(data_dir: Path, spec: ImageSpec, known_classes: tuple[str, ...] = ()) -> Folder:
    """Load and check every image. Raises DatasetError that lists all faults of a kind and how to fix them.

    The classes are in the order of their folders' names, or of `known_classes`, which must be the same in any
    case, with `_` for a slash.
    """
    folders = list(_class_folders(data_dir))
    class_names = _class_names(data_dir, {folder.name for _, folder in folders})
    class_names = _in_order(data_dir, class_names, known_classes) if known_classes else class_names
    found = list(_find_images(folders))
    _refuse_small_classes(found, {split for split, _ in folders}, class_names)
    data = _decode_all(found, class_names, spec)
    splits = np.array([image.split for image in found])
    copies = find_copies(data.images)
    _refuse_contradictions(data, copies)
    groups, folds = find_groups(data_dir, data.paths, copies)
    names = [path.relative_to(data_dir).as_posix() for path in data.paths]
    warnings = [
        *_warn_of_skipped(folders),
        *_warn_of_leaks(splits, groups),
        *_warn_of_copies(splits, copies, names),
        *_warn_of_lookalikes(data, groups, names),
        *_warn_of_few(data.labels, class_names),
    ]
    return Folder(class_names, data, splits, groups, folds, tuple(warnings))


def split(folder: Folder) -> Strings:
    """Name of the split (n,) of each image, train, valid or test: the folder's own, or a random one.

    Raises DatasetError if the images of a class are too few for a random split.
    """
    if folder.splits[0]:
        return folder.splits
    return split_randomly(folder.data.labels, folder.groups, folder.class_names)


def load_part(data_dir: Path, name: str, class_names: tuple[str, ...], spec: ImageSpec) -> LabelledImages:
    """Load one split of a folder: its own split, which needs no other, or the one that training makes.

    The classes' folders may have another order and case, and `_` for a slash. Raises DatasetError if they are
    not those of `class_names`, or an image cannot be decoded.
    """
    if not (data_dir / name).is_dir():
        folder = load_folder(data_dir, spec, class_names)
        return folder.data.take(split(folder) == name)
    found_names = tuple(folder.name for folder in _subfolders(data_dir / name))
    ordered = _in_order(data_dir / name, found_names, class_names)
    found = list(_find_images((name, data_dir / name / found_name) for found_name in ordered))
    _refuse_small_classes(found, {name}, ordered)
    return _decode_all(found, ordered, spec)


def describe_folder(folder: Folder) -> str:
    """Summary of a folder: images, groups, classes and warnings."""
    counts = np.bincount(folder.data.labels)
    named = ", ".join(f"{name} {count}" for name, count in zip(folder.class_names, counts, strict=True))
    found = f"{len(folder.data)} images of {len(set(folder.groups.tolist()))} groups: {named}"
    return "\n".join([found, *(f"Note: {warning}" for warning in folder.warnings)])


def choose_channels(data_dir: Path) -> int:
    """3 if the images are coloured, judged by a sample, else 1."""
    paths = [image.path for image in _find_images(_class_folders(data_dir))]
    chroma = []
    for path in paths[:: max(1, len(paths) // COLOUR_SAMPLE)]:
        try:
            pixels = decode(path.read_bytes(), _ANY_IMAGE, _LIMITS).astype(np.int16)
        except InputError:
            continue  # load_folder reports it
        chroma.append(float((pixels.max(axis=2) - pixels.min(axis=2)).mean()))
    return 3 if chroma and float(np.mean(chroma)) > COLOUR_LEVELS else 1


class _ImageFile(NamedTuple):
    split: str
    """Empty if the folder has no split."""
    path: Path
    class_name: str


def _class_folders(data_dir: Path) -> Iterator[tuple[str, Path]]:
    """Split and path of every class folder, in sorted order; files next to class folders are ignored."""
    if not data_dir.is_dir():
        raise DatasetError(f"A labelled folder must contain a folder for each class. Missing: {data_dir}")
    is_split = (data_dir / "train").is_dir() and any((data_dir / name).is_dir() for name in SPLITS[1:])
    roots = {name: data_dir / name for name in SPLITS} if is_split else {"": data_dir}
    for split_name, root in roots.items():
        if not root.is_dir():
            raise DatasetError(f"A folder with {SPLITS[0]} must contain {', '.join(SPLITS)}. Missing: {root}")
        yield from ((split_name, folder) for folder in _subfolders(root))


def _subfolders(root: Path) -> list[Path]:
    """Folders, except hidden ones and what macOS adds to a ZIP."""
    folders = (path for path in root.iterdir() if path.is_dir())
    return sorted(path for path in folders if not path.name.startswith((".", "__MACOSX")))


def _class_names(data_dir: Path, names: set[str]) -> tuple[str, ...]:
    class_names = tuple(sorted(names))
    if not LEAST_CLASSES <= len(class_names) <= MOST_CLASSES:
        raise DatasetError(
            f"{data_dir} must contain {LEAST_CLASSES} to {MOST_CLASSES} classes, one folder each. "
            f"Received: {len(class_names)}."
        )
    return class_names


def _find_images(folders: Iterable[tuple[str, Path]]) -> Iterator[_ImageFile]:
    """Every image below the class folders, in sorted order, except hidden ones."""
    return (file for file in _find_files(folders) if _is_image(file.path))


def _find_files(folders: Iterable[tuple[str, Path]]) -> Iterator[_ImageFile]:
    for split_name, folder in folders:
        for path in sorted(folder.rglob("*")):
            is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
            if path.is_file() and not is_hidden:
                yield _ImageFile(split_name, path, folder.name)


def _is_image(path: Path) -> bool:
    """Whether a file is an image, or must be one: Thumbs.db, notes and annotations are skipped."""
    if path.suffix.lower() in _IMAGE_SUFFIXES:
        return True
    try:
        decode(path.read_bytes(), _ANY_IMAGE, _LIMITS)
    except InputError:
        return False
    return True


def _decode_all(found: Sequence[_ImageFile], class_names: tuple[str, ...], spec: ImageSpec) -> LabelledImages:
    def read(image: _ImageFile) -> Pixels | str:
        try:
            return decode(image.path.read_bytes(), spec, _LIMITS)
        except InputError as error:
            return f"{image.path}: {error.message}"

    with ThreadPoolExecutor() as threads:
        pictures = list(threads.map(read, found))
    if faults := [picture for picture in pictures if isinstance(picture, str)]:
        rule = "Every image must be one that the service decodes; repair or remove these:"
        raise DatasetError(_list(rule, faults))
    index = {name: number for number, name in enumerate(class_names)}
    return LabelledImages(
        images=np.stack([picture for picture in pictures if not isinstance(picture, str)]),
        labels=np.array([index[image.class_name] for image in found], dtype=np.int64),
        paths=tuple(image.path for image in found),
    )


def find_copies(images: Pixels) -> list[list[int]]:
    """Lists of indices of images (n, h, w, c) with identical pixels."""
    places: dict[bytes, list[int]] = defaultdict(list)
    for place, image in enumerate(images):
        places[hashlib.blake2b(image.tobytes(), digest_size=16).digest()].append(place)
    return [same for same in places.values() if len(same) > 1]


def find_lookalikes(images: Pixels, labels: Ints, groups: Ints) -> Iterator[tuple[int, int]]:
    """Pairs of indices of images (n, h, w, c) with the same pattern and class, but different groups.

    Each image is paired only with the first match after it: at most n pairs.
    """
    patterns, varied = _patterns(images)
    for label in np.unique(labels):
        places = np.flatnonzero((labels == label) & varied)
        of_class = patterns[places]
        for first in range(0, len(places), _ROWS):
            rows, later = places[first : first + _ROWS], places[first:]
            alike = of_class[first : first + _ROWS] @ of_class[first:].T > LEAST_CORRELATION
            alike &= groups[rows, np.newaxis] != groups[later]
            alike = np.triu(alike, 1)
            for row in np.flatnonzero(alike.any(axis=1)):
                yield int(rows[row]), int(later[alike[row].argmax()])


def _patterns(images: Pixels) -> tuple[Floats, Mask]:
    """Coarse grey patterns (n, d) of mean 0 and length 1, and whether each varies (n,)."""
    height, width = images.shape[1:3]
    size = min(width, PATTERN_SIDE), min(height, PATTERN_SIDE)
    greys = (image.mean(axis=2, dtype=np.float32) for image in images)
    coarse = np.stack([stretch(grey, size).ravel() for grey in greys])
    coarse -= coarse.mean(axis=1, keepdims=True)
    length = np.maximum(np.linalg.norm(coarse, axis=1, keepdims=True), 1e-6)
    return coarse / length, np.asarray(coarse.std(axis=1) > _FLAT)


def _in_order(root: Path, found: tuple[str, ...], class_names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of the folders that were found, in the order of the classes. Raises DatasetError."""
    if set(found) == set(class_names):
        return class_names
    by_class = {folder_of_class(name): name for name in found}
    ordered = tuple(by_class.get(folder_of_class(name), "") for name in class_names)
    if sorted(ordered) != sorted(found):
        raise DatasetError(f"{root} must contain the classes {class_names}. Received: {found}")
    return ordered


def _refuse_small_classes(
    found: Sequence[_ImageFile], splits: set[str], class_names: tuple[str, ...]
) -> None:
    counts = Counter((image.split, image.class_name) for image in found)
    small = [
        f"{class_name}{f' in {name}' if name else ''}: {counts[name, class_name]}"
        for name in sorted(splits)
        for class_name in class_names
        if counts[name, class_name] < (1 if name else LEAST_IMAGES)
    ]
    if small:
        rule = f"Every class must have at least {LEAST_IMAGES} images, some of them in every split"
        raise DatasetError(_list(f"{rule}; add images or remove the class:", small))


def _refuse_contradictions(data: LabelledImages, copies: Sequence[Sequence[int]]) -> None:
    contradictions = [
        " = ".join(str(data.paths[place]) for place in same)
        for same in copies
        if len({int(data.labels[place]) for place in same}) > 1
    ]
    if contradictions:
        raise DatasetError(_list("Identical images must be in one class; keep one of each:", contradictions))


def _warn_of_skipped(folders: Sequence[tuple[str, Path]]) -> Iterator[str]:
    counts = Counter(file.path.name for file in _find_files(folders) if not _is_image(file.path))
    if counts:
        names = [name if count == 1 else f"{name} ({count} times)" for name, count in counts.items()]
        yield _list(f"Skipped {counts.total()} files that are not images:", names)


def _warn_of_leaks(splits: Strings, groups: Ints) -> Iterator[str]:
    for name in SPLITS[1:]:
        tested = groups[splits == name]
        if leaked := np.isin(tested, groups[splits == "train"]).sum():
            yield (
                f"{leaked} of {len(tested)} {name} images belong to a group that is in train too, "
                f"so that metrics on them are too optimistic."
            )


def _warn_of_copies(splits: Strings, copies: Sequence[Sequence[int]], names: Sequence[str]) -> Iterator[str]:
    divided = [" = ".join(names[place] for place in same) for same in copies if len(set(splits[same])) > 1]
    if divided:
        yield _list("Identical images are in different splits; keep one of each:", divided)


def _warn_of_lookalikes(data: LabelledImages, groups: Ints, names: Sequence[str]) -> Iterator[str]:
    pairs = find_lookalikes(data.images, data.labels, groups)
    alike = [f"{names[one]} = {names[other]}" for one, other in pairs]
    if alike:
        rule = "Images look alike. Remove copies, or give images of one piece the same group in manifest.csv:"
        yield _list(rule, alike)


def _warn_of_few(labels: Ints, class_names: tuple[str, ...]) -> Iterator[str]:
    counts = np.bincount(labels, minlength=len(class_names))
    few = [f"{name}: {count}" for name, count in zip(class_names, counts, strict=True) if count < FEW_IMAGES]
    if few:
        yield _list(f"Classes with fewer than {FEW_IMAGES} images tend to have low accuracy:", few)


def _list(rule: str, faults: Sequence[str]) -> str:
    more = [f"and {len(faults) - MOST_NAMED} more"] if len(faults) > MOST_NAMED else []
    return "\n  ".join([rule, *faults[:MOST_NAMED], *more])
