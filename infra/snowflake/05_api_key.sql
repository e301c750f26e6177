-- Sets the API key (subscription key) that a gateway of Amazon or Azure can require as a second credential.
-- Run by the integration's owner. Snowflake shows the key neither in DESC INTEGRATION nor in the query
-- history. A key on a command line stays in the shell's history; `register` therefore reads it from a file.

ALTER API INTEGRATION <% integration %> SET -- noqa: PRS
    API_KEY = '<% api_key %>';
