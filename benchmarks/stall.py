"""B3: how long the model's own thread stands idle between two calls, against the same job that writes nothing.

A model that takes a fixed time a batch, as a GPU does, and returns one output for it, so large that 30 % or 80 % of
what the staging folder can take is written. Both jobs run in Ray Data with one actor; only the first has a sink.

A model that returns the same buffer each time has to wait for one copy of it. That is held against another copy of as
many bytes, which the model makes into the buffer before, beside the same writer. All pages of the object store are
touched first: shared memory that nobody has used yet costs many times a memcpy, once.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, Dataset

from benchmarks.measuring import ROUNDS, Figure
from benchmarks.works import MiB
from benchmarks.writer import Landing
from ray_sink import Limits, SaveFormat, Sink, WriterOptions

_BATCHES, _BLOCKS, _WARM = 30, 5, 10
_BARS: Final = {0.3: 0.005, 0.8: 0.02}  # of the step, by load
_RATE_S = 12.0
_STORE_BYTES = 2048 * MiB


class Model:
    """Takes `step_s` for a batch of one row; its output is a new array, or the same buffer each time.

    The output is made before the clock starts to wait: what that takes is a part of the step.
    """

    def __init__(self, step_s: float, floats: int, reused: bool, returns: bool) -> None:
        self.step_s, self.returns = step_s, returns
        self.template = np.random.default_rng(0).random(floats, np.float32)
        self.buffer = self.template.copy() if reused else None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        began_s = time.monotonic()
        out = self.buffer if self.buffer is not None else np.empty_like(self.template)
        if self.returns:
            np.copyto(out, self.template)
            out[0] = batch["id"][0]
        copied_s = time.monotonic()
        time.sleep(max(0.0, self.step_s - (time.monotonic() - began_s)))
        times = {"t0": began_s, "copied": copied_s, "t1": time.monotonic()}
        made = {"id": batch["id"], **{name: np.array([at_s]) for name, at_s in times.items()}}
        return {**made, "u": out[None]} if self.returns else made


def answer(rounds: int = ROUNDS) -> Iterator[Figure]:
    ray.init(
        address="local",
        num_cpus=4,
        object_store_memory=_STORE_BYTES,
        include_dashboard=False,
        log_to_driver=False,
        configure_logging=False,
    )
    ray.data.DataContext.get_current().enable_progress_bars = False
    root = Path(tempfile.mkdtemp(prefix="rs-bench-"))
    try:
        _touch()
        rate = _staging_rate(root)
        for step_s in (0.2, 0.1):
            yield from _compared(root, step_s, rate, rounds)
    finally:
        ray.shutdown()
        shutil.rmtree(root, ignore_errors=True)


def _touch() -> None:
    for _ in range(2 * _STORE_BYTES // (64 * MiB)):
        ray.put(np.ones(64 * MiB, np.uint8))


def _staging_rate(root: Path) -> float:
    """Bytes a second that one writer lands in the folder for as long as a job runs: a disk takes more at first."""
    landing = Landing(root / "rate", SaveFormat.NUMPY_NPY, root)
    values = [torch.randn(16 * MiB // 4) for _ in range(4)]
    receipts = []
    began_s = time.monotonic()
    while (took_s := time.monotonic() - began_s) < _RATE_S:
        receipts += landing.write(values)
    landing.writer.close()
    shutil.rmtree(root / "rate")
    return 16 * MiB * len(receipts) / took_s


def _compared(root: Path, step_s: float, rate: float, rounds: int) -> Iterator[Figure]:
    floats = {load: int(rate * load * step_s) // 4 for load in _BARS}
    ways: dict[tuple[str, float], Callable[[], Sequence[Mapping[str, Any]]]] = {
        ("nothing", 0.0): partial(_plain, step_s),
        **{("fresh", load): partial(_sunk, root, step_s, size, reused=False) for load, size in floats.items()},
        **{("reused", load): partial(_sunk, root, step_s, size, reused=True) for load, size in floats.items()},
    }
    idle_s: dict[tuple[str, float], list[float]] = {way: [] for way in ways}
    copied_s: dict[tuple[str, float], list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for way, rows in ways.items():
            calls = sorted(rows(), key=lambda row: float(row["t0"]))[_WARM:]
            idle_s[way].append(_idle(calls))
            copied_s[way].append(median(float(call["copied"]) - float(call["t0"]) for call in calls))
    nothing_s = median(idle_s["nothing", 0.0])
    for load, bar in _BARS.items():
        fresh_s, reused_s = median(idle_s["fresh", load]), median(idle_s["reused", load])
        memcpy_s = median(copied_s["reused", load])
        case = f"{1e3 * step_s:.0f} ms a step, {4 * floats[load] / MiB:.0f} MiB each ({100 * load:.0f} % of staging)"
        yield Figure(
            "B3",
            f"{case}, fresh output",
            100 * (fresh_s - nothing_s) / step_s,
            "% of the step",
            most=100 * bar,
            seconds={"nothing": nothing_s, "fresh": fresh_s},
        )
        yield Figure(
            "B3",
            f"{case}, reused buffer",
            (reused_s - nothing_s) / memcpy_s,
            "x memcpy",
            most=1.0,
            seconds={"reused": reused_s, "memcpy": memcpy_s},
        )


def _cases() -> Dataset:
    return ray.data.range(_BATCHES, override_num_blocks=_BLOCKS)


def _plain(step_s: float) -> Sequence[Mapping[str, Any]]:
    made = _cases().map_batches(
        Model,
        batch_size=1,
        compute=ActorPoolStrategy(size=1),
        num_cpus=1,
        fn_constructor_args=(step_s, 1, False, False),
    )
    return list(made.take_all())


def _sunk(root: Path, step_s: float, floats: int, *, reused: bool) -> Sequence[Mapping[str, Any]]:
    folder = root / uuid.uuid4().hex
    folder.mkdir()
    try:
        with Sink(
            None,
            staging=folder,
            save_format=SaveFormat.NUMPY_NPY,
            writers=WriterOptions(temp_dir=str(folder)),
            limits=Limits(staging_bytes=2**40, object_store_bytes=_STORE_BYTES // 2),
        ) as sink:
            receipts = sink.run(
                _cases(),
                Model,
                key="{id}",
                columns="u",
                batch_size=1,
                compute=ActorPoolStrategy(size=1),
                num_cpus=1,
                fn_constructor_args=(step_s, floats, reused, True),
            )
        for number in range(_BATCHES):
            assert sink.manifest.load(str(number))[0] == number  # type: ignore[index]
        return list(receipts.take_all())
    finally:
        shutil.rmtree(folder)


def _idle(calls: Sequence[Mapping[str, Any]]) -> float:
    """Seconds a step between the end of a call and the beginning of the next."""
    gaps = [float(after["t0"]) - float(before["t1"]) for before, after in pairwise(calls)]
    return sum(gaps) / len(gaps)
