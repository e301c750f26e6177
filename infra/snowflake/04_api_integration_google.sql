-- Creates the API integration for Google Cloud API Gateway: the identity with which Snowflake calls it.
-- Run by a role with CREATE INTEGRATION, such as ACCOUNTADMIN. The audience cannot be changed later.

-- IF NOT EXISTS: OR REPLACE would create a new service account, which the gateway's configuration does not
-- name. Change an existing integration with ALTER.
CREATE API INTEGRATION IF NOT EXISTS <% integration %>
    API_PROVIDER = google_api_gateway
    GOOGLE_AUDIENCE = '<% google_audience %>'
    API_ALLOWED_PREFIXES = ('<% allowed_prefix %>')
    ENABLED = TRUE
    COMMENT = 'The gateway of ext_classify';

-- ALTER does not set ENABLED: an administrator may have disabled the integration. SET replaces the whole list
-- of prefixes: include those that DESC INTEGRATION shows and other functions need, as `register` does.
ALTER API INTEGRATION <% integration %> SET -- noqa: PRS
    API_ALLOWED_PREFIXES = ('<% allowed_prefix %>');

-- API_GCP_SERVICE_ACCOUNT is the x-google-issuer of the gateway's OpenAPI document.
DESC INTEGRATION <% integration %>;
