-- Creates the function as an external function: Snowflake calls the service through a gateway. Run by a role
-- with CREATE FUNCTION on the schema and USAGE on the integration; needs no warehouse. OR REPLACE drops the
-- grants of a function, unless the behavior change 2433 (bundle 2026_08) is enabled, and external functions
-- do not support COPY GRANTS: run 21_grant_callers.sql after this file. `register` tries CREATE OR ALTER
-- first, a preview that keeps the grants and can change everything but the URL. `register` adds a fingerprint
-- to each COMMENT, by which it later detects changes.

USE SCHEMA <% database %>.<% schema %>;

-- RETURNS NULL ON NULL INPUT: Snowflake returns NULL for a NULL without a call.
-- VOLATILE: the image behind a URL can change, and a failed row can succeed later. With IMMUTABLE, Snowflake
-- may return an old outcome.
-- MAX_BATCH_ROWS: with Snowflake's own estimate, a batch of images can exceed the gateway's timeout.
-- COMPRESSION = AUTO: gzip for Amazon, none for Azure and Google.
CREATE OR REPLACE EXTERNAL FUNCTION <% function %>(file_url VARCHAR)
    RETURNS VARIANT
    RETURNS NULL ON NULL INPUT
    VOLATILE
    COMMENT = 'Classifies the image behind a URL'
    API_INTEGRATION = <% integration %>
    MAX_BATCH_ROWS = <% max_batch_rows %>
    COMPRESSION = AUTO
    AS '<% url %>';

-- CALLED ON NULL INPUT: NULL options mean the defaults. The service returns NULL for a NULL file_url.
CREATE OR REPLACE EXTERNAL FUNCTION <% function %>(file_url VARCHAR, options OBJECT)
    RETURNS VARIANT
    CALLED ON NULL INPUT
    VOLATILE
    COMMENT = 'Classifies the image behind a URL; options are {evidence: true}'
    API_INTEGRATION = <% integration %>
    MAX_BATCH_ROWS = <% max_batch_rows %>
    COMPRESSION = AUTO
    AS '<% url %>';
