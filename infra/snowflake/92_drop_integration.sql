-- Drops the API integration. It belongs to the account: functions of any schema that use it fail afterwards.
-- A new integration has a new identity, for which the gateway's trust must be configured again.
-- Run by the integration's owner.

DROP API INTEGRATION IF EXISTS <% integration %>;
