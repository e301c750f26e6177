"""A row of a batch and its image source: a URL, a staged file, text (base64, hex), or bytes."""

import contextlib
import re
import sys
from binascii import a2b_qp
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import unquote

from pybase64 import b64decode

from app.errors import (
    InvalidBase64,
    InvalidHex,
    InvalidSource,
    ScopedUrlNotReadable,
    StageNotAuthorized,
    UrlNotAllowed,
)
from app.names import OwnersStage, SchemaMissing, parse_full_location, parse_identifier, quote_identifier
from app.outcome import Outcome
from model.errors import ImageTooLarge, InputError
from model.image_limits import ImageLimits

# Accounts in China have .cn, those of the US Department of Defense .mil. Source: the connector's constants.
ACCOUNT_DOMAINS = (".snowflakecomputing.com", ".snowflakecomputing.cn", ".snowflakecomputing.mil")

_FILE_URL = re.compile(
    r"https://(?P<host>[A-Za-z0-9._-]+)(?::443)?/api/files/(?P<rest>.*)", re.IGNORECASE | re.ASCII | re.DOTALL
)
_QUERY_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_SURROGATES = re.compile("[\ud800-\udfff]")

# A quoted name of 255 characters, each of them an escaped double quote.
_MAX_NAME_CHARACTERS = 2 * 255 + 2
_DOTTED_PART = r'((?:[^."%]++|%22.*?%22(?!%22)|"[^"]*+"|%)++)'
# `db.schema.stage`, the form of older documents; a dot in a name is %2e or in quotes.
DOTTED = re.compile(rf"{_DOTTED_PART}\.{_DOTTED_PART}\.{_DOTTED_PART}")
# unquote takes a tenth of a microsecond for an escape, and half a microsecond for a % that begins none.
_MAX_SLOW_ESCAPES = 256


@dataclass(frozen=True, slots=True)
class StageFile:
    """`stage` is the stage's name in parts, as Snowflake stores it: ("DB", "SCHEMA", "IMAGES").

    `host` is the account's host, None for a stage path.
    """

    stage: tuple[str, ...]
    path: str
    host: str | None = None


def parse_file_url(text: str) -> StageFile | InvalidSource | ScopedUrlNotReadable | None:
    """The staged file behind a Snowflake file URL; None for a URL of another host or kind."""
    match = _FILE_URL.fullmatch(text)
    if match is None or not match["host"].lower().endswith(ACCOUNT_DOMAINS):
        return None
    segments = match["rest"].split("/", 3)
    if _QUERY_ID.fullmatch(segments[0]) and len(segments) <= 3:
        return ScopedUrlNotReadable(
            "A scoped URL can be read only by the user who made it. Pass the directory table's file_url, "
            "BUILD_STAGE_FILE_URL(@stage, relative_path) or GET_PRESIGNED_URL(@stage, relative_path)."
        )
    try:
        stage, path = _names_and_path(segments)
    except ValueError:
        return InvalidSource(
            "A file URL must be https://<account>/api/files/<database>/<schema>/<stage>/<path>, "
            "percent-encoded."
        )
    return StageFile(stage, path, match["host"].lower())


def parse_stage_path(text: str) -> StageFile | InvalidSource | StageNotAuthorized:
    """The staged file of a path like `@db.schema."My stage"/2026/07/a.png`, which is not percent-encoded."""
    try:
        stage, path = parse_full_location(text)
        _reject_unusable_names(*stage, path)
    except (OwnersStage, SchemaMissing) as error:
        return StageNotAuthorized(str(error))
    except ValueError as error:
        return InvalidSource(str(error))
    return StageFile(stage, path)


def _names_and_path(segments: list[str]) -> tuple[tuple[str, ...], str]:
    """Raises ValueError."""
    if any(mark in segment for segment in segments for mark in "?#"):
        raise ValueError("A `?` or `#` in a file URL must be percent-encoded.")
    dotted = DOTTED.fullmatch(segments[0])
    names, parts = (dotted.groups(), segments[1:]) if dotted else (segments[:3], segments[3:])
    stage = tuple(map(_name_of_segment, names))
    path = percent_decode("/".join(parts))
    quote_identifier(*stage)
    _reject_unusable_names(*stage, path)
    return stage, path


def _reject_unusable_names(*names_and_path: str) -> None:
    """Raises ValueError for names that would make the statement for the whole batch fail."""
    if not names_and_path[-1].strip("/"):
        raise ValueError("A stage path must name a file in the stage. Received: a stage without a path.")
    text = "".join(names_and_path)
    if "\0" in text or not (text.isascii() or _SURROGATES.search(text) is None):
        raise ValueError("A stage path must not contain NUL or unpaired surrogates.")


def percent_decode(text: str) -> str:
    """What `urllib.parse.unquote` returns, at a tenth of its cost. Raises ValueError for invalid UTF-8.

    Also raises ValueError for hundreds of % that begin no escape (RFC 3986, section 2.1).
    """
    escapes = text.count("%")
    if not escapes:
        return text
    encoded = text.encode()
    if b"\n" not in encoded and b"\r" not in encoded:
        # Quoted-printable has the same escapes with `=` instead of `%`, and uses `=` for soft line breaks.
        decoded = a2b_qp(encoded.replace(b"=", b"%3D").replace(b"%", b"="))
        if len(encoded) - len(decoded) == 2 * escapes:  # every % begins an escape
            return decoded.decode()
    if escapes > _MAX_SLOW_ESCAPES:
        raise ValueError(
            f"A URL must be percent-encoded. Received: {escapes} %, some of which begin no escape."
        )
    return unquote(text, errors="strict")


def _name_of_segment(segment: str) -> str:
    """The name in a URL segment: unquoted if in double quotes, else verbatim, as Snowflake stores it."""
    text = percent_decode(segment)
    if text.startswith('"') and len(text) <= _MAX_NAME_CHARACTERS:
        with contextlib.suppress(ValueError):
            [text] = parse_identifier(text, max_parts=1)
    return text


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
# RFC 2397; the media type does not matter, as with files.
_DATA_URL = re.compile(rb"\s*data:[^,]*;\s*base64\s*,", re.IGNORECASE)
_FROM_URL_SAFE = bytes.maketrans(b"-_", b"+/")

DEFAULT_LIMITS = ImageLimits()


@dataclass(frozen=True, slots=True)
class LongText:
    """A string too long to be decoded in one step, in UTF-8."""

    text: bytes
    """Only its beginning if the string is longer than the reader keeps."""
    characters: int


@dataclass(frozen=True)
class Url:
    text: str


@dataclass(frozen=True)
class Base64Text:
    """Base64 (RFC 4648, section 4) of an image file, as BASE64_ENCODE writes it, or a `data:` URL of it."""

    text: bytes

    @staticmethod
    def image_bytes(characters: int) -> int:
        """The minimum number of bytes that `characters` of base64 decode to."""
        return characters * 3 // 4 - 2

    def decode(self, limits: ImageLimits) -> bytes:
        """Raises InvalidBase64, or ImageTooLarge before anything is decoded."""
        text = self.text
        if (url := _DATA_URL.match(text)) is not None:
            text = _payload(text[url.end() :])
        limits.refuse_bytes(self.image_bytes(len(text)))
        try:
            return b64decode(text, validate=True)
        except ValueError:
            return self._decode_wrapped(text)

    def _decode_wrapped(self, text: bytes) -> bytes:
        """Decode base64 with the line breaks that many encoders insert."""
        try:
            return b64decode(text.translate(None, _BLANKS), validate=True)
        except ValueError as error:
            raise InvalidBase64(
                f"A source without a scheme must be the base64 text of an image (RFC 4648, section 4). "
                f"Received: {_characters(text)} characters, {str(error).rstrip('.').lower()}."
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
# What the classifier processes receive: an outcome that is already known, and NULL, keep their place. Errors
# become outcomes where they are caught: an exception keeps its frames alive, and the pixels in them.
Fetched: TypeAlias = bytes | InlineText | Outcome | None


# A row without its source, its outcome, and the outcome in JSON: measured for rows that all fail.
ROW_BYTES = 1536


@dataclass(slots=True)
class Row:
    """`source` is None for SQL's NULL, and an InputError if the row names no image."""

    number: int
    source: Source | InputError | None
    evidence: bool = False
    """Whether the outcome shows where in the image the network saw the label."""

    @property
    def is_remote(self) -> bool:
        """Whether the image has to be fetched."""
        return isinstance(self.source, Url | StageFile)

    @property
    def is_settled(self) -> bool:
        """Whether there is nothing to classify: NULL, or an error."""
        return self.source is None or isinstance(self.source, InputError)

    @property
    def source_bytes(self) -> int:
        """Memory of the source beyond ROW_BYTES, which includes an error's message."""
        source = self.source
        if isinstance(source, InlineText | Url):
            return sys.getsizeof(source.text)  # a str takes up to four bytes for each of its characters
        if isinstance(source, bytes):
            return sys.getsizeof(source)
        if isinstance(source, StageFile):
            return sum(map(sys.getsizeof, (*source.stage, source.path)))
        return 0

    def release_source(self) -> int:
        """Drop the source of an answered row. Returns the bytes that it took."""
        released_bytes, self.source = self.source_bytes, None
        return released_bytes


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
    if text[:5].lower() == "data:":
        return _parse_data_url(text.encode("utf-8", "replace"), len(text), limits)
    if _SCHEME.match(text):
        return parse_file_url(text) or Url(text)
    return _parse_inline(text.encode("utf-8", "replace"), len(text), limits)


def _parse_long(text: bytes, characters: int, limits: ImageLimits) -> InlineText | InputError:
    head = text[:MAX_REFERENCE_CHARACTERS].lstrip(_BLANKS)
    if head.startswith(b"@"):
        return InvalidSource(
            f"A stage path must have at most {MAX_REFERENCE_CHARACTERS} characters. Received: {characters}."
        )
    if head[:5].lower() == b"data:":
        return _parse_data_url(text, characters, limits)
    if _SCHEME.match(head[:80].decode("latin-1")):
        return UrlNotAllowed(
            f"A URL must have at most {MAX_REFERENCE_CHARACTERS} characters. Received: {characters}."
        )
    return _parse_inline(text, characters, limits)


def _parse_data_url(text: bytes, characters: int, limits: ImageLimits) -> InlineText | InputError:
    if (url := _DATA_URL.match(text[:MAX_REFERENCE_CHARACTERS])) is None:
        return InvalidSource(
            "A data: URL must begin like data:image/png;base64, and hold an image in base64. "
            f"Received: {text[:40].decode(errors='replace')!r}."
        )
    # An escape has three characters for one.
    return _parse_inline(text, characters - url.end() - 2 * text.count(b"%"), limits)


def _parse_inline(text: bytes, characters: int, limits: ImageLimits) -> InlineText | InputError:
    head = text[:MAX_REFERENCE_CHARACTERS].lstrip(_BLANKS)
    kind = HexText if _HEX_OF_IMAGE.match(head) else Base64Text
    try:
        limits.refuse_bytes(kind.image_bytes(characters))
    except ImageTooLarge as error:
        return error.without_traceback()
    return kind(text)


def _payload(text: bytes) -> bytes:
    """The base64 of a data: URL: percent-encoded, for URLs (RFC 4648, section 5) or without padding, too.

    It may be megabytes long; other content stays invalid.
    """
    text = text.translate(None, _BLANKS)
    if b"%" in text:  # quoted-printable has the same escapes with `=` instead of `%`
        text = a2b_qp(text.replace(b"=", b"%3D").replace(b"%", b"=")).translate(None, _BLANKS)
    text = text.translate(_FROM_URL_SAFE)
    return text + b"=" * (-len(text) % 4)


def _characters(text: bytes) -> int:
    return len(text.decode(errors="replace"))


def _json_type(value: object) -> str:
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, int | float):
        return "a number"
    return "an array" if isinstance(value, list) else "an object"
