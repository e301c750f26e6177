-- The stage that holds the images, with a directory table that lists them.
-- Run by a role with CREATE STAGE on the schema.

USE SCHEMA <% database %>.<% schema %>;

-- Never replaced: a stage holds the images themselves.
-- By default the client encrypts what it uploads, and then no URL of a file gives an image. The type of
-- encryption cannot be changed later: a stage that has the wrong one needs a successor.
CREATE STAGE IF NOT EXISTS <% stage %>
    ENCRYPTION = (TYPE = 'SNOWFLAKE_SSE')
    DIRECTORY = (ENABLE = TRUE)
    COMMENT = 'Images to classify';
