"""The classification service, its client and its command line."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:
    """Look up `__version__` when it is read: the look-up takes longer than the rest of a command's start."""
    if name != "__version__":
        raise AttributeError(name)
    from importlib.metadata import version  # noqa: PLC0415 - slow to import

    return version("ext-classify")
