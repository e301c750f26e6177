"""Types of arrays, and their form in a JSON card."""

import base64
import math
from typing import Annotated, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

Pixels: TypeAlias = NDArray[np.uint8]
Floats: TypeAlias = NDArray[np.float32]
Ints: TypeAlias = NDArray[np.int64]
Strings: TypeAlias = NDArray[np.str_]
Mask: TypeAlias = NDArray[np.bool_]


class ArrayJson(BaseModel, frozen=True, extra="forbid"):
    """An array in a JSON card: `float32` is the base64 of its little-endian values in row-major order."""

    shape: tuple[Annotated[int, Field(ge=1)], ...]
    float32: str

    @classmethod
    def from_array(cls, array: NDArray[np.floating]) -> Self:
        content = np.ascontiguousarray(array, dtype="<f4").tobytes()
        return cls(shape=array.shape, float32=base64.b64encode(content).decode())

    def to_array(self) -> Floats:
        """A read-only array of `shape`, float32."""
        content = base64.b64decode(self.float32, validate=True)
        return np.frombuffer(content, dtype="<f4").astype(np.float32, copy=False).reshape(self.shape)

    @model_validator(mode="after")
    def _check_values(self) -> Self:
        expected = 4 * math.prod(self.shape)
        actual = len(base64.b64decode(self.float32, validate=True))
        if actual != expected:
            raise ValueError(f"an array of shape {self.shape} must have {expected} bytes. Received: {actual}")
        if not np.isfinite(self.to_array()).all():
            raise ValueError("an array must have finite values only. Received: NaN or infinity")
        return self
