SELECT classified_at::date AS day, label, COUNT(*) AS images
FROM {{ ref('labels') }}
GROUP BY day, label
