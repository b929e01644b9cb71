"""B3: how long the model's own thread stands idle between two calls, against the same job that writes nothing.

A model that takes a fixed time a batch, as a GPU does, and returns one output for it, so large that 30 % or 80 % of
what the staging folder can take is written. Both jobs run in Ray Data with one actor; only the first has a sink.
"""

from __future__ import annotations

import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy, Dataset

from benchmarks.measuring import Figure
from benchmarks.works import MiB
from benchmarks.writer import Landing
from ray_sink import Limits, SaveFormat, Sink, WriterOptions

_BATCHES, _BLOCKS, _WARM = 60, 6, 15
_ROUNDS = 3
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
            out[:] = self.template
            out[0] = batch["id"][0]
        time.sleep(max(0.0, self.step_s - (time.monotonic() - began_s)))
        made = {"id": batch["id"], "t0": np.array([began_s]), "t1": np.array([time.monotonic()])}
        return {**made, "u": out[None]} if self.returns else made


def answer() -> Iterator[Figure]:
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
        rate = _staging_rate(root)
        for step_s in (0.2, 0.1):
            for load, bar in ((0.3, 0.005), (0.8, 0.02)):
                yield from _compared(root, step_s, load, int(rate * load * step_s) // 4, bar)
    finally:
        ray.shutdown()
        shutil.rmtree(root, ignore_errors=True)


def _staging_rate(root: Path) -> float:
    """Bytes a second that one writer lands in the folder."""
    landing = Landing(root / "rate", SaveFormat.NUMPY_NPY, root)
    values = [torch.randn(16 * MiB // 4) for _ in range(4)]
    took_s = []
    for _ in range(6):
        began_s = time.monotonic()
        receipts = landing.write(values)
        took_s.append(time.monotonic() - began_s)
        landing.clear(receipts)
    landing.writer.close()
    return 4 * 16 * MiB / median(took_s)


def _compared(root: Path, step_s: float, load: float, floats: int, bar: float) -> Iterator[Figure]:
    ways: dict[str, Callable[[], float]] = {
        "nothing": lambda: _idle(_plain(step_s, floats)),
        "fresh": lambda: _idle(_sunk(root, step_s, floats, reused=False)),
        "reused": lambda: _idle(_sunk(root, step_s, floats, reused=True)),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(_ROUNDS):
        for name, way in ways.items():
            found[name].append(way())
    idle_s = {name: median(values) for name, values in found.items()}
    case = f"{1e3 * step_s:.0f} ms a step, {4 * floats / MiB:.0f} MiB each ({100 * load:.0f} % of staging)"
    extra = (idle_s["fresh"] - idle_s["nothing"]) / step_s
    yield Figure("B3", f"{case}, fresh output", 100 * extra, "% of the step", most=100 * bar, seconds=idle_s)
    memcpy_s = _memcpy(floats)
    extra_s = idle_s["reused"] - idle_s["nothing"]
    yield Figure(
        "B3", f"{case}, reused buffer", extra_s / memcpy_s, "x memcpy", most=1.0, note=f"memcpy {memcpy_s:.4f} s"
    )


def _memcpy(floats: int) -> float:
    source, target = np.ones(floats, np.float32), np.zeros(floats, np.float32)
    took_s = []
    for _ in range(9):
        began_s = time.perf_counter()
        np.copyto(target, source)
        took_s.append(time.perf_counter() - began_s)
    return median(took_s)


def _cases() -> Dataset:
    return ray.data.range(_BATCHES, override_num_blocks=_BLOCKS)


def _plain(step_s: float, floats: int) -> Sequence[Mapping[str, Any]]:
    made = _cases().map_batches(
        Model,
        batch_size=1,
        compute=ActorPoolStrategy(size=1),
        num_cpus=1,
        fn_constructor_args=(step_s, floats, False, False),
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


def _idle(rows: Sequence[Mapping[str, Any]]) -> float:
    """Seconds a step between the end of a call and the beginning of the next, once it runs."""
    calls = sorted((float(row["t0"]), float(row["t1"])) for row in rows)[_WARM:]
    gaps = [after[0] - before[1] for before, after in pairwise(calls)]
    return sum(gaps) / len(gaps)
