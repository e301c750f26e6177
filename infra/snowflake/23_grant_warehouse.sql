-- Lets the service run the queries that create pre-signed URLs. A warehouse of any size is enough. Run by the
-- owner of the warehouse, or a role with MANAGE GRANTS. Each batch of file URLs runs a statement, so that the
-- warehouse stays awake and costs money while queries run: set AUTO_SUSPEND = 60.

GRANT USAGE ON WAREHOUSE <% warehouse %> TO ROLE <% service_role %>;
