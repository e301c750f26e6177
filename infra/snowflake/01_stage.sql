-- Creates the stage for the images, with a directory table that lists them.
-- Run by a role with CREATE STAGE on the schema.

USE SCHEMA <% database %>.<% schema %>;

-- IF NOT EXISTS: OR REPLACE would delete the images.
-- ENCRYPTION: by default clients encrypt the files that they upload, and URLs then return encrypted bytes.
-- The encryption type cannot be changed later: to correct it, create another stage.
CREATE STAGE IF NOT EXISTS <% stage %>
    ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')
    DIRECTORY = (ENABLE = TRUE)
    COMMENT = 'Images to classify';
