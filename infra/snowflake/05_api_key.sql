-- For a gateway of Amazon or Azure that wants an API key (subscription key) on top of Snowflake's identity.
-- Run by the integration's owner. Snowflake shows the key neither in DESC INTEGRATION nor in its history of
-- queries; a key on a command line stays in the shell's, and `register` reads it from a file.

ALTER API INTEGRATION <% integration %> SET -- noqa: PRS
    API_KEY = '<% api_key %>';
