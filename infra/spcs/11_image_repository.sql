-- Where the image is pushed to, and a stage for the specifications.
-- Run by a role with CREATE IMAGE REPOSITORY and CREATE STAGE on the schema; docker pushes to the
-- repository_url that the last statement names.

USE SCHEMA <% database %>.<% schema %>;

CREATE IMAGE REPOSITORY IF NOT EXISTS <% repository %>; -- noqa: PRS

CREATE STAGE IF NOT EXISTS <% specifications %>
    COMMENT = 'Specifications of services';

SHOW IMAGE REPOSITORIES LIKE '<% repository %>'; -- noqa: PRS
