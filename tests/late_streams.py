"""Streams that run as late as they may, and in the worst order: what GPUs do once in a thousand times, each time."""

from __future__ import annotations

import random
import threading
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ray_sink.accelerator import Event, Stream

Operation = Callable[[], object]
_POISON = 0xAA


class LateEvent:
    def __init__(self, streams: LateStreams) -> None:
        self._streams = streams
        self.fired = False

    def synchronize(self) -> None:
        self._streams.run_until(self)


@dataclass(eq=False)
class LateStream:
    """What it was given; an event in it is waited for."""

    streams: LateStreams
    device: torch.device
    operations: deque[Operation | LateEvent] = field(default_factory=deque)

    def copy(self, pairs: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> None:
        for target, source in pairs:
            assert target.shape == source.shape
            assert target.dtype == source.dtype
            assert {self.streams.device_of(tensor) for tensor in (target, source)} <= {self.device, None}
            self.give(self.streams.copying(target, source))

    def give(self, operation: Operation) -> None:
        with self.streams.lock:
            self.operations.append(operation)

    def mark(self) -> Event:
        event = LateEvent(self.streams)
        self.give(lambda: setattr(event, "fired", True))
        return event

    def wait(self, event: Event) -> None:
        assert isinstance(event, LateEvent)
        with self.streams.lock:
            self.operations.append(event)


class LateStreams:
    """GPUs in ordinary memory: an `Accelerator` whose streams move only when an event is synchronized.

    Of the streams that can move the one that was made last moves first, copies aside before the model's; with a
    `seed`, any. Memory that is let go is overwritten at once, as the stream that gets it next would.

    Attributes:
        failing: what the next copies aside raise when they are waited for.
        room_bytes: memory of each device that `empty` may still give.
        peak_bytes: most memory that was given at one time.
    """

    def __init__(self, seed: int | None = None, room_bytes: int = 2**24) -> None:
        self.lock = threading.RLock()
        self.room_bytes = room_bytes
        self.given_bytes = self.peak_bytes = 0
        self.pinned_bytes = 0
        self.in_capture = False
        self.failing: Exception | None = None
        self._chance = None if seed is None else random.Random(seed)
        self._current: dict[torch.device, LateStream] = {}
        self._aside: dict[torch.device, LateStream] = {}
        self._memories: dict[int, tuple[torch.device, torch.Tensor]] = {}
        self._order: list[LateStream] = []

    # -- for tests ---------------------------------------------------------------------------------------------------

    def on_device(self, tensor: torch.Tensor, device: str = "cuda:0") -> torch.Tensor:
        """A copy of `tensor` on a device; views of it are there, too."""
        there = tensor.clone(memory_format=torch.preserve_format)
        self._keep(there, torch.device(device))
        return there

    def compute(self, operation: Operation, device: str = "cuda:0") -> None:
        """Give the model's stream something to do."""
        self._stream(self._current, torch.device(device)).give(operation)

    def _keep(self, tensor: torch.Tensor, device: torch.device) -> None:
        self._memories[tensor.untyped_storage().data_ptr()] = (device, tensor.detach())

    # -- running -----------------------------------------------------------------------------------------------------

    def run_until(self, event: LateEvent) -> None:
        with self.lock:
            while not event.fired:
                able = [stream for stream in self._order if self._next(stream) is not None]
                assert able, "a stream waits for what will never be"
                stream = able[-1] if self._chance is None else self._chance.choice(able)
                operation = stream.operations.popleft()
                assert not isinstance(operation, LateEvent)
                operation()
            if self.failing is not None:
                raise self.failing

    def _next(self, stream: LateStream) -> Operation | None:
        while stream.operations:
            first = stream.operations[0]
            if not isinstance(first, LateEvent):
                return first
            if not first.fired:
                return None
            stream.operations.popleft()
        return None

    def copying(self, target: torch.Tensor, source: torch.Tensor) -> Operation:
        """Copy by address: what an operation still has to do keeps no memory from being let go."""
        to, of = self._address(target), self._address(source)

        def operation() -> None:
            to().copy_(of())

        return operation

    def _address(self, tensor: torch.Tensor) -> Callable[[], torch.Tensor]:
        held = self._memories.get(tensor.untyped_storage().data_ptr())
        if held is None or tensor.numel() == 0 or tensor.is_conj():
            return lambda: tensor
        whole = held[1]
        size, stride, dtype, offset = tensor.shape, tensor.stride(), tensor.dtype, tensor.storage_offset()
        flat = torch.empty(0, dtype=dtype).set_(whole.untyped_storage())
        return lambda: flat.as_strided(size, stride, offset)

    # -- an Accelerator ----------------------------------------------------------------------------------------------

    def device_of(self, tensor: torch.Tensor) -> torch.device | None:
        held = self._memories.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None
        return None if held is None else held[0]

    def capturing(self, device: torch.device) -> bool:
        return self.in_capture

    def current(self, device: torch.device) -> Stream:
        return self._stream(self._current, device)

    def aside(self, device: torch.device) -> Stream:
        return self._stream(self._aside, device)

    def _stream(self, streams: dict[torch.device, LateStream], device: torch.device) -> LateStream:
        with self.lock:
            if device not in streams:
                streams[device] = LateStream(self, device)
                self._order = [*self._current.values(), *self._aside.values()]
            return streams[device]

    def empty(self, n_bytes: int, device: torch.device) -> torch.Tensor:
        with self.lock:
            if self.given_bytes + n_bytes > self.room_bytes:
                raise torch.OutOfMemoryError(f"no {n_bytes} bytes")
            self.given_bytes += n_bytes
            self.peak_bytes = max(self.peak_bytes, self.given_bytes)
            whole = torch.full((n_bytes,), _POISON, dtype=torch.uint8)
            self._keep(whole, device)
            given = torch.empty(0, dtype=torch.uint8).set_(whole.untyped_storage())
            given = given.as_strided((n_bytes,), (1,))
            weakref.finalize(given, self._let_go, whole)
            return given

    def _let_go(self, whole: torch.Tensor) -> None:
        with self.lock:
            self.given_bytes -= len(whole)
            whole.fill_(_POISON)

    def pinned(self, n_bytes: int) -> torch.Tensor:
        self.pinned_bytes += n_bytes
        return torch.full((n_bytes,), _POISON, dtype=torch.uint8)

    def use(self, device: torch.device) -> None:
        """There is one context."""
