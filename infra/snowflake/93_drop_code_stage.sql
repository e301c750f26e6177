-- Takes away what 14_warehouse_functions.sql uploaded, once its functions are dropped. No file here drops the
-- stage of the images. Run by the stage's owner.

USE SCHEMA <% database %>.<% schema %>;

DROP STAGE IF EXISTS <% code_stage %>;
