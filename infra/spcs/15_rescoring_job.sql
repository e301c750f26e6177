-- Runs a job that classifies all files of a stage into a table, for example with a new network.
-- Run by the role that owns the service. The statement returns immediately. Run the file again after the job
-- has ended to classify the files without an outcome. Do not run it while the job runs: it drops the job.

USE SCHEMA <% database %>.<% schema %>;

-- A directory table lists the files as of its last refresh.
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
