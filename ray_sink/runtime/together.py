"""Calls that come in while one is under way, made as one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
AnswerT = TypeVar("AnswerT")


class Together(Generic[ItemT, AnswerT]):
    """On one event loop.

    Args:
        call: gets the items of all who wait, and returns an answer for each, in order.
    """

    def __init__(self, call: Callable[[Sequence[ItemT]], Awaitable[Sequence[AnswerT]]]) -> None:
        self._call = call
        self._waiting: list[tuple[Sequence[ItemT], asyncio.Future[list[AnswerT]]]] = []
        self._calling = asyncio.Lock()

    async def __call__(self, items: Sequence[ItemT]) -> list[AnswerT]:
        """The answers to `items`; what `call` raises is raised to all whose items it had."""
        future: asyncio.Future[list[AnswerT]] = asyncio.get_running_loop().create_future()
        self._waiting.append((items, future))
        async with self._calling:
            if not future.done():
                batch, self._waiting = self._waiting, []
                try:
                    answers = iter(await self._call([item for some, _ in batch for item in some]))
                    for some, waiter in batch:
                        waiter.set_result([next(answers) for _ in some])
                except Exception as error:  # noqa: BLE001 - whatever it is, nobody may wait for ever
                    for _, waiter in batch:
                        waiter.set_exception(error)
        return await future
