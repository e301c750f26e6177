"""The artifact: <name>.h5, the network, and <name>.json, the card that describes it.

Training ends in one; serving starts from one. The card names the only h5 it speaks for by sha256, so
that no other file is ever loaded under its name.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.errors import ArtifactError
from model.image import ImageSpec
from model.novelty import Novelty
from model.packed import PackedArray

ClassName = Annotated[str, Field(pattern=r"\S")]


class ArtifactCard(BaseModel):
    """What <name>.json states. A foreign network needs `class_names`, `image`, `scale` and `sha256`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    class_names: Annotated[tuple[ClassName, ...], Field(min_length=2)]
    """In the order of the network's outputs."""
    image: ImageSpec
    scale: Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]
    """Pixels 0..255 are multiplied by this before the network; 1.0 when it scales by itself."""
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    golden_probabilities: tuple[float, ...] | None = None
    """What the reference engine answered for `golden_image(image)`."""
    class_weights: PackedArray | None = None
    """(d, k): the last layer's weights, where the network ends in global average pooling and one dense
    layer. They turn its last feature map into evidence."""
    novelty: Novelty | None = None
    """What tells unfamiliar images, on which the service abstains."""
    metrics: dict[str, Any] = {}
    training: dict[str, Any] = {}
    versions: dict[str, str] = {}

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"class_names must name each class once. Received: {self.class_names}")
        golden = self.golden_probabilities
        if golden is not None and len(golden) != len(self.class_names):
            raise ValueError(f"golden_probabilities must be one a class. Received: {len(golden)}")
        weights = self.class_weights
        if weights is not None and (len(weights.shape), weights.shape[-1]) != (2, len(self.class_names)):
            raise ValueError(f"class_weights must be (d, classes). Received: {weights.shape}")
        if self.novelty is not None:
            embedding = weights.shape[0] if weights is not None else None
            if self.novelty.whitening.shape[0] != embedding:
                raise ValueError(f"novelty must judge the embedding of class_weights. Received: {embedding}")
        return self


@dataclass(frozen=True)
class Artifact:
    """A network file and its verified card."""

    h5_path: Path
    card: ArtifactCard

    @property
    def name(self) -> str:
        return self.h5_path.stem

    @property
    def version(self) -> str:
        """The first 12 hex digits of the h5's sha256: it changes whenever the weights do."""
        return self.card.sha256[:12]


def card_path(h5_path: Path) -> Path:
    """The .json beside an .h5. Raises ArtifactError for any other file."""
    if h5_path.suffix != ".h5":
        raise ArtifactError(f"A network must be an .h5 file. Received: {str(h5_path)!r}")
    return h5_path.with_suffix(".json")


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def file_faults() -> Iterator[None]:
    """Turn what the system says of a file into an ArtifactError; a container's user may not read a volume."""
    try:
        yield
    except OSError as error:
        raise ArtifactError(
            f"{error.filename} must be readable by the user {os.getuid()}. Received: {error.strerror}."
        ) from None


@file_faults()
def load_artifact(h5_path: Path) -> Artifact:
    """Read the card beside `h5_path` and verify that it speaks for this file.

    Raises ArtifactError when a file is missing or unreadable, the card is wrong or the sha256 differs.
    """
    for path in (h5_path, card_path(h5_path)):
        if not path.is_file():
            raise ArtifactError(f"An artifact is an .h5 and its .json. Missing: {path}")
    with card_faults(h5_path):
        card = ArtifactCard.model_validate_json(card_path(h5_path).read_bytes())
    actual = sha256_of(h5_path)
    if actual != card.sha256:
        raise ArtifactError(
            f"{h5_path} must have the sha256 that its card names, {card.sha256}. Received: {actual}."
        )
    return Artifact(h5_path, card)


@contextmanager
def card_faults(h5_path: Path) -> Iterator[None]:
    """Turn what is wrong with a card into an ArtifactError that names each fault."""
    try:
        yield
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'the card'}: {fault['msg']}"
            for fault in error.errors(include_input=False, include_url=False)
        )
        raise ArtifactError(f"{card_path(h5_path)} must be a valid card: {faults}") from None


def save_card(h5_path: Path, card: ArtifactCard) -> Artifact:
    """Write the card beside its h5."""
    text = json.dumps(card.model_dump(mode="json"), indent=2, ensure_ascii=False)
    card_path(h5_path).write_text(text + "\n", encoding="utf-8")
    return Artifact(h5_path, card)


def golden_image(spec: ImageSpec) -> NDArray[np.uint8]:
    """A fixed picture (h, w, c), uint8: the same on every machine, and nobody's photograph."""
    y, x, c = np.indices(spec.shape, dtype=np.int64)
    picture: NDArray[np.uint8] = ((x * x + 3 * y * y + 5 * x * y) // 97 + 31 * c).astype(np.uint8)
    return picture
