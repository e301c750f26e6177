-- Allows the containers to connect to the stages' storage, for signed URLs, and to no other host.
-- Run by a role with CREATE NETWORK RULE on the schema and CREATE INTEGRATION on the account.
-- storage_hosts are all hosts of type STAGE that SYSTEM$ALLOWLIST lists, as the README's query prints them:
-- 'a.example.com:443', 'b.example.com:443'. Add the hosts of external stages.

USE SCHEMA <% database %>.<% schema %>;

CREATE OR REPLACE NETWORK RULE <% network_rule %>
    MODE = EGRESS
    TYPE = HOST_PORT
    VALUE_LIST = (<% storage_hosts %>); -- noqa: PRS

CREATE EXTERNAL ACCESS INTEGRATION IF NOT EXISTS <% access_integration %> -- noqa: PRS
    ALLOWED_NETWORK_RULES = (<% network_rule %>)
    ENABLED = TRUE;

GRANT USAGE ON INTEGRATION <% access_integration %> TO ROLE <% owner_role %>;
