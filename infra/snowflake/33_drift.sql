-- Monitors drift: daily statistics of the answers, and an alert when the images differ from the training
-- images, for example after a change of the mill or the camera. Requires image_answers of 31_queries.sql. For
-- the alert, run by a role with CREATE ALERT on the schema, EXECUTE ALERT on the account and USAGE on the
-- warehouse.

USE SCHEMA <% database %>.<% schema %>;

-- Confidence, and the shares of abstentions and failures. Failed rows count only in share_failed. Days are in
-- UTC, independent of the session's time zone.
CREATE VIEW IF NOT EXISTS image_answers_by_day
COMMENT = 'How sure the network was of its answers, day by day'
AS
WITH answers AS (
    SELECT
        answer:model:version::VARCHAR AS model_version,
        answer:abstained::BOOLEAN AS abstained,
        answer:confidence::FLOAT AS confidence,
        CONVERT_TIMEZONE('UTC', answered_at)::DATE AS answered_on,
        answer:error:code::VARCHAR IS NOT NULL AS failed
    FROM image_answers
)

SELECT
    answered_on,
    model_version,
    COUNT(*) AS number_of_images,
    AVG(IFF(failed, 1, 0)) AS share_failed,
    AVG(IFF(failed, NULL, IFF(abstained, 1, 0))) AS share_abstained,
    AVG(confidence) AS mean_confidence,
    COUNT_IF(confidence < 0.9) / NULLIF(COUNT(confidence), 0) AS share_unsure
FROM answers
GROUP BY
    answered_on,
    model_version;

-- The share of each class. A change means that the steel, the camera or the network changed.
CREATE VIEW IF NOT EXISTS image_labels_by_day
COMMENT = 'The mix of classes, day by day'
AS
WITH answers AS (
    SELECT
        answer:model:version::VARCHAR AS model_version,
        answer:label::VARCHAR AS label,
        CONVERT_TIMEZONE('UTC', answered_at)::DATE AS answered_on
    FROM image_answers
)

SELECT
    answered_on,
    model_version,
    label,
    COUNT(*) AS number_of_images,
    COUNT(*) / SUM(COUNT(*)) OVER (PARTITION BY answered_on, model_version) AS share_of_images
FROM answers
WHERE label IS NOT NULL
GROUP BY
    answered_on,
    model_version,
    label;

-- Compares each day with the four weeks before it, using days of the same network with at least 100 images. A
-- day is listed if its share of abstentions or failures exceeds 0.01 plus three times the usual share, or its
-- mean confidence is more than 0.05 below the usual one.
CREATE VIEW IF NOT EXISTS image_drift
COMMENT = 'Days that are unlike the four weeks before them'
AS
WITH usual AS (
    SELECT
        this_day.answered_on,
        this_day.model_version,
        AVG(earlier.share_failed) AS share_failed,
        AVG(earlier.share_abstained) AS share_abstained,
        AVG(earlier.mean_confidence) AS mean_confidence
    FROM image_answers_by_day AS this_day
    INNER JOIN image_answers_by_day AS earlier
        ON
            this_day.model_version = earlier.model_version
            AND this_day.answered_on > earlier.answered_on
            AND this_day.answered_on <= DATEADD('DAY', 28, earlier.answered_on)
    WHERE earlier.number_of_images >= 100
    GROUP BY
        this_day.answered_on,
        this_day.model_version
)

SELECT
    this_day.answered_on,
    this_day.model_version,
    this_day.number_of_images,
    this_day.share_failed,
    usual.share_failed AS usual_share_failed,
    this_day.share_abstained,
    usual.share_abstained AS usual_share_abstained,
    this_day.mean_confidence,
    usual.mean_confidence AS usual_mean_confidence
FROM image_answers_by_day AS this_day
INNER JOIN usual
    ON
        this_day.answered_on = usual.answered_on
        AND this_day.model_version = usual.model_version
WHERE
    this_day.number_of_images >= 100
    AND (
        this_day.share_failed > 0.01 + 3 * usual.share_failed
        OR this_day.share_abstained > 0.01 + 3 * usual.share_abstained
        OR this_day.mean_confidence < usual.mean_confidence - 0.05
    );

-- The days for which the alert has fired, one row per day and network.
CREATE TABLE IF NOT EXISTS image_drift_noticed (
    answered_on DATE NOT NULL,
    model_version VARCHAR NOT NULL,
    noticed_at TIMESTAMP_LTZ NOT NULL DEFAULT CURRENT_TIMESTAMP()
);

CREATE VIEW IF NOT EXISTS image_drift_unnoticed
COMMENT = 'Of today and yesterday, what the alert has not noticed yet'
AS
SELECT
    drift.answered_on,
    drift.model_version
FROM image_drift AS drift
WHERE
    drift.answered_on >= DATEADD('DAY', -1, CONVERT_TIMEZONE('UTC', CURRENT_TIMESTAMP())::DATE)
    AND NOT EXISTS (
        SELECT 1
        FROM image_drift_noticed AS known
        WHERE
            known.answered_on = drift.answered_on
            AND known.model_version = drift.model_version
    );

-- To notify a person, add a CALL of SYSTEM$SEND_EMAIL or SYSTEM$SEND_SNOWFLAKE_NOTIFICATION after THEN.
CREATE ALERT IF NOT EXISTS image_drift_alert
    SCHEDULE = '60 MINUTE'
    WAREHOUSE = <% warehouse %>
    COMMENT = 'Notes when the network sees what it was not trained on'
IF (EXISTS (SELECT answered_on FROM image_drift_unnoticed))
THEN
INSERT INTO image_drift_noticed (answered_on, model_version)
SELECT
    answered_on,
    model_version
FROM image_drift_unnoticed;

-- Alerts are created suspended.
ALTER ALERT image_drift_alert RESUME;
