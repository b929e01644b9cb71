"""Outputs that nobody else holds are copied beside the model, all others before it is called again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import ray
import torch

import ray_sink
from ray_sink import Sink
from ray_sink.errors import OutputsFailed, SinkError
from ray_sink.runtime import connection
from ray_sink.runtime.credits import LEASE_S
from tests.fields import field
from tests.runtime.datasets import cases, open_sink
from tests.waiting import until

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

FLOATS = 2**21  # 8 MiB: to copy them takes longer than to be called again


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Iterator[Sink]:
    with open_sink(tmp_path_factory.mktemp("staging")) as shared:
        yield shared


def overwriting(kind: str, floats: int) -> type:
    """A model that shows memory of its own, each time the same, in one way or another."""

    class Overwriting:
        def __init__(self) -> None:
            self.tensor = torch.zeros(1, floats)
            self.array = np.zeros((1, floats), np.float32)
            self.batch: dict[str, Any] = {}

        def __call__(self, batch: dict[str, Any]) -> Any:
            number = int(batch["id"][0])
            # what was handed over before is spoilt first
            self.tensor.fill_(-1)
            self.array.fill(-1)
            for column in self.batch.values():
                column[...] = -1
            self.tensor.fill_(number)
            self.array.fill(number)
            if kind == "mapping":
                self.batch = {"id": batch["id"].copy(), "p": np.full((1, floats), number, np.float32)}
                return self.batch
            shown: Any = {
                "tensor": self.tensor,
                "its array": self.tensor.numpy(),
                "array": self.array,
                "view": self.array[:, : floats - 1],
                "its tensor": torch.from_numpy(self.array),
            }[kind]
            return {"id": batch["id"], "p": shown}

    return Overwriting


@pytest.mark.parametrize("kind", ["tensor", "its array", "array", "view", "its tensor", "mapping"])
def test_memory_that_a_model_uses_again_is_saved_as_it_was(sink: Sink, kind: str) -> None:
    folder = kind.replace(" ", "-")
    model = overwriting(kind, FLOATS)
    receipts = sink.run(cases(12, blocks=1), model, key=folder + "/{id}", columns="p", batch_size=1, concurrency=1)
    for row in receipts.take_all():
        found = ray_sink.load(row["uri"])
        assert isinstance(found, torch.Tensor)
        assert (found == row["id"]).all(), f"{folder}/{row['id']} holds {found.unique()}"


def test_a_producer_whose_dataset_has_ended_holds_no_room(sink: Sink) -> None:
    """Its actor says no goodbye, and others would have to wait until it has been silent for long enough."""
    sink.run(cases(4, blocks=1), overwriting("array", FLOATS), key="ended/{id}", columns="p", batch_size=1)
    coordinator = sink._context().coordinator
    until(lambda: ray.get(coordinator.measured.remote()).in_flight_bytes == 0, deadline_s=LEASE_S / 2)


class Gate:
    """Keeps what was given away from being copied until it is opened."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.threads: list[str] = []
        self._copy = connection._payload

    def payload(self, packed: Any) -> Any:
        self.threads.append(threading.current_thread().name)
        assert self.open.wait(60)
        return self._copy(packed)


def test_what_is_given_away_is_copied_while_the_caller_goes_on(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    monkeypatch.setattr(connection, "_payload", gate.payload)
    with sink.handle() as handle:
        tickets = [
            ticket
            for number in range(2)
            for ticket in handle.write_batch([f"away/{number}"], torch.full((1, FLOATS), float(number)), copy=False)
        ]
        assert not any(ticket.done() for ticket in tickets)
        third = threading.Thread(target=handle.write_batch, args=(["away/2"], torch.full((1, FLOATS), 2.0)))
        third.daemon = True
        gate.open.set()
        third.start()
        third.join(60)
        handle.flush()
        assert [ticket.result(0).key for ticket in tickets] == ["away/0", "away/1"]
    assert gate.threads[0] == "ray_sink-copy"


def test_no_more_than_two_batches_wait_to_be_copied(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    monkeypatch.setattr(connection, "_payload", gate.payload)
    with sink.handle() as handle:

        def write() -> None:
            for number in range(3):
                handle.write_batch([f"bound/{number}"], torch.full((1, FLOATS), float(number)), copy=False)

        writing = threading.Thread(target=write, daemon=True)
        writing.start()
        writing.join(1)
        assert writing.is_alive()
        assert handle.outstanding >= 2
        gate.open.set()
        writing.join(60)
        assert not writing.is_alive()


def test_a_copy_that_fails_is_the_outputs_failure_and_gives_its_room_back(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = connection._payload

    def failing(packed: Any) -> Any:
        monkeypatch.setattr(connection, "_payload", copy)
        raise MemoryError("no room for a copy")

    monkeypatch.setattr(connection, "_payload", failing)
    with sink.handle() as handle:
        (ticket,) = handle.write_batch(["failing/0"], torch.zeros(1, FLOATS), copy=False)
        with pytest.raises(SinkError, match=r"failing/0.*no room for a copy"):
            ticket.result(60)
        with pytest.raises(OutputsFailed, match="failing/0"):
            handle.flush()
        assert handle.outstanding == 0
        (again,) = handle.write_batch(["failing/0"], torch.ones(1, FLOATS), copy=False)
        assert again.result(60).key == "failing/0"


def test_small_outputs_travel_by_value_in_either_case(sink: Sink) -> None:
    with sink.handle() as handle:
        (ticket,) = handle.write_batch(["small/3"], [field(3)], copy=False)
        assert ticket.result(60).key == "small/3"
