"""The thread that a model lives on."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import pytest

from ray_sink.runtime.thread import ModelThread


class Model:
    def __init__(self) -> None:
        self.home = threading.get_ident()

    def here(self) -> bool:
        return threading.get_ident() == self.home


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_model_is_made_called_and_let_go_on_one_thread(asynchronous: bool) -> None:
    let_go: list[int] = []

    def made() -> Model:
        model = Model()
        weakref.finalize(model, lambda: let_go.append(threading.get_ident()))
        homes.append(model.home)
        return model

    homes: list[int] = []
    thread = ModelThread(made, asynchronous=asynchronous)

    async def here(model: Any) -> bool:
        await asyncio.sleep(0)
        return bool(model.here())

    calls = [
        thread.submit_async(here) if asynchronous else thread.submit(lambda model: bool(model.here())) for _ in range(9)
    ]
    assert all(call.result(10) for call in calls)
    assert homes != [threading.get_ident()]
    thread.stop()
    gc.collect()
    assert let_go == homes


def test_calls_run_one_after_the_other_in_order() -> None:
    thread = ModelThread(list, asynchronous=False)
    for number in range(50):
        thread.submit(lambda model, number=number: model.append(number))  # type: ignore[misc]
    assert thread.submit(list).result(10) == list(range(50))
    thread.stop()


def test_coroutines_take_turns_where_they_await() -> None:
    thread = ModelThread(asyncio.Event, asynchronous=True)

    async def wait(event: Any) -> str:
        await event.wait()
        return "waited"

    async def set_it(event: Any) -> None:
        event.set()

    waiting = thread.submit_async(wait)
    thread.submit_async(set_it).result(10)
    assert waiting.result(10) == "waited"
    thread.stop()


def test_an_error_of_the_constructor_is_the_callers() -> None:
    with pytest.raises(ZeroDivisionError):
        ModelThread(lambda: 1 / 0, asynchronous=False)


def test_an_error_of_a_call_leaves_the_next_one_alone() -> None:
    thread = ModelThread(Model, asynchronous=False)
    broken = thread.submit(lambda model: model.nothing)
    with pytest.raises(AttributeError):
        broken.result(10)
    assert thread.submit(lambda model: model.here()).result(10)
    thread.stop()
