"""What can go wrong with one image, one artifact or one folder of images.

ModelError
├── InputError            one image that cannot be classified; a value, never the end of a batch
│   ├── UnsupportedFormat     not BMP, PNG, JPEG, TIFF or WebP
│   ├── CorruptImage          the format is known, the content cannot be decoded
│   └── ImageTooLarge         a limit on bytes, pixels, sides or decoding work is exceeded
├── ArtifactError         the model file and what it says of itself do not agree
├── DatasetError          a folder of labelled images cannot be used
└── TrainingError         training cannot begin as asked, or comes to nothing
"""

from typing import ClassVar, Self


class ModelError(Exception):
    """Root of everything this package raises on purpose."""


class InputError(ModelError):
    """One image that cannot be classified.

    `code` is stable, for programs; the message is for people: it states the rule, then what was
    received. `retryable` says whether the same input may succeed later.
    """

    code: ClassVar[str]

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.message = message
        self.retryable = retryable

    def anew(self) -> Self:
        """The same error without the frames that this one has passed."""
        return type(self)(self.message, retryable=self.retryable)


class UnsupportedFormat(InputError):
    code = "unsupported_format"


class CorruptImage(InputError):
    code = "corrupt_image"


class ImageTooLarge(InputError):
    code = "image_too_large"


class ArtifactError(ModelError):
    """The artifact cannot be trusted or served; the message says what to do."""


class DatasetError(ModelError):
    """The labelled folder cannot be used; the message names the folder or file."""


class TrainingError(ModelError):
    """The message says what was asked, or what became of it."""
