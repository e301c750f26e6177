// ext-classify behind Azure API Management, as Snowflake's external functions need it: API Management, the
// image in Container Apps, and Redis for the state that its replicas share.

@description('What the resources are called, or begin with')
@minLength(3)
@maxLength(20)
param name string = 'ext-classify'

@description('Where they are')
param location string = resourceGroup().location

@description('The image, without its registry, such as ext-classify:0.1.0')
param image string

@description('The Azure Container Registry in this resource group that has it')
param registryName string

@description('The name and email address of the publisher, which API Management requires')
param publisherName string
param publisherEmail string

@description('Tier of API Management. Consumption costs by the call, and has no address of its own')
@allowed(['Consumption', 'Developer', 'Basic', 'Standard', 'Premium', 'BasicV2', 'StandardV2'])
param gatewaySku string = 'Consumption'

@description('AZURE_TENANT_ID of the API integration')
param tenantId string = tenant().tenantId

@description('AZURE_AD_APPLICATION_ID of the API integration: the application registration that represents the gateway')
param applicationId string

@description('Application id of AZURE_MULTI_TENANT_APP_NAME, which is Snowflake. The default admits no one')
param snowflakeApplicationId string = '00000000-0000-0000-0000-000000000000'

@description('Whether a subscription key is asked for too, as register --api-key-file gives it to Snowflake')
param requiresSubscriptionKey bool = false

@description('Address ranges that reach the service, such as the gateway\'s 20.1.2.3/32; empty for all with a token')
param callerRanges array = []

@description('Cores of a replica, and its memory, two gibibytes for each')
@allowed(['1', '2', '4'])
param cores string = '2'

@description('Fewest replicas; with none, the first query waits for one to start')
@minValue(1)
param minReplicas int = 1

@description('Most replicas; more than one need Redis')
@minValue(1)
@maxValue(100)
param maxReplicas int = 4

@description('Size of the Azure Managed Redis in which the replicas share batches; empty for none, with one replica')
param redisSku string = 'Balanced_B0'

@description('Account to read stages from, organization-account; empty to read none')
param snowflakeAccount string = ''

@description('User that the service logs in as, by its managed identity')
param snowflakeUser string = 'classifier'

@description('Stages that may be read, db.schema.stage, separated by commas; empty for all that the user may read')
param snowflakeStages string = ''

@description('Hosts that images may be fetched from by URL, separated by commas; staged files need no entry')
param allowedUrlHosts string = ''

@description('How many days logs are kept')
@minValue(30)
@maxValue(730)
param logDays int = 90

var hasRedis = !empty(redisSku)
var readsStages = !empty(snowflakeAccount)
var unique = uniqueString(resourceGroup().id)
var acrPull = '7f951dda-4ed3-4680-a7ca-43fe172d538d'
var jwksUrl = 'https://login.microsoftonline.com/${tenantId}/discovery/keys'
var pullImages = subscriptionResourceId('Microsoft.Authorization/roleDefinitions', acrPull)

// --- The service -------------------------------------------------------------------------------------------------

// The service's identity towards the registry and Snowflake.
resource identity 'Microsoft.ManagedIdentity/userAssignedIdentities@2023-01-31' = {
  name: name
  location: location
}

resource registry 'Microsoft.ContainerRegistry/registries@2023-07-01' existing = {
  name: registryName
}

resource pull 'Microsoft.Authorization/roleAssignments@2022-04-01' = {
  name: guid(registry.id, identity.id, pullImages)
  scope: registry
  properties: {
    roleDefinitionId: pullImages
    principalId: identity.properties.principalId
    principalType: 'ServicePrincipal'
  }
}

resource logs 'Microsoft.OperationalInsights/workspaces@2023-09-01' = {
  name: name
  location: location
  properties: {
    sku: { name: 'PerGB2018' }
    retentionInDays: logDays
  }
}

resource apps 'Microsoft.App/managedEnvironments@2024-03-01' = {
  name: name
  location: location
  properties: {
    appLogsConfiguration: {
      destination: 'log-analytics'
      logAnalyticsConfiguration: {
        customerId: logs.properties.customerId
        sharedKey: logs.listKeys().primarySharedKey
      }
    }
    workloadProfiles: [
      { name: 'Consumption', workloadProfileType: 'Consumption' }
    ]
  }
}

// Settings of the service in every deployment.
var always = [
  { name: 'EXT_CLASSIFY_HOST', value: '0.0.0.0' }
  { name: 'EXT_CLASSIFY_PORT', value: '8000' }
  { name: 'EXT_CLASSIFY_AUTH', value: 'jwt' }
  { name: 'EXT_CLASSIFY_JWT_ISSUER', value: 'https://sts.windows.net/${tenantId}/' }
  { name: 'EXT_CLASSIFY_JWT_AUDIENCE', value: applicationId }
  { name: 'EXT_CLASSIFY_JWT_JWKS_URL', value: jwksUrl }
  { name: 'EXT_CLASSIFY_JWT_CALLERS', value: snowflakeApplicationId }
  { name: 'EXT_CLASSIFY_SHOW_DOCS', value: 'false' }
  { name: 'EXT_CLASSIFY_SYNC_DEADLINE_SECONDS', value: '20' }
  { name: 'EXT_CLASSIFY_STOP_DELAY_SECONDS', value: '5' }
  { name: 'EXT_CLASSIFY_STOP_GRACE_SECONDS', value: '25' }
]
var caching = hasRedis ? [
  { name: 'EXT_CLASSIFY_REDIS_URL', secretRef: 'redis-url' }
] : []
var fetching = empty(allowedUrlHosts) ? [] : [
  { name: 'EXT_CLASSIFY_ALLOWED_URL_HOSTS', value: allowedUrlHosts }
]
var reading = readsStages ? [
  { name: 'EXT_CLASSIFY_SNOWFLAKE_ACCOUNT', value: snowflakeAccount }
  { name: 'EXT_CLASSIFY_SNOWFLAKE_USER', value: snowflakeUser }
  { name: 'EXT_CLASSIFY_SNOWFLAKE_WORKLOAD_IDENTITY_PROVIDER', value: 'AZURE' }
  // The identity that Snowflake's connector uses.
  { name: 'MANAGED_IDENTITY_CLIENT_ID', value: identity.properties.clientId }
] : []
var stages = empty(snowflakeStages) ? [] : [
  { name: 'EXT_CLASSIFY_SNOWFLAKE_STAGES', value: snowflakeStages }
]

resource service 'Microsoft.App/containerApps@2024-03-01' = {
  name: name
  location: location
  identity: {
    type: 'UserAssigned'
    userAssignedIdentities: { '${identity.id}': {} }
  }
  dependsOn: [pull]
  properties: {
    environmentId: apps.id
    workloadProfileName: 'Consumption'
    configuration: {
      activeRevisionsMode: 'Single'
      registries: [
        { server: registry.properties.loginServer, identity: identity.id }
      ]
      ingress: {
        // API Management connects from outside in all tiers without a network of yours. AUTH=jwt below rejects
        // all other clients, and so does callerRanges where the tier has an address of its own.
        external: true
        targetPort: 8000
        transport: 'http'
        allowInsecure: false
        ipSecurityRestrictions: [for callers in callerRanges: {
          name: 'caller-${uniqueString(callers)}'
          action: 'Allow'
          ipAddressRange: callers
        }]
      }
      secrets: hasRedis ? [
        {
          name: 'redis-url'
          value: 'rediss://:${uriComponent(redisDatabase.listKeys().primaryKey)}@${redis.properties.hostName}:10000/0'
        }
      ] : []
    }
    template: {
      // More than STOP_DELAY_SECONDS plus STOP_GRACE_SECONDS; then the replica is killed.
      terminationGracePeriodSeconds: 60
      containers: [
        {
          name: 'service'
          image: '${registry.properties.loginServer}/${image}'
          resources: { cpu: json(cores), memory: '${int(cores) * 2}Gi' }
          env: concat(always, caching, fetching, reading, stages)
          probes: [
            {
              type: 'Startup'
              httpGet: { path: '/readyz', port: 8000 }
              periodSeconds: 2
              timeoutSeconds: 5
              failureThreshold: 30
            }
            {
              type: 'Readiness'
              httpGet: { path: '/readyz', port: 8000 }
              periodSeconds: 5
              timeoutSeconds: 5
              failureThreshold: 3
            }
            {
              type: 'Liveness'
              httpGet: { path: '/healthz', port: 8000 }
              periodSeconds: 10
              timeoutSeconds: 5
              failureThreshold: 6
            }
          ]
        }
      ]
      scale: {
        minReplicas: minReplicas
        maxReplicas: hasRedis ? maxReplicas : 1
        rules: [
          {
            // A few concurrent batches keep all cores busy; the service answers 429 to more in time.
            name: 'requests'
            http: { metadata: { concurrentRequests: '4' } }
          }
          {
            name: 'cpu'
            custom: { type: 'cpu', metadata: { type: 'Utilization', value: '60' } }
          }
        ]
      }
    }
  }
}

// --- The state that replicas share ---------------------------------------------------------------------------------

// Azure Managed Redis: Azure Cache for Redis accepts no new instances.
resource redis 'Microsoft.Cache/redisEnterprise@2025-07-01' = if (hasRedis) {
  name: '${name}-${unique}'
  location: location
  sku: { name: redisSku }
  properties: {
    minimumTlsVersion: '1.2'
    highAvailability: 'Disabled'
    publicNetworkAccess: 'Enabled'
  }
}

resource redisDatabase 'Microsoft.Cache/redisEnterprise/databases@2025-07-01' = if (hasRedis) {
  parent: redis
  name: 'default'
  properties: {
    clientProtocol: 'Encrypted'
    port: 10000
    // A batch has several keys, which are set together; a cluster could place them on different nodes.
    clusteringPolicy: 'NoCluster'
    evictionPolicy: 'VolatileLRU'
    accessKeysAuthentication: 'Enabled'
  }
}

// --- The gateway -------------------------------------------------------------------------------------------------

resource gateway 'Microsoft.ApiManagement/service@2024-05-01' = {
  name: '${name}-${unique}'
  location: location
  sku: { name: gatewaySku, capacity: gatewaySku == 'Consumption' ? 0 : 1 }
  properties: {
    publisherName: publisherName
    publisherEmail: publisherEmail
  }
}

resource tenantValue 'Microsoft.ApiManagement/service/namedValues@2024-05-01' = {
  parent: gateway
  name: 'tenant-id'
  properties: { displayName: 'tenant-id', value: tenantId }
}

resource applicationValue 'Microsoft.ApiManagement/service/namedValues@2024-05-01' = {
  parent: gateway
  name: 'application-id'
  properties: { displayName: 'application-id', value: applicationId }
}

resource snowflakeValue 'Microsoft.ApiManagement/service/namedValues@2024-05-01' = {
  parent: gateway
  name: 'snowflake-application-id'
  properties: { displayName: 'snowflake-application-id', value: snowflakeApplicationId }
}

resource api 'Microsoft.ApiManagement/service/apis@2024-05-01' = {
  parent: gateway
  name: 'ext-classify'
  properties: {
    displayName: 'ext-classify'
    path: ''
    protocols: ['https']
    serviceUrl: 'https://${service.properties.configuration.ingress.fqdn}'
    subscriptionRequired: requiresSubscriptionKey
  }
}

resource policy 'Microsoft.ApiManagement/service/apis/policies@2024-05-01' = {
  parent: api
  name: 'policy'
  dependsOn: [tenantValue, applicationValue, snowflakeValue]
  properties: { format: 'rawxml', value: loadTextContent('policy.xml') }
}

resource postClassify 'Microsoft.ApiManagement/service/apis/operations@2024-05-01' = {
  parent: api
  name: 'post-classify'
  properties: { displayName: 'Classify a batch', method: 'POST', urlTemplate: '/classify' }
}

// Snowflake polls for deferred batches.
resource getClassify 'Microsoft.ApiManagement/service/apis/operations@2024-05-01' = {
  parent: api
  name: 'get-classify'
  properties: { displayName: 'Ask for the answer to a batch', method: 'GET', urlTemplate: '/classify' }
}

// The Consumption tier does not have these logs.
resource gatewayLogs 'Microsoft.Insights/diagnosticSettings@2021-05-01-preview' = if (gatewaySku != 'Consumption') {
  name: 'gateway'
  scope: gateway
  properties: {
    workspaceId: logs.id
    logs: [
      { category: 'GatewayLogs', enabled: true }
    ]
  }
}

@description('For register --url')
output url string = '${gateway.properties.gatewayUrl}/classify'

@description('For register --tenant-id')
output tenantId string = tenantId

@description('For register --application-id')
output applicationId string = applicationId

@description('SUBJECT of CREATE USER … WORKLOAD_IDENTITY')
output identityObjectId string = identity.properties.principalId
