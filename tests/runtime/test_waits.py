"""Waiting for keys: nobody wakes early, and what is over is forgotten."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from ray_sink.runtime.waits import Waits


def test_each_waits_for_all_of_its_own_keys() -> None:
    async def story() -> list[list[bool]]:
        waits = Waits()
        tasks = [asyncio.ensure_future(waits.until_met(keys)) for keys in (["a", "b"], ["b"], ["c"], [])]
        seen = []
        for happened in ([], ["b"], ["a", "x"], ["b", "c"]):
            waits.met(happened)
            for _ in range(3):
                await asyncio.sleep(0)
            seen.append([task.done() for task in tasks])
        return seen

    assert asyncio.run(story()) == [
        [False, False, False, True],
        [False, True, False, True],
        [True, True, False, True],
        [True, True, True, True],
    ]


def test_who_gives_up_leaves_nothing_behind_and_takes_nobody_along() -> None:
    async def story() -> bool:
        waits = Waits()
        gone, stays = (asyncio.ensure_future(waits.until_met(["a", "b"])) for _ in range(2))
        await asyncio.sleep(0)
        gone.cancel()
        with suppress(asyncio.CancelledError):
            await gone
        waits.met(["a", "b"])
        await asyncio.wait_for(stays, 10)
        return not waits._by_key

    assert asyncio.run(story())
