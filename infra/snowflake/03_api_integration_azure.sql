-- Creates the API integration for Azure API Management: the identity with which Snowflake calls the gateway.
-- Run by a role with CREATE INTEGRATION, such as ACCOUNTADMIN. The tenant cannot be changed later.

-- IF NOT EXISTS: after OR REPLACE an administrator would have to consent again, to the new integration's
-- application. Change an existing integration with ALTER.
CREATE API INTEGRATION IF NOT EXISTS <% integration %>
    API_PROVIDER = azure_api_management
    AZURE_TENANT_ID = '<% azure_tenant_id %>'
    AZURE_AD_APPLICATION_ID = '<% azure_application_id %>'
    API_ALLOWED_PREFIXES = ('<% allowed_prefix %>')
    ENABLED = TRUE
    COMMENT = 'The gateway of ext_classify';

-- ALTER does not set ENABLED: an administrator may have disabled the integration. SET replaces the whole list
-- of prefixes: include those that DESC INTEGRATION shows and other functions need, as `register` does.
ALTER API INTEGRATION <% integration %> SET -- noqa: PRS
    AZURE_AD_APPLICATION_ID = '<% azure_application_id %>'
    API_ALLOWED_PREFIXES = ('<% allowed_prefix %>');

-- The tenant's administrator opens AZURE_CONSENT_URL once to consent. AZURE_MULTI_TENANT_APP_NAME is the
-- service principal that the gateway's policy must allow.
DESC INTEGRATION <% integration %>;
