-- For a role that creates the service functions and is not the one that owns the service.
-- Run by the service's owner.

GRANT SERVICE ROLE <% service %>!ALL_ENDPOINTS_USAGE TO ROLE <% owner_role %>; -- noqa: PRS
