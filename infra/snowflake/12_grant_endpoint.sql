-- Lets a role that does not own the service create service functions.
-- Run by the service's owner, or a role with MANAGE GRANTS.

GRANT SERVICE ROLE <% service %>!ALL_ENDPOINTS_USAGE TO ROLE <% owner_role %>; -- noqa: PRS
