"""What a row may name as its image: a URL, a staged file, text that holds the image, or its bytes."""

import re
from dataclasses import dataclass
from typing import TypeAlias

from pybase64 import b64decode

from app.errors import InvalidBase64, InvalidHex, InvalidSource
from app.images.stage_file import StageFile, parse_file_url, parse_stage_path
from model.errors import InputError
from model.image_limits import ImageLimits

# RFC 3986, section 3.1. A colon is in no base64 alphabet, so this never mistakes an image for a URL.
_SCHEME = re.compile(r"\s*[A-Za-z][A-Za-z0-9+.-]*:")
# How images begin, in hex: PNG, JPEG, BMP, TIFF and BigTIFF in both byte orders, WebP. No base64 text of an
# image begins so, since its own first bytes would then be those of no image.
_HEX_OF_IMAGE = re.compile(
    r"\s*(89504E47|FFD8FF|424D|49492[AB]00|4D4D002[AB]|52494646)[0-9A-F]{8}", re.IGNORECASE
)

# Longer text is an image; to strip it would copy it.
MAX_REFERENCE_CHARACTERS = 64 * 1024


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
            return b64decode(self.text, validate=True)
        except ValueError:
            return self._decode_wrapped()

    def _decode_wrapped(self) -> bytes:
        """Allow for the line breaks that many encoders write."""
        try:
            return b64decode("".join(self.text.split()), validate=True)
        except ValueError as error:
            raise InvalidBase64(
                f"A source without a scheme must be the base64 text of an image (RFC 4648, section 4). "
                f"Received: {len(self.text)} characters, {str(error).rstrip('.').lower()}."
            ) from None


@dataclass(frozen=True)
class HexText:
    """Hexadecimal digits of an image file, as SQL writes a BINARY value."""

    text: str

    def decode(self, limits: ImageLimits) -> bytes:
        """Raises InvalidHex, or ImageTooLarge before anything is decoded."""
        limits.refuse_bytes(len(self.text) // 2)
        try:
            return bytes.fromhex(self.text)
        except ValueError:
            raise InvalidHex(
                f"A source that begins like an image in hex must be hex to its end, two digits a byte. "
                f"Received: {len(self.text)} characters."
            ) from None


InlineText: TypeAlias = Base64Text | HexText
Remote: TypeAlias = Url | StageFile
Source: TypeAlias = Remote | InlineText | bytes


def parse_source(value: object) -> Source | InputError | None:
    """A row's value as a source; None for SQL's NULL."""
    if value is None:
        return None
    if not isinstance(value, str):
        return InvalidSource(f"A source must be a string. Received: {_json_type(value)}.")
    if len(value) > MAX_REFERENCE_CHARACTERS:
        return Url(value) if _SCHEME.match(value) else _parse_inline(value)
    return _parse_short(value.strip())


def _parse_short(text: str) -> Source | InputError:
    if not text:
        return InvalidSource("A source must not be empty. Received: an empty string.")
    if text.startswith("@"):
        return parse_stage_path(text)
    if _SCHEME.match(text):
        return parse_file_url(text) or Url(text)
    return _parse_inline(text)


def _parse_inline(text: str) -> InlineText:
    return HexText(text) if _HEX_OF_IMAGE.match(text) else Base64Text(text)


def _json_type(value: object) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    return "an array" if isinstance(value, list) else "an object"
