-- The API integration for Amazon API Gateway: Snowflake's identity towards the gateway.
-- Run by a role with CREATE INTEGRATION, such as ACCOUNTADMIN. api_provider is aws_api_gateway,
-- aws_private_api_gateway, aws_gov_api_gateway or aws_gov_private_api_gateway, and cannot be changed later.

-- Never replaced: each new integration has a new external id, which the role's trust policy does not know,
-- and every call would fail until it is told. So it is created once, and altered ever after.
CREATE API INTEGRATION IF NOT EXISTS <% integration %>
    API_PROVIDER = <% api_provider %>
    API_AWS_ROLE_ARN = '<% aws_role_arn %>'
    API_ALLOWED_PREFIXES = ('<% allowed_prefix %>')
    ENABLED = TRUE
    COMMENT = 'The gateway of ext_classify';

-- ENABLED is left alone: whoever disabled the integration had a reason. SET replaces the whole list of
-- prefixes: add those that DESC INTEGRATION shows and that other functions need, as `register` does.
ALTER API INTEGRATION <% integration %> SET -- noqa: PRS
    API_AWS_ROLE_ARN = '<% aws_role_arn %>'
    API_ALLOWED_PREFIXES = ('<% allowed_prefix %>');

-- For the role's trust policy: API_AWS_IAM_USER_ARN is its principal, API_AWS_EXTERNAL_ID its condition, with
-- the = that it may end in.
DESC INTEGRATION <% integration %>;
