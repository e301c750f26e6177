"""Trials of the running service that take too long for a test: each is a command that prints its results."""
