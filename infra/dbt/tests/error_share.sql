SELECT COUNT(error) AS errors, COUNT(*) AS answers
FROM {{ ref('labels') }}
HAVING COUNT(error) > {{ var('max_error_share') }} * COUNT(*)
