-- Drops the function, of any kind. Images, answers and the integration remain.
-- Run by the function's owner.

USE SCHEMA <% database %>.<% schema %>;

DROP FUNCTION IF EXISTS <% function %>(VARCHAR);
DROP FUNCTION IF EXISTS <% function %>(VARCHAR, OBJECT);
