"""From the GPU, on streams that run late and in the worst order."""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import pytest
import torch

from ray_sink.errors import UnsupportedValueError
from ray_sink.offload import Offload
from tests.late_streams import LateStreams
from tests.waiting import until

KiB = 1024
Delivered = list[torch.Tensor] | BaseException


class Road:
    """An Offload with what came out of it, in order."""

    def __init__(self, streams: LateStreams, limit_bytes: int) -> None:
        self.streams = streams
        self.offload = Offload(limit_bytes, streams)
        self.came: queue.SimpleQueue[Delivered] = queue.SimpleQueue()
        self.held = threading.Event()
        self.held.set()

    def write(self, *tensors: torch.Tensor) -> None:
        self.offload.bring(self.offload.take(tensors), deliver=self._deliver, failed=self.came.put)

    def write_often(self, tensor: torch.Tensor, times: int) -> None:
        for _ in range(times):
            self.write(tensor)

    def _deliver(self, tensors: Sequence[torch.Tensor]) -> None:
        assert self.held.wait(30)
        self.came.put([tensor.clone() for tensor in tensors])

    def next(self) -> list[torch.Tensor]:
        found = self.came.get(timeout=30)
        if isinstance(found, BaseException):
            raise found
        return found


@contextmanager
def road(streams: LateStreams, limit_bytes: int = 64 * KiB) -> Iterator[Road]:
    threads = threading.active_count()
    made = Road(streams, limit_bytes)
    try:
        yield made
    finally:
        made.held.set()
        made.offload.close()
        until(lambda: threading.active_count() <= threads)
    assert streams.given_bytes == 0


@pytest.mark.parametrize("seed", [None, *range(8)])
def test_a_buffer_may_be_overwritten_when_write_returns(seed: int | None) -> None:
    """As a replayed CUDA graph does: the same memory again and again, given to the same stream."""
    streams = LateStreams(seed)
    with road(streams, 12 * KiB) as way:
        buffer = streams.on_device(torch.zeros(1024))
        for number in range(40):
            streams.compute(partial(buffer.fill_, number))
            way.write(buffer)
        streams.compute(lambda: buffer.fill_(-1))
        for number in range(40):
            assert way.next()[0].eq(number).all()


def test_pinned_memory_is_not_used_again_before_its_batch_was_delivered() -> None:
    streams = LateStreams()
    with road(streams, 12 * KiB) as way:
        way.held.clear()
        for number in range(3):
            way.write(streams.on_device(torch.full((1024,), float(number))[:1000]))
        until(lambda: streams.given_bytes == 0)  # all three are in host memory, and delivered when `held` is set
        way.write(streams.on_device(torch.full((1024,), 3.0)))
        way.held.set()
        for number in range(4):
            assert way.next()[0].eq(number).all()
    assert streams.pinned_bytes == 12 * KiB


DTYPES = [
    *(torch.bool, torch.uint8, torch.int16, torch.uint16, torch.int32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.float32, torch.float64, torch.complex64, torch.complex128),
]


def test_every_dtype_and_layout_comes_as_it_shows() -> None:
    streams = LateStreams()
    odd = []
    for dtype in DTYPES:
        base = (torch.rand(4, 6) * 100).to(dtype)
        there = streams.on_device(base)
        for view in (there, there.T, there[:, ::2], there[1], there[2, 3], there[:1].expand(3, 6), there[:0]):
            odd.append(view)
            if dtype.is_complex:
                odd += [view.conj(), view.imag]
    nan = streams.on_device(torch.tensor([0x7FC00001, 0x7F800001], dtype=torch.int32).view(torch.float32))
    odd += [nan, streams.on_device(torch.rand(2, 3, requires_grad=True)).requires_grad_()]
    with torch.inference_mode():
        odd.append(streams.on_device(torch.rand(5)))
    with road(streams, 2**20) as way:
        way.write(*odd)
        for tensor, host in zip(odd, way.next(), strict=True):
            assert (host.dtype, host.shape) == (tensor.dtype, tensor.shape)
            assert host.is_contiguous()
            assert bits(host) == bits(tensor)


def bits(tensor: torch.Tensor) -> bytes:
    plain = tensor.detach().resolve_conj().resolve_neg().clone(memory_format=torch.contiguous_format)
    return bytes(plain.reshape(-1).view(torch.uint8).tolist())


@pytest.mark.parametrize("seed", [None, 1, 2])
def test_devices_and_host_memory_mix_in_a_batch(seed: int | None) -> None:
    streams = LateStreams(seed)
    with road(streams) as way:
        one, other = (streams.on_device(torch.zeros(100), device) for device in ("cuda:0", "cuda:1"))
        host = torch.zeros(3, 2).T
        for number in range(20):
            streams.compute(partial(one.fill_, number), "cuda:0")
            streams.compute(partial(other.fill_, -number), "cuda:1")
            host.fill_(number)
            way.write(host, other, one[:50])
        host.fill_(-1)
        for number in range(20):
            first, second, third = way.next()
            assert first.eq(number).all()
            assert second.eq(-number).all()
            assert third.eq(number).all()
            assert third.shape == (50,)


def test_memory_on_the_device_is_bounded_and_the_producer_that_waits_is_counted() -> None:
    streams = LateStreams()
    with road(streams, 8 * KiB) as way:
        way.held.clear()
        field = streams.on_device(torch.zeros(1024))
        writer = threading.Thread(target=way.write_often, args=(field, 6))
        writer.start()
        until(lambda: streams.given_bytes == 8 * KiB)  # two in pinned memory, two on the device, the fifth waits
        assert writer.is_alive()
        assert way.came.empty()
        way.held.set()
        writer.join(30)
        for _ in range(6):
            way.next()
        assert streams.peak_bytes == 8 * KiB
        assert way.offload.waited_s > 0


def test_device_memory_is_free_before_the_batch_was_delivered() -> None:
    streams = LateStreams()
    with road(streams, 8 * KiB) as way:
        way.held.clear()
        way.write(streams.on_device(torch.ones(1024)))
        way.write(streams.on_device(torch.ones(1024)))
        until(lambda: streams.given_bytes == 0)
        assert way.came.empty()


def test_a_batch_above_the_limit_goes_alone() -> None:
    streams = LateStreams()
    with road(streams, 4 * KiB) as way:
        for number, size in enumerate((100, 5000, 10, 9000, 9000)):
            way.write(streams.on_device(torch.full((size,), float(number))))
        for number, size in enumerate((100, 5000, 10, 9000, 9000)):
            (found,) = way.next()
            assert found.shape == (size,)
            assert found.eq(number).all()
    assert streams.pinned_bytes == 4 * KiB
    assert streams.peak_bytes <= 9000 * 4 + 256


def test_a_copy_that_fails_fails_its_batch_alone() -> None:
    streams = LateStreams()
    with road(streams) as way:
        way.write(streams.on_device(torch.ones(8)))
        way.next()
        streams.failing = RuntimeError("an illegal memory access")
        way.write(streams.on_device(torch.ones(8)))
        with pytest.raises(RuntimeError, match="illegal memory access"):
            way.next()
        streams.failing = None
        for number in range(100):  # what failed has given back all that it held
            way.write(streams.on_device(torch.full((1024,), float(number))))
            assert way.next()[0].eq(number).all()


def test_what_delivery_raises_is_told() -> None:
    streams = LateStreams()
    told: queue.SimpleQueue[BaseException] = queue.SimpleQueue()

    def refuse(tensors: Sequence[torch.Tensor]) -> None:
        raise ValueError("no credit")

    with road(streams) as way:
        way.offload.bring(way.offload.take([streams.on_device(torch.ones(8))]), deliver=refuse, failed=told.put)
        assert "no credit" in str(told.get(timeout=30))
        way.write(streams.on_device(torch.ones(8)))
        way.next()


def test_without_room_on_the_device_nothing_is_taken() -> None:
    streams = LateStreams(room_bytes=6 * KiB)
    with road(streams) as way:
        first, second = (streams.on_device(torch.ones(1024), f"cuda:{number}") for number in range(2))
        with pytest.raises(torch.OutOfMemoryError):
            way.offload.take([first, second])
        assert streams.given_bytes == 0
        way.write(first)
        way.next()


def test_nothing_can_be_written_while_a_graph_is_captured() -> None:
    streams = LateStreams()
    with road(streams) as way:
        streams.in_capture = True
        with pytest.raises(UnsupportedValueError, match=r"after graph\.replay"):
            way.offload.take([streams.on_device(torch.ones(8))])


def test_neither_it_nor_its_benchmark_needs_ray() -> None:
    lacking = "import sys; sys.modules.update(dict.fromkeys(['ray', 'pyarrow', 'obstore', 'awscrt', 's3fs'])); "
    subprocess.run([sys.executable, "-c", f"{lacking}import benchmarks.gpu_overlap"], check=True, timeout=120)
