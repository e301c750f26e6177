-- Lets the service read the images of the stage under its own name, so that callers may pass file URLs.
-- Run by the owner of the stage, with the stage's own database and schema. Not needed where callers pass
-- pre-signed or scoped URLs.

GRANT USAGE ON DATABASE <% database %> TO ROLE <% service_role %>;
GRANT USAGE ON SCHEMA <% database %>.<% schema %> TO ROLE <% service_role %>;

USE SCHEMA <% database %>.<% schema %>;

-- To read, and no more. An external stage has USAGE in place of READ.
GRANT READ ON STAGE <% stage %> TO ROLE <% service_role %>;
