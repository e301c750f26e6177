"""Errors about one image, one artifact or one folder of images."""

from typing import ClassVar, Self


class ModelError(Exception):
    """Base class of all errors that this package raises deliberately."""


class InputError(ModelError):
    """One image cannot be classified.

    `code` is stable and meant for programs. The message is meant for people: the rule, then what was
    received. `retryable` states whether the same input may succeed later.
    """

    code: ClassVar[str]

    def __init_subclass__(cls, code: str | None = None) -> None:
        if code is not None:
            cls.code = code

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.retryable = retryable

    def without_traceback(self) -> Self:
        """A copy of this error without its traceback."""
        return type(self)(self.message, retryable=self.retryable)


class UnsupportedFormat(InputError, code="unsupported_format"):
    """The file is not BMP, PNG, JPEG, TIFF or WebP, or a rare kind of one. Convert HEIC and AVIF to JPEG."""


class CorruptImage(InputError, code="corrupt_image"):
    """The format is supported, but the content does not decode completely."""


class ImageTooLarge(InputError, code="image_too_large"):
    """A limit on bytes, pixels, sides or decoding work is exceeded."""


class ArtifactError(ModelError):
    """The artifact cannot be written or served; the message says what to do."""


class DatasetError(ModelError):
    """The labelled folder cannot be used; the message names the folder or file."""


class TrainingError(ModelError):
    """Training cannot start, or has failed; the message says why."""
