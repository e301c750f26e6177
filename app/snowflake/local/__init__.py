"""Local SQL: Snowflake emulated on fakesnow and DuckDB, calling the real service in the real wire format."""
