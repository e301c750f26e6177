-- Creates the service. Run by the role that owns the service and reads the stage, not ACCOUNTADMIN.
-- 22_grant_service.sql of infra/snowflake grants it the stage, 23_grant_warehouse.sql the warehouse.
-- To deploy a new image, run ALTER SERVICE … FROM with the same specification: a rolling upgrade.

USE SCHEMA <% database %>.<% schema %>;

PUT 'file://<% folder %>/service.yaml' '@<% specifications %>' AUTO_COMPRESS = FALSE OVERWRITE = TRUE;

CREATE SERVICE IF NOT EXISTS <% service %> -- noqa: PRS
    IN COMPUTE POOL <% compute_pool %>
    FROM @<% specifications %> SPECIFICATION_TEMPLATE_FILE = 'service.yaml'
    USING (image => '"<% image %>"')
    EXTERNAL_ACCESS_INTEGRATIONS = (<% access_integration %>)
    AUTO_RESUME = TRUE
    MIN_INSTANCES = 1
    MAX_INSTANCES = <% max_instances %>
    QUERY_WAREHOUSE = <% warehouse %>
    COMMENT = 'Answers ext_classify';
