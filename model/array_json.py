"""Arrays in a JSON card: a shape, and float32 values as base64."""

import base64
import math
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

Side = Annotated[int, Field(ge=1)]


class ArrayJson(BaseModel):
    """`float32` is the base64 of the array's little-endian values in row-major order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: tuple[Side, ...]
    float32: str

    @classmethod
    def from_array(cls, array: NDArray[np.floating]) -> Self:
        content = np.ascontiguousarray(array, dtype="<f4").tobytes()
        return cls(shape=array.shape, float32=base64.b64encode(content).decode())

    def to_array(self) -> NDArray[np.float32]:
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
