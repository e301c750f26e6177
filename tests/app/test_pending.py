"""The memory budget of bodies: admission, eviction and release."""

from contextlib import AbstractContextManager, suppress

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from app.admission import CALLER_SHARE, GRACE_SECONDS, MIN_EVICTABLE_BYTES, PendingBody, PendingBytes
from app.errors import Overloaded

MAX_BYTES = 1_000_000
RESERVE_BYTES = 50_000
MIN_BYTES_PER_SECOND = 100_000
CALLERS = (None, "a", "b")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Room:
    """A budget with the test's clock, and the evicted bodies in order."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.evicted: list[PendingBody] = []
        self._in_transit: list[AbstractContextManager[None]] = []
        self.pending = PendingBytes(
            MAX_BYTES,
            reserve_bytes=RESERVE_BYTES,
            min_bytes_per_second=MIN_BYTES_PER_SECOND,
            clock=self.clock,
        )

    def arriving(
        self, received_bytes: int, declared_bytes: int = MAX_BYTES, caller: str | None = None
    ) -> PendingBody:
        """A body that is in transit until the test ends."""
        body = self.pending.reserve(declared_bytes, caller)
        self.begin_transit(body)
        body.take(received_bytes)
        return body

    def begin_transit(self, body: PendingBody) -> None:
        transit = body.evictable(lambda: self.evicted.append(body), is_in_transit=True)
        transit.__enter__()
        self._in_transit.append(transit)  # it would end with its generator

    def complete(self, received_bytes: int, caller: str | None = None) -> PendingBody:
        body = self.pending.reserve(received_bytes, caller)
        with body.evictable(is_in_transit=True):
            body.take(received_bytes)
        body.complete()
        return body


@pytest.fixture
def room() -> Room:
    return Room()


def test_slow_bodies_are_evicted_longest_without_progress_first(room: Room) -> None:
    longest, shorter = room.arriving(400_000), room.arriving(400_000)
    room.clock.now += 0.5
    shorter.take(MIN_BYTES_PER_SECOND)
    room.clock.now += 2.0
    fast = room.arriving(99_000)
    fast.take(1_000)
    assert room.evicted == []
    fast.take(1_000)
    assert room.evicted == [longest]
    fast.take(500_000)
    assert room.evicted == [longest, shorter]
    assert room.pending.held_bytes == fast.held_bytes == 601_000


def test_progress_postpones_eviction(room: Room) -> None:
    progressing, stalled = room.arriving(400_000), room.arriving(400_000)
    room.clock.now += 0.5
    progressing.take(MIN_BYTES_PER_SECOND)
    room.clock.now += 2.0
    room.arriving(200_000)
    assert room.evicted == [stalled]


def test_body_that_has_arrived_and_is_not_inflated_yet_is_not_slow(room: Room) -> None:
    body = room.pending.reserve(MAX_BYTES)
    with body.evictable(is_in_transit=True):
        body.take(900_000)
    room.clock.now += 100.0
    with pytest.raises(Overloaded):
        room.arriving(200_000)
    assert body.held_bytes == 900_000


def test_slow_body_is_not_evicted_while_memory_is_free(room: Room) -> None:
    slow = room.arriving(MAX_BYTES - 100_000)
    for _ in range(100):
        room.clock.now += 1.0
        slow.take(10)
    room.arriving(50_000)
    assert room.evicted == []


def test_body_at_the_minimum_rate_is_not_slow(room: Room) -> None:
    steady = room.arriving(500_000)
    for _ in range(4):
        room.clock.now += GRACE_SECONDS
        steady.take(MIN_BYTES_PER_SECOND)
    with pytest.raises(Overloaded):
        room.arriving(200_000)
    assert room.evicted == []


def test_burst_of_bytes_postpones_eviction_by_one_second_only(room: Room) -> None:
    burst = room.arriving(900_000)
    room.clock.now += GRACE_SECONDS + 0.1
    room.arriving(200_000)
    assert room.evicted == [burst]


def test_evicted_body_gets_429_and_its_connection_is_closed(room: Room) -> None:
    slow = room.arriving(900_000)
    room.clock.now += 2.0
    room.arriving(200_000)
    with pytest.raises(Overloaded) as refusal:
        slow.take(1)
    assert refusal.value.headers == {"retry-after": "1", "connection": "close"}
    assert "100000 bytes a second" in refusal.value.message
    assert slow.held_bytes == 0


def test_body_that_is_evicted_after_its_last_byte_is_not_answered(room: Room) -> None:
    body = room.pending.reserve(900_000)
    transit = body.evictable(is_in_transit=True)
    transit.__enter__()
    body.take(800_000)
    room.clock.now += 2.0
    room.arriving(300_000)
    with pytest.raises(Overloaded):
        transit.__exit__(None, None, None)


def test_youngest_body_is_evicted_for_older_ones(room: Room) -> None:
    oldest, middle, youngest = (room.arriving(300_000) for _ in range(3))
    middle.take(200_000)
    assert room.evicted == [youngest]
    oldest.take(250_000)
    assert room.evicted == [youngest, middle]
    with pytest.raises(Overloaded):
        room.arriving(500_000)
    assert room.evicted == [youngest, middle]


def test_refused_body_releases_its_bytes_at_once(room: Room) -> None:
    room.arriving(600_000)
    youngest = room.arriving(300_000)
    with pytest.raises(Overloaded):
        youngest.take(200_000)
    assert room.pending.held_bytes == 600_000
    with pytest.raises(Overloaded):
        youngest.take(1)


@pytest.mark.parametrize("bodies", [2, 8, 50])
def test_oldest_of_growing_bodies_always_completes(room: Room, bodies: int) -> None:
    growing = [room.arriving(10_000) for _ in range(bodies)]
    for _ in range(40):
        for body in growing:
            with suppress(Overloaded):
                body.take(10_000)
    assert [body.held_bytes for body in growing] == [410_000, 410_000, *[0] * (bodies - 2)]


def test_bodies_whose_rows_wait_are_not_evicted(room: Room) -> None:
    waiting = room.complete(800_000)
    room.clock.now += 100.0
    with pytest.raises(Overloaded):
        room.arriving(300_000)
    assert waiting.held_bytes == 800_000


def test_image_is_admitted_whatever_large_bodies_hold(room: Room) -> None:
    for _ in range(10):
        room.complete(100_000)
    with pytest.raises(Overloaded):
        room.pending.refuse(RESERVE_BYTES + 1)
    room.pending.refuse(RESERVE_BYTES)
    room.complete(RESERVE_BYTES)
    with pytest.raises(Overloaded):
        room.pending.refuse(1)
    assert room.pending.held_bytes == MAX_BYTES + RESERVE_BYTES


def test_image_is_admitted_next_to_a_body_beyond_the_limit(room: Room) -> None:
    room.complete(5 * MAX_BYTES)
    room.complete(RESERVE_BYTES)


def test_bodies_in_the_reserve_take_nothing_from_large_ones(room: Room) -> None:
    small = room.arriving(RESERVE_BYTES - 1, RESERVE_BYTES)
    room.clock.now += 100.0
    room.complete(MAX_BYTES)
    with pytest.raises(Overloaded):
        room.arriving(10_000)
    assert small.held_bytes == RESERVE_BYTES - 1
    assert room.evicted == []


def test_body_of_unknown_length_leaves_the_reserve_when_it_has_outgrown_it(room: Room) -> None:
    room.complete(MAX_BYTES)
    chunked = room.arriving(RESERVE_BYTES, declared_bytes=0)
    with pytest.raises(Overloaded):
        chunked.take(1)
    room.complete(RESERVE_BYTES)


def test_body_that_has_outgrown_the_reserve_releases_it(room: Room) -> None:
    room.arriving(RESERVE_BYTES, declared_bytes=0).take(RESERVE_BYTES)
    with pytest.raises(Overloaded):
        room.pending.refuse(MAX_BYTES - 2 * RESERVE_BYTES + 1)
    room.complete(MAX_BYTES - 2 * RESERVE_BYTES)
    room.complete(RESERVE_BYTES)


def test_length_that_is_only_declared_holds_nothing(room: Room) -> None:
    for _ in range(100):
        room.arriving(1, declared_bytes=900_000)
    room.pending.refuse(900_000)
    assert room.pending.held_bytes == 100


def test_length_is_refused_only_if_evicting_slow_bodies_frees_too_little(room: Room) -> None:
    room.complete(500_000)
    room.arriving(400_000)
    with pytest.raises(Overloaded):
        room.pending.refuse(200_000)
    room.clock.now += 2.0
    room.pending.refuse(500_000)
    with pytest.raises(Overloaded):
        room.pending.refuse(500_001)
    assert room.evicted == []


def test_slow_bodies_are_counted_up_to_a_limit(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.admission.MAX_SLOW_COUNTED", 50)
    room.complete(MAX_BYTES - 51 * MIN_EVICTABLE_BYTES)
    for _ in range(50):
        room.arriving(MIN_EVICTABLE_BYTES)
    room.clock.now += 2.0
    with pytest.raises(Overloaded):
        room.pending.refuse(MAX_BYTES)
    room.arriving(MIN_EVICTABLE_BYTES)
    room.clock.now += 2.0
    room.pending.refuse(MAX_BYTES)


def test_one_piece_evicts_no_more_bodies_than_it_takes(room: Room) -> None:
    holding = room.complete(500_000)
    tiny = [room.arriving(1) for _ in range(1000)]
    many = [room.arriving(MIN_EVICTABLE_BYTES) for _ in range(100)]
    room.clock.now += 2.0
    taking = room.arriving(50_000)
    taking.take(10 * MIN_EVICTABLE_BYTES)
    assert len(room.evicted) <= 10
    assert set(room.evicted) <= set(many)
    assert all(body.held_bytes for body in (*tiny, holding))


def test_bodies_of_one_caller_leave_room_for_another(room: Room) -> None:
    for _ in range(3):
        room.complete(250_000, "noisy")
    for refuse in (lambda: room.pending.refuse(1, "noisy"), lambda: room.complete(1, "noisy")):
        with pytest.raises(Overloaded, match="75%"):
            refuse()
    room.pending.refuse(250_000, "quiet")
    room.complete(250_000, "quiet")
    room.pending.refuse(RESERVE_BYTES, "third")
    room.complete(RESERVE_BYTES, "third")
    assert room.evicted == []


def test_small_bodies_count_towards_the_share_of_their_caller(room: Room) -> None:
    for _ in range(750):
        room.complete(1000, "noisy")
    with pytest.raises(Overloaded, match="75%"):
        room.complete(1, "noisy")


def test_only_body_of_a_caller_may_exceed_its_share(room: Room) -> None:
    body = room.complete(MAX_BYTES, "mill")
    with pytest.raises(Overloaded):
        room.complete(1, "mill")
    body.drop()
    room.complete(MAX_BYTES, "mill")


def test_without_authentication_there_is_no_share(room: Room) -> None:
    room.complete(500_000)
    room.complete(500_000)


def test_share_evicts_only_bodies_of_its_caller(room: Room) -> None:
    """The slowest, then the youngest, as the budget does."""
    other = room.arriving(10_000, caller="quiet")
    slow = room.arriving(400_000, caller="noisy")
    room.clock.now += GRACE_SECONDS / 2
    oldest = room.arriving(300_000, caller="noisy")
    room.clock.now += GRACE_SECONDS * 0.9
    oldest.take(100_000)
    assert room.evicted == [slow]
    youngest = room.arriving(300_000, caller="noisy")
    younger = room.arriving(10_000, caller="quiet")
    oldest.take(200_000)
    assert room.evicted == [slow, youngest]
    assert not other.eviction
    assert not younger.eviction
    with pytest.raises(Overloaded, match="75%"):
        room.arriving(200_000, caller="noisy")


def test_length_is_refused_only_if_evicting_slow_bodies_of_the_caller_frees_too_little(room: Room) -> None:
    room.complete(400_000, "noisy")
    room.arriving(300_000, caller="noisy")
    room.arriving(100_000, caller="quiet")
    with pytest.raises(Overloaded, match="75%"):
        room.pending.refuse(100_000, "noisy")
    room.clock.now += 2.0
    room.pending.refuse(350_000, "noisy")
    with pytest.raises(Overloaded, match="75%"):
        room.pending.refuse(350_001, "noisy")


class Pending(RuleBasedStateMachine):
    """Random sequences of what the service does with bodies and responses."""

    bodies: Bundle[PendingBody] = Bundle("bodies")

    def __init__(self) -> None:
        super().__init__()
        self.room = Room()
        self.live: list[PendingBody] = []
        self.held_by: dict[PendingBody, int] = {}

    @rule(
        target=bodies,
        declared_bytes=st.sampled_from([0, 10_000, RESERVE_BYTES, 400_000]),
        caller=st.sampled_from(CALLERS),
    )
    def begin(self, declared_bytes: int, caller: str | None) -> PendingBody:
        body = self.room.pending.reserve(declared_bytes, caller)
        self.live.append(body)
        self.held_by[body] = 1
        return body

    @rule(
        body=bodies,
        takes=st.lists(st.integers(1, 300_000), max_size=4),
        transit=st.booleans(),
        fails=st.booleans(),
    )
    def take(self, body: PendingBody, takes: list[int], *, transit: bool, fails: bool) -> None:
        if body.is_evictable or not self.held_by[body]:
            return
        with suppress(Overloaded), body.evictable(is_in_transit=transit):
            for more_bytes in takes:
                before = self.room.pending.held_bytes
                body.take(more_bytes)
                held_bytes = self.room.pending.held_bytes
                assert held_bytes in (
                    body.held_bytes,
                    min(held_bytes, max(before, MAX_BYTES + RESERVE_BYTES)),
                )
        if fails or body.eviction is not None:
            self.let_all_go(body)

    @rule(body=bodies, received_bytes=st.integers(1, 300_000))
    def begin_to_arrive(self, body: PendingBody, received_bytes: int) -> None:
        """Start a body that stalls."""
        if body.is_evictable or not self.held_by[body]:
            return
        self.room.begin_transit(body)
        try:
            body.take(received_bytes)
        except Overloaded:
            assert not body.held_bytes

    @rule(body=bodies, fewer_bytes=st.integers(0, 400_000))
    def inflated(self, body: PendingBody, fewer_bytes: int) -> None:
        body.drop(fewer_bytes)
        body.complete()

    @rule(body=bodies, answer_bytes=st.integers(1, 300_000))
    def answer(self, body: PendingBody, answer_bytes: int) -> None:
        if not self.held_by[body]:
            return
        body.drop()
        try:
            body.take(answer_bytes)
        except Overloaded:
            self.let_all_go(body)

    @rule(body=bodies)
    def join(self, body: PendingBody) -> None:
        if self.held_by[body]:
            body.hold()
            self.held_by[body] += 1

    @rule(body=consumes(bodies))
    def end(self, body: PendingBody) -> None:
        self.let_all_go(body)

    def let_all_go(self, body: PendingBody) -> None:
        while self.held_by[body]:
            body.let_go()
            self.held_by[body] -= 1
        assert not body.held_bytes

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        self.room.clock.now += seconds

    @invariant()
    def what_is_counted_is_what_is_held(self) -> None:
        assert self.room.pending.held_bytes == sum(body.held_bytes for body in self.live)
        assert all(body.held_bytes >= 0 for body in self.live)
        for caller in filter(None, CALLERS):
            held = [body.held_bytes for body in self.live if body.caller == caller and body.held_bytes]
            assert self.room.pending._held_by(caller) == sum(held)  # noqa: SLF001
            assert sum(held) <= CALLER_SHARE * MAX_BYTES or len(held) == 1
        for body in self.live:
            assert body.eviction is None or not body.is_evictable or not body.held_bytes
            assert self.held_by[body] or not body.held_bytes

    def teardown(self) -> None:
        for body in self.live:
            self.let_all_go(body)
        assert self.room.pending.held_bytes == 0
        for group in (self.room.pending._small, self.room.pending._large):  # noqa: SLF001
            assert not group.by_age
            assert not group.by_progress


TestPending = pytest.mark.slow(Pending.TestCase)
