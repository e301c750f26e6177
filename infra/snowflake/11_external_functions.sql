-- The function, as an external function: Snowflake calls the service through a gateway.
-- Run by a role with CREATE FUNCTION on the schema and USAGE on the integration. To replace a function drops
-- its grants, and external functions cannot keep them: run 21_grant_callers.sql again right after this.
-- `register` adds a mark to each COMMENT, by which it knows later whether anything has changed.

USE SCHEMA <% database %>.<% schema %>;

-- RETURNS NULL ON NULL INPUT: a NULL is not sent, and its answer is NULL.
-- VOLATILE: what a URL leads to can change, and what failed today can succeed tomorrow. IMMUTABLE would let
-- Snowflake give an old answer again.
-- MAX_BATCH_ROWS: where it is left to Snowflake's estimate, a batch of images can take longer than a gateway
-- waits.
-- COMPRESSION = AUTO: gzip towards Amazon, none towards Azure and Google.
CREATE OR REPLACE EXTERNAL FUNCTION <% function %>(file_url VARCHAR)
    RETURNS VARIANT
    RETURNS NULL ON NULL INPUT
    VOLATILE
    COMMENT = 'Classifies the image behind a URL'
    API_INTEGRATION = <% integration %>
    MAX_BATCH_ROWS = <% max_batch_rows %>
    COMPRESSION = AUTO
    AS '<% url %>';

-- CALLED ON NULL INPUT: options of NULL are no options, and the service answers a file_url of NULL with NULL.
CREATE OR REPLACE EXTERNAL FUNCTION <% function %>(file_url VARCHAR, options OBJECT)
    RETURNS VARIANT
    CALLED ON NULL INPUT
    VOLATILE
    COMMENT = 'Classifies the image behind a URL; options are {evidence: true}'
    API_INTEGRATION = <% integration %>
    MAX_BATCH_ROWS = <% max_batch_rows %>
    COMPRESSION = AUTO
    AS '<% url %>';
