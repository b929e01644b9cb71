"""B8: long runs. What an output costs after 10^4 and 10^5 others, and what 10^6 of them cost whoever comes back.

The pipeline is the real one without Ray: writer, ledger, uploader and a folder as destination, in one process, tmpfs.
Journals of up to 10^6 outputs are the real ledger's, asked about attempts that have no files. Each step behind them is
looked at in a process of its own: seconds, and the most memory it ever held.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.journals import Step, apart, synthesize
from benchmarks.measuring import Figure
from benchmarks.pipeline import through

LENGTHS: Final = (10**4, 10**5, 10**6)
PIPELINE: Final = 10**5
# a million of the same are a mean by themselves
ROUNDS: Final = {10**4: 5, 10**5: 2, 10**6: 1}
RESUME_BAR_S, RESUME_BAR_GB = 10.0, 1.0
FLAT: Final = 1.25
_SHM = Path("/dev/shm")


def answer() -> Iterator[Figure]:
    yield from _of_pipeline()
    root = Path(tempfile.mkdtemp(prefix="rs-bench-"))
    try:
        steps: dict[int, dict[str, list[Step]]] = {}
        for outputs in LENGTHS:
            place = root / str(outputs)
            spent = synthesize(place, outputs)
            if outputs == LENGTHS[-1]:
                yield _flat("ledger alone, 10^6", spent, outputs)
            steps[outputs] = {}
            for _ in range(ROUNDS[outputs]):
                for name, step in {**apart("back", place, outputs), **apart("read", place, outputs)}.items():
                    steps[outputs].setdefault(name, []).append(step)
            shutil.rmtree(place)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    yield from _of_steps(steps)


def _of_pipeline() -> Iterator[Figure]:
    root = Path(tempfile.mkdtemp(prefix="rs-bench-", dir=_SHM))
    try:
        yield _flat(f"pipeline, 4 KiB outputs, {PIPELINE:,}", through(root, PIPELINE), PIPELINE)
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _flat(case: str, spent: Sequence[float], outputs: int) -> Figure:
    first, last = (10 * median(part) / outputs for part in (spent[1:4], spent[7:]))
    return Figure(
        "B8",
        f"{case}: CPU of an output near the end",
        last / first,
        "x near the beginning",
        most=FLAT,
        seconds={"beginning": first, "end": last},
    )


def _of_steps(steps: dict[int, dict[str, list[Step]]]) -> Iterator[Figure]:
    most, before = LENGTHS[-1], LENGTHS[-2]
    for name in steps[most]:
        wall_s = median(step.wall_s for step in steps[most][name])
        peak_gb = median(step.peak_bytes for step in steps[most][name]) / 1e9
        bars = (RESUME_BAR_S, RESUME_BAR_GB) if name == "resume" else (None, None)
        yield Figure("B8", f"{name} of 10^6", wall_s, "s", most=bars[0])
        yield Figure("B8", f"{name} of 10^6, peak memory of its process", peak_gb, "GB", most=bars[1])
        cpu_s = {outputs: median(step.cpu_s for step in steps[outputs][name]) for outputs in LENGTHS}
        yield Figure(
            "B8",
            f"{name}: CPU of an output of 10^6",
            cpu_s[most] / most / (cpu_s[before] / before),
            "x of 10^5",
            most=FLAT,
            seconds={f"{outputs:,}": seconds for outputs, seconds in cpu_s.items()},
        )
