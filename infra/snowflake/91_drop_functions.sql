-- Takes the function away, of whichever kind. Images, answers and the integration stay.
-- Run by the function's owner.

USE SCHEMA <% database %>.<% schema %>;

DROP FUNCTION IF EXISTS <% function %>(VARCHAR);
DROP FUNCTION IF EXISTS <% function %>(VARCHAR, OBJECT);
