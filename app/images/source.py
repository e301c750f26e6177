"""What a row may name as its image: a URL, base64 text, or the bytes themselves."""

import binascii
import re
from dataclasses import dataclass
from typing import TypeAlias

from app.errors import InvalidBase64, InvalidSource
from model.errors import InputError
from model.image_limits import ImageLimits

# RFC 3986, section 3.1. A colon is in no base64 alphabet, so this never mistakes an image for a URL.
_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True)
class Url:
    text: str


@dataclass(frozen=True)
class Base64Text:
    """Base64 (RFC 4648, section 4) of an image file, as SQL's BASE64_ENCODE writes it."""

    text: str

    def decode(self, limits: ImageLimits) -> bytes:
        """Raises InvalidBase64, or ImageTooLarge before anything is decoded."""
        limits.refuse_bytes(len(self.text) * 3 // 4 - 2)
        try:
            return _decode_strictly(self.text)
        except ValueError:
            return self._decode_wrapped()

    def _decode_wrapped(self) -> bytes:
        """Allow for the line breaks that many encoders write."""
        try:
            return _decode_strictly("".join(self.text.split()))
        except ValueError as error:
            raise InvalidBase64(
                f"A source without a scheme must be the base64 text of an image (RFC 4648, section 4). "
                f"Received: {len(self.text)} characters, {str(error).rstrip('.').lower()}."
            ) from None


Source: TypeAlias = Url | Base64Text | bytes


def parse_source(value: object) -> Source | InputError | None:
    """A row's value as a source; None for SQL's NULL."""
    if value is None:
        return None
    if not isinstance(value, str):
        return InvalidSource(f"A source must be a string. Received: {_json_type(value)}.")
    if not value.strip():
        return InvalidSource("A source must be a URL or base64 text. Received: an empty string.")
    if value.lstrip().startswith("@"):
        return InvalidSource(
            "A source must be a URL or base64 text. Received: a stage path; "
            "pass GET_PRESIGNED_URL(@stage, relative_path)."
        )
    return Url(value.strip()) if _SCHEME.match(value) else Base64Text(value)


def _decode_strictly(text: str) -> bytes:
    if len(text) % 4:  # binascii lets some surplus padding pass
        raise ValueError("the length is no multiple of 4")
    return binascii.a2b_base64(text, strict_mode=True)


def _json_type(value: object) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    return "an array" if isinstance(value, list) else "an object"
