"""What Ray Data 2.60 does to async models, and what the sink does about it."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext

from ray_sink import Sink
from ray_sink.errors import RunIncomplete
from tests.runtime.conftest import pids_of
from tests.runtime.datasets import cases, doubling, open_sink, within
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Iterator[Sink]:
    sink = open_sink(tmp_path_factory.mktemp("staging"))
    yield sink
    with contextlib.suppress(RunIncomplete):
        sink.close()


def test_an_error_in_the_middle_of_a_block_before_the_model_is_raised_and_hangs_nobody(sink: Sink) -> None:
    """Fused with the model it would hang for ever: the executor of async functions fails its own assertion."""

    def upstream(given: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for start in range(0, 6, 2):
            yield {"id": given["id"][start : start + 2]}
        raise ZeroDivisionError("in the middle")

    context = DataContext.get_current()
    usual = context.target_max_block_size
    context.target_max_block_size = 16  # an output of its own for every two rows
    try:
        ds = ray.data.from_items([{"id": i} for i in range(8)], override_num_blocks=1).map_batches(upstream)
        with pytest.raises(Exception, match="in the middle"):
            within(90, lambda: sink.run(ds, doubling(), key="middle/{id}", batch_size=2, concurrency=1))
    finally:
        context.target_max_block_size = usual


def meeting(folder: Path, actors: int) -> type:
    """A model whose calls wait until so many of its actors have been called."""

    class Meeting:
        def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
            import os
            import time

            (folder / str(os.getpid())).touch()
            deadline = time.monotonic() + 120
            while len(list(folder.iterdir())) < actors:
                assert time.monotonic() < deadline, "one actor has all the blocks, and the others none"
                time.sleep(0.05)
            return {**given, "actor": [os.getpid()] * len(given["id"]), "p": np.ones((len(given["id"]), 3))}

    return Meeting


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "blocks"),
    [
        ({"concurrency": 2}, 8),
        ({"concurrency": (1, 2)}, 16),
    ],
    ids=["fixed", "growing"],
)
def test_no_actor_takes_all_blocks_while_another_starts(
    sink: Sink, tmp_path: Path, arguments: dict[str, Any], blocks: int, request: pytest.FixtureRequest
) -> None:
    name = str(abs(hash(request.node.name)))
    receipts = within(
        170,
        lambda: sink.run(cases(blocks, blocks), meeting(tmp_path, 2), key=f"{name}/{{id}}", num_cpus=0.5, **arguments),
    )
    share = Counter(row["actor"] for row in receipts.take_all())
    assert len(share) == 2
    assert sum(share.values()) == blocks


def solitary(kind: str) -> Any:
    """A model that fails when two of its calls run at a time, or on two threads."""
    import threading

    class Solitary:
        def __init__(self) -> None:
            self.home = threading.get_ident()
            self.running = 0

        def work(self, given: dict[str, Any]) -> dict[str, Any]:
            import time

            self.running += 1
            assert self.running == 1, "two calls at a time"
            assert threading.get_ident() == self.home, "another thread"
            time.sleep(0.05)
            self.running -= 1
            return {**given, "p": np.ones((len(given["id"]), 3))}

    class Generator(Solitary):
        def __call__(self, given: dict[str, Any]) -> Iterator[dict[str, Any]]:
            for i in given["id"]:
                yield self.work({"id": np.array([i])})

    class AsyncGenerator(Solitary):
        async def __call__(self, given: dict[str, Any]) -> Any:
            for i in given["id"]:
                yield self.work({"id": np.array([i])})

    return {"generator": Generator, "async generator": AsyncGenerator}[kind]


@pytest.mark.parametrize("kind", ["generator", "async generator"])
def test_a_model_lives_on_one_thread_whatever_it_is(sink: Sink, kind: str) -> None:
    receipts = sink.run(cases(24, 12), solitary(kind), key=f"{kind}/{{id}}", concurrency=1, num_cpus=0.5)
    assert receipts.count() == 24


def test_an_actor_that_dies_is_replaced_and_its_batches_done_again(sink: Sink, tmp_path: Path) -> None:
    died = tmp_path / "died"

    class Mortal:
        def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
            import os

            if 9 in given["id"] and not died.exists():
                died.touch()
                os._exit(1)
            return {**given, "p": np.ones((len(given["id"]), 3))}

    receipts = sink.run(cases(20, 10), Mortal, key="mortal/{id}", concurrency=1, num_cpus=0.5)
    assert died.exists()
    assert sorted(row["id"] for row in receipts.take_all()) == list(range(20))


def test_the_model_is_called_while_no_receipt_comes(tmp_path: Path) -> None:
    """The calls that wait for receipts take their turns meanwhile: one waits, and the model has the next batch."""
    called, go, staging = tmp_path / "called", tmp_path / "go", tmp_path / "staging"
    called.mkdir()
    staging.mkdir()

    def model(given: dict[str, Any]) -> dict[str, Any]:
        import time

        (id_,) = given["id"]  # a call for each row
        (called / str(id_)).touch()
        while len(list(called.iterdir())) > 1 and not go.exists():
            time.sleep(0.02)
        return {**given, "p": np.ones((1, 8))}

    others = set(pids_of("Coordinator"))
    with open_sink(staging) as sink, ThreadPoolExecutor(1) as thread:
        (coordinator,) = set(pids_of("Coordinator")) - others
        receipts = thread.submit(
            sink.run, cases(4, 4), model, key="waiting/{id}", batch_size=1, concurrency=1, num_cpus=0.5
        )
        until(lambda: len(list(called.iterdir())) == 2 and sink.status().decided == 1, deadline_s=60)
        os.kill(coordinator, signal.SIGSTOP)  # nothing is decided, so there are no receipts
        try:
            go.touch()
            until(lambda: len(list(called.iterdir())) == 4, deadline_s=60)
            assert not receipts.done()
        finally:
            os.kill(coordinator, signal.SIGCONT)
        assert receipts.result().count() == 4


def test_two_stages_of_actors_may_have_all_cpus_between_them(sink: Sink, tmp_path: Path) -> None:
    """What the sink puts between them must not wait for a CPU that they never give back.

    The first stage keeps its CPUs until the second has had a row, as one does that is held back by a full object store.
    """
    arrived = tmp_path / "arrived"

    class Encoder:
        def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
            import time

            deadline = time.monotonic() + 60
            while max(given["id"]) >= 8 and not arrived.exists():
                assert time.monotonic() < deadline, "no row gets from one stage to the other"
                time.sleep(0.05)
            return {**given, "latent": np.ones((len(given["id"]), 4)) * given["id"][:, None]}

    class Decoder:
        def __call__(self, given: dict[str, Any]) -> dict[str, Any]:
            arrived.touch()
            return {"id": given["id"], "p": given["latent"] * 2}

    half = ActorPoolStrategy(size=2)
    encoded = cases(16, 8).materialize().map_batches(Encoder, compute=half, num_cpus=1)
    receipts = within(170, lambda: sink.run(encoded, Decoder, key="stages/{id}", compute=half, num_cpus=1))
    assert sorted(row["id"] for row in receipts.take_all()) == list(range(16))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        pytest.param({"num_cpus": 2}, marks=pytest.mark.slow),
        pytest.param({"num_cpus": 4}, marks=pytest.mark.slow),
    ],
    ids=["four of one", "four of two", "four of four"],
)
def test_a_pool_that_takes_all_cpus_leaves_one_to_what_reads_its_rows(sink: Sink, arguments: dict[str, Any]) -> None:
    """Without a sink Ray Data fuses the two, and the actors read for themselves."""
    key = f"all {arguments.get('num_cpus', 1)}/{{id}}"
    made = within(240, lambda: sink.run(cases(16, 8), doubling(), key=key, concurrency=4, **arguments))
    assert sorted(row["id"] for row in made.take_all()) == list(range(16))


@ray.remote
class Holder:
    """Has what it was started with."""

    def ready(self) -> None:
        pass


def test_a_pool_leaves_one_to_what_reads_its_rows_of_what_others_have_left(sink: Sink) -> None:
    holder = Holder.options(num_cpus=1).remote()  # type: ignore[attr-defined]
    ray.get(holder.ready.remote())
    try:
        made = within(240, lambda: sink.run(cases(16, 8), doubling(), key="beside/{id}", concurrency=4))
        assert sorted(row["id"] for row in made.take_all()) == list(range(16))
    finally:
        ray.kill(holder)


def test_actors_that_only_the_garbage_collector_can_end_are_gone_when_a_dataset_begins(sink: Sink) -> None:
    """As an earlier dataset leaves them: it is a cycle of references, and Python may not look for those for hours."""
    made = sink.map_batches(cases(2, 1), doubling(), key="garbage/{id}", concurrency=1, num_cpus=0.5)
    gc.disable()
    try:
        cycle: list[Any] = [Holder.options(num_cpus=0).remote()]  # type: ignore[attr-defined]
        ray.get(cycle[0].ready.remote())
        name = cycle[0]._actor_id.hex()
        cycle.append(cycle)
        del cycle
        assert len(within(120, made.take_all)) == 2
        until(lambda: ray._private.state.actors(name)["State"] == "DEAD", deadline_s=20)
    finally:
        gc.enable()
