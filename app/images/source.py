"""Image sources of a row: a URL, a staged file, the image as text (base64, hex), or its bytes."""

import re
from dataclasses import dataclass
from typing import TypeAlias

from pybase64 import b64decode

from app.errors import InvalidBase64, InvalidHex, InvalidSource, UrlNotAllowed
from app.images.stage_file import StageFile, parse_file_url, parse_stage_path
from app.snowflake.strict_json import LongText
from model.errors import ImageTooLarge, InputError
from model.image_limits import ImageLimits

# A URL or a stage path; longer text is an image. Object stores sign URLs of a few thousand characters.
MAX_REFERENCE_CHARACTERS = 8192

# RFC 3986, section 3.1. A colon is in no base64 alphabet, so this never mistakes an image for a URL.
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,63}:")
# The first bytes of images in hex: PNG, JPEG, BMP, TIFF and BigTIFF in both byte orders, WebP. Base64 of an
# image never starts with these digits: decoded as base64, they are not the first bytes of any image format.
_HEX_OF_IMAGE = re.compile(
    rb"(89504E47|FFD8FF|424D|49492[AB]00|4D4D002[AB]|52494646)[0-9A-F]{8}", re.IGNORECASE
)
_BLANKS = b" \t\r\n\v\f"

DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True)
class Url:
    text: str


@dataclass(frozen=True)
class Base64Text:
    """Base64 (RFC 4648, section 4) of an image file, as SQL's BASE64_ENCODE writes it."""

    text: bytes

    @staticmethod
    def image_bytes(characters: int) -> int:
        """The minimum number of bytes that `characters` of base64 decode to."""
        return characters * 3 // 4 - 2

    def decode(self, limits: ImageLimits) -> bytes:
        """Raises InvalidBase64, or ImageTooLarge before anything is decoded."""
        limits.refuse_bytes(self.image_bytes(len(self.text)))
        try:
            return b64decode(self.text, validate=True)
        except ValueError:
            return self._decode_wrapped()

    def _decode_wrapped(self) -> bytes:
        """Decode base64 with the line breaks that many encoders insert."""
        try:
            return b64decode(self.text.translate(None, _BLANKS), validate=True)
        except ValueError as error:
            raise InvalidBase64(
                f"A source without a scheme must be the base64 text of an image (RFC 4648, section 4). "
                f"Received: {_characters(self.text)} characters, {str(error).rstrip('.').lower()}."
            ) from None


@dataclass(frozen=True)
class HexText:
    """Hexadecimal digits of an image file, as SQL writes a BINARY value."""

    text: bytes

    @staticmethod
    def image_bytes(characters: int) -> int:
        """The number of bytes that `characters` hex digits decode to."""
        return characters // 2

    def decode(self, limits: ImageLimits) -> bytes:
        """Raises InvalidHex, or ImageTooLarge before anything is decoded."""
        limits.refuse_bytes(self.image_bytes(len(self.text)))
        try:
            return bytes.fromhex(self.text.decode("ascii"))
        except ValueError:
            raise InvalidHex(
                f"A source that begins like an image in hex must be hex to its end, two digits a byte. "
                f"Received: {_characters(self.text)} characters."
            ) from None


InlineText: TypeAlias = Base64Text | HexText
Remote: TypeAlias = Url | StageFile
Source: TypeAlias = Remote | InlineText | bytes


def max_text_characters(limits: ImageLimits) -> int:
    """The maximum length of an image as text; hex, two digits a byte, is the longest encoding."""
    return 2 * limits.max_image_bytes + 1


def parse_source(value: object, limits: ImageLimits = DEFAULT_LIMITS) -> Source | InputError | None:
    """A row's value as a source; None for SQL's NULL. The length of a text is checked before its content."""
    if value is None:
        return None
    if isinstance(value, LongText):
        if value.characters > MAX_REFERENCE_CHARACTERS:
            return _parse_long(value.text, value.characters, limits)
        value = value.text.decode()
    if not isinstance(value, str):
        return InvalidSource(f"A source must be a string. Received: {_json_type(value)}.")
    if len(value) > MAX_REFERENCE_CHARACTERS:
        return _parse_long(value.encode("utf-8", "replace"), len(value), limits)
    return _parse_short(value.strip(), limits)


def _parse_short(text: str, limits: ImageLimits) -> Source | InputError:
    if not text:
        return InvalidSource("A source must not be empty. Received: an empty string.")
    if text.startswith("@"):
        return parse_stage_path(text)
    if _SCHEME.match(text):
        return parse_file_url(text) or Url(text)
    return _parse_inline(text.encode("utf-8", "replace"), len(text), limits)


def _parse_long(text: bytes, characters: int, limits: ImageLimits) -> InlineText | InputError:
    head = text[:MAX_REFERENCE_CHARACTERS].lstrip(_BLANKS)
    if head.startswith(b"@"):
        return InvalidSource(
            f"A stage path must have at most {MAX_REFERENCE_CHARACTERS} characters. Received: {characters}."
        )
    if _SCHEME.match(head[:80].decode("latin-1")):
        return UrlNotAllowed(
            f"A URL must have at most {MAX_REFERENCE_CHARACTERS} characters. Received: {characters}."
        )
    return _parse_inline(text, characters, limits)


def _parse_inline(text: bytes, characters: int, limits: ImageLimits) -> InlineText | InputError:
    head = text[:MAX_REFERENCE_CHARACTERS].lstrip(_BLANKS)
    kind = HexText if _HEX_OF_IMAGE.match(head) else Base64Text
    try:
        limits.refuse_bytes(kind.image_bytes(characters))
    except ImageTooLarge as error:
        return error.anew()
    return kind(text)


def _characters(text: bytes) -> int:
    return len(text.decode(errors="replace"))


def _json_type(value: object) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    return "an array" if isinstance(value, list) else "an object"
