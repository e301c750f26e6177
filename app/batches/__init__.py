"""Batches with an id: retries join the running batch, long batches are answered later."""
