"""The HTTP server: start and shutdown of uvicorn, connections, request framing, health probe."""
