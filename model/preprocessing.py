"""What happens to pixels before a network and to its outputs after it, as part of the artifact.

Both are compiled into the network, so that the service passes pixels and receives probabilities.
"""

import re
from typing import Annotated, Literal, Self, TypeAlias

import numpy as np
from pydantic import BaseModel, Field, model_validator

from model.arrays import Floats

Number = Annotated[float, Field(allow_inf_nan=False)]

Ending: TypeAlias = Literal["probabilities", "logits", "sigmoid", "logit", "sigmoids", "multi_label_logits"]
"""What a network's outputs are.

- probabilities: one for each class, sum 1
- logits: one for each class, to which a softmax is applied
- sigmoid, logit: one output, the probability or logit of the second of two classes
- sigmoids, multi_label_logits: an independent probability or logit for each class
"""
MULTI_LABEL: tuple[Ending, ...] = ("sigmoids", "multi_label_logits")
ONE_OUTPUT: tuple[Ending, ...] = ("sigmoid", "logit")
LEAST_PROBABILITY = 1e-37
"""Smaller ones have no logarithm in float32."""

Preset: TypeAlias = Literal["raw", "unit", "symmetric", "caffe", "torch", "teachable-machine"]


class Preprocessing(BaseModel, frozen=True, extra="forbid"):
    """Input of the network = pixels 0..255 in this order of channels * scale + offset."""

    scale: Annotated[tuple[Number, ...], Field(min_length=1, max_length=3)] = (1.0,)
    """One value, or one for each channel in the network's order."""
    offset: Annotated[tuple[Number, ...], Field(min_length=1, max_length=3)] = (0.0,)
    order: Literal["rgb", "bgr"] = "rgb"

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        for name, values in (("scale", self.scale), ("offset", self.offset)):
            if len(values) == 2:
                raise ValueError(f"{name} must have 1 or 3 values. Received: {values}")
        if 0.0 in self.scale:
            raise ValueError(f"scale must not be 0. Received: {self.scale}")
        return self

    @property
    def name(self) -> Preset | None:
        return next((name for name, preset in PRESETS.items() if preset == self), None)

    def __str__(self) -> str:
        formula = f"pixels * {_format(self.scale)} + {_format(self.offset)}, {self.order.upper()}"
        return formula if self.name is None else f"{self.name} ({formula})"


def standardised(
    mean: tuple[float, ...],
    std: tuple[float, ...],
    factor: tuple[float, ...],
    order: Literal["rgb", "bgr"] = "rgb",
) -> Preprocessing:
    """(pixels * factor - mean) / std, with one value or one for each channel."""
    size = max(map(len, (mean, std, factor)))
    means, stds, factors = (values * (size // len(values)) for values in (mean, std, factor))
    return Preprocessing(
        scale=tuple(a / b for a, b in zip(factors, stds, strict=True)),
        offset=tuple(-a / b for a, b in zip(means, stds, strict=True)),
        order=order,
    )


PRESETS: dict[Preset, Preprocessing] = {
    "raw": Preprocessing(),
    "unit": Preprocessing(scale=(1 / 255,)),
    "symmetric": Preprocessing(scale=(1 / 127.5,), offset=(-1.0,)),
    # keras.applications.imagenet_utils.preprocess_input, mode "caffe" and mode "torch".
    "caffe": Preprocessing(offset=(-103.939, -116.779, -123.68), order="bgr"),
    "torch": standardised((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), (1 / 255,)),
    # The code that Teachable Machine shows next to its export. Until 2022 it was / 127, as in its training.
    "teachable-machine": Preprocessing(scale=(1 / 127.5,), offset=(-1.0,)),
}


def softmax(logits: Floats, axis: int = 1) -> Floats:
    powers = np.exp(logits - logits.max(axis=axis, keepdims=True))
    shares: Floats = powers / powers.sum(axis=axis, keepdims=True)
    return shares


def soften(probabilities: Floats, temperature: float | None) -> Floats:
    """Probabilities (n, k) of the same logits divided by a temperature."""
    if temperature is None:
        return probabilities
    logits: Floats = np.log(np.maximum(probabilities, LEAST_PROBABILITY))
    return softmax(logits / np.float32(temperature))


def parse_number(text: str) -> float:
    """A number as people write it: 0.5, 1e-3, 1/255, 1./255 or 1/127.5. Raises ValueError."""
    if not re.fullmatch(r"[-+\d.eE]+(/[-+\d.eE]+)?", text := text.replace(" ", "")):
        raise ValueError(f"must be a number such as 0.5 or 1/255. Received: {text}")
    numerator, _, divisor = text.partition("/")
    try:
        return float(numerator) / float(divisor or 1)
    except (ArithmeticError, ValueError):
        raise ValueError(f"must be a number such as 0.5 or 1/255. Received: {text}") from None


def _format(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)
