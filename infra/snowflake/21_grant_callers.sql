-- Lets a role call the function on the images of the stage. Run after each replacement of the function, by a
-- role with MANAGE GRANTS, or for each statement by the owner of what it grants: the database, the schema,
-- the functions, the stage. Needs no warehouse.

GRANT USAGE ON DATABASE <% database %> TO ROLE <% caller_role %>;
GRANT USAGE ON SCHEMA <% database %>.<% schema %> TO ROLE <% caller_role %>;

USE SCHEMA <% database %>.<% schema %>;

GRANT USAGE ON FUNCTION <% function %>(VARCHAR) TO ROLE <% caller_role %>;
GRANT USAGE ON FUNCTION <% function %>(VARCHAR, OBJECT) TO ROLE <% caller_role %>;

-- To list the images and create their URLs. For an external stage, grant USAGE instead of READ. For a stage
-- in another schema, grant the role what 22_grant_service.sql grants, with that schema.
GRANT READ ON STAGE <% stage %> TO ROLE <% caller_role %>;
