-- Creates the compute pool, which suspends itself when no service or job runs on it. Run by a role with
-- CREATE COMPUTE POOL on the account.

-- One node of CPU_X64_S fits one instance of the service. AUTO_SUSPEND_SECS: the nodes idle, and cost, for so
-- long after the service has suspended itself (14_service.sql).
CREATE COMPUTE POOL IF NOT EXISTS <% compute_pool %> -- noqa: PRS
    MIN_NODES = 1
    MAX_NODES = <% max_instances %>
    INSTANCE_FAMILY = CPU_X64_S
    AUTO_RESUME = TRUE
    AUTO_SUSPEND_SECS = 60
    COMMENT = 'Runs ext_classify';

GRANT USAGE, MONITOR ON COMPUTE POOL <% compute_pool %> TO ROLE <% owner_role %>; -- noqa: PRS
