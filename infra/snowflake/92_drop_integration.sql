-- Takes the API integration away, once no function uses it: it belongs to the account, and each function of
-- any schema that calls through it fails from then on. A new one has a new identity: the gateway's trust must
-- then be set up again. Run by the integration's owner.

DROP API INTEGRATION IF EXISTS <% integration %>;
