"""A client of the service, which threads may share."""

from app.client.client import BATCH_ROWS, DEFAULT_URL, Client, ClientError, Image, is_ready, require_route

__all__ = ["BATCH_ROWS", "DEFAULT_URL", "Client", "ClientError", "Image", "is_ready", "require_route"]
