"""Snowflake: its wire format, sessions and credentials, and the commands that set up an account."""
