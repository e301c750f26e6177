"""The views of 33_drift.sql on local SQL: a month of answers, and a day that is unlike them."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from app.snowflake.ddl import load
from app.snowflake.local.server import LocalServer
from tests.app.snowflake.local.sql import Sql

NAMES = {"database": "LOCAL", "schema": "PUBLIC", "warehouse": "small"}
IMAGES_A_DAY = 120


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server


@pytest.fixture(scope="module")
def made(server: LocalServer) -> Iterator[Sql]:
    """With the table of 31_queries.sql, and all of 33_drift.sql but the alert, for local SQL knows none."""
    with Sql(server, paramstyle="qmark") as sql:
        queries = load("31_queries.sql", NAMES | {"function": "f", "stage": "images"})
        [table] = [statement for statement in queries if statement.startswith("CREATE TABLE")]
        for statement in [table, *load("33_drift.sql", NAMES)]:
            if " ALERT " not in statement.partition("\n")[0]:
                sql.rows(statement)
        yield sql


@pytest.fixture
def sql(made: Sql) -> Sql:
    """Without answers."""
    made.rows("DELETE FROM image_answers")
    made.rows("DELETE FROM image_drift_noticed")
    return made


@dataclass(frozen=True)
class Day:
    """So many images, of which the first were abstained on, and the next failed."""

    days_ago: int
    images: int = IMAGES_A_DAY
    abstained: int = 1
    failed: int = 0
    confidence: float = 0.98
    version: str = "v1"

    def answer(self, number: int) -> dict[str, object]:
        abstained = number < self.abstained
        failed = not abstained and number < self.abstained + self.failed
        label = "Patches" if number % 4 else "Scratches"
        return {
            "label": None if abstained or failed else label,
            "confidence": None if failed else self.confidence,
            "abstained": abstained,
            "error": {"code": "corrupt_image"} if failed else None,
            "model": {"version": self.version},
        }


def add(sql: Sql, day: Day) -> None:
    answers = [day.answer(number) for number in range(day.images)]
    sql.rows(
        "INSERT INTO image_answers (relative_path, etag, answer, answered_at) "  # noqa: S608 - a number
        f"SELECT 'a' || f.index, 'e', f.value, DATEADD('DAY', -{day.days_ago}, CURRENT_TIMESTAMP()) "
        "FROM (SELECT PARSE_JSON(?) AS list) AS s, LATERAL FLATTEN(input => s.list) AS f",
        [json.dumps(answers)],
    )


def add_usual_days(sql: Sql, first_days_ago: int = 9) -> None:
    for days_ago in range(1, first_days_ago + 1):
        add(sql, Day(days_ago))


def drifted(sql: Sql) -> list[tuple[object, ...]]:
    return sql.rows("SELECT model_version, share_abstained, mean_confidence FROM image_drift")


def test_usual_day_is_none_to_look_at(sql: Sql) -> None:
    add_usual_days(sql)
    add(sql, Day(0))
    assert drifted(sql) == []


def test_day_of_many_abstentions_is_noticed(sql: Sql) -> None:
    add_usual_days(sql)
    add(sql, Day(0, abstained=12))
    [(version, abstained, _)] = drifted(sql)
    assert (version, round(abstained, 2)) == ("v1", 0.1)


def test_day_of_little_confidence_is_noticed(sql: Sql) -> None:
    add_usual_days(sql)
    add(sql, Day(0, confidence=0.9))
    [(version, _, confidence)] = drifted(sql)
    assert (version, round(confidence, 2)) == ("v1", 0.9)


def test_day_on_which_all_failed_is_noticed(sql: Sql) -> None:
    add_usual_days(sql)
    add(sql, Day(0, abstained=0, failed=IMAGES_A_DAY))
    assert drifted(sql) == [("v1", None, None)]


def test_day_of_few_images_is_not_judged(sql: Sql) -> None:
    add_usual_days(sql)
    add(sql, Day(0, images=99, confidence=0.5))
    assert drifted(sql) == []


def test_days_longer_ago_than_four_weeks_are_not_held_against_it(sql: Sql) -> None:
    add(sql, Day(29))
    add(sql, Day(0, confidence=0.5))
    assert drifted(sql) == []
    add(sql, Day(28))
    assert len(drifted(sql)) == 1


def test_new_network_is_not_held_against_the_old_one(sql: Sql) -> None:
    add_usual_days(sql)
    add(sql, Day(0, confidence=0.8, version="v2"))
    assert drifted(sql) == []


def test_day_gone_by_is_found_and_its_images_are_counted_by_what_became_of_them(sql: Sql) -> None:
    add_usual_days(sql, 5)
    add(sql, Day(0, images=200, abstained=20, failed=100, confidence=0.85))
    shares = sql.rows(
        "SELECT number_of_images, share_failed, share_abstained, mean_confidence, share_unsure "
        "FROM image_answers_by_day ORDER BY answered_on DESC LIMIT 1"
    )
    assert [pytest.approx(value) for value in (200, 0.5, 0.2, 0.85, 1.0)] == list(map(float, shares[0]))
    assert len(drifted(sql)) == 1


def test_alert_notices_a_day_once(sql: Sql) -> None:
    add_usual_days(sql)
    add(sql, Day(0, confidence=0.5))
    [alert] = [s for s in load("33_drift.sql", NAMES) if s.startswith("CREATE ALERT")]
    action = alert.partition("\nTHEN\n")[2]
    for _ in range(2):
        sql.rows(action)
    assert sql.rows("SELECT model_version FROM image_drift_noticed") == [("v1",)]
    assert sql.rows("SELECT * FROM image_drift_unnoticed") == []


def test_mix_of_classes_is_shares_of_a_day(sql: Sql) -> None:
    add(sql, Day(0))
    shares = dict(sql.rows("SELECT label, share_of_images FROM image_labels_by_day"))
    assert sum(map(float, shares.values())) == pytest.approx(1)
    assert float(shares["Patches"]) == pytest.approx(90 / 119)
