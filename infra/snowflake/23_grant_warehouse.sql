-- For a service that asks Snowflake for pre-signed URLs: its queries need a warehouse, of any size.
-- Run by the owner of the warehouse.

GRANT USAGE ON WAREHOUSE <% warehouse %> TO ROLE <% service_role %>;
