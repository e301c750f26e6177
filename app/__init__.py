"""Speaks HTTP, Snowflake and the terminal; never trains, never imports TensorFlow."""

from importlib.metadata import version

__version__ = version("ext-classify")
