"""Streams and events of a GPU: as much of them as copying outputs needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch


class Event(Protocol):
    """A mark in a stream."""

    def synchronize(self) -> None:
        """Wait, on the host, until all that its stream was given before the mark has run.

        Raises:
            RuntimeError: some of it failed.
        """


class Stream(Protocol):
    """Runs what it is given in order: some time after the call has returned, in no order with other streams."""

    def copy(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        """Copy sources into targets, as (target, source). Whoever calls keeps their memory until it was done."""

    def mark(self) -> Event:
        """An event after what the stream was given so far."""

    def wait(self, event: Event) -> None:
        """Have the stream, not the host, wait for an event before it does what it is given from now on."""


class Accelerator(Protocol):
    """What `ray_sink.offload.Offload` asks of GPUs.

    The order of calls:

    1. In the producer, for each batch: `device_of`, `capturing`, `empty`, then `Stream.copy` and `Stream.mark` on the
       `current` stream of each device.
    2. In the Offload's thread: once `use` and `pinned`; then for each batch, on the stream `aside`, `Stream.wait`,
       `Stream.copy`, `Stream.mark`, and at last `Event.synchronize`.
    """

    def device_of(self, tensor: torch.Tensor) -> torch.device | None:
        """The GPU that a tensor is on; None if it is in host memory, or on a device that is not dealt with here."""

    def capturing(self, device: torch.device) -> bool:
        """Whether what the calling thread gives its stream is being recorded in a graph, and does not run."""

    def current(self, device: torch.device) -> Stream:
        """The stream on which the calling thread computes."""

    def aside(self, device: torch.device) -> Stream:
        """A stream for copies, the same one each time."""

    def empty(self, n_bytes: int, device: torch.device) -> torch.Tensor:
        """Memory of a GPU, uint8. When it is let go, the stream that was current here may write into it at once.

        Raises:
            torch.OutOfMemoryError: there is none.
        """

    def pinned(self, n_bytes: int) -> torch.Tensor:
        """Page-locked host memory, uint8.

        Raises:
            RuntimeError: there is none.
        """

    def use(self, device: torch.device) -> None:
        """Make `device` the calling thread's own: a thread that does not say would open the first one as well."""


class _CudaStream:
    def __init__(self, stream: torch.cuda.Stream) -> None:
        self._stream = stream

    def copy(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        with torch.cuda.stream(self._stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)

    def mark(self) -> Event:
        event = torch.cuda.Event(blocking=True)  # whoever waits sleeps, and leaves the core to the model's thread
        event.record(self._stream)
        return event

    def wait(self, event: Event) -> None:
        assert isinstance(event, torch.cuda.Event)
        self._stream.wait_event(event)


class Cuda:
    """NVIDIA's GPUs, and AMD's, by torch."""

    def __init__(self) -> None:
        self._aside: dict[torch.device, _CudaStream] = {}

    def device_of(self, tensor: torch.Tensor) -> torch.device | None:
        return tensor.device if tensor.is_cuda else None

    def capturing(self, device: torch.device) -> bool:
        with torch.cuda.device(device):
            return bool(torch.cuda.is_current_stream_capturing())

    def current(self, device: torch.device) -> Stream:
        return _CudaStream(torch.cuda.current_stream(device))

    def aside(self, device: torch.device) -> Stream:
        if device not in self._aside:
            self._aside[device] = _CudaStream(torch.cuda.Stream(device))
        return self._aside[device]

    def empty(self, n_bytes: int, device: torch.device) -> torch.Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8, device=device)

    def pinned(self, n_bytes: int) -> torch.Tensor:
        return torch.empty(n_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)

    def use(self, device: torch.device) -> None:
        torch.cuda.set_device(device)
