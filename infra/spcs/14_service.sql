-- Creates the service. Run by the role that owns the service and reads the stage, not ACCOUNTADMIN.
-- 22_grant_service.sql of infra/snowflake grants it the stage, 23_grant_warehouse.sql the warehouse.
-- AUTO_SUSPEND_SECS (a preview): the service suspends itself so long after the last query that calls its
-- functions, and the next one resumes it; without it, min_instances nodes cost money day and night. Only
-- services without a public endpoint can suspend themselves.
-- min_instances: Snowflake adds further instances, up to max_instances, only after minutes of load.
-- To deploy a new image, run ALTER SERVICE … FROM with the same specification: a rolling upgrade.

USE SCHEMA <% database %>.<% schema %>;

PUT 'file://<% folder %>/service.yaml' '@<% specifications %>' AUTO_COMPRESS = FALSE OVERWRITE = TRUE;

CREATE SERVICE IF NOT EXISTS <% service %> -- noqa: PRS
    IN COMPUTE POOL <% compute_pool %>
    FROM @<% specifications %> SPECIFICATION_TEMPLATE_FILE = 'service.yaml'
    USING (image => '"<% image %>"')
    AUTO_SUSPEND_SECS = 600
    EXTERNAL_ACCESS_INTEGRATIONS = (<% access_integration %>)
    AUTO_RESUME = TRUE
    MIN_INSTANCES = <% min_instances %>
    MAX_INSTANCES = <% max_instances %>
    QUERY_WAREHOUSE = <% warehouse %>
    COMMENT = 'Answers ext_classify';
