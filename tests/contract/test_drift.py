"""The views of 33_drift.sql on the emulator: a month of answers, and a day that differs from it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from app.emulator import LocalServer
from app.provisioning.ddl import load
from tests.app.emulator.sql import Sql

pytestmark = pytest.mark.slow

NAMES = {"database": "LOCAL", "schema": "PUBLIC", "warehouse": "small"}
IMAGES_A_DAY = 120


@pytest.fixture(scope="module")
def server() -> Iterator[LocalServer]:
    with LocalServer() as server:
        yield server


@pytest.fixture(scope="module")
def made(server: LocalServer) -> Iterator[Sql]:
    """A session after the statements of 33_drift.sql, without the alert, which the emulator lacks."""
    with Sql(server, paramstyle="qmark") as sql:
        queries = load("31_queries.sql", NAMES | {"function": "f", "stage": "images"})
        [table] = [statement for statement in queries if statement.startswith("CREATE TABLE")]
        for statement in [table, *load("33_drift.sql", NAMES)]:
            if " ALERT " not in statement.partition("\n")[0]:
                sql.rows(statement)
        for days_ago in range(1, 10):
            add(sql, Day(days_ago))
        sql.rows("CREATE TABLE usual_answers AS SELECT * FROM image_answers")
        yield sql


@pytest.fixture
def sql(made: Sql) -> Sql:
    """The session with empty tables, but for `usual_answers`."""
    made.rows("DELETE FROM image_answers")
    made.rows("DELETE FROM image_drift_noticed")
    return made


@dataclass(frozen=True)
class Day:
    """The answers of one day: `abstained` abstentions, then `failed` failures, then labels."""

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
            "confidence": None if abstained or failed else self.confidence,
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


def add_usual_days(sql: Sql) -> None:
    """Of nine days, copied because their answers take a second to parse."""
    sql.rows("INSERT INTO image_answers SELECT * FROM usual_answers")


def drifted(sql: Sql) -> list[tuple[object, ...]]:
    return sql.rows("SELECT model_version, share_abstained, mean_confidence FROM image_drift")


def test_usual_day_is_not_listed(sql: Sql) -> None:
    add_usual_days(sql)
    add(sql, Day(0))
    assert drifted(sql) == []


def test_day_with_many_abstentions_is_listed(sql: Sql) -> None:
    add_usual_days(sql)
    add(sql, Day(0, abstained=12))
    [(version, abstained, _)] = drifted(sql)
    assert (version, round(float(abstained), 2)) == ("v1", 0.1)


def test_day_with_low_confidence_is_listed(sql: Sql) -> None:
    add_usual_days(sql)
    add(sql, Day(0, confidence=0.9))
    [(version, _, confidence)] = drifted(sql)
    assert (version, round(float(confidence), 2)) == ("v1", 0.9)


def test_day_on_which_every_row_failed_is_listed(sql: Sql) -> None:
    add_usual_days(sql)
    add(sql, Day(0, abstained=0, failed=IMAGES_A_DAY))
    assert drifted(sql) == [("v1", None, None)]


def test_day_with_few_images_is_not_listed(sql: Sql) -> None:
    add_usual_days(sql)
    add(sql, Day(0, images=99, confidence=0.5))
    assert drifted(sql) == []


def test_days_before_the_last_four_weeks_do_not_count(sql: Sql) -> None:
    add(sql, Day(29))
    add(sql, Day(0, confidence=0.5))
    assert drifted(sql) == []
    add(sql, Day(28))
    assert len(drifted(sql)) == 1


def test_day_is_not_compared_with_another_network(sql: Sql) -> None:
    add_usual_days(sql)
    add(sql, Day(0, confidence=0.8, version="v2"))
    assert drifted(sql) == []


def test_shares_of_a_day_count_labels_abstentions_and_failures(sql: Sql) -> None:
    add_usual_days(sql)
    add(sql, Day(0, images=200, abstained=20, failed=100, confidence=0.85))
    shares = sql.rows(
        "SELECT number_of_images, share_failed, share_abstained, mean_confidence, share_unsure "
        "FROM image_answers_by_day ORDER BY answered_on DESC LIMIT 1"
    )
    assert [pytest.approx(value) for value in (200, 0.5, 0.2, 0.85, 1.0)] == list(map(float, shares[0]))
    assert len(drifted(sql)) == 1


def test_alert_fires_once_per_day(sql: Sql) -> None:
    add_usual_days(sql)
    add(sql, Day(0, confidence=0.5))
    [alert] = [s for s in load("33_drift.sql", NAMES) if s.startswith("CREATE ALERT")]
    action = alert.partition("\nTHEN\n")[2]
    for _ in range(2):
        sql.rows(action)
    assert sql.rows("SELECT model_version FROM image_drift_noticed") == [("v1",)]
    assert sql.rows("SELECT * FROM image_drift_unnoticed") == []


def test_class_shares_of_a_day_sum_to_one(sql: Sql) -> None:
    add(sql, Day(0))
    shares = dict(sql.rows("SELECT label, share_of_images FROM image_labels_by_day"))
    assert sum(map(float, shares.values())) == pytest.approx(1)
    assert float(shares["Patches"]) == pytest.approx(90 / 119)
