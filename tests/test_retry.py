from __future__ import annotations

import threading

import pytest

from ray_sink.errors import DestinationError, StoreUnavailableError
from ray_sink.retry import ConcurrencyGate, FailedTry, Retry, RetryPolicy
from tests.waiting import until


class FakeTime:
    def __init__(self) -> None:
        self.now_s = 0.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        return self.now_s

    def sleep(self, pause_s: float) -> None:
        self.pauses.append(pause_s)
        self.now_s += pause_s


def retry(time: FakeTime, *, highest: bool = True, **policy: float) -> Retry:
    return Retry(
        RetryPolicy(**policy),  # type: ignore[arg-type]
        clock=time.clock,
        sleep=time.sleep,
        uniform=lambda low, high: high if highest else low,
    )


def failing(times: int, error: Exception) -> tuple[list[int], object]:
    tries: list[int] = []

    def action(number: int) -> str:
        tries.append(number)
        if len(tries) <= times:
            raise error
        return "done"

    return tries, action


def test_what_fails_for_now_is_tried_until_it_works() -> None:
    time, told = FakeTime(), list[FailedTry]()
    tries, action = failing(3, StoreUnavailableError("later"))
    assert retry(time).call(action, on_failure=told.append) == "done"  # type: ignore[arg-type]
    assert tries == [1, 2, 3, 4]
    assert [failed.number for failed in told] == [1, 2, 3]
    assert [failed.pause_s for failed in told] == time.pauses == [0.2, 0.4, 0.8]


def test_what_fails_for_good_is_not_tried_again() -> None:
    time = FakeTime()
    tries, action = failing(1, DestinationError("no such bucket"))
    with pytest.raises(DestinationError):
        retry(time).call(action)  # type: ignore[arg-type]
    assert tries == [1]
    assert time.pauses == []


def test_tries_are_bounded_in_number() -> None:
    tries, action = failing(99, StoreUnavailableError("later"))
    with pytest.raises(StoreUnavailableError) as gave_up:
        retry(FakeTime(), attempts=5).call(action)  # type: ignore[arg-type]
    assert len(tries) == 5
    assert "gave up after 5 tries" in gave_up.value.__notes__[0]


def test_tries_are_bounded_in_time() -> None:
    time = FakeTime()
    _, action = failing(99, StoreUnavailableError("later"))
    with pytest.raises(StoreUnavailableError):
        retry(time, total_s=10, first_s=1, most_s=3).call(action)  # type: ignore[arg-type]
    assert time.pauses == [1, 2, 3, 3]


def test_pauses_spread_over_half_of_their_bound() -> None:
    time = FakeTime()
    _, action = failing(2, StoreUnavailableError("later"))
    retry(time, highest=False).call(action)  # type: ignore[arg-type]
    assert time.pauses == [0.1, 0.2]


def slow_down(gate: ConcurrencyGate) -> None:
    with pytest.raises(StoreUnavailableError), gate.enter(1):
        raise StoreUnavailableError("503", slow_down=True)


def succeed(gate: ConcurrencyGate, times: int) -> None:
    for _ in range(times):
        with gate.enter(1):
            pass


def test_concurrency_halves_when_the_store_asks_for_less_and_grows_again_by_one_a_round() -> None:
    time, changes = FakeTime(), list[tuple[int, int]]()
    gate = ConcurrencyGate(16, 100, clock=time.clock, on_change=lambda before, after: changes.append((before, after)))
    slow_down(gate)
    assert gate.allowed == 8
    succeed(gate, 9)
    assert gate.allowed == 9
    succeed(gate, 200)
    assert gate.allowed == 16
    assert changes[:2] == [(16, 8), (8, 9)]


def test_one_storm_lowers_concurrency_once_and_never_below_one() -> None:
    time = FakeTime()
    gate = ConcurrencyGate(16, 100, clock=time.clock)
    for _ in range(10):
        slow_down(gate)
    assert gate.allowed == 8
    for _ in range(10):
        time.now_s += 1
        slow_down(gate)
    assert gate.allowed == 1
    succeed(gate, 1)


def test_an_error_that_says_nothing_about_load_changes_nothing() -> None:
    gate = ConcurrencyGate(4, 100)
    with pytest.raises(StoreUnavailableError), gate.enter(1):
        raise StoreUnavailableError("connection reset")
    assert gate.allowed == 4


class Inside(threading.Thread):
    """Someone who enters and stays until told to leave."""

    def __init__(self, gate: ConcurrencyGate, held_bytes: int) -> None:
        super().__init__(daemon=True)
        self.gate, self.held_bytes = gate, held_bytes
        self.entered, self.leave = threading.Event(), threading.Event()
        self.start()

    def run(self) -> None:
        with self.gate.enter(self.held_bytes):
            self.entered.set()
            self.leave.wait(30)

    def go(self) -> None:
        self.leave.set()
        self.join(30)


def test_bytes_inside_stay_within_the_budget() -> None:
    gate = ConcurrencyGate(10, 100)
    first, second = Inside(gate, 60), Inside(gate, 40)
    until(lambda: first.entered.is_set() and second.entered.is_set())
    third = Inside(gate, 1)
    assert not third.entered.wait(0.1)
    second.go()
    until(third.entered.is_set)
    first.go()
    third.go()
    assert gate.peak_bytes == 100


def test_an_item_larger_than_the_budget_goes_alone_and_is_not_overtaken() -> None:
    gate = ConcurrencyGate(10, 100)
    small = Inside(gate, 10)
    until(small.entered.is_set)
    huge = Inside(gate, 1000)
    until(lambda: len(gate._waiting) == 1)
    late = Inside(gate, 10)
    assert not huge.entered.wait(0.1)
    assert not late.entered.is_set()
    small.go()
    until(huge.entered.is_set)
    assert not late.entered.wait(0.1)
    huge.go()
    until(late.entered.is_set)
    late.go()
    assert gate.peak_bytes == 1000
