"""Statements on the streams of directory tables, and on tasks.

A stream's offset is what its stage's directory table held: a statement that changes a table and reads the
stream moves it when it commits. There is no scheduler: EXECUTE TASK runs a task at once, then its children,
and passes on their errors, which Snowflake shows in TASK_HISTORY only.

Source: Snowflake documentation, "Introduction to streams", and the pages of STREAM and TASK statements.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from app.emulator.catalog import Name, Stream, Task
from app.emulator.errors import already_exists, invalid, not_found, unsupported
from app.emulator.grammar import Tokens
from app.emulator.query import Answer, status
from app.emulator.session import Session
from app.names import quote_identifier

_TASK_OPTIONS = frozenset({"WAREHOUSE", "SCHEDULE", "USER_TASK_TIMEOUT_MS", "COMMENT"})


# Streams.


def create_stream(tokens: Tokens, session: Session, *, replace: bool) -> Answer:
    name, kept = _take_new(tokens, session, "Stream", replace=replace)
    if not tokens.take("ON", "STAGE"):
        raise unsupported("a stream on anything but a stage")
    stage = session.catalog.stage(session.qualify(tokens.take_name()))
    options = tokens.take_options({"COMMENT"})
    if not stage.has_directory:
        raise invalid(f"Stage {stage} has no directory table.")
    if kept is None:
        comment = str(options.get("COMMENT", ""))
        session.catalog.streams[name] = Stream(name, stage, comment, tuple(stage.directory))
    return kept or status(f"Stream {name[-1]} successfully created.")


def _stream_row(stream: Stream) -> dict[str, Any]:
    return {
        "created_on": stream.created_on,
        **_name_columns(stream.name),
        "owner": "PUBLIC",
        "comment": stream.comment,
        "table_name": str(stream.stage),
        "source_type": "Stage",
        "base_tables": str(stream.stage),
        "type": "DELTA",
        "stale": "false",
        "mode": "DEFAULT",
        "stale_after": None,
        "invalid_reason": "N/A",
        "owner_role_type": "ROLE",
    }


# Tasks.


def create_task(tokens: Tokens, session: Session, *, replace: bool) -> Answer:
    name, kept = _take_new(tokens, session, "Task", replace=replace)
    options: dict[str, Any] = {}
    after: list[Name] = []
    condition = None
    while not tokens.take("AS"):
        if tokens.take("AFTER") or (after and tokens.take(",")):
            after.append(session.qualify(tokens.take_name()))
        elif tokens.take("WHEN"):
            condition = tokens.take_text("AS")
        else:
            options |= tokens.take_option(_TASK_OPTIONS)
    for each in after:
        _require_suspended(_find(each, session, "Task"), session)
    definition = tokens.take_text()
    if kept is None:
        session.catalog.tasks[name] = Task(name, options, tuple(after), condition, definition)
    return kept or status(f"Task {name[-1]} successfully created.")


def alter_task(tokens: Tokens, session: Session) -> Answer:
    optional = tokens.take("IF", "EXISTS")
    name = session.qualify(tokens.take_name())
    is_resumed = tokens.take("RESUME")
    if not is_resumed and not tokens.take("SUSPEND"):
        raise unsupported("ALTER TASK other than RESUME and SUSPEND")
    tokens.require_end()
    if not optional or name in session.catalog.tasks:
        task = _find(name, session, "Task")
        if task.after:
            _require_suspended(task, session)
        task.is_started = is_resumed
    return status()


def execute_task(tokens: Tokens, session: Session) -> Answer:
    """Run the task and those after it, unless their condition is false or they are suspended."""
    task = _take_known(tokens, session, "Task")
    if task.after:
        raise invalid(f"EXECUTE TASK takes a root task. Received: {quote_identifier(*task.name)}.")
    ran = {task.name} if _run(task, session) else set()
    waiting = [each for each in session.catalog.tasks.values() if each.after and each.is_started]
    while due := [each for each in waiting if ran.issuperset(each.after)]:
        waiting = [each for each in waiting if each not in due]
        ran |= {each.name for each in due if _run(each, session)}
    return status(f"Task {task.name[-1]} is scheduled to run immediately.")


def _run(task: Task, session: Session) -> bool:
    """Whether the task's condition is true and it ran, in its own schema and warehouse."""
    namespace, warehouse = (str(session.database), session.schema), session.warehouse
    session.use(*task.name[:2])
    session.warehouse = str(task.options.get("WAREHOUSE", warehouse)).upper()
    try:
        if task.condition is not None:
            [(is_due,)] = session.cursor().execute(f"SELECT {task.condition}").fetchall()
            if not is_due:
                return False
        session.cursor().execute(task.definition)
    finally:
        session.use(*namespace)
        session.warehouse = warehouse
    return True


def _require_suspended(task: Task, session: Session) -> None:
    """Raises ProgrammingError if the root of the task is resumed: then no task below it can change."""
    while task.after:
        task = _find(task.after[0], session, "Task")
    if task.is_started:
        raise invalid(
            f"Unable to update graph with root task {quote_identifier(*task.name)} "
            "since that root task is not suspended."
        )


def _task_row(task: Task) -> dict[str, Any]:
    before = [".".join(name) for name in task.after]
    return {
        "created_on": task.created_on,
        "name": task.name[-1],
        "id": task.id,
        **_name_columns(task.name),
        "owner": "PUBLIC",
        "comment": str(task.options.get("COMMENT", "")),
        "warehouse": str(task.options.get("WAREHOUSE", "")).upper() or None,
        "schedule": task.options.get("SCHEDULE"),
        "predecessors": json.dumps(before),
        "state": "started" if task.is_started else "suspended",
        "definition": task.definition,
        "condition": task.condition,
        "allow_overlapping_execution": None if task.after else "false",
        "owner_role_type": "ROLE",
        "task_relations": json.dumps({"Predecessors": before}),
    }


# Both.


def show(tokens: Tokens, session: Session, *, kind: str) -> Answer:
    shown = session.take_filter(tokens)
    return _list(kind, [each for name, each in _known(kind, session).items() if shown(name)])


def describe(tokens: Tokens, session: Session, *, kind: str) -> Answer:
    return _list(kind, [_take_known(tokens, session, kind)])


def drop(tokens: Tokens, session: Session, *, kind: str) -> Answer:
    optional = tokens.take("IF", "EXISTS")
    name = session.qualify(tokens.take_name())
    tokens.require_end()
    if optional and name not in _known(kind, session):
        return status(f"Drop statement executed successfully ({name[-1]} already dropped).")
    del _known(kind, session)[_find(name, session, kind).name]
    return status(f"{name[-1]} successfully dropped.")


def _known(kind: str, session: Session) -> dict[Name, Any]:
    return session.catalog.streams if kind == "Stream" else session.catalog.tasks


def _take_new(tokens: Tokens, session: Session, kind: str, *, replace: bool) -> tuple[Name, Answer | None]:
    """The name to create, and the answer of IF NOT EXISTS for one that exists."""
    keep = tokens.take_if_not_exists(replace=replace)
    name = session.qualify(tokens.take_name())
    session.require_schema(*name[:2])
    exists = name in _known(kind, session)
    if exists and not (keep or replace):
        raise already_exists(name[-1])
    return name, status(f"{name[-1]} already exists, statement succeeded.") if exists and keep else None


def _take_known(tokens: Tokens, session: Session, kind: str) -> Any:
    name = session.qualify(tokens.take_name())
    tokens.require_end()
    return _find(name, session, kind)


def _find(name: Name, session: Session, kind: str) -> Any:
    if name not in _known(kind, session):
        raise not_found(kind, quote_identifier(*name))
    return _known(kind, session)[name]


def _list(kind: str, objects: Sequence[Any]) -> Answer:
    rows = [_stream_row(each) if kind == "Stream" else _task_row(each) for each in objects]
    return Answer(
        list(rows[0]) if rows else ["created_on", "name", "database_name", "schema_name"],
        [list(row.values()) for row in rows],
        {"created_on": pa.timestamp("us", "UTC")},
    )


def _name_columns(name: Name) -> dict[str, str]:
    return {"name": name[-1], "database_name": name[0], "schema_name": name[1]}
