-- All files of a stage, once, into a table: after a new network, or for the photographs of ten years.
-- Run by the role that owns the service. It returns at once. Run again once it has ended, it goes on with
-- what is missing; while it still runs, that would end it.

USE SCHEMA <% database %>.<% schema %>;

-- The directory table lists the files of its last refresh.
ALTER STAGE <% stage %> REFRESH;

PUT 'file://<% folder %>/job.yaml' '@<% specifications %>' AUTO_COMPRESS = FALSE OVERWRITE = TRUE;

DROP SERVICE IF EXISTS <% job %>; -- noqa: PRS

EXECUTE JOB SERVICE -- noqa: PRS
    IN COMPUTE POOL <% compute_pool %>
    NAME = <% job %>
    ASYNC = TRUE
    REPLICAS = <% replicas %>
    QUERY_WAREHOUSE = <% warehouse %>
    COMMENT = 'Classifies a stage into a table'
    EXTERNAL_ACCESS_INTEGRATIONS = (<% access_integration %>)
    FROM @<% specifications %> SPECIFICATION_TEMPLATE_FILE = 'job.yaml'
    USING (image => '"<% image %>"', stage => '"<% stage %>"', table => '"<% table %>"');
