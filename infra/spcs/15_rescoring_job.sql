-- All files of a stage, once, into a table: after a new network, or for the photographs of ten years.
-- Run by the role that owns the service. It returns at once; run again, it goes on with what is missing.

USE SCHEMA <% database %>.<% schema %>;

PUT 'file://<% folder %>/job.yaml' '@<% specifications %>' AUTO_COMPRESS = FALSE OVERWRITE = TRUE;

DROP SERVICE IF EXISTS <% job %>; -- noqa: PRS

EXECUTE JOB SERVICE -- noqa: PRS
    IN COMPUTE POOL <% compute_pool %>
    FROM @<% specifications %> SPECIFICATION_TEMPLATE_FILE = 'job.yaml'
    USING (image => '"<% image %>"', stage => '"<% stage %>"', table => '"<% table %>"')
    NAME = <% job %>
    ASYNC = TRUE
    QUERY_WAREHOUSE = <% warehouse %>
    COMMENT = 'Classifies a stage into a table'
    EXTERNAL_ACCESS_INTEGRATIONS = (<% access_integration %>)
    REPLICAS = <% replicas %>;
