-- Drops the code stage of 14_warehouse_functions.sql; drop its functions first. No file in this folder drops
-- the stage of the images. Run by the stage's owner.

USE SCHEMA <% database %>.<% schema %>;

DROP STAGE IF EXISTS <% code_stage %>;
