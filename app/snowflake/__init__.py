"""Snowflake: its external-function format, the service's sessions and credentials, and its stages."""
