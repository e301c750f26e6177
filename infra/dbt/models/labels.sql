SELECT
    relative_path,
    answer:label::string AS label,
    answer:confidence::float AS confidence,
    answer:error:code::string AS error,
    answer:model:version::string AS model_version,
    classified_at
FROM {{ ref('answers') }}
