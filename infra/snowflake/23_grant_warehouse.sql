-- Lets the service run the queries that create pre-signed URLs. A warehouse of any size is enough.
-- Run by the owner of the warehouse.

GRANT USAGE ON WAREHOUSE <% warehouse %> TO ROLE <% service_role %>;
