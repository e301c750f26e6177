"""The classification service, its client and its command line."""

from importlib.metadata import version

__version__ = version("ext-classify")
