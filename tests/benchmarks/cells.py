"""The cells of a benchmark: form of request, rows in each, and load."""

from typing import NamedTuple

from tests.benchmarks.contenders import Form

OURS = "ext-classify"
PUBLISHED = "published recipe"
NULL_SERVER = "null server"
# The engine without a server, in the same rounds.
ENGINE_PROCESSES, ENGINE_THREADS = "engine, a process a core", "engine, a thread a core"
ENGINE_ONE_BY_ONE = "engine, one image after another"
ENGINE_PAUSED = "engine, one image, then a pause of 1 ms"
DECODING = "decoding alone, a process a core"
ENGINES = (ENGINE_PROCESSES, ENGINE_THREADS)
NO_SERVERS = frozenset({NULL_SERVER, *ENGINES, ENGINE_ONE_BY_ONE, ENGINE_PAUSED, DECODING})


class Cell(NamedTuple):
    form: Form
    rows: int
    load: str
    connections: int = 0
    """Of a closed loop."""
    share: float = 0.0
    """Of an open loop: its rate as a share of the server's own greatest."""


def closed_loop(form: Form, rows: int, connections: int) -> Cell:
    return Cell(form, rows, f"{connections} connection{'s' * (connections > 1)}", connections=connections)


def open_loop(form: Form, rows: int, share: float) -> Cell:
    return Cell(form, rows, f"{share:.0%}", share=share)


class Group(NamedTuple):
    """Cells of the same requests; a round goes through all of them, so that they can be held together."""

    form: Form
    rows: int
    connections: tuple[int, ...]
    shares: tuple[float, ...] = ()

    @property
    def closed(self) -> list[Cell]:
        return [closed_loop(self.form, self.rows, connections) for connections in self.connections]

    @property
    def cells(self) -> list[Cell]:
        """Closed loops first: the rates of the open ones follow from them."""
        return [*self.closed, *(open_loop(self.form, self.rows, share) for share in self.shares)]


# At most 512 rows at once: more connections only lengthen the queue and the run.
FULL = (
    Group("snowflake", 1, (1, 8, 32), (0.5, 1.5)),
    Group("snowflake", 16, (1, 8, 32)),
    Group("snowflake", 64, (1, 2, 8), (0.5, 1.5)),
    Group("snowflake", 512, (1,)),
    Group("image", 1, (1, 8, 32), (0.5, 1.5)),
    Group("multipart", 1, (1, 8)),
)
QUICK = (
    Group("snowflake", 1, (1, 8), (0.5,)),
    Group("snowflake", 64, (1, 8)),
    Group("image", 1, (1, 8), (0.5, 1.5)),
)
# Camera-size images: few fit into a body.
CAMERA = (Group("snowflake", 1, (1, 8)), Group("image", 1, (1, 8)))
# Of the networks that users bring: eight requests of 64 rows would wait for longer than our service allows.
SLOW_NETWORKS = (
    Group("snowflake", 1, (1, 8)),
    Group("snowflake", 64, (1, 2)),
    Group("image", 1, (1, 8)),
)

BATCH = closed_loop("snowflake", 64, 1)
SINGLE = closed_loop("image", 1, 1)
NULL_SERVER_CONNECTIONS = 8
# At ten images a second it would take hours.
SLOW = {PUBLISHED: {BATCH, SINGLE}}


def is_measured(contender: str, cell: Cell) -> bool:
    return cell in SLOW.get(contender, {cell})


def closed_cells(form: Form, rows: int) -> list[Cell]:
    return [cell for group in FULL if (group.form, group.rows) == (form, rows) for cell in group.closed]
