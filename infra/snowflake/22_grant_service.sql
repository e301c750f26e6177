-- Lets the service read the stage with its own role, so that callers can pass file URLs. Run with the
-- database and schema of the stage, by a role with MANAGE GRANTS, or for each statement by the owner of what
-- it grants: the database, the schema, the stage. Not needed if callers pass pre-signed or scoped URLs. In
-- Snowpark Container Services, service_role is the role that owns the service.

GRANT USAGE ON DATABASE <% database %> TO ROLE <% service_role %>;
GRANT USAGE ON SCHEMA <% database %>.<% schema %> TO ROLE <% service_role %>;

USE SCHEMA <% database %>.<% schema %>;

-- Read access only. For an external stage, grant USAGE instead of READ.
GRANT READ ON STAGE <% stage %> TO ROLE <% service_role %>;
