"""Who waits for what to change, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from ray_sink.runtime.changes import Changes


class Room:
    """So many places, and who has taken one."""

    def __init__(self, places: int = 0) -> None:
        self.places = places
        self.taken: list[str] = []
        self.looks = 0

    def take(self, who: str, places: int = 1) -> Callable[[], bool]:
        def met() -> bool:
            self.looks += 1
            if self.places < places:
                return False
            self.places -= places
            self.taken.append(who)
            return True

        return met


async def settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_is_there_is_had_at_once() -> None:
    assert asyncio.run(Changes().until("room", Room(1).take("a"), 0))


def test_it_waits_until_it_is_told_and_looks_at_its_own_subject_only() -> None:
    async def run() -> None:
        changes, room = Changes(), Room()
        waiting = asyncio.create_task(changes.until("room", room.take("a"), None))
        await settled()
        room.places = 1
        changes.tell("weather", "news")
        await settled()
        assert (room.looks, waiting.done()) == (1, False)
        changes.tell("weather", "room")
        assert await asyncio.wait_for(waiting, 10)
        changes.tell("room")
        assert room.looks == 2, "who has gone is not looked at"

    asyncio.run(run())


def test_the_time_is_up() -> None:
    async def run() -> None:
        changes, room = Changes(), Room()
        assert not await changes.until("room", room.take("a"), 0.01)
        room.places = 1
        changes.tell("room")
        assert room.taken == []

    asyncio.run(run())


def test_what_was_taken_just_before_the_time_was_up_is_had() -> None:
    async def run() -> None:
        changes, room = Changes(), Room()
        waiting = asyncio.create_task(changes.until("room", room.take("a"), 0.05))
        await settled()
        loop, room.places = asyncio.get_running_loop(), 1
        began_s = loop.time()
        while loop.time() < began_s + 0.1:  # nothing else runs meanwhile: the time is up when it does
            changes.tell("room")
        assert await waiting
        assert room.taken == ["a"]

    asyncio.run(run())


def test_without_a_line_all_are_looked_at() -> None:
    async def run() -> None:
        changes, room = Changes(), Room()
        large = asyncio.create_task(changes.until("room", room.take("large", 5), None))
        await settled()
        small = asyncio.create_task(changes.until("room", room.take("small"), None))
        await settled()
        room.places = 1
        changes.tell("room")
        assert await asyncio.wait_for(small, 10)
        room.places = 5
        changes.tell_all()
        assert await asyncio.wait_for(large, 10)

    asyncio.run(run())


def test_in_a_line_nobody_takes_what_those_before_have_not_got() -> None:
    async def run() -> None:
        changes, room = Changes(), Room()
        second = asyncio.create_task(changes.until("room", room.take("second"), None, place=2))
        await settled()
        first = asyncio.create_task(changes.until("room", room.take("first", 3), None, place=1))
        await settled()
        room.places = 2
        changes.tell("room")
        third = asyncio.create_task(changes.until("room", room.take("third"), None, place=3))
        await settled()
        assert room.taken == []
        room.places = 5
        changes.tell("room")
        await asyncio.wait_for(asyncio.gather(first, second, third), 10)
        assert room.taken == ["first", "second", "third"]

    asyncio.run(run())


def test_in_a_line_it_costs_one_look_how_long_the_line_may_be() -> None:
    async def run() -> None:
        changes, room = Changes(), Room()
        line = [asyncio.create_task(changes.until("room", room.take("x"), None, place=n)) for n in range(1, 1001)]
        await settled()
        assert room.looks == 1, "those behind the first need not look"
        changes.tell("room")
        assert room.looks == 2
        for waiting in line:
            waiting.cancel()
        await asyncio.wait(line)

    asyncio.run(run())


def test_who_is_cancelled_is_not_in_the_line_any_more() -> None:
    async def run() -> None:
        changes, room = Changes(), Room()
        first, second = (asyncio.create_task(changes.until("room", room.take("x"), None, place=n)) for n in (1, 2))
        await settled()
        first.cancel()
        await asyncio.wait([first])
        room.places = 1
        changes.tell("room")
        assert await asyncio.wait_for(second, 10)

    asyncio.run(run())


def test_an_error_of_its_own_look_is_its_own() -> None:
    def broken() -> bool:
        if changed:
            raise ZeroDivisionError
        return False

    async def run() -> None:
        changes, room = Changes(), Room()
        failing = asyncio.create_task(changes.until("room", broken, None, place=1))
        other = asyncio.create_task(changes.until("room", room.take("b"), None, place=2))
        await settled()
        changed.append(True)
        room.places = 1
        changes.tell("room")
        assert await asyncio.wait_for(other, 10)
        with pytest.raises(ZeroDivisionError):
            await failing

    changed: list[bool] = []
    asyncio.run(run())
