-- Classifies new images every five minutes: a stream records the new files, a task classifies them. Requires
-- image_answers of 31_queries.sql. Run by a role with CREATE STREAM and CREATE TASK on the schema, EXECUTE
-- TASK on the account, READ and WRITE on the stage, SELECT and INSERT on image_answers, and USAGE on the
-- function and the warehouse.

USE SCHEMA <% database %>.<% schema %>;

-- The changes of the stage's directory table since the task last read them. For files that exist already, run
-- the INSERT of 31_queries.sql.
CREATE STREAM IF NOT EXISTS new_images ON STAGE <% stage %>
    COMMENT = 'Images that no task has seen';

-- A child task cannot be altered while its root task is running: suspend the root task, and resume it below.
ALTER TASK IF EXISTS refresh_images SUSPEND;

-- A directory table lists the files as of its last refresh. An external stage with AUTO_REFRESH does not need
-- this task: give classify_new_images a SCHEDULE instead of AFTER.
CREATE TASK IF NOT EXISTS refresh_images
    WAREHOUSE = <% warehouse %>
    SCHEDULE = '5 MINUTE'
    COMMENT = 'Lists what has arrived'
AS
ALTER STAGE <% stage %> REFRESH;

-- The stream advances only when the INSERT commits: if the service is unreachable, or the images take longer
-- than the task's timeout of 12 hours, the next run processes the same images again. For a stage with many
-- files, run the INSERT of 31_queries.sql first. The DELETE and INSERT of that file also retry images with a
-- retryable error (answer:error:retryable); this task skips images that already have an answer.
CREATE TASK IF NOT EXISTS classify_new_images
    WAREHOUSE = <% warehouse %>
    USER_TASK_TIMEOUT_MS = 43200000
    COMMENT = 'Classifies what has arrived'
    AFTER refresh_images
    WHEN SYSTEM$STREAM_HAS_DATA('new_images')
AS
INSERT INTO image_answers (relative_path, etag, answer)
SELECT
    images.relative_path,
    images.etag,
    <% function %>(images.file_url) AS answer
FROM new_images AS images
WHERE
    images.metadata$action = 'INSERT'
    AND NOT EXISTS (
        SELECT 1
        FROM image_answers AS known
        WHERE
            known.relative_path = images.relative_path
            AND known.etag = images.etag
    );

-- Tasks are created suspended. Resume the child first: it cannot be altered once the root task runs.
ALTER TASK classify_new_images RESUME;

ALTER TASK refresh_images RESUME;
