-- For a role that creates the functions and is not the one that owns the integration.
-- Run by the integration's owner.

GRANT USAGE ON INTEGRATION <% integration %> TO ROLE <% owner_role %>;
