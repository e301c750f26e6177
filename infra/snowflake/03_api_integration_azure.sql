-- The API integration for Azure API Management: Snowflake's identity towards the gateway.
-- Run by a role with CREATE INTEGRATION, such as ACCOUNTADMIN. The tenant cannot be changed later.

-- Never replaced: an administrator has consented to this very integration's application. So it is created
-- once, and altered ever after.
CREATE API INTEGRATION IF NOT EXISTS <% integration %>
    API_PROVIDER = azure_api_management
    AZURE_TENANT_ID = '<% azure_tenant_id %>'
    AZURE_AD_APPLICATION_ID = '<% azure_application_id %>'
    API_ALLOWED_PREFIXES = ('<% allowed_prefix %>')
    ENABLED = TRUE
    COMMENT = 'The gateway of ext_classify';

-- ENABLED is left alone: whoever disabled the integration had a reason. SET replaces the whole list of
-- prefixes: add those that DESC INTEGRATION shows and that other functions need, as `register` does.
ALTER API INTEGRATION <% integration %> SET -- noqa: PRS
    AZURE_AD_APPLICATION_ID = '<% azure_application_id %>'
    API_ALLOWED_PREFIXES = ('<% allowed_prefix %>');

-- AZURE_CONSENT_URL is where the tenant's administrator consents, once; AZURE_MULTI_TENANT_APP_NAME is the
-- service principal that the gateway's policy admits.
DESC INTEGRATION <% integration %>;
