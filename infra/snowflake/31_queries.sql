-- Examples: classify a stage, store the answers, count them, and find the images to inspect.
-- The first three queries show the three kinds of URL; the others use file URLs.

USE SCHEMA <% database %>.<% schema %>;

-- Run after each upload: a directory table lists the files as of its last refresh.
ALTER STAGE <% stage %> REFRESH;

-- File URLs: classify every image of the stage. The service reads the stage with its own role
-- (22_grant_service.sql).
SELECT
    relative_path,
    <% function %>(file_url) AS answer
FROM DIRECTORY('@<% stage %>');

-- Pre-signed URLs: anyone with the URL can read the file until it expires, here after 3600 seconds. The
-- service needs no Snowflake role, but the storage host must be on its allowlist. To classify a few images,
-- apply LIMIT in a subquery: Snowflake applies an outer LIMIT after the calls.
SELECT
    images.relative_path,
    <% function %>(GET_PRESIGNED_URL('@<% stage %>', images.relative_path, 3600)) AS answer
FROM (
    SELECT relative_path
    FROM DIRECTORY('@<% stage %>')
    ORDER BY relative_path
    LIMIT 10
) AS images;

-- Scoped URLs: only the user who created the URL can read the file. They work with the Python function inside
-- the warehouse (14_warehouse_functions.sql), but not with a service.
SELECT
    images.relative_path,
    <% function %>(BUILD_SCOPED_FILE_URL('@<% stage %>', images.relative_path)) AS answer
FROM (
    SELECT relative_path
    FROM DIRECTORY('@<% stage %>')
    ORDER BY relative_path
    LIMIT 10
) AS images;

-- Store the answers in a table: a view would classify every image at each query.
CREATE TABLE IF NOT EXISTS image_answers (
    relative_path VARCHAR NOT NULL,
    etag VARCHAR NOT NULL,
    answer VARIANT,
    answered_at TIMESTAMP_LTZ NOT NULL DEFAULT CURRENT_TIMESTAMP()
);

-- Delete the answers with a retryable error, and those of images that have changed.
DELETE FROM image_answers
WHERE answer:error:retryable::BOOLEAN;

DELETE FROM image_answers
USING (
    SELECT
        relative_path,
        etag
    FROM DIRECTORY('@<% stage %>')
) AS images
WHERE
    image_answers.relative_path = images.relative_path
    AND image_answers.etag != images.etag;

-- Classify the images without an answer. Run these three statements after each refresh.
INSERT INTO image_answers (relative_path, etag, answer)
SELECT
    images.relative_path,
    images.etag,
    <% function %>(images.file_url) AS answer
FROM DIRECTORY('@<% stage %>') AS images
WHERE NOT EXISTS (
    SELECT 1
    FROM image_answers AS known
    WHERE
        known.relative_path = images.relative_path
        AND known.etag = images.etag
);

-- Images per class, with the mean confidence. A NULL label: the network abstained, or the row failed.
SELECT
    answer:label::VARCHAR AS label,
    COUNT(*) AS number_of_images,
    AVG(answer:confidence::FLOAT) AS mean_confidence
FROM image_answers
GROUP BY answer:label::VARCHAR
ORDER BY number_of_images DESC;

-- To inspect: images unlike the training images. The network abstained: label and confidence are NULL.
SELECT
    relative_path,
    answer:reason::VARCHAR AS reason,
    answer:nearest_label::VARCHAR AS nearest_label,
    answer:nearest_confidence::FLOAT AS nearest_confidence
FROM image_answers
WHERE answer:abstained::BOOLEAN
ORDER BY relative_path;

-- To inspect: images with a low confidence, lowest first.
SELECT
    relative_path,
    answer:label::VARCHAR AS label,
    answer:confidence::FLOAT AS confidence,
    answer:probabilities AS probabilities
FROM image_answers
WHERE answer:confidence::FLOAT < 0.9
ORDER BY confidence;

-- To inspect: images that could not be classified. The cast is required: `answer:error IS NOT NULL` is true
-- for every row, because a JSON null is not a SQL NULL until it is cast.
SELECT
    answer:error:code::VARCHAR AS code,
    answer:error:message::VARCHAR AS message,
    COUNT(*) AS number_of_images,
    MIN(relative_path) AS example
FROM image_answers
WHERE answer:error:code::VARCHAR IS NOT NULL
GROUP BY
    answer:error:code::VARCHAR,
    answer:error:message::VARCHAR
ORDER BY number_of_images DESC;

-- Locate the defect: box is [x0, y0, x1, y1] in pixels, heatmap_png is a grayscale PNG in base64.
SELECT
    images.relative_path,
    <% function %>(images.file_url, OBJECT_CONSTRUCT('evidence', TRUE)):evidence AS evidence
FROM (
    SELECT
        relative_path,
        file_url
    FROM DIRECTORY('@<% stage %>')
    ORDER BY relative_path
    LIMIT 10
) AS images;
