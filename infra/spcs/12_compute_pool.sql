-- Creates the compute pool, which suspends itself when no service or job runs on it. Run by a role with
-- CREATE COMPUTE POOL on the account.

-- One node of CPU_X64_S fits one instance of the service.
CREATE COMPUTE POOL IF NOT EXISTS <% compute_pool %> -- noqa: PRS
    MIN_NODES = 1
    MAX_NODES = <% max_instances %>
    INSTANCE_FAMILY = CPU_X64_S
    AUTO_RESUME = TRUE
    AUTO_SUSPEND_SECS = 600
    COMMENT = 'Runs ext_classify';

GRANT USAGE, MONITOR ON COMPUTE POOL <% compute_pool %> TO ROLE <% owner_role %>; -- noqa: PRS
