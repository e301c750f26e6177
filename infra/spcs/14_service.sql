-- The service. Run by the role that is to own it, the one that reads the stage: 22_grant_service.sql
-- of infra/snowflake gives it that, and 23_grant_warehouse.sql the warehouse. Not ACCOUNTADMIN.
-- For a new image, ALTER SERVICE … FROM with the same specification replaces the instances one by one.

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
