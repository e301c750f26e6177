-- The machines: none while nothing runs on them. Run by a role with CREATE COMPUTE POOL on the account.

-- A node of CPU_X64_S has room for one instance of the service.
CREATE COMPUTE POOL IF NOT EXISTS <% compute_pool %> -- noqa: PRS
    MIN_NODES = 1
    MAX_NODES = <% max_instances %>
    INSTANCE_FAMILY = CPU_X64_S
    AUTO_RESUME = TRUE
    AUTO_SUSPEND_SECS = 600
    COMMENT = 'Runs ext_classify';

GRANT USAGE, MONITOR ON COMPUTE POOL <% compute_pool %> TO ROLE <% owner_role %>; -- noqa: PRS
