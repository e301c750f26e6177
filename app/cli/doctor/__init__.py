"""Checks of `ext-classify doctor`: settings, machine, network services, Snowflake and the gateway."""
