"""The service's log: one line an event, as JSON, so that nothing a caller sends can break out of it."""

import logging

from pydantic_core import to_json

logger = logging.getLogger("ext_classify")


def configure(level: str) -> None:
    """Write to standard error, as it is now, from `level` on; once, however many apps are made."""
    for earlier in [handler for handler in logger.handlers if type(handler) is logging.StreamHandler]:
        logger.removeHandler(earlier)
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(level.upper())


def log_event(event: str, **fields: object) -> None:
    logger.info("%s", to_json({"event": event, **fields}).decode())
