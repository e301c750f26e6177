-- Classifies images as they arrive: a stream tells which are new, a task sends them to the function.
-- After 31_queries.sql has made image_answers. Run by a role with CREATE STREAM and CREATE TASK on the
-- schema, EXECUTE TASK on the account, READ and WRITE on the stage, SELECT and INSERT on image_answers, and
-- USAGE on the function and the warehouse.

USE SCHEMA <% database %>.<% schema %>;

-- Of the stage's directory table: what has changed since the task last read it. What is there already, the
-- INSERT of 31_queries.sql classifies.
CREATE STREAM IF NOT EXISTS new_images ON STAGE <% stage %>
    COMMENT = 'Images that no task has seen';

-- No task that follows another is altered while that one runs; RESUME, below, lets it go on.
ALTER TASK IF EXISTS refresh_images SUSPEND;

-- A directory table lists the files of its last refresh. An external stage that refreshes itself
-- (AUTO_REFRESH) does without this task, and classify_new_images then has a SCHEDULE in place of AFTER.
CREATE TASK IF NOT EXISTS refresh_images
    WAREHOUSE = <% warehouse %>
    SCHEDULE = '5 MINUTE'
    COMMENT = 'Lists what has arrived'
AS
ALTER STAGE <% stage %> REFRESH;

-- A stream moves on only when its INSERT is done: if the service cannot be reached, the next run has the same
-- images again, as it has if there were more than it can classify in its time, which is half a day. A stage
-- that is full already is for the INSERT of 31_queries.sql. An image whose own outcome may turn out better
-- later (answer:error:retryable) is classified again by the DELETE and INSERT of that file, and what these
-- have classified is left out here.
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

-- A task is made suspended. The one that follows first, for it cannot be altered once the other one runs.
ALTER TASK classify_new_images RESUME;

ALTER TASK refresh_images RESUME;
