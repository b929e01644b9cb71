"""A handle that is given tensors of a GPU: accepted when they are copied there, sent on from host memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

import ray_sink
from ray_sink import Limits, SaveFormat, Sink, State
from ray_sink.errors import OutputsFailed, SinkError
from tests.late_streams import LateStreams


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Iterator[Sink]:
    limits = Limits(takeover_s=5, inflight_outputs=8, device_bytes=2**20, max_failures=1)
    with Sink(
        None, staging=tmp_path_factory.mktemp("staging"), save_format=SaveFormat.SAFETENSORS, limits=limits
    ) as shared:
        yield shared


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> LateStreams:
    made = LateStreams()
    monkeypatch.setattr("ray_sink.runtime.connection.Cuda", lambda: made)
    return made


def test_what_a_gpu_holds_at_the_call_is_saved_in_every_form_of_a_batch(sink: Sink, streams: LateStreams) -> None:
    pressure = streams.on_device(torch.zeros(4, 8))
    speed = streams.on_device(torch.zeros(4, 300, 300).to(torch.bfloat16))
    host = torch.zeros(4, 3)
    tickets = []
    with sink.handle() as handle:
        for step in range(3):
            streams.compute(partial(pressure.fill_, step))
            streams.compute(partial(speed.fill_, step))
            host.fill_(step)
            rows: list[dict[str, Any]] = [{"p": pressure[row], "u": speed[row, ::2]} for row in range(4)]
            tickets += handle.write_batch([f"{step}/mixed{row}" for row in range(4)], {"p": pressure, "h": host})
            tickets += handle.write_batch([f"{step}/rows{row}" for row in range(4)], rows)
            tickets += handle.write_batch([f"{step}/bare{row}" for row in range(4)], speed)
            tickets.append(handle.write(f"{step}/list", [pressure.T, host]))
        streams.compute(partial(pressure.fill_, -1))
        streams.compute(partial(speed.fill_, -1))
        host.fill_(-1)
        receipts = [ticket.result(60) for ticket in tickets]
    assert len(receipts) == 3 * 13
    for receipt in receipts:
        value: Any = ray_sink.load(receipt)
        written, _, kind = receipt.key.partition("/")
        expected = {
            "mixe": {"p": (8,), "h": (3,)},
            "rows": {"p": (8,), "u": (150, 300)},
            "bare": {"tensor": (300, 300)},
            "list": {0: (8, 4), 1: (4, 3)},
        }[kind[:4]]
        named = value if isinstance(value, dict) else dict(enumerate(value)) if kind == "list" else {"tensor": value}
        assert {name: tuple(tensor.shape) for name, tensor in named.items()} == expected
        assert all(tensor.eq(int(written)).all() for tensor in named.values())
        assert all(tensor.dtype == torch.bfloat16 for name, tensor in named.items() if name in ("u", "tensor"))
    assert 0 < streams.peak_bytes <= 2**20
    assert streams.given_bytes == 0


def test_a_copy_that_fails_is_told_by_its_ticket_and_the_handle_goes_on(sink: Sink, streams: LateStreams) -> None:
    handle = sink.handle()
    streams.failing = RuntimeError("an illegal memory access")
    lost = handle.write("lost", streams.on_device(torch.ones(1000)))
    with pytest.raises(SinkError, match=r"'lost'.*illegal memory access"):
        lost.result(60)
    streams.failing = None
    assert handle.write("found", streams.on_device(torch.ones(1000))).result(60).state is State.STAGED
    assert not handle.outstanding
    handle.close()  # one failure is allowed
    assert sink.status().failures.keys() == {"lost"}


def test_more_than_may_fail_is_raised_when_the_handle_is_flushed(sink: Sink, streams: LateStreams) -> None:
    handle = sink.handle()
    streams.failing = RuntimeError("an illegal memory access")
    handle.write_batch(["a", "b"], streams.on_device(torch.ones(2, 1000)))
    with pytest.raises(OutputsFailed, match="illegal memory access"):
        handle.flush()
    streams.failing = None
    handle.write_batch(["a", "b"], streams.on_device(torch.ones(2, 1000)))
    handle.close()


def test_without_room_on_the_device_the_producer_waits_for_the_plain_copy(sink: Sink, streams: LateStreams) -> None:
    streams.room_bytes = 100
    with sink.handle() as handle:
        receipt = handle.write("crowded", streams.on_device(torch.full((1000,), 7.0))).result(60)
    value: Any = ray_sink.load(receipt)
    assert value.eq(7).all()
    assert streams.peak_bytes == 0
