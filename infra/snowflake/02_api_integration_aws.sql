-- Creates the API integration for Amazon API Gateway: the identity with which Snowflake calls the gateway.
-- Run by a role with CREATE INTEGRATION, such as ACCOUNTADMIN. api_provider is aws_api_gateway,
-- aws_private_api_gateway, aws_gov_api_gateway or aws_gov_private_api_gateway, and cannot be changed later.

-- IF NOT EXISTS: OR REPLACE would create a new external id, and every call would fail until the role's trust
-- policy contains it. Change an existing integration with ALTER.
CREATE API INTEGRATION IF NOT EXISTS <% integration %>
    API_PROVIDER = <% api_provider %>
    API_AWS_ROLE_ARN = '<% aws_role_arn %>'
    API_ALLOWED_PREFIXES = ('<% allowed_prefix %>')
    ENABLED = TRUE
    COMMENT = 'The gateway of ext_classify';

-- ALTER does not set ENABLED: an administrator may have disabled the integration. SET replaces the whole list
-- of prefixes: include those that DESC INTEGRATION shows and other functions need, as `register` does.
ALTER API INTEGRATION <% integration %> SET -- noqa: PRS
    API_AWS_ROLE_ARN = '<% aws_role_arn %>'
    API_ALLOWED_PREFIXES = ('<% allowed_prefix %>');

-- For the role's trust policy: API_AWS_IAM_USER_ARN is the principal, API_AWS_EXTERNAL_ID the condition,
-- including a trailing =.
DESC INTEGRATION <% integration %>;
