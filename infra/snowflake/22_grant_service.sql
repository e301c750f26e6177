-- Lets the service read the stage with its own role, so that callers can pass file URLs.
-- Run by the owner of the stage, with the database and schema of the stage. Not needed if callers pass
-- pre-signed or scoped URLs.

GRANT USAGE ON DATABASE <% database %> TO ROLE <% service_role %>;
GRANT USAGE ON SCHEMA <% database %>.<% schema %> TO ROLE <% service_role %>;

USE SCHEMA <% database %>.<% schema %>;

-- Read access only. For an external stage, grant USAGE instead of READ.
GRANT READ ON STAGE <% stage %> TO ROLE <% service_role %>;
