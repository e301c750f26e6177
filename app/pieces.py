"""Large byte strings out of their pieces."""

import asyncio
from collections.abc import Sequence

# To join more takes a millisecond.
_JOINED_IN_PLACE_BYTES = 1024 * 1024


async def join_pieces(pieces: Sequence[bytes], joined_bytes: int) -> bytes:
    """The pieces as one; where it is large, in a thread, so that the event loop serves others meanwhile."""
    if joined_bytes > _JOINED_IN_PLACE_BYTES:
        return await asyncio.to_thread(b"".join, pieces)
    return b"".join(pieces)
