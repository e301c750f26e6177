-- How the function is used: classify a stage, keep the answers, count them, and find those to look at.
-- The first three queries show the three kinds of URL; all others use file URLs.

USE SCHEMA <% database %>.<% schema %>;

-- After each upload: a directory table lists the files of its last refresh.
ALTER STAGE <% stage %> REFRESH;

-- Classify every image of the stage. These are file URLs: the service reads the stage under its own name
-- (22_grant_service.sql).
SELECT
    relative_path,
    <% function %>(file_url) AS answer
FROM DIRECTORY(@<% stage %>);

-- Pre-signed URLs: whoever holds one reads the file, for so many seconds. The service needs no name, but the
-- stage's host on its allowlist. To classify a few, choose them first: a LIMIT outside is applied last.
SELECT
    images.relative_path,
    <% function %>(GET_PRESIGNED_URL(@<% stage %>, images.relative_path, 3600)) AS answer
FROM (
    SELECT relative_path
    FROM DIRECTORY(@<% stage %>)
    ORDER BY relative_path
    LIMIT 10
) AS images;

-- Scoped URLs: only the user who made one reads the file. They are for the Python function inside the
-- warehouse (14_warehouse_functions.sql), and for no service.
SELECT
    images.relative_path,
    <% function %>(BUILD_SCOPED_FILE_URL(@<% stage %>, images.relative_path)) AS answer
FROM (
    SELECT relative_path
    FROM DIRECTORY(@<% stage %>)
    ORDER BY relative_path
    LIMIT 10
) AS images;

-- Keep the answers: a view would classify every image again each time it is read.
CREATE TABLE IF NOT EXISTS image_answers (
    relative_path VARCHAR NOT NULL,
    etag VARCHAR NOT NULL,
    answer VARIANT,
    answered_at TIMESTAMP_LTZ NOT NULL DEFAULT CURRENT_TIMESTAMP()
);

-- Forget the answers that may turn out better now, and those to images that have changed since.
DELETE FROM image_answers
WHERE answer:error:retryable::BOOLEAN;

DELETE FROM image_answers
USING (
    SELECT
        relative_path,
        etag
    FROM DIRECTORY(@<% stage %>)
) AS images
WHERE
    image_answers.relative_path = images.relative_path
    AND image_answers.etag != images.etag;

-- Classify what has no answer. Run these three, after a refresh, as often as images arrive.
INSERT INTO image_answers (relative_path, etag, answer)
SELECT
    images.relative_path,
    images.etag,
    <% function %>(images.file_url) AS answer
FROM DIRECTORY(@<% stage %>) AS images
WHERE NOT EXISTS (
    SELECT 1
    FROM image_answers AS known
    WHERE
        known.relative_path = images.relative_path
        AND known.etag = images.etag
);

-- Defects by class, and how sure the network is of them. No label: abstained on, or failed.
SELECT
    answer:label::VARCHAR AS label,
    COUNT(*) AS number_of_images,
    AVG(answer:confidence::FLOAT) AS mean_confidence
FROM image_answers
GROUP BY answer:label::VARCHAR
ORDER BY number_of_images DESC;

-- To look at: images unlike all that the network was trained on. Their confidence means nothing.
SELECT
    relative_path,
    answer:reason::VARCHAR AS reason,
    answer:nearest_label::VARCHAR AS nearest_label
FROM image_answers
WHERE answer:abstained::BOOLEAN
ORDER BY relative_path;

-- To look at: answers that the network is unsure of, the least sure first.
SELECT
    relative_path,
    answer:label::VARCHAR AS label,
    answer:confidence::FLOAT AS confidence,
    answer:probabilities AS probabilities
FROM image_answers
WHERE
    answer:confidence::FLOAT < 0.9
    AND NOT answer:abstained::BOOLEAN
ORDER BY confidence;

-- To look at: images that could not be classified. `answer:error IS NOT NULL` would be true of all, since a
-- null in JSON is no NULL of SQL; a cast makes it one.
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

-- Where the defect is: box is [x0, y0, x1, y1] in pixels, heatmap_png the base64 of a grey PNG.
SELECT
    images.relative_path,
    <% function %>(images.file_url, OBJECT_CONSTRUCT('evidence', TRUE)):evidence AS evidence
FROM (
    SELECT
        relative_path,
        file_url
    FROM DIRECTORY(@<% stage %>)
    ORDER BY relative_path
    LIMIT 10
) AS images;
