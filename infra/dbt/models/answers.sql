-- One answer for each image. A run classifies new and changed images, and repeats answers with a retryable error.
{{ config(
    materialized='incremental',
    unique_key='relative_path',
    pre_hook="ALTER STAGE " ~ var('stage') ~ " REFRESH",
) }}

SELECT
    relative_path,
    etag,
    {{ var('function') }}(file_url) AS answer,
    CURRENT_TIMESTAMP() AS classified_at
FROM DIRECTORY(@{{ var('stage') }}) AS f
{% if is_incremental() %}
WHERE NOT EXISTS (
    SELECT 1 FROM {{ this }} AS a
    WHERE a.relative_path = f.relative_path
        AND a.etag = f.etag
        AND NOT COALESCE(a.answer:error:retryable::boolean, FALSE)
)
{% endif %}
