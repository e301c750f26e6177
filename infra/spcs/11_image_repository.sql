-- Creates the repository for the container image, and a stage for the specifications.
-- Run by a role with CREATE IMAGE REPOSITORY and CREATE STAGE on the schema. Push the image to the
-- repository_url that the last statement shows.

USE SCHEMA <% database %>.<% schema %>;

CREATE IMAGE REPOSITORY IF NOT EXISTS <% repository %>; -- noqa: PRS

CREATE STAGE IF NOT EXISTS <% specifications %>
    COMMENT = 'Specifications of services';

SHOW IMAGE REPOSITORIES LIKE '<% repository %>'; -- noqa: PRS
