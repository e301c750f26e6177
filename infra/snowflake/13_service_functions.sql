-- The function, as a service function: the service runs in Snowpark Container Services, without a gateway.
-- Run by a role with CREATE FUNCTION on the schema that owns the service or was granted its endpoint
-- (12_grant_endpoint.sql). To replace a function drops its grants: run 21_grant_callers.sql right after this.
-- `register` adds a mark to each COMMENT, by which it knows later whether anything has changed.

USE SCHEMA <% database %>.<% schema %>;

-- VOLATILE: what a URL leads to can change, and what failed today can succeed tomorrow.
-- ENDPOINT is the name in the service's specification.
-- MAX_BATCH_ROWS: a call of more than 30 seconds is sent again, and so never ends.
-- ON_BATCH_FAILURE = ABORT: NULLs in place of a failed batch would look like answers to NULL.
CREATE OR REPLACE FUNCTION <% function %>(file_url VARCHAR)
    RETURNS VARIANT
    RETURNS NULL ON NULL INPUT
    VOLATILE
    SERVICE = <% service %> -- noqa: PRS
    ENDPOINT = api
    COMMENT = 'Classifies the image behind a URL'
    MAX_BATCH_ROWS = <% max_batch_rows %>
    MAX_BATCH_RETRIES = 3
    ON_BATCH_FAILURE = ABORT
    BATCH_TIMEOUT_SECS = 600
    AS '/classify';

-- CALLED ON NULL INPUT: options of NULL are no options, and the service answers a file_url of NULL with NULL.
CREATE OR REPLACE FUNCTION <% function %>(file_url VARCHAR, options OBJECT)
    RETURNS VARIANT
    CALLED ON NULL INPUT
    VOLATILE
    SERVICE = <% service %> -- noqa: PRS
    ENDPOINT = api
    COMMENT = 'Classifies the image behind a URL; options are {evidence: true}'
    MAX_BATCH_ROWS = <% max_batch_rows %>
    MAX_BATCH_RETRIES = 3
    ON_BATCH_FAILURE = ABORT
    BATCH_TIMEOUT_SECS = 600
    AS '/classify';
