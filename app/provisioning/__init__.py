"""Sets up a Snowflake account: integrations, functions, stages, trust policies and the UDF bundle."""
