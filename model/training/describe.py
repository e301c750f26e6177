"""Write the card of an .h5 that was trained elsewhere, so that the service can serve it."""

from collections.abc import Sequence
from pathlib import Path

from model.artifact import Artifact, ArtifactCard, card_faults, card_path, save_card, sha256_of
from model.errors import ArtifactError
from model.image import ImageSpec
from model.networks.registry import class_weights_of, load_network, refuse_mismatch
from model.tensorflow_engine import with_golden_answer


def describe(h5_path: Path, class_names: Sequence[str], scale: float) -> Artifact:
    """Write <name>.json next to `h5_path`; image size and channels are read from the network.

    Raises ArtifactError if a card exists already, or the service could not serve the network.
    """
    if card_path(h5_path).exists():
        raise ArtifactError(
            f"The .h5 must have no card yet; remove the card to write another. Received: {card_path(h5_path)}"
        )
    if not h5_path.is_file():
        raise ArtifactError(f"The .h5 must exist. Missing: {h5_path}")
    network = load_network(h5_path)
    with card_faults(h5_path):
        card = ArtifactCard(
            class_names=tuple(class_names),
            image=_image_spec_of(network.input_shape),
            scale=scale,
            sha256=sha256_of(h5_path),
            class_weights=class_weights_of(network),
        )
    refuse_mismatch(network, card)
    return save_card(h5_path, with_golden_answer(card, network))


def _image_spec_of(input_shape: tuple[int | None, ...]) -> ImageSpec:
    match input_shape:
        case (None, int(height), int(width), 1 | 3 as channels):
            return ImageSpec(height=height, width=width, channels=channels)
    raise ArtifactError(
        f"The network must take images of shape (n, height, width, 1 or 3). Received: {input_shape}."
    )
