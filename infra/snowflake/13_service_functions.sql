-- Creates the function as a service function: the service runs in Snowpark Container Services, no gateway.
-- Run by a role with CREATE FUNCTION on the schema that owns the service or has its endpoint
-- (12_grant_endpoint.sql); needs no warehouse. OR REPLACE drops a function's grants, unless the behavior
-- change 2433 (bundle 2026_08) is enabled: run 21_grant_callers.sql after this file. `register` adds a
-- fingerprint to each COMMENT, by which it later detects changes.

USE SCHEMA <% database %>.<% schema %>;

-- VOLATILE: the image behind a URL can change, and a failed row can succeed later.
-- ENDPOINT is the name in the service's specification.
-- MAX_BATCH_ROWS: Snowflake sends a call again after 30 seconds; a batch that takes longer never completes.
-- MAX_BATCH_RETRIES: a 429 is a failed try, as a restart of the service is; the default of 3 ends the query
-- after seconds of overload. BATCH_TIMEOUT_SECS bounds all tries of a batch: a query waits this long for a
-- service that is down.
-- ON_BATCH_FAILURE = ABORT: otherwise the rows of a failed batch return NULL, like rows without a file_url.
CREATE OR REPLACE FUNCTION <% function %>(file_url VARCHAR)
    RETURNS VARIANT
    RETURNS NULL ON NULL INPUT
    VOLATILE
    SERVICE = <% service %> -- noqa: PRS
    ENDPOINT = api
    COMMENT = 'Classifies the image behind a URL'
    MAX_BATCH_ROWS = <% max_batch_rows %>
    MAX_BATCH_RETRIES = 100
    ON_BATCH_FAILURE = ABORT
    BATCH_TIMEOUT_SECS = 3600
    AS '/classify';

-- CALLED ON NULL INPUT: NULL options mean the defaults. The service returns NULL for a NULL file_url.
CREATE OR REPLACE FUNCTION <% function %>(file_url VARCHAR, options OBJECT)
    RETURNS VARIANT
    CALLED ON NULL INPUT
    VOLATILE
    SERVICE = <% service %> -- noqa: PRS
    ENDPOINT = api
    COMMENT = 'Classifies the image behind a URL; options are {evidence: true}'
    MAX_BATCH_ROWS = <% max_batch_rows %>
    MAX_BATCH_RETRIES = 100
    ON_BATCH_FAILURE = ABORT
    BATCH_TIMEOUT_SECS = 3600
    AS '/classify';
