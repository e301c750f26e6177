-- Takes the API integration away, once no function uses it. A new one has a new identity: the gateway's trust
-- must then be set up again. Run by the integration's owner.

DROP API INTEGRATION IF EXISTS <% integration %>;
