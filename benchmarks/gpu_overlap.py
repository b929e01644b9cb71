"""How long a model on a GPU waits for its outputs to leave it, and how fast they leave, against a plain ``.cpu()``.

    python -m benchmarks.gpu_overlap

Needs torch and a GPU, and no Ray; without a GPU it says so and ends. A model of matrix products computes for a fixed
time a step and writes its output into one buffer, the same each step, by itself or as a replayed CUDA graph. The ways:

- nothing: the output stays where it is;
- cpu: ``.cpu()`` at each step;
- pinned: a copy into page-locked memory that is made beforehand, waited for at each step;
- ours: `ray_sink.offload`, which copies each output once more, into memory at hand, as ``ray.put`` would.

The clock runs until the GPU has computed everything (stall), or until every byte is in host memory (bandwidth). Every
byte of every turn is compared, outside the time. First come outputs of all dtypes, layouts and sizes, and a buffer that
is overwritten at once.
"""

from __future__ import annotations

import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from statistics import median
from typing import Final

import torch

from benchmarks.measuring import Figure, medians, table
from ray_sink.accelerator import Cuda
from ray_sink.offload import Offload

MiB: Final = 2**20
_STEPS: Final = 24
_WIDTH: Final = 2048
_LIMIT_BYTES: Final = 512 * MiB
_PATIENCE_S: Final = 120.0


class Model:
    """Multiplies matrices for about `step_s`, then writes (template + number) mod 256 into its buffer.

    Args:
        n_bytes: of an output.
        step_s: of a step; 0 computes nothing.
        graph: replay a captured CUDA graph.
    """

    def __init__(self, n_bytes: int, step_s: float, *, graph: bool) -> None:
        self.template = torch.randint(0, 256, (n_bytes,), dtype=torch.uint8)
        self._template = self.template.cuda()
        self._matrix = torch.randn(_WIDTH, _WIDTH, device="cuda") / _WIDTH**0.5
        self._number = torch.zeros((), dtype=torch.uint8, device="cuda")
        self._numbers = torch.arange(256, dtype=torch.uint8, device="cuda")
        self.output = torch.empty(n_bytes, dtype=torch.uint8, device="cuda")
        self._products = 0
        if step_s:
            self._products = 50
            self._compute()
            self._products = max(1, round(50 * step_s / _seconds(self._compute)))
        self._graph: torch.cuda.CUDAGraph | None = None
        if graph:
            self._compute()
            torch.cuda.synchronize()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._compute()

    def __call__(self, number: int) -> torch.Tensor:
        self._number.copy_(self._numbers[number])
        if self._graph is None:
            self._compute()
        else:
            self._graph.replay()
        return self.output

    def _compute(self) -> None:
        product = self._matrix
        for _ in range(self._products):
            product = product @ self._matrix
        torch.add(self._template, self._number, out=self.output)

    def check(self, found: Sequence[torch.Tensor]) -> None:
        assert len(found) == _STEPS, f"{_STEPS - len(found)} outputs are missing"
        for number, output in enumerate(found):
            assert output.equal(self.template + number), f"output {number} is not what the model wrote"


def _seconds(work: Callable[[], object]) -> float:
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    began.record()
    work()
    ended.record()
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1e3


def answer() -> Iterator[Figure]:
    if not torch.cuda.is_available():
        yield Figure("GPU", "not measured", float("nan"), "", note="there is no GPU here")
        return
    _compare_odd_ones()
    _overwrite_at_once()
    for n_bytes, step_s, graph in itertools.product((64 * MiB, MiB), (0.02, 0.005), (False, True)):
        yield from _stall(n_bytes, step_s, graph=graph)
    for n_bytes in (64 * MiB, MiB, 64 * 1024):
        yield from _bandwidth(n_bytes)


class Way:
    """One way off the GPU, with what it brought.

    Attributes:
        call_s: how long each call held the caller.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.call_s: list[float] = []
        size = model.template.shape
        self._slots = [torch.zeros(size, dtype=torch.uint8) for _ in range(_STEPS)]
        self._pinned = [torch.empty(size, dtype=torch.uint8, pin_memory=True) for _ in range(_STEPS)]
        self._offload = Offload(_LIMIT_BYTES, Cuda())
        self._found: list[torch.Tensor] = []

    def run(self, write: Callable[[torch.Tensor], None], *, to_the_end: bool) -> float:
        self._found = []
        torch.cuda.synchronize()
        began_s = time.perf_counter()
        for number in range(_STEPS):
            output = self.model(number)
            called_s = time.perf_counter()
            write(output)
            self.call_s.append(time.perf_counter() - called_s)
        computed = torch.cuda.Event()
        computed.record()
        computed.synchronize()
        if to_the_end:
            self._all_found()
        took_s = time.perf_counter() - began_s
        if write != self.nothing:
            self._all_found()
            self.model.check(self._found)
        return took_s

    def _all_found(self) -> None:
        end_s = time.monotonic() + _PATIENCE_S
        while len(self._found) < _STEPS and time.monotonic() < end_s:
            time.sleep(1e-4)

    def nothing(self, output: torch.Tensor) -> None:
        pass

    def cpu(self, output: torch.Tensor) -> None:
        self._found.append(output.cpu())

    def pinned(self, output: torch.Tensor) -> None:
        slot = self._pinned[len(self._found)]
        slot.copy_(output, non_blocking=True)
        copied = torch.cuda.Event()
        copied.record()
        copied.synchronize()
        self._found.append(slot)

    def ours(self, output: torch.Tensor) -> None:
        self._offload.bring(self._offload.take([output]), deliver=self._deliver, failed=_fail)

    def _deliver(self, tensors: Sequence[torch.Tensor]) -> None:
        slot = self._slots[len(self._found)]
        slot.copy_(tensors[0])
        self._found.append(slot)

    @property
    def waited_s(self) -> float:
        return self._offload.waited_s

    def close(self) -> None:
        self._offload.close()


def _fail(error: BaseException) -> None:
    sys.stderr.write(f"{error!r}\n")


def _stall(n_bytes: int, step_s: float, *, graph: bool) -> Iterator[Figure]:
    way = Way(Model(n_bytes, step_s, graph=graph))
    run = partial(way.run, to_the_end=False)
    seconds = medians({name: partial(run, getattr(way, name)) for name in ("nothing", "cpu", "pinned", "ours")})
    way.call_s.clear()
    waited_s = way.waited_s
    run(way.ours)
    call_s, waited_s = median(way.call_s), way.waited_s - waited_s
    way.close()
    case = f"{n_bytes / MiB:g} MiB each {1e3 * step_s:g} ms{', CUDA graph' if graph else ''}"
    for name in ("ours", "pinned", "cpu"):
        note = f"a call holds for {1e6 * call_s:.0f} us, {1e3 * waited_s:.3g} ms waited for room"
        yield Figure(
            "GPU",
            f"stall, {case}: {name}",
            100 * (seconds[name] - seconds["nothing"]) / seconds["nothing"],
            "% of the step",
            seconds={key: value / _STEPS for key, value in seconds.items()} if name == "ours" else None,
            note=note if name == "ours" else "",
        )


def _bandwidth(n_bytes: int) -> Iterator[Figure]:
    way = Way(Model(n_bytes, 0, graph=False))
    run = partial(way.run, to_the_end=True)
    seconds = medians({name: partial(run, getattr(way, name)) for name in ("cpu", "pinned", "ours")})
    way.close()
    for name, took_s in seconds.items():
        yield Figure("GPU", f"bandwidth, {n_bytes / MiB:g} MiB: {name}", _STEPS * n_bytes / took_s / 1e9, "GB/s")


class Collector:
    """Copies of what was brought, in order; to be waited for."""

    def __init__(self, limit_bytes: int) -> None:
        self.offload = Offload(limit_bytes, Cuda())
        self.found: list[list[torch.Tensor]] = []
        self.errors: list[BaseException] = []
        self._changed = threading.Condition()

    def write(self, *tensors: torch.Tensor) -> None:
        self.offload.bring(self.offload.take(tensors), deliver=self._deliver, failed=self._fail)

    def _deliver(self, tensors: Sequence[torch.Tensor]) -> None:
        with self._changed:
            self.found.append([tensor.clone() for tensor in tensors])
            self._changed.notify_all()

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self.errors.append(error)
            self._changed.notify_all()

    def wait(self, count: int) -> list[list[torch.Tensor]]:
        with self._changed:
            assert self._changed.wait_for(lambda: self.errors or len(self.found) == count, _PATIENCE_S)
        for error in self.errors:
            raise error
        self.offload.close()
        return self.found


_DTYPES: Final = (
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16),
    *(torch.float32, torch.float64, torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.uint16, torch.uint32, torch.uint64),
)


def _compare_odd_ones() -> None:
    odd = []
    for dtype in _DTYPES:
        n_bytes = 64 * torch.empty((), dtype=dtype).element_size()
        raw = torch.randint(0, 2 if dtype == torch.bool else 256, (n_bytes,), dtype=torch.uint8)
        there = raw.cuda().view(dtype).view(8, 8)
        odd += [there, there.T, there[:, ::2], there[1], there[2, 3], there[:1].expand(3, 8), there[:0]]
        if dtype.is_complex:
            odd += [there.conj(), there.imag]
    odd += [torch.rand(3, 5).T, torch.rand(4, 4, device="cuda", requires_grad=True)]
    with torch.inference_mode():
        odd.append(torch.rand(5, device="cuda"))
    if torch.cuda.device_count() > 1:
        odd.append(torch.rand(1000, device="cuda:1"))
    collector = Collector(16 * MiB)
    collector.write(*odd)
    for tensor in odd:  # and each alone, in a ring that comes around
        collector.write(tensor)
    together, *alone = collector.wait(1 + len(odd))
    for tensor, one, other in zip(odd, together, (found for (found,) in alone), strict=True):
        expected = tensor.detach().cpu().resolve_conj().resolve_neg()
        for found in (one, other):
            assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
            assert _bits(found).equal(_bits(expected)), f"{tensor.dtype} {tuple(tensor.shape)} {tensor.stride()}"


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8)


def _overwrite_at_once() -> None:
    """Sizes from nothing to above the limit, each from a buffer that holds something else as soon as it was written."""
    collector = Collector(8 * MiB)
    sizes = torch.randint(0, 3 * MiB, (300,), generator=torch.Generator().manual_seed(0)).tolist()
    sizes[50], sizes[200] = 20 * MiB, 0
    buffer = torch.empty(20 * MiB, dtype=torch.uint8, device="cuda")
    for number, size in enumerate(sizes):
        buffer.fill_(number % 251)
        collector.write(buffer[:size])
        buffer.fill_(255)
    for number, (size, (found,)) in enumerate(zip(sizes, collector.wait(len(sizes)), strict=True)):
        assert found.shape == (size,)
        assert found.eq(number % 251).all(), f"output {number} of {size} bytes is not what was written"


def main() -> None:
    figures = []
    for figure in answer():
        figures.append(figure)
        sys.stderr.write(f"{figure.case}: {figure.value:.3g} {figure.unit} {figure.note}\n")
    sys.stdout.write(table(figures) + "\n")
    if torch.cuda.is_available():
        sys.stdout.write(f"\n{torch.cuda.get_device_name()}, torch {torch.__version__}, every byte compared\n")


if __name__ == "__main__":
    main()
