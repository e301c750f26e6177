"""`ext-classify doctor`: checks of the service, of what it connects to, and of Snowflake."""
