"""A client of the service: Client for threads, `app.client.asynchronous.AsyncClient` for asyncio."""

from app.client.blocking import Client, is_ready
from app.client.conversation import BATCH_ROWS, DEFAULT_URL, ClientError, Image

__all__ = ["BATCH_ROWS", "DEFAULT_URL", "Client", "ClientError", "Image", "is_ready"]
