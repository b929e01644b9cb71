"""A handle from everything that Ray runs: what each kind of producer has to do so that nothing of it is lost."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from ray_sink import Sink, SinkHandle
from ray_sink.errors import RunIncomplete, SinkClosedError
from tests.fields import field
from tests.runtime.datasets import open_sink

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Iterator[Sink]:
    """One sink for all of them: each says goodbye."""
    with open_sink(tmp_path_factory.mktemp("staging")) as shared:
        yield shared
    assert all(torch.equal(_loaded(shared, key), field(int(key.rpartition("/")[2]))) for key in shared.manifest)


def _loaded(sink: Sink, key: str) -> torch.Tensor:
    value = sink.manifest.load(key)
    assert isinstance(value, torch.Tensor)
    return value


def written(sink: Sink, folder: str) -> int:
    """How many outputs of a folder there are, all of them with their receipts."""
    ref = sink._context().coordinator.receipts_of.remote([f"{folder}/{i}" for i in range(100)])
    return sum(receipt is not None for receipt in ray.get(ref))


def remote(actor: type, **options: Any) -> Any:
    return ray.remote(num_cpus=0.1, **options)(actor)


class Simulation:
    """An actor that lives longer than one call: it keeps its handle, and closes it when it is done."""

    def __init__(self, handle: SinkHandle) -> None:
        self._handle = handle

    def advance(self, steps: range) -> None:
        for step in steps:
            self._handle.write(f"actor/{step}", field(step))

    def finish(self) -> None:
        self._handle.close()


def test_an_actor_keeps_its_handle_from_call_to_call(sink: Sink) -> None:
    actor = remote(Simulation).remote(sink.handle())
    ray.get([actor.advance.remote(range(start, start + 4)) for start in (0, 4)])
    ray.get(actor.finish.remote())
    assert written(sink, "actor") == 8
    with pytest.raises(SinkClosedError, match="handle is closed"):
        ray.get(actor.advance.remote(range(1)))


class AsyncSimulation:
    """Many calls at a time share one handle; each waits for its own receipts and for no other's."""

    def __init__(self, handle: SinkHandle) -> None:
        self._handle = handle

    async def simulate(self, case: int) -> str:
        receipt = await self._handle.write(f"async/{case}", field(case))
        return receipt.key

    async def finish(self) -> None:
        self._handle.close()


def test_the_calls_of_an_async_actor_share_a_handle_and_await_their_receipts(sink: Sink) -> None:
    actor = remote(AsyncSimulation).remote(sink.handle())
    assert ray.get([actor.simulate.remote(case) for case in range(20)]) == [f"async/{case}" for case in range(20)]
    ray.get(actor.finish.remote())
    assert written(sink, "async") == 20


class ThreadedSimulation:
    def __init__(self, handle: SinkHandle) -> None:
        self._handle = handle

    def simulate(self, case: int) -> str:
        return self._handle.write(f"threads/{case}", field(case)).result(60).key

    def finish(self) -> None:
        self._handle.close()


def test_the_threads_of_an_actor_share_a_handle(sink: Sink) -> None:
    actor = remote(ThreadedSimulation, max_concurrency=4).remote(sink.handle())
    assert len(set(ray.get([actor.simulate.remote(case) for case in range(20)]))) == 20
    ray.get(actor.finish.remote())
    assert written(sink, "threads") == 20


@ray.remote(num_cpus=0.1, max_retries=2)
def dying(handle: SinkHandle, died: Path) -> None:
    import os

    with handle:
        for step in range(3):
            handle.write(f"retried/{step}", field(step))
        handle.flush()
        if not died.exists():
            died.touch()
            os._exit(1)


def test_a_task_that_died_before_its_goodbye_keeps_the_run_open_until_it_is_run_again(tmp_path: Path) -> None:
    """Its repeat is a producer of its own: what the dead one had accepted, nobody knows."""
    (staging := tmp_path / "staging").mkdir()
    first = open_sink(staging)
    ray.get(dying.remote(first.handle(), tmp_path / "died"))
    with pytest.raises(RunIncomplete, match="never closed its handle"):
        first.close()
    with open_sink(staging) as second:
        ray.get(dying.remote(second.handle(), tmp_path / "died"))
    assert sorted(second.manifest) == [f"retried/{step}" for step in range(3)]


def train(config: dict[str, Any]) -> None:
    """A worker of Ray Train's: it evaluates its share, and the ranks' outputs go to one run."""
    rank, world = ray.train.get_context().get_world_rank(), ray.train.get_context().get_world_size()
    with config["handle"] as handle:
        for case in range(rank, config["cases"], world):
            handle.write(f"train/{case}", field(case))


def test_the_workers_of_ray_train_write_through_a_handle_in_their_config(sink: Sink, tmp_path: Path) -> None:
    trainer = TorchTrainer(
        train,
        train_loop_config={"handle": sink.handle(), "cases": 7},
        scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
        run_config=RunConfig(name="sink", storage_path=str(tmp_path)),
    )
    trainer.fit()
    assert written(sink, "train") == 7


def test_threads_of_the_driver_may_each_have_a_handle(sink: Sink) -> None:
    def simulate(case: int) -> None:
        with sink.handle() as handle:
            handle.write(f"driver/{case}", field(case))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(simulate, range(8)))
    assert written(sink, "driver") == 8
