"""What Snowflake sends and expects."""
