from __future__ import annotations

import threading
from functools import partial

from ray_sink.aside import Aside
from tests.waiting import until


def test_one_thread_takes_jobs_in_their_order_and_ends_after_the_last() -> None:
    aside, seen = Aside(1, 4, "one"), list[tuple[int, str]]()

    def job(number: int) -> None:
        seen.append((number, threading.current_thread().name))

    for number in range(50):
        assert aside.submit(partial(job, number))
    aside.close(wait=True)
    assert seen == [(number, "one") for number in range(50)]
    assert not aside.submit(lambda: None)
    aside.close(wait=True)


def test_no_more_run_and_wait_than_it_was_told() -> None:
    aside, gate = Aside(2, 4, "few"), threading.Event()
    submitted: list[int] = []
    running: list[int] = []

    def job(number: int) -> None:
        running.append(number)
        gate.wait(30)

    def submit() -> None:
        for number in range(12):
            aside.submit(partial(job, number))
            submitted.append(number)

    thread = threading.Thread(target=submit, daemon=True)
    thread.start()
    until(lambda: len(submitted) == 4 and len(running) == 2)
    thread.join(0.2)
    assert (len(submitted), len(running)) == (4, 2)
    gate.set()
    thread.join(30)
    aside.close(wait=True)
    assert sorted(running) == list(range(12))


def test_several_who_wait_for_room_all_get_it() -> None:
    aside, gate, done = Aside(1, 1, "narrow"), threading.Event(), list[int]()

    def job(number: int) -> None:
        gate.wait(30)
        done.append(number)

    aside.submit(partial(job, 5))
    threads = [threading.Thread(target=aside.submit, args=(partial(job, n),), daemon=True) for n in range(5)]
    for thread in threads:
        thread.start()
    gate.set()
    for thread in threads:
        thread.join(30)
    aside.close(wait=True)
    assert sorted(done) == list(range(6))


def test_whoever_waits_for_room_when_it_is_closed_is_told_no() -> None:
    aside, gate, answers = Aside(1, 1, "closing"), threading.Event(), list[bool]()

    def first() -> None:
        gate.wait(30)

    def submit() -> None:
        answers.append(aside.submit(lambda: None))

    aside.submit(first)
    waiting = threading.Thread(target=submit, daemon=True)
    waiting.start()
    until(lambda: aside._waiting == 1)
    aside.close(wait=False)
    waiting.join(10)
    assert answers == [False]
    gate.set()
    aside.close(wait=True)
