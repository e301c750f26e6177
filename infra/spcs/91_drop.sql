-- Drops the service and its compute pool; the container images remain in their repository.
-- Run 91_drop_functions.sql of infra/snowflake first.

USE SCHEMA <% database %>.<% schema %>;

DROP SERVICE IF EXISTS <% service %>; -- noqa: PRS

DROP COMPUTE POOL IF EXISTS <% compute_pool %>; -- noqa: PRS

DROP INTEGRATION IF EXISTS <% access_integration %>;

DROP NETWORK RULE IF EXISTS <% network_rule %>; -- noqa: PRS
