"""Local SQL: a Snowflake emulator on fakesnow and DuckDB that calls the service as Snowflake does."""
