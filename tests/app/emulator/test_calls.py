"""Each row calls the service once, whatever the statement does with the answer."""

import json

import pytest

from tests.app.emulator.conftest import Function
from tests.app.emulator.remote_service import Received, Reply, answer
from tests.app.emulator.sql import Sql

ROWS = 5
CALL = "classify(path)"
# Values of which DuckDB or fakesnow evaluates the argument more than once.
SELECTED = """
ARRAY_AGG(#)
ARRAY_AGG(#:label::VARCHAR)
ARRAY_AGG(DISTINCT #:label::VARCHAR)
ARRAY_AGG(#:label) WITHIN GROUP (ORDER BY path)
OBJECT_AGG(path, #)
LISTAGG(#:label::VARCHAR, ',')
LISTAGG(DISTINCT #:label::VARCHAR, ',') WITHIN GROUP (ORDER BY #:label::VARCHAR)
COUNT(DISTINCT #:label)
MAX_BY(path, #:n::INT)
MAX(#:n)
MEDIAN(#:n::FLOAT)
OBJECT_CONSTRUCT('n', #:n::FLOAT)
'n=' || #:n::FLOAT
AVG(#:n::FLOAT) OVER (PARTITION BY #:label::VARCHAR)
COALESCE(#:no::VARCHAR, #:label::VARCHAR)
DECODE(#:label::VARCHAR, 'x', 1, 'y', 2, 3)
CASE #:label::VARCHAR WHEN 'x' THEN 1 WHEN 'y' THEN 2 END
NULLIF(#:label::VARCHAR, 'x')
ZEROIFNULL(#:n::FLOAT)
DIV0NULL(1, #:n::FLOAT)
GREATEST(#:n::FLOAT, 0.5::FLOAT)
SPLIT_PART(#:label::VARCHAR, 's', 1)
#:label::VARCHAR LIKE ANY ('x%', 'y%')
OBJECT_CONSTRUCT('a', #:label, 'b', #:n)
TRY_PARSE_JSON(#::VARCHAR):label
# AS answer, answer:label, answer:n
#:label::VARCHAR AS label, UPPER(label)
"""
OTHERS = """
SELECT #:label::VARCHAR AS label, COUNT(*) FROM images GROUP BY label HAVING COUNT(*) > 0
SELECT # AS answer FROM images WHERE answer:label = 'rose' AND answer:n > 2
SELECT #:n::INT AS n FROM images QUALIFY ROW_NUMBER() OVER (ORDER BY n DESC) = 1
SELECT path, #:n AS n FROM images ORDER BY n DESC
SELECT path FROM images ORDER BY #:n
SELECT label FROM (SELECT #:label::VARCHAR AS label FROM images) WHERE label IS NOT NULL
SELECT f.key FROM images, LATERAL FLATTEN(#) AS f
WITH a AS (SELECT path, # AS v FROM images) SELECT x.v:n FROM a AS x JOIN a AS y ON x.path = y.path
SELECT classify('the same path'):label FROM images
"""
STATEMENTS = [f"SELECT {value} FROM images" for value in SELECTED.strip().splitlines()]  # noqa: S608
STATEMENTS += OTHERS.strip().splitlines()


def respond(received: Received) -> Reply:
    return answer([{"label": "rose", "n": len(json.dumps(row))} for row in received.rows])


@pytest.fixture
def images(sql: Sql, function: Function) -> Sql:
    function.service.respond = respond
    function("classify(path VARCHAR)")
    sql.rows(
        "CREATE TABLE images AS SELECT 'image' || REPEAT('x', seq4()) AS path "
        "FROM TABLE(GENERATOR(ROWCOUNT => 5))"
    )
    return sql


@pytest.mark.parametrize("statement", STATEMENTS)
def test_each_row_is_sent_once(images: Sql, function: Function, statement: str) -> None:
    images.rows(statement.replace("#", CALL))
    assert sum(len(received.rows) for received in function.service.received) == ROWS
