"""From the GPU to host memory, beside the model: neither its thread nor its stream waits for a copy.

A batch is copied on its device by the stream that the producer computes on, so that whatever the producer gives that
stream next may overwrite the originals, a replayed CUDA graph included. From there a stream aside brings it into
page-locked memory, and it is handed on from a thread. Both memories are bounded, and the first is freed as soon as the
second has the bytes. Nothing synchronizes a device or a stream; what is waited for is an event, off the model's thread.

A graph that is captured while copies are under way has to be captured with ``capture_error_mode="thread_local"``: in
the default mode CUDA refuses what other threads do meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

import torch

from ray_sink.accelerator import Accelerator, Event
from ray_sink.budget import ByteBudget
from ray_sink.errors import UnsupportedValueError
from ray_sink.events import ProducerWaited, emit
from ray_sink.ring import Ring, aligned


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies among the bytes that a batch has in host memory."""

    begin: int
    end: int
    dtype: torch.dtype
    shape: torch.Size

    def show(self, memory: torch.Tensor) -> torch.Tensor:
        return memory[self.begin : self.end].view(self.dtype).view(self.shape)


@dataclass(slots=True)
class _Segment:
    """The tensors that a batch has on one device."""

    device: torch.device
    indices: list[int] = field(default_factory=list)
    n_bytes: int = 0
    begin: int = 0
    copy: torch.Tensor | None = None
    ready: Event | None = None


@dataclass(slots=True, eq=False)
class Taken:
    """A batch whose tensors may be overwritten.

    Attributes:
        room: what it holds of the budget.
        segments: its tensors, copied on their devices.
        own: for each tensor where its bytes will be in host memory, or, if it was there already, a copy.
        n_bytes: bytes that the devices' tensors take in host memory.
    """

    room: ExitStack
    segments: list[_Segment]
    own: list[_Place | torch.Tensor]
    n_bytes: int
    deliver: Callable[[Sequence[torch.Tensor]], None] | None = None
    failed: Callable[[BaseException], None] | None = None
    memory: torch.Tensor | None = None
    arrived: list[Event] = field(default_factory=list)
    error: BaseException | None = None


class Offload:
    """Takes batches of tensors from GPUs, one after the other. Safe under threads.

    Args:
        limit_bytes: copies on the devices, and again as much page-locked memory. A batch above it goes alone, through
            ordinary memory, which is slower.
        accelerator: the devices.
        clock: seconds.
    """

    def __init__(
        self, limit_bytes: int, accelerator: Accelerator, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._accelerator = accelerator
        self._clock = clock
        self._limit_bytes = limit_bytes
        self._budget = ByteBudget(limit_bytes)
        self._changed = threading.Condition()
        self._queued: deque[Taken] = deque()
        self._moving: deque[Taken] = deque()
        self._landed: deque[Taken] = deque()
        self._under_way = 0
        self._ring: Ring | None = None
        self._started = False
        self._closed = False
        self._waited_s = 0.0

    @property
    def waited_s(self) -> float:
        """Seconds that producers have waited for room on a device."""
        with self._changed:
            return self._waited_s

    def takes(self, tensors: Sequence[torch.Tensor]) -> bool:
        """Whether any of them is on a GPU."""
        return any(self._accelerator.device_of(tensor) is not None for tensor in tensors)

    def take(self, tensors: Sequence[torch.Tensor]) -> Taken:
        """Copy tensors where they are. Waits while copies of others leave no room, and is counted.

        Their values are those that the calling thread's current stream has come to when it gets here.

        Returns:
            What `bring` needs; every batch that was taken must be brought.

        Raises:
            UnsupportedValueError: a CUDA graph is being captured: nothing runs that could be saved.
            torch.OutOfMemoryError: a device has no room for the copy; nothing was taken.
        """
        segments, own, host_bytes = self._laid_out(tensors)
        for segment in segments:
            if self._accelerator.capturing(segment.device):
                raise UnsupportedValueError(
                    "outputs cannot be written while a CUDA graph is captured: nothing is computed then. Write them"
                    " after graph.replay()"
                )
        n_bytes = sum(segment.n_bytes for segment in segments)
        with ExitStack() as stack:
            began_s = self._clock()
            stack.enter_context(self._budget.take(n_bytes + host_bytes))
            waited_s = self._clock() - began_s
            with self._changed:
                self._waited_s += waited_s
            for index, tensor in enumerate(tensors):
                if not isinstance(own[index], _Place):
                    own[index] = tensor.detach().clone(memory_format=torch.contiguous_format)
            for segment in segments:
                self._copy(segment, tensors, own)
            return Taken(stack.pop_all(), segments, own, n_bytes)

    def _laid_out(self, tensors: Sequence[torch.Tensor]) -> tuple[list[_Segment], list[_Place | torch.Tensor], int]:
        segments: dict[torch.device, _Segment] = {}
        own: list[_Place | torch.Tensor] = list(tensors)
        host_bytes = 0
        for index, tensor in enumerate(tensors):
            device = self._accelerator.device_of(tensor)
            if device is None:
                host_bytes += tensor.numel() * tensor.element_size()
            else:
                segments.setdefault(device, _Segment(device)).indices.append(index)
        begin = 0
        for segment in segments.values():
            segment.begin = begin
            for index in segment.indices:
                tensor = tensors[index]
                end = begin + tensor.numel() * tensor.element_size()
                own[index] = _Place(begin, end, tensor.dtype, tensor.shape)
                begin = aligned(end)
            segment.n_bytes = begin - segment.begin
        return list(segments.values()), own, host_bytes

    def _copy(self, segment: _Segment, tensors: Sequence[torch.Tensor], own: Sequence[_Place | torch.Tensor]) -> None:
        """One block a device, so that one copy brings all of it to the host."""
        segment.copy = copy = self._accelerator.empty(segment.n_bytes, segment.device)
        pairs = []
        for index in segment.indices:
            place, tensor = own[index], tensors[index].detach()
            assert isinstance(place, _Place)
            target = copy[place.begin - segment.begin : place.end - segment.begin]
            pairs.append((target.view(place.dtype).view(place.shape), tensor))
        stream = self._accelerator.current(segment.device)
        stream.copy(pairs)
        segment.ready = stream.mark()

    def bring(
        self,
        taken: Taken,
        *,
        deliver: Callable[[Sequence[torch.Tensor]], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Have a batch brought to host memory. Returns at once; batches are delivered in the order of these calls.

        Args:
            taken: what `take` returned.
            deliver: called on a thread of ours with the tensors in host memory, in their order; the memory is used
                again when it returns.
            failed: called instead, or after it, with what went wrong. Does not raise.
        """
        taken.deliver, taken.failed = deliver, failed
        with self._changed:
            self._queued.append(taken)
            self._under_way += 1
            self._changed.notify_all()
            if not self._started:
                self._started = True
                for name, work in (("ray_sink-from-gpu", self._move), ("ray_sink-deliver", self._deliver)):
                    threading.Thread(target=work, name=name, daemon=True).start()

    def close(self) -> None:
        """Let the threads end after what is under way. Nothing may be taken any more."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            waited_s = self._waited_s
            self._changed.notify_all()
        if self._started:
            emit(ProducerWaited("device", waited_s))

    # -- the thread that brings --------------------------------------------------------------------------------------

    def _move(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._startable() or self._moving or self._ended())
                if self._ended():
                    return
            self._start_what_fits()
            with self._changed:
                taken = self._moving[0] if self._moving else None
            if taken is not None:
                self._arrive(taken)
                with self._changed:
                    self._landed.append(self._moving.popleft())
                    self._changed.notify_all()

    def _startable(self) -> bool:
        return bool(self._queued) and (self._ring is None or self._ring.fits(self._queued[0].n_bytes))

    def _ended(self) -> bool:
        return self._closed and not self._under_way

    def _start_what_fits(self) -> None:
        """Several at a time: the copy engine finds the next one when it is done with one."""
        while True:
            with self._changed:
                if not self._startable():
                    return
                taken = self._queued.popleft()
            try:
                if self._ring is None:
                    self._accelerator.use(taken.segments[0].device)
                    self._ring = Ring(self._accelerator.pinned(self._limit_bytes))
                with self._changed:
                    taken.memory = self._ring.take(taken.n_bytes)
                self._start(taken)
            except BaseException as error:  # noqa: BLE001 -- told to whoever waits for the batch
                taken.error = error
            with self._changed:
                self._moving.append(taken)

    def _start(self, taken: Taken) -> None:
        assert taken.memory is not None
        for segment in taken.segments:
            assert segment.copy is not None
            assert segment.ready is not None
            stream = self._accelerator.aside(segment.device)
            stream.wait(segment.ready)
            stream.copy([(taken.memory[segment.begin : segment.begin + segment.n_bytes], segment.copy)])
            taken.arrived.append(stream.mark())

    def _arrive(self, taken: Taken) -> None:
        """Wait for the bytes; then the device's memory is free, for the stream that it was taken for."""
        for event in taken.arrived:
            try:
                event.synchronize()
            except BaseException as error:  # noqa: BLE001 -- told to whoever waits for the batch
                taken.error = taken.error or error
        taken.segments.clear()
        taken.room.close()

    # -- the thread that delivers ------------------------------------------------------------------------------------

    def _deliver(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._landed or self._ended())
                if not self._landed:
                    return
                taken = self._landed.popleft()
            assert taken.deliver is not None
            assert taken.failed is not None
            try:
                if taken.error is not None:
                    raise taken.error
                taken.deliver(self._shown(taken))
            except BaseException as error:  # noqa: BLE001 -- told to whoever waits for the batch
                taken.failed(error)
            with self._changed:
                if taken.memory is not None:
                    assert self._ring is not None
                    self._ring.give_back()
                self._under_way -= 1
                self._changed.notify_all()
            del taken  # its memory must not live until the next one comes

    def _shown(self, taken: Taken) -> list[torch.Tensor]:
        assert taken.memory is not None
        return [own.show(taken.memory) if isinstance(own, _Place) else own for own in taken.own]
