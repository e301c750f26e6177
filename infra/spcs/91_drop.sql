-- Takes the service and its machines away; the images of containers stay in their repository.
-- 91_drop_functions.sql of infra/snowflake comes first.

USE SCHEMA <% database %>.<% schema %>;

DROP SERVICE IF EXISTS <% service %>; -- noqa: PRS

DROP COMPUTE POOL IF EXISTS <% compute_pool %>; -- noqa: PRS

DROP INTEGRATION IF EXISTS <% access_integration %>;

DROP NETWORK RULE IF EXISTS <% network_rule %>; -- noqa: PRS
