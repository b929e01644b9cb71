from __future__ import annotations

import errno
import logging
import os
import threading

import pytest

from ray_sink.errors import StagingError
from ray_sink.patience import Patience, Tick, is_silence


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def read(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def failing(*codes: int) -> tuple[list[int], object]:
    """An attempt that fails with these errors, one after the other, and then works; and the numbers of its tries."""
    left, tries = list(codes), list[int]()

    def attempt(number: int) -> str:
        tries.append(number)
        if left:
            code = left.pop(0)
            raise StagingError(os.strerror(code)) from OSError(code, os.strerror(code))
        return "done"

    return tries, attempt


def a_patience(wait_s: float = 600) -> Patience:
    clock = Clock()
    return Patience(wait_s, clock=clock.read, sleep=clock.sleep)


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EINTR])
def test_a_momentary_error_is_met_with_two_new_files(code: int) -> None:
    tries, attempt = failing(code, code)
    assert a_patience().again(attempt) == "done"  # type: ignore[arg-type]
    assert tries == [0, 1, 2]
    tries, attempt = failing(code, code, code)
    with pytest.raises(StagingError):
        a_patience().again(attempt)  # type: ignore[arg-type]
    assert tries == [0, 1, 2]


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EEXIST, errno.EACCES, errno.EROFS, errno.ENAMETOOLONG])
def test_what_no_other_try_can_mend_is_raised_at_once(code: int) -> None:
    tries, attempt = failing(code)
    with pytest.raises(StagingError):
        a_patience().again(attempt)  # type: ignore[arg-type]
    assert tries == [0]


def test_a_full_disk_is_waited_for_and_it_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "ray_sink"):
        tries, attempt = failing(*[errno.ENOSPC, errno.EDQUOT] * 50)
        assert a_patience(wait_s=60).again(attempt) == "done"  # type: ignore[arg-type]
    assert len(tries) == 101
    assert [record.event for record in caplog.records] == ["disk_full"]  # type: ignore[attr-defined]
    tries, attempt = failing(*[errno.ENOSPC] * 1000)
    with pytest.raises(StagingError, match="waited 60 s for room"):
        a_patience(wait_s=60).again(attempt)  # type: ignore[arg-type]


def test_a_call_that_shows_no_life_is_given_up_and_named() -> None:
    hangs = threading.Event()
    with pytest.raises(StagingError, match=r"staging 'a.pt': the filesystem has not answered for 0\.1 s") as raised:
        Patience(0.1).within("staging 'a.pt'", lambda tick: hangs.wait(30))
    assert is_silence(raised.value)
    hangs.set()


def test_a_call_that_gets_on_is_not_given_up_however_long_it_takes() -> None:
    clock = Clock()
    seen = []

    def call(tick: Tick) -> str:
        for _ in range(5):
            clock.now_s += 0.9
            tick()
            seen.append(clock.now_s)
        return "done"

    assert Patience(1, clock=clock.read).within("copying", call) == "done"
    assert len(seen) == 5


def test_what_a_call_raises_comes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        a_patience().within("dividing", lambda tick: 1 / 0)


def test_calls_share_a_thread_and_the_one_that_hangs_is_left_to_itself() -> None:
    patience = Patience(0.1)
    threads = [patience.within("", lambda tick: threading.get_ident()) for _ in range(50)]
    assert len(set(threads)) == 1
    hangs, hanging = threading.Event(), list[threading.Thread]()

    def hang(tick: Tick) -> None:
        hanging.append(threading.current_thread())
        hangs.wait(30)

    with pytest.raises(StagingError):
        patience.within("", hang)
    other = patience.within("", lambda tick: threading.current_thread())
    assert other is not hanging[0]
    hangs.set()
    hanging[0].join(10)
    assert not hanging[0].is_alive()
    del patience
    other.join(10)
    assert not other.is_alive()


def test_steps_share_a_thread() -> None:
    patience = a_patience()

    def call() -> tuple[int, int]:
        return threading.get_ident(), patience.within("a step", lambda tick: threading.get_ident())

    outer, inner = patience.steps(call)
    assert outer == inner != threading.get_ident()
    # and the thread is as it was: the next call is its own again
    assert patience.within("", lambda tick: threading.current_thread().name) == "ray_sink-file"


def test_steps_that_get_on_are_not_given_up_and_the_one_that_hangs_is_named() -> None:
    hangs = threading.Event()
    patience = Patience(0.5)

    def steps() -> None:
        for number in range(8):
            patience.within(f"step {number}", lambda tick: hangs.wait(0.1))
        patience.within("the last step", lambda tick: hangs.wait(30))

    with pytest.raises(StagingError, match=r"^the last step: .* for 0\.5 s"):
        patience.steps(steps)
    hangs.set()


def test_what_is_done_between_steps_takes_as_long_as_it_takes() -> None:
    """To wait for room, to encode: the filesystem has nothing to answer meanwhile."""
    never = threading.Event()
    patience = Patience(0.2)

    def steps() -> str:
        patience.within("a step", lambda tick: None)
        never.wait(1)
        return patience.within("another", lambda tick: "done")

    assert patience.steps(steps) == "done"


def test_a_step_that_waits_for_room_is_not_taken_for_one_that_hangs() -> None:
    patience = Patience(1.0)
    tries, attempt = failing(*[errno.ENOSPC] * 99)
    with pytest.raises(StagingError, match=r"waited \d s for room"):
        patience.steps(lambda: patience.again(attempt))  # type: ignore[arg-type]
    assert len(tries) > 2
