-- Lets the containers reach the storage behind the stages, to which signed URLs lead, and nothing else.
-- Run by a role with CREATE NETWORK RULE on the schema and CREATE INTEGRATION on the account.
-- The hosts of type STAGE are named by: SELECT SYSTEM$ALLOWLIST();

USE SCHEMA <% database %>.<% schema %>;

CREATE OR REPLACE NETWORK RULE <% network_rule %>
    MODE = EGRESS
    TYPE = HOST_PORT
    VALUE_LIST = ('<% storage_host %>:443');

CREATE EXTERNAL ACCESS INTEGRATION IF NOT EXISTS <% access_integration %> -- noqa: PRS
    ALLOWED_NETWORK_RULES = (<% network_rule %>)
    ENABLED = TRUE;

GRANT USAGE ON INTEGRATION <% access_integration %> TO ROLE <% owner_role %>;
