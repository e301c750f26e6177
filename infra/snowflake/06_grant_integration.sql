-- Lets a role that does not own the integration create functions with it.
-- Run by the integration's owner, or a role with MANAGE GRANTS.

GRANT USAGE ON INTEGRATION <% integration %> TO ROLE <% owner_role %>;
