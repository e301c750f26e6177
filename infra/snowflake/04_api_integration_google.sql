-- The API integration for Google Cloud API Gateway: Snowflake's identity towards the gateway.
-- Run by a role with CREATE INTEGRATION, such as ACCOUNTADMIN. The audience cannot be changed later.

-- Never replaced: the gateway's configuration names this very integration's service account. So it is created
-- once, and altered ever after.
CREATE API INTEGRATION IF NOT EXISTS <% integration %>
    API_PROVIDER = google_api_gateway
    GOOGLE_AUDIENCE = '<% google_audience %>'
    API_ALLOWED_PREFIXES = ('<% allowed_prefix %>')
    ENABLED = TRUE
    COMMENT = 'The gateway of ext_classify';

-- ENABLED is left alone: whoever disabled the integration had a reason. SET replaces the whole list of
-- prefixes: add those that DESC INTEGRATION shows and that other functions need, as `register` does.
ALTER API INTEGRATION <% integration %> SET -- noqa: PRS
    API_ALLOWED_PREFIXES = ('<% allowed_prefix %>');

-- API_GCP_SERVICE_ACCOUNT is the x-google-issuer of the gateway's OpenAPI document.
DESC INTEGRATION <% integration %>;
